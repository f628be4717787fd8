"""From radiation at the ground to the pixels of an image: blur of the sensor, grid, geometry."""

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import cv2
import numba
import numpy as np
from numpy.typing import NDArray

from rsfuse.simulate.noise import Plane
from rsfuse.simulate.warp import Displacement, Warp

Image = NDArray[np.float32]

# Rows (stop - start, W, C) of an image on the ground raster.
Rows = Callable[[int, int], Image]

# Ground pixels in one strip: few enough that the temporary arrays of two workers stay small.
_STRIP_PIXELS = 1_200_000


def form_image(
    rows: Rows,
    ground_shape: tuple[int, int],
    shape: tuple[int, int],
    *,
    blur_px: float,
    warp: Warp | None,
) -> tuple[Image, NDArray[np.bool_]]:
    """An image (C, h, w) of the ground, and where it has data.

    Args:
        rows: Radiation from the ground, by rows.
        ground_shape: (H, W) of the ground raster.
        shape: (h, w) of the image without a warp, a whole fraction of it; also with one.
        blur_px: Standard deviation of the sensor's response in image pixels.
        warp: From reference pixels to pixels of this image; None puts it on the reference grid.
    """
    factor = ground_shape[0] // shape[0]
    sigma = blur_px * factor
    reach = int(np.ceil(3 * sigma)) + 1
    blurred = _blurred(rows, ground_shape, sigma, reach)
    if warp is None:
        reduced = _parallel(
            lambda start, stop: _area(blurred(start, stop), factor), ground_shape, factor
        )
        return np.moveaxis(np.concatenate(list(reduced)), -1, 0), np.ones(shape, bool)
    ground = np.concatenate(list(_parallel(blurred, ground_shape, factor)))
    return sample(ground, warp, shape)


def sample(
    ground: NDArray[np.float32] | NDArray[np.uint8], warp: Warp, shape: tuple[int, int]
) -> tuple[Image, NDArray[np.bool_]]:
    """An image (C, h, w) through a warp from a fine one (H, W, C) of the reference, and valid."""
    scale = ground.shape[0] / shape[0]
    inverse = Displacement(warp, shape, inverse=True)
    stack = ground[..., None] if ground.ndim == 2 else ground

    def strip(start: int, stop: int) -> Image:
        y, x = np.mgrid[start:stop, 0 : shape[1]] + 0.5
        moved = inverse.rows(start, stop)
        x, y = x + moved[..., 0], y + moved[..., 1]
        inside = (x >= 0) & (x <= shape[1]) & (y >= 0) & (y <= shape[0])
        out = np.empty((stop - start, shape[1], stack.shape[2] + 1), np.float32)
        # Array indices have their origin at the centre of the first pixel.
        interpolate(stack, x * scale - 0.5, y * scale - 0.5, out[..., 1:])
        out[..., 0] = inside
        return out

    strips = np.concatenate(list(_parallel(strip, shape, 1)))
    return np.moveaxis(strips[..., 1:], -1, 0).copy(), strips[..., 0] > 0


@numba.njit(nogil=True, cache=True)
def interpolate(
    image: NDArray[np.float32] | NDArray[np.uint8],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    out: NDArray[np.float32],
) -> None:
    """Values (h, w, C) of an image (H, W, C) at indices x, y (h, w), written to `out`.

    Catmull-Rom cubic interpolation; the nearest edge is repeated outside. OpenCV's cubic kernel
    (a = -0.75) moves smooth images by up to 0.045 pixels, depending on the fraction of the
    position; this one (a = -0.5) does not, which exact truth needs.
    """
    height, width, channels = image.shape
    for row in range(x.shape[0]):
        for column in range(x.shape[1]):
            px, py = x[row, column], y[row, column]
            left, top = math.floor(px), math.floor(py)
            tx, ty = px - left, py - top
            wx = (
                ((-0.5 * tx + 1.0) * tx - 0.5) * tx,
                (1.5 * tx - 2.5) * tx * tx + 1.0,
                ((-1.5 * tx + 2.0) * tx + 0.5) * tx,
                (0.5 * tx - 0.5) * tx * tx,
            )
            wy = (
                ((-0.5 * ty + 1.0) * ty - 0.5) * ty,
                (1.5 * ty - 2.5) * ty * ty + 1.0,
                ((-1.5 * ty + 2.0) * ty + 0.5) * ty,
                (0.5 * ty - 0.5) * ty * ty,
            )
            for channel in range(channels):
                total = 0.0
                for j in range(4):
                    at = min(max(int(top) - 1 + j, 0), height - 1)
                    line = 0.0
                    for i in range(4):
                        line += (
                            wx[i] * image[at, min(max(int(left) - 1 + i, 0), width - 1), channel]
                        )
                    total += wy[j] * line
                out[row, column, channel] = total


def _blurred(rows: Rows, shape: tuple[int, int], sigma: float, reach: int) -> Rows:
    """The rows after a Gaussian response, computed with as many neighbours as it needs."""

    def compute(start: int, stop: int) -> Image:
        first, last = max(start - reach, 0), min(stop + reach, shape[0])
        part = rows(first, last)
        soft = cv2.GaussianBlur(part, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
        return np.asarray(soft.reshape(part.shape)[start - first : stop - first], np.float32)

    return compute


def _area(image: Image, factor: int) -> Image:
    """Means of squares of `factor` x `factor` pixels."""
    if factor == 1:
        return image
    h, w, channels = image.shape
    size = (w // factor, h // factor)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return np.asarray(small.reshape(size[1], size[0], channels), np.float32)


def _parallel(rows: Rows, shape: tuple[int, int], multiple: int) -> Iterator[Image]:
    """Strips of rows in order, computed side by side; their height is a multiple of a number."""
    step = max(1, _STRIP_PIXELS // shape[1] // multiple) * multiple
    starts = range(0, shape[0], step)
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        yield from pool.map(lambda start: rows(start, min(start + step, shape[0])), starts)


def add_noise(image: Plane, floor: float, share: float, rng: np.random.Generator) -> Plane:
    """The image with noise of a constant and a proportional part (standard deviations)."""
    size = np.sqrt(floor**2 + np.maximum(image, 0) * share**2)
    return np.asarray(image + size * rng.standard_normal(image.shape, dtype=np.float32), np.float32)
