"""`rsfuse.detect`: a scene and a model in, oriented boxes out; and the run folder of it."""

import json
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from rsfuse.detection import output as files_of
from rsfuse.detection.predict import ImageDetector
from rsfuse.detection.results import Detections
from rsfuse.detection.runtime import Runtime, load_detector
from rsfuse.detection.scene import (
    Found,
    SceneLattice,
    clear_spool,
    detect_scene,
    is_blank,
    plan_scene,
)
from rsfuse.engine.bundle import Bundle, load_bundle
from rsfuse.engine.familiar import strange_bands
from rsfuse.errors import BandError, InputError
from rsfuse.geo.grid import Points, pixel_mapping
from rsfuse.geo.mask import UsableArea
from rsfuse.geo.picture import describe_input, picture_bands, preview_shape
from rsfuse.geo.raster import Raster, RasterSource, area_of, open_raster
from rsfuse.geo.tiles import TilePlan
from rsfuse.geo.warp import read_mapped
from rsfuse.ops.geometry2d import Transform
from rsfuse.runs import RunRecord, remove_run, utc_now

# Channels that a network of the usual width holds per pixel of a tile, in units of one value.
_CHANNELS_IN_WORK = 64

# Context around a tile in its own pixels: what the largest usual objects need to be seen whole.
HALO_PX = 128


log = logging.getLogger(__name__)

# Why a run with a second image is weak.
LEFT_OUT = {
    "code": "second_image_left_out",
    "message": "The second image was not used: nothing in it shows that it is of the same ground.",
    "numbers": {},
}

# Why a run is refused.
BLANK = {
    "code": "no_valid_pixels",
    "message": "The scene has no usable pixels, or none in the area of interest.",
    "numbers": {},
}


class Placement(Protocol):
    """Where a second image lies; what `rsfuse.align` and `rsfuse.match` return is one."""

    @property
    def status(self) -> str:
        """`ok`, `weak`, or `refused`: then the second image is left out."""

    @property
    def confidence(self) -> float | None:
        """Probability that it lies there."""

    @property
    def transform(self) -> Transform | None:
        """Pixels of the scene -> pixels of the second image."""


class Stated(NamedTuple):
    """A placement that the caller answers for."""

    transform: Transform
    status: str = "ok"
    confidence: float | None = None


@dataclass(frozen=True)
class DetectJob:
    """How scenes are searched.

    Attributes:
        model: A bundle, or a path or name of one.
        score: Lowest score of an object.
        classes: Classes to keep; all when None.
        nms: Largest overlap (IoU) of two boxes of a class; that of the model when None.
        bands: Bands of the scene to use, by name or number; all when None.
        aoi: Area of interest: a raster (not 0) or polygons.
        device: "auto", "cpu", "cuda" or "cuda:N".
        tile: Side of a tile in pixels of the model.
        memory: Most bytes to use; tiles get smaller to stay below.
        workers: Tiles at once.
        partner: A second image of the scene, for a model that takes two: what `open_raster` takes.
        placement: Where it lies; by the georeferences when None.
        runtime: "auto", "torch" or "onnx"; see `load_detector`.
    """

    model: Bundle | str | Path
    score: float = 0.3
    classes: Sequence[str] | None = None
    nms: float | None = None
    bands: Sequence[str | int] | None = None
    aoi: str | Path | None = None
    device: str = "auto"
    tile: int = 1024
    memory: int | None = None
    workers: int = 1
    partner: Any = None
    placement: Placement | None = None
    runtime: Runtime = "auto"

    @property
    def bundle(self) -> Bundle:
        """The model's bundle."""
        return self.model if isinstance(self.model, Bundle) else load_bundle(self.model, "detect")

    def detector(self) -> ImageDetector:
        """The model, ready to be used for any number of scenes."""
        return load_detector(
            self.bundle,
            score=self.score,
            nms=self.nms,
            device=self.device,
            runtime=self.runtime,
        )

    def open(self, scene: Any, detector: ImageDetector) -> RasterSource:
        """The scene, with as many bands as the model takes.

        Raises:
            BandError: It has another number of bands.
        """
        source = open_raster(scene, bands=self.bands)
        if len(source.bands) != detector.bands:
            wanted = ", ".join(self.bundle.card.inputs[0].bands)
            raise BandError(
                f"{source.name} has {len(source.bands)} bands: {', '.join(source.bands)}",
                f"the model takes {detector.bands}: {wanted}",
                "choose them with --bands",
            )
        return source

    def open_partner(self, detector: ImageDetector) -> RasterSource | None:
        """The second image, with as many bands as the model takes; None without one.

        Raises:
            InputError: The model takes one image.
            BandError: It has another number of bands.
        """
        if self.partner is None:
            return None
        if detector.partner is None:
            raise InputError(
                f"the model {self.bundle.card.name} takes one image",
                "a second one is of use to a model that was trained on pairs",
                "leave out --with, or train one with partner = ... in its settings",
            )
        partner = open_raster(self.partner)
        if len(partner.bands) != len(detector.partner.bands):
            raise BandError(
                f"{partner.name} has {len(partner.bands)} bands",
                f"the model takes {len(detector.partner.bands)} of its second image",
                "give an image of the sensor that it was trained with",
            )
        return partner

    def placed_partner(
        self, source: RasterSource, detector: ImageDetector
    ) -> tuple[RasterSource, Callable[[Points], Points] | None] | None:
        """The second image and where pixels of the scene lie in it (None: at the same place).

        None where there is no second image, or it is left out.

        Raises:
            InputError: The model takes one image, or nothing says how the two lie.
            BandError: It has another number of bands.
        """
        partner = self.open_partner(detector)
        if partner is None:
            return None
        if self.placement is not None:
            transform = self.placement.transform
            if transform is None or self.placement.status == "refused":
                return None
            return partner, transform.apply
        if source.is_georeferenced and partner.is_georeferenced:
            return partner, pixel_mapping(source.geobox, partner.geobox)
        if source.shape != partner.shape:
            raise InputError(
                f"{source.name} and {partner.name} have no common georeference",
                "two images without one must have the same size, or be matched",
                "leave out --align, or give placement=rsfuse.align(scene, partner)",
            )
        return partner, None

    def area(self, source: RasterSource) -> UsableArea | None:
        """The area of interest on the pixels of the scene; None for the whole of it.

        Raises:
            NoOverlapError: It shares no ground with the scene.
        """
        return None if self.aoi is None else area_of(self.aoi, source)

    def plan(self, source: RasterSource, detector: ImageDetector) -> tuple[SceneLattice, TilePlan]:
        """The pixels that the scene is looked at with, and its tiles.

        Raises:
            InputError: The scene's ground sampling distance is too far from the model's.
        """
        lattice = SceneLattice.of(source, detector.gsd_m)
        plan = plan_scene(
            lattice,
            tile=self.tile,
            halo=HALO_PX,
            memory=self.memory,
            channels=len(source.bands) + _CHANNELS_IN_WORK,
            workers=self.workers,
        )
        return lattice, plan


