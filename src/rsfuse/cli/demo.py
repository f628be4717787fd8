"""`rsfuse demo`: simulated scenes registered, searched and mapped, compared with their truth."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from rsfuse.cli.options import Json, Output, Overwrite, Progress, Quiet, Seed, Verbose
from rsfuse.cli.output import emit, progress_reporter
from rsfuse.errors import InputError

if TYPE_CHECKING:
    from rsfuse.detection.data import Dataset
    from rsfuse.detection.results import Detections
    from rsfuse.matching.data import MatchPair
    from rsfuse.matching.metrics import Transform
    from rsfuse.report import Chapter, Check, Tile
    from rsfuse.runs import RunRecord
    from rsfuse.simulate import MatrixWarp, Scene

# Sets of real pairs below the data folder; the first pair of each category is shown.
REAL_SETS = ("matching/srif", "matching/s1s2")
REAL_OBJECTS = "detection/hit_uav"
PICTURE_SIDE = 900

# Bundles that come with rsfuse and know the objects and the ground of simulated scenes.
DETECTOR = "simulated-objects"
PAIR_DETECTOR = "simulated-pairs"
CLASSIFIER = "simulated-land-cover"
# And one that knows people and vehicles in thermal images.
REAL_DETECTOR = "hit-uav-tiny"

# The scene that is searched and mapped: PAN pixels in metres, and PAN pixels per MS pixel.
PAN_GSD_M, PAN_RATIO = 0.5, 4

COMMANDS = (
    ("Register two images of the same ground:", "rsfuse match reference.tif query.tif -o out"),
    (
        "Apply the transform to another raster of the query's sensor:",
        "rsfuse apply out/transform.json other.tif -o other_registered.tif",
    ),
    (
        "Find the objects of a scene:",
        "rsfuse detect scene.tif -m simulated-objects -o found.gpkg",
    ),
    (
        "Map land cover from your own labels:",
        "rsfuse train classify configs/classify/example.toml -o trained",
    ),
    ("Make a scene of your own with known truth:", "rsfuse simulate -o scene --warp homography"),
)


def demo(
    output: Output,
    size: Annotated[
        int, typer.Option(min=256, help="Side of the simulated scene in pixels.")
    ] = 1024,
    seed: Seed = 0,
    data: Annotated[
        Path | None,
        typer.Option(
            envvar="RSFUSE_DATA",
            help="Folder with real pairs to show as well; by default ../shared/data, if there.",
        ),
    ] = None,
    as_json: Json = False,
    overwrite: Overwrite = False,
    progress: Progress = "bar",
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Match, detect and classify on simulated scenes, and write the page index.html about it.

    A radar image is turned, scaled and shifted against an optical one; rsfuse is not told how. On a
    second scene it finds ships, planes and vehicles and maps the land cover. The page compares
    everything with the truth. Exit code 3 when the radar image was not registered.
    """
    from rsfuse.report import build_story
    from rsfuse.runs import EXIT_NOT_OK, prepare_output

    folder = prepare_output(output, overwrite)
    data = data_folder(data)
    pairs = real_pairs(data)
    thermal = None if data is None else data / REAL_OBJECTS
    has_thermal = thermal is not None and thermal.is_dir()
    reporter = progress_reporter(progress, quiet=quiet)
    reporter.start(7 + len(pairs) + has_thermal, "demo")
    try:
        simulated = simulated_chapter(folder, size, seed, advance=reporter.advance)
        more = scene_chapters(folder, size, seed + 1, advance=reporter.advance)
        if thermal is not None and has_thermal:
            more.append(real_objects_chapter(folder / "real", thermal))
            reporter.advance()
        real = []
        for pair in pairs:
            real.append(real_chapter(folder / "real", pair))
            reporter.advance()
        page = build_story(
            folder / "index.html",
            [simulated.chapter, *(told.chapter for told in real)],
            title="Match, detect, classify",
            more=[told.chapter for told in more],
            lead=simulated.lead,
            commands=COMMANDS,
        )
        reporter.advance()
    finally:
        reporter.finish()
    outcome: dict[str, Any] = {"page": page, **simulated.outcome}
    for told in more[:3]:
        outcome |= told.outcome
    for told in more[3:]:
        outcome["real_objects"] = told.outcome if as_json else told.chapter.title
    if real:
        told_as = "outcome" if as_json else "words"
        outcome["real_pairs"] = {told.chapter.title: getattr(told, told_as) for told in real}
    emit(outcome, as_json)
    if simulated.outcome["status"] != "ok":
        raise typer.Exit(EXIT_NOT_OK)


