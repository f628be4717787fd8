"""`rsfuse detect`: oriented boxes of the objects of whole scenes."""

import logging
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    Tile,
    Verbose,
    Workers,
)
from rsfuse.cli.output import Reporter, emit, progress_reporter
from rsfuse.errors import InputError, RsfuseError

if TYPE_CHECKING:
    from rsfuse.detection.predict import NetworkDetector
    from rsfuse.engine.bundle import Bundle

logger = logging.getLogger(__name__)

SUFFIXES = {".gpkg": "gpkg", ".geojson": "geojson", ".csv": "csv", ".parquet": "geoparquet"}


def detect(
    scenes: Annotated[list[Path], typer.Argument(help="Scenes, of any size.")],
    model: Annotated[
        Path, typer.Option("-m", "--model", help="Model bundle of `rsfuse train detect`.")
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="A file for one scene, a folder for several."),
    ],
    kind: Annotated[
        str | None,
        typer.Option("--format", help="gpkg, geojson, geoparquet, dota or csv; by the suffix."),
    ] = None,
    score: Annotated[
        float, typer.Option("--score", min=0, max=1, help="Lowest score of an object.")
    ] = 0.3,
    classes: Annotated[
        str | None, typer.Option("--classes", help="Classes to keep, such as ship,plane.")
    ] = None,
    nms: Annotated[
        float, typer.Option("--nms", min=0, max=1, help="Largest overlap of two boxes of a class.")
    ] = 0.1,
    bands: Annotated[
        str | None, typer.Option("--bands", help="Bands to use, such as red,green,blue or 3,2,1.")
    ] = None,
    aoi: Annotated[
        Path | None, typer.Option("--aoi", help="Area of interest: a raster (not 0) or polygons.")
    ] = None,
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
    run.json. A scene with a CRS is looked at with the ground sampling distance of the model.
    """
    from rsfuse.cli.match import band_list
    from rsfuse.detection.predict import NetworkDetector
    from rsfuse.detection.results import FORMATS
    from rsfuse.engine.bundle import load_bundle
    from rsfuse.engine.device import choose_device

    if kind is not None and kind not in FORMATS:
        raise InputError(
            f"--format {kind} is unknown", f"known are {', '.join(FORMATS)}", "choose one of them"
        )
    bundle = load_bundle(model, "detect")
    detector = NetworkDetector.load(bundle, score=score, nms=nms, device=choose_device(device))
    wanted = None if classes is None else tuple(part.strip() for part in classes.split(","))
    job = Job(
        bundle, detector, kind, wanted, band_list(bands), aoi, tile or 1024, memory, workers,
        resume, overwrite, progress_reporter(progress, quiet=quiet),
    )  # fmt: skip
    single = len(scenes) == 1 and output.suffix != ""
    suffix = {"geoparquet": ".parquet", "dota": ".zip"}.get(kind or "", f".{kind or 'gpkg'}")
    results = []
    for scene in scenes:
        target = output if single else output / f"{scene.stem}{suffix}"
        results.append(job.plan(scene) if dry_run else job.run(scene, target))
    emit(results[0] if len(results) == 1 else {"scenes": results}, as_json)


@dataclass(frozen=True)
class Job:
    """How every scene of a call is worked on."""

    bundle: "Bundle"
    detector: "NetworkDetector"
    kind: str | None
    classes: Sequence[str] | None
    bands: Sequence[str | int] | None
    aoi: Path | None
    tile: int
    memory: int | None
    workers: int
    resume: bool
    overwrite: bool
    reporter: Reporter

    def _open(self, scene: Path) -> tuple[Any, Any, Any]:
        from rsfuse.detection.scene import SceneLattice, plan_scene
        from rsfuse.geo.raster import open_raster

        source = open_raster(scene, bands=self.bands)
        if len(source.bands) != self.detector.bands:
            raise InputError(
                f"{scene} has {len(source.bands)} bands: {', '.join(source.bands)}",
                f"the model takes {self.detector.bands}: "
                f"{', '.join(self.bundle.card.inputs[0].bands)}",
                "choose them with --bands",
            )
        lattice = SceneLattice.of(source, self.detector.gsd_m)
        plan = plan_scene(
            lattice,
            tile=self.tile,
            memory=self.memory,
            channels=len(source.bands) + 64,
            workers=self.workers,
        )
        return source, lattice, plan

    def plan(self, scene: Path) -> dict[str, Any]:
        """What would be done."""
        source, lattice, plan = self._open(scene)
        return {
            "scene": str(scene),
            "pixels": list(source.shape),
            "looked_at": list(lattice.shape),
            "tiles": len(plan),
            "tile": plan.tile,
            "halo": plan.halo,
            "memory_mb": round(plan.memory_bytes(len(source.bands) + 64) / 1e6),
            "classes": list(self.detector.classes),
        }

    def run(self, scene: Path, target: Path) -> dict[str, Any]:
        """Find the objects of one scene."""
        from rsfuse.detection import output as files_of
        from rsfuse.detection.results import Detections
        from rsfuse.detection.scene import Found, clear_spool, detect_scene
        from rsfuse.geo.picture import describe_input
        from rsfuse.geo.raster import area_of
        from rsfuse.report import build_report
        from rsfuse.runs import RunRecord, prepare_output, utc_now

        started = time.monotonic()
        if target.exists() and not self.overwrite:
            raise InputError(f"{target} exists", "nothing is replaced unasked", "add --overwrite")
        source, lattice, plan = self._open(scene)
        folder = target.with_name(f"{target.stem}_run")
        spool = folder / "boxes.jsonl"
        if not (self.resume and spool.exists()):
            prepare_output(folder, overwrite=self.overwrite or self.resume)
            clear_spool(spool)
        area = None if self.aoi is None else area_of(self.aoi, source)
        self.reporter.start(len(plan), f"detect {scene.name}")
        seen = 0

        def advance(done: int, _: int) -> None:
            nonlocal seen
            self.reporter.advance(done - seen)
            seen = done

        def find(image: Any, valid: Any, partner: Any) -> Found:
            return Found(*self.detector(image, valid, partner))

        try:
            found, _ = detect_scene(
                source,
                find,
                spool,
                plan=plan,
                lattice=lattice,
                area=area,
                nms=self.detector.nms,
                run_key=f"{self.bundle.card.files} {self.detector.score} {self.aoi}",
                workers=self.workers,
                progress=advance,
            )
        finally:
            self.reporter.finish()
        looked = time.monotonic() - started
        geobox = source.geobox if source.is_georeferenced else None
        result = Detections.of_boxes(
            found.boxes, found.scores, found.labels, self.detector.classes, source.shape, geobox,
            scene.stem,
        )  # fmt: skip
        if self.classes is not None:
            result = result.above(0.0, self.classes)
        result.save(target, self.kind)
        colors = [item.color for item in self.bundle.card.classes]
        numbers = files_of.class_numbers(result, colors)
        previews = files_of.write_previews(folder, source, result, colors)
        clear_spool(spool)
        h, w = lattice.shape
        record = RunRecord(
            task="detect",
            command=shlex.join(["rsfuse", *sys.argv[1:]]),
            started=utc_now(),
            seconds=round(time.monotonic() - started, 3),
            inputs=(describe_input("scene", source),),
            parameters={
                "model": self.bundle.card.name,
                "score": self.detector.score,
                "nms": self.detector.nms,
                "tile": plan.tile,
                "halo": plan.halo,
                "aoi": None if self.aoi is None else str(self.aoi),
            },
            status="ok",
            result={"objects": len(result), "classes": numbers},
            diagnostics={
                "megapixels_per_second": round(h * w / 1e6 / looked, 3),
                "pixels_per_pixel": lattice.scale,
                "stages": [
                    {"name": "tiles", "seconds": round(looked, 3)},
                    {"name": "write", "seconds": round(time.monotonic() - started - looked, 3)},
                ],
            },
            outputs={
                "detections": f"../{target.name}",
                "previews": previews,
                "report": "report.html",
            },
        )
        record.save(folder)
        try:
            build_report(folder)
        except RsfuseError as error:
            logger.warning("the report could not be made: %s", error.what)
        return {
            "scene": str(scene),
            "objects": len(result),
            **{entry["name"]: entry["objects"] for entry in numbers if entry["objects"]},
            "written": str(target),
            "report": str(folder / "report.html"),
        }
