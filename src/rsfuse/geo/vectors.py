"""Vector files as shapes in pixels of a raster: labels, areas, objects."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyproj
import shapely
from odc.geo.geobox import GeoBox

from rsfuse.errors import GridError, InputError, RasterError, RsfuseError
from rsfuse.geo.gdal import gdal_settings, reason_of
from rsfuse.geo.grid import Window, apply_affine, between
from rsfuse.geo.raster import RasterSource


@dataclass(frozen=True, eq=False)
class Features:
    """Shapes in pixels of a raster (corner convention) with their columns.

    Attributes:
        shapes: Polygons and multipolygons; points where they were asked for.
        columns: Name -> one value per shape.
        skipped: Other features and empty ones, left out.
    """

    shapes: tuple[shapely.Geometry, ...]
    columns: dict[str, npt.NDArray[Any]]
    skipped: int = 0

    def __len__(self) -> int:
        """Number of shapes."""
        return len(self.shapes)


def read_features(
    path: str | Path, geobox: GeoBox, layer: str | None = None, *, points: bool = False
) -> Features:
    """The polygons of a vector file that GDAL reads, in pixels of a raster.

    Args:
        path: GeoPackage, GeoJSON, shapefile ...
        geobox: Grid of the raster.
        layer: Name of a layer; the first when None.
        points: Whether points are wanted as well.

    Raises:
        RasterError: The file is missing or cannot be read.
        GridError: Only one of the two has a CRS.
    """
    import pyogrio.raw

    path = Path(path)
    if not path.exists():
        raise RasterError(f"{path} does not exist", "a vector file is needed", "check the path")
    try:
        with warnings.catch_warnings():  # of shapes that GDAL cannot make: they count as skipped
            warnings.simplefilter("ignore", RuntimeWarning)
            meta, _, encoded, values = pyogrio.raw.read(path, layer=layer, force_2d=True)
    except Exception as error:  # pyogrio raises RuntimeError kinds that share no public base
        raise RasterError(
            f"{path} cannot be read: {reason_of(error)}",
            "a vector file such as GeoPackage or GeoJSON is needed",
            "check it with ogrinfo",
        ) from error
    shapes = shapely.from_wkb(encoded, on_invalid="ignore")  # None, as if it were missing
    crs = meta["crs"]
    if (crs is None) != (geobox.crs is None):
        raise GridError(
            f"only one of {path} and its raster has a CRS",
            "the shapes cannot be placed on the raster",
            "give shapes in the CRS of the raster",
        )
    usable = ~shapely.is_missing(shapes) & ~shapely.is_empty(shapes)
    kinds = shapely.get_type_id(shapes)
    with np.errstate(invalid="ignore"):
        areal = np.isin(kinds, (3, 6)) & (shapely.area(shapes) > 0)
    usable &= areal | (points & (kinds == 0))
    placed = shapes[usable]
    if crs is not None and geobox.crs is not None and geobox.crs != crs:
        onto = between(pyproj.CRS.from_user_input(crs), geobox.crs.proj)

        def project(xy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            return np.column_stack(onto.transform(xy[:, 0], xy[:, 1]))

        placed = shapely.transform(placed, project)
    to_pixels = ~geobox.affine
    placed = shapely.transform(placed, lambda xy: apply_affine(to_pixels, xy))
    columns = {
        str(name): column[usable] for name, column in zip(meta["fields"], values, strict=True)
    }
    return Features(tuple(placed), columns, int((~usable).sum()))


def points_of(shape: shapely.Geometry) -> npt.NDArray[np.float64]:
    """(N, 2) corners of a polygon, or of all parts of a multipolygon, each once."""
    rings = shapely.get_exterior_ring(shapely.get_parts(shape))
    return np.concatenate([shapely.get_coordinates(ring)[:-1] for ring in rings])


def burn(
    shapes: tuple[shapely.Geometry, ...],
    values: npt.NDArray[np.integer[Any]],
    shape: tuple[int, int],
    *,
    fill: int,
    window: Window | None = None,
) -> npt.NDArray[np.int32]:
    """(h, w): the value of the last shape in which each pixel centre lies, `fill` outside.

    Args:
        shapes: In pixels of the raster.
        values: One per shape.
        shape: (h, w) of the raster, where `window` is None.
        fill: Elsewhere.
        window: The part that is wanted.
    """
    from affine import Affine
    from rasterio.features import rasterize

    size = shape if window is None else window.shape
    if not len(shapes):
        return np.full(size, fill, np.int32)
    corner = (0, 0) if window is None else (window.x, window.y)
    with gdal_settings():
        burnt = rasterize(
            list(zip(shapes, (int(v) for v in values), strict=True)),
            out_shape=size,
            fill=fill,
            transform=Affine.translation(*corner),
            dtype="int32",
        )
    return np.asarray(burnt, np.int32)


def column_of(features: Features, name: str, path: str | Path) -> npt.NDArray[Any]:
    """A column by name.

    Raises:
        InputError: There is none of this name.
    """
    if name not in features.columns:
        raise InputError(
            f"{path} has no column {name!r}",
            f"it has {', '.join(features.columns) or 'no columns'}",
            "name the one that holds the class, for example --class-column class",
        )
    return features.columns[name]


def polygonise(
    source: RasterSource, least_pixels: int = 0
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.object_]]:
    """Values (N,) and shapes (N,), in pixels, of the stretches of equal value of a raster.

    Args:
        source: One band of whole numbers; read whole.
        least_pixels: Smaller stretches take the value of their largest neighbour.
    """
    from rasterio.features import shapes as stretches
    from rasterio.features import sieve

    raster = source.read(bands=[1])
    values = raster.data[0].astype(np.int32)
    with gdal_settings():
        if least_pixels > 1:
            values = sieve(values, least_pixels, mask=raster.valid)
        found = list(stretches(values, mask=raster.valid))
    numbers = np.array([int(value) for _, value in found], np.int64)
    shapes = np.array([shapely.geometry.shape(shape) for shape, _ in found], dtype=object)
    return numbers, shapes


def geodataframe(columns: Mapping[str, npt.NDArray[Any]], shapes: Any, crs: Any) -> Any:
    """A GeoDataFrame of columns and shapely geometries.

    Raises:
        RsfuseError: geopandas, an extra, is not installed.
    """
    try:
        import geopandas
    except ImportError as error:
        raise RsfuseError(
            "geopandas is not installed",
            "GeoDataFrames come from it",
            'pip install "rsfuse[vector]"',
        ) from error
    return geopandas.GeoDataFrame(dict(columns), geometry=shapes, crs=crs)
