"""Modality operators: what another sensor might have made of an image, in one line each.

They stand in for sensors of which no registered pairs are at hand. None is a sensor model: a
matcher that learned them is judged on real pairs and on operators that it never saw
(`HELD_OUT`). Every operator takes and gives one band (H, W) in 0..1 and moves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Band = npt.NDArray[np.float32]
Operator = Callable[[Band, np.random.Generator], Band]


def same(band: Band, rng: np.random.Generator) -> Band:
    """No change."""
    return band


def tone(band: Band, rng: np.random.Generator) -> Band:
    """Inversion or not, then a random gamma."""
    turned = 1 - band if rng.random() < 0.5 else band
    return np.asarray(turned ** np.float32(np.exp(rng.uniform(-0.7, 0.7))), np.float32)


def curve(band: Band, rng: np.random.Generator) -> Band:
    """A random curve through six knots: neighbouring tones may change places."""
    knots = rng.uniform(0, 1, 6)
    return np.interp(band, np.linspace(0, 1, 6), knots).astype(np.float32)


def thermal(band: Band, rng: np.random.Generator) -> Band:
    """Tones that go up and down again, as warmth against brightness, and some blur."""
    wave = 0.5 + 0.5 * np.cos(2 * np.pi * rng.uniform(0.6, 1.6) * band + rng.uniform(0, 2 * np.pi))
    mixed = rng.uniform(0.0, 0.4) * band + wave.astype(np.float32)
    return blurred(mixed.astype(np.float32), rng.uniform(0.3, 1.5))


def radar(band: Band, rng: np.random.Generator) -> Band:
    """Logarithm of a mix of brightness and slope under gamma speckle of 2, 4 or 8 looks."""
    return _speckled(band, rng, int(rng.choice([2, 4, 8])))


def radar_one_look(band: Band, rng: np.random.Generator) -> Band:
    """`radar` with the speckle of a single look."""
    return _speckled(band, rng, 1)


def drawing(band: Band, rng: np.random.Generator) -> Band:
    """A map: few flat tones in another order, some with a drawn outline."""
    levels = int(rng.integers(3, 7))
    soft = cv2.medianBlur((255 * blurred(band, rng.uniform(0.8, 2.0))).astype(np.uint8), 5)
    edges = np.quantile(soft, np.linspace(0, 1, levels + 1)[1:-1])
    flat = rng.permutation(np.linspace(0, 1, levels))[np.digitize(soft, edges)]
    if rng.random() < 0.5:
        flat[cv2.Canny(soft, 40, 90) > 0] = rng.choice([0.0, 1.0])
    return np.asarray(flat, np.float32)


def edges(band: Band, rng: np.random.Generator) -> Band:
    """Nothing but the strength of edges."""
    soft = blurred(band, rng.uniform(0.6, 1.5))
    gx, gy = cv2.Sobel(soft, cv2.CV_32F, 1, 0), cv2.Sobel(soft, cv2.CV_32F, 0, 1)
    strength = np.hypot(gx, gy)
    return np.asarray(np.clip(strength / (np.quantile(strength, 0.98) + 1e-6), 0, 1), np.float32)


def night(band: Band, rng: np.random.Generator) -> Band:
    """Little light, much noise, and lamps."""
    dark = 0.25 * band**2
    lamps = (rng.random(band.shape) < 0.002).astype(np.float32)
    glow = blurred(lamps, rng.uniform(1.0, 3.0))
    noise = 0.05 * rng.standard_normal(band.shape)
    return np.asarray(np.clip(dark + glow / (glow.max() + 1e-6) + noise, 0, 1), np.float32)


def relief(band: Band, rng: np.random.Generator) -> Band:
    """Depth: broad forms with sharp rims on a tilted plane."""
    smooth = cv2.bilateralFilter(band, 9, 0.2, 5.0)
    h, w = band.shape
    x, y = np.linspace(-1, 1, w)[None], np.linspace(-1, 1, h)[:, None]
    plane = rng.uniform(-0.4, 0.4) * x + rng.uniform(-0.4, 0.4) * y
    return np.clip(0.5 + 0.5 * (curve(smooth, rng) - 0.5) + plane, 0, 1).astype(np.float32)


def season(band: Band, rng: np.random.Generator) -> Band:
    """A curve that differs from place to place: fields change, roofs do not."""
    share = _clouds(band.shape, rng, 12)
    return np.asarray(share * curve(band, rng) + (1 - share) * band, np.float32)


def haze(band: Band, rng: np.random.Generator) -> Band:
    """Haze with a few thicker clouds."""
    cover = _clouds(band.shape, rng, 24) ** 2 * rng.uniform(0.3, 1.0)
    return np.asarray(band * (1 - cover) + cover, np.float32)


OPERATORS: Mapping[str, Operator] = {
    f.__name__: f for f in (same, tone, curve, thermal, radar, drawing, edges, relief, season, haze)
}
# Never trained on: they tell whether training taught more than the operators.
HELD_OUT: Mapping[str, Operator] = {f.__name__: f for f in (radar_one_look, night)}


def degraded(band: Band, rng: np.random.Generator) -> Band:
    """Blur, coarse sampling, noise and JPEG blocks, each now and then."""
    if rng.random() < 0.3:
        band = blurred(band, rng.uniform(0.4, 1.3))
    if rng.random() < 0.15:
        h, w = band.shape
        small = cv2.resize(band, (w // 2, h // 2), interpolation=cv2.INTER_AREA)
        band = cv2.resize(small, (w, h), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.4:
        noise = rng.uniform(0.0, 0.06) * rng.standard_normal(band.shape)
        band = np.clip(band + noise, 0, 1).astype(np.float32)
    if rng.random() < 0.1:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 80))]
        _, code = cv2.imencode(".jpg", (255 * band).astype(np.uint8), quality)
        band = cv2.imdecode(code, cv2.IMREAD_GRAYSCALE).astype(np.float32) / 255
    return np.asarray(band, np.float32)


def stretched(band: npt.NDArray[np.floating[Any]]) -> Band:
    """A band with its 1st and 99th percentile at 0 and 1."""
    low, high = np.percentile(band[:: max(1, band.shape[0] // 128)], (1, 99))
    return np.asarray(np.clip((band - low) / max(high - low, 1e-9), 0, 1), np.float32)


def blurred(band: Band, sigma: float) -> Band:
    """Gaussian blur."""
    return np.asarray(cv2.GaussianBlur(band, (0, 0), max(sigma, 0.05)), np.float32)


def _speckled(band: Band, rng: np.random.Generator, looks: int) -> Band:
    gx, gy = cv2.Sobel(band, cv2.CV_32F, 1, 0), cv2.Sobel(band, cv2.CV_32F, 0, 1)
    slope = np.clip(np.hypot(gx, gy), 0, 1)
    share = rng.uniform(0, 1)
    tone_ = band if rng.random() < 0.6 else 1 - band
    power = 0.02 + share * tone_ + (1 - share) * slope
    power = power * rng.gamma(looks, 1 / looks, band.shape)
    if rng.random() < 0.5:
        power = cv2.blur(power, (3, 3))
    return stretched(np.log(power + 1e-3))


def _clouds(shape: tuple[int, ...], rng: np.random.Generator, scale: float) -> Band:
    """A smooth random field in 0..1."""
    field = blurred(rng.standard_normal(shape).astype(np.float32), scale)
    low, high = field.min(), field.max()
    return np.asarray((field - low) / max(high - low, 1e-9), np.float32)
