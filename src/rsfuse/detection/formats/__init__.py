"""Readers and writers of label formats, one file each, and the door that finds the right one."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from rsfuse.detection.data import Dataset
from rsfuse.detection.formats.assemble import Wanted
from rsfuse.errors import InputError

# Format -> module; each has `read` and, where it can be written, `write`.
FORMATS = {
    "dota": "rsfuse.detection.formats.dota",
    "hrsc2016": "rsfuse.detection.formats.hrsc",
    "dior-r": "rsfuse.detection.formats.voc",
    "robndbox": "rsfuse.detection.formats.voc",
    "dronevehicle": "rsfuse.detection.formats.voc",
    "ucas-aod": "rsfuse.detection.formats.ucas",
    "vedai": "rsfuse.detection.formats.vedai",
    "yolo-obb": "rsfuse.detection.formats.yolo",
    "coco": "rsfuse.detection.formats.coco",
    "vectors": "rsfuse.detection.formats.vectors",
    "simulated": "rsfuse.detection.formats.simulated",
}


# Formats with several images of each scene: with any, or with one partner of their own.
SEVERAL_IMAGES = ("simulated",)
PAIRS = ("dronevehicle", "vedai")


def read_dataset(
    path: str | Path,
    *,
    format: str = "auto",
    split: str | None = None,
    classes: Sequence[str] | None = None,
    ignored: Sequence[str] = (),
    image: str = "",
    partner: str = "",
    level: int = 1,
) -> Dataset:
    """Read a data set.

    Args:
        path: Its folder or file.
        format: One of `FORMATS`, or "auto".
        split: A part of it, for example "train".
        classes: Names in the order of the labels.
        ignored: Classes whose objects become difficult.
        image: Which image of each scene, where a format has several.
        partner: The second image of each scene; a format of pairs has its own, whatever its name.
        level: Of a tree of classes (HRSC2016): 1 for the coarsest.

    Raises:
        InputError: Unknown format, or a damaged data set.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist", "a data set is needed", "check the path")
    name = sniff(path) if format == "auto" else format
    if name not in FORMATS:
        raise InputError(
            f"format {name!r} is unknown", f"known are {', '.join(FORMATS)}", "choose one of them"
        )
    if (image and name not in SEVERAL_IMAGES) or (
        partner and name not in (*SEVERAL_IMAGES, *PAIRS)
    ):
        raise InputError(
            f"the format {name} has one image per scene",
            f"image can be chosen for {', '.join(SEVERAL_IMAGES)}, partner also for "
            + ", ".join(PAIRS),
            "leave it out",
        )
    wanted = Wanted(split, classes, ignored, image, partner, level)
    found: Dataset = import_module(FORMATS[name]).read(path, wanted)
    return found


def write_dataset(folder: str | Path, dataset: Dataset, *, format: str) -> None:
    """Write the labels of a data set.

    Args:
        folder: Where to.
        dataset: The objects.
        format: One of `FORMATS` that can be written.

    Raises:
        InputError: Unknown format, one that is read only, or one that cannot hold the data.
    """
    writers = writable()
    if format not in writers:
        raise InputError(
            f"the format {format!r} cannot be written",
            f"these can: {', '.join(writers)}",
            "choose one of them with --to",
        )
    import_module(FORMATS[format]).write(Path(folder), dataset)


def writable() -> tuple[str, ...]:
    """The formats that can be written."""
    return tuple(name for name, path in FORMATS.items() if hasattr(import_module(path), "write"))


def sniff(path: Path) -> str:
    """The format of a data set, by its folders and files; "dota" where nothing else fits."""
    if path.is_file():
        return "coco" if path.suffix == ".json" else "vectors"

    def has(*patterns: str) -> bool:
        return any(any(path.glob(pattern)) for pattern in patterns)

    if has("scene.json", "*/scene.json"):
        return "simulated"
    if has("FullDataSet", "**/*.xml"):
        first = next(iter(sorted(path.glob("**/*.xml"))), None)
        head = first.read_bytes()[:4096] if first else b""
        if b"HRSC_Image" in head or first is None:
            return "hrsc2016"
        return "dronevehicle" if has("*imgr", "*/*imgr") else "dior-r"
    if has("**/annotation512.txt", "**/annotation1024.txt"):
        return "vedai"
    if has("CAR/*.txt", "PLANE/*.txt"):
        return "ucas-aod"
    if has("labelTxt*", "*/labelTxt*"):
        return "dota"
    if has("*.yaml", "*.yml") and has("labels"):
        return "yolo-obb"
    if has("*.gpkg", "*.geojson", "*.shp"):
        return "vectors"
    return "coco" if has("*.json", "annotations/*.json") and not has("*.txt") else "dota"