def detect(
    scene: Any,
    model: Bundle | str | Path,
    *,
    spool: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> Detections:
    """Find the objects of a scene of any size.

    Args:
        scene: Whatever `open_raster` takes: a path, an array, a `Raster`.
        model: A bundle that `rsfuse train detect` wrote, or the name of one that comes with rsfuse.
        spool: File of the boxes of finished tiles; a later call with the same file goes on from
            there. Without one, an interrupted call begins anew.
        progress: Called with (done, total) tiles.
        **settings: Fields of `DetectJob`.

    Returns:
        Objects in pixels of the scene, best score first.

    Raises:
        RasterError: The scene is missing or damaged.
        BandError: It has another number of bands than the model takes.
        NoOverlapError: The area of interest shares no ground with the scene.
        InputError: The model is no bundle for this task, its ground sampling distance is too far
            from that of the scene, or a class is unknown.
    """
    job = DetectJob(model, **settings)
    detector = job.detector()
    source = job.open(scene, detector)
    lattice, plan = job.plan(source, detector)
    return find(job, detector, source, lattice, plan, spool=spool, progress=progress)


def find(
    job: DetectJob,
    detector: ImageDetector,
    source: RasterSource,
    lattice: SceneLattice,
    plan: TilePlan,
    *,
    spool: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Detections:
    """Find the objects of an open scene with a model that is ready, planned by `job.plan`."""

    def look(image: Any, valid: Any, partner: Any) -> Found:
        return Found(*detector(image, valid, partner))

    placed = job.placed_partner(source, detector)
    partner, mapping = (None, None) if placed is None else placed
    with ExitStack() as stack:
        if spool is None:
            spool = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "boxes.jsonl"
        found, _ = detect_scene(
            source,
            look,
            spool,
            plan=plan,
            lattice=lattice,
            partner=partner,
            partner_mapping=mapping,
            area=job.area(source),
            nms=detector.nms,
            run_key=f"{job.bundle.card.files} {job.score} {detector.nms} {job.aoi}"
            + ("" if partner is None else f" {partner.fingerprint} {_where(job.placement)}"),
            workers=job.workers,
            progress=progress,
        )
    result = Detections.of_boxes(
        found.boxes,
        found.scores,
        found.labels,
        detector.classes,
        source.shape,
        source.geobox if source.is_georeferenced else None,
        Path(source.name).stem,
    )
    return result if job.classes is None else result.above(0.0, job.classes)


def _where(placement: Placement | None) -> str:
    """What the boxes depend on, of a placement."""
    transform = None if placement is None else placement.transform
    return "" if transform is None else json.dumps(transform.to_dict())


def _partner_preview(
    source: RasterSource, partner: RasterSource, mapping: Callable[[Points], Points] | None
) -> Raster:
    """The second image on the pixels of the scene's preview."""
    shape = preview_shape(source.shape)
    step = np.array([source.shape[1] / shape[1], source.shape[0] / shape[0]])
    place = mapping or (lambda points: points)
    return read_mapped(partner, shape, lambda p: place(p * step), bands=picture_bands(partner))


def _second_image(job: DetectJob, used: bool) -> dict[str, Any]:
    """What the record says of the second image."""
    told: dict[str, Any] = {"used": used}
    if job.placement is not None:
        told["confidence"] = job.placement.confidence
        if used and job.placement.transform is not None:
            told["transform"] = job.placement.transform.model
    return told


def run_scene(
    job: DetectJob,
    detector: ImageDetector,
    scene: Any,
    target: Path,
    *,
    kind: str | None = None,
    command: str = "",
    place: Callable[[RasterSource], Placement | None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Detections, Path]:
    """Find the objects of a scene and write them, with a run folder beside them.

    Args:
        job: How.
        detector: From `job.detector()`.
        scene: The scene.
        target: The file of boxes; the run folder is named after it.
        kind: Its format; by its suffix when None.
        command: The command line that repeats the run.
        place: Finds where the second image of the scene lies, in place of `job.placement`.
        progress: Called with (done, total) tiles.

    Returns:
        The objects and the run folder, which holds all but the page.
    """
    started = time.monotonic()
    source = job.open(scene, detector)
    lattice, plan = job.plan(source, detector)
    aligned = 0.0
    if place is not None:
        began = time.monotonic()
        job = replace(job, placement=place(source))
        aligned = time.monotonic() - began
    folder = run_folder(target)
    folder.mkdir(parents=True, exist_ok=True)
    spool = folder / "boxes.jsonl"
    found = find(job, detector, source, lattice, plan, spool=spool, progress=progress)
    blank = not len(found) and is_blank(source, job.area(source))
    if blank:
        log.warning("%s: %s", source.name, BLANK["message"])
    looked = time.monotonic() - started - aligned
    strange = strange_bands(source, job.bundle.card.inputs[0])
    if 2 * len(strange) >= detector.bands:
        log.warning("unlike what the model learned from: %s", "; ".join(strange))
    remove_run(folder)  # not before there is something to take its place
    found.save(target, kind)
    colors = [item.color for item in job.bundle.card.classes]
    numbers = files_of.class_numbers(found, colors)
    placed = job.placed_partner(source, detector)
    previews = files_of.write_previews(
        folder, source, found, colors, placed and _partner_preview(source, *placed)
    )
    clear_spool(spool)
    seconds = time.monotonic() - started
    inputs = [describe_input("scene", source)]
    if placed is not None:
        inputs.append(describe_input("partner", placed[0]))
    left_out = job.partner is not None and placed is None
    second = {} if job.partner is None else {"second_image": _second_image(job, not left_out)}
    RunRecord(
        task="detect",
        command=command,
        started=utc_now(),
        seconds=round(seconds, 3),
        inputs=tuple(inputs),
        parameters={
            "model": job.bundle.card.name,
            "score": job.score,
            "nms": detector.nms,
            "tile": plan.tile,
            "halo": plan.halo,
            "aoi": None if job.aoi is None else str(job.aoi),
            "with": None if job.partner is None else str(job.partner),
        },
        status="refused" if blank else "weak" if left_out else "ok",
        reasons=(BLANK,) * blank + (LEFT_OUT,) * left_out,
        result={"objects": len(found), "classes": numbers, **second},
        diagnostics={
            "megapixels_per_second": round(
                lattice.shape[0] * lattice.shape[1] / 1e6 / max(looked, 1e-9), 3
            ),
            "model_pixels_per_pixel": lattice.scale,
            "unlike_training": list(strange),
            "stages": [
                *([] if place is None else [{"name": "align", "seconds": round(aligned, 3)}]),
                {"name": "tiles", "seconds": round(looked, 3)},
                {"name": "write", "seconds": round(seconds - aligned - looked, 3)},
            ],
        },
        outputs={
            "detections": f"../{target.name}",
            "previews": previews,
            "report": "report.html",
        },
    ).save(folder)
    return found, folder


def run_folder(target: Path) -> Path:
    """The folder of everything about a run that is not its main product."""
    return target.with_name(f"{target.stem}_run")
