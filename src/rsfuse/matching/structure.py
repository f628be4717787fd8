"""Structure channels: what two sensors agree on when their grey values do not.

The direction of an edge modulo 180 degrees survives a change of sensor; its contrast and its sign
do not. Each pixel therefore carries the double-angle vector of its gradient,

    z2 = (gx + i gy)^2 / |g|      and its square direction      z4 = z2^2 / |z2|,

which are the first two angular harmonics of the CFOG orientation histogram (Ye et al. 2019) with
the constant part left out: the constant part is the same everywhere and only lifts the floor of a
correlation. Polarity drops out of the square. Two complex channels stand for nine real ones, so a
correlation costs two complex transforms in place of nine real ones.

Where the histogram has a long tail, as in radar intensity, gradients are those of the logarithm:
a difference of logarithms is the ratio of means that ROEWA takes (Fjortoft et al. 1998). Several
bands add their tensors (Di Zenzo 1986). Dividing by the local mean strength makes weak and strong
ground count alike; the result is smoothed, because two sensors never put an edge on the same pixel.

Letters: H, W image size; K = 2 harmonics.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

FloatImage = npt.NDArray[np.float32]
ComplexImage = npt.NDArray[np.complex64]
Mask = npt.NDArray[np.bool_]

GRADIENT_SIGMA_PX = 1.0
LONG_TAIL = 12.0  # upper over lower half of the histogram's range, from which logarithms are taken
CONTRAST_RADIUS_PX = 12.0  # sigma of the neighbourhood that strength is divided by
SMOOTHING_PX = 1.5  # sigma over which edge positions of two sensors may differ


class Structure(NamedTuple):
    """Structure channels of one image.

    Attributes:
        z: (K, H, W) complex64; 0 where nothing is known.
        valid: (H, W) where the whole gradient neighbourhood was usable.
    """

    z: ComplexImage
    valid: Mask


def structure_channels(
    image: FloatImage, valid: Mask, *, smoothing_px: float = SMOOTHING_PX
) -> Structure:
    """Double- and fourfold-angle edge channels of an image.

    Args:
        image: (C, H, W); every band adds its gradients.
        valid: (H, W) usable pixels.
        smoothing_px: Standard deviation of the final smoothing.

    Returns:
        Channels with a root mean square of about 1 over the image.
    """
    height, width = valid.shape
    z2 = np.zeros((height, width), np.complex64)
    filled = valid.all()
    for band in image:
        gx, gy = _gradient(prepared(band, valid), GRADIENT_SIGMA_PX)
        strength = np.hypot(gx, gy)
        mean = cv2.GaussianBlur(strength, (0, 0), CONTRAST_RADIUS_PX) + 1e-6
        floor = 0.05 * float(strength.mean()) + 1e-9
        # The square root saturates: strong edges count more, but not without bound.
        gain = 1.0 / (np.maximum(strength, 1e-9) * np.sqrt(strength * (mean + floor) + 1e-12))
        z2 += ((gx * gx - gy * gy) * gain + 1j * (2 * gx * gy) * gain).astype(np.complex64)
    usable = valid if filled else _eroded(valid)
    z2[~usable] = 0
    magnitude = np.abs(z2)
    z4 = z2 * z2 / np.maximum(magnitude, 1e-9)
    z = np.stack([_blur(z2, smoothing_px), _blur(z4.astype(np.complex64), smoothing_px)])
    power = np.sqrt((np.abs(z) ** 2).sum(axis=0))
    local = cv2.GaussianBlur(power, (0, 0), CONTRAST_RADIUS_PX) + 1e-6
    z *= (1.0 / (np.sqrt(power * local) + 0.2 * float(power.mean()) + 1e-9)).astype(np.float32)
    z[:, ~usable] = 0
    return Structure(np.ascontiguousarray(z), usable)


def prepared(band: FloatImage, valid: Mask) -> FloatImage:
    """A band without holes, scaled to a robust range of 1; in logarithms where its tail is long."""
    known = band[valid]
    if known.size == 0:
        return np.zeros_like(band, dtype=np.float32)
    sample = known[:: max(1, known.size // 20000)]
    low, middle, high = (float(v) for v in np.quantile(sample, (0.02, 0.5, 0.98)))
    grey = band.astype(np.float32, copy=True)
    lower, upper = middle - low, high - middle
    if lower > 0.01 * upper > 0.01 * LONG_TAIL * lower:
        offset = max(0.1 * lower, 1e-3 * (high - low))
        grey = np.log(np.maximum(grey - low, 0.0) + offset)
        low, middle, high = (float(np.log(v - low + offset)) for v in (low, middle, high))
    grey[~valid] = middle
    spread = max(high - low, 1e-9)
    return np.asarray(np.clip((grey - middle) / spread, -2.0, 2.0), np.float32)


def _gradient(grey: FloatImage, sigma: float) -> tuple[FloatImage, FloatImage]:
    soft = cv2.GaussianBlur(grey, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)
    gx = cv2.Sobel(soft, cv2.CV_32F, 1, 0, ksize=3, scale=0.125 * sigma)
    gy = cv2.Sobel(soft, cv2.CV_32F, 0, 1, ksize=3, scale=0.125 * sigma)
    return gx, gy


def _blur(field: ComplexImage, sigma: float) -> ComplexImage:
    parts = np.ascontiguousarray(field).view(np.float32).reshape(*field.shape, 2)
    blurred = np.asarray(cv2.GaussianBlur(parts, (0, 0), sigma), np.float32)
    return np.asarray(blurred.view(np.complex64)[..., 0])


def _eroded(valid: Mask) -> Mask:
    size = 2 * int(np.ceil(2 * GRADIENT_SIGMA_PX)) + 1
    kernel = np.ones((size, size), np.uint8)
    eroded = cv2.erode(valid.astype(np.uint8), kernel, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(eroded, bool)