class Told(NamedTuple):
    """A chapter, its opening sentence and what is printed about it."""

    chapter: "Chapter"
    lead: str
    outcome: dict[str, Any]

    @property
    def words(self) -> str:
        """Status and mean error in a few words."""
        error = self.outcome["error_px"]
        distance = "" if error is None else f", {error['mean']:.2f} px off"
        return f"{self.outcome['status']}{distance}"


def simulated_chapter(folder: Path, size: int, seed: int, *, advance: Callable[[], None]) -> Told:
    """Simulate a scene, register its radar image onto its optical one, compare with the truth."""
    from rsfuse.report import Chapter
    from rsfuse.report.wording import pixels, seconds
    from rsfuse.simulate import simulate_scene, write_scene

    scene = simulate_scene(size, seed=seed)
    warp = turned(scene)
    written = write_scene(folder / "scene", scene, modalities=("ms", "sar"), warp=warp)
    optical, radar = written.images["ms"], written.images["sar"]
    pictures = (
        ("optical, the reference", save_picture(optical, folder / "pictures" / "optical.webp")),
        ("radar, the query", save_picture(radar, folder / "pictures" / "radar.webp")),
    )
    advance()
    record, found = register(optical, radar, folder / "match")
    advance()
    true = pose(warp.matrix, scene.shape)
    chapter = Chapter(
        run=folder / "match",
        title="The same ground, two sensors",
        text=f"A simulated scene of {size} × {size} pixels, seen by an optical sensor and by a "
        f"radar. The radar image was turned by {true.rotation_deg:.1f}°, scaled by "
        f"{true.scale:.3f} and shifted by {math.hypot(true.x, true.y):.0f} pixels. Its "
        "georeference says nothing of it.",
        pictures=pictures,
    )
    if found is None:
        lead = "This time rsfuse did not find how the second image lies on the first, and says so."
        return Told(chapter, lead, {**summary(record), "error_px": None})
    error = transform_error(found, warp.matrix, scene.shape, scene.shape)
    lead = (
        f"rsfuse found how the second image lies on the first to {pixels(error['mean'])} on "
        f"average, in {seconds(record.seconds)}, untrained and not told anything about it."
    )
    chapter = replace(
        chapter,
        tiles=error_tiles(error, scene.gsd_m / true.scale),
        checks=checks(true, pose(found, scene.shape)),
    )
    return Told(chapter, lead, {**summary(record), "error_px": error})


def scene_chapters(
    folder: Path, size: int, seed: int, *, advance: Callable[[], None]
) -> list[Told]:
    """Simulate a second scene, find its objects, map its land cover, compare with the truth."""
    from rsfuse.simulate import simulate_scene, write_scene
    from rsfuse.simulate.render import Acquisition

    scene = simulate_scene(size, gsd_m=PAN_GSD_M, seed=seed)
    written = write_scene(
        folder / "scene2",
        scene,
        modalities=("ms", "pan", "thermal"),
        acquisition=Acquisition(ratio=PAN_RATIO, night=True),  # the thermal image is of the night
    )
    advance()
    found = detect_chapter(folder, written.images["pan"])
    advance()
    dark = night_chapter(folder, written.images["pan"], written.images["thermal"])
    advance()
    mapped = classify_chapter(folder, written.images["ms"], written.images["pan"])
    advance()
    return [found, dark, mapped]


def detect_chapter(folder: Path, pan: Path) -> Told:
    """Find the objects of the second scene and score them."""
    from rsfuse.cli.detect import detect_one
    from rsfuse.detection.formats import read_dataset

    found, run = detect_one(pan, DETECTOR, folder / "objects.gpkg", score=0.05)
    truth = read_dataset(pan.parent, format="simulated", classes=found.classes)
    return objects_told(
        run, found, truth, title="Objects with their direction",
        text=f"Ships, planes and vehicles in a panchromatic image with pixels of {PAN_GSD_M} m.",
    )  # fmt: skip


