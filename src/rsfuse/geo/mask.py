"""Masks that come from elsewhere: a raster on another grid, or polygons."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyproj
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox

from rsfuse.errors import GridError, InputError, NoOverlapError, RasterError
from rsfuse.geo.gdal import gdal_settings, reason_of
from rsfuse.geo.grid import PointMapping, Window, apply_affine, between

Mask = npt.NDArray[np.bool_]

# Points of a mask that are placed at once, and pixels of the mask that are read for them.
_POINTS_AT_ONCE = 2**19
_PIXELS_AT_ONCE = 2**23

# The edges of polygons are cut to this share of the raster before they are carried to its CRS:
# a straight line on one map is curved on another.
_EDGE_SHARE = 1 / 256

VECTOR_SUFFIXES = (".gpkg", ".geojson", ".json", ".shp", ".fgb", ".kml", ".gml")


class UsableArea(Protocol):
    """Says which pixels of a raster a mask leaves."""

    @property
    def fingerprint(self) -> str:
        """Changes when the mask may have."""

    def at(self, window: Window, shape: tuple[int, int]) -> Mask:
        """Mask at the centres of a lattice of `shape` that fills `window`; True is usable."""


class _Readable(Protocol):
    shape: tuple[int, int]

    @property
    def fingerprint(self) -> str: ...

    def read(self, window: Window | None = None) -> Any: ...


@dataclass(frozen=True)
class RasterArea:
    """Usable where a raster is valid and not zero, by its nearest pixel.

    Attributes:
        source: The mask; its first band counts.
        mapping: Pixels of the masked raster -> pixels of the mask; None where they are the same.
    """

    source: _Readable
    mapping: PointMapping | None

    @property
    def fingerprint(self) -> str:
        """Changes when the mask may have."""
        return self.source.fingerprint

    def at(self, window: Window, shape: tuple[int, int]) -> Mask:
        """Mask at the centres of a lattice of `shape` that fills `window`; True is usable."""
        if self.mapping is None and shape == window.shape:
            raster = self.source.read(window)
            return np.asarray(raster.valid & (raster.data[0] != 0))
        x = window.x + (np.arange(shape[1], dtype=np.float64) + 0.5) * (window.w / shape[1])
        y = window.y + (np.arange(shape[0], dtype=np.float64) + 0.5) * (window.h / shape[0])
        return self._nearest(x, y)

    def _nearest(self, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> Mask:
        """Mask at the lattice of the columns `x` and rows `y`, in parts that fit into memory."""
        if len(x) * len(y) > _POINTS_AT_ONCE:
            return self._halves(x, y)
        points = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
        if self.mapping is not None:
            points = self.mapping(points)
        height, width = self.source.shape
        inside = ((points >= 0) & (points < (width, height))).all(axis=1)  # not a number is not
        usable = np.zeros(len(points), bool)
        if inside.any():
            pixel = np.floor(points[inside]).astype(np.int64)
            (x0, y0), (x1, y1) = pixel.min(axis=0), pixel.max(axis=0) + 1
            if (x1 - x0) * (y1 - y0) > _PIXELS_AT_ONCE and len(points) > 1:
                return self._halves(x, y)
            raster = self.source.read(Window(int(x0), int(y0), int(x1 - x0), int(y1 - y0)))
            at = (pixel[:, 1] - y0, pixel[:, 0] - x0)
            usable[inside] = raster.valid[at] & (raster.data[0][at] != 0)
        return usable.reshape(len(y), len(x))

    def _halves(self, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> Mask:
        if len(x) > len(y):
            parts = [self._nearest(part, y) for part in np.array_split(x, 2)]
            return np.concatenate(parts, axis=1)
        return np.concatenate([self._nearest(x, part) for part in np.array_split(y, 2)])


@dataclass(frozen=True)
class PolygonArea:
    """Usable inside polygons, which are in pixels of the masked raster."""

    polygons: tuple[shapely.Geometry, ...]

    @property
    def fingerprint(self) -> str:
        """Changes when the mask may have."""
        encoded = b"".join(shapely.to_wkb(polygon) for polygon in self.polygons)
        return hashlib.blake2b(encoded, digest_size=12).hexdigest()

    def at(self, window: Window, shape: tuple[int, int]) -> Mask:
        """Mask at the centres of a lattice of `shape` that fills `window`; True is usable."""
        from rasterio.features import rasterize

        left, top, right, bottom = shapely.bounds(self.polygons).reshape(-1, 4).T
        near = (left < window.x + window.w) & (right > window.x)
        near &= (top < window.y + window.h) & (bottom > window.y)
        if not near.any():
            return np.zeros(shape, bool)
        shapes = [self.polygons[index] for index in np.flatnonzero(near)]
        sx, sy = window.w / shape[1], window.h / shape[0]
        affine = Affine(sx, 0.0, window.x, 0.0, sy, window.y)
        with gdal_settings():
            burnt = rasterize(shapes, out_shape=shape, transform=affine, dtype="uint8")
        return np.asarray(burnt > 0)


def read_polygons(path: Path, geobox: GeoBox, *, must_touch: bool = False) -> PolygonArea:
    """The polygons of a vector file in pixels of a raster; points and lines are left out.

    Args:
        path: The file.
        geobox: Grid of the raster.
        must_touch: Whether polygons that cover nothing of the raster are refused.

    Raises:
        RasterError: The file is missing or cannot be read.
        GridError: Only one of the two has a CRS, or they cannot be related.
        InputError: It holds no polygon, with `must_touch`.
        NoOverlapError: No polygon covers a part of the raster, with `must_touch`.
    """
    import pyogrio.raw

    if not path.is_file():
        raise RasterError(
            f"the mask {path} does not exist", "a file of polygons is needed", "check the path"
        )
    try:
        meta, _, encoded, _ = pyogrio.raw.read(path, columns=[], force_2d=True)
        shapes = [shape for shape in shapely.from_wkb(encoded) if shape is not None]
    except Exception as error:  # pyogrio raises RuntimeError kinds that share no public base
        raise RasterError(
            f"the mask {path} cannot be read: {reason_of(error)}",
            "a file of polygons is needed",
            "check it with ogrinfo",
        ) from error
    drawn = polygons = _polygons(shapes)
    if must_touch and not drawn:
        raise InputError(
            f"{path} holds no polygon",
            "an area of interest is made of polygons; points and lines have no area",
            "give a file of polygons, or leave the area of interest out",
        )
    crs = meta["crs"]
    if (crs is None) != (geobox.crs is None):
        raise GridError(
            f"only one of the mask {path} and its raster has a CRS",
            "the polygons cannot be placed on the raster",
            "give a mask in the CRS of the raster, or a mask raster of its size",
        )
    if crs is not None and geobox.crs is not None and geobox.crs != crs:
        polygons = _on_map(polygons, pyproj.CRS.from_user_input(crs), geobox)
    to_pixels = ~geobox.affine
    placed = [shapely.transform(p, lambda xy: apply_affine(to_pixels, xy)) for p in polygons]
    if must_touch and not _any_touches(placed, geobox):
        raise no_common_ground(str(path), shapely.total_bounds(drawn), crs, geobox)
    return PolygonArea(tuple(placed))


def no_common_ground(
    name: str, bounds: Sequence[float], crs: Any, geobox: GeoBox
) -> NoOverlapError:
    """The error of an area of interest that lies beside its raster.

    Args:
        name: The area.
        bounds: Its left, bottom, right and top.
        crs: What they are in; pixels of the raster when None.
        geobox: Grid of the raster.
    """
    its_map = "pixels" if geobox.crs is None else str(geobox.crs)
    box = geobox.extent.boundingbox
    there = f"and the raster at {_numbers((box.left, box.bottom, box.right, box.top))}"
    if crs is not None and geobox.crs is not None and geobox.crs != crs:
        own = pyproj.CRS.from_user_input(crs)
        left, bottom, right, top = bounds
        to_raster = between(own, geobox.crs.proj)
        carried = to_raster.transform_bounds(left, bottom, right, top, densify_pts=33)
        if np.isfinite(carried).all():
            bounds = carried
        else:
            there = f"in {own.name}, which is nowhere in {its_map}, {there}"
    return NoOverlapError(
        f"{name} shares no ground with the raster: it lies at {_numbers(bounds)} {there} "
        f"in {its_map} (left, bottom, right, top)",
        "no pixel lies in the area of interest",
        "check the CRS of the area of interest, which in GeoJSON is degrees unless the file says "
        "otherwise, or leave it out",
    )


def _any_touches(polygons: Sequence[shapely.Geometry], geobox: GeoBox) -> bool:
    """Whether any of the polygons, in pixels, covers a part of the raster."""
    height, width = geobox.shape
    frame = shapely.box(0, 0, width, height)
    sound = (p for p in polygons if np.isfinite(shapely.get_coordinates(p)).all())
    return any(shapely.make_valid(p).intersection(frame).area > 0 for p in sound)


def _numbers(bounds: Sequence[float]) -> str:
    return f"({', '.join(f'{value:.9g}' for value in bounds)})"


def _on_map(
    polygons: list[shapely.Geometry], crs: pyproj.CRS, geobox: GeoBox
) -> list[shapely.Geometry]:
    """What lies around the raster of polygons in another CRS, in the CRS of the raster."""
    raster_crs = geobox.crs.proj if geobox.crs is not None else crs
    to_raster, to_mask = between(crs, raster_crs), between(raster_crs, crs)
    box = geobox.extent.boundingbox
    found = to_mask.transform_bounds(box.left, box.bottom, box.right, box.top, densify_pts=33)
    left, bottom, right, top = found
    if np.isfinite(found).all() and left < right:  # else it lies across the meridian of 180 degrees
        side = max(right - left, top - bottom)
        around = shapely.box(*found).buffer(0.05 * side, join_style="mitre")
        parts = shapely.intersection(shapely.make_valid(polygons), around)
        polygons = _polygons(list(shapely.segmentize(parts, side * _EDGE_SHARE)))

    def place(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.column_stack(to_raster.transform(points[:, 0], points[:, 1]))

    placed = [shapely.transform(polygon, place) for polygon in polygons]
    return [p for p in placed if np.isfinite(shapely.get_coordinates(p)).all()]


def _polygons(shapes: Sequence[shapely.Geometry]) -> list[shapely.Geometry]:
    parts = shapely.get_parts(shapely.get_parts(shapes))  # twice: collections hold collections
    return [part for part in parts if part.geom_type == "Polygon" and not part.is_empty]
