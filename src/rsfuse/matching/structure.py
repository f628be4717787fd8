"""Structure channels: what two sensors agree on when their grey values do not.

The direction of an edge modulo 180 degrees survives a change of sensor; its contrast and its sign
do not. Each pixel therefore carries the double-angle vector of its gradient,

    z2 = (gx + i gy)^2 / |g|      and its square direction      z4 = z2^2 / |z2|,

which are the first two angular harmonics of the CFOG orientation histogram (Ye et al. 2019) with
the constant part left out: the constant part is the same everywhere and only lifts the floor of a
correlation. Polarity drops out of the square. Two complex channels stand for nine real ones, so a
correlation costs two complex transforms in place of nine real ones.

Gradients are taken at two scales of the logarithm of intensity for radar (a difference of logarithms
is the ratio of means of ROEWA, Fjortoft et al. 1998) and of intensity elsewhere; several bands add
their tensors (Di Zenzo 1986). Dividing by the local mean strength makes weak and strong ground
count alike; the result is smoothed, because two sensors never put an edge on the same pixel.

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

GRADIENT_SIGMAS_PX = (1.0,)
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


def is_speckled(image: FloatImage, valid: Mask) -> bool:
    """Whether noise grows with the signal, as it does in radar images.

    In fully developed speckle the local standard deviation is proportional to the local mean and
    the neighbouring pixels differ nearly as much as distant ones.

    Args:
        image: (H, W), at full resolution.
        valid: (H, W).
    """
    grey = np.where(valid, image, 0.0).astype(np.float32)
    weight = valid.astype(np.float32)
    area = np.maximum(cv2.blur(weight, (5, 5)), 1e-6)
    mean = cv2.blur(grey, (5, 5)) / area
    variance = np.maximum(cv2.blur(grey * grey, (5, 5)) / area - mean * mean, 0.0)
    inner = valid & (area > 0.99)
    if int(inner.sum()) < 64:
        return False
    centre = mean[inner]
    if not float(np.median(centre)) > 0:
        return False
    # The quiet quarter of the windows has no edges: there, variation is noise alone.
    ratio = np.sqrt(variance[inner]) / np.maximum(centre, 1e-6)
    return bool(np.quantile(ratio, 0.25) > 0.12)


def structure_channels(
    image: FloatImage, valid: Mask, *, speckled: bool, smoothing_px: float = SMOOTHING_PX
) -> Structure:
    """Double- and fourfold-angle edge channels of an image.

    Args:
        image: (C, H, W); every band adds its gradients.
        valid: (H, W) usable pixels.
        speckled: Take gradients of the logarithm, at scales that average speckle out.
        smoothing_px: Standard deviation of the final smoothing.

    Returns:
        Channels with a root mean square of about 1 over the image.
    """
    height, width = valid.shape
    z2 = np.zeros((height, width), np.complex64)
    filled = valid.all()
    for band in image:
        grey = _prepared(band, valid, speckled)
        for sigma in GRADIENT_SIGMAS_PX:
            scale = sigma * (1.5 if speckled else 1.0)
            gx, gy = _gradient(grey, scale)
            strength = np.hypot(gx, gy)
            mean = cv2.GaussianBlur(strength, (0, 0), CONTRAST_RADIUS_PX) + 1e-6
            floor = 0.05 * float(strength.mean()) + 1e-9
            # sqrt(strength) of a saturating ratio: strong edges count, but not without bound.
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


def _prepared(band: FloatImage, valid: Mask, speckled: bool) -> FloatImage:
    """A band without holes, in logarithm for radar, scaled to a robust range of 1."""
    grey = band.astype(np.float32, copy=True)
    known = grey[valid]
    if known.size == 0:
        return np.zeros_like(grey)
    if speckled:
        low = float(known.min())
        offset = max(0.02 * float(known.mean() - low), 1e-6)
        grey = np.log(np.maximum(grey - low, 0.0) + offset)
        known = grey[valid]
    sample = known[:: max(1, known.size // 20000)]
    low, middle, high = (float(v) for v in np.quantile(sample, (0.02, 0.5, 0.98)))
    grey[~valid] = middle
    spread = max(high - low, 1e-9)
    return np.clip((grey - middle) / spread, -2.0, 2.0)


def _gradient(grey: FloatImage, sigma: float) -> tuple[FloatImage, FloatImage]:
    soft = cv2.GaussianBlur(grey, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)
    gx = cv2.Sobel(soft, cv2.CV_32F, 1, 0, ksize=3, scale=0.125 * sigma)
    gy = cv2.Sobel(soft, cv2.CV_32F, 0, 1, ksize=3, scale=0.125 * sigma)
    return gx, gy


def _blur(field: ComplexImage, sigma: float) -> ComplexImage:
    parts = np.ascontiguousarray(field).view(np.float32).reshape(*field.shape, 2)
    return cv2.GaussianBlur(parts, (0, 0), sigma).view(np.complex64)[..., 0]


def _eroded(valid: Mask) -> Mask:
    size = 2 * int(np.ceil(2 * max(GRADIENT_SIGMAS_PX))) + 1
    kernel = np.ones((size, size), np.uint8)
    eroded = cv2.erode(valid.astype(np.uint8), kernel, borderType=cv2.BORDER_REPLICATE)
    return eroded.astype(bool)
