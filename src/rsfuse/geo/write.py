"""Results as files that a GIS opens: rasters, points, polygons, control points.

Every function writes to a temporary name in the same folder and renames it when it is whole, so a
result is either complete or absent. Whatever goes wrong while writing is an `OutputError`.
"""

import csv
import io
import json
import math
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import numpy.typing as npt
import pyproj
import rasterio
import rasterio.shutil
import shapely
from odc.geo.geobox import GeoBox
from rasterio._err import CPLE_BaseError
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import RasterioError, RasterioIOError
from rasterio.windows import Window as RasterioWindow

from rsfuse.errors import InputError, OutputError, RsfuseError
from rsfuse.geo.gdal import gdal_settings, no_georeference_warnings, reading, reason_of
from rsfuse.geo.grid import apply_affine, pixel_geobox
from rsfuse.geo.raster import Raster
from rsfuse.runs import atomic_path

Overviews = Literal["average", "mode", "nearest"] | bool
Colours = Mapping[int, Sequence[int]]
ClassNames = Sequence[str] | Mapping[int, str]
Columns = Mapping[str, npt.ArrayLike]

_BLOCK = 512

# Rows that are converted at a time: a whole row of blocks, so that no block is written twice.
_STRIP_ROWS = _BLOCK

# Decimals of degrees in GeoJSON: 0.1 mm on the ground.
_LONLAT_DECIMALS = 9

_DRIVERS = {".gpkg": "GPKG", ".geojson": "GeoJSON"}

# What GDAL calls the types in a VRT.
_GDAL_TYPES = {
    "uint8": "Byte",
    "int8": "Int8",
    "uint16": "UInt16",
    "int16": "Int16",
    "uint32": "UInt32",
    "int32": "Int32",
    "uint64": "UInt64",
    "int64": "Int64",
    "float32": "Float32",
    "float64": "Float64",
    "complex_int16": "CInt16",
    "complex64": "CFloat32",
    "complex128": "CFloat64",
}

# Whatever GDAL says while it writes. OSError is what the operating system says.
_WRITE_ERRORS = (
    RasterioError,
    CPLE_BaseError,
    SystemError,
)


def write_cog(
    path: str | Path,
    data: Raster | npt.ArrayLike,
    *,
    geobox: GeoBox | None = None,
    nodata: float | None = None,
    bands: Sequence[str] | None = None,
    dtype: npt.DTypeLike | None = None,
    colours: Colours | None = None,
    class_names: ClassNames | None = None,
    overviews: Overviews = True,
    valid: npt.NDArray[np.bool_] | None = None,
) -> None:
    """Write a cloud-optimised GeoTIFF, atomically.

    Values are rounded and clipped to an integer `dtype`. Invalid pixels, and pixels that are not
    finite, get the `nodata` value; without one the file gets a mask, where any pixel is invalid.
    A valid value that equals `nodata` moves to its neighbour, as gdalwarp does it.

    Args:
        path: Result.
        data: A raster, or an array (H, W) or (C, H, W).
        geobox: Grid of an array; its own pixels when None.
        nodata: Value of invalid pixels.
        bands: Band names; by default those of the raster, or none.
        dtype: Data type in the file; by default that of the array.
        colours: Class id -> (r, g, b); makes a palette, for one band of uint8 or uint16.
        class_names: Name of each class, by id; stored in the tag `class_names` as JSON.
        overviews: How pixels are merged in the reduced copies; True takes the mode for classes
            (`colours` or `class_names` given) and the average otherwise, False makes none.
        valid: (H, W), True where usable; by default that of the raster.

    Raises:
        InputError: The arguments do not fit together.
        OutputError: The file cannot be written.
    """
    tags = {}
    if isinstance(data, Raster):
        array: npt.NDArray[Any] = data.data
        geobox = data.geobox if geobox is None else geobox
        bands = data.bands if bands is None else bands
        valid = data.valid if valid is None else valid
        tags["radiometry"] = data.radiometry
    else:
        array = np.asarray(data)
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or array.size == 0:
        raise InputError(
            f"an array of shape {array.shape} is no raster",
            "(H, W) or (C, H, W) with at least one pixel is needed",
            "add or remove an axis",
        )
    shape = (array.shape[1], array.shape[2])
    grid = pixel_geobox(shape) if geobox is None else geobox
    if tuple(grid.shape) != shape or (valid is not None and valid.shape != shape):
        raise InputError(
            f"the data have shape {shape}, the grid {tuple(grid.shape)}"
            + ("" if valid is None else f", valid {valid.shape}"),
            "they must agree",
            "pass the grid and the mask of these data",
        )
    kind = _file_dtype(array, dtype)
    is_classes = colours is not None or class_names is not None
    _check_nodata(nodata, kind)
    usable = _usable(array, valid)
    if is_classes and nodata is not None and np.any((array == nodata) & usable):
        raise InputError(
            f"the class {nodata:g} is also the nodata value",
            "pixels of the class would be read as missing",
            "choose a nodata value that no class has",
        )
    with atomic_path(path) as whole, explained(path):
        scratch = whole.with_name(f"{whole.name}.scratch.tif")
        with tiled_writer(
            scratch,
            grid,
            len(array),
            dtype=kind,
            nodata=nodata,
            bands=bands,
            colours=colours,
            class_names=class_names,
            tags=tags,
        ) as file:
            masked = nodata is None and not usable.all()
            for top in range(0, shape[0], _STRIP_ROWS):
                rows = slice(top, min(top + _STRIP_ROWS, shape[0]))
                window = RasterioWindow(0, top, shape[1], rows.stop - top)
                values = converted(array[:, rows], usable[rows], kind, nodata)
                file.write(values, window=window)
                if masked:
                    file.write_mask(usable[rows], window=window)
        _copy_to_cog(scratch, whole, _resampling(overviews, is_classes=is_classes))
        scratch.unlink()


