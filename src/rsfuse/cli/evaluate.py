"""`rsfuse evaluate TASK`: measure a task on a data set with known truth."""

import functools
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from rsfuse.cli.match import METHODS
from rsfuse.cli.options import (
    RUNTIMES,
    Json,
    Overwrite,
    Progress,
    Quiet,
    Seed,
    Verbose,
    Workers,
    choice,
    names_of,
)
from rsfuse.cli.output import console, emit, progress_reporter
from rsfuse.errors import InputError

app = typer.Typer(no_args_is_help=True, help="Measure a task on a data set with known truth.")

# Named here so that --help needs no import of the matching task; a test compares both lists.
PROTOCOLS = ("srif", "mmim", "sub", "loop", "trust", "big")


@app.command("match")
def match(
    dataset: Annotated[
        Path,
        typer.Argument(
            help="Folder with an index.json; for `big` a folder with a simulated pair, "
            "made if it is missing.",
            show_default=False,
        ),
    ],
    protocol: Annotated[
        str, typer.Option("--protocol", "-p", help=f"One of {', '.join(PROTOCOLS)}.")
    ] = "srif",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder for metrics.json, table.txt and figure.svg."),
    ] = None,
    workers: Workers = 1,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="At most this many pairs, spread over the modalities."),
    ] = None,
    method: Annotated[str, typer.Option(help="Matcher: auto, cstf or classic.")] = "auto",
    weights: Annotated[
        str | None, typer.Option(help="Bundle of a CSTF matcher.", metavar="BUNDLE")
    ] = None,
    held_out: Annotated[
        int,
        typer.Option(
            min=0, help="Only every so-many-th pair: those that a training left out; 0 takes all."
        ),
    ] = 0,
    seed: Seed = 0,
    upright: Annotated[
        bool,
        typer.Option("--upright", help="srif only: take rotation and scale out of every pair."),
    ] = False,
    as_they_lie: Annotated[
        bool,
        typer.Option(
            "--as-they-lie",
            help="srif only: do not turn pairs that nearly lie on each other.",
        ),
    ] = False,
    size: Annotated[
        int, typer.Option(min=512, help="big only: side of the simulated pair in pixels.")
    ] = 10_000,
    as_json: Json = False,
    overwrite: Overwrite = False,
    progress: Progress = "bar",
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Measure `rsfuse match` by a frozen protocol, failures always counted.

    srif: success and error on every pair. mmim: corner AUC. sub: sub-pixel precision and peak
    locking. loop: closure of A to B and back. trust: false accepts and calibration on true,
    unrelated and non-overlapping pairs. big: wall time and memory on a large simulated pair.

    Exit code 3 when the matcher failed with an exception on some pair.
    """
    choice(protocol, PROTOCOLS, "--protocol")
    choice(method, METHODS, "--method")
    if protocol == "big" and (method != "auto" or weights is not None):
        raise InputError(
            "--protocol big takes neither --method nor --weights",
            "it times the command as a user runs it",
            "leave them out",
        )
    from rsfuse.matching import evaluate as evaluation
    from rsfuse.runs import staged

    reporter = progress_reporter(progress, quiet=quiet)
    done_so_far = 0

    def advance(done: int, total: int) -> None:
        nonlocal done_so_far
        if done_so_far == 0:
            reporter.start(total, f"{protocol} on {dataset.name}")
        reporter.advance(done - done_so_far)
        done_so_far = done

    stage = nullcontext(None) if output is None else staged(output, overwrite)
    try:
        with stage as folder:
            if protocol == "big":
                result = evaluation.evaluate_big(dataset, size=size, seed=seed, out_dir=folder)
            else:
                result = evaluation.evaluate(
                    dataset,
                    protocol,
                    matcher=functools.partial(
                        evaluation.product_matcher, method=method, weights=weights
                    ),
                    method=f"rsfuse {method}",
                    held_out=held_out,
                    workers=workers,
                    seed=seed,
                    limit=limit,
                    upright=upright,
                    as_they_lie=as_they_lie,
                    out_dir=folder,
                    progress=advance,
                )
    finally:
        reporter.finish()
    if as_json:
        emit({k: v for k, v in result.to_dict().items() if k != "records"}, as_json=True)
    else:
        _print_table(result.cells())
    if any(record["exception"] is not None for record in result.records):
        raise typer.Exit(3)


DETECT_PROTOCOLS = ("dota-1.0", "dota-1.5", "voc12", "hrsc-07", "hrsc-12")


@app.command("detect")
def detect(
    results: Annotated[
        Path,
        typer.Argument(help="Task1 files: a folder or zip file; or a model bundle to run."),
    ],
    dataset: Annotated[Path, typer.Argument(help="Data set with labels.")],
    protocol: Annotated[
        str, typer.Option("--protocol", "-p", help=f"One of {', '.join(DETECT_PROTOCOLS)}.")
    ] = "dota-1.0",
    kind: Annotated[str, typer.Option("--format", help="Format of the data set.")] = "auto",
    split: Annotated[str | None, typer.Option(help="Part of the data set, such as val.")] = None,
    ignored: Annotated[
        str | None, typer.Option(help="Classes that are neither right nor wrong, such as a,b.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder for metrics.json, table.txt and figure.svg."),
    ] = None,
    runtime: Annotated[str, typer.Option(help="Of a bundle: auto, torch or onnx.")] = "auto",
    as_json: Json = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Score oriented boxes as the DOTA devkit does; the protocol stands beside every number.

    With a model bundle in place of RESULTS, its detections on the images of the data set are made
    first.
    """
    choice(protocol, DETECT_PROTOCOLS, "--protocol")
    from rsfuse.detection import evaluate as evaluation
    from rsfuse.detection.formats import read_dataset
    from rsfuse.detection.results import read_submission
    from rsfuse.engine.bundle import is_bundle, load_bundle
    from rsfuse.runs import staged

    names = names_of(ignored)
    choice(runtime, RUNTIMES, "--runtime")
    if is_bundle(results):
        from rsfuse.detection.scene import detect_dataset

        bundle = load_bundle(results, "detect")
        classes = [item.name for item in bundle.card.classes]
        data = read_dataset(dataset, format=kind, split=split, classes=None, ignored=names)
        data = data.with_classes(classes)
        answers = evaluation.answers_of_images(
            detect_dataset(bundle, data, runtime=runtime),  # type: ignore[arg-type]
            data,
        )
    else:
        data = read_dataset(dataset, format=kind, split=split, ignored=names)
        answers = evaluation.answers_of(read_submission(results), data)
    scores = evaluation.evaluate(data, answers, protocol)
    if output is not None:
        about = {"task": "detect", "results": str(results), "dataset": str(dataset)}
        with staged(output, overwrite) as folder:
            evaluation.write_evaluation(folder, scores, about)
    if as_json:
        emit(scores.to_dict(), as_json=True)
    else:
        _print_table(evaluation.table_of(scores))


