"""Functions on odc-geo's GeoBox: the grid is CRS + transform + shape, and nothing of ours wraps it.

Pixel (0, 0) is the outer corner of the first pixel; points are (x, y), shapes (h, w).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.geobox import GeoBox

from rsfuse.errors import ConfigError, GridError, MissingCrsError, NoOverlapError

FloatArray = npt.NDArray[np.float64]

GRID_TOLERANCE_PX = 1e-3  # grids that differ by less are the same
MEMORY_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class Window(NamedTuple):
    """A rectangle of pixels; it may lie partly outside of its image.

    Attributes:
        x: First column.
        y: First row.
        w: Columns.
        h: Rows.
    """

    x: int
    y: int
    w: int
    h: int

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w)."""
        return self.h, self.w

    def clipped(self, shape: tuple[int, int]) -> Window:
        """The part inside an image of `shape`; empty (w or h 0) if there is none."""
        x0, y0 = min(max(self.x, 0), shape[1]), min(max(self.y, 0), shape[0])
        x1, y1 = min(max(self.x + self.w, x0), shape[1]), min(max(self.y + self.h, y0), shape[0])
        return Window(x0, y0, x1 - x0, y1 - y0)


def pixel_geobox(shape: tuple[int, int]) -> GeoBox:
    """The grid of an image without georeference: no CRS, positions are pixels."""
    return GeoBox(shape, Affine.identity(), None)


def apply_affine(affine: Affine, xy: npt.ArrayLike) -> FloatArray:
    """(N, 2) points through an affine transform."""
    points = np.asarray(xy, np.float64).reshape(-1, 2)
    linear = np.array([[affine.a, affine.b], [affine.d, affine.e]])
    return np.asarray(points @ linear.T + np.array([affine.c, affine.f]))


def pixel_mapping(src: GeoBox, dst: GeoBox) -> Callable[[FloatArray], FloatArray]:
    """A function from pixels of one grid to pixels of another, exact through both CRS.

    Points that a projection cannot reach become NaN.

    Raises:
        GridError: Only one of the grids has a CRS.
    """
    if (src.crs is None) != (dst.crs is None):
        raise GridError(
            "one of the two rasters has a CRS and the other has none",
            "Their positions on the ground cannot be compared.",
            "Assign the missing CRS (gdal_edit.py -a_srs EPSG:...), or match without georeference.",
        )
    to_map, to_pixel = src.affine, ~dst.affine
    if src.crs == dst.crs:
        direct = to_pixel * to_map
        return lambda xy: apply_affine(direct, xy)

    from pyproj import Transformer

    transformer = Transformer.from_crs(str(src.crs), str(dst.crs), always_xy=True)

    def through(xy: FloatArray) -> FloatArray:
        ground = apply_affine(to_map, xy)
        x, y = transformer.transform(ground[:, 0], ground[:, 1])
        there = np.stack([np.asarray(x, np.float64), np.asarray(y, np.float64)], axis=1)
        there[~np.isfinite(there).all(axis=1)] = np.nan
        return apply_affine(to_pixel, there)

    return through


def gsd_m(geobox: GeoBox) -> float:
    """Ground sampling distance in metres at the centre: the geometric mean of both axes.

    Geographic grids and map units other than the metre are converted on the ellipsoid.

    Raises:
        MissingCrsError: The grid has no CRS.
    """
    if geobox.crs is None:
        raise MissingCrsError(
            "the raster has no CRS",
            "A distance in metres needs one.",
            "Assign it (gdal_edit.py -a_srs EPSG:...), or give distances in pixels.",
        )
    affine = geobox.affine
    height, width = geobox.shape
    if not geobox.crs.geographic:
        unit = _metres_per_unit(geobox)
        return math.sqrt(abs(affine.determinant)) * unit

    from pyproj import CRS

    geod = CRS(str(geobox.crs)).get_geod()
    centre = np.array([[width / 2, height / 2]])
    lengths = []
    for step in ((1.0, 0.0), (0.0, 1.0)):
        a = apply_affine(affine, centre - np.array(step) / 2)[0]
        b = apply_affine(affine, centre + np.array(step) / 2)[0]
        lengths.append(geod.inv(a[0], a[1], b[0], b[1])[2])
    return float(math.sqrt(lengths[0] * lengths[1]))


def _metres_per_unit(geobox: GeoBox) -> float:
    from pyproj import CRS

    axes = CRS(str(geobox.crs)).axis_info
    return float(axes[0].unit_conversion_factor) if axes else 1.0