def cog_from_tiff(
    temporary: str | Path,
    path: str | Path,
    *,
    overviews: Overviews = True,
) -> None:
    """Turn a finished tiled GeoTIFF into a cloud-optimised one, atomically.

    Band names, tags, palette, nodata and mask are kept. The temporary file is left to the caller.

    Args:
        temporary: A file that `tiled_writer` wrote.
        path: Result.
        overviews: As in `write_cog`; True takes the mode for a file with palette or class names.

    Raises:
        OutputError: The file cannot be written, or the temporary file is not whole.
    """
    with atomic_path(path) as whole, explained(path):
        with opened(temporary) as file:
            is_classes = "class_names" in file.tags() or file.colorinterp[0] == ColorInterp.palette
        _copy_to_cog(Path(temporary), whole, _resampling(overviews, is_classes=is_classes))


@contextmanager
def tiled_writer(
    path: str | Path,
    geobox: GeoBox,
    count: int,
    *,
    dtype: npt.DTypeLike,
    nodata: float | None = None,
    bands: Sequence[str] | None = None,
    colours: Colours | None = None,
    class_names: ClassNames | None = None,
    tags: Mapping[str, str] | None = None,
    block: int = _BLOCK,
    compress: bool = False,
) -> Iterator[Any]:
    """A tiled GeoTIFF that is open for writing by windows; the raw material of `cog_from_tiff`.

    Args:
        path: File.
        geobox: Grid.
        count: Number of bands.
        dtype: Data type.
        nodata: Value of invalid pixels.
        bands: Band names.
        colours: As in `write_cog`.
        class_names: As in `write_cog`.
        tags: Further tags.
        block: Side of a block, a multiple of 16.
        compress: Spend time to save space.

    Yields:
        The rasterio dataset.

    Raises:
        InputError: The number of names does not fit, or a palette does not fit the data.
    """
    kind = np.dtype(dtype)
    names = tuple(bands or ())
    if names and len(names) != count:
        raise InputError(
            f"{len(names)} band names for {count} bands", "each band has one", "pass one per band"
        )
    if colours is not None and (count != 1 or kind not in (np.dtype("uint8"), np.dtype("uint16"))):
        raise InputError(
            f"a palette for {count} bands of {kind}",
            "a GeoTIFF has a palette for one band of uint8 or uint16 only",
            "pass dtype='uint8', or no colours",
        )
    is_rgb = kind == np.uint8 and tuple(n.lower() for n in names) == ("red", "green", "blue")
    options: dict[str, Any] = {
        "driver": "GTiff",
        "height": int(geobox.shape[0]),
        "width": int(geobox.shape[1]),
        "count": count,
        "dtype": kind.name,
        "nodata": nodata,
        "tiled": True,
        "blockxsize": block,
        "blockysize": block,
        "bigtiff": "IF_SAFER",
        # Without these, four bands of uint8 would be taken for colours and transparency.
        "photometric": "RGB" if is_rgb else "MINISBLACK",
    }
    if compress:
        options["compress"] = "deflate"
        options["zlevel"] = 1
    if geobox.crs is not None:
        options["crs"] = rasterio.crs.CRS.from_user_input(_crs_text(geobox.crs))
    if geobox.crs is not None or not geobox.affine.is_identity:
        options["transform"] = geobox.affine
    with gdal_settings(GDAL_TIFF_INTERNAL_MASK="YES"):
        with no_georeference_warnings():
            file = rasterio.open(path, "w", **options)
        with file:
            for position, name in enumerate(names, start=1):
                file.set_band_description(position, name)
            if tags:
                file.update_tags(**tags)
            if class_names is not None:
                file.update_tags(class_names=_class_names_json(class_names))
            if colours is not None:
                palette = {int(k): tuple(int(c) for c in v) for k, v in colours.items()}
                file.write_colormap(1, palette)
            yield file