def night_chapter(folder: Path, pan: Path, thermal: Path) -> Told:
    """Find the objects of the second scene in the dark, with and without a thermal image beside."""
    from rsfuse.cli.detect import detect_one
    from rsfuse.detection.evaluate import answers_of_images, evaluate
    from rsfuse.detection.formats import read_dataset
    from rsfuse.report.wording import percent

    dark = darken(pan, folder / "scene2" / "pan_night.tif")
    truth = read_dataset(pan.parent, format="simulated")
    alone, _ = detect_one(dark, PAIR_DETECTOR, folder / "night_alone.gpkg", score=0.05)
    truth = truth.with_classes(alone.classes)
    named = replace(alone, name=truth.samples[0].name)
    without = evaluate(truth, answers_of_images([named], truth), "voc12").mean(0.5)
    found, run = detect_one(dark, PAIR_DETECTOR, folder / "night.gpkg", score=0.05, partner=thermal)
    told = objects_told(
        run, found, truth, title="In the dark, with a second sensor",
        text="The same panchromatic image with a hundredth to a tenth of the light, and a thermal "
        "image of the night beside it; the detector was trained on such pairs. Without the thermal "
        f"image its mean AP50 here is {percent(without)}.",
    )  # fmt: skip
    outcome = {"night": told.outcome | {"map50_without": round(without, 4)}}
    return Told(told.chapter, "", outcome)


def darken(pan: Path, path: Path) -> Path:
    """Write an image as it would be by night, as the detector of pairs has learned it."""
    import numpy as np

    from rsfuse.detection.augment import darkened
    from rsfuse.detection.predict import scaled
    from rsfuse.engine.bundle import load_bundle
    from rsfuse.geo.raster import open_raster
    from rsfuse.geo.write import write_cog

    info = load_bundle(PAIR_DETECTOR, "detect").card.inputs[0]
    with open_raster(pan) as source:
        raster = source.read()
    low, high = info.low[0], info.high[0]
    seen = darkened(scaled(raster.data, info), np.random.default_rng(0)) * (high - low) + low
    night = replace(raster, data=np.round(np.clip(seen, 0, 65535)).astype(np.float32))
    write_cog(path, night, dtype="uint16")
    return path


def real_objects_chapter(folder: Path, data: Path) -> Told:
    """Find people and vehicles in a thermal image that was not trained on, and score them."""
    from rsfuse.cli.detect import detect_one
    from rsfuse.detection.formats import read_dataset

    truth = read_dataset(data, split="val", ignored=("DontCare",))
    fullest = max(truth.samples, key=lambda s: (len(set(s.objects.labels)), len(s.objects)))
    assert fullest.image is not None  # the validation part has all its images
    target = folder / f"{fullest.name}.gpkg"
    found, run = detect_one(fullest.image, REAL_DETECTOR, target, score=0.05)
    return objects_told(
        run, found, replace(truth, samples=(fullest,)), title="A real thermal image",
        text=f"{fullest.name} of HIT-UAV, taken by a drone: the image of the validation part with "
        "the most kinds of objects. The model never learned from it; its best weights were chosen "
        "on this part.",
    )  # fmt: skip


def objects_told(
    run: Path, found: "Detections", truth: "Dataset", *, title: str, text: str
) -> Told:
    """The chapter on the objects of one image beside the true ones."""
    from rsfuse.detection.evaluate import answers_of_images, evaluate
    from rsfuse.report import Chapter, Check, Tile
    from rsfuse.report.wording import percent

    named = replace(found, name=truth.samples[0].name)
    scores = evaluate(truth, answers_of_images([named], truth), "voc12")
    sure = found.above(0.3)
    counts = truth.count()
    rows = tuple(
        Check(
            name,
            str(int(counts[k])),
            str(int((sure.labels == k).sum())),
            "–" if not counts[k] else percent(float(scores.ap[k, 0])),
        )
        for k, name in enumerate(found.classes)
    )
    mean = scores.mean(0.5)
    chapter = Chapter(
        run=run,
        title=title,
        text=f"{text} The table counts boxes with a score of at least 0.30 beside the true ones; "
        "AP50 is the average precision by the VOC12 rule.",
        tiles=(
            Tile("Objects", str(len(sure)), f"of {int(counts.sum())} true ones"),
            Tile("Mean AP50", percent(mean), "VOC12, difficult ignored", mean),
            Tile("Mean AP75", percent(scores.mean(0.75)), "boxes that fit closely"),
        ),
        checks=rows,
        columns=("true", "found", "AP50"),
    )
    return Told(chapter, "", {"objects": len(sure), "map50": round(mean, 4)})


