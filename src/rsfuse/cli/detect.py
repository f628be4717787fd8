"""`rsfuse detect`: oriented boxes of the objects of whole scenes."""

import logging
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rsfuse.cli.options import (
    RUNTIMES,
    Device,
    DryRun,
    Json,
    Memory,
    Overwrite,
    Progress,
    Quiet,
    Resume,
    Tile,
    Verbose,
    Workers,
    band_list,
    choice,
)
from rsfuse.cli.output import Counter, emit, progress_reporter
from rsfuse.errors import InputError, RsfuseError

if TYPE_CHECKING:
    from rsfuse.detection.predict import ImageDetector
    from rsfuse.detection.results import Detections
    from rsfuse.detection.run import DetectJob, Placement
    from rsfuse.geo.raster import RasterSource

logger = logging.getLogger(__name__)


def detect(
    scenes: Annotated[list[Path], typer.Argument(help="Scenes, of any size.")],
    model: Annotated[
        str,
        typer.Option("-m", "--model", help="Model bundle: a folder, or the name of a shipped one."),
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="A file for one scene, a folder for several."),
    ],
    kind: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="gpkg, geojson, geoparquet, dota or csv; by the suffix of a file, which must fit.",
        ),
    ] = None,
    score: Annotated[
        float, typer.Option("--score", min=0, max=1, help="Lowest score of an object.")
    ] = 0.3,
    classes: Annotated[
        str | None, typer.Option("--classes", help="Classes to keep, such as ship,plane.")
    ] = None,
    nms: Annotated[
        float | None,
        typer.Option("--nms", min=0, max=1, help="Largest overlap of two boxes of a class."),
    ] = None,
    bands: Annotated[
        str | None, typer.Option("--bands", help="Bands to use, such as red,green,blue or 3,2,1.")
    ] = None,
    partner: Annotated[
        Path | None,
        typer.Option(
            "--with", help="Second image of the scene, for a model of pairs.", metavar="QUERY"
        ),
    ] = None,
    placed_by: Annotated[
        str,
        typer.Option(
            "--align",
            help="Where the second image lies: match finds out, georeference believes the files, "
            "or the transform.json of an rsfuse match.",
            metavar="HOW",
        ),
    ] = "match",
    aoi: Annotated[
        Path | None, typer.Option("--aoi", help="Area of interest: a raster (not 0) or polygons.")
    ] = None,
    runtime: Annotated[
        str, typer.Option(help="auto, torch or onnx; auto takes ONNX where the bundle has it.")
    ] = "auto",
    device: Device = "auto",
    tile: Tile = None,
    memory: Memory = None,
    workers: Workers = 1,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    overwrite: Overwrite = False,
    progress: Progress = "bar",
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Find the objects of SCENES and write their oriented boxes.

    Beside the boxes of a scene comes a folder named after the file, with pictures, report.html and
    run.json. A scene with a CRS is looked at with the ground sampling distance of the model. The
    exit code is 3 when a scene has no usable pixels, or when a second image was left out, because
    nothing shows that it is of the scene.
    """
    reporter = progress_reporter(progress, quiet=quiet)
    from rsfuse.detection.results import FORMATS
    from rsfuse.detection.run import DetectJob, run_folder, run_scene
    from rsfuse.runs import RunRecord

    choice(runtime, RUNTIMES, "--runtime")
    if kind is not None and kind not in FORMATS:
        raise InputError(
            f"--format {kind} is unknown", f"known are {', '.join(FORMATS)}", "choose one of them"
        )
    wanted = None if classes is None else tuple(part.strip() for part in classes.split(","))
    job = DetectJob(
        model,
        score,
        wanted,
        nms,
        band_list(bands),
        aoi,
        device,
        tile or 1024,
        memory,
        workers,
        partner,
        runtime=runtime,  # type: ignore[arg-type]
    )
    if partner is not None and len(scenes) > 1:
        raise InputError(
            f"--with and {len(scenes)} scenes",
            "a second image goes with one scene",
            "run them one by one",
        )
    given = [path for path in (Path(model), partner, aoi) if path is not None]
    targets = _targets(scenes, output, kind, given)
    if not (dry_run or overwrite):
        _check_free(targets, resume=resume)
    detector = job.detector()
    if wanted is not None:
        _check_classes(wanted, detector.classes)
    place = None
    if partner is not None and placed_by != "georeference":
        place = partial(_placement, job, detector, placed_by)
    results, code = [], 0
    for scene, target in zip(scenes, targets, strict=True):
        if dry_run:
            source = job.open(scene, detector)
            lattice, plan = job.plan(source, detector)
            job.area(source)
            results.append(
                {
                    "scene": str(scene),
                    "pixels": list(source.shape),
                    "looked_at": list(lattice.shape),
                    "tiles": len(plan),
                    "tile": plan.tile,
                    "halo": plan.halo,
                    "memory_mb": round(plan.memory_bytes(len(source.bands) + 64) / 1e6),
                    "classes": list(detector.classes),
                    "output": str(target),
                }
            )
            continue
        with (
            _prepared(run_folder(target), overwrite=overwrite, resume=resume),
            Counter(reporter, f"detect {scene.name}") as follow,
        ):
            found, folder = run_scene(
                job,
                detector,
                scene,
                target,
                kind=kind,
                command=shlex.join(["rsfuse", *sys.argv[1:]]),
                place=place,
                progress=follow,
            )
        _page(folder)
        record = RunRecord.load(folder)
        code = max(code, record.exit_code)
        counts = {name: int((found.labels == k).sum()) for k, name in enumerate(found.classes)}
        results.append(
            {
                "scene": str(scene),
                "status": record.status,
                "objects": len(found),
                **{name: count for name, count in counts.items() if count},
                "written": str(target),
                "report": str(folder / "report.html"),
            }
        )
    emit(results[0] if len(results) == 1 else {"scenes": results}, as_json)
    if code:
        raise typer.Exit(code)


def _targets(
    scenes: Sequence[Path], output: Path, kind: str | None, inputs: Sequence[Path]
) -> list[Path]:
    """The file of boxes of each scene.

    Raises:
        InputError: One takes the place of another or of an input, or its format cannot be written.
    """
    from rsfuse.detection.results import SUFFIXES, check_image_name, format_of
    from rsfuse.runs import distinct_outputs

    suffix = SUFFIXES[kind or "gpkg"][0]
    single = len(scenes) == 1 and output.suffix != ""
    targets = [output] if single else [output / f"{scene.stem}{suffix}" for scene in scenes]
    for scene, target in zip(scenes, targets, strict=True):
        if format_of(target, kind) == "dota":
            check_image_name(scene.stem)
    distinct_outputs(targets, [*scenes, *inputs])
    return targets


def _check_free(targets: Sequence[Path], *, resume: bool) -> None:
    """Refuse to replace the boxes of an earlier run, and without `resume` its folder."""
    from rsfuse.detection.run import run_folder
    from rsfuse.runs import is_run_folder

    taken = [path for path in targets if path.exists()]
    if not resume:
        taken += [folder for folder in map(run_folder, targets) if is_run_folder(folder)]
    if taken:
        raise InputError(
            f"{taken[0]} exists", "nothing is replaced unasked", "give another -o, or --overwrite"
        )


@contextmanager
def _prepared(folder: Path, *, overwrite: bool, resume: bool) -> Iterator[None]:
    """The run folder of a scene, ready to be used; removed again when it stays empty."""
    from rsfuse.runs import prepare_output

    is_new = not folder.exists()
    if not (resume and (folder / "boxes.jsonl").exists()):
        if folder.is_dir():
            for left in ("boxes.jsonl", "boxes.jsonl.tiles.jsonl"):
                (folder / left).unlink(missing_ok=True)
        prepare_output(folder, resume=overwrite or resume)
    try:
        yield
    except BaseException:
        if is_new:
            with suppress(OSError):  # it holds what a later --resume goes on from
                folder.rmdir()
        raise


def _placement(
    job: "DetectJob", detector: "ImageDetector", how: str, first: "RasterSource"
) -> "Placement | None":
    """Where the second image of a scene lies, as `--align` asks; None without one.

    Raises:
        InputError: The transform is none of rsfuse, or of other images.
    """
    second = job.open_partner(detector)
    if second is None:
        return None
    if how == "match":
        from rsfuse.matching.align import align

        found = align(first, second)
        if found.status == "refused":
            logger.warning("%s is not used: nothing shows the same ground", second.name)
        return found
    from rsfuse.detection.run import Stated
    from rsfuse.matching.output import StoredTransform

    stored = StoredTransform.load(how)
    for image, grid in ((first, stored.reference), (second, stored.query)):
        if image.shape != tuple(grid.shape):
            raise InputError(
                f"{how} is of an image of {grid.shape[1]} x {grid.shape[0]} pixels",
                f"{image.name} has {image.shape[1]} x {image.shape[0]}",
                f"give the transform of rsfuse match {first.name} {job.partner}",
            )
    return Stated(stored.transform)


def detect_one(
    scene: Path, model: str, target: Path, *, score: float, partner: Path | None = None
) -> "tuple[Detections, Path]":
    """Find the objects of one scene with the defaults: them, and the run folder with its page."""
    from rsfuse.detection.run import DetectJob, run_folder, run_scene
    from rsfuse.runs import prepare_output

    job = DetectJob(model, score, partner=partner)
    detector = job.detector()
    place = None if partner is None else partial(_placement, job, detector, "match")
    prepare_output(run_folder(target), resume=True)
    command = f"rsfuse detect {scene}"
    found, folder = run_scene(job, detector, scene, target, command=command, place=place)
    _page(folder)
    return found, folder


def _page(folder: Path) -> None:
    from rsfuse.report import build_report

    try:
        build_report(folder)
    except RsfuseError as error:
        logger.warning("the report could not be made: %s", error.what)


def _check_classes(wanted: tuple[str, ...], known: tuple[str, ...]) -> None:
    unknown: Any = next((name for name in wanted if name not in known), None)
    if unknown is not None:
        raise InputError(
            f"class {unknown!r} is unknown",
            f"the model knows {', '.join(known)}",
            "choose among them with --classes",
        )