def converted(
    data: npt.NDArray[Any],
    valid: npt.NDArray[np.bool_],
    dtype: npt.DTypeLike,
    nodata: float | None,
) -> npt.NDArray[Any]:
    """Data (C, H, W) as they are stored: rounded, clipped, invalid pixels set.

    Args:
        data: Values.
        valid: (H, W), True where every band is usable.
        dtype: Data type in the file.
        nodata: Value of invalid pixels; zero where there is none.

    Returns:
        A new array; no valid pixel has the nodata value.
    """
    kind = np.dtype(dtype)
    fill = 0 if nodata is None else nodata
    cleared = np.where(valid, data, 0)
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        if cleared.dtype.kind == "f":
            # float32 cannot hold the limits of 32 bits; float64 can.
            cleared = np.rint(cleared.astype(np.float64))
        stored = np.clip(cleared, limits.min, limits.max).astype(kind)
    else:
        with np.errstate(over="ignore"):
            stored = cleared.astype(kind)
    if nodata is not None and not math.isnan(nodata):
        clash = (stored == np.array(nodata, kind)) & valid
        if clash.any():
            stored[clash] = _neighbour(nodata, kind)
    stored[:, ~valid] = fill
    return stored


def write_points(
    path: str | Path,
    xy: npt.ArrayLike,
    columns: Columns,
    crs: Any = None,
    layer: str = "points",
) -> None:
    """Write points with attributes, atomically; the suffix chooses the format.

    `.gpkg` keeps the CRS; since it does not tell `x` from `X`, nor a column from its own `fid` and
    `geom`, a name that is taken gets the suffix `_2`. `.geojson` is in longitude and latitude where
    a CRS is known (RFC 7946), in the given units without. `.csv` has the columns `x`, `y` first.

    Args:
        path: Result: `.gpkg`, `.geojson` or `.csv`.
        xy: (N, 2) positions.
        columns: Name -> N values.
        crs: Anything that pyproj takes for a CRS, or None.
        layer: Name of the layer.

    Raises:
        InputError: Unknown suffix, or columns of different lengths.
        OutputError: The file cannot be written.
    """
    points = np.asarray(xy, np.float64).reshape(-1, 2)
    values = _checked_columns(columns, len(points))
    if Path(path).suffix.lower() == ".csv":
        clash = {"x", "y"} & set(values)
        if clash:
            raise InputError(
                f"the column {sorted(clash)[0]!r} exists already",
                "a CSV of points holds the positions in the columns x and y",
                "give the column another name",
            )
        _write_csv(path, {"x": points[:, 0], "y": points[:, 1], **values})
    else:
        _write_features(path, shapely.points(points), "Point", values, crs, layer)


def write_polygons(
    path: str | Path,
    polygons: npt.ArrayLike | Sequence[npt.ArrayLike],
    columns: Columns,
    crs: Any = None,
    layer: str = "polygons",
) -> None:
    """Write polygons with attributes, atomically; the suffix chooses the format.

    Formats are those of `write_points`; `.csv` has the column `wkt` first.

    Args:
        path: Result: `.gpkg`, `.geojson` or `.csv`.
        polygons: (N, K, 2) corners in order, not closed; or N arrays (K, 2).
        columns: Name -> N values.
        crs: Anything that pyproj takes for a CRS, or None.
        layer: Name of the layer.

    Raises:
        InputError: Unknown suffix, or columns of different lengths.
        OutputError: The file cannot be written.
    """
    if isinstance(polygons, np.ndarray) and polygons.dtype != object and polygons.ndim == 3:
        shapes = (
            shapely.polygons(polygons.astype(np.float64)) if len(polygons) else np.empty(0, "O")
        )
    else:
        rings = [np.asarray(ring, np.float64).reshape(-1, 2) for ring in polygons]  # type: ignore[union-attr]
        shapes = np.array([shapely.Polygon(ring) for ring in rings], dtype=object)
    values = _checked_columns(columns, len(shapes))
    if Path(path).suffix.lower() == ".csv":
        if "wkt" in values:
            raise InputError(
                "the column 'wkt' exists already",
                "a CSV of polygons holds the outlines in the column wkt",
                "give the column another name",
            )
        _write_csv(path, {"wkt": shapely.to_wkt(shapes, rounding_precision=-1), **values})
    else:
        _write_features(path, shapes, "Polygon", values, crs, layer)