def classify_chapter(folder: Path, ms: Path, pan: Path) -> Told:
    """Map the land cover of the second scene and measure the map."""
    from rsfuse.cli.classify import classify_one
    from rsfuse.report import Chapter
    from rsfuse.runs import RunRecord

    run = classify_one(
        ms, pan, CLASSIFIER, folder / "land_cover.tif", labels=ms.parent / "truth" / "labels.tif"
    )
    record = RunRecord.load(run)
    accuracy = record.result["accuracy"]
    chapter = Chapter(
        run=run,
        title="Land cover from MS and PAN",
        text=f"Four bands with pixels of {PAN_GSD_M * PAN_RATIO:g} m and a panchromatic image with "
        f"pixels of {PAN_GSD_M} m give the class of every panchromatic pixel. "
        f"{100 * accuracy['overall']:.0f} % of the pixels agree with the true land cover.",
    )
    return Told(chapter, "", {"land_cover_accuracy": round(accuracy["overall"], 4)})


def real_chapter(folder: Path, pair: "MatchPair") -> Told:
    """Register a real pair and compare with the transform that its data set states."""
    from rsfuse.report import Chapter
    from rsfuse.report.wording import pixels, seconds

    run = folder / re.sub(r"[^A-Za-z0-9.-]+", "_", pair.id)
    record, found = register(pair.reference, pair.query, run)
    error, outcome = None, ""
    if found is not None:
        reference, query = (tuple(item["shape"]) for item in record.inputs)
        error = transform_error(found, pair.truth, reference, query)
        outcome = f"{pixels(error['mean'])} from the stated transform, "
    chapter = Chapter(
        run=run,
        title=pair.category,
        text=f"{pair.id}: {pair.modality[0]} (reference) and {pair.modality[1]} (query).",
        summary=f"{outcome}{seconds(record.seconds)}",
    )
    return Told(chapter, "", {**summary(record), "error_px": error})


def register(reference: Path, query: Path, folder: Path) -> "tuple[RunRecord, Transform | None]":
    """Match two images and leave the run folder with its page.

    Returns:
        The record, and the transform that the run claims; None where it was refused.
    """
    from rsfuse.matching.predict import match
    from rsfuse.report import build_report
    from rsfuse.runs import RunRecord

    result = match(reference, query)
    result.save(folder, page=True)
    build_report(folder)
    found = result.transform
    if result.status == "refused" or found is None:
        return RunRecord.load(folder), None
    return RunRecord.load(folder), found.apply if found.matrix is None else found.matrix


