"""Noise of a chosen grain size on a canvas of any size, by rows so that memory stays low."""

import zlib
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]

# Nodes kept outside the canvas, so that cubic interpolation never sees its edge.
_MARGIN = 3

# Coarser noise is first refined to nodes this far apart, so that a few rows stay cheap.
_FINE_PERIOD = 32

# Standard deviations of cubically interpolated white nodes and of uniform bytes.
_CUBIC_STD = 0.77
_BYTE_STD = 73.9


def generator(seed: int, *names: str) -> np.random.Generator:
    """The generator of one part of the work: parts share no stream, so none disturbs another."""
    return np.random.default_rng([seed, *(zlib.crc32(name.encode()) for name in names)])


@dataclass(frozen=True)
class Noise:
    """Zero-mean noise of about unit variance on a canvas.

    Attributes:
        nodes: Values `period` pixels apart, with a margin where the period is more than 1.
        period: Pixels between nodes.
        shape: (h, w) of the canvas.
        gain: Factor that brings the interpolated nodes to unit variance.
    """

    nodes: NDArray[np.float32] | NDArray[np.int8]
    period: int
    shape: tuple[int, int]
    gain: float

    def rows(self, start: int, stop: int) -> Plane:
        """The noise in rows `start` to `stop`, (stop - start, w)."""
        gain = np.float32(self.gain)
        if self.period == 1:
            return np.multiply(self.nodes[start:stop], gain, dtype=np.float32)
        first = start // self.period
        last = -(-stop // self.period) + 2 * _MARGIN
        slab = np.asarray(self.nodes[first:last], np.float32) * gain
        size = (slab.shape[1] * self.period, slab.shape[0] * self.period)
        wide = cv2.resize(slab, size, interpolation=cv2.INTER_CUBIC)
        top = _MARGIN * self.period + start - first * self.period
        left = _MARGIN * self.period
        return np.asarray(wide[top : top + stop - start, left : left + self.shape[1]], np.float32)

    def full(self) -> Plane:
        """The noise on the whole canvas."""
        return self.rows(0, self.shape[0])


def noise(shape: tuple[int, int], period: float, rng: np.random.Generator) -> Noise:
    """Noise whose features are about `period` pixels wide (rounded, at least 1)."""
    if period < 1.5:
        # Uniform bytes: a quarter of the memory, and texture needs no tails.
        white = np.frombuffer(rng.bytes(shape[0] * shape[1]), np.int8).reshape(shape)
        return Noise(white, 1, shape, 1 / _BYTE_STD)
    if period >= 2 * _FINE_PERIOD:
        nodes = noise(_node_shape(shape, _FINE_PERIOD), period / _FINE_PERIOD, rng).full()
        return Noise(nodes, _FINE_PERIOD, shape, 1.0)
    whole = round(period)
    nodes = rng.standard_normal(_node_shape(shape, whole), dtype=np.float32)
    return Noise(nodes, whole, shape, 1 / _CUBIC_STD)


def _node_shape(shape: tuple[int, int], period: int) -> tuple[int, int]:
    h, w = (-(-side // period) + 2 * _MARGIN for side in shape)
    return h, w


@dataclass(frozen=True)
class Fractal:
    """A weighted sum of noises of falling period, of about unit variance."""

    parts: tuple[Noise, ...]
    weights: tuple[float, ...]

    def rows(self, start: int, stop: int) -> Plane:
        """The noise in rows `start` to `stop`, (stop - start, w)."""
        total = np.zeros((stop - start, self.parts[0].shape[1]), np.float32)
        for part, weight in zip(self.parts, self.weights, strict=True):
            total += np.float32(weight) * part.rows(start, stop)
        return total

    def full(self) -> Plane:
        """The noise on the whole canvas."""
        return self.rows(0, self.parts[0].shape[0])


def fractal(
    shape: tuple[int, int],
    period: float,
    rng: np.random.Generator,
    *,
    octaves: int = 4,
    persistence: float = 0.5,
) -> Fractal:
    """Noise with features from `period` pixels down, halved `octaves` - 1 times or to 1 pixel."""
    periods = [period / 2**k for k in range(octaves) if k == 0 or period / 2**k >= 1]
    weights = np.array([persistence**k for k in range(len(periods))])
    weights /= np.sqrt((weights**2).sum())
    return Fractal(tuple(noise(shape, p, rng) for p in periods), tuple(weights.tolist()))
