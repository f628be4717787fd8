"""COCO with polygons: one JSON file; the rotated box is the smallest around the segmentation."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rsfuse.detection.data import Dataset
from rsfuse.detection.formats.assemble import Parsed, Row, Wanted, assemble, images_of
from rsfuse.errors import InputError, RsfuseError
from rsfuse.ops.boxes import corners_of, smallest_box
from rsfuse.ops.polygons import polygon_areas
from rsfuse.runs import atomic_path, parse_json

IMAGES = ("images", "train", "val", "train2017", "val2017", ".")


def read(folder: Path, wanted: Wanted) -> Dataset:
    """Read a JSON file, or the one of a folder (of a part: the one whose name holds it).

    Raises:
        InputError: No such file, more than one, damaged, or an unknown class.
    """
    path = _file(folder, wanted.split)
    root = path.parent.parent if path.parent.name == "annotations" else path.parent
    content = _load(path)
    try:
        return _dataset(folder, root, content, wanted, path)
    except RsfuseError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{path} holds an entry that is not one of COCO: {type(error).__name__}: {error}",
            "images have id and file_name, annotations id, image_id, category_id and a shape, "
            "categories id and name",
            "correct the file, or write it again with the tool that made it",
        ) from error


def _dataset(
    folder: Path, root: Path, content: dict[str, Any], wanted: Wanted, path: Path
) -> Dataset:
    """The data set of a file's content."""
    names = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
    notes: Counter[str] = Counter()
    rows: dict[Any, list[Row]] = {entry["id"]: [] for entry in content["images"]}
    for number, entry in enumerate(content["annotations"]):
        where = f"{path}, annotation {entry.get('id', number)}"
        if entry.get("image_id") not in rows or entry.get("category_id") not in names:
            raise InputError(
                f"{where} names an image or a category that is not listed",
                "image_id and category_id point to entries of the file",
                "correct or remove it",
            )
        corners = _corners(entry, where)
        if corners is None:
            notes["objects without a shape"] += 1
            continue
        crowd = int(bool(entry.get("iscrowd", 0)) or bool(entry.get("difficult", 0)))
        rows[entry["image_id"]].append((corners, names[entry["category_id"]], crowd))
    parsed = {}
    images = images_of(root, IMAGES)
    for entry in content["images"]:
        file = root / str(entry["file_name"])
        stem = Path(str(entry["file_name"])).stem
        size = (int(entry["height"]), int(entry["width"])) if entry.get("height") else None
        image = file if os.path.isfile(file) else images.get(stem)  # False for impossible names
        parsed[stem] = Parsed(rows[entry["id"]], size=size, image=image)
    ordered = [names[key] for key in sorted(names)]
    return assemble(folder, parsed, {}, wanted, known=ordered, notes=notes)


def write(folder: Path, dataset: Dataset) -> None:
    """Write `folder`/annotations.json atomically; ids count from 1."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for sample in dataset.samples:
        number = len(images) + 1
        h, w = sample.size or (0, 0)
        name = sample.image.name if sample.image else sample.name
        images.append({"id": number, "file_name": name, "height": h, "width": w})
        objects = sample.objects
        for corners, label, flag in zip(
            objects.corners, objects.labels, objects.difficult, strict=True
        ):
            low, high = corners.min(axis=0), corners.max(axis=0)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(label) + 1,
                    "segmentation": [corners.reshape(8).tolist()],
                    "bbox": [*low.tolist(), *(high - low).tolist()],
                    "area": float(polygon_areas(corners)),
                    "iscrowd": 0,
                    "difficult": int(flag > 0),
                }
            )
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(dataset.classes)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    with atomic_path(folder / "annotations.json") as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")


def _file(folder: Path, split: str | None) -> Path:
    if folder.is_file():
        return folder
    found = sorted(folder.glob("*.json")) + sorted(folder.glob("annotations/*.json"))
    if split:
        found = [path for path in found if split in path.stem]
    if len(found) != 1:
        raise InputError(
            f"{folder} holds {len(found)} COCO files" + (f" of {split!r}" if split else ""),
            "one .json with images, annotations and categories is needed",
            "give the file itself",
        )
    return found[0]


def _load(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_text(encoding="utf-8-sig", errors="replace"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read: {error}", "a JSON file is needed", "check the file"
        ) from error
    wanted = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in wanted):
        raise InputError(
            f"{path} is no COCO file",
            f"it needs the lists {', '.join(wanted)}",
            "name the format with --from",
        )
    return content


def _corners(entry: dict[str, Any], where: str) -> tuple[float, ...] | None:
    shape = entry.get("segmentation")
    if isinstance(shape, list) and shape:
        parts = shape if isinstance(shape[0], list) else [shape]
        points = np.concatenate([_points(part, where) for part in parts])
        if len(parts) == 1 and len(points) == 4:
            return tuple(points.reshape(8).tolist())
        box = smallest_box(points)
        return None if box is None else tuple(corners_of(box[None]).reshape(8).tolist())
    box = entry.get("bbox")
    if isinstance(box, list) and len(box) == 4:
        x, y, w, h = _points(box, where).reshape(4)
        return (x, y, x + w, y, x + w, y + h, x, y + h) if w > 0 and h > 0 else None
    return None


def _points(values: Any, where: str) -> npt.NDArray[np.float64]:
    try:
        points = np.asarray(values, np.float64).reshape(-1, 2)
    except (TypeError, ValueError):
        points = np.full((1, 2), np.nan)
    if not np.isfinite(points).all():
        raise InputError(
            f"{where} has coordinates that are not numbers",
            "x1, y1, x2, y2, ... in pixels are needed",
            "correct or remove it",
        )
    return points
