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

from rsfuse.errors import GridError, RasterError
from rsfuse.geo.gdal import gdal_settings, reason_of
from rsfuse.geo.grid import PointMapping, Window, apply_affine

Mask = npt.NDArray[np.bool_]

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
        x = window.x + (np.arange(shape[1]) + 0.5) * (window.w / shape[1])
        y = window.y + (np.arange(shape[0]) + 0.5) * (window.h / shape[0])
        points = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
        if self.mapping is not None:
            points = self.mapping(points)
        height, width = self.source.shape
        inside = np.isfinite(points).all(axis=1)
        inside[inside] = ((points[inside] >= 0) & (points[inside] < (width, height))).all(axis=1)
        usable = np.zeros(len(points), bool)
        if inside.any():
            pixel = np.floor(points[inside]).astype(np.int64)
            (x0, y0), (x1, y1) = pixel.min(axis=0), pixel.max(axis=0) + 1
            raster = self.source.read(Window(int(x0), int(y0), int(x1 - x0), int(y1 - y0)))
            at = (pixel[:, 1] - y0, pixel[:, 0] - x0)
            usable[inside] = raster.valid[at] & (raster.data[0][at] != 0)
        return usable.reshape(shape)


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

        if not self.polygons:
            return np.zeros(shape, bool)
        sx, sy = window.w / shape[1], window.h / shape[0]
        affine = Affine(sx, 0.0, window.x, 0.0, sy, window.y)
        with gdal_settings():
            burnt = rasterize(self.polygons, out_shape=shape, transform=affine, dtype="uint8")
        return np.asarray(burnt > 0)


def read_polygons(path: Path, geobox: GeoBox) -> PolygonArea:
    """The polygons of a vector file in pixels of a raster; points and lines are left out.

    Raises:
        RasterError: The file is missing or cannot be read.
        GridError: Only one of the two has a CRS.
    """
    import pyogrio.raw

    if not path.is_file():
        raise RasterError(
            f"the mask {path} does not exist", "a file of polygons is needed", "check the path"
        )
    try:
        meta, _, encoded, _ = pyogrio.raw.read(path, columns=[], force_2d=True)
    except Exception as error:  # pyogrio raises RuntimeError kinds that share no public base
        raise RasterError(
            f"the mask {path} cannot be read: {reason_of(error)}",
            "a file of polygons is needed",
            "check it with ogrinfo",
        ) from error
    crs = meta["crs"]
    if (crs is None) != (geobox.crs is None):
        raise GridError(
            f"only one of the mask {path} and its raster has a CRS",
            "the polygons cannot be placed on the raster",
            "give a mask in the CRS of the raster, or a mask raster of its size",
        )
    shapes = [shape for shape in shapely.from_wkb(encoded) if shape is not None]
    polygons = _polygons(shapes)
    to_pixels = ~geobox.affine
    if crs is not None and geobox.crs is not None:
        between = pyproj.Transformer.from_crs(crs, geobox.crs.proj, always_xy=True)

        def place(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            x, y = between.transform(points[:, 0], points[:, 1])
            return apply_affine(to_pixels, np.column_stack((x, y)))
    else:

        def place(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            return apply_affine(to_pixels, points)

    placed = (shapely.transform(polygon, place) for polygon in polygons)
    return PolygonArea(tuple(p for p in placed if np.isfinite(shapely.get_coordinates(p)).all()))


def _polygons(shapes: Sequence[shapely.Geometry]) -> list[shapely.Geometry]:
    parts = shapely.get_parts(shapes)
    return [part for part in parts if part.geom_type == "Polygon" and not part.is_empty]
