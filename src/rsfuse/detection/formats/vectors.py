"""Labels as polygons over a georeferenced image: GeoPackage, GeoJSON, Shapefile and the like.

`scene.tif` beside `scene.gpkg` (or .geojson, .shp), or one such pair given by the label file. The
class is in the column `class`; a column `difficult` is read where there is one. A polygon that is
no quadrilateral becomes the smallest rotated box around it, in pixels of the image.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rsfuse.detection.data import IMAGE_SUFFIXES, Dataset
from rsfuse.detection.formats.assemble import Parsed, Row, Wanted, assemble
from rsfuse.detection.results import Detections
from rsfuse.errors import InputError
from rsfuse.ops.boxes import corners_of, from_corners, smallest_box

SUFFIXES = (".gpkg", ".geojson", ".shp", ".fgb")


def read(folder: Path, wanted: Wanted) -> Dataset:
    """Read every label file that has an image of the same name.

    Raises:
        InputError: No such pair, a label file without the column `class`, or a missing CRS.
    """
    root = folder.parent if folder.is_file() else folder / (wanted.split or "")
    files = [folder] if folder.is_file() else [p for s in SUFFIXES for p in root.glob(f"*{s}")]
    parsed: dict[str, Parsed] = {}
    images: dict[str, Path] = {}
    notes: Counter[str] = Counter()
    for path in sorted(files):
        image = next(
            (path.with_suffix(s) for s in IMAGE_SUFFIXES if path.with_suffix(s).is_file()), None
        )
        if image is None:
            notes["labels without an image"] += 1
            continue
        images[path.stem] = image
        parsed[path.stem] = parse(path, image, notes)
    if not parsed:
        raise InputError(
            f"{folder} holds no labels with an image of the same name",
            f"{', '.join(SUFFIXES)} beside a raster are needed",
            "name both alike, for example harbour.tif and harbour.gpkg",
        )
    return assemble(folder, parsed, images, wanted, notes=notes)


def parse(path: Path, image: Path, notes: Counter[str]) -> Parsed:
    """The objects over one image."""
    from rsfuse.geo.grid import gsd_m
    from rsfuse.geo.raster import open_raster
    from rsfuse.geo.vectors import column_of, points_of, read_features

    with open_raster(image) as source:
        geobox, size, placed = source.geobox, source.shape, source.is_georeferenced
    if not placed:
        raise InputError(
            f"{image} has no georeference",
            "labels in map coordinates need one",
            "georeference it, or use labels in pixels: --from dota",
        )
    features = read_features(path, geobox)
    names = column_of(features, "class", path)
    flags = features.columns.get("difficult")
    rows: list[Row] = []
    for i, polygon in enumerate(features.shapes):
        points = points_of(polygon)
        box = points if len(points) == 4 else _boxed(points)
        if box is None:
            notes["objects without area"] += 1
            continue
        flag = 0 if flags is None else int(bool(flags[i]))
        rows.append((tuple(box.reshape(8).tolist()), str(names[i]), flag))
    return Parsed(rows, gsd_m(geobox), size)


def write(folder: Path, dataset: Dataset) -> None:
    """Write a GeoPackage per image, in the CRS of the image.

    Raises:
        InputError: An image is missing or has no georeference.
    """
    from rsfuse.geo.raster import open_raster

    for sample in dataset.samples:
        if sample.image is None:
            raise InputError(
                f"{sample.name} has no image", "its georeference is needed", "add the image"
            )
        with open_raster(sample.image) as source:
            geobox = source.geobox if source.is_georeferenced else None
            shape = source.shape
        if geobox is None:
            raise InputError(
                f"{sample.image} has no georeference",
                "labels in map coordinates need one",
                "choose a format in pixels, such as dota",
            )
        objects = sample.objects
        found = Detections.of_boxes(
            from_corners(objects.corners).reshape(-1, 5),
            np.ones(len(objects)),
            objects.labels,
            dataset.classes,
            shape,
            geobox,
            sample.name,
        )
        found.to_geopackage(folder / f"{sample.name}.gpkg")


def _boxed(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64] | None:
    box = smallest_box(points) if len(points) >= 3 else None
    return None if box is None else np.asarray(corners_of(box[None])[0])
