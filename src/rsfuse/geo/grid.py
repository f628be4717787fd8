"""Grids: how pixels of one raster relate to pixels of another and to the ground.

A grid is odc-geo's `GeoBox`. Pixel (0, 0) is the outer corner of the first pixel, points are
(x, y). A raster without georeference has the grid of its own pixels: no CRS, identity
transform.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyproj
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox

from rsfuse.errors import GridError, InputError, MissingCrsError, NoOverlapError

Points = npt.NDArray[np.float64]
PointMapping = Callable[[Points], Points]

# Two grids are the same when no corner moves by more than this share of a pixel.
_SAME_PX = 1e-3
_TOUCHING_PX = 1e-6

# Points along each edge of an outline that is carried to another CRS.
_OUTLINE_POINTS = 65

# Points along each side of a lattice that checks an outline, and stands in for it where it fails.
_LATTICE_POINTS = 129

# Up to this distortion a map projection counts as true to scale, and the pixel size is the number
# that the file states: UTM and national grids keep within it, Web Mercator does not.
_TRUE_TO_SCALE = 2e-3

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_UNITS = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


class Window(NamedTuple):
    """A rectangle of pixels; may lie partly outside the raster.

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

    def intersection(self, other: "Window") -> "Window":
        """The common part; width or height are zero where there is none."""
        x, y = max(self.x, other.x), max(self.y, other.y)
        right = min(self.x + self.w, other.x + other.w)
        bottom = min(self.y + self.h, other.y + other.h)
        return Window(x, y, max(0, right - x), max(0, bottom - y))

    def clipped(self, shape: tuple[int, int]) -> "Window":
        """The part inside a raster of the shape."""
        return self.intersection(Window(0, 0, shape[1], shape[0]))

    def slices_in(self, outer: "Window") -> tuple[slice, slice]:
        """Rows and columns of this window in an array that holds `outer`."""
        x, y = self.x - outer.x, self.y - outer.y
        return slice(y, y + self.h), slice(x, x + self.w)


def pixel_geobox(shape: tuple[int, int]) -> GeoBox:
    """The grid of an image without georeference: its own pixels."""
    return GeoBox((shape[0], shape[1]), Affine.identity(), None)


def window_geobox(geobox: GeoBox, window: Window) -> GeoBox:
    """The grid of a window of a raster."""
    affine = compose(geobox.affine, Affine.translation(window.x, window.y))
    return GeoBox((window.h, window.w), affine, geobox.crs)


def rescaled(geobox: GeoBox, factor: float) -> GeoBox:
    """The same ground with `factor` times as many pixels along each axis, rounded down."""
    h, w = (max(1, int(side * factor + 1e-6)) for side in geobox.shape)
    return GeoBox((h, w), compose(geobox.affine, Affine.scale(1.0 / factor)), geobox.crs)


def apply_affine(affine: Affine, points: Points) -> Points:
    """(N, 2) points through an affine transform."""
    x, y = points[:, 0], points[:, 1]
    return np.column_stack(
        (affine.a * x + affine.b * y + affine.c, affine.d * x + affine.e * y + affine.f)
    )


def compose(outer: Affine, inner: Affine) -> Affine:
    """The affine transform that applies `inner`, then `outer`.

    Written out because releases of the affine package disagree on the operator.
    """
    a, b, c, d, e, f = tuple(outer)[:6]
    p, q, r, s, t, u = tuple(inner)[:6]
    return Affine(
        a * p + b * s, a * q + b * t, a * r + b * u + c,
        d * p + e * s, d * q + e * t, d * r + e * u + f,
    )  # fmt: skip


@dataclass(frozen=True)
class _PixelMapping:
    """Pixels -> map -> other CRS -> pixels; NaN where a projection has no answer.

    Attributes:
        to_map: Pixels -> map.
        between_crs: Map -> other map; None where they are the same.
        to_pixels: Other map -> pixels.
        circle: Longitude of the middle of the destination, and of a full turn, in its units. The
            same place has many longitudes; the one that is nearest to the middle is taken.
    """

    to_map: Affine
    between_crs: pyproj.Transformer | None
    to_pixels: Affine
    circle: tuple[float, float] | None = None

    def __call__(self, xy: Points) -> Points:
        points = np.asarray(xy, np.float64).reshape(-1, 2)
        if self.between_crs is None and self.circle is None:
            return apply_affine(compose(self.to_pixels, self.to_map), points)
        moved = apply_affine(self.to_map, points)
        if self.between_crs is not None:
            x, y = self.between_crs.transform(moved[:, 0], moved[:, 1])
            moved = np.column_stack((x, y))
            moved[~np.isfinite(moved).all(axis=1)] = np.nan
        if self.circle is not None:
            middle, turn = self.circle
            turns = (moved[:, 0] - middle) / turn
            # A place half a turn away keeps its longitude: both edges of a world map are its edges.
            moved[:, 0] -= turn * np.where(np.abs(turns) > 0.5 + 1e-12, np.round(turns), 0.0)
        return apply_affine(self.to_pixels, moved)