def write_shapes(
    path: str | Path,
    shapes: npt.NDArray[np.object_],
    columns: Columns,
    crs: Any = None,
    layer: str = "polygons",
) -> None:
    """Write polygons that may have holes, as `write_polygons` does.

    Args:
        path: Result: `.gpkg` or `.geojson`.
        shapes: N polygons of shapely.
        columns: Name -> N values.
        crs: Anything that pyproj takes for a CRS, or None.
        layer: Name of the layer.

    Raises:
        InputError: Unknown suffix, or columns of different lengths.
        OutputError: The file cannot be written.
    """
    _write_features(path, shapes, "Polygon", _checked_columns(columns, len(shapes)), crs, layer)


def write_qgis_points(
    path: str | Path,
    map_xy: npt.ArrayLike,
    pixel_xy: npt.ArrayLike,
    *,
    enabled: npt.ArrayLike | None = None,
    residual: npt.ArrayLike | None = None,
    crs: Any = None,
    source_geobox: GeoBox | None = None,
) -> None:
    """Write control points for the QGIS Georeferencer (`.points`), atomically.

    Args:
        path: Result.
        map_xy: (N, 2) positions on the map, in `crs`.
        pixel_xy: (N, 2) pixels of the image, corner convention. In the file, y is the negative row.
        enabled: N flags whether a point takes part; all by default.
        residual: (N, 2) offsets along columns and rows, or N lengths, in pixels; zero by default.
            QGIS computes its own as soon as a transformation is chosen.
        crs: Anything that pyproj takes for a CRS, or None.
        source_geobox: Grid of the image where its file has a georeference. QGIS then counts in the
            units of that georeference, not in pixels.

    Raises:
        InputError: The arrays have different lengths.
        OutputError: The file cannot be written.
    """
    on_map = np.asarray(map_xy, np.float64).reshape(-1, 2)
    pixel = np.asarray(pixel_xy, np.float64).reshape(-1, 2)
    count = len(on_map)
    used = np.ones(count, bool) if enabled is None else np.asarray(enabled).astype(bool)
    error = np.zeros((count, 2)) if residual is None else np.asarray(residual, np.float64)
    if not len(pixel) == len(used) == len(error) == count:
        raise _lengths_differ(f"{count} map points", f"{len(pixel)} pixels", len(used), len(error))
    if error.ndim == 1:
        offset, length = np.zeros((count, 2)), error
    else:
        offset, length = error, np.hypot(error[:, 0], error[:, 1])
    if source_geobox is not None and not source_geobox.affine.is_identity:
        source = apply_affine(source_geobox.affine, pixel)
    else:
        source = np.column_stack((pixel[:, 0], 0.0 - pixel[:, 1]))  # row 0 is 0.0, not -0.0
    lines = []
    if crs is not None:
        lines.append(f"#CRS: {pyproj.CRS.from_user_input(crs).to_wkt()}")
    lines.append("mapX,mapY,sourceX,sourceY,enable,dX,dY,residual")
    table = np.column_stack((on_map, source, used, offset, length)).tolist()
    for x, y, u, v, take, dx, dy, total in table:
        numbers = (x, y, u, v, int(take), dx, dy, total)
        lines.append(",".join(repr(number) for number in numbers))
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_gcp_vrt(
    path: str | Path,
    source_path: str | Path,
    pixel_xy: npt.ArrayLike,
    map_xy: npt.ArrayLike,
    crs: Any,
) -> None:
    """Write a VRT that lends a raster ground control points; `gdalwarp` takes it from there.

    The raster itself is not touched; the VRT names it relative to its own folder where it can.

    Args:
        path: Result, `.vrt`.
        source_path: The raster.
        pixel_xy: (N, 2) pixels of the raster, corner convention.
        map_xy: (N, 2) positions on the map.
        crs: CRS of the map, anything that pyproj takes for one, or None.

    Raises:
        InputError: The arrays have different lengths.
        RasterError: The raster cannot be opened.
        OutputError: The file cannot be written.
    """
    pixel = np.asarray(pixel_xy, np.float64).reshape(-1, 2)
    on_map = np.asarray(map_xy, np.float64).reshape(-1, 2)
    if len(pixel) != len(on_map):
        raise _lengths_differ(f"{len(pixel)} pixels", f"{len(on_map)} map points")
    points = [
        GroundControlPoint(row=v, col=u, x=x, y=y, z=0.0, id=str(i))
        for i, ((u, v), (x, y)) in enumerate(
            zip(pixel.tolist(), on_map.tolist(), strict=True), start=1
        )
    ]
    reference = "" if crs is None else pyproj.CRS.from_user_input(crs).to_wkt()
    with atomic_path(path) as temporary:
        text = _vrt_of(source_path, Path(path).parent, points, reference)
        temporary.write_text(text, encoding="utf-8")


