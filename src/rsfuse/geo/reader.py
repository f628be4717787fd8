"""Pixels of a file or an array, as float32 with a mask. Used by `raster` only."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.enums import MaskFlags
from rasterio.windows import Window as GdalWindow

from rsfuse.geo.gdal import gdal_settings, is_remote, no_georeference_warnings, reading
from rsfuse.geo.grid import Window
from rsfuse.geo.reduce import FloatImage, Mask

Pixels = tuple[FloatImage, Mask]


class Reader(Protocol):
    """Reads windows that lie inside the raster, at full resolution or from an overview."""

    factors: tuple[float, ...]

    def shape_of(self, level: int | None) -> tuple[int, int]:
        """(h, w) of an overview; of the raster for None."""

    def read(self, window: Window, bands: tuple[int, ...], level: int | None) -> Pixels:
        """Data (C, h, w), zero where invalid, and valid (h, w)."""

    def close(self) -> None:
        """Give back what is open."""


@dataclass
class ArrayReader:
    """An array in memory.

    Attributes:
        data: (C, H, W).
        valid: (H, W).
    """

    data: npt.NDArray[Any]
    valid: Mask
    factors: tuple[float, ...] = ()

    def shape_of(self, level: int | None) -> tuple[int, int]:
        """(h, w); an array has no overviews."""
        return int(self.valid.shape[0]), int(self.valid.shape[1])

    def read(self, window: Window, bands: tuple[int, ...], level: int | None) -> Pixels:
        """Data (C, h, w), zero where invalid, and valid (h, w)."""
        h, w = self.shape_of(None)
        rows, columns = window.slices_in(Window(0, 0, w, h))
        data = _float32(self.data[list(bands), rows, columns])
        return _cleaned(data, self.valid[rows, columns].copy())

    def close(self) -> None:
        """An array needs no closing."""


@dataclass
class FileReader:
    """A file that GDAL reads: handles are opened when needed and lent to one thread at a time.

    A handle opened before a fork is not used after it: two processes would share its file position.

    Attributes:
        path: What GDAL opens.
        indexes: GDAL's number of each band.
        nodata: Nodata value of each band; None where there is none.
        alpha: GDAL's number of the alpha band; None where there is none.
        palette: (256 or 65536, 3) colours that the first band points into; None to read it as is.
        factors: Reduction of each overview.
    """

    path: str
    indexes: tuple[int, ...]
    nodata: tuple[float | None, ...]
    alpha: int | None = None
    palette: npt.NDArray[np.float32] | None = None
    factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._idle: dict[int | None, list[Any]] = {}
        self._lock = threading.Lock()
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        hidden = ("_idle", "_lock", "_process")
        return {key: value for key, value in vars(self).items() if key not in hidden}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    def close(self) -> None:
        """Close the idle handles; a later read opens new ones."""
        with self._lock:
            handles = [handle for idle in self._idle.values() for handle in idle]
            self._idle.clear()
        for handle in handles:
            handle.close()

    def shape_of(self, level: int | None) -> tuple[int, int]:
        """(h, w) of an overview; of the raster for None."""
        with self._gdal(), self._handle(level) as dataset:
            return int(dataset.height), int(dataset.width)

    def read(self, window: Window, bands: tuple[int, ...], level: int | None) -> Pixels:
        """Data (C, h, w), zero where invalid, and valid (h, w)."""
        place = GdalWindow(*window)
        chosen = (0,) if self.palette is not None else bands
        indexes = [self.indexes[band] for band in chosen]
        with self._gdal(window), self._handle(level) as dataset:
            raw = dataset.read(indexes, window=place)
            valid = self._valid(dataset, place, indexes)
        for band, values in zip(chosen, raw, strict=True):
            nodata = self.nodata[band]
            if nodata is not None and not np.isnan(nodata):
                valid &= values != nodata
        if np.iscomplexobj(raw):
            data = np.abs(raw).astype(np.float32, copy=False)
        elif self.palette is not None:
            entry = np.minimum(raw[0].astype(np.int64), len(self.palette) - 1)
            data = np.ascontiguousarray(np.moveaxis(self.palette[entry][..., list(bands)], -1, 0))
        else:
            data = _float32(raw)
        return _cleaned(data, valid)

    def _valid(self, dataset: Any, place: GdalWindow, indexes: list[int]) -> Mask:
        valid = np.ones((int(place.height), int(place.width)), bool)
        if self.alpha is not None:
            opaque = dataset.read(self.alpha, window=place)
            # What "opaque" is in files of more bits depends on their writer: 1, 255 or 65535.
            valid &= opaque >= (128 if opaque.dtype == np.uint8 else 0.5)
        flags = dataset.mask_flag_enums
        for index in indexes:
            known = {MaskFlags.all_valid, MaskFlags.alpha}
            if set(flags[index - 1]) & known or flags[index - 1] == [MaskFlags.nodata]:
                continue
            valid &= dataset.read_masks(index, window=place) > 0
            if MaskFlags.per_dataset in flags[index - 1]:
                break
        return valid

    @contextmanager
    def _gdal(self, window: Window | None = None) -> Iterator[None]:
        where = "" if window is None else f" at columns {window.x} to {window.x + window.w}, rows "
        where += "" if window is None else f"{window.y} to {window.y + window.h}"
        with gdal_settings(remote=is_remote(self.path)), reading(self.path, where):
            yield

    @contextmanager
    def _handle(self, level: int | None) -> Iterator[Any]:
        """An open dataset; closed, not reused, after an error."""
        with self._lock:
            if self._process != os.getpid():
                self._idle, self._process = {}, os.getpid()
            idle = self._idle.setdefault(level, [])
            handle = idle.pop() if idle else None
        if handle is None:
            handle = open_dataset(self.path, level)
        try:
            yield handle
        except BaseException:
            handle.close()
            raise
        with self._lock:
            self._idle.setdefault(level, []).append(handle)


def open_dataset(path: str, level: int | None = None) -> Any:
    """A rasterio dataset, or one of its overviews. The caller sets GDAL up and closes it."""
    options = {} if level is None else {"OVERVIEW_LEVEL": level}
    with no_georeference_warnings():
        return rasterio.open(path, sharing=False, **options)


def _float32(values: npt.NDArray[Any]) -> FloatImage:
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float32)


def _cleaned(data: FloatImage, valid: Mask) -> Pixels:
    """Not a number and infinity are invalid; what is invalid is zero."""
    valid &= np.isfinite(data).all(axis=0)
    if not valid.all():
        data[:, ~valid] = 0.0
    return data, valid
