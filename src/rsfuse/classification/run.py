"""`rsfuse.classify`: MS, PAN and a model in, a class map out; and the run folder of it."""

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from os.path import relpath
from pathlib import Path
from typing import Any, Literal

from rsfuse.classification import output as files_of
from rsfuse.classification.data import Pair, open_pair
from rsfuse.classification.evaluate import evaluate_map
from rsfuse.classification.predict import (
    TILE,
    AtResolution,
    MapFiles,
    NetworkClassifier,
    TileClassifier,
    classify_scene,
    plan_map,
)
from rsfuse.classification.results import ClassMap, polygons_of
from rsfuse.engine.bundle import Bundle, load_bundle
from rsfuse.engine.device import choose_device
from rsfuse.engine.familiar import strange_bands
from rsfuse.errors import GridError
from rsfuse.geo.picture import describe_input
from rsfuse.geo.raster import area_of
from rsfuse.geo.tiles import Shard, TilePlan
from rsfuse.runs import RUN_FILE, RunRecord, utc_now

Resolution = Literal["model", "ms", "pan"]

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
        InputError: The model is no bundle for this task.
        OutputError: The map cannot be written.
    """
    job = ClassifyJob(model, **settings)
    classifier = job.classifier()
    files = MapFiles(
        Path(path),
        None if confidence is None else Path(confidence),
        None if probabilities is None else Path(probabilities),
    )
    with job.open(ms, pan) as pair:
        make(job, classifier, pair, files, progress=progress)
    return ClassMap(files, classifier.classes, job.uncertain_below)


def make(
    job: ClassifyJob,
    classifier: TileClassifier,
    pair: Pair,
    files: MapFiles,
    *,
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
            area=None if job.aoi is None else area_of(job.aoi, pair.ms),
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


def run_map(
    job: ClassifyJob,
    ms: Any,
    pan: Any,
    target: Path,
    extras: Extras | None = None,
    *,
    shard: Shard = (0, 1),
    command: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a map, what is wanted beside it, and a run folder named after it.

    Returns:
        The run folder, which holds all but the page; with a shard, the part of the map alone is
        written.
    """
    extras = Extras() if extras is None else extras
    started = time.monotonic()
    folder = run_folder(target)
    folder.mkdir(parents=True, exist_ok=True)
    classifier = job.classifier()
    files = MapFiles(target, extras.confidence or folder / "confidence.tif", extras.probabilities)
    with job.open(ms, pan) as pair:
        make(
            job, classifier, pair, files,
            manifest=folder / "tiles.jsonl", shard=shard, progress=progress,
        )  # fmt: skip
        if shard[1] > 1:
            return folder
        mapped = time.monotonic() - started
        (folder / RUN_FILE).unlink(missing_ok=True)  # it tells of the map that was here
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
        return ({"code": "no_data", "message": "Nowhere do both images hold data."},)
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
    style, areas = target.with_suffix(".qml"), target.with_name(f"{target.stem}_areas.csv")
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
        "inputs": (describe_input("ms", pair.ms), describe_input("pan", pair.pan)),
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


def run_folder(target: Path) -> Path:
    """The folder of everything about a run that is not its main product."""
    return target.with_name(f"{target.stem}_run")