def same_grid(a: GeoBox, b: GeoBox) -> bool:
    """Whether two grids are equal to within `GRID_TOLERANCE_PX` at every corner."""
    if tuple(a.shape) != tuple(b.shape) or a.crs != b.crs:
        return False
    height, width = a.shape
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], float)
    gap = apply_affine(~b.affine * a.affine, corners) - corners
    return bool(np.abs(gap).max() < GRID_TOLERANCE_PX)


def integer_ratio(fine: GeoBox, coarse: GeoBox) -> int:
    """How many fine pixels lie along one coarse pixel, both grids sharing corners.

    Raises:
        GridError: Other CRS, a ratio that is no integer, or corners that do not coincide.
    """
    if fine.crs != coarse.crs:
        raise GridError(
            f"the grids have different CRS: {fine.crs} and {coarse.crs}",
            "A ratio of pixel sizes needs one CRS.",
            "Resample one onto the other's CRS first.",
        )
    step = ~fine.affine * coarse.affine
    ratio = round(step.a)
    turned = max(abs(step.b), abs(step.d))
    height, width = coarse.shape
    drift = max(abs(step.a - ratio) * width, abs(step.e - ratio) * height, turned * width)
    if ratio < 1 or drift > 0.5:
        raise GridError(
            f"one pixel of the coarse grid is {step.a:.4f} x {step.e:.4f} pixels of the fine grid",
            "The ratio must be a whole number of at least 1, the same on both axes.",
            "Resample the coarse raster, e.g. gdalwarp -tr with a multiple of the fine pixel size.",
        )
    if max(abs(step.c - round(step.c)), abs(step.f - round(step.f))) > 0.05:
        raise GridError(
            f"the corners are off by ({step.c % 1:.2f}, {step.f % 1:.2f}) fine pixels",
            "Pixel corners of both grids must coincide.",
            "Resample with aligned pixels, e.g. gdalwarp -tap.",
        )
    return int(ratio)


def overlap(a: GeoBox, b: GeoBox) -> Window:
    """The pixels of `a` that `b` covers, as a bounding window.

    Raises:
        NoOverlapError: They share no ground.
        GridError: Only one has a CRS.
    """
    height, width = b.shape
    edge = np.linspace(0, 1, 17)
    zero, one = np.zeros(17), np.ones(17)
    border = np.concatenate(
        [np.stack(p, axis=1) for p in ((edge, zero), (edge, one), (zero, edge), (one, edge))]
    ) * np.array([width, height])
    there = pixel_mapping(b, a)(border)
    there = there[np.isfinite(there).all(axis=1)]
    if len(there):
        low, high = np.floor(there.min(axis=0) + 1e-6), np.ceil(there.max(axis=0) - 1e-6)
        box = Window(*(int(v) for v in (*low, *(high - low)))).clipped(
            (int(a.shape[0]), int(a.shape[1]))
        )
        if box.w > 0 and box.h > 0:
            return box
    raise NoOverlapError(
        f"the rasters share no ground: {_bounds(a)} and {_bounds(b)}",
        "They need to overlap.",
        "Check the CRS and the geotransform of both with rsfuse info.",
    )


def _bounds(geobox: GeoBox) -> str:
    box = geobox.boundingbox
    return f"[{box.left:.6g}, {box.bottom:.6g}, {box.right:.6g}, {box.top:.6g}] in {geobox.crs}"


def window_geobox(geobox: GeoBox, window: Window) -> GeoBox:
    """The grid of a window, which may reach beyond its image."""
    affine = geobox.affine * Affine.translation(window.x, window.y)
    return GeoBox((window.h, window.w), affine, geobox.crs)


def parse_memory(text: str) -> int:
    """Bytes of a size such as "2GB", "512 MB" or "1.5GiB".

    Raises:
        ConfigError: Not a size, or not above zero.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if found is not None:
        number, unit, binary = float(found[1]), found[2].upper(), bool(found[3])
        factor = 1024 ** "_KMGT".index(unit) if binary and unit else MEMORY_UNITS[unit]
        if number * factor >= 1:
            return int(number * factor)
    raise ConfigError(
        f"{text!r} is not an amount of memory",
        "It is a number with a unit: KB, MB, GB, TB or KiB, MiB, GiB, TiB.",
        "For example --memory 2GB.",
    )
