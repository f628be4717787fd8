"""`rsfuse.classify`: MS, PAN and a model in, a class map out; and the run folder of it."""

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from os.path import relpath
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rsfuse.classification import output as files_of
from rsfuse.classification.data import Pair, by_place, open_pair
from rsfuse.classification.evaluate import evaluate_map
from rsfuse.classification.labels import read_labels
from rsfuse.classification.predict import (
    TILE,
    AtResolution,
    MapFiles,
    NetworkClassifier,
    TileClassifier,
    classify_scene,
    map_geobox,
    plan_map,
    read_tile,
)
from rsfuse.classification.results import POLYGON_SUFFIXES, ClassMap, polygons_of
from rsfuse.engine.bundle import Bundle, InputInfo, load_bundle
from rsfuse.engine.device import choose_device
from rsfuse.engine.familiar import strange_bands
from rsfuse.errors import GridError, InputError
from rsfuse.geo.grid import Window
from rsfuse.geo.mask import UsableArea
from rsfuse.geo.picture import describe_input
from rsfuse.geo.raster import RasterSource, area_of
from rsfuse.geo.tiles import Shard, TilePlan
from rsfuse.runs import RunRecord, distinct_outputs, prepare_output, utc_now

Resolution = Literal["model", "ms", "pan"]

CONFIDENCE = "confidence.tif"  # in the run folder

# How a run ends that has a reason not to be ok.
STATUS_OF = {"no_data": "refused", "unlike_training": "weak"}


@dataclass(frozen=True)
class ClassifyJob:
    """How a map is made.

    Attributes:
        model: A bundle, or a path or name of one.
        aoi: Area of interest: a raster (not 0) or polygons; without class outside.
        uncertain_below: Confidence that counts as uncertain.
        device: "auto", "cpu", "cuda" or "cuda:N".
        tile: Side of a tile in MS pixels.
        memory: Most bytes to use; tiles get smaller to stay below.
        workers: Tiles at once.
        resolution: Pixels of the map: "ms", "pan", or those of the "model".
    """

    model: Bundle | str | Path
    aoi: str | Path | None = None
    uncertain_below: float = 0.5
    device: str = "auto"
    tile: int = TILE
    memory: int | None = None
    workers: int = 1
    resolution: Resolution = "model"

    @property
    def bundle(self) -> Bundle:
        """The model's bundle."""
        return self.model if isinstance(self.model, Bundle) else load_bundle(self.model, "classify")

    def classifier(self) -> TileClassifier:
        """The model, ready to be used for any number of scenes."""
        bundle = self.bundle
        network = NetworkClassifier.load(bundle, choose_device(self.device))
        if self.resolution == "model":
            return network
        factor = 1 if self.resolution == "ms" else int(bundle.card.arguments["ratio"])
        return network if factor == network.factor else AtResolution(network, factor)

    def open(self, ms: Any, pan: Any) -> Pair:
        """The pair, with the bands and the ratio that the model takes.

        Raises:
            BandError: Other bands.
            GridError: Another ratio, or no common ground.
        """
        card = self.bundle.card
        pair = open_pair(ms, pan, inputs=card.inputs)
        wanted = card.arguments.get("ratio", pair.ratio)
        if pair.ratio != wanted:
            pair.__exit__()
            raise GridError(
                f"{pair.ratio} PAN pixels lie along one MS pixel",
                f"the model {card.name} was trained with {wanted}",
                "use a model for this sensor: rsfuse train classify",
            )
        return pair

    def area(self, pair: Pair) -> UsableArea | None:
        """The area of interest on the MS grid; None without one.

        Raises:
            InputError: It cannot be read or placed, or shares no ground with the images.
        """
        return None if self.aoi is None else area_of(self.aoi, pair.ms)

    def plan(self, pair: Pair, classifier: TileClassifier) -> TilePlan:
        """The tiles."""
        return plan_map(pair, classifier, tile=self.tile, memory=self.memory, workers=self.workers)


