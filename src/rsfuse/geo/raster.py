"""The one door to raster files.

    with open_raster("scene.tif", bands=("red", "nir")) as source:
        raster = source.read(Window(0, 0, 512, 512))

Whatever GDAL reads comes out as (C, H, W) float32 with one `valid` mask: nodata, alpha, mask files,
a mask that the caller gives, and values that are not finite all end in it. No nodata number and no
alpha band is seen beyond this door.
"""

import difflib
import functools
import hashlib
import json
import math
import operator
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp

from rsfuse.errors import BandError, GridError, InputError, NoOverlapError, RasterError
from rsfuse.geo.dataarray import is_dataarray, of_dataarray
from rsfuse.geo.gdal import gdal_settings, is_remote, reading, reason_of
from rsfuse.geo.grid import (
    Window,
    compose,
    overlap,
    pixel_geobox,
    pixel_mapping,
    same_grid,
    window_geobox,
)
from rsfuse.geo.mask import (
    VECTOR_SUFFIXES,
    RasterArea,
    UsableArea,
    no_common_ground,
    read_polygons,
)
from rsfuse.geo.reader import ArrayReader, FileReader, Reader, open_dataset
from rsfuse.geo.reduce import FloatImage, Mask, average, cover, nearest
from rsfuse.runs import parse_json

ComplexAs = Literal["amplitude", "db"]
PaletteAs = Literal["index", "rgb"]

RADIOMETRIES = ("dn", "reflectance", "db", "linear", "amplitude")
RADIOMETRY_TAG = "radiometry"

# Pixels of the source that a reduced read holds at a time, over all bands.
_STRIP_PIXELS = 8 * 2**20

# Channels of an image that is probably (H, W, C).
_MOST_COLOURS = 4

# Descriptions of bands that hold transparency.
_ALPHA_NAMES = ("alpha", "mask", "opacity", "transparen", "band")

_RGB = ("red", "green", "blue")
_NAMED_COLOURS = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)

# What Sentinel-2 and ENVI files append to the name of a band.
_WAVELENGTH = re.compile(
    r"[\s,;:(\[]*(central wavelength)?[\s:=(]*"
    r"\d+(\.\d+)?\s*(nm|um|µm|nanomet\w+|micromet\w+)[\s)\]]*$",
    re.IGNORECASE,
)


