"""From radiation at the ground to the pixels of an image: blur of the sensor, grid, geometry."""

import math
import os
from collections.abc import Callable
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
    channels: int,
    blur_px: float,
    warp: Warp | None,
) -> tuple[Image, NDArray[np.bool_]]:
    """An image (C, h, w) of the ground, and where it has data.

    Args:
        rows: Radiation from the ground, by rows.
        ground_shape: (H, W) of the ground raster.
        shape: (h, w) of the image, a whole fraction of it.
        channels: C.
        blur_px: Standard deviation of the sensor's response in image pixels.
        warp: From reference pixels to pixels of this image; None puts it on the reference grid.
    """
    factor = ground_shape[0] // shape[0]
    sigma = blur_px * factor
    reach = int(np.ceil(3 * sigma)) + 1

    def blurred(start: int, stop: int) -> Image:
        # With as many neighbours as the response needs.
        first, last = max(start - reach, 0), min(stop + reach, ground_shape[0])
        part = rows(first, last)
        soft = cv2.GaussianBlur(part, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
        return np.asarray(soft.reshape(part.shape)[start - first : stop - first], np.float32)

    if warp is None:
        image = np.empty((channels, *shape), np.float32)

        def reduce(start: int, stop: int) -> None:
            small = _area(blurred(start, stop), factor)
            image[:, start // factor : stop // factor] = np.moveaxis(small, -1, 0)

        _for_strips(reduce, ground_shape, multiple=factor)
        return image, np.ones(shape, bool)

    ground = np.empty((*ground_shape, channels), np.float32)

    def keep(start: int, stop: int) -> None:
        ground[start:stop] = blurred(start, stop)

    _for_strips(keep, ground_shape)
    return sample(ground, warp, shape)


def sample(
    ground: NDArray[np.float32] | NDArray[np.uint8], warp: Warp, shape: tuple[int, int]
) -> tuple[Image, NDArray[np.bool_]]:
    """An image (C, h, w) through a warp from a fine one (H, W, C) of the reference, and valid."""
    scale = ground.shape[0] / shape[0]
    inverse = Displacement(warp, shape, inverse=True)
    image = np.empty((ground.shape[2], *shape), np.float32)
    valid = np.empty(shape, bool)

    def strip(start: int, stop: int) -> None:
        y, x = np.mgrid[start:stop, 0 : shape[1]] + 0.5
        moved = inverse.rows(start, stop)
        x += moved[..., 0]
        y += moved[..., 1]
        valid[start:stop] = (x >= 0) & (x <= shape[1]) & (y >= 0) & (y <= shape[0])
        out = np.empty((stop - start, shape[1], ground.shape[2]), np.float32)
        # Array indices have their origin at the centre of the first pixel.
        interpolate(ground, x * scale - 0.5, y * scale - 0.5, out)
        image[:, start:stop] = np.moveaxis(out, -1, 0)

    _for_strips(strip, shape)
    return image, valid


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


def _area(image: Image, factor: int) -> Image:
    """Means of squares of `factor` x `factor` pixels."""
    if factor == 1:
        return image
    h, w, channels = image.shape
    size = (w // factor, h // factor)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return np.asarray(small.reshape(size[1], size[0], channels), np.float32)


def _for_strips(
    work: Callable[[int, int], None], shape: tuple[int, int], *, multiple: int = 1
) -> None:
    """Call `work(start, stop)` for strips of rows, side by side."""
    step = max(1, _STRIP_PIXELS // shape[1] // multiple) * multiple
    starts = range(0, shape[0], step)
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        # The list makes exceptions of workers come out here.
        list(pool.map(lambda start: work(start, min(start + step, shape[0])), starts))


def to_numbers(
    image: Plane, gain: float, most: int, rng: np.random.Generator, *, floor: float, share: float
) -> None:
    """Turn radiation (h, w) into digital numbers from 1 to `most`, in place.

    Args:
        image: Radiation; numbers afterwards.
        gain: Numbers per unit of radiation.
        most: The largest number.
        rng: Of the noise.
        floor: Constant part of the standard deviation of the noise, in units of radiation.
        share: Part of it that is proportional to the radiation.
    """
    step = max(1, _STRIP_PIXELS // image.shape[1])
    for start in range(0, image.shape[0], step):
        part = image[start : start + step]
        if floor or share:
            size = np.sqrt(
                np.float32(floor) ** 2 + np.maximum(part, 0) ** 2 * np.float32(share) ** 2
            )
            part += size * rng.standard_normal(part.shape, dtype=np.float32)
        part *= np.float32(gain)
        np.clip(np.round(part, out=part), 1, most, out=part)
