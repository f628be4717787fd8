"""Values of an image between its pixels: exact positions, and invalid pixels take no part.

OpenCV's remap rounds positions to 1/32 pixel, as much as a good tie point is worth, and addresses
32,767 pixels a side at most. Positions here are float64 in the corner convention; the centre of
pixel (column, row) is at (column + 0.5, row + 0.5), which `_taps` undoes in one place.
"""

import math

import numba
import numpy as np
import numpy.typing as npt

# Kernels by the number of pixels that they look at along an axis.
TAPS = {"nearest": 1, "bilinear": 2, "cubic": 4, "lanczos": 6}


@numba.njit(nogil=True, cache=True)
def _weight(taps: int, distance: float) -> float:
    """Weight of a pixel whose centre is `distance` away."""
    x = abs(distance)
    if taps == 2:
        return 1.0 - x if x < 1.0 else 0.0
    if taps == 4:  # Keys 1981, a = -0.5: exact for quadratic images, as in GDAL
        if x < 1.0:
            return (1.5 * x - 2.5) * x * x + 1.0
        return ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0 if x < 2.0 else 0.0
    if x < 1e-9:
        return 1.0
    if x >= 3.0:
        return 0.0
    angle = math.pi * x
    return 3.0 * math.sin(angle) * math.sin(angle / 3.0) / (angle * angle)


@numba.njit(nogil=True, cache=True)
def _taps(position: float, taps: int, size: int, weights: npt.NDArray[np.float64]) -> int:
    """First pixel that counts at a position along an axis; fills in the weights, of sum one."""
    if taps == 1:
        weights[0] = 1.0
        return min(max(math.floor(position), 0), size - 1)
    centre = position - 0.5
    first = math.floor(centre) - taps // 2 + 1
    total = 0.0
    for k in range(taps):
        weights[k] = _weight(taps, centre - (first + k))
        total += weights[k]
    for k in range(taps):
        weights[k] /= total
    return first


@numba.njit(nogil=True, cache=True)
def sample(
    data: npt.NDArray[np.float32],
    valid: npt.NDArray[np.bool_],
    position: npt.NDArray[np.float64],
    corner: tuple[int, int],
    size: tuple[int, int],
    taps: int,
    out: npt.NDArray[np.float32],
    usable: npt.NDArray[np.bool_],
) -> None:
    """Fill `out` and `usable` with the values of an image at positions.

    A position is usable where it lies in the image and its nearest pixel is valid. Beyond the outer
    pixels the image is continued with their values. Where the kernel meets an invalid pixel, the
    valid ones of the four nearest are averaged bilinearly.

    Args:
        data: (C, h, w), a part of the image.
        valid: (h, w).
        position: (H, W, 2) in pixels of the image; NaN is not usable.
        corner: (x, y) of the part in the image.
        size: (width, height) of the image.
        taps: Pixels along an axis, see `TAPS`.
        out: (C, H, W).
        usable: (H, W).
    """
    bands, h, w = data.shape
    wx, wy = np.empty(6), np.empty(6)
    columns, rows = np.empty(6, np.int64), np.empty(6, np.int64)
    for j in range(usable.shape[0]):
        for i in range(usable.shape[1]):
            x, y = position[j, i, 0], position[j, i, 1]
            usable[j, i] = False
            for c in range(bands):
                out[c, j, i] = 0.0
            if not (0.0 <= x < size[0] and 0.0 <= y < size[1]):
                continue
            column, row = math.floor(x) - corner[0], math.floor(y) - corner[1]
            if not (0 <= column < w and 0 <= row < h and valid[row, column]):
                continue
            usable[j, i] = True
            count, complete = taps, False
            while not complete:
                first_x = _taps(x, count, size[0], wx)
                first_y = _taps(y, count, size[1], wy)
                for k in range(count):
                    inside = min(max(first_x + k, 0), size[0] - 1) - corner[0]
                    columns[k] = min(max(inside, 0), w - 1)
                    inside = min(max(first_y + k, 0), size[1] - 1) - corner[1]
                    rows[k] = min(max(inside, 0), h - 1)
                complete = True
                for k in range(count):
                    for m in range(count):
                        # A weight of zero, as of all neighbours at a pixel's centre, asks nothing.
                        if not valid[rows[k], columns[m]] and wy[k] * wx[m] != 0.0:
                            complete = False
                if not complete and count > 2:
                    count = 2
                else:
                    break
            share = 1.0
            if not complete:
                share = 0.0
                for k in range(count):
                    for m in range(count):
                        if valid[rows[k], columns[m]]:
                            share += wy[k] * wx[m]
            for c in range(bands):
                total = 0.0
                for k in range(count):
                    for m in range(count):
                        if complete or valid[rows[k], columns[m]]:
                            total += wy[k] * wx[m] * data[c, rows[k], columns[m]]
                out[c, j, i] = total / share