def pixel_mapping(src: GeoBox, dst: GeoBox) -> PointMapping:
    """The mapping from pixels of one grid to pixels of another, through both CRS.

    Returns:
        A function of (N, 2) points. It is exact, can be pickled and used by several threads.
        Longitudes of -180 to 180 and of 0 to 360 degrees are the same places.

    Raises:
        GridError: Only one of the grids has a CRS, or nothing leads from one CRS to the other.
    """
    if (src.crs is None) != (dst.crs is None):
        first, second = ("first", "second") if src.crs is None else ("second", "first")
        raise GridError(
            f"the {first} raster has no CRS and the {second} one has",
            "their pixels cannot be related through the ground",
            "give the missing one with crs= and transform=, or drop the georeference of both",
        )
    between_crs = None
    if src.crs is not None and dst.crs is not None and src.crs != dst.crs:
        between_crs = between(src.crs.proj, dst.crs.proj)
    circle = _circle(dst)
    if between_crs is None and _circle(src) is None:
        circle = None
    return _PixelMapping(src.affine, between_crs, ~dst.affine, circle)


def between(src: pyproj.CRS, dst: pyproj.CRS) -> pyproj.Transformer:
    """The transformation of (x, y) from one CRS to another.

    Raises:
        GridError: There is none.
    """
    try:
        return pyproj.Transformer.from_crs(src, dst, always_xy=True)
    except pyproj.exceptions.ProjError as error:
        raise GridError(
            f"no transformation leads from the CRS {src.name!r} to {dst.name!r}",
            "one of them is local to its own drawing, or lies on another planet",
            "give the true one with crs=, or drop the georeference of both",
        ) from error


def to_lonlat(geobox: GeoBox, points: Points) -> Points:
    """Longitudes and latitudes (WGS 84, degrees) of pixel positions (N, 2).

    Raises:
        MissingCrsError: The grid has no CRS.
    """
    if geobox.crs is None:
        raise MissingCrsError(
            "the raster has no CRS", "its place on the earth is unknown", "give one with crs="
        )
    ground = apply_affine(geobox.affine, points)
    degrees = between(geobox.crs.proj, pyproj.CRS("OGC:CRS84")).transform(*ground.T)
    return np.column_stack(degrees)


def footprint(geobox: GeoBox) -> dict[str, Any]:
    """Place of a raster as STAC says it; empty without a CRS.

    Returns:
        "geometry" (a GeoJSON polygon of the corners, degrees), "bbox", and "properties" with the
        grid (extension `projection`).
    """
    if geobox.crs is None:
        return {}
    h, w = (int(side) for side in geobox.shape)
    corners = np.array([[0, h], [w, h], [w, 0], [0, 0], [0, h]], np.float64)
    ring = to_lonlat(geobox, corners).round(7)
    code = geobox.crs.to_epsg()
    return {
        "geometry": {"type": "Polygon", "coordinates": [ring.tolist()]},
        "bbox": [*ring.min(axis=0).tolist(), *ring.max(axis=0).tolist()],
        "properties": {
            "proj:code": None if code is None else f"EPSG:{code}",
            "proj:shape": [h, w],
            "proj:transform": [float(value) for value in tuple(geobox.affine)[:6]],
        },
    }


def _circle(geobox: GeoBox) -> tuple[float, float] | None:
    """Longitude of the middle and of a full turn; None where x is no longitude.

    A grid that is wider than the Earth has pixel numbers under the name of degrees.
    """
    if geobox.crs is None or not geobox.crs.geographic:
        return None
    turn = 2 * math.pi / _metres_per_unit(geobox.crs.proj)  # of an angle it is radians per unit
    box = geobox.extent.boundingbox
    if box.right - box.left > turn * (1 + 1e-6):
        return None
    return (box.left + box.right) / 2, turn