def rewrite_geotransform(source_path: str | Path, out_path: str | Path, geobox: GeoBox) -> None:
    """Copy a raster with another georeference, atomically; no pixel is resampled.

    The copy is a cloud-optimised GeoTIFF with the data type, bands, mask and tags of the source.

    Args:
        source_path: The raster.
        out_path: Result.
        geobox: The new grid, of the same shape.

    Raises:
        InputError: The grid has another shape.
        RasterError: The source cannot be opened.
        OutputError: The file cannot be written.
    """
    with atomic_path(out_path) as whole, explained(out_path):
        scratch = whole.with_name(f"{whole.name}.scratch.tif")
        with _source(source_path) as source, gdal_settings(GDAL_TIFF_INTERNAL_MASK="YES"):
            if (source.height, source.width) != tuple(geobox.shape):
                raise InputError(
                    f"{source_path} has {source.height} x {source.width} pixels, the grid "
                    f"{geobox.shape[0]} x {geobox.shape[1]}",
                    "a new georeference keeps the pixels as they are",
                    "pass a grid of the same shape, or resample with warp_raster",
                )
            is_classes = source.colorinterp[0] == ColorInterp.palette
            _copy_with_grid(source, scratch, geobox)
        _copy_to_cog(scratch, whole, _resampling(True, is_classes=is_classes))
        scratch.unlink()


def _copy_with_grid(source: Any, scratch: Path, geobox: GeoBox) -> None:
    """Every block of an open raster into a tiled GeoTIFF with another grid."""
    flags = source.mask_flag_enums[0]
    masked = MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags
    palette = source.colormap(1) if source.colorinterp[0] == ColorInterp.palette else None
    with tiled_writer(
        scratch,
        geobox,
        source.count,
        dtype=source.dtypes[0],
        nodata=source.nodata,
        tags={k: v for k, v in source.tags().items() if k != "AREA_OR_POINT"},
    ) as file:
        for position, text in enumerate(source.descriptions, start=1):
            if text:
                file.set_band_description(position, text)
            file.update_tags(position, **source.tags(position))
        file.scales, file.offsets = source.scales, source.offsets
        file.colorinterp = source.colorinterp
        if palette is not None:
            file.write_colormap(1, palette)
        for _, window in file.block_windows(1):
            with reading(source.name):
                values = source.read(window=window)
                mask = source.dataset_mask(window=window) if masked else None
            file.write(values, window=window)
            if mask is not None:
                file.write_mask(mask, window=window)


def _copy_to_cog(source: Path, target: Path, resampling: str | None) -> None:
    """Copy a whole GeoTIFF with the COG driver and make sure that both are whole."""
    check_whole(source)
    options = {
        "COMPRESS": "DEFLATE",
        "PREDICTOR": "YES",
        "BLOCKSIZE": str(_BLOCK),
        "BIGTIFF": "IF_SAFER",
        "OVERVIEWS": "NONE" if resampling is None else "IGNORE_EXISTING",
    }
    if resampling is not None:
        options["OVERVIEW_RESAMPLING"] = resampling.upper()
    with gdal_settings(GDAL_TIFF_INTERNAL_MASK="YES"), opened(source) as file:
        rasterio.shutil.copy(file, target, driver="COG", **options)
    check_whole(target)