@app.command("classify")
def classify(
    class_map: Annotated[Path, typer.Argument(help="A map that rsfuse classify wrote.")],
    labels: Annotated[Path, typer.Argument(help="Labels: a raster or polygons.")],
    confidence: Annotated[
        Path | None, typer.Option("--confidence", help="The confidence of the map.")
    ] = None,
    class_column: Annotated[
        str, typer.Option("--class-column", help="Column of polygons that holds the class.")
    ] = "class",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder for metrics.json, table.txt and figure.svg."),
    ] = None,
    as_json: Json = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Measure a class map with labels: accuracies, intervals, calibration, corrected areas."""
    from rsfuse.classification import evaluate as evaluation
    from rsfuse.runs import staged

    scores = evaluation.evaluate_map(
        class_map, labels, confidence=confidence, class_column=class_column
    )
    if output is not None:
        about = {"task": "classify", "map": str(class_map), "labels": str(labels)}
        with staged(output, overwrite) as folder:
            evaluation.write_evaluation(folder, scores, about)
    if as_json:
        emit(scores, as_json=True)
        return
    _print_table(evaluation.table_of(scores))
    low, high = scores["intervals"]["overall"]
    emit(
        {
            "overall_accuracy": f"{100 * scores['overall_accuracy']:.1f} % "
            f"({100 * low:.1f} to {100 * high:.1f})",
            "kappa": scores["kappa"],
            "mean_f1": scores["mean_f1"],
            "ece": scores.get("ece"),
        }
    )


def _print_table(cells: list[list[str]]) -> None:
    """A Rich table that keeps every column on a terminal of any width by turning it if needed."""
    from rich import box
    from rich.table import Table

    out = console(stderr=False)
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    # Wider than the terminal: one line per measure, one column per modality.
    turned = sum(widths) + 2 * len(widths) > out.width
    lines = [list(line) for line in zip(*cells, strict=True)] if turned else cells
    table = Table(box=box.SIMPLE_HEAD)
    for number, heading in enumerate(lines[0]):
        table.add_column(heading, justify="left" if number == 0 else "right")
    for line in lines[1:]:
        table.add_row(*line)
    out.print(table)
