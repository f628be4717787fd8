"""YOLO-OBB: `class x1 y1 x2 y2 x3 y3 x4 y4` per line, coordinates as shares of the image's sides.

The layout is that of Ultralytics: images/PART and labels/PART beside each other, and a data.yaml
that names the classes, of which only the key `names` is read.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rsfuse.detection.data import Dataset, find_images
from rsfuse.detection.formats.assemble import Parsed, Row, Wanted, assemble, label_files
from rsfuse.errors import InputError
from rsfuse.ops.polygons import polygon_areas
from rsfuse.runs import atomic_path


def read(folder: Path, wanted: Wanted) -> Dataset:
    """Read the data set; image sizes come from the images.

    Raises:
        InputError: No label file, a line that is none of the format's, a label without an image, or
            an unknown class.
    """
    part = wanted.split or ""
    images = find_images(folder / "images" / part)
    files = label_files([folder / "labels" / part, folder], ".txt", None)
    names = class_names(folder)
    notes: Counter[str] = Counter()
    parsed = {}
    for path in files:
        if path.stem not in images:
            notes["labels without an image"] += 1
            continue
        parsed[path.stem] = parse(path, image_size(images[path.stem]), names, notes)
    return assemble(folder, parsed, images, wanted, known=names, notes=notes)


def parse(path: Path, size: tuple[int, int], names: Sequence[str], notes: Counter[str]) -> Parsed:
    """The objects of one label file of an image of (h, w)."""
    h, w = size
    rows: list[Row] = []
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        values = _numbers(fields)
        if len(values) != 9 or values[0] != int(values[0]) or values[0] < 0:
            raise InputError(
                f"{path}, line {number}: {line.strip()!r}",
                "a line is a class number and eight coordinates as shares of the image",
                "upright boxes (five fields) and key points are other formats",
            )
        corners = np.array(values[1:]).reshape(4, 2)
        if np.abs(corners).max() > 4:
            raise InputError(
                f"{path}, line {number}: coordinates up to {np.abs(corners).max():g}",
                "they are shares of the image's sides, about 0 to 1",
                "pixels are the DOTA format: --from dota",
            )
        corners = corners * (w, h)
        if polygon_areas(corners) <= 1e-9:
            notes["objects without area"] += 1
            continue
        label = int(values[0])
        name = names[label] if label < len(names) else f"class-{label}"
        rows.append((tuple(corners.reshape(8).tolist()), name, 0))
    return Parsed(rows, size=size)


def write(folder: Path, dataset: Dataset) -> None:
    """Write `folder`/labels and data.yaml; difficult objects are left out, as YOLO has no flag.

    Raises:
        InputError: An image has no known size.
    """
    for sample in dataset.samples:
        size = sample.size or (image_size(sample.image) if sample.image else None)
        if size is None:
            raise InputError(
                f"the size of {sample.name} is not known",
                "YOLO's coordinates are shares of it",
                "put the images beside the labels",
            )
        lines = []
        objects = sample.objects
        shares = objects.corners / (size[1], size[0])
        for corners, label, flag in zip(
            shares.reshape(-1, 8), objects.labels, objects.difficult, strict=True
        ):
            if flag == 0:
                lines.append(f"{label} " + " ".join(f"{value:.10g}" for value in corners))
        with atomic_path(folder / "labels" / f"{sample.name}.txt") as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    names = "".join(f"  {i}: {name}\n" for i, name in enumerate(dataset.classes))
    with atomic_path(folder / "data.yaml") as temporary:
        temporary.write_text(f"path: .\ntrain: images\nval: images\nnames:\n{names}", "utf-8")


def class_names(folder: Path) -> tuple[str, ...]:
    """Names of a data.yaml: a list in brackets, a list with dashes, or numbers with names."""
    path = next(iter(sorted(folder.glob("*.yaml")) + sorted(folder.glob("*.yml"))), None)
    if path is None:
        return ()
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    inline = re.search(r"^names:\s*\[(.*?)\]", text, re.MULTILINE | re.DOTALL)
    if inline:
        return tuple(_unquoted(part) for part in inline[1].split(",") if part.strip())
    block = re.search(r"^names:[^\n]*\n((?:[ \t]+[^\n]*\n?|-[^\n]*\n?|\s*\n)*)", text, re.MULTILINE)
    found: list[str] = []
    for line in (block[1] if block else "").splitlines():
        entry = re.match(r"\s*(?:-|\d+\s*:)\s*(.+?)\s*(?:#.*)?$", line)
        if entry:
            found.append(_unquoted(entry[1]))
    return tuple(found)


def image_size(path: Path) -> tuple[int, int]:
    """(h, w) of an image file."""
    from rsfuse.geo.raster import open_raster

    with open_raster(path) as source:
        return source.shape


def _unquoted(text: str) -> str:
    return text.strip().strip("'\"")


def _numbers(fields: Sequence[str]) -> list[float]:
    try:
        values = [float(field) for field in fields]
    except ValueError:
        return []
    return values if all(math.isfinite(value) for value in values) else []
