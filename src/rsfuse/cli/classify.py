"""`rsfuse classify`: a land-cover map from multispectral and panchromatic images."""

import logging
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Any

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
    parse_shard,
)
from rsfuse.cli.output import emit, progress_reporter
from rsfuse.errors import InputError, RsfuseError

logger = logging.getLogger(__name__)


def classify(
    ms: Annotated[Path, typer.Argument(help="Multispectral image.")],
    pan: Annotated[Path, typer.Argument(help="Panchromatic image of the same ground.")],
    model: Annotated[
        Path, typer.Option("-m", "--model", help="Model bundle of `rsfuse train classify`.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The class map, for example map.tif.")
    ],
    probabilities: Annotated[
        Path | None, typer.Option("--probs", help="Also write the probability of each class.")
    ] = None,
    confidence: Annotated[
        Path | None,
        typer.Option(
            "--confidence", help="Where the confidence goes; in the run folder if left out."
        ),
    ] = None,
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
        typer.Option(
            "--uncertain-below", min=0, max=1, help="Confidence that counts as uncertain."
        ),
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
    started = time.monotonic()
    from rsfuse.classification import output as files_of
    from rsfuse.classification.data import open_pair
    from rsfuse.classification.predict import (
        MapFiles,
        NetworkClassifier,
        classify_scene,
        plan_map,
    )
    from rsfuse.engine.bundle import load_bundle
    from rsfuse.engine.device import choose_device
    from rsfuse.geo.picture import describe_input
    from rsfuse.geo.raster import area_of
    from rsfuse.report import build_report
    from rsfuse.runs import RunRecord, prepare_output, utc_now

    if output.suffix.lower() not in (".tif", ".tiff"):
        raise InputError(
            f"-o {output} is not a GeoTIFF", "the map is one", "for example -o map.tif"
        )
    taken = [path for path in (output, vector, probabilities) if path and path.exists()]
    if taken and not overwrite:
        raise InputError(f"{taken[0]} exists", "nothing is replaced unasked", "add --overwrite")
    bundle = load_bundle(model, "classify")
    classifier = NetworkClassifier.load(bundle, choose_device(device))
    part = (0, 1) if shard is None else parse_shard(shard)
    folder = output.with_name(f"{output.stem}_run")
    with open_pair(ms, pan, inputs=bundle.card.inputs) as pair:
        plan = plan_map(pair, classifier, tile=tile or 128, memory=memory, workers=workers)
        if dry_run:
            emit(
                {
                    "tiles": len(plan),
                    "tile": plan.tile,
                    "halo": plan.halo,
                    "memory_mb": round(plan.memory_bytes(512, workers=workers) / 1e6),
                    "map": str(output),
                    "pixels": [side * classifier.factor for side in pair.ms.shape],
                    "classes": [item.name for item in bundle.card.classes],
                },
                as_json,
            )
            return
        manifest = folder / "tiles.jsonl"
        if not (resume and manifest.exists()):
            prepare_output(folder, overwrite=overwrite or resume)
            manifest.unlink(missing_ok=True)
        area = None if aoi is None else area_of(aoi, pair.ms)
        files = MapFiles(output, confidence or folder / "confidence.tif", probabilities)
        reporter.start(len(plan), f"classify {ms.name}")
        seen = 0

        def advance(done: int, _: int) -> None:
            nonlocal seen
            reporter.advance(done - seen)
            seen = done

        try:
            classify_scene(
                pair,
                classifier,
                files,
                plan=plan,
                area=area,
                manifest=manifest,
                run_key=f"{bundle.card.files} {aoi}",
                shard=part,
                workers=workers,
                progress=advance,
            )
        finally:
            reporter.finish()
        if part[1] > 1:
            emit({"shard": shard, "written": str(output)}, as_json)
            return
        mapped = time.monotonic() - started
        classes = bundle.card.classes
        summary = files_of.summarise(files, classes, uncertain_below)
        outputs: dict[str, Any] = {"map": _from(folder, output)}
        outputs["confidence"] = _from(folder, files.confidence)
        if probabilities is not None:
            outputs["probabilities"] = _from(folder, probabilities)
        style, areas = output.with_suffix(".qml"), output.with_name(f"{output.stem}_areas.csv")
        files_of.write_style(style, classes)
        files_of.write_areas(areas, summary)
        outputs |= {"style": _from(folder, style), "areas": _from(folder, areas)}
        if vector is not None:
            from rsfuse.classification.results import polygons_of

            polygons_of(output, vector, classes, min_area_m2=min_area)
            outputs["polygons"] = _from(folder, vector)
        outputs["previews"] = files_of.write_previews(folder, pair.ms, files, classes)
        outputs["report"] = "report.html"
        result: dict[str, Any] = {
            "classes": [entry.to_dict() for entry in summary.classes],
            "uncertain_share": summary.uncertain_share,
        }
        if labels is not None:
            from rsfuse.classification.evaluate import evaluate_map

            scores = evaluate_map(output, labels, class_column=class_column)
            result["accuracy"] = files_of.accuracy_record(scores)
        pixels = pair.ms.shape[0] * pair.ms.shape[1] * classifier.factor**2
        RunRecord(
            task="classify",
            command=shlex.join(["rsfuse", *sys.argv[1:]]),
            started=utc_now(),
            seconds=round(time.monotonic() - started, 3),
            inputs=(describe_input("ms", pair.ms), describe_input("pan", pair.pan)),
            parameters={
                "model": str(model),
                "architecture": bundle.card.architecture,
                "uncertain_below": uncertain_below,
                "tile": plan.tile,
                "aoi": None if aoi is None else str(aoi),
            },
            status="ok" if summary.mean_confidence is not None else "refused",
            confidence=summary.mean_confidence,
            reasons=()
            if summary.mean_confidence is not None
            else ({"code": "no_data", "message": "Nowhere do both images hold data."},),
            result=result,
            diagnostics={
                "megapixels_per_second": round(pixels / 1e6 / mapped, 4),
                "stages": [
                    {"name": "map", "seconds": round(mapped, 3)},
                    {"name": "write", "seconds": round(time.monotonic() - started - mapped, 3)},
                ],
            },
            outputs=outputs,
        ).save(folder)
    try:
        build_report(folder)
    except RsfuseError as error:
        logger.warning("the report could not be made: %s", error.what)
    record = RunRecord.load(folder)
    emit(
        {
            "status": record.status,
            "map": str(output),
            **{
                entry["name"]: f"{100 * entry['share']:.1f} %" for entry in record.result["classes"]
            },
            "mean_confidence": record.confidence,
            "report": str(folder / "report.html"),
        },
        as_json,
    )
    if record.exit_code:
        raise typer.Exit(record.exit_code)


def _from(folder: Path, path: Path | None) -> str | None:
    """The path as it is seen from the run folder."""
    if path is None:
        return None
    from os.path import relpath

    return relpath(path.resolve(), folder.resolve())
