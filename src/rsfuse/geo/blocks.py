"""A raster under construction that survives being killed. Used by `tiles` only.

GDAL writes the header of an uncompressed tiled GeoTIFF and closes it; every block then has its
place in the file. Pixels are written there by the operating system's own calls. No header changes
any more, so a kill can tear the pixels in progress and nothing else, a full disk is an error at
once, and blocks that nobody touches take no space where nodata is zero or absent.
"""

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from rsfuse.errors import InputError, RasterError
from rsfuse.geo.grid import Window
from rsfuse.geo.write import ClassNames, Colours, check_whole, opened, tiled_writer

BLOCK = 512


class BlockFile:
    """An uncompressed tiled GeoTIFF that is open for writing windows.

    Attributes:
        path: The file.
        shape: (h, w).
        count: Number of bands.
        dtype: Data type.
    """

    def __init__(self, path: Path) -> None:
        with opened(path) as file:
            self.path = path
            self.shape = (int(file.height), int(file.width))
            self.count = int(file.count)
            self.dtype = np.dtype(file.dtypes[0])
            self._columns = -(-self.shape[1] // BLOCK)
            rows = -(-self.shape[0] // BLOCK)
            self._pixel = self.count * self.dtype.itemsize
            size = BLOCK * BLOCK * self._pixel
            first = file.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1)
            last = file.get_tag_item(f"BLOCK_OFFSET_{self._columns - 1}_{rows - 1}", "TIFF", bidx=1)
            expected = (rows * self._columns - 1) * size
            if first is None or last is None or int(last) - int(first) != expected:
                raise RasterError(
                    f"{path} is not laid out block after block",
                    "only a file that rsfuse made can be continued",
                    "remove it and start anew",
                )
            self._start = int(first)
        self._file = os.open(path, os.O_RDWR | getattr(os, "O_CLOEXEC", 0))

    @classmethod
    def create(
        cls,
        path: Path,
        geobox: GeoBox,
        count: int,
        *,
        dtype: npt.DTypeLike,
        nodata: float | None = None,
        bands: Sequence[str] | None = None,
        colours: Colours | None = None,
        class_names: ClassNames | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> "BlockFile":
        """Make the file, full of nodata, or of zero where there is none, and open it.

        It appears under its name when its header is whole. Arguments as in `tiled_writer`.

        Raises:
            OSError: It cannot be written, also as one of GDAL's errors.
        """
        temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part.tif")
        try:
            with tiled_writer(
                temporary,
                geobox,
                count,
                dtype=dtype,
                nodata=nodata,
                bands=bands,
                colours=colours,
                class_names=class_names,
                tags=tags,
                block=BLOCK,
            ):
                pass
            check_whole(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return cls(path)

    def write(self, window: Window, data: npt.NDArray[Any]) -> None:
        """Write (C, h, w) at a window that lies inside the file.

        Raises:
            OSError: The disk is full, or gone.
        """
        if window.clipped(self.shape) != window or data.shape != (self.count, *window.shape):
            raise InputError(
                f"data {data.shape} for {window} of a file of {self.shape} and {self.count} bands",
                "the window lies inside of the file and has the size of the data",
                "pass the core of a tile and what belongs to it",
            )
        pixels = np.moveaxis(np.asarray(data, self.dtype), 0, -1)
        for row in range(window.y // BLOCK, -(-(window.y + window.h) // BLOCK)):
            for column in range(window.x // BLOCK, -(-(window.x + window.w) // BLOCK)):
                self._write_part(row, column, window, pixels)

    def _write_part(self, row: int, column: int, window: Window, pixels: npt.NDArray[Any]) -> None:
        """What a window has in one block."""
        block = Window(column * BLOCK, row * BLOCK, BLOCK, BLOCK)
        part = block.intersection(window)
        inside = np.ascontiguousarray(pixels[part.slices_in(window)])
        number = row * self._columns + column
        start = self._start + number * BLOCK * BLOCK * self._pixel
        start += ((part.y - block.y) * BLOCK + part.x - block.x) * self._pixel
        if part.w == BLOCK:
            self._put(inside.tobytes(), start)
            return
        for line in range(part.h):
            self._put(inside[line].tobytes(), start + line * BLOCK * self._pixel)

    def _put(self, content: bytes, start: int) -> None:
        rest = memoryview(content)
        while rest:
            written = os.pwrite(self._file, rest, start)
            rest, start = rest[written:], start + written

    def has(self, value: float) -> bool:
        """Whether any pixel of the first band has the value."""
        with opened(self.path) as file:
            return any(
                bool((file.read(1, window=window) == value).any())
                for _, window in file.block_windows(1)
            )

    def flush(self) -> None:
        """Wait until what was written is on the disk."""
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