@dataclass(frozen=True, eq=False)
class Raster:
    """Pixels in memory.

    Attributes:
        data: (C, H, W) float32.
        valid: (H, W), True where every band can be used.
        geobox: The grid; without a CRS, the pixel frame.
        bands: C names.
        radiometry: What the numbers are: "dn", "reflectance", "db", "linear" or "amplitude".
    """

    data: npt.NDArray[np.float32]
    valid: npt.NDArray[np.bool_]
    geobox: GeoBox
    bands: tuple[str, ...]
    radiometry: str = "dn"

    def __post_init__(self) -> None:
        if (
            self.data.ndim != 3
            or self.data.shape[1:] != self.valid.shape
            or tuple(self.geobox.shape) != self.valid.shape
            or len(self.bands) != len(self.data)
        ):
            raise InputError(
                f"data {self.data.shape}, valid {self.valid.shape}, grid "
                f"{tuple(self.geobox.shape)} and {len(self.bands)} band names do not fit together",
                "a raster is data (C, H, W), valid (H, W), a grid of (H, W) and C band names",
                "check the order of the axes",
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w)."""
        return int(self.valid.shape[0]), int(self.valid.shape[1])


@dataclass(frozen=True)
class _Description:
    """What is known of a raster before a pixel is read; see `RasterSource`."""

    name: str
    shape: tuple[int, int]
    geobox: GeoBox
    is_georeferenced: bool
    bands: tuple[str, ...]
    dtype: str
    radiometry: str
    notes: tuple[str, ...]
    block: tuple[int, int]
    nodata: float | None
    colours: tuple[tuple[int, tuple[int, int, int]], ...] = ()
    class_names: tuple[tuple[int, str], ...] = ()
    path: str | None = None
    stamp: str = ""
    unplaced: Affine | None = None  # a geotransform that lacks its CRS


class RasterSource:
    """A raster that is read by windows. Made by `open_raster`.

    It can be pickled, a copy opens the file again; several threads may read at once.

    Attributes:
        name: The path, or what kind of array it is.
        path: What GDAL opens; None for an array.
        shape: (h, w).
        geobox: The grid; without georeference, the pixel frame.
        is_georeferenced: Whether the grid has a CRS.
        bands: Names of the bands, alpha left out.
        dtype: Type of the numbers in the file, for example "uint16".
        nodata: The number that stands for no data in the file; None where there is none.
        radiometry: What the numbers are, see `Raster`.
        notes: What a user should know about this file, as sentences.
        block: (h, w) of the blocks that the file is stored in.
        colours: Colour table: value -> (red, green, blue); empty where there is none.
        class_names: Value -> name, from the tag `class_names`; empty where there is none.
    """

    def __init__(
        self, about: _Description, reader: Reader, area: UsableArea | None, *, in_db: bool
    ) -> None:
        self._about = about
        self._reader = reader
        self._area = area
        self._in_db = in_db
        self.name = about.name
        self.path = about.path
        self.shape = about.shape
        self.geobox = about.geobox
        self.is_georeferenced = about.is_georeferenced
        self.bands = about.bands
        self.dtype = about.dtype
        self.nodata = about.nodata
        self.radiometry = about.radiometry
        self.notes = about.notes
        self.block = about.block
        self.colours: Mapping[int, Sequence[int]] = dict(about.colours)
        self.class_names: Mapping[int, str] = dict(about.class_names)

    def called(self, name: str) -> "RasterSource":
        """The same raster under another name, for one that stands for another file."""
        return RasterSource(
            replace(self._about, name=name), self._reader, self._area, in_db=self._in_db
        )

    def __repr__(self) -> str:
        h, w = self.shape
        return f"<RasterSource {self.name}: {', '.join(self.bands)}; {w} x {h} {self.dtype}>"

    def __enter__(self) -> "RasterSource":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a later read opens it again."""
        self._reader.close()

    @property
    def fingerprint(self) -> str:
        """Changes when the content may have: size and time of files, or the pixels of an array."""
        digest = hashlib.blake2b(digest_size=12)
        if isinstance(self._reader, ArrayReader):
            digest.update(np.ascontiguousarray(self._reader.data).tobytes())
            digest.update(self._reader.valid.tobytes())
        settings = (self.bands, self.dtype, self.nodata, self.radiometry, repr(self.geobox))
        mask = "" if self._area is None else self._area.fingerprint
        digest.update(f"{self._about.stamp} {settings} {mask}".encode())
        return digest.hexdigest()

    def in_colours(self) -> "RasterSource":
        """The colours that the values of the file point to, as three bands; or the source itself.

        Unlike numbers of classes, colours may be averaged, and likeness of colours means something.
        """
        if not self.colours or not isinstance(self._reader, FileReader):
            return self
        about = replace(self._about, bands=_RGB, colours=(), dtype="uint8")
        reader = replace(self._reader, palette=_palette(self.colours))
        return RasterSource(about, reader, self._area, in_db=False)

    def names_of(self, bands: Sequence[str | int] | None) -> tuple[str, ...]:
        """Names of bands that are given by name or by number from 1; of all for None.

        Raises:
            BandError: A band does not exist.
        """
        return tuple(self.bands[i] for i in self._positions(bands))

    def read(
        self,
        window: Window | None = None,
        *,
        shape: tuple[int, int] | None = None,
        bands: Sequence[str | int] | None = None,
    ) -> Raster:
        """Read a window, at full resolution or reduced.

        A reduced read averages the valid pixels under each coarser pixel, from an overview where
        the file has one that is fine enough, and never holds more than a strip of the source.
        Values that point into a colour table are not averaged: the pixel at the centre is taken.

        Args:
            window: The whole raster when None; what lies outside the raster is invalid.
            shape: (h, w) of the result; the size of the window when None.
            bands: Names or numbers from 1 among `bands`; all when None.

        Raises:
            RasterError: The file is damaged, or the window does not fit into memory.
            BandError: A band does not exist.
        """
        window = Window(0, 0, *self.shape[::-1]) if window is None else _whole_pixels(window)
        size = window.shape if shape is None else (int(shape[0]), int(shape[1]))
        if min(*window.shape, *size) < 1:
            raise InputError(
                f"a window of {window.w} x {window.h} pixels cannot become {size[1]} x {size[0]}",
                "both need at least one pixel",
                "check the area that was asked for",
            )
        chosen = self._positions(bands)
        self._check_memory(size, len(chosen))
        if size == window.shape:
            data, valid = self._full(window, chosen)
        else:
            data, valid = self._reduced(window, size, chosen)
        if self._in_db:
            valid &= (data > 0).all(axis=0)
            data = 20 * np.log10(np.where(valid, data, np.float32(1)))
        grid = window_geobox(self.geobox, window)
        if size != window.shape:
            scale = Affine.scale(window.w / size[1], window.h / size[0])
            grid = GeoBox(size, compose(grid.affine, scale), grid.crs)
        return Raster(data, valid, grid, tuple(self.bands[i] for i in chosen), self.radiometry)

    def _full(self, window: Window, bands: tuple[int, ...]) -> tuple[FloatImage, Mask]:
        inside = window.clipped(self.shape)
        if inside == window:
            return self._masked(window, bands)
        data = np.zeros((len(bands), *window.shape), np.float32)
        valid = np.zeros(window.shape, bool)
        if inside.w and inside.h:
            rows, columns = inside.slices_in(window)
            data[:, rows, columns], valid[rows, columns] = self._masked(inside, bands)
        return data, valid

    def _masked(self, window: Window, bands: tuple[int, ...]) -> tuple[FloatImage, Mask]:
        data, valid = self._reader.read(window, bands, None)
        if self._area is not None:
            valid &= self._area.at(window, window.shape)
            data[:, ~valid] = 0.0
        return data, valid

    def _reduced(
        self, window: Window, size: tuple[int, int], bands: tuple[int, ...]
    ) -> tuple[FloatImage, Mask]:
        level = self._level(window, size)
        height, width = self._reader.shape_of(level)
        fx, fy = width / self.shape[1], height / self.shape[0]
        columns = cover(window.x * fx, (window.x + window.w) * fx, size[1], width)
        rows = cover(window.y * fy, (window.y + window.h) * fy, size[0], height)
        data = np.zeros((len(bands), *size), np.float32)
        valid = np.zeros(size, bool)
        if columns.stop <= columns.first:
            return data, valid
        across = (columns.stop - columns.first) * len(bands)
        step = max(1, int(_STRIP_PIXELS / across / max(rows.length, 1.0)))
        for start in range(0, size[0], step):
            strip = slice(start, min(start + step, size[0]))
            part = rows.rows(strip.start, strip.stop)
            if part.stop <= part.first:
                continue
            fine = Window(
                columns.first, part.first, columns.stop - columns.first, part.stop - part.first
            )
            pixels, usable = self._reader.read(fine, bands, level)
            if self._area is not None:
                usable &= self._area.at(
                    Window(  # in pixels of the raster; exact where there is no overview
                        round(fine.x / fx),
                        round(fine.y / fy),
                        max(1, round(fine.w / fx)),
                        max(1, round(fine.h / fy)),
                    ),
                    fine.shape,
                )
                pixels[:, ~usable] = 0.0
            if self.colours:
                y = (
                    window.y + (np.arange(strip.start, strip.stop) + 0.5) * window.h / size[0]
                ) * fy
                x = (window.x + (np.arange(size[1]) + 0.5) * window.w / size[1]) * fx
                result = nearest(pixels, usable, y - fine.y, x - fine.x)
            else:
                result = average(pixels, usable, part, columns)
            data[:, strip], valid[strip] = result
        return data, valid

    def _level(self, window: Window, size: tuple[int, int]) -> int | None:
        """The coarsest overview that is still at least as fine as the result."""
        factor = min(window.h / size[0], window.w / size[1]) * (1 + 1e-9)
        fitting = [i for i, found in enumerate(self._reader.factors) if found <= factor]
        return max(fitting, key=lambda i: self._reader.factors[i]) if fitting else None

    def _positions(self, bands: Sequence[str | int] | None) -> tuple[int, ...]:
        if bands is None:
            return tuple(range(len(self.bands)))
        return _positions(bands, self.bands, self.name)

    def _check_memory(self, size: tuple[int, int], bands: int) -> None:
        needed = size[0] * size[1] * (bands * 4 + 1)
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > physical:
            raise RasterError(
                f"reading {bands} bands of {size[1]} x {size[0]} pixels of {self.name} takes "
                f"{needed / 1e9:.1f} GB",
                f"this machine has {physical / 1e9:.1f} GB of memory",
                "read a window, or a reduced copy with shape=",
            )


