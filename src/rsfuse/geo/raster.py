"""The one door to raster files.

    with open_raster("scene.tif", bands=("red", "nir")) as source:
        raster = source.read(Window(0, 0, 512, 512))

Whatever GDAL reads comes out as (C, H, W) float32 with one `valid` mask: nodata, alpha, mask files,
a given mask and non-finite values all end in it, and no magic number goes beyond this file.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.geobox import GeoBox

from rsfuse.errors import BandError, InputError, RasterError
from rsfuse.geo.grid import Window, pixel_geobox, pixel_mapping, window_geobox

# GDAL prints its own complaints through rasterio's loggers; ours say the same in three lines.
for _name in ("rasterio._env", "rasterio._err", "rasterio._io", "rasterio._base"):
    logging.getLogger(_name).addHandler(logging.NullHandler())
    logging.getLogger(_name).propagate = False

# No listing of remote folders, a bounded cache, and an end to waiting.
GDAL_OPTIONS: dict[str, Any] = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_CACHEMAX": 256_000_000,
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    "GDAL_HTTP_TIMEOUT": "60",
    "GDAL_HTTP_MAX_RETRY": "3",
    "GDAL_HTTP_RETRY_DELAY": "1",
    "CPL_VSIL_CURL_CACHE_SIZE": 64_000_000,
    "GDAL_PAM_ENABLED": "YES",
}
VECTOR_SUFFIXES = (".gpkg", ".geojson", ".json", ".shp", ".fgb")
MAX_PIXELS = 2**40  # a header that claims more is damaged
ComplexAs = Literal["amplitude", "db"]


@dataclass(frozen=True, eq=False)
class Raster:
    """Pixels in memory.

    Attributes:
        data: (C, H, W) float32.
        valid: (H, W), True where every band is usable.
        geobox: Grid; without CRS for an image without georeference.
        bands: C names.
        radiometry: What the numbers are: `dn`, `reflectance`, `db`, `linear` or `amplitude`.
    """

    data: npt.NDArray[np.float32]
    valid: npt.NDArray[np.bool_]
    geobox: GeoBox
    bands: tuple[str, ...]
    radiometry: str = "dn"

    def __post_init__(self) -> None:
        """Check that the shapes agree."""
        if self.data.ndim != 3 or self.data.shape[1:] != self.valid.shape:
            raise ValueError(f"data {self.data.shape} and valid {self.valid.shape} do not agree")
        if tuple(self.geobox.shape) != self.valid.shape or len(self.bands) != len(self.data):
            raise ValueError("grid or band names do not fit the data")

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w)."""
        return int(self.valid.shape[0]), int(self.valid.shape[1])


