"""`rsfuse classify`: a land-cover map from multispectral and panchromatic images."""

import logging
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from rsfuse.cli.options import (
    Device,
    DryRun,
    Json,
    Memory,
    Overwrite,
    Progress,
    Quiet,
    Resume,
    Shard,
    Tile,
    Verbose,
    Workers,
    choice,
    parse_shard,
)
from rsfuse.cli.output import Counter, emit, progress_reporter
from rsfuse.errors import InputError, RsfuseError

logger = logging.getLogger(__name__)


def classify(
    ms: Annotated[Path, typer.Argument(help="Multispectral image.")],
    pan: Annotated[Path, typer.Argument(help="Panchromatic image of the same ground.")],
    model: Annotated[
        str,
        typer.Option("-m", "--model", help="Model bundle: a folder, or the name of a shipped one."),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The class map, for example map.tif.")
    ],
    probabilities: Annotated[
        Path | None, typer.Option("--probs", help="Also write the probability of each class.")
    ] = None,
    confidence: Annotated[
        Path | None,
        typer.Option("--confidence", help="Where the confidence goes; else into the run folder."),
    ] = None,
    resolution: Annotated[
        str, typer.Option(help="Pixels of the map: ms, pan, or those that the model gives.")
    ] = "model",
    aoi: Annotated[
        Path | None, typer.Option("--aoi", help="Area of interest: a raster (not 0) or polygons.")
    ] = None,
    vector: Annotated[
        Path | None, typer.Option("--vector", help="Also write the map as polygons (GeoPackage).")
    ] = None,
    min_area: Annotated[
        float, typer.Option("--min-area", min=0, help="Drop polygons smaller than this, in m².")
    ] = 0.0,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", help="Labels to measure the map with: a raster or polygons."),
    ] = None,
    class_column: Annotated[
        str, typer.Option("--class-column", help="Column of label polygons that holds the class.")
    ] = "class",
    uncertain_below: Annotated[
        float,
        typer.Option("--uncertain-below", min=0, max=1, help="Confidence that is uncertain."),
    ] = 0.5,
    device: Device = "auto",
    tile: Tile = None,
    memory: Memory = None,
    workers: Workers = 1,
    shard: Shard = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    overwrite: Overwrite = False,
    progress: Progress = "bar",
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Map the land cover of MS and PAN with a trained model.

    Beside the map come a style for QGIS, the areas of the classes as CSV, and a folder named after
    the map with the confidence, pictures, report.html and run.json.
    """
    reporter = progress_reporter(progress, quiet=quiet)
    from rsfuse.classification.predict import TILE
    from rsfuse.classification.run import CONFIDENCE, ClassifyJob, Extras, run_folder, run_map
    from rsfuse.runs import RunRecord, distinct_outputs

    if output.suffix.lower() not in (".tif", ".tiff"):
        raise InputError(
            f"-o {output} is not a GeoTIFF", "the map is one", "for example -o map.tif"
        )
    extras = Extras(probabilities, confidence, vector, min_area, labels, class_column)
    folder, outputs = run_folder(output), extras.outputs(output)
    distinct_outputs(
        outputs if confidence else (*outputs, folder / CONFIDENCE),
        [path for path in (ms, pan, aoi, labels) if path is not None],
    )
    taken = [path for path in outputs if path.exists()]
    if taken and not (overwrite or dry_run):
        raise InputError(f"{taken[0]} exists", "nothing is replaced unasked", "add --overwrite")
    choice(resolution, ("model", "ms", "pan"), "--resolution")
    job = ClassifyJob(
        model,
        aoi,
        uncertain_below,
        device,
        tile or TILE,
        memory,
        workers,
        resolution,  # type: ignore[arg-type]
    )
    part = (0, 1) if shard is None else parse_shard(shard)
    if dry_run:
        classifier = job.classifier()
        with job.open(ms, pan) as pair:
            extras.check(job, classifier, pair, job.area(pair))
            plan = job.plan(pair, classifier)
            emit(
                {
                    "tiles": len(plan),
                    "tile": plan.tile,
                    "halo": plan.halo,
                    "memory_mb": round(plan.memory_bytes(512, workers=workers) / 1e6),
                    "map": str(output),
                    "pixels": [side * classifier.factor for side in pair.ms.shape],
                    "classes": [item.name for item in classifier.classes],
                },
                as_json,
            )
        return
    with Counter(reporter, f"classify {ms.name}") as follow:
        run_map(
            job, ms, pan, output, extras,
            overwrite=overwrite, resume=resume, shard=part,
            command=shlex.join(["rsfuse", *sys.argv[1:]]), progress=follow,
        )  # fmt: skip
    if part[1] > 1:
        emit({"shard": shard, "written": str(output)}, as_json)
        return
    _page(folder)
    record = RunRecord.load(folder)
    shares = {entry["name"]: f"{100 * entry['share']:.1f} %" for entry in record.result["classes"]}
    emit(
        {
            "status": record.status,
            "map": str(output),
            **shares,
            "mean_confidence": record.confidence,
            "report": str(folder / "report.html"),
        },
        as_json,
    )
    if record.exit_code:
        raise typer.Exit(record.exit_code)


def classify_one(ms: Path, pan: Path, model: str, target: Path, *, labels: Path) -> Path:
    """Map one scene with the defaults and measure it: the run folder with its page."""
    from rsfuse.classification.run import ClassifyJob, Extras, run_map

    folder = run_map(
        ClassifyJob(model), ms, pan, target, Extras(labels=labels),
        overwrite=True, command=f"rsfuse classify {ms} {pan} -m {model} -o {target}",
    )  # fmt: skip
    _page(folder)
    return folder


def _page(folder: Path) -> None:
    from rsfuse.report import build_report

    try:
        build_report(folder)
    except RsfuseError as error:
        logger.warning("the report could not be made: %s", error.what)