def gsd_m(geobox: GeoBox) -> float:
    """Ground sampling distance at the centre: metres per pixel, the geometric mean of the axes.

    Raises:
        MissingCrsError: The grid has no CRS.
    """
    if geobox.crs is None:
        raise MissingCrsError(
            "the raster has no CRS",
            "without one the size of a pixel on the ground is unknown",
            "give it with crs= and transform=",
        )
    height, width = (int(side) for side in geobox.shape)
    centre = np.array([width / 2, height / 2])
    ends = centre + np.array([[-0.5, 0], [0.5, 0], [0, -0.5], [0, 0.5]])
    on_map = apply_affine(geobox.affine, ends)
    crs = geobox.crs.proj
    geographic = crs.geodetic_crs
    ellipsoid = crs.get_geod()
    if geographic is None or ellipsoid is None:  # a local engineering CRS: no ellipsoid beneath it
        return math.sqrt(abs(geobox.affine.determinant)) * _metres_per_unit(crs)
    to_lonlat = between(crs, geographic)
    lon, lat = to_lonlat.transform(on_map[:, 0], on_map[:, 1])
    if not (np.isfinite(lon).all() and np.isfinite(lat).all()):
        raise GridError(
            f"the centre of the raster lies outside the domain of {geobox.crs}",
            "the size of its pixels on the ground is undefined there",
            "check the geotransform and the CRS with rsfuse info",
        )
    _, _, distance = ellipsoid.inv(lon[::2], lat[::2], lon[1::2], lat[1::2])
    ground = math.sqrt(float(distance[0]) * float(distance[1]))
    if crs.is_projected:
        stated = math.sqrt(abs(geobox.affine.determinant)) * _metres_per_unit(crs)
        if abs(ground / stated - 1) <= _TRUE_TO_SCALE:
            return stated
    return ground


