"""DOTA: one text file per image, eight coordinates, class and difficulty per line.

The form is that of DOTA 1.0, 1.5 and 2.0 (https://captain-whu.github.io/DOTA): up to two header
lines `imagesource:` and `gsd:`, then `x1 y1 x2 y2 x3 y3 x4 y4 class difficult`, clockwise. What the
wild holds is accepted: byte order marks, CRLF, tabs, blank lines, missing headers and flags.
"""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rsfuse.detection.data import Dataset, find_images
from rsfuse.detection.formats.assemble import Parsed, Row, Wanted, assemble
from rsfuse.errors import InputError
from rsfuse.ops.polygons import polygon_areas
from rsfuse.runs import atomic_path, read_json

LABEL_FOLDERS = ("labelTxt", "labelTxt-v1.0", "labelTxt-v1.5", "labelTxt-v2.0")

CLASSES_1_0 = (
    "plane",
    "baseball-diamond",
    "bridge",
    "ground-track-field",
    "small-vehicle",
    "large-vehicle",
    "ship",
    "tennis-court",
    "basketball-court",
    "storage-tank",
    "soccer-ball-field",
    "roundabout",
    "harbor",
    "swimming-pool",
    "helicopter",
)
CLASSES_1_5 = (*CLASSES_1_0, "container-crane")
CLASSES_2_0 = (*CLASSES_1_5, "airport", "helipad")


def read(folder: Path, wanted: Wanted) -> Dataset:
    """Read a folder with `images` and `labelTxt`, or one with label files alone.

    Args:
        folder: The data set; with a split, its subfolder of that name or the list in split.json.
        wanted: What is wanted of it; without classes, classes.json beside the labels (a list of
            names) gives their order where there is one.

    Raises:
        InputError: No label file, a damaged line or list (the error names it), or an unknown class.
    """
    split = wanted.split
    root = folder / split if split and (folder / split).is_dir() else folder
    labels = next((root / name for name in LABEL_FOLDERS if (root / name).is_dir()), root)
    files = sorted(path for path in labels.glob("*.txt"))
    listed = _listed(folder, split) if split and root == folder else None
    if listed is not None:
        files = [path for path in files if path.stem in listed]
    if not files:
        raise InputError(
            f"{labels} holds no label files" + (f" of the split {split!r}" if split else ""),
            "DOTA has one .txt per image in a folder labelTxt",
            "check the path, or name the format with --format",
        )
    notes: Counter[str] = Counter()
    parsed = {path.stem: parse(path, notes) for path in files}
    return assemble(
        root,
        {stem: Parsed(rows, gsd_m) for stem, (rows, gsd_m) in parsed.items()},
        find_images(root / "images"),
        wanted,
        known=_known(root / "classes.json"),
        notes=notes,
        listed=listed,
    )


def parse(path: Path, notes: Counter[str] | None = None) -> tuple[list[Row], float | None]:
    """The objects of one label file, and its ground sampling distance in metres where it says so.

    Lines of fewer than nine fields are headers or empty, as the devkit reads them. Objects without
    area are left out and counted in `notes`.

    Raises:
        InputError: A coordinate is not a finite number; the error names file and line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read: {error}", "a text file is needed", "check the file"
        ) from error
    rows: list[Row] = []
    gsd = None
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        if len(fields) < 9:
            gsd = _gsd(line) if line.lower().startswith("gsd") else gsd
            continue
        try:
            values = tuple(float(field) for field in fields[:8])
        except ValueError:
            values = (math.nan,)
        if not all(math.isfinite(value) for value in values):
            raise InputError(
                f"{path}, line {number}: {' '.join(fields[:8])} are not eight numbers",
                "a line is x1 y1 x2 y2 x3 y3 x4 y4 class difficult",
                "correct or remove the line",
            )
        if polygon_areas(np.reshape(values, (4, 2))) <= 0.0:
            if notes is not None:
                notes["objects without area"] += 1
            continue
        flag = fields[9] if len(fields) > 9 else "0"
        rows.append((values, fields[8], int(float(flag)) if _is_number(flag) else 0))
    return rows, gsd


def write(folder: Path, dataset: Dataset) -> None:
    """Write label files into `folder`/labelTxt, each atomically."""
    for sample in dataset.samples:
        lines = [] if sample.gsd_m is None else ["imagesource:unknown", f"gsd:{sample.gsd_m!r}"]
        objects = sample.objects
        for corners, label, flag in zip(
            objects.corners.reshape(-1, 8), objects.labels, objects.difficult, strict=True
        ):
            numbers = " ".join(f"{value:.10g}" for value in corners)
            lines.append(f"{numbers} {dataset.classes[label].replace(' ', '-')} {flag}")
        with atomic_path(folder / "labelTxt" / f"{sample.name}.txt") as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _known(path: Path) -> Sequence[str]:
    """The classes that classes.json lists; none without the file."""
    if not path.is_file():
        return ()
    names = read_json(path)
    if not _is_list_of_names(names):
        raise InputError(
            f"{path} is no list of names",
            'the classes are needed as ["plane", "ship"]',
            "correct it, or remove it: classes are then those that occur",
        )
    known: list[str] = names
    return known


def _is_list_of_names(content: object) -> bool:
    return isinstance(content, list) and all(isinstance(name, str) for name in content)


def _listed(folder: Path, split: str) -> set[str]:
    path = folder / "split.json"
    if not path.is_file():
        raise InputError(
            f"{folder} has no part {split!r}",
            "a split is a subfolder, or a list of names in split.json",
            "leave the split out, or check its name",
        )
    content = read_json(path)
    if not isinstance(content, dict) or not all(_is_list_of_names(v) for v in content.values()):
        raise InputError(
            f"{path} does not list the images of each part",
            'it is needed as {"train": ["P0001", ...], "val": [...]}',
            "correct it, or leave the split out",
        )
    if split not in content:
        raise InputError(
            f"{path} has no part {split!r}",
            f"it lists {', '.join(content)}",
            "use one of these",
        )
    return set(content[split])


def _gsd(line: str) -> float | None:
    value = line.partition(":")[2].strip()
    return float(value) if _is_number(value) and float(value) > 0 else None


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
