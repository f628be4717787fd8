"""Exact area averages: what a coarser pixel sees of finer ones, counting valid pixels only."""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse

FloatImage = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

# A coarse pixel is valid when at least this share of its area is.
_VALID_SHARE = 0.5 - 1e-4


class Cover(NamedTuple):
    """How coarse pixels along one axis cover fine ones.

    Attributes:
        first: First fine pixel that is touched.
        stop: One after the last.
        weights: (coarse, stop - first) sparse, lengths in fine pixels.
        length: Length of a coarse pixel in fine pixels.
    """

    first: int
    stop: int
    weights: scipy.sparse.csr_array
    length: float

    def rows(self, start: int, stop: int) -> "Cover":
        """The same for coarse pixels `start` to `stop`, with the fine pixels they touch."""
        part = self.weights[start:stop]
        touched = part.indices
        low, high = (int(touched.min()), int(touched.max()) + 1) if touched.size else (0, 0)
        return Cover(self.first + low, self.first + high, part[:, low:high], self.length)


def cover(start: float, stop: float, coarse: int, fine: int) -> Cover:
    """Cover of `coarse` equal pixels over [start, stop) of an axis of `fine` pixels.

    What lies outside the axis covers nothing.
    """
    length = (stop - start) / coarse
    edges = start + length * np.arange(coarse + 1)
    # Edges that are meant to fall on pixel edges do so in spite of rounding.
    near = np.round(edges)
    edges = np.clip(np.where(np.abs(edges - near) < 1e-7, near, edges), 0, fine)
    first, last = math.floor(edges[0]), math.ceil(edges[-1])
    low = np.floor(edges[:-1]).astype(np.int64)
    count = np.maximum(np.ceil(edges[1:]).astype(np.int64) - low, 0)
    row = np.repeat(np.arange(coarse), count)
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    column = np.repeat(low, count) + within
    weight = np.minimum(edges[row + 1], column + 1) - np.maximum(edges[row], column)
    kept = weight > 0
    shape = (coarse, max(last - first, 0))
    triples = (weight[kept].astype(np.float32), (row[kept], column[kept] - first))
    return Cover(first, max(last, first), scipy.sparse.csr_array(triples, shape=shape), length)


def average(data: FloatImage, valid: Mask, rows: Cover, columns: Cover) -> tuple[FloatImage, Mask]:
    """Means of the valid pixels under each coarse pixel, and which coarse pixels are valid.

    Args:
        data: (C, h, w) of the fine pixels that `rows` and `columns` touch; zero where invalid.
        valid: (h, w).
        rows: Cover along y.
        columns: Cover along x.
    """

    def total(image: FloatImage) -> FloatImage:
        across = rows.weights @ image
        return np.asarray((columns.weights @ np.ascontiguousarray(across.T)).T, np.float32)

    area = total(valid.astype(np.float32))
    usable = area >= _VALID_SHARE * rows.length * columns.length
    divisor = np.where(usable, area, 1.0).astype(np.float32)
    means = np.empty((len(data), *usable.shape), np.float32)
    for mean, band in zip(means, data, strict=True):
        mean[...] = np.where(usable, total(band) / divisor, 0.0)
    return means, usable


def nearest(
    data: FloatImage, valid: Mask, y: npt.NDArray[np.float64], x: npt.NDArray[np.float64]
) -> tuple[FloatImage, Mask]:
    """Pixels at a lattice of positions, and which of them are valid; none is valid outside.

    Args:
        data: (C, h, w).
        valid: (h, w).
        y: Rows of the lattice, in pixels of `data`.
        x: Columns of the lattice.
    """
    row, column = np.floor(y).astype(np.int64), np.floor(x).astype(np.int64)
    height, width = valid.shape
    inside = ((row >= 0) & (row < height))[:, None] & ((column >= 0) & (column < width))
    at = np.ix_(np.clip(row, 0, height - 1), np.clip(column, 0, width - 1))
    usable = np.asarray(valid[at] & inside)
    return np.asarray(np.where(usable, data[:, at[0], at[1]], np.float32(0))), usable
