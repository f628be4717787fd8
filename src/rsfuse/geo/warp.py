"""Resampling: read a raster on another lattice, or write the whole of it there.

A lattice pixel that is larger than a source pixel sees an average. The source is first reduced by
whole factors, along each axis by its own, on a lattice that starts at its first pixel; what is left
of the change of scale, less than a factor of two, is smoothed by a Gaussian. Both depend on the
mapping alone, never on how the result is cut into tiles.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from rsfuse.errors import InputError, NoOverlapError, RasterError
from rsfuse.geo.gdal import CACHE_BYTES
from rsfuse.geo.grid import PointMapping, Points, Window, pixel_geobox
from rsfuse.geo.raster import Raster, RasterSource
from rsfuse.geo.reduce import FloatImage, Mask
from rsfuse.geo.sampling import TAPS, sample

WARP_TILE = 1024

Resampling = Literal["nearest", "bilinear", "cubic", "lanczos"]

# A smooth mapping is evaluated at nodes and interpolated where that is this exact.
_NODE_STEPS_PX = (32, 8)
_NODE_ERROR_PX = 1e-3

# The result is worked on in parts of this side, the source under each with at most so many times as
# many pixels: a quarter turn takes two, a mapping that scatters is cut further.
_PART_PX = 1024
_SOURCE_SHARE = 4
_SMALLEST_PART_PX = 16

# Where the change of scale of a mapping is measured, per axis of the lattice.
_SCALE_PROBES = 17

# Below this sigma a Gaussian over whole pixels does nothing but noise.
_LEAST_SIGMA_PX = 0.25

# Bytes per pixel of the positions that a tile is read at, in the three forms they pass through.
_POSITION_BYTES = 48
_SMALLEST_TILE = 256


@dataclass(frozen=True)
class _Prefilter:
    """Whole factors of reduction (x, y), and the Gaussian on the reduced pixels after it."""

    factors: tuple[int, int]
    sigmas_px: tuple[float, float]

    @property
    def margin(self) -> int:
        """Reduced pixels that the Gaussian reaches."""
        return math.ceil(3 * max(self.sigmas_px)) if max(self.sigmas_px) else 0


_MOST_EXACT = 1 << 24  # integer of a 32-bit float
_NO_PREFILTER = _Prefilter((1, 1), (0.0, 0.0))


def read_mapped(
    source: RasterSource,
    shape: tuple[int, int],
    mapping: PointMapping,
    *,
    bands: Sequence[str | int] | None = None,
    resampling: Resampling = "cubic",
    geobox: GeoBox | None = None,
) -> Raster:
    """Read a raster on a lattice that a mapping ties to its pixels.

    Args:
        source: The raster; only the windows that are needed are read.
        shape: (h, w) of the lattice.
        mapping: Lattice positions (N, 2) -> source positions (N, 2), both in the corner convention;
            NaN where there is none.
        bands: Bands to read; all when None.
        resampling: Kernel between pixels. Where the lattice is coarser than the source, the source
            is averaged first, except with "nearest".
        geobox: The grid of the lattice; its own pixels when None.

    Returns:
        Data of `shape`; invalid where the source is, or does not reach.

    Raises:
        RasterError: The source is damaged.
        BandError: A band does not exist.
        InputError: The lattice has no pixel, the grid another shape, or the kernel is unknown.
    """
    grid = pixel_geobox(shape) if geobox is None else geobox
    if min(shape) < 1 or tuple(grid.shape) != tuple(shape):
        raise InputError(
            f"a lattice of {shape[1]} x {shape[0]} pixels on a grid of {tuple(grid.shape)}",
            "both need the same shape, at least one pixel",
            "leave geobox out, or pass its shape",
        )
    _check_resampling(resampling)
    prefilter = _prefilter(source, shape, mapping, resampling)
    whole = Window(0, 0, shape[1], shape[0])
    data, valid = _resample(source, whole, mapping, prefilter, resampling, bands)
    return Raster(data, valid, grid, source.names_of(bands), source.radiometry)


def warp_raster(
    source: RasterSource,
    target: GeoBox,
    mapping: PointMapping,
    path: str | Path,
    *,
    resampling: Resampling | None = None,
    tile: int = WARP_TILE,
    workers: int = 1,
    nodata: float | None = None,
    memory: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a raster on another grid as a cloud-optimised GeoTIFF, tile by tile.

    The type of the numbers, the nodata value, the names of bands and a colour table are kept.
    Complex radar images are written as what they are read as, in float32.

    Args:
        source: The raster.
        target: Grid of the result.
        mapping: Pixels of the target (N, 2) -> pixels of the source (N, 2), corner convention.
        path: The result; it appears when it is whole.
        resampling: Kernel; by default "nearest" for colour tables and "cubic" for the rest.
        tile: Side of a tile.
        workers: Threads.
        nodata: Value of pixels without data; that of the source when None. Without either, the file
            gets a mask where there are such pixels.
        memory: Most bytes to use; tiles get smaller to stay below, see `warp_memory_bytes`.
        progress: Called with (done, total).

    Raises:
        RasterError: The source is damaged, or "nearest" would round its integers: they pass through
            32-bit floats.
        OutputError: The result cannot be written.
        NoOverlapError: Nothing of the raster lies on the grid.
        InputError: The memory is too small for the smallest tile, or the kernel is unknown.
    """
    from rsfuse.geo.tiles import RasterSink, Tile, plan_tiles, run_tiles

    kernel = resampling or ("nearest" if source.colours else "cubic")
    _check_resampling(kernel)
    shape = (int(target.shape[0]), int(target.shape[1]))
    prefilter = _prefilter(source, shape, mapping, kernel)
    dtype = "float32" if source.dtype.startswith("complex") else source.dtype
    side = fitting_tile(tile, memory, len(source.bands), np.dtype(dtype).itemsize, workers)

    wide = np.dtype(dtype).kind in "iu" and np.dtype(dtype).itemsize > 2
    seen = False

    def step(part: Tile) -> tuple[FloatImage, Mask]:
        data, valid = _resample(source, part.core, mapping, prefilter, kernel, None)
        if wide and kernel == "nearest" and np.abs(data).max() > _MOST_EXACT:
            raise RasterError(
                f"{source.name} holds integers beyond {_MOST_EXACT}",
                "they are resampled as 32-bit floats, which would round them",
                "give the classes or objects smaller numbers, for example 1, 2, 3 ...",
            )
        return data, valid

    with RasterSink(
        path,
        target,
        bands=source.bands,
        dtype=dtype,
        nodata=source.nodata if nodata is None else nodata,
        colours=dict(source.colours) or None,
        radiometry=source.radiometry,
    ) as sink:

        def write(part: Tile, pixels: tuple[FloatImage, Mask]) -> None:
            nonlocal seen
            seen = seen or bool(pixels[1].any())
            sink.write(part.core, *pixels)

        run_tiles(
            plan_tiles(shape, tile=side, halo=0),
            step,
            write,
            workers=workers,
            progress=progress,
        )
        if not seen:
            raise NoOverlapError(
                f"no usable pixel of {source.name} lies on the grid of the result",
                "the result would be empty",
                "give a raster of the same ground",
            )
        sink.finish()