def ground_segments(
    geobox: GeoBox, start: Points, end: Points
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Length in metres and azimuth in degrees from north, in [0, 360), of segments between pixels.

    Both are measured on the ellipsoid, so they hold in any CRS, near the poles and for rotated
    geotransforms.

    Args:
        geobox: Grid with a CRS.
        start: (N, 2) pixels, corner convention.
        end: (N, 2) pixels.

    Raises:
        MissingCrsError: The grid has no CRS.
    """
    if geobox.crs is None:
        raise MissingCrsError(
            "the raster has no CRS",
            "without one lengths on the ground are unknown",
            "give it with crs= and transform=",
        )
    crs = geobox.crs.proj
    first, last = (apply_affine(geobox.affine, points) for points in (start, end))
    geographic, ellipsoid = crs.geodetic_crs, crs.get_geod()
    if geographic is None or ellipsoid is None:
        step = (last - first) * _metres_per_unit(crs)
        azimuth = np.degrees(np.arctan2(step[:, 0], step[:, 1])) % 360.0
        return np.hypot(step[:, 0], step[:, 1]), azimuth
    to_lonlat = between(crs, geographic)
    lon0, lat0 = to_lonlat.transform(first[:, 0], first[:, 1])
    lon1, lat1 = to_lonlat.transform(last[:, 0], last[:, 1])
    azimuth, _, length = ellipsoid.inv(lon0, lat0, lon1, lat1)
    return np.asarray(length, np.float64), np.asarray(azimuth, np.float64) % 360.0


def same_grid(a: GeoBox, b: GeoBox) -> bool:
    """Whether two grids have the same CRS, shape and, to a thousandth of a pixel, place."""
    if tuple(a.shape) != tuple(b.shape) or a.crs != b.crs:
        return False
    height, width = (int(side) for side in a.shape)
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]], np.float64)
    moved = apply_affine(compose(~b.affine, a.affine), corners)
    return bool(np.abs(moved - corners).max() < _SAME_PX)


def integer_ratio(fine: GeoBox, coarse: GeoBox) -> int:
    """How many fine pixels make up the side of a coarse one, where the corners are aligned.

    Raises:
        GridError: The CRS differ, the ratio is no integer, or the corners are not aligned.
    """
    fix = "resample one of them with rsfuse.geo.warp.warp_raster onto a grid that fits"
    if fine.crs != coarse.crs:
        raise GridError(
            f"the CRS differ: {fine.crs} and {coarse.crs}",
            "an integer ratio needs both rasters on one map",
            fix,
        )
    m = compose(~fine.affine, coarse.affine)
    ratio = round(m.a)
    off = np.abs([m.a - ratio, m.e - ratio, m.b, m.d]).max()
    if ratio < 1 or off * max(coarse.shape) > 0.5:
        raise GridError(
            f"a coarse pixel is {m.a:.6g} x {m.e:.6g} fine pixels, sheared by {m.b:.3g}, {m.d:.3g}",
            "the ratio must be an integer, the same along both axes, without rotation",
            fix,
        )
    shift = np.array([m.c, m.f])
    if np.abs(shift - np.round(shift)).max() > 0.05:
        raise GridError(
            f"the corners of the coarse pixels lie ({m.c % 1:.3f}, {m.f % 1:.3f}) fine pixels off",
            "corners of coarse pixels must be corners of fine pixels",
            fix,
        )
    return int(ratio)


def overlap(a: GeoBox, b: GeoBox) -> Window:
    """The smallest window of `a` that holds all ground that both rasters show.

    Where the outline of `b` is torn on the map of `a` (a world map seen by a scene, a pole, the
    meridian of 180 degrees) the window may be larger, by up to 1/64 of each side of `a`.

    Raises:
        GridError: Only one of the grids has a CRS.
        NoOverlapError: They share no ground.
    """
    height, width = (int(side) for side in a.shape)
    bounds = _common_bounds(a, b)
    if bounds is None:
        raise NoOverlapError(
            f"the rasters share no ground: {_bounds_text(a)} and {_bounds_text(b)}",
            "there is nothing to compare",
            "check both with rsfuse info; is one of the CRS wrong?",
        )
    left, top, right, bottom = bounds
    x, y = math.floor(left + _SAME_PX), math.floor(top + _SAME_PX)
    far_x, far_y = math.ceil(right - _SAME_PX), math.ceil(bottom - _SAME_PX)
    return Window(x, y, max(1, far_x - x), max(1, far_y - y)).clipped((height, width))


def parse_memory(text: str) -> int:
    """Bytes of a size such as 2GB, 500M, 1.5GiB or 4000000.

    Raises:
        InputError: Not a size, or zero.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", text, re.IGNORECASE)
    unit = ((found.group(2) or "") if found else "").lower()
    size = int(float(found.group(1)) * {**_UNITS, **_BINARY_UNITS}[unit]) if found else 0
    if size < 1:
        raise InputError(
            f"{text!r} is not an amount of memory",
            "a number with a unit is needed: B, kB, MB, GB, TB, or KiB, MiB, GiB, TiB",
            "for example --memory 2GB",
        )
    return size


def _common_bounds(a: GeoBox, b: GeoBox) -> tuple[float, float, float, float] | None:
    """Left, top, right, bottom of the common ground in pixels of `a`; None where there is none."""
    height, width = (int(side) for side in a.shape)
    frame = shapely.box(0, 0, width, height)
    a_to_b, b_to_a = pixel_mapping(a, b), pixel_mapping(b, a)
    lattice = _lattice(a)
    seen = _inside(a_to_b(lattice), b)
    from_b = b_to_a(_lattice(b))
    from_b = from_b[_inside(from_b, a)]
    from_b = from_b[_inside(a_to_b(from_b), b)]  # a projection may lead to where it has no inverse
    outline = b_to_a(_outline(b))
    if np.isfinite(outline).all():
        region = shapely.make_valid(shapely.Polygon(outline))
        # The outline is right when it divides the pixels of `a` as the mapping itself does.
        doubtful = lattice[shapely.contains_xy(region, lattice) != seen]
        away = shapely.distance(shapely.points(doubtful), shapely.LinearRing(outline))
        tolerance = max(1.0, 1e-3 * max(height, width))
        if (
            not (away > tolerance).any()
            and shapely.dwithin(region, shapely.points(from_b), tolerance).all()
        ):
            # On a grid of a millionth of a pixel: what only touches shares nothing, on either side.
            parts = shapely.get_parts(shapely.get_parts(region))
            areas = parts[shapely.get_type_id(parts) == shapely.GeometryType.POLYGON]
            common = shapely.union_all(shapely.intersection(areas, frame, grid_size=_TOUCHING_PX))
            return common.bounds if common.area > 0 else None
    hits = np.concatenate([lattice[seen], from_b])
    if not len(hits):
        return None
    step = np.array([width, height]) / (_LATTICE_POINTS - 1)
    low = np.maximum(hits.min(axis=0) - step, 0)
    high = np.minimum(hits.max(axis=0) + step, (width, height))
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def _lattice(geobox: GeoBox) -> Points:
    """Points over the whole raster, edges included, in pixels."""
    height, width = (int(side) for side in geobox.shape)
    x, y = np.linspace(0, width, _LATTICE_POINTS), np.linspace(0, height, _LATTICE_POINTS)
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def _inside(points: Points, geobox: GeoBox) -> npt.NDArray[np.bool_]:
    """Which pixel positions lie in the raster; not a number does not."""
    height, width = (int(side) for side in geobox.shape)
    return np.asarray(((points > 0) & (points < (width, height))).all(axis=1))


def _outline(geobox: GeoBox) -> Points:
    """Points along the edges, in pixels, in order."""
    height, width = (int(side) for side in geobox.shape)
    step = np.linspace(0, 1, _OUTLINE_POINTS)[:-1]
    zero = np.zeros_like(step)
    sides = [(step, zero), (zero + 1, step), (1 - step, zero + 1), (zero, 1 - step)]
    unit = np.concatenate([np.column_stack(side) for side in sides])
    return unit * np.array([width, height], np.float64)


def _metres_per_unit(crs: pyproj.CRS) -> float:
    axes = crs.axis_info
    return float(axes[0].unit_conversion_factor) if axes else 1.0


def _bounds_text(geobox: GeoBox) -> str:
    box = geobox.extent.boundingbox
    numbers = ", ".join(f"{value:.6g}" for value in (box.left, box.bottom, box.right, box.top))
    return f"({numbers}) in {geobox.crs or 'pixels'}"
