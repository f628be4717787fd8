"""Resampling: read a raster on another lattice, or write it there whole.

The one place where positions in the corner convention meet OpenCV, whose pixel centres are
integers, is `_sample`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from rsfuse.geo.grid import Window, pixel_geobox
from rsfuse.geo.raster import Raster, RasterSource

FloatArray = npt.NDArray[np.float64]
Mapping = Callable[[FloatArray], FloatArray]
Resampling = Literal["nearest", "bilinear", "cubic", "lanczos"]

_INTERPOLATION = {
    "nearest": cv2.INTER_NEAREST,
    "bilinear": cv2.INTER_LINEAR,
    "cubic": cv2.INTER_CUBIC,
    "lanczos": cv2.INTER_LANCZOS4,
}
_REACH = {"nearest": 1, "bilinear": 1, "cubic": 2, "lanczos": 4}
LATTICE_STEP_PX = 8  # a smooth mapping is evaluated this often and interpolated between
LATTICE_ERROR_PX = 0.01
CV_LIMIT = 32000  # cv2.remap addresses at most 32767 pixels a side


def read_mapped(
    source: RasterSource,
    shape: tuple[int, int],
    mapping: Mapping,
    *,
    bands: tuple[str | int, ...] | None = None,
    resampling: Resampling = "cubic",
    geobox: GeoBox | None = None,
) -> Raster:
    """Read a raster on a lattice that is tied to its pixels by a mapping.

    Args:
        source: The raster; only the window that is needed is read.
        shape: (h, w) of the lattice.
        mapping: Lattice positions (N, 2) -> source positions (N, 2), both in the corner
            convention; NaN where there is none.
        bands: Bands to read.
        resampling: Interpolation; where the lattice is coarser than the source, the source is
            averaged first.
        geobox: What the lattice is on the ground; a pixel frame when None.

    Returns:
        Data of `shape`; invalid where the source does not cover a pixel or is invalid there.
    """
    grid = geobox if geobox is not None else pixel_geobox(shape)
    position = _positions(shape, mapping)
    height, width = source.shape
    known = np.isfinite(position).all(axis=-1)
    inside = known & (
        (position[..., 0] > 0)
        & (position[..., 1] > 0)
        & (position[..., 0] < width)
        & (position[..., 1] < height)
    )
    names = source.bands if bands is None else tuple(bands)
    if not inside.any():
        empty = np.zeros((len(names), *shape), np.float32)
        kept = tuple(str(n) for n in names)
        return Raster(empty, np.zeros(shape, bool), grid, kept, source.radiometry)
    shrink = _shrink(position, inside)
    reach = (_REACH[resampling] + 1) * max(1.0, shrink)
    low = np.floor(position[inside].min(axis=0) - reach).astype(int)
    high = np.ceil(position[inside].max(axis=0) + reach).astype(int)
    x0, y0 = max(0, int(low[0])), max(0, int(low[1]))
    x1, y1 = min(width, int(high[0])), min(height, int(high[1]))
    window = Window(x0, y0, x1 - x0, y1 - y0)
    limit = max(window.w, window.h) / CV_LIMIT
    factor = max(shrink if shrink > 1.2 else 1.0, limit)
    reduced = (max(1, round(window.h / factor)), max(1, round(window.w / factor)))
    raster = source.read(window, shape=reduced if factor > 1 else None, bands=bands)
    scale = np.array([reduced[1] / window.w, reduced[0] / window.h]) if factor > 1 else np.ones(2)
    local = (position - np.array([x0, y0])) * scale
    local[~inside] = -1e4
    data, valid = _sample(raster.data, raster.valid, local, resampling)
    valid &= inside
    data[:, ~valid] = 0
    return Raster(data, valid, grid, raster.bands, raster.radiometry)


def _positions(shape: tuple[int, int], mapping: Mapping) -> FloatArray:
    """Source positions (h, w, 2) of the pixel centres, by interpolation where that is exact."""
    height, width = shape
    step = LATTICE_STEP_PX
    if min(shape) > 4 * step:
        nx, ny = -(-width // step) + 1, -(-height // step) + 1
        knots_x, knots_y = np.arange(nx) * step + 0.5, np.arange(ny) * step + 0.5
        knots = mapping(_mesh(knots_x, knots_y)).reshape(ny, nx, 2)
        probe = mapping(_mesh(knots_x[:-1] + step / 2, knots_y[:-1] + step / 2))
        middle = (knots[:-1, :-1] + knots[1:, :-1] + knots[:-1, 1:] + knots[1:, 1:]) / 4
        gap = np.abs(probe.reshape(middle.shape) - middle)
        if np.isfinite(gap).all() and float(gap.max()) < LATTICE_ERROR_PX:
            u, v = np.arange(width) / step, np.arange(height) / step
            i, j = u.astype(int), v.astype(int)
            fu, fv = (u - i)[None, :, None], (v - j)[:, None, None]
            along = knots[:, i] * (1 - fu) + knots[:, i + 1] * fu
            return np.asarray(along[j] * (1 - fv) + along[j + 1] * fv)
    return mapping(_mesh(np.arange(width) + 0.5, np.arange(height) + 0.5)).reshape(height, width, 2)


def _mesh(x: FloatArray, y: FloatArray) -> FloatArray:
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2).astype(np.float64)


def _shrink(position: FloatArray, inside: npt.NDArray[np.bool_]) -> float:
    """Source pixels per lattice pixel, the median of the geometric mean."""
    if min(inside.shape) < 2:
        return 1.0
    dx = position[:-1, 1:] - position[:-1, :-1]
    dy = position[1:, :-1] - position[:-1, :-1]
    area = np.abs(dx[..., 0] * dy[..., 1] - dx[..., 1] * dy[..., 0])[inside[:-1, :-1]]
    area = area[np.isfinite(area)]
    return float(np.sqrt(np.median(area))) if area.size else 1.0


def _sample(
    data: npt.NDArray[np.float32],
    valid: npt.NDArray[np.bool_],
    position: FloatArray,
    resampling: Resampling,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Values at positions in the corner convention; invalid pixels take no part."""
    # cv2 has pixel centres at integers: the corner convention minus a half, here and only here.
    where = (position - 0.5).astype(np.float32)
    mode = _INTERPOLATION[resampling]
    # The border is repeated, so that the outer half of a border pixel has a value.
    values = [cv2.remap(b, where, None, mode, borderMode=cv2.BORDER_REPLICATE) for b in data]
    if valid.all():
        return np.stack(values).astype(np.float32), np.ones(position.shape[:2], bool)
    weight = valid.astype(np.float32)
    share = cv2.remap(
        weight, where, None, min(mode, cv2.INTER_LINEAR), borderMode=cv2.BORDER_REPLICATE
    )
    usable = share > 0.5
    clean = usable & (share > 0.999)
    if resampling in ("cubic", "lanczos"):
        reach = 2 * _REACH[resampling] + 1
        core = cv2.erode(weight, np.ones((reach, reach), np.uint8), borderType=cv2.BORDER_REPLICATE)
        clean &= cv2.remap(core, where, None, cv2.INTER_LINEAR) > 0.999
    # Near a hole only the valid pixels are averaged, bilinearly.
    soft = [
        cv2.remap(b * weight, where, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for b in data
    ]
    near = np.stack(soft) / np.maximum(share, 1e-6)
    if resampling == "nearest":
        clean = usable
    mixed = np.where(clean, np.stack(values), near)
    return mixed.astype(np.float32), usable


def warp_raster(
    source: RasterSource,
    target: GeoBox,
    mapping: Mapping,
    path: str | Path,
    *,
    resampling: Resampling = "cubic",
    tile: int = 1024,
    workers: int = 1,
    nodata: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a raster on another grid as a cloud-optimised GeoTIFF, tile by tile.

    Args:
        source: The raster.
        target: Grid of the result.
        mapping: Pixels of the target -> pixels of the source, corner convention.
        path: Result; appears only when it is whole.
        resampling: Interpolation; use "nearest" for classes.
        tile: Tile side.
        workers: Threads.
        nodata: Value for uncovered pixels; without one the file gets a mask.
        progress: Called with (done, total).

    Raises:
        OutputError: The result cannot be written.
    """
    from rsfuse.geo.tiles import RasterSink, Tile, plan_tiles, run_tiles

    shape = (int(target.shape[0]), int(target.shape[1]))

    def step(part: Tile) -> Raster:
        x, y, w, h = part.core
        offset = np.array([x, y], np.float64)
        return read_mapped(source, (h, w), lambda xy: mapping(xy + offset), resampling=resampling)

    plan = plan_tiles(shape, tile=tile, halo=0)
    with RasterSink(path, target, bands=source.bands, dtype=source.dtype, nodata=nodata) as sink:
        run_tiles(
            plan,
            step,
            lambda part, raster: sink.write(part.core, raster.data, raster.valid),
            workers=workers,
            progress=progress,
        )
        sink.finish()