class RasterSource:
    """A raster that can be read by windows; made by `open_raster`.

    It can be pickled (a copy opens the file again) and read from several threads at once.

    Attributes:
        name: Path or description.
        shape: (h, w).
        geobox: Grid.
        is_georeferenced: Whether the file says where it lies.
        bands: Names of the bands that `read` gives.
        dtype: Data type in the file.
        nodata: The file's nodata value, if any.
        radiometry: See `Raster`.
        notes: What a careful user should know.
        block: (h, w) of the file's own blocks.
        fingerprint: Changes when the content does: path, size and time, or a hash of an array.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, int],
        geobox: GeoBox,
        bands: tuple[str, ...],
        *,
        dtype: str,
        is_georeferenced: bool,
        radiometry: str = "dn",
        notes: tuple[str, ...] = (),
        block: tuple[int, int] = (512, 512),
        fingerprint: str = "",
        nodata: float | None = None,
        path: str | None = None,
        indexes: tuple[int, ...] = (),
        array: Raster | None = None,
        complex_as: ComplexAs = "amplitude",
        own_nodata: float | None = None,
        mask: RasterSource | None = None,
        mask_shapes: tuple[Any, ...] | None = None,
    ) -> None:
        """Store what `open_raster` found out."""
        self.name = name
        self.shape = shape
        self.geobox = geobox
        self.bands = bands
        self.dtype = dtype
        self.is_georeferenced = is_georeferenced
        self.radiometry = radiometry
        self.notes = notes
        self.block = block
        self.fingerprint = fingerprint
        self.nodata = nodata
        self._path = path
        self._indexes = indexes
        self._array = array
        self._complex_as = complex_as
        self._own_nodata = own_nodata
        self._mask = mask
        self._mask_shapes = mask_shapes
        self._local = threading.local()
        self._handles: list[Any] = []
        self._lock = threading.Lock()

    @property
    def path(self) -> str | None:
        """Path of the file; None for an array."""
        return self._path

    def __repr__(self) -> str:
        """One line."""
        h, w = self.shape
        return f"RasterSource({self.name!r}, {w} x {h}, bands {', '.join(self.bands)})"

    def __enter__(self) -> RasterSource:
        """Nothing is opened before the first read."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close all handles."""
        self.close()

    def close(self) -> None:
        """Close the file handles of all threads; a later read opens again."""
        with self._lock:
            for handle in self._handles:
                handle.close()
            self._handles.clear()
            self._local = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the handles."""
        state = dict(self.__dict__)
        for name in ("_local", "_handles", "_lock"):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Handles are opened again when needed."""
        self.__dict__.update(state)
        self._local, self._handles, self._lock = threading.local(), [], threading.Lock()

    def read(
        self,
        window: Window | None = None,
        *,
        shape: tuple[int, int] | None = None,
        bands: Sequence[str | int] | None = None,
    ) -> Raster:
        """Read a window, reduced when `shape` is smaller than it.

        Args:
            window: Pixels to read; all when None. What lies outside the image comes out invalid.
            shape: (h, w) of the result; reductions average, from overviews where there are some.
            bands: Some of this source's bands, by name or by number from 1.

        Raises:
            RasterError: The file is damaged there.
            BandError: There is no such band.
        """
        whole = Window(0, 0, self.shape[1], self.shape[0])
        window = whole if window is None else window
        size = window.shape if shape is None else shape
        if min(size) < 1:
            raise RasterError(
                f"a window of {window.w} x {window.h} pixels was asked for",
                "It must have at least one pixel.",
                "Check the area of interest against the raster with rsfuse info.",
            )
        picked = range(len(self.bands)) if bands is None else self._positions(bands)
        names = tuple(self.bands[i] for i in picked)
        grid = window_geobox(self.geobox, window)
        if size != window.shape:
            scale = Affine.scale(window.w / size[1], window.h / size[0])
            grid = GeoBox(size, grid.affine * scale, grid.crs)
        data = np.zeros((len(names), *size), np.float32)
        valid = np.zeros(size, bool)
        inside = window.clipped(self.shape)
        if inside.w and inside.h:
            fx, fy = size[1] / window.w, size[0] / window.h
            x0, y0 = round((inside.x - window.x) * fx), round((inside.y - window.y) * fy)
            x1 = max(x0 + 1, round((inside.x + inside.w - window.x) * fx))
            y1 = max(y0 + 1, round((inside.y + inside.h - window.y) * fy))
            x1, y1 = min(x1, size[1]), min(y1, size[0])
            if x1 > x0 and y1 > y0:
                part, good = self._read_inside(inside, (y1 - y0, x1 - x0), tuple(picked))
                data[:, y0:y1, x0:x1], valid[y0:y1, x0:x1] = part, good
        return Raster(data, valid, grid, names, self.radiometry)

    def _positions(self, bands: Sequence[str | int]) -> list[int]:
        return [_band_position(b, self.bands, self.name) for b in bands]

    def _read_inside(
        self, window: Window, size: tuple[int, int], picked: tuple[int, ...]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        if self._array is not None:
            data, valid = _reduced(self._array, window, size, picked)
        else:
            data, valid = self._read_file(window, size, picked)
        valid &= np.isfinite(data).all(axis=0)
        if self._mask is not None or self._mask_shapes is not None:
            valid &= self._external_mask(window, size)
        if not valid.all():
            data[:, ~valid] = 0.0
        return data, valid

    def _read_file(
        self, window: Window, size: tuple[int, int], picked: tuple[int, ...]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        from rasterio.enums import Resampling
        from rasterio.windows import Window as GdalWindow

        indexes = [self._indexes[i] for i in picked]
        place = GdalWindow(*window)
        reduced = size != window.shape
        method = Resampling.average if reduced else Resampling.nearest
        with _quiet(), _explained(self.name, f"window {tuple(window)}"):
            handle = self._handle()
            is_complex = "complex" in self.dtype or "int16_" in self.dtype
            raw = handle.read(
                indexes,
                window=place,
                out_shape=(len(indexes), *size),
                resampling=Resampling.nearest if is_complex else method,
            )
            mask = handle.dataset_mask(window=place, out_shape=size) > 0
            if self._own_nodata is not None:
                mask &= ~(raw == self._own_nodata).any(axis=0)
        if np.iscomplexobj(raw):
            raw = np.abs(raw)
            if self._complex_as == "db":
                mask &= (raw > 0).all(axis=0)
                raw = 20 * np.log10(np.maximum(raw, 1e-12))
        return raw.astype(np.float32), mask

    def _external_mask(self, window: Window, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
        grid = window_geobox(self.geobox, window)
        affine = grid.affine * Affine.scale(window.w / size[1], window.h / size[0])
        if self._mask_shapes is not None:
            from rasterio.features import rasterize

            if not self._mask_shapes:
                return np.zeros(size, bool)
            burnt = rasterize(self._mask_shapes, out_shape=size, transform=affine, dtype="uint8")
            return np.asarray(burnt > 0)
        from rsfuse.geo.warp import read_mapped

        assert self._mask is not None
        step = np.array([window.w / size[1], window.h / size[0]])
        corner = np.array([window.x, window.y])
        if self._mask.shape == self.shape and not self._mask.is_georeferenced:
            through = None
        else:
            through = pixel_mapping(self.geobox, self._mask.geobox)

        def mapping(xy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            own = xy * step + corner
            return own if through is None else through(own)

        found = read_mapped(self._mask, size, mapping, resampling="nearest")
        return np.asarray(found.valid & (found.data != 0).any(axis=0))

    def _handle(self) -> Any:
        handle = getattr(self._local, "handle", None)
        if handle is None:
            handle = _open_dataset(str(self._path))
            self._local.handle = handle
            with self._lock:
                self._handles.append(handle)
        return handle


def _reduced(
    raster: Raster, window: Window, size: tuple[int, int], picked: tuple[int, ...]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """A window of an array; reductions average the valid pixels only."""
    rows, columns = slice(window.y, window.y + window.h), slice(window.x, window.x + window.w)
    data = raster.data[list(picked), rows, columns].astype(np.float32, copy=True)
    valid = raster.valid[rows, columns].copy()
    if size == window.shape:
        return data, valid
    import cv2

    smaller = size[0] <= window.h and size[1] <= window.w
    mode = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    weight = cv2.resize(valid.astype(np.float32), size[::-1], interpolation=mode)
    clean = np.where(valid, data, 0.0).astype(np.float32)
    small = np.stack([cv2.resize(b, size[::-1], interpolation=mode) for b in clean])
    return small / np.maximum(weight, 1e-6), np.asarray(weight > 0.5)


def open_raster(
    source: Any,
    *,
    bands: Sequence[str | int] | None = None,
    mask: Any = None,
    nodata: float | None = None,
    complex_as: ComplexAs = "amplitude",
    subdataset: str | int | None = None,
    transform: Affine | None = None,
    crs: Any = None,
) -> RasterSource:
    """Open a raster without reading its pixels.

    Args:
        source: A path or URL that GDAL understands, an array (H, W) or (C, H, W), a `Raster`.
        bands: Bands by name (description or colour, such as "red") or by number from 1; all but
            alpha when None.
        mask: Usable pixels: a raster (non-zero is usable), or a vector file (inside is usable).
        nodata: Value that means "no data"; the file's own counts too.
        complex_as: Complex radar data as `amplitude` or `db`.
        subdataset: Name or number from 1, for containers such as HDF5 or SAFE.
        transform: Geotransform, for arrays and files without one.
        crs: CRS, the same.

    Raises:
        RasterError: Missing, damaged or no raster.
        BandError: There is no such band.
        InputError: An array of impossible shape.
    """
    if isinstance(source, RasterSource):
        raise InputError(
            "an open raster was given to open_raster", "It is open already.", "Use it as it is."
        )
    if isinstance(source, Raster | np.ndarray):
        opened = _from_array(source, bands, nodata, transform, crs)
    else:
        opened = _from_file(str(source), bands, nodata, complex_as, subdataset, transform, crs)
    if mask is not None:
        _attach_mask(opened, mask)
    return opened


def _attach_mask(source: RasterSource, mask: Any) -> None:
    if isinstance(mask, str | Path) and Path(mask).suffix.lower() in VECTOR_SUFFIXES:
        source._mask_shapes = _mask_shapes(Path(mask), source)
    else:
        source._mask = mask if isinstance(mask, RasterSource) else open_raster(mask)
        same = source._mask.shape == source.shape
        if not source._mask.is_georeferenced and not same:
            raise InputError(
                f"the mask is {source._mask.shape[1]} x {source._mask.shape[0]} pixels, the raster "
                f"{source.shape[1]} x {source.shape[0]}, and the mask has no georeference",
                "A mask without georeference must have the size of its raster.",
                "Give a georeferenced mask, or one of the same size.",
            )


def _mask_shapes(path: Path, source: RasterSource) -> tuple[Any, ...]:
    """Polygons of a vector file in the CRS of the raster."""
    import shapely
    from pyogrio.raw import read as read_vector

    if not path.exists():
        raise RasterError(f"{path}: no such file", "The mask could not be read.", "Check the path.")
    try:
        meta, _, geometry, _ = read_vector(path, columns=[])
    except Exception as error:
        raise RasterError(
            f"{path}: not a vector file that can be read ({error})",
            "A mask is a raster or a file of polygons.",
            "Check it with ogrinfo.",
        ) from error
    shapes = shapely.from_wkb(geometry)
    if meta.get("crs") and source.geobox.crs is not None:
        from pyproj import Transformer

        change = Transformer.from_crs(meta["crs"], str(source.geobox.crs), always_xy=True)
        shapes = shapely.transform(
            shapes, lambda p: np.stack(change.transform(p[:, 0], p[:, 1]), axis=1)
        )
    return tuple(s for s in shapes if s is not None and not s.is_empty)


def _from_array(
    source: Raster | npt.NDArray[Any],
    bands: Sequence[str | int] | None,
    nodata: float | None,
    transform: Affine | None,
    crs: Any,
) -> RasterSource:
    notes: tuple[str, ...] = ()
    if isinstance(source, Raster):
        raster, dtype = source, "float32"
    else:
        array = np.asarray(source)
        dtype = str(array.dtype)
        if array.ndim == 2:
            array = array[None]
        if array.ndim != 3 or array.size == 0 or array.dtype.kind not in "buif":
            raise InputError(
                f"an array of shape {np.asarray(source).shape} and type {dtype} was given",
                "A raster is (H, W) or (C, H, W) numbers.",
                "Convert it, for instance with numpy.asarray(x, dtype='float32').",
            )
        if array.shape[2] <= 4 < array.shape[0] and array.shape[1] > 4:
            raise InputError(
                f"an array of shape {array.shape} was given, which looks like channels last",
                "rsfuse arrays are channels first: (C, H, W).",
                "Use numpy.moveaxis(x, -1, 0).",
            )
        data = array.astype(np.float32)
        valid = np.isfinite(data).all(axis=0)
        if nodata is not None and not np.isnan(nodata):
            valid &= ~(array == nodata).any(axis=0)
        shape = (int(array.shape[1]), int(array.shape[2]))
        grid = pixel_geobox(shape) if transform is None else GeoBox(shape, transform, crs)
        names = tuple(f"band{i + 1}" for i in range(len(array)))
        raster = Raster(np.where(np.isfinite(data), data, 0).astype(np.float32), valid, grid, names)
        if transform is None:
            notes = ("no georeference: positions are pixels",)
    located = raster.geobox.crs is not None or raster.geobox.affine != Affine.identity()
    if bands is not None:
        picked = [_band_position(b, raster.bands, "the array") for b in bands]
        raster = Raster(
            raster.data[picked],
            raster.valid,
            raster.geobox,
            tuple(raster.bands[i] for i in picked),
            raster.radiometry,
        )
    digest = hashlib.sha256(raster.data.tobytes()).hexdigest()[:16]
    return RasterSource(
        "array",
        raster.shape,
        raster.geobox,
        raster.bands,
        dtype=dtype,
        is_georeferenced=located,
        radiometry=raster.radiometry,
        notes=notes,
        fingerprint=digest,
        nodata=nodata,
        array=raster,
    )


def _from_file(
    path: str,
    bands: Sequence[str | int] | None,
    nodata: float | None,
    complex_as: ComplexAs,
    subdataset: str | int | None,
    transform: Affine | None,
    crs: Any,
) -> RasterSource:
    local = Path(path)
    plain = "://" not in path and not path.startswith("/vsi") and ":" not in path[2:]
    if plain and not local.exists():
        raise RasterError(f"{path}: no such file", "It could not be opened.", "Check the path.")
    if plain and local.is_file() and local.stat().st_size == 0:
        raise RasterError(
            f"{path}: the file is empty (0 bytes)", "A raster was expected.", "Copy it again."
        )
    with _quiet(), _explained(path, "opening"):
        dataset = _open_dataset(path)
    try:
        if subdataset is not None or (dataset.count == 0 and dataset.subdatasets):
            chosen = _subdataset(path, list(dataset.subdatasets), subdataset)
            return _from_file(chosen, bands, nodata, complex_as, None, transform, crs)
        if dataset.count == 0 or dataset.width * dataset.height > MAX_PIXELS:
            raise RasterError(
                f"{path}: {dataset.count} bands of {dataset.width} x {dataset.height} pixels",
                "There are no pixels to read, or the header is damaged.",
                "Check it with gdalinfo.",
            )
        with _quiet(), _explained(path, "reading the header"):
            return _described(dataset, path, bands, nodata, complex_as, transform, crs)
    finally:
        dataset.close()


def _described(
    dataset: Any,
    path: str,
    bands: Sequence[str | int] | None,
    nodata: float | None,
    complex_as: ComplexAs,
    transform: Affine | None,
    crs: Any,
) -> RasterSource:
    from rasterio.enums import ColorInterp

    shape = (int(dataset.height), int(dataset.width))
    notes: list[str] = []
    affine = transform if transform is not None else dataset.transform
    system = crs if crs is not None else dataset.crs
    located = affine != Affine.identity()
    if not located:
        affine, system = Affine.identity(), None
        if dataset.gcps[0]:
            notes.append(f"located by {len(dataset.gcps[0])} control points only; not used")
        elif dataset.rpcs is not None:
            notes.append("located by RPCs only; not used")
        else:
            notes.append("no georeference: positions are pixels")
    elif system is None:
        notes.append("a geotransform but no CRS: map units are unknown")
    if abs(affine.determinant) < 1e-300 or not np.isfinite(list(affine)[:6]).all():
        raise RasterError(
            f"{path}: the geotransform {tuple(affine)[:6]} has no area",
            "Pixels must have a size.",
            "Repair it with gdal_edit.py -a_ullr.",
        )
    try:
        geobox = GeoBox(shape, affine, None if system is None else system.to_wkt()
                        if hasattr(system, "to_wkt") else system)
    except Exception as error:
        raise RasterError(
            f"{path}: its CRS cannot be understood ({error})",
            "A CRS that PROJ knows is needed.",
            "Assign one with gdal_edit.py -a_srs EPSG:...",
        ) from error
    colours = dataset.colorinterp
    usable = [i for i, c in enumerate(colours) if c != ColorInterp.alpha] or [0]
    names = _band_names(dataset, usable)
    if bands is None:
        picked = list(range(len(usable)))
    else:
        picked = [_band_position(b, names, path) for b in bands]
    indexes = tuple(usable[i] + 1 for i in picked)
    dtype = str(dataset.dtypes[indexes[0] - 1])
    radiometry = dataset.tags().get("radiometry", "dn")
    if "complex" in dtype:
        radiometry = "db" if complex_as == "db" else "amplitude"
    local = Path(path)
    stamp = f"{path}"
    if local.is_file():
        stat = local.stat()
        stamp = f"{local.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
    block = dataset.block_shapes[0]
    return RasterSource(
        path,
        shape,
        geobox,
        tuple(names[i] for i in picked),
        dtype=dtype,
        is_georeferenced=located,
        radiometry=radiometry,
        notes=tuple(notes),
        block=(int(block[0]), int(block[1])),
        fingerprint=hashlib.sha256(stamp.encode()).hexdigest()[:16],
        nodata=dataset.nodata if nodata is None else nodata,
        path=path,
        indexes=indexes,
        complex_as=complex_as,
        own_nodata=nodata,
    )


def _band_names(dataset: Any, usable: list[int]) -> tuple[str, ...]:
    """Descriptions, else colours, else numbers; made unique."""
    from rasterio.enums import ColorInterp

    wanted = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    names: list[str] = []
    for i in usable:
        text = dataset.descriptions[i]
        colour = dataset.colorinterp[i]
        name = text.strip() if text else colour.name if colour in wanted else f"band{i + 1}"
        names.append(name if name not in names else f"{name}_{i + 1}")
    return tuple(names)


def _band_position(band: str | int, names: tuple[str, ...], where: str) -> int:
    """Position of a band by name or by number from 1."""
    listing = ", ".join(f"{i + 1} {n}" for i, n in enumerate(names))
    if isinstance(band, str) and not band.isdigit():
        lower = [n.lower() for n in names]
        if band.lower() in lower:
            return lower.index(band.lower())
        raise BandError(
            f"{where}: there is no band {band!r}", f"It has {listing}.", "Choose one of them."
        )
    number = int(band)
    if not 1 <= number <= len(names):
        raise BandError(
            f"{where}: there is no band {number}",
            f"It has {len(names)}: {listing}.",
            "Bands are numbered from 1.",
        )
    return number - 1


def _subdataset(path: str, available: list[str], wanted: str | int | None) -> str:
    listing = ", ".join(f"{i + 1} {name}" for i, name in enumerate(available)) or "none"
    if isinstance(wanted, int) and 1 <= wanted <= len(available):
        return available[wanted - 1]
    if isinstance(wanted, str):
        hits = [name for name in available if name == wanted or name.endswith(wanted)]
        if len(hits) == 1:
            return hits[0]
    raise RasterError(
        f"{path}: a container with subdatasets"
        if wanted is None
        else f"{path}: there is no subdataset {wanted!r}",
        f"It holds {listing}.",
        "Choose one, by its name or its number from 1.",
    )


def _open_dataset(path: str) -> Any:
    import rasterio

    with rasterio.Env(**_options(path)):
        return rasterio.open(path)


def _options(path: str) -> dict[str, Any]:
    """Listing the folder is how GDAL finds sidecar files; on a disk that is cheap and wanted."""
    options = dict(GDAL_OPTIONS)
    if "://" not in path and not path.startswith("/vsi"):
        del options["GDAL_DISABLE_READDIR_ON_OPEN"]
    return options


@contextmanager
def _quiet() -> Iterator[None]:
    """Warnings that are said in `notes` do not go to the terminal as well."""
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


@contextmanager
def _explained(name: str, what: str) -> Iterator[None]:
    """What GDAL raises becomes a RasterError."""
    import rasterio.errors

    try:
        yield
    except (rasterio.errors.RasterioError, OSError, ValueError, MemoryError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise RasterError(
            f"{name}: cannot be read as a raster ({what}: {str(error).strip() or 'no reason given'})",
            "The file is damaged, incomplete, or not a format that GDAL reads.",
            "Check it with gdalinfo, or copy it again.",
        ) from error
    except Exception as error:
        if type(error).__module__.startswith("rasterio"):
            raise RasterError(
                f"{name}: cannot be read as a raster ({what}: {error})",
                "The file is damaged, incomplete, or not a format that GDAL reads.",
                "Check it with gdalinfo, or copy it again.",
            ) from error
        raise