def warp_memory_bytes(tile: int, channels: int, itemsize: int, workers: int) -> int:
    """Most bytes that `warp_raster` holds at a time, whatever the size of the scene.

    Twice GDAL's block cache (what reading threads let go of is not reused for writing the result),
    and per worker tile^2 x (48 for positions + 4 x (channels x (8 + itemsize) + 2) for the source
    as stored, read and smoothed + 3 x (channels x (4 + itemsize) + 1) for the tiles that wait to be
    written).
    """
    source = _SOURCE_SHARE * (channels * (8 + itemsize) + 2)
    waiting = 3 * (channels * (4 + itemsize) + 1)
    return 2 * CACHE_BYTES + workers * tile * tile * (_POSITION_BYTES + source + waiting)


def fitting_tile(tile: int, memory: int | None, channels: int, itemsize: int, workers: int) -> int:
    """Side of the tiles with which `warp_raster` stays below a memory, at most `tile`.

    Raises:
        InputError: The memory is too small for the smallest tile.
    """
    if memory is None:
        return tile
    while warp_memory_bytes(tile, channels, itemsize, workers) > memory:
        if tile <= _SMALLEST_TILE:
            needed = warp_memory_bytes(tile, channels, itemsize, workers)
            raise InputError(
                f"{memory / 1e6:.0f} MB are too little for {channels} bands and {workers} workers",
                f"tiles of {tile} pixels take {needed / 1e6:.0f} MB",
                f"use --memory {math.ceil(needed / 1e6)}MB or fewer workers",
            )
        tile = max(_SMALLEST_TILE, tile // 2)
    return tile


def _check_resampling(resampling: str) -> None:
    if resampling not in TAPS:
        raise InputError(
            f"resampling {resampling!r} is unknown",
            f"the kernels are {', '.join(TAPS)}",
            "for example resampling='cubic'",
        )


def _prefilter(
    source: RasterSource, shape: tuple[int, int], mapping: PointMapping, resampling: str
) -> _Prefilter:
    """What the change of scale asks for, measured over the whole lattice."""
    if resampling == "nearest":
        return _NO_PREFILTER
    counts = [min(side, _SCALE_PROBES) for side in shape]
    y, x = ((np.arange(n) + 0.5) * (side / n) for n, side in zip(counts, shape, strict=True))
    at = _mesh(x, y)
    # Half a pixel to each side: the whole extent of a lattice pixel.
    half_x, half_y = np.array([0.5, 0.0]), np.array([0.0, 0.5])
    along_x = mapping(at + half_x) - mapping(at - half_x)
    along_y = mapping(at + half_y) - mapping(at - half_y)
    extent = np.hypot(along_x, along_y)
    extent = extent[np.isfinite(extent).all(axis=1)]
    if not len(extent):
        return _NO_PREFILTER
    factors, sigmas = [], []
    for length, side in zip(np.median(extent, axis=0), source.shape[::-1], strict=True):
        factor = max(1, min(int(length + 1e-6), side))
        rest = float(length) / factor
        sigma = 0.5 * math.sqrt(max(0.0, min(rest, 2.0) ** 2 - 1))
        factors.append(factor)
        sigmas.append(sigma if sigma > _LEAST_SIGMA_PX else 0.0)
    return _Prefilter((factors[0], factors[1]), (sigmas[0], sigmas[1]))


def _resample(
    source: RasterSource,
    area: Window,
    mapping: PointMapping,
    prefilter: _Prefilter,
    resampling: str,
    bands: Sequence[str | int] | None,
) -> tuple[FloatImage, Mask]:
    """The part `area` of a lattice."""
    count = len(source.bands) if bands is None else len(bands)
    data = np.zeros((count, *area.shape), np.float32)
    valid = np.zeros(area.shape, bool)
    for part in _parts(area):
        rows, columns = part.slices_in(area)
        position = _positions(part, mapping)
        _fill(
            source, position, prefilter, TAPS[resampling], bands,
            data[:, rows, columns], valid[rows, columns],
        )  # fmt: skip
    return data, valid


def _parts(area: Window) -> Iterator[Window]:
    for y in range(area.y, area.y + area.h, _PART_PX):
        for x in range(area.x, area.x + area.w, _PART_PX):
            yield Window(x, y, _PART_PX, _PART_PX).intersection(area)


def _fill(
    source: RasterSource,
    position: npt.NDArray[np.float64],
    prefilter: _Prefilter,
    taps: int,
    bands: Sequence[str | int] | None,
    data: FloatImage,
    valid: Mask,
) -> None:
    """Write values at positions (h, w, 2) into `data` and `valid`."""
    height, width = source.shape
    factor = np.array(prefilter.factors)
    x, y = position[..., 0], position[..., 1]
    with np.errstate(invalid="ignore"):
        known = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    if not known.any():
        return
    # Axis by axis: NumPy takes five times as long over a last axis of two.
    least = np.array([axis.min(where=known, initial=np.inf) for axis in (x, y)]) / factor
    most = np.array([axis.max(where=known, initial=-np.inf) for axis in (x, y)]) / factor
    reach = taps // 2 + 1 + prefilter.margin
    low = np.floor(least).astype(np.int64) - reach
    high = np.floor(most).astype(np.int64) + 1 + reach
    size = -(-np.array([width, height]) // factor)
    low, high = np.maximum(low, 0), np.minimum(high, size)
    w, h = (int(side) for side in high - low)
    if w * h > _SOURCE_SHARE * valid.size and max(valid.shape) > _SMALLEST_PART_PX:
        axis = 0 if valid.shape[0] >= valid.shape[1] else 1
        middle = valid.shape[axis] // 2
        for half in (slice(None, middle), slice(middle, None)):
            at = (half, slice(None)) if axis == 0 else (slice(None), half)
            _fill(source, position[at], prefilter, taps, bands, data[(slice(None), *at)], valid[at])
        return
    fx, fy = prefilter.factors
    left, top = (int(first) for first in low)
    raster = source.read(Window(left * fx, top * fy, w * fx, h * fy), shape=(h, w), bands=bands)
    pixels, usable = _smoothed(raster.data, raster.valid, prefilter.sigmas_px)
    if prefilter.factors != (1, 1):
        # The last reduced pixel may reach beyond the image.
        position = np.where(known[..., None], position / factor, np.nan)
    corner, end = (left, top), (int(size[0]), int(size[1]))
    sample(pixels, usable, position, corner, end, taps, data, valid)


def _smoothed(
    data: FloatImage, valid: Mask, sigmas_px: tuple[float, float]
) -> tuple[FloatImage, Mask]:
    """A Gaussian over valid pixels; `data` is zero where invalid."""
    if not any(sigmas_px):
        return data, valid
    sides = [2 * math.ceil(3 * sigma) + 1 for sigma in sigmas_px]

    def blur(image: FloatImage) -> FloatImage:
        # cv2 takes sigma 0 for "derive it from the size"; a size of 1 leaves the axis alone.
        sigma_x, sigma_y = (max(sigma, 1e-3) for sigma in sigmas_px)
        smooth = cv2.GaussianBlur(
            image, sides, sigma_x, sigmaY=sigma_y, borderType=cv2.BORDER_REPLICATE
        )
        return np.asarray(smooth, np.float32)

    if valid.all():
        return np.stack([blur(band) for band in data]), valid
    share = np.maximum(blur(valid.astype(np.float32)), np.float32(1e-6))
    smooth = np.stack([blur(band) / share for band in data]).astype(np.float32, copy=False)
    smooth[:, ~valid] = 0.0
    return smooth, valid


def _positions(area: Window, mapping: PointMapping) -> npt.NDArray[np.float64]:
    """Source positions (h, w, 2) of the pixel centres of a part of a lattice.

    Nodes lie at multiples of the step on the lattice, so that they do not depend on the part.
    """
    for step in _NODE_STEPS_PX:
        if (
            min(area.shape) > 2 * step
            and (found := _between_nodes(area, mapping, step)) is not None
        ):
            return found
    x, y = area.x + np.arange(area.w) + 0.5, area.y + np.arange(area.h) + 0.5
    return mapping(_mesh(x, y)).reshape(area.h, area.w, 2)


def _between_nodes(
    area: Window, mapping: PointMapping, step: int
) -> npt.NDArray[np.float64] | None:
    """Positions by bilinear interpolation; None where the mapping bends too much for that."""
    first_x, first_y = area.x // step, area.y // step
    nx, ny = (
        -(-(area.x + area.w) // step) - first_x + 1,
        -(-(area.y + area.h) // step) - first_y + 1,
    )
    x, y = (first_x + np.arange(nx)) * float(step), (first_y + np.arange(ny)) * float(step)
    nodes = mapping(_mesh(x, y)).reshape(ny, nx, 2)
    centres = mapping(_mesh(x[:-1] + step / 2, y[:-1] + step / 2)).reshape(ny - 1, nx - 1, 2)
    expected = (nodes[:-1, :-1] + nodes[1:, :-1] + nodes[:-1, 1:] + nodes[1:, 1:]) / 4
    gap = np.abs(centres - expected)
    if not (np.isfinite(gap).all() and gap.max() < _NODE_ERROR_PX):
        return None
    u = (area.x + np.arange(area.w) + 0.5) / step - first_x
    v = (area.y + np.arange(area.h) + 0.5) / step - first_y
    i, j = u.astype(np.int64), v.astype(np.int64)
    share_x, share_y = (u - i)[None, :, None], (v - j)[:, None, None]
    along = nodes[:, i] * (1 - share_x) + nodes[:, i + 1] * share_x
    return np.asarray(along[j] * (1 - share_y) + along[j + 1] * share_y)


def _mesh(x: npt.NDArray[np.floating], y: npt.NDArray[np.floating]) -> Points:
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2).astype(np.float64)
