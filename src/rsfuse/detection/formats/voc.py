"""VOC-like XML with rotated shapes: DIOR-R, roLabelImg (HIT-UAV) and DroneVehicle.

One file per image with `size` and `object` elements. The shape of an object is one of

    robndbox   x_left_top ... y_left_bottom            DIOR-R
    robndbox   cx, cy, w, h, angle                     roLabelImg: radians, clockwise on the screen
    polygon    x1, y1 ... x4, y4                       DroneVehicle
    bndbox     xmin, ymin, xmax, ymax                  upright boxes

DroneVehicle spells one class in several ways; they are one here. Its images have a white border of
100 px, which is kept: the labels are in pixels of the files. Pairs lie in folders such as trainimg
and trainimgr, labels in trainlabel and trainlabelr; those of the infrared image are read, because
labels of visible images miss objects at night.
"""

from collections import Counter
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from rsfuse.detection.data import Dataset, find_images
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
from rsfuse.ops.boxes import corners_of
from rsfuse.ops.polygons import polygon_areas

LABELS = ("Annotations/Oriented Bounding Boxes", "Annotations", "labels", "xml", ".")
IMAGES = ("JPEGImages", "JPEGImages-trainval", "JPEGImages-test", "images", ".")

DIOR = (
    "x_left_top", "y_left_top", "x_right_top", "y_right_top",
    "x_right_bottom", "y_right_bottom", "x_left_bottom", "y_left_bottom",
)  # fmt: skip
ROTATED = ("cx", "cy", "w", "h", "angle")
POLYGON = ("x1", "y1", "x2", "y2", "x3", "y3", "x4", "y4")
UPRIGHT = ("xmin", "ymin", "xmax", "ymax")

SPELLINGS = {
    "feright": "freight-car",
    "feright car": "freight-car",
    "feright_car": "freight-car",
    "freight_car": "freight-car",
    "freight car": "freight-car",
    "truvk": "truck",
}


def read(folder: Path, wanted: Wanted) -> Dataset:
    """Read a folder of label files with their images.

    Raises:
        InputError: No label file, a damaged one (the error names it), or an unknown class.
    """
    notes: Counter[str] = Counter()
    pair = _drone_folders(folder, wanted.split)
    if pair is not None:
        visible, infrared, labels = pair
        files = label_files([labels], ".xml", None)
        images, partners = find_images(visible), find_images(infrared)
        parsed = {path.stem: parse(path, notes) for path in files}
        parsed = {stem: p._replace(partner=partners.get(stem)) for stem, p in parsed.items()}
        return assemble(folder, parsed, images, wanted, notes=notes)
    listed = part_of(folder, wanted.split)
    files = label_files([folder / name for name in LABELS], ".xml", listed)
    parsed = {path.stem: parse(path, notes) for path in files}
    images = images_of(folder, IMAGES)
    return assemble(folder, parsed, images, wanted, notes=notes, listed=listed)


def parse(path: Path, notes: Counter[str]) -> Parsed:
    """The objects of one label file; those without a shape or an area are counted in `notes`."""
    root = xml.parse(path)
    rows: list[Row] = []
    for element in root.iter("object"):
        name = (element.findtext("name") or "").strip()
        corners = _corners(element, path)
        if corners is None:
            notes["objects without a shape"] += 1
        elif polygon_areas(np.reshape(corners, (4, 2))) <= 0:
            notes["objects without area"] += 1
        else:
            rows.append((corners, SPELLINGS.get(name.lower(), name), xml.flag(element)))
    size = root.find("size")
    shape = None
    if size is not None and size.findtext("height"):
        h, w = xml.numbers(size, ("height", "width"), path)
        shape = (int(h), int(w)) if h > 0 and w > 0 else None
    return Parsed(rows, size=shape)


def _corners(element: Element, path: Path) -> tuple[float, ...] | None:
    rotated = element.find("robndbox")
    if rotated is not None and rotated.find("x_left_top") is not None:
        return xml.numbers(rotated, DIOR, path)
    if rotated is not None:
        box = np.array([xml.numbers(rotated, ROTATED, path)])
        return tuple(corners_of(box).reshape(8).tolist())
    polygon = element.find("polygon")
    if polygon is not None:
        return xml.numbers(polygon, POLYGON, path)
    upright = element.find("bndbox")
    if upright is not None:
        x0, y0, x1, y1 = xml.numbers(upright, UPRIGHT, path)
        return (x0, y0, x1, y0, x1, y1, x0, y1)
    return None


def _drone_folders(folder: Path, split: str | None) -> tuple[Path, Path, Path] | None:
    """Visible images, infrared images and labels of a part of DroneVehicle."""
    parts = [split] if split else ["train", "val", "test"]
    for part in parts:
        for root in (folder, folder / part):
            visible, infrared = root / f"{part}img", root / f"{part}imgr"
            if visible.is_dir() and infrared.is_dir():
                labels = root / f"{part}labelr"
                if not labels.is_dir():
                    raise InputError(
                        f"{labels} does not exist",
                        "DroneVehicle has labels of the infrared images there",
                        "unpack them beside the images",
                    )
                return visible, infrared, labels
    return None
