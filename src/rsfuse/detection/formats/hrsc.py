"""HRSC2016: one XML file per image, ships in a tree of classes with the direction of the bow.

`mbox_cx mbox_cy mbox_w mbox_h mbox_ang` in pixels and radians, clockwise on the screen; `header_x
header_y` is the bow. Class ids are 100000000 + n on three levels; an object carries the deepest one
known, and coarser levels follow from the tree. Written by rsfuse, a file holds the fields that
readers need and no others.
"""

import math
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from rsfuse.detection.data import Dataset
from rsfuse.detection.formats import xml
from rsfuse.detection.formats.assemble import (
    Parsed,
    Row,
    Wanted,
    assemble,
    images_of,
    label_files,
    part_of,
)
from rsfuse.errors import InputError
from rsfuse.ops.boxes import corners_of, from_corners
from rsfuse.runs import atomic_path

LABELS = ("FullDataSet/Annotations", "Annotations", "Train/Annotations", "Test/Annotations", ".")
IMAGES = (
    "FullDataSet/AllImages", "AllImages", "Train/AllImages", "Test/AllImages", "images", ".",
)  # fmt: skip
BOX = ("mbox_cx", "mbox_cy", "mbox_w", "mbox_h", "mbox_ang")
FIRST_ID = 100000000

# Number -> (name, number of the parent).
TREE = {
    1: ("ship", 0),
    2: ("aircraft-carrier", 1), 3: ("warcraft", 1), 4: ("merchant-ship", 1), 27: ("submarine", 1),
    5: ("nimitz", 2), 6: ("enterprise", 2), 12: ("kitty-hawk", 2), 13: ("kuznetsov", 2),
    16: ("tarawa", 2), 31: ("ford-class", 2), 32: ("midway-class", 2), 33: ("invincible-class", 2),
    7: ("arleigh-burke", 3), 8: ("whidbey-island", 3), 9: ("perry", 3), 10: ("san-antonio", 3),
    11: ("ticonderoga", 3), 14: ("abukuma", 3), 15: ("austen", 3), 17: ("blue-ridge", 3),
    19: ("command-ship", 3), 28: ("lute", 3), 29: ("medical", 3),
    18: ("container", 4), 20: ("car-carrier-a", 4), 22: ("hovercraft", 4), 24: ("yacht", 4),
    25: ("container-ship", 4), 26: ("cruise", 4), 30: ("car-carrier-b", 4),
}  # fmt: skip


def read(folder: Path, wanted: Wanted) -> Dataset:
    """Read the data set.

    Args:
        folder: With FullDataSet or Annotations.
        wanted: Its parts are lists of ImageSets, for example "trainval"; level 1 is ships, 2 their
            four kinds, 3 the finest class known.

    Raises:
        InputError: No label file, a damaged one, or an unknown class or level.
    """
    level = wanted.level
    if level not in (1, 2, 3):
        raise InputError(f"level {level}", "HRSC2016 has the class levels 1, 2 and 3", "use one")
    notes: Counter[str] = Counter()
    listed = part_of(folder, wanted.split)
    files = label_files([folder / name for name in LABELS], ".xml", listed)
    parsed = {path.stem: parse(path, notes, level) for path in files}
    images = images_of(folder, IMAGES)
    return assemble(folder, parsed, images, wanted, notes=notes, listed=listed)


def parse(path: Path, notes: Counter[str], level: int = 1) -> Parsed:
    """The ships of one label file."""
    root = xml.parse(path)
    rows: list[Row] = []
    headings: list[float] = []
    for element in root.iter("HRSC_Object"):
        cx, cy, w, h, angle = xml.numbers(element, BOX, path)
        if w <= 0 or h <= 0:
            notes["objects without area"] += 1
            continue
        corners = corners_of(np.array([[cx, cy, w, h, angle]])).reshape(8)
        name = class_of(int(xml.number(element, "Class_ID", path)), level)
        rows.append((tuple(corners.tolist()), name, xml.flag(element)))
        headings.append(_heading(element, cx, cy, path))
    h, w = (int(xml.number(root, f"Img_Size{side}", path)) for side in ("Height", "Width"))
    text = (root.findtext("Img_Resolution") or "").strip()
    gsd_m = float(text) if text.replace(".", "", 1).isdigit() and float(text) > 0 else None
    return Parsed(rows, gsd_m, (h, w) if h > 0 and w > 0 else None, headings)


def class_of(number: int, level: int) -> str:
    """Name of a class id on a level, or above where no finer one is known."""
    number -= FIRST_ID if number >= FIRST_ID else 0
    path = []
    while number in TREE:
        path.append(TREE[number][0])
        number = TREE[number][1]
    if not path:
        return f"class-{number}"
    return path[::-1][min(level, len(path)) - 1]


def write(folder: Path, dataset: Dataset) -> None:
    """Write one XML file per image into `folder`/Annotations, each atomically.

    Raises:
        InputError: A class is none of HRSC2016's.
    """
    ids = {name: FIRST_ID + number for number, (name, _) in TREE.items()}
    unknown = sorted(set(dataset.classes) - set(ids))
    if unknown:
        raise InputError(
            f"HRSC2016 has no class {unknown[0]!r}",
            f"it has {', '.join(sorted(ids))}",
            "choose another format, or rename the classes",
        )
    for sample in dataset.samples:
        root = ElementTree.Element("HRSC_Image")
        h, w = sample.size or (0, 0)
        for name, value in (("Img_SizeWidth", w), ("Img_SizeHeight", h)):
            ElementTree.SubElement(root, name).text = str(value)
        ElementTree.SubElement(root, "Img_Resolution").text = repr(sample.gsd_m or 0.0)
        group = ElementTree.SubElement(root, "HRSC_Objects")
        objects = sample.objects
        boxes = from_corners(objects.corners).reshape(-1, 5)
        headings = objects.headings
        for i, box in enumerate(boxes):
            one = ElementTree.SubElement(group, "HRSC_Object")
            label = ids[dataset.classes[int(objects.labels[i])]]
            ElementTree.SubElement(one, "Class_ID").text = str(label)
            ElementTree.SubElement(one, "difficult").text = str(int(objects.difficult[i] > 0))
            for name, value in zip(BOX, box.tolist(), strict=True):
                ElementTree.SubElement(one, name).text = repr(value)
            if headings is not None and math.isfinite(headings[i]):
                reach = box[2] / 2
                x = box[0] + reach * math.cos(headings[i])
                y = box[1] + reach * math.sin(headings[i])
                ElementTree.SubElement(one, "header_x").text = repr(float(x))
                ElementTree.SubElement(one, "header_y").text = repr(float(y))
        ElementTree.indent(root)
        with atomic_path(folder / "Annotations" / f"{sample.name}.xml") as temporary:
            temporary.write_bytes(ElementTree.tostring(root, encoding="utf-8"))


def _heading(element: ElementTree.Element, cx: float, cy: float, path: Path) -> float:
    if not (element.findtext("header_x") or "").strip():
        return math.nan
    x, y = xml.numbers(element, ("header_x", "header_y"), path)
    return math.atan2(y - cy, x - cx)
