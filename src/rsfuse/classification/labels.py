"""Labels of land cover: rasters of any integer type or polygons, as class numbers from 0."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from rsfuse.engine.bundle import ClassInfo
from rsfuse.errors import GridError, InputError
from rsfuse.geo.grid import overlap, pixel_mapping, same_grid
from rsfuse.geo.raster import RasterSource, open_raster
from rsfuse.geo.vectors import burn, column_of, read_features
from rsfuse.geo.warp import read_mapped
from rsfuse.runs import read_json

log = logging.getLogger(__name__)

UNLABELLED = -1

VECTOR_SUFFIXES = (".gpkg", ".geojson", ".json", ".shp", ".fgb", ".kml", ".parquet")

# Colours for classes without one, told apart by people with colour vision deficiencies too (after
# Paul Tol's "muted" and "light" schemes).
PALETTE = (
    "#332288", "#117733", "#DDCC77", "#CC6677", "#88CCEE", "#AA4499", "#44AA99", "#882255",
    "#999933", "#EE8866", "#77AADD", "#BBCC33", "#FFAABB", "#99DDFF", "#EEDD88", "#AAAA00",
)  # fmt: skip

# Colours that people expect of some names.
NAMED = {
    "water": "#2f6fb7",
    "forest": "#1b6b2f",
    "woodland": "#1b6b2f",
    "vegetation": "#4c9a3f",
    "grassland": "#9cc65a",
    "herbaceous": "#b9d46c",
    "shrubland": "#b3a14a",
    "agriculture": "#e0c95b",
    "cropland": "#e0c95b",
    "developed": "#b5443c",
    "building": "#c0392b",
    "road": "#5a5f66",
    "paved": "#6b6f76",
    "bare ground": "#c8b08a",
    "sediment": "#c8b08a",
}


@dataclass(frozen=True, eq=False)
class Labels:
    """Class numbers on a grid.

    Attributes:
        numbers: (H, W) int64 from 0, -1 where there is no label.
        classes: Name and colour of each.
        groups: (H, W) number of the polygon, -1 outside; None for rasters.
    """

    numbers: npt.NDArray[np.int64]
    classes: tuple[ClassInfo, ...]
    groups: npt.NDArray[np.int64] | None = None

    def counts(self) -> npt.NDArray[np.int64]:
        """(K,) pixels of each class."""
        known = self.numbers[self.numbers >= 0]
        return np.bincount(known, minlength=len(self.classes)).astype(np.int64)

    def as_classes(self, classes: Sequence[ClassInfo], source: str) -> "Labels":
        """The same labels numbered as `classes`.

        Raises:
            InputError: A class occurs that is not among them; the error names it.
        """
        names = [item.name for item in classes]
        used = self.counts() > 0
        unknown = [
            c.name for c, u in zip(self.classes, used, strict=True) if u and c.name not in names
        ]
        if unknown:
            raise InputError(
                f"{source} holds the class {unknown[0]!r}",
                f"known are {', '.join(names)}",
                "leave these labels out, or train a model that knows the class",
            )
        table = np.array(
            [names.index(c.name) if c.name in names else UNLABELLED for c in self.classes]
            + [UNLABELLED],
            np.int64,
        )
        return Labels(table[self.numbers], tuple(classes), self.groups)


def read_labels(
    path: str | Path,
    geobox: GeoBox,
    *,
    column: str = "class",
    names: Mapping[int, str] | None = None,
    nodata: float | None = None,
) -> Labels:
    """Read labels onto a grid.

    A raster on another grid is sampled at its nearest pixel. Names come from `names`, a
    `classes.json` beside the file, the `class_names` tag of the raster, or are the values.

    Args:
        path: A raster, or a vector file of polygons.
        geobox: The grid that labels are wanted on.
        column: Column of polygons that holds the class: a number or a name.
        names: Value -> name.
        nodata: Value of a raster that means "no label", in place of what the file says.

    Raises:
        InputError: No label on the grid, or no such column.
        GridError: The labels cannot be placed on the grid.
        RasterError: The file is missing or damaged.
    """
    path = Path(path)
    known = dict(names) if names is not None else _names_beside(path)
    if path.suffix.lower() in VECTOR_SUFFIXES:
        return _from_polygons(path, geobox, column, known)
    with open_raster(path, nodata=nodata) as source:
        values, valid = _on_grid(source, geobox)
        known = known or _names_in(source)
        colours = dict(source.colours)
    whole = np.rint(values).astype(np.int64)
    # "0: unlabelled" and the like are no class.
    empty = [value for value, name in known.items() if name.lower() in ("unlabelled", "unlabeled")]
    valid = valid & ~np.isin(whole, empty)
    present = [int(v) for v in np.unique(whole[valid])]
    if not present:
        raise InputError(
            f"{path} holds no label on the image",
            "at least one labelled pixel is needed",
            "check its nodata value and its place",
        )
    classes = tuple(
        ClassInfo(name=known.get(v, str(v)), color=_colour(known.get(v, str(v)), i, colours.get(v)))
        for i, v in enumerate(present)
    )
    numbers = np.where(valid, np.searchsorted(present, whole), UNLABELLED)
    return Labels(numbers.astype(np.int64), classes)


def _from_polygons(path: Path, geobox: GeoBox, column: str, names: Mapping[int, str]) -> Labels:
    features = read_features(path, geobox)
    values = column_of(features, column, path)
    given = np.array([not (v is None or v != v) for v in values], bool)
    if not given.all():
        log.warning("%s: %d polygons without a class are left out", path, int((~given).sum()))
    values = values[given]
    shapes = tuple(s for s, known in zip(features.shapes, given, strict=True) if known)
    texts = [names.get(_whole(v), str(v)) if _is_whole(v) else str(v) for v in values]
    found = sorted(set(texts), key=lambda t: (not t.isdigit(), int(t) if t.isdigit() else 0, t))
    if names:
        order = list(names.values())
        found = sorted(found, key=lambda t: (order.index(t) if t in order else len(order), t))
    shape = (int(geobox.shape[0]), int(geobox.shape[1]))
    numbers = burn(
        shapes,
        np.array([found.index(t) for t in texts], np.int64),
        shape,
        fill=UNLABELLED,
    )
    if not (numbers >= 0).any():
        raise InputError(
            f"no polygon of {path} covers a pixel centre of the image",
            "at least one labelled pixel is needed",
            "check the CRS of both with rsfuse info",
        )
    groups = burn(shapes, np.arange(len(texts)), shape, fill=UNLABELLED)
    classes = tuple(ClassInfo(name=t, color=_colour(t, i, None)) for i, t in enumerate(found))
    return Labels(numbers.astype(np.int64), classes, groups.astype(np.int64))


def _on_grid(
    source: RasterSource, geobox: GeoBox
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """First band and mask on a grid, nearest pixel."""
    shape = (int(geobox.shape[0]), int(geobox.shape[1]))
    if source.geobox.crs is None or geobox.crs is None:
        if source.shape != shape:
            raise GridError(
                f"the labels {source.name} are {source.shape} pixels and the map {shape}",
                "without a CRS on both they must be of one size",
                "give labels of the same size, or georeferenced ones",
            )
        raster = source.read(bands=[1])
    elif same_grid(source.geobox, geobox):
        raster = source.read(bands=[1])
    else:
        overlap(geobox, source.geobox)
        mapping = pixel_mapping(geobox, source.geobox)
        raster = read_mapped(source, shape, mapping, bands=[1], resampling="nearest")
    return raster.data[0], raster.valid


def _names_beside(path: Path) -> dict[int, str]:
    listed = path.with_name("classes.json")
    if not listed.is_file():
        return {}
    content = read_json(listed)
    if not isinstance(content, dict):
        return {}
    return {int(value): str(name) for value, name in content.items() if str(value).isdigit()}


def _names_in(source: RasterSource) -> dict[int, str]:
    return dict(source.class_names)


def _colour(name: str, index: int, given: Any) -> str:
    if name.lower() in NAMED:
        return NAMED[name.lower()]
    if given is not None:
        red, green, blue = (int(v) for v in given[:3])
        return f"#{red:02x}{green:02x}{blue:02x}"
    return PALETTE[index % len(PALETTE)]


def _is_whole(value: Any) -> bool:
    try:
        return float(value) == int(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def _whole(value: Any) -> int:
    return int(float(value))
