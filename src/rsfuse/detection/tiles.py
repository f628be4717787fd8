"""Tiles of a data set on disk and results of tiles put together, for tools that work on tiles.

rsfuse itself cuts windows on the fly and needs neither. Two dialects of tile names look alike:

    devkit   NAME__RATE__X___Y      the image was resized by RATE, X and Y are resized pixels
    toolkit  NAME__WINDOW__X___Y    a window of so many original pixels at X and Y (BboxToolkit)
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from rsfuse.detection.augment import visible_share
from rsfuse.detection.data import Dataset, Objects, Sample
from rsfuse.detection.results import Detections
from rsfuse.errors import InputError
from rsfuse.ops.boxes import from_corners
from rsfuse.ops.nms import rotated_nms

Dialect = Literal["devkit", "toolkit"]

KEPT_SHARE = 0.7  # of an object's area; what shows less is marked with 2
LARGEST_RATE = 16.0  # a number above it is a window, not a rate

_NAME = re.compile(r"^(.+)__(\d+(?:\.\d+)?)__(\d+)___(\d+)$")


class TileName(NamedTuple):
    """What the name of a tile says.

    Attributes:
        image: Stem of the image.
        rate: By how much the image was enlarged before it was cut.
        x: Left edge, in pixels of the image.
        y: Upper edge.
        dialect: How it is written.
    """

    image: str
    rate: float
    x: float
    y: float
    dialect: Dialect


def parse_name(name: str) -> TileName | None:
    """Read the name of a tile; None where it is none."""
    match = _NAME.match(name)
    if match is None:
        return None
    number, x, y = float(match[2]), float(match[3]), float(match[4])
    if number < LARGEST_RATE:
        return TileName(match[1], number, x / number, y / number, "devkit")
    return TileName(match[1], 1.0, x, y, "toolkit")


def starts(length: int, size: int, step: int) -> list[int]:
    """Where tiles begin along a side: the last one is moved back to end at the border."""
    last = max(length - size, 0)
    return [*range(0, last, step), last]


def split(
    dataset: Dataset,
    folder: Path,
    *,
    size: int = 1024,
    overlap: int = 200,
    dialect: Dialect = "toolkit",
) -> Dataset:
    """Write tiles of all images as GeoTIFF into `folder`/images.

    An object is in every tile that shows any of it; whole, never clipped. Where less than 70 % of
    it shows, its flag becomes 2, so that scores and trainings pass it over.

    Returns:
        The tiles as a data set: write it with `write_dataset`.

    Raises:
        InputError: An overlap as large as the tile, or no images.
    """
    from rsfuse.geo.grid import Window
    from rsfuse.geo.raster import open_raster
    from rsfuse.geo.write import write_cog

    if not 0 <= overlap < size:
        raise InputError(
            f"an overlap of {overlap} px with tiles of {size} px",
            "the overlap is smaller than the tile",
            "for example --size 1024 --overlap 200",
        )
    samples = []
    for sample in dataset.samples:
        if sample.image is None:
            continue
        with open_raster(sample.image) as source:
            h, w = source.shape
            for y in starts(h, size, size - overlap):
                for x in starts(w, size, size - overlap):
                    middle = "1" if dialect == "devkit" else str(size)
                    name = f"{sample.name}__{middle}__{x}___{y}"
                    raster = source.read(Window(x, y, min(size, w), min(size, h)))
                    image = folder / "images" / f"{name}.tif"
                    write_cog(image, raster, dtype=source.dtype, overviews=False)
                    objects = _shown(sample.objects, x, y, size)
                    samples.append(
                        Sample(name, image, objects, size=raster.shape, gsd_m=sample.gsd_m)
                    )
    if not samples:
        raise InputError(
            "the data set holds no images", "tiles are cut from images", "check the path"
        )
    return Dataset(dataset.classes, tuple(samples))


def _shown(objects: Objects, x: int, y: int, size: int) -> Objects:
    moved = objects.corners - (x, y)
    share = visible_share(moved, size)
    seen = share > 0
    flags = np.where(share >= KEPT_SHARE, objects.difficult, 2)
    headings = None if objects.headings is None else objects.headings[seen]
    return Objects(moved[seen], objects.labels[seen], flags[seen], headings)


def merge(tiles: Sequence[Detections], *, nms: float = 0.1) -> list[Detections]:
    """Detections of tiles as those of whole images.

    Args:
        tiles: One per tile, named in either dialect.
        nms: Of two boxes of a class that overlap by more (IoU), the better one stays.

    Raises:
        InputError: A name is not that of a tile.
    """
    groups: dict[str, list[tuple[TileName, Detections]]] = defaultdict(list)
    for tile in tiles:
        name = parse_name(tile.name)
        if name is None:
            raise InputError(
                f"{tile.name} is not the name of a tile",
                "tiles are named IMAGE__RATE__X___Y or IMAGE__WINDOW__X___Y",
                "results of whole images need no merging",
            )
        groups[name.image].append((name, tile))
    return [_joined(image, parts, nms) for image, parts in sorted(groups.items())]


def _joined(image: str, parts: list[tuple[TileName, Detections]], nms: float) -> Detections:
    corners = np.concatenate([t.corners / n.rate + (n.x, n.y) for n, t in parts])
    scores = np.concatenate([t.scores for _, t in parts])
    labels = np.concatenate([t.labels for _, t in parts])
    classes = parts[0][1].classes
    boxes: npt.NDArray[np.float64] = from_corners(corners).reshape(-1, 5)
    kept = rotated_nms(boxes, scores, nms, labels)
    order = kept[np.argsort(-scores[kept], kind="stable")]
    most = corners.reshape(-1, 2).max(axis=0, initial=1.0)
    shape = (int(np.ceil(most[1])), int(np.ceil(most[0])))
    return Detections(
        corners[order], scores[order], labels[order], classes, shape, None, None, image
    )