def open_raster(
    source: "str | Path | Raster | RasterSource | npt.NDArray[Any]",
    *,
    bands: Sequence[str | int] | None = None,
    mask: "str | Path | npt.NDArray[Any] | RasterSource | None" = None,
    nodata: float | None = None,
    complex_as: ComplexAs = "amplitude",
    palette_as: PaletteAs = "index",
    subdataset: str | int | None = None,
    transform: Affine | Sequence[float] | None = None,
    crs: Any = None,
) -> RasterSource:
    """Open a raster; no pixel is read yet.

    Args:
        source: A file, URL or dataset name that GDAL opens; an array (H, W) or (C, H, W), masked
            arrays included; an xarray DataArray, whose grid is taken over; or a `Raster`. An open
            source is returned as it is.
        bands: The bands to use, by name or by number from 1; all but alpha when None. Names are
            the descriptions in the file, with or without an appended wavelength. A last band that
            is declared as alpha is data where it has a name or is asked for by its number.
        mask: What may be used: a raster that is not zero there, on any grid, or polygons in a
            vector file. Zero and outside of the polygons is invalid.
        nodata: The number that stands for no data, in place of what the file says.
        complex_as: Complex radar images as "amplitude", or as "db", 20 log10 of it.
        palette_as: Files with a colour table as the "index" into it, or as its "rgb" colours.
        subdataset: Name (or its end) or number from 1, for files that hold several rasters.
        transform: Geotransform (a, b, c, d, e, f) in the order of the affine package, for sources
            without one, or to replace it.
        crs: CRS of the transform: an EPSG code, WKT, anything that pyproj takes.

    Raises:
        RasterError: Missing, damaged, empty, or not a raster.
        BandError: A band does not exist.
        GridError: The mask cannot be placed on the raster, or the CRS is not one.
        InputError: The array is not an image.
    """
    if isinstance(source, RasterSource):
        if (bands, mask, nodata, subdataset, transform, crs) == (None,) * 6:
            return source
        raise InputError(
            f"{source.name} is open already",
            "its bands and its place are settled",
            "give its path, with the options",
        )
    _check_choice("complex_as", complex_as, get_args(ComplexAs))
    _check_choice("palette_as", palette_as, get_args(PaletteAs))
    affine = None if transform is None else _affine(transform)
    if isinstance(source, str | os.PathLike):
        about, reader = _from_file(os.fspath(source), subdataset, nodata, palette_as, bands)
    else:
        about, reader = _from_array(source, nodata)
    about = _placed(about, affine, crs)
    if bands is not None:
        chosen = _positions(bands, about.bands, about.name)
        about = replace(about, bands=tuple(about.bands[i] for i in chosen))
        reader = _with_bands(reader, chosen)
    is_complex = about.dtype.startswith("complex")
    if is_complex:
        about = replace(about, radiometry="db" if complex_as == "db" else "amplitude")
    area = None if mask is None else _area(mask, about)
    return RasterSource(about, reader, area, in_db=is_complex and complex_as == "db")


