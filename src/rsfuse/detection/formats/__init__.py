"""Readers and writers of label formats, one file each, and the door that finds the right one."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from rsfuse.detection.data import Dataset
from rsfuse.errors import InputError

# Format -> module; each has `read` and, where it can be written, `write`.
FORMATS = {
    "dota": "rsfuse.detection.formats.dota",
    "simulated": "rsfuse.detection.formats.simulated",
}


# Formats with several images of each scene.
SEVERAL_IMAGES = ("simulated",)


def read_dataset(
    path: str | Path,
    *,
    format: str = "auto",
    split: str | None = None,
    classes: Sequence[str] | None = None,
    ignored: Sequence[str] = (),
    image: str = "",
    partner: str = "",
) -> Dataset:
    """Read a data set.

    Args:
        path: Its folder or file.
        format: One of `FORMATS`, or "auto".
        split: A part of it, for example "train".
        classes: Names in the order of the labels.
        ignored: Classes whose objects become difficult.
        image: Which image of each scene, where a format has several.
        partner: The second image of each scene, where a format has several.

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
    several = {key: value for key, value in (("image", image), ("partner", partner)) if value}
    if several and name not in SEVERAL_IMAGES:
        raise InputError(
            f"the format {name} has one image per scene",
            f"{' and '.join(several)} can be chosen for {', '.join(SEVERAL_IMAGES)}",
            "leave it out",
        )
    found: Dataset = import_module(FORMATS[name]).read(
        path, split=split, classes=classes, ignored=ignored, **several
    )
    return found


def sniff(path: Path) -> str:
    """The format of a data set, by its folders and files."""
    if (path / "scene.json").is_file() or any(path.glob("*/scene.json")):
        return "simulated"
    return "dota"