def classify(
    ms: Any,
    pan: Any,
    model: Bundle | str | Path,
    path: str | Path,
    *,
    confidence: str | Path | None = None,
    probabilities: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> ClassMap:
    """Map the land cover of a scene of any size.

    Args:
        ms: Multispectral raster: whatever `open_raster` takes.
        pan: Panchromatic raster of the same ground, on a grid a whole number of times finer.
        model: A bundle that `rsfuse train classify` wrote, or the name of one that comes with
            rsfuse.
        path: The map, a GeoTIFF.
        confidence: Where the confidence goes; it is not kept when None.
        probabilities: Where the probability of each class goes; not kept when None.
        progress: Called with (done, total) tiles.
        **settings: Fields of `ClassifyJob`.

    Returns:
        The map on disk.

    Raises:
        GridError: The images do not fit together.
        BandError: They have other bands than the model takes.
        InputError: The model is no bundle for this task, or a result would replace an input.
        OutputError: The map cannot be written.
    """
    job = ClassifyJob(model, **settings)
    files = MapFiles(
        Path(path),
        None if confidence is None else Path(confidence),
        None if probabilities is None else Path(probabilities),
    )
    written = (files.classes, files.confidence, files.probabilities)
    read = (*(getattr(image, "path", image) for image in (ms, pan)), job.aoi)
    distinct_outputs(
        [place for place in written if place is not None],
        [place for place in read if isinstance(place, str | Path)],
    )
    classifier = job.classifier()
    with job.open(ms, pan) as pair:
        make(job, classifier, pair, files, area=job.area(pair), progress=progress)
    return ClassMap(files, classifier.classes, job.uncertain_below)


def make(
    job: ClassifyJob,
    classifier: TileClassifier,
    pair: Pair,
    files: MapFiles,
    *,
    area: UsableArea | None = None,
    manifest: Path | None = None,
    shard: Shard = (0, 1),
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the map of an open pair with a model that is ready."""
    with ExitStack() as stack:
        if manifest is None:
            manifest = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "tiles.jsonl"
        classify_scene(
            pair,
            classifier,
            files,
            plan=job.plan(pair, classifier),
            area=area,
            manifest=manifest,
            run_key=f"{job.bundle.card.files} {job.aoi} {job.resolution}",
            shard=shard,
            workers=job.workers,
            progress=progress,
        )


@dataclass(frozen=True)
class Extras:
    """What is wanted beside a map.

    Attributes:
        probabilities: Where the probability of each class goes.
        confidence: Where the confidence goes; into the run folder when None.
        vector: Where the map as polygons goes.
        min_area_m2: Smallest polygon.
        labels: Labels to measure the map with.
        class_column: Column of label polygons that holds the class.
    """

    probabilities: Path | None = None
    confidence: Path | None = None
    vector: Path | None = None
    min_area_m2: float = 0.0
    labels: Path | None = None
    class_column: str = "class"

    def outputs(self, target: Path) -> tuple[Path, ...]:
        """Every file outside of the run folder that comes with a map, the map first."""
        asked = (self.probabilities, self.confidence, self.vector)
        return (target, *files_of.sidecars(target), *(path for path in asked if path is not None))

    def check(
        self, job: ClassifyJob, classifier: TileClassifier, pair: Pair, area: UsableArea | None
    ) -> None:
        """Find what would fail after the map is made.

        Raises:
            InputError: The polygons have an unknown suffix; or the labels cannot be read, have
                classes that the model does not know, or lie where there will be no map.
            GridError: The labels cannot be placed on the map.
        """
        if self.vector is not None and self.vector.suffix.lower() not in POLYGON_SUFFIXES:
            raise InputError(
                f"{self.vector} has the suffix {self.vector.suffix!r}",
                f"polygons are written as {', '.join(POLYGON_SUFFIXES)}",
                "give the file one of these suffixes",
            )
        if self.labels is None:
            return
        grid = map_geobox(pair, classifier.factor)
        found = read_labels(self.labels, grid, column=self.class_column)
        labels = found.as_classes(classifier.classes, str(self.labels))
        h, w = pair.ms.shape
        cells = (labels.numbers >= 0).reshape(h, classifier.factor, w, classifier.factor)
        labelled = np.asarray(cells.any(axis=(1, 3)))
        for tile in job.plan(pair, classifier):
            here = labelled[tile.core.slices_in(Window(0, 0, w, h))]
            if here.any() and (here & read_tile(pair, tile.core, area)[2]).any():
                return
        raise InputError(
            f"no label of {self.labels} lies where there will be a map",
            "labels must overlap both images, and the area of interest where there is one",
            "check them with rsfuse info",
        )


def run_map(
    job: ClassifyJob,
    ms: Any,
    pan: Any,
    target: Path,
    extras: Extras | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    shard: Shard = (0, 1),
    command: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a map, what is wanted beside it, and a run folder named after it.

    Nothing is written before all that is given is known to fit; the record of an earlier run is
    replaced at the end.

    Args:
        job: How the map is made.
        ms: Multispectral raster.
        pan: Panchromatic raster.
        target: The map.
        extras: What is wanted beside it.
        overwrite: Whether the run folder may hold an earlier run.
        resume: Go on where a killed run stopped.
        shard: As in `run_tiles`; with one, its part of the map alone is written.
        command: What the record calls the command that repeats the run.
        progress: Called with (done, total) tiles.

    Returns:
        The run folder, which holds all but the page.

    Raises:
        InputError: Images, area of interest, labels and model do not fit together, or the run
            folder holds files.
        OutputError: A file cannot be written.
    """
    extras = Extras() if extras is None else extras
    started = time.monotonic()
    folder = run_folder(target)
    manifest = folder / "tiles.jsonl"
    classifier = job.classifier()
    files = MapFiles(target, extras.confidence or folder / CONFIDENCE, extras.probabilities)
    with job.open(ms, pan) as pair:
        area = job.area(pair)
        if shard[1] == 1:
            extras.check(job, classifier, pair, area)
        if not (resume and manifest.exists()):
            manifest.unlink(missing_ok=True)
            prepare_output(folder, resume=overwrite or resume)
        make(
            job, classifier, pair, files,
            area=area, manifest=manifest, shard=shard, progress=progress,
        )  # fmt: skip
        if shard[1] > 1:
            return folder
        mapped = time.monotonic() - started
        record = _record(job, classifier, pair, files, extras, folder)
        reasons = _doubts(job, pair, record["confidence"])
    seconds = time.monotonic() - started
    h, w = (side * classifier.factor for side in pair.ms.shape)
    RunRecord(
        task="classify",
        command=command,
        started=utc_now(),
        seconds=round(seconds, 3),
        status=STATUS_OF[reasons[0]["code"]] if reasons else "ok",
        reasons=reasons,
        diagnostics={
            "megapixels_per_second": round(h * w / 1e6 / max(mapped, 1e-9), 4),
            "stages": [
                {"name": "map", "seconds": round(mapped, 3)},
                {"name": "write", "seconds": round(seconds - mapped, 3)},
            ],
        },
        **record,
    ).save(folder)
    return folder


def _doubts(job: ClassifyJob, pair: Pair, confidence: float | None) -> tuple[dict[str, Any], ...]:
    """Why a map is none, or not to be relied on."""
    if confidence is None:
        where = "Nowhere" if job.aoi is None else "Nowhere in the area of interest"
        return ({"code": "no_data", "message": f"{where} do both images hold data."},)
    inputs = job.bundle.card.inputs
    strange = [
        said
        for source, info in zip((pair.ms, pair.pan), inputs, strict=True)
        for said in strange_bands(source, info)
    ]
    if 2 * len(strange) < sum(len(info.bands) for info in inputs):
        return ()
    return (
        {
            "code": "unlike_training",
            "message": "The numbers of the images are unlike those that the model learned from: "
            + "; ".join(strange),
        },
    )


def _record(
    job: ClassifyJob,
    classifier: TileClassifier,
    pair: Pair,
    files: MapFiles,
    extras: Extras,
    folder: Path,
) -> dict[str, Any]:
    """Write what goes with a finished map; the part of the record that tells of it."""
    classes, target = classifier.classes, files.classes
    summary = files_of.summarise(files, classes, job.uncertain_below)
    style, areas = files_of.sidecars(target)
    files_of.write_style(style, classes)
    files_of.write_areas(areas, summary)
    written = {
        "map": target,
        "confidence": files.confidence,
        "probabilities": files.probabilities,
        "style": style,
        "areas": areas,
        "polygons": extras.vector,
    }
    if extras.vector is not None:
        polygons_of(target, extras.vector, classes, min_area_m2=extras.min_area_m2)
    outputs: dict[str, Any] = {
        name: relpath(path.resolve(), folder.resolve())
        for name, path in written.items()
        if path is not None
    }
    outputs["previews"] = files_of.write_previews(folder, pair.ms, files, classes)
    outputs["report"] = "report.html"
    result: dict[str, Any] = {
        "classes": [entry.to_dict() for entry in summary.classes],
        "uncertain_share": summary.uncertain_share,
    }
    if extras.labels is not None:
        scores = evaluate_map(target, extras.labels, class_column=extras.class_column)
        result["accuracy"] = files_of.accuracy_record(scores)
        for entry in result["classes"]:
            found = scores.get("areas_m2", {}).get(entry["name"])
            if found is not None:
                entry["area_interval_m2"] = found["interval"]
    return {
        "inputs": tuple(
            _described(source, info)
            for source, info in zip((pair.ms, pair.pan), job.bundle.card.inputs, strict=True)
        ),
        "parameters": {
            "model": job.bundle.card.name,
            "architecture": job.bundle.card.architecture,
            "uncertain_below": job.uncertain_below,
            "tile": job.tile,
            "resolution": job.resolution,
            "aoi": None if job.aoi is None else str(job.aoi),
        },
        "confidence": summary.mean_confidence,
        "result": result,
        "outputs": outputs,
    }


def _described(source: RasterSource, info: InputInfo) -> dict[str, Any]:
    """What the record says of an input, and of bands with other names than the model's."""
    about = describe_input(info.name, source)
    note = by_place(source, info)
    return {**about, "notes": [*about["notes"], note]} if note else about


def run_folder(target: Path) -> Path:
    """The folder of everything about a run that is not its main product."""
    return target.with_name(f"{target.stem}_run")
