"""`rsfuse convert`, `validate`, `split` and `merge`: detection data sets between formats."""

from pathlib import Path
from typing import Annotated, Any

import typer

from rsfuse.cli.options import Json, Overwrite, Quiet, Verbose
from rsfuse.cli.output import emit
from rsfuse.errors import InputError

Source = Annotated[Path, typer.Argument(help="The data set: its folder or file.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="Where results are written.")]
Format = Annotated[
    str, typer.Option("--format", "--from", help="Format of the data set; auto looks.")
]
Split = Annotated[str | None, typer.Option(help="A part of it, for example train.")]
Classes = Annotated[
    str | None, typer.Option(help="Classes in the order of the labels, such as ship,plane.")
]
Ignored = Annotated[str | None, typer.Option(help="Classes whose objects become difficult.")]


def convert(
    source: Source,
    output: Output,
    to: Annotated[str, typer.Option("--to", help="Format to write.")],
    format: Format = "auto",
    split: Split = None,
    classes: Classes = None,
    ignored: Ignored = None,
    as_json: Json = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Write the labels of SOURCE in another format.

    Images stay where they are: OUTPUT receives labels alone, to be put beside them. What the other
    format cannot say (a heading, a flag of difficulty) is left out.
    """
    from rsfuse.detection.formats import write_dataset
    from rsfuse.runs import staged

    name, dataset = _read(source, format, split, classes, ignored)
    with staged(output, overwrite) as folder:
        write_dataset(folder, dataset, format=to)
    emit(
        {
            "format": f"{name} -> {to}",
            "images": len(dataset.samples),
            "objects": sum(len(s.objects) for s in dataset.samples),
            "classes": list(dataset.classes),
            **{f"note: {what}": count for what, count in dataset.notes.items()},
            "output": str(output),
        },
        as_json,
    )


def validate(
    source: Source,
    format: Format = "auto",
    split: Split = None,
    classes: Classes = None,
    ignored: Ignored = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Say what in SOURCE would cost accuracy, or all of it.

    The exit code is 0 when nothing was found, 3 when there are warnings, 2 when the data set is of
    no use as it is.
    """
    from rsfuse.detection.formats.yolo import image_size
    from rsfuse.detection.validate import validate as look

    name, dataset = _read(source, format, split, classes, ignored)
    findings = look(dataset, size_of=image_size)
    counts = {n: int(c) for n, c in zip(dataset.classes, dataset.count(), strict=True)}
    content: dict[str, Any] = {
        "format": name,
        "images": sum(s.image is not None for s in dataset.samples),
        "label files": len(dataset.samples),
        "objects": counts,
    }
    if as_json:
        emit({**content, "findings": [f.to_dict() for f in findings]}, as_json)
    else:
        told = [
            f"{f.level}: {f.count} x {f.what} ({f.why})"
            + (f"; {'; '.join(f.examples)}" if f.examples else "")
            for f in findings
        ]
        emit({**content, "findings": told or "none"}, as_json)
    levels = {f.level for f in findings}
    if levels & {"error", "warning"}:
        raise typer.Exit(2 if "error" in levels else 3)


def split(
    source: Source,
    output: Output,
    size: Annotated[int, typer.Option(min=64, help="Side of a tile in pixels.")] = 1024,
    overlap: Annotated[int, typer.Option(min=0, help="What neighbours share.")] = 200,
    dialect: Annotated[
        str, typer.Option(help="Names of tiles: toolkit (window) or devkit (rate).")
    ] = "toolkit",
    format: Format = "auto",
    part: Annotated[str | None, typer.Option("--split", help="A part of the data set.")] = None,
    classes: Classes = None,
    ignored: Ignored = None,
    as_json: Json = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Cut the images of SOURCE into tiles with DOTA labels, for tools that need them.

    rsfuse itself trains on whole images. Objects are whole in every tile that shows any of them;
    those of which less than 70 % shows are flagged with 2.
    """
    from rsfuse.cli.options import choice
    from rsfuse.detection.formats import write_dataset
    from rsfuse.detection.tiles import split as cut
    from rsfuse.runs import staged

    choice(dialect, ("toolkit", "devkit"), "--dialect")
    _, dataset = _read(source, format, part, classes, ignored)
    with staged(output, overwrite) as folder:
        tiles = cut(dataset, folder, size=size, overlap=overlap, dialect=dialect)  # type: ignore[arg-type]
        write_dataset(folder, tiles, format="dota")
    emit(
        {
            "images": sum(s.image is not None for s in dataset.samples),
            "tiles": len(tiles.samples),
            "objects": sum(len(s.objects) for s in tiles.samples),
            "output": str(output),
        },
        as_json,
    )


def merge(
    results: Annotated[Path, typer.Argument(help="Folder or zip of Task1_<class>.txt of tiles.")],
    output: Output,
    nms: Annotated[float, typer.Option(min=0, max=1, help="Largest overlap of two boxes.")] = 0.1,
    as_json: Json = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Put results of tiles together to those of whole images, as a DOTA submission.

    Tile names of both dialects are understood: IMAGE__RATE__X___Y and IMAGE__WINDOW__X___Y.
    """
    from rsfuse.detection.results import of_submission, write_submission
    from rsfuse.detection.tiles import merge as join
    from rsfuse.detection.tiles import parse_name

    if output.exists() and not overwrite:
        raise InputError(f"{output} exists", "nothing is replaced unasked", "add --overwrite")
    tiles = of_submission(results)
    whole = join(tiles, nms=nms)
    write_submission(output, whole)
    names = {name.dialect for tile in tiles if (name := parse_name(tile.name))}
    emit(
        {
            "tiles": len(tiles),
            "names": " and ".join(sorted(names)),
            "images": len(whole),
            "boxes": f"{sum(len(t) for t in tiles)} -> {sum(len(w) for w in whole)}",
            "written": str(output),
        },
        as_json,
    )


def _read(
    source: Path, format: str, part: str | None, classes: str | None, ignored: str | None
) -> tuple[str, Any]:
    """Name of the format and the data set."""
    from rsfuse.detection.formats import read_dataset, sniff

    if not source.exists():
        raise InputError(f"{source} does not exist", "a data set is needed", "check the path")
    name = sniff(source) if format == "auto" else format
    wanted = _names(classes)
    dataset = read_dataset(
        source, format=name, split=part, classes=wanted or None, ignored=_names(ignored)
    )
    return name, dataset


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(p.strip() for p in (text or "").split(",") if p.strip())