def turned(scene: "Scene") -> "MatrixWarp":
    """A warp by a rotation of 8° to 20°, a scale of 0.93 to 1.08 and a shift of 4 % of the side."""
    import numpy as np

    from rsfuse.simulate import MatrixWarp

    rng = np.random.default_rng([scene.seed, 1])
    angle = np.deg2rad(rng.uniform(8.0, 20.0)) * rng.choice([-1.0, 1.0])
    scale = np.exp(rng.uniform(0.03, 0.075) * rng.choice([-1.0, 1.0]))
    way = rng.uniform(0, 2 * np.pi)
    h, w = scene.shape
    centre = np.array([w / 2, h / 2])
    shift = 0.04 * max(h, w) * np.array([np.cos(way), np.sin(way)])
    matrix = np.eye(3)
    matrix[:2, :2] = scale * np.array(
        [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    )
    matrix[:2, 2] = centre + shift - matrix[:2, :2] @ centre
    return MatrixWarp(matrix, "affine")


class Pose(NamedTuple):
    """How a transform turns, scales and moves the centre of the reference."""

    rotation_deg: float
    scale: float
    x: float
    y: float


def pose(transform: "Transform", shape: tuple[int, int]) -> Pose:
    """The pose of a transform from reference pixels to query pixels."""
    import numpy as np

    from rsfuse.matching.metrics import transform_points

    centre = np.array([shape[1] / 2, shape[0] / 2])
    steps = np.array([[0.0, 0.0], [0.5, 0.0], [-0.5, 0.0], [0.0, 0.5], [0.0, -0.5]])
    moved = transform_points(transform, centre + steps)
    along_x, along_y = moved[1] - moved[2], moved[3] - moved[4]
    turn = np.arctan2(along_x[1] - along_y[0], along_x[0] + along_y[1])
    area = along_x[0] * along_y[1] - along_x[1] * along_y[0]
    shift = moved[0] - centre
    return Pose(
        rotation_deg=float(np.rad2deg(turn)),
        scale=float(np.sqrt(abs(area))),
        x=float(shift[0]),
        y=float(shift[1]),
    )


def checks(true: Pose, found: Pose) -> "tuple[Check, ...]":
    """True and found pose, row by row."""
    from rsfuse.report import Check

    rows = (
        ("Rotation", "{:.3f}°", true.rotation_deg, found.rotation_deg),
        ("Scale", "{:.5f}", true.scale, found.scale),
        ("Shift of the centre, x", "{:.2f} px", true.x, found.x),
        ("Shift of the centre, y", "{:.2f} px", true.y, found.y),
    )
    return tuple(
        Check(name, *(form.format(v).replace("-", "−") for v in (a, b, abs(a - b))))
        for name, form, a, b in rows
    )


def error_tiles(error: dict[str, float], pixel_m: float) -> "tuple[Tile, ...]":
    """Mean and largest error in pixels and on the ground."""
    from rsfuse.report import Tile
    from rsfuse.report.wording import metres, pixels

    names = {"mean": "Mean error over the image", "most": "Largest error"}
    return tuple(
        Tile(name, pixels(error[key]), f"{metres(error[key] * pixel_m)} on the ground")
        for key, name in names.items()
    )


def transform_error(
    found: "Transform", truth: "Transform", shape0: tuple[int, int], shape1: tuple[int, int]
) -> dict[str, float]:
    """Mean and largest distance of two transforms over the common ground, in query pixels."""
    from rsfuse.matching.metrics import grid_errors

    errors = grid_errors(found, truth, shape0, shape1)
    return {"mean": float(errors.mean()), "most": float(errors.max())}


def summary(record: "RunRecord") -> dict[str, Any]:
    """Status, confidence and duration of a run."""
    keys = ("status", "confidence", "seconds")
    return {key: getattr(record, key) for key in keys}


def save_picture(image: Path, path: Path) -> Path:
    """A reduced picture of a raster: its red, green and blue, or its first band."""
    from rsfuse.geo import picture
    from rsfuse.geo.raster import open_raster

    with open_raster(image) as source:
        picture.save_picture(path, picture.stretch(picture.preview(source, PICTURE_SIDE)))
    return path


def data_folder(named: Path | None) -> Path | None:
    """The folder with real pairs: as named, else `shared/data` beside the clone, else None.

    Raises:
        InputError: A folder was named and holds no pairs.
    """
    folder = named or Path(__file__).resolve().parents[4] / "shared" / "data"
    if (folder / "matching").is_dir():
        return folder
    if named is not None:
        raise InputError(
            f"{named} holds no real pairs",
            "the folder of --data or RSFUSE_DATA needs a folder named matching",
            "name another folder, or leave it out for the simulated pair alone",
        )
    return None


def real_pairs(data: Path | None) -> "tuple[MatchPair, ...]":
    """The first pair of each category of the sets that are there, radar first."""
    if data is None:
        return ()
    from rsfuse.matching.data import read_pairs

    first: dict[str, MatchPair] = {}
    for name in REAL_SETS:
        if (data / name / "index.json").is_file():
            for pair in read_pairs(data / name):
                first.setdefault(pair.category, pair)
    return tuple(sorted(first.values(), key=lambda pair: "sar" not in pair.modality))