def check_whole(path: Path) -> None:
    """Make sure that everything reached the file: GDAL does not report what fails as it closes.

    Args:
        path: A finished tiled GeoTIFF.

    Raises:
        OSError: Something is missing, or there was no room for it.
        RasterioError: It cannot be read back.
    """
    size = path.stat().st_size
    with opened(path) as file:
        height, width = file.block_shapes[0]
        for row in range(-(-file.height // height)):
            for column in range(-(-file.width // width)):
                name = f"{column}_{row}"
                start = file.get_tag_item(f"BLOCK_OFFSET_{name}", "TIFF", bidx=1)
                length = file.get_tag_item(f"BLOCK_SIZE_{name}", "TIFF", bidx=1)
                if start is None or length is None or int(start) + int(length) > size:
                    raise RasterioIOError(f"block {name} of the file is missing after writing")
        count = -(-file.height // height) * -(-file.width // width)
        block_bytes = height * width * file.count * np.dtype(file.dtypes[0]).itemsize
        # The blocks of a mask have no such tags. They are small: all of them are decoded.
        if MaskFlags.per_dataset in file.mask_flag_enums[0]:
            for _, window in file.block_windows(1):
                file.read_masks(1, window=window)
    # Directories are rewritten last, and a failure leaves an old one that is valid. They are lost
    # only without room for the largest thing to write, a block or a directory: is there room?
    with path.open("r+b") as appended:
        appended.seek(0, os.SEEK_END)
        appended.write(bytes(block_bytes + 32 * count + 2**16))
        appended.truncate(size)


@contextmanager
def opened(path: str | Path) -> Iterator[Any]:
    """An open raster, without a word about a missing georeference."""
    with gdal_settings():
        with no_georeference_warnings():
            file = rasterio.open(path)
        with file:
            yield file


@contextmanager
def _source(path: str | Path) -> Iterator[Any]:
    """An open raster of the user.

    Raises:
        RasterError: It cannot be opened.
    """
    with ExitStack() as stack:
        with reading(str(path)):
            file = stack.enter_context(opened(path))
        yield file


@contextmanager
def explained(path: str | Path, *others: type[Exception]) -> Iterator[None]:
    """What GDAL raises while it writes becomes an `OutputError`.

    Args:
        path: The result.
        *others: Further kinds of errors that say so.
    """
    try:
        yield
    except RsfuseError:
        raise
    except (*_WRITE_ERRORS, *others) as error:
        raise OutputError(
            f"cannot write {path}: {reason_of(error)}",
            "nothing was left half-written; what was there before is unchanged",
            f"check the disk ({_free_space(Path(path).parent)}) and the permissions, "
            "or write elsewhere with -o",
        ) from error


def _free_space(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 1e6:.0f} MB free"
    except OSError:
        return "free space unknown"


def _file_dtype(array: npt.NDArray[Any], dtype: npt.DTypeLike | None) -> np.dtype[Any]:
    kind = np.dtype(array.dtype if dtype is None else dtype)
    if kind == np.bool_:
        kind = np.dtype(np.uint8)
    if kind == np.float16:
        kind = np.dtype(np.float32)
    if kind.kind not in "iuf" or array.dtype.kind not in "biuf":
        raise InputError(
            f"data of type {array.dtype} as {kind}",
            "a raster is written as integers or real numbers",
            "pass dtype='float32', or amplitude and phase of complex numbers as two bands",
        )
    return kind


def _check_nodata(nodata: float | None, kind: np.dtype[Any]) -> None:
    if nodata is None or kind.kind == "f":
        return
    limits = np.iinfo(kind)
    if not (math.isfinite(nodata) and nodata == int(nodata)) or not (
        limits.min <= nodata <= limits.max
    ):
        raise InputError(
            f"nodata {nodata:g} for {kind}",
            f"the type holds integers from {limits.min} to {limits.max}",
            "choose another nodata value, or another dtype",
        )


def _usable(array: npt.NDArray[Any], valid: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.bool_]:
    """(H, W), True where every band is finite and nothing says otherwise."""
    usable = np.ones(array.shape[1:], bool) if valid is None else np.array(valid, bool)
    if array.dtype.kind == "f":
        for band in array:
            usable &= np.isfinite(band)
    return usable


def _neighbour(nodata: float, kind: np.dtype[Any]) -> Any:
    """The value beside nodata that valid pixels take."""
    if kind.kind == "f":
        return np.nextafter(np.array(nodata, kind), np.array(np.inf, kind))
    limits = np.iinfo(kind)
    return int(nodata) + 1 if nodata < limits.max else int(nodata) - 1


def _resampling(overviews: Overviews, *, is_classes: bool) -> str | None:
    if overviews is False:
        return None
    if overviews is True:
        return "mode" if is_classes else "average"
    if overviews not in ("average", "mode", "nearest"):
        raise InputError(
            f"overviews {overviews!r} are unknown",
            "pixels are merged by average, mode or nearest",
            "choose one of these, or True or False",
        )
    return overviews


def _class_names_json(names: ClassNames) -> str:
    items: Iterable[tuple[int, str]]
    items = names.items() if isinstance(names, Mapping) else enumerate(names)
    return json.dumps({str(key): str(name) for key, name in items}, ensure_ascii=False)


def _checked_columns(columns: Columns, count: int) -> dict[str, npt.NDArray[Any]]:
    values = {name: np.asarray(column) for name, column in columns.items()}
    for name, column in values.items():
        if column.shape != (count,):
            raise InputError(
                f"column {name!r} has shape {column.shape}",
                f"there are {count} features, and each has one value",
                "pass columns of that length",
            )
    return values


def _lengths_differ(*what: object) -> InputError:
    return InputError(
        f"the lengths differ: {', '.join(str(item) for item in what)}",
        "each point has one position in the image and one on the map",
        "pass arrays of one length",
    )


def _crs_text(crs: Any) -> str:
    """A CRS as text that GDAL reads: its EPSG code where it has one, else WKT."""
    reference = pyproj.CRS.from_user_input(crs)
    code = reference.to_epsg(min_confidence=100)
    return f"EPSG:{code}" if code is not None else reference.to_wkt()


def _write_csv(path: str | Path, columns: Mapping[str, npt.NDArray[Any]]) -> None:
    """Comma-separated columns; missing numbers are empty, truth values are 0 and 1."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        table.writerows(zip(*(_cells(column) for column in columns.values()), strict=True))


def _cells(column: npt.NDArray[Any]) -> list[Any]:
    if column.dtype.kind == "b":
        return [int(value) for value in column]
    return [
        "" if value is None or (isinstance(value, float) and math.isnan(value)) else value
        for value in column.tolist()
    ]


def _write_features(
    path: str | Path,
    shapes: npt.NDArray[np.object_],
    kind: str,
    columns: Mapping[str, npt.NDArray[Any]],
    crs: Any,
    layer: str,
) -> None:
    """GeoPackage or GeoJSON of shapes with attributes."""
    import pyogrio.raw  # takes geopandas and pandas along, where they are installed

    suffix = Path(path).suffix.lower()
    if suffix not in _DRIVERS:
        raise InputError(
            f"{path} has the suffix {suffix!r}",
            f"vectors are written as {', '.join((*_DRIVERS, '.csv'))}",
            "give the file one of these suffixes",
        )
    reference = None if crs is None else pyproj.CRS.from_user_input(crs)
    layer_options = {}
    if suffix == ".geojson" and reference is not None:
        shapes = _in_lonlat(shapes, reference)
        reference = pyproj.CRS.from_epsg(4326)
        layer_options = {"RFC7946": "YES", "COORDINATE_PRECISION": str(_LONLAT_DECIMALS)}
    # In memory first: a GeoPackage whose index meets a full disk is closed without an error.
    content = io.BytesIO()
    refusals = (
        pyogrio.errors.DataSourceError,
        pyogrio.errors.DataLayerError,
        pyogrio.errors.FieldError,
        pyogrio.errors.FeatureError,
        pyogrio.errors.GeometryError,
    )
    with explained(path, *refusals), warnings.catch_warnings():
        # Pixel coordinates have no CRS on purpose.
        warnings.filterwarnings("ignore", message="'crs' was not provided")
        pyogrio.raw.write(
            content,
            shapely.to_wkb(shapes),
            [_field(column) for column in columns.values()],
            _gpkg_names(columns) if suffix == ".gpkg" else list(columns),
            layer=layer,
            driver=_DRIVERS[suffix],
            geometry_type=kind,
            crs=None if reference is None else _crs_text(reference),
            layer_options=layer_options,
        )
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def _gpkg_names(columns: Iterable[str]) -> list[str]:
    """Column names that are unique without regard to case, as SQL sees them."""
    taken, names = {"fid", "geom"}, []
    for name in columns:
        unique, number = name, 2
        while unique.lower() in taken:
            unique, number = f"{name}_{number}", number + 1
        taken.add(unique.lower())
        names.append(unique)
    return names


def _field(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A column in a type that OGR stores."""
    if column.dtype.kind in "US":
        return column.astype(object)
    if column.dtype == np.float16:
        return column.astype(np.float32)
    if column.dtype == np.uint64 and column.size and column.max() > np.iinfo(np.int64).max:
        return column.astype(np.float64)  # OGR has no unsigned 64-bit integers
    if column.dtype.kind in "iu" and column.dtype.name not in ("int16", "int32", "int64"):
        return column.astype(np.int64)
    return column


def _in_lonlat(shapes: npt.NDArray[np.object_], crs: pyproj.CRS) -> npt.NDArray[np.object_]:
    """Shapes in longitude and latitude of WGS 84.

    Raises:
        InputError: A position has none.
    """
    to_lonlat = pyproj.Transformer.from_crs(crs, 4326, always_xy=True)

    def moved(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        lon, lat = to_lonlat.transform(points[:, 0], points[:, 1])
        lost = ~(np.isfinite(lon) & (np.abs(lat) <= 90))
        if lost.any():
            x, y = points[lost][0]
            raise InputError(
                f"{lost.sum()} of {len(points)} positions, ({x:g}, {y:g}) among them, have no "
                "longitude and latitude",
                f"they lie outside the domain of {crs.name}",
                "check the CRS, or write .gpkg, which keeps the positions as they are",
            )
        return np.column_stack((np.where(np.abs(lon) > 180, (lon + 180) % 360 - 180, lon), lat))

    return np.asarray(shapely.transform(shapes, moved))


def _vrt_of(
    source_path: str | Path,
    folder: Path,
    points: Sequence[Any],
    wkt: str,
) -> str:
    """A VRT of every band, mask included, with control points in place of the geotransform."""
    with _source(source_path) as source:
        height, width = source.height, source.width
        name, relative = _name_for_vrt(source_path, folder)
        rect = f'xOff="0" yOff="0" xSize="{width}" ySize="{height}"'

        def simple_source(band: str) -> str:
            return (
                "    <SimpleSource>\n"
                f'      <SourceFilename relativeToVRT="{relative:d}">{escape(name)}'
                "</SourceFilename>\n"
                f"      <SourceBand>{band}</SourceBand>\n"
                f"      <SrcRect {rect} />\n      <DstRect {rect} />\n"
                "    </SimpleSource>\n"
            )

        lines = [f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}">\n']
        lines.append(f"  <GCPList Projection={quoteattr(wkt)}>\n" if wkt else "  <GCPList>\n")
        for p in points:
            lines.append(
                f'    <GCP Id="{p.id}" Pixel="{p.col!r}" Line="{p.row!r}" '
                f'X="{p.x!r}" Y="{p.y!r}" />\n'
            )
        lines.append("  </GCPList>\n")
        for index in source.indexes:
            dtype = _GDAL_TYPES[source.dtypes[index - 1]]
            lines.append(f'  <VRTRasterBand dataType="{dtype}" band="{index}">\n')
            if source.descriptions[index - 1]:
                text = escape(source.descriptions[index - 1])
                lines.append(f"    <Description>{text}</Description>\n")
            if source.nodatavals[index - 1] is not None:
                lines.append(f"    <NoDataValue>{source.nodatavals[index - 1]!r}</NoDataValue>\n")
            colour = source.colorinterp[index - 1].name.capitalize()
            if colour in ("Red", "Green", "Blue", "Alpha", "Gray"):
                lines.append(f"    <ColorInterp>{colour}</ColorInterp>\n")
            lines.append(simple_source(str(index)) + "  </VRTRasterBand>\n")
        flags = source.mask_flag_enums[0]
        if MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags:
            lines.append('  <MaskBand>\n  <VRTRasterBand dataType="Byte">\n')
            lines.append(simple_source("mask,1") + "  </VRTRasterBand>\n  </MaskBand>\n")
    return "".join([*lines, "</VRTDataset>\n"])


def _name_for_vrt(source_path: str | Path, folder: Path) -> tuple[str, bool]:
    """How a VRT in the folder names the raster, and whether that is relative to the folder."""
    local = Path(source_path)
    if not local.exists():  # a URL or a name that only GDAL understands
        return str(source_path), False
    try:
        return Path(os.path.relpath(local.resolve(), folder.resolve())).as_posix(), True
    except ValueError:  # another drive
        return str(local.resolve()), False