def _check_choice(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(
            f"{option} is {value!r}", f"it is one of {', '.join(map(repr, known))}", "choose one"
        )


def _affine(transform: Affine | Sequence[float]) -> Affine:
    try:
        return Affine(*(float(value) for value in tuple(transform)[:6]))
    except (TypeError, ValueError) as error:
        raise GridError(
            f"{transform!r} is not a geotransform",
            "six numbers are needed",
            "give (pixel width, 0, left, 0, -pixel height, top)",
        ) from error


def _whole_pixels(window: Sequence[int]) -> Window:
    try:
        return Window(*(operator.index(value) for value in window))
    except TypeError as error:
        raise InputError(
            f"{window!r} is not a window", "four whole numbers are needed", "give (x, y, w, h)"
        ) from error


def _with_bands(reader: Reader, chosen: tuple[int, ...]) -> Reader:
    if isinstance(reader, ArrayReader):
        return replace(reader, data=reader.data[list(chosen)])
    assert isinstance(reader, FileReader)
    if reader.palette is not None:
        return replace(reader, palette=reader.palette[:, list(chosen)])
    return replace(
        reader,
        indexes=tuple(reader.indexes[i] for i in chosen),
        nodata=tuple(reader.nodata[i] for i in chosen),
    )


def _positions(bands: Sequence[str | int], names: tuple[str, ...], where: str) -> tuple[int, ...]:
    """Positions of bands that are given by name or by number from 1."""
    bands = [bands] if isinstance(bands, str | int) else bands
    if not bands:
        raise BandError("no band is asked for", "a raster has at least one", "leave bands out")
    return tuple(_position(band, names, where) for band in bands)


def _position(band: str | int, names: tuple[str, ...], where: str) -> int:
    folded = [name.casefold() for name in names]
    number = 0
    if isinstance(band, str):
        wanted = band.strip().casefold()
        for candidate in (wanted, _WAVELENGTH.sub("", wanted)):
            if candidate in folded:
                return folded.index(candidate)
        number = int(wanted) if wanted.isdecimal() else 0
    elif isinstance(band, int | np.integer):
        number = int(band)
    if 1 <= number <= len(names):
        return number - 1
    near = difflib.get_close_matches(str(band).casefold(), folded, n=1)
    raise BandError(
        f"{where} has no band {band!r}",
        f"its bands are {', '.join(f'{i} {name}' for i, name in enumerate(names, 1))}",
        f"did you mean {names[folded.index(near[0])]!r}?" if near else "choose by name or number",
    )


def area_of(
    mask: "str | Path | npt.NDArray[Any] | RasterSource", raster: RasterSource
) -> UsableArea:
    """An area of interest on the pixels of a raster: another raster (not 0) or polygons.

    Raises:
        RasterError: The file is missing or damaged.
        GridError: It cannot be placed on the raster.
        InputError: It holds no polygon.
        NoOverlapError: It shares no ground with the raster.
    """
    return _area(mask, raster._about, must_touch=True)


def _area(
    mask: "str | Path | npt.NDArray[Any] | RasterSource",
    about: _Description,
    *,
    must_touch: bool = False,
) -> UsableArea:
    if isinstance(mask, str | os.PathLike) and Path(mask).suffix.lower() in VECTOR_SUFFIXES:
        return read_polygons(Path(mask), about.geobox, must_touch=must_touch)
    source = open_raster(mask)
    if not source.is_georeferenced or not about.is_georeferenced:
        if source.shape != about.shape:
            raise GridError(
                f"the mask is {source.shape[1]} x {source.shape[0]} pixels and {about.name} is "
                f"{about.shape[1]} x {about.shape[0]}",
                "without georeference on both, a mask must have the size of its raster",
                "give a mask of the same size, or one with georeference",
            )
        return RasterArea(source, None)
    if same_grid(about.geobox, source.geobox):
        return RasterArea(source, None)
    if must_touch:
        try:
            overlap(about.geobox, source.geobox)
        except NoOverlapError as error:
            bounds = tuple(source.geobox.extent.boundingbox)
            crs = source.geobox.crs
            raise no_common_ground(source.name, bounds, crs, about.geobox) from error
    return RasterArea(source, pixel_mapping(about.geobox, source.geobox))


def _placed(about: _Description, transform: Affine | None, crs: Any) -> _Description:
    """The description with a georeference that the caller gives."""
    if transform is None and crs is None:
        return about
    if transform is not None and crs is None and about.geobox.crs is None:
        return about  # a place on an unknown map is no place
    affine = about.unplaced if transform is None else transform
    if affine is None:
        affine = about.geobox.affine
        if not about.is_georeferenced:
            raise GridError(
                f"a CRS is given for {about.name}, which has no geotransform",
                "the CRS alone does not say where the pixels lie",
                "give transform= as well",
            )
    try:
        geobox = GeoBox(about.shape, affine, about.geobox.crs if crs is None else _crs_text(crs))
    except Exception as error:  # odc-geo passes on whatever pyproj raises
        raise GridError(
            f"{crs!r} is not a CRS: {reason_of(error)}",
            "an EPSG code, WKT or PROJ string is needed",
            "for example crs='EPSG:32631'",
        ) from error
    if not _is_usable(affine):
        raise GridError(
            f"the geotransform {tuple(affine)[:6]} is unusable",
            "pixels must have an area",
            "give (pixel width, 0, left, 0, -pixel height, top)",
        )
    return replace(
        about, geobox=geobox, is_georeferenced=True, notes=(), stamp=f"{about.stamp} {geobox!r}"
    )


def _crs_text(crs: Any) -> Any:
    return _short_name(crs.to_wkt()) if hasattr(crs, "to_wkt") else crs


@functools.lru_cache(maxsize=256)
def _short_name(wkt: str) -> str:
    """The EPSG code of a CRS where it says the same, else the WKT; the search takes a second."""
    crs = rasterio.crs.CRS.from_wkt(wkt)
    code = crs.to_epsg()
    same = code is not None and rasterio.crs.CRS.from_epsg(code) == crs
    return f"EPSG:{code}" if same else wkt


def _is_place(affine: Affine) -> bool:
    return _is_usable(affine) and affine != Affine.identity()


def _is_usable(affine: Affine) -> bool:
    numbers = [float(value) for value in tuple(affine)[:6]]
    return all(math.isfinite(v) and abs(v) < 1e30 for v in numbers) and affine.determinant != 0


def _from_array(source: Any, nodata: float | None) -> tuple[_Description, Reader]:
    if is_dataarray(source):
        values, grid, names, missing = of_dataarray(source)
        about, reader = _from_array(values, missing if nodata is None else nodata)
        about = replace(about, bands=names or about.bands)
        if grid is not None and grid.crs is not None:
            about = replace(about, geobox=grid, is_georeferenced=True, notes=())
        return about, reader
    if isinstance(source, Raster):
        located = source.geobox.crs is not None
        about = _Description(
            name=f"raster {source.data.shape}",
            shape=source.shape,
            geobox=source.geobox,
            is_georeferenced=located,
            bands=source.bands,
            dtype=str(source.data.dtype),
            radiometry=source.radiometry,
            notes=() if located else (_NO_GEOREFERENCE,),
            block=source.shape,
            nodata=nodata,
        )
        return about, ArrayReader(source.data, _without(source.data, source.valid, nodata))
    try:
        array = np.ma.asanyarray(source) if np.ma.isMaskedArray(source) else np.asarray(source)
    except ValueError as error:
        raise InputError(
            f"{type(source).__name__} is no array: {reason_of(error)}",
            "a raster is numbers (H, W) or (C, H, W)",
            "give all rows the same length",
        ) from error
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or array.size == 0 or array.dtype.kind not in "buifc":
        raise InputError(
            f"an array of shape {np.shape(source)} and type {array.dtype} is not an image",
            "a raster is numbers (H, W) or (C, H, W), at least one pixel",
            "check the order of the axes and the type",
        )
    if array.shape[2] <= _MOST_COLOURS < min(array.shape[:2]):
        raise InputError(
            f"an array of shape {array.shape} has its channels last",
            "rsfuse arrays are (C, H, W)",
            "pass numpy.moveaxis(image, -1, 0)",
        )
    shape = (int(array.shape[1]), int(array.shape[2]))
    valid = np.ones(shape, bool)
    if isinstance(array, np.ma.MaskedArray):
        valid = np.asarray(~np.ma.getmaskarray(array).any(axis=0))
        array = np.asarray(array.filled(0))
    valid = _without(array, valid, nodata)
    if array.dtype.kind == "c":
        valid &= np.isfinite(array).all(axis=0)
    about = _Description(
        name=f"array {array.shape}",
        shape=shape,
        geobox=pixel_geobox(shape),
        is_georeferenced=False,
        bands=tuple(f"band{i + 1}" for i in range(len(array))),
        dtype=str(array.dtype),
        radiometry="dn",
        notes=(_NO_GEOREFERENCE,),
        block=shape,
        nodata=nodata,
    )
    return about, ArrayReader(np.abs(array) if array.dtype.kind == "c" else array, valid)


def _without(data: npt.NDArray[Any], valid: Mask, nodata: float | None) -> Mask:
    if nodata is None or math.isnan(nodata):
        return valid
    return np.asarray(valid & (data != nodata).all(axis=0))


_NO_GEOREFERENCE = "no georeference: positions are pixels"


def _from_file(
    name: str,
    subdataset: str | int | None,
    nodata: float | None,
    palette_as: PaletteAs,
    bands: Sequence[str | int] | None,
) -> tuple[_Description, Reader]:
    _check_exists(name)
    with gdal_settings(remote=is_remote(name)), reading(name):
        dataset = open_dataset(name)
        with dataset:
            inner = list(dataset.subdatasets)
            if subdataset is None and (dataset.count or len(inner) != 1):
                return _described(dataset, name, nodata, palette_as, bands)
    return _from_file(_subdataset(name, inner, subdataset), None, nodata, palette_as, bands)


def _check_exists(name: str) -> None:
    if not name.strip():
        raise RasterError("the name of the raster is empty", "a file or URL is needed", "give one")
    path = Path(name)
    if not os.path.exists(name):  # Path.exists raises where a name is too long or forbidden
        if name.startswith("/vsi") or ":" in name:
            return
        folder, near = path.parent, []
        reachable = os.path.isdir(folder)
        if reachable and os.access(folder, os.R_OK):
            near = difflib.get_close_matches(path.name, os.listdir(folder), n=1)
        raise RasterError(
            f"{name} does not exist",
            "a raster file or URL is needed" if reachable else f"there is no folder {folder}",
            f"did you mean {folder / near[0]}?" if near else "check the path",
        )
    if path.is_file() and path.stat().st_size == 0:
        raise RasterError(
            f"{name} is empty (0 bytes)",
            "a download or a copy was probably interrupted",
            "copy it again from where it came",
        )


def _subdataset(name: str, found: list[str], wanted: str | int | None) -> str:
    matches = [found[wanted - 1]] if isinstance(wanted, int) and 0 < wanted <= len(found) else []
    if wanted is None and len(found) == 1:
        matches = found
    elif isinstance(wanted, str):
        matches = [text for text in found if text == wanted]
        matches = matches or [text for text in found if text.endswith((f":{wanted}", f"/{wanted}"))]
    if len(matches) == 1:
        return matches[0]
    listed = "; ".join(f"{i} {text}" for i, text in enumerate(found, 1)) or "none"
    raise RasterError(
        f"{name} has no subdataset {wanted!r}" if wanted else f"{name} holds several rasters",
        f"its subdatasets are {listed}",
        "choose one by number from 1 or by the end of its name",
    )


def _alpha(dataset: Any, bands: Sequence[str | int] | None) -> int | None:
    """GDAL's number of the alpha band; None where there is none, or where it is data.

    GDAL declares the last of four bytes alpha when a writer says nothing, the infrared band of a
    red, green, blue, infrared image included.
    """
    found = [i for i, c in enumerate(dataset.colorinterp, 1) if c == ColorInterp.alpha and i > 1]
    if not found:
        return None
    name = (dataset.descriptions[found[0] - 1] or "").casefold()
    if name and not any(word in name for word in _ALPHA_NAMES):
        return None
    asked = [bands] if isinstance(bands, str | int) else bands or ()
    numbers = {str(band) for band in asked}
    return None if found[0] == dataset.count and str(found[0]) in numbers else found[0]


def _described(
    dataset: Any,
    name: str,
    nodata: float | None,
    palette_as: PaletteAs,
    asked: Sequence[str | int] | None,
) -> tuple[_Description, Reader]:
    inner = list(dataset.subdatasets)
    if dataset.count == 0:
        _subdataset(name, inner, None)
    shape = (int(dataset.height), int(dataset.width))
    alpha = _alpha(dataset, asked)
    indexes = tuple(i for i in range(1, dataset.count + 1) if i != alpha)
    dtype = str(dataset.dtypes[indexes[0] - 1])
    block = dataset.block_shapes[0]
    _check_blocks(name, shape, (int(block[0]), int(block[1])), dtype)
    geobox, notes = _georeference(dataset, shape)
    located = geobox.crs is not None
    if alpha is not None and alpha == dataset.count:
        notes.append(f"band {alpha} is read as transparency; if it is data, ask for {alpha} too")
    if inner and dataset.count:
        notes.append(f"the file holds {len(inner)} rasters, this is the first; see subdataset=")
    bands = _band_names(dataset, indexes)
    table = _colour_table(dataset, indexes[0]) if len(indexes) == 1 else {}
    palette = None
    if table and palette_as == "rgb":
        palette = _palette(table)
        bands, table, dtype = _RGB, {}, "uint8"
    elif table:
        notes.append("the values point into a colour table; see palette_as=")
    own = [nodata if nodata is not None else dataset.nodatavals[i - 1] for i in indexes]
    # Complex overviews average the phase away.
    factors = () if dtype.startswith("complex") else tuple(dataset.overviews(indexes[0]))
    reader = FileReader(
        name,
        indexes,
        tuple(None if value is None else float(value) for value in own),
        alpha=alpha,
        palette=palette,
        factors=tuple(float(factor) for factor in factors),
    )
    about = _Description(
        name=name,
        shape=shape,
        geobox=geobox,
        is_georeferenced=located,
        bands=bands,
        dtype=dtype,
        radiometry=_radiometry(dataset),
        notes=tuple(notes),
        block=(min(int(block[0]), shape[0]), min(int(block[1]), shape[1])),
        nodata=None if palette is not None else reader.nodata[0],
        colours=tuple(table.items()),
        class_names=_class_names(dataset),
        path=name,
        stamp=_stamp(name, () if is_remote(name) else dataset.files),
        unplaced=None if located or not _is_place(dataset.transform) else dataset.transform,
    )
    return about, reader


def _check_blocks(name: str, shape: tuple[int, int], block: tuple[int, int], dtype: str) -> None:
    """A header that is damaged can ask for blocks that no machine holds."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    item = 16 if dtype.startswith("complex") else 8
    if min(block[0], shape[0]) * min(block[1], shape[1]) * item > physical:
        raise RasterError(
            f"{name} is stored in blocks of {block[1]} x {block[0]} pixels",
            "one block does not fit into the memory of this machine, or the header is damaged",
            "rewrite it in tiles, for example with gdal_translate -of COG",
        )


def _georeference(dataset: Any, shape: tuple[int, int]) -> tuple[GeoBox, list[str]]:
    affine, crs = dataset.transform, dataset.crs
    frame = pixel_geobox(shape)
    if affine == Affine.identity():
        points, _ = dataset.gcps
        if points:
            note = f"placed by {len(points)} ground control points only, not used"
            note += ": positions are pixels"
            return frame, [note]
        if dataset.rpcs is not None:
            return frame, ["placed by a sensor model (RPC) only, not used: positions are pixels"]
        return frame, [_NO_GEOREFERENCE]
    if not _is_usable(affine):
        note = f"the geotransform {tuple(affine)[:6]} gives pixels no area and is not used"
        return frame, [f"{note}: positions are pixels; see transform="]
    if not crs:
        return frame, ["a geotransform without a CRS is not used: positions are pixels; see crs="]
    try:
        return GeoBox(shape, affine, _crs_text(crs)), []
    except Exception as error:  # odc-geo passes on whatever pyproj raises
        return frame, [f"the CRS is not known ({reason_of(error)}): positions are pixels"]


def _band_names(dataset: Any, indexes: tuple[int, ...]) -> tuple[str, ...]:
    """Descriptions without wavelengths, else colours, else numbers; each only once."""
    names: list[str] = []
    for index in indexes:
        text = (dataset.descriptions[index - 1] or "").strip()
        colour = dataset.colorinterp[index - 1]
        fallback = colour.name if colour in _NAMED_COLOURS else f"band{index}"
        name = _WAVELENGTH.sub("", text) or text or fallback
        names.append(name if name not in names else f"{name}_{index}")
    return tuple(names)


def _colour_table(dataset: Any, index: int) -> dict[int, tuple[int, int, int]]:
    if dataset.colorinterp[index - 1] != ColorInterp.palette:
        return {}
    return {int(k): (int(v[0]), int(v[1]), int(v[2])) for k, v in dataset.colormap(index).items()}


def _palette(table: Mapping[int, Sequence[int]]) -> npt.NDArray[np.float32]:
    """(N, 3) colours by value; black where the table has none."""
    palette = np.zeros((max(table) + 1, 3), np.float32)
    palette[list(table)] = list(table.values())
    return palette


def _class_names(dataset: Any) -> tuple[tuple[int, str], ...]:
    """Names of classes from the tag that our own writers leave, and nothing where it is damaged."""
    try:
        found = parse_json(dataset.tags().get("class_names", "{}"))
        return tuple((int(value), str(text)) for value, text in found.items())
    except (ValueError, AttributeError):
        return ()


def _radiometry(dataset: Any) -> str:
    stated = str(dataset.tags().get(RADIOMETRY_TAG, "")).lower()
    if stated in RADIOMETRIES:
        return stated
    return "db" if str(dataset.units[0] or "").strip().lower() == "db" else "dn"


def _stamp(name: str, files: Sequence[str]) -> str:
    """What changes when the file does, or its overviews, its mask, or the sources of a VRT."""
    stamps: list[Any] = [name]
    for path in sorted({name, *files}):
        if path.endswith(".aux.xml"):  # written by whoever looks at the statistics
            continue
        try:
            found = os.stat(path)
        except (OSError, ValueError):
            continue
        stamps.append([os.path.abspath(path), found.st_size, found.st_mtime_ns])
    return json.dumps(stamps)
