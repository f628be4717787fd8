"""Measuring: how far the content around each keypoint is displaced, by template correlation.

Both images lie on one lattice already (the query has been resampled through the transform known so
far), so what is measured is a residual displacement of a few pixels. A template around a keypoint
of one image is correlated with the other image at every shift within a radius: all channels at
once, through the Fourier transform, normalised by the energy under the template. A SoftMax over the
positions turns the correlation map into probabilities.

The parabola through a correlation peak is biased towards whole pixels, but the bias is an odd
function of the sub-pixel phase: zero at a whole pixel. The caller measures twice, the second time
through the transform of the first, so that the residual, and the bias with it, is nearly zero.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from scipy import fft

from rsfuse.matching.structure import Structure

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]

CHUNK = 64  # templates per Fourier batch: bounds memory
MIN_VALID_SHARE = 0.7  # of a template and of its counterpart
TEMPERATURE = 0.6  # of the SoftMax, in standard deviations of the correlation surface


class Displacements(NamedTuple):
    """What the templates said.

    Attributes:
        xy: (N, 2) centres of the templates on the lattice.
        shift: (N, 2) displacement of the other image's content, lattice pixels.
        score: (N,) normalised correlation at the peak.
        height: (N,) the peak in standard deviations of its surface.
        ratio: (N,) second peak over first; 0 = unambiguous, 1 = two equal peaks.
        probability: (N,) SoftMax mass within 1.5 px of the peak.
        sigma: (N,) standard deviation of the position, pixels, from the SoftMax distribution.
    """

    xy: FloatArray
    shift: FloatArray
    score: FloatArray
    height: FloatArray
    ratio: FloatArray
    probability: FloatArray
    sigma: FloatArray

    @classmethod
    def none(cls) -> Displacements:
        """No templates at all."""
        pair, one = np.zeros((0, 2)), np.zeros(0)
        return cls(pair, pair, one, one, one, one, one)

    def select(self, rows: npt.NDArray[np.bool_] | IntArray) -> Displacements:
        """Some of the rows."""
        return Displacements(*(column[rows] for column in self))


def detect_keypoints(structure: Structure, *, spacing: int, margin: int) -> FloatArray:
    """Keypoints of one image: the place in each grid cell where edges of several directions meet.

    Args:
        structure: Channels of the image; no other image is looked at.
        spacing: Side of the grid cells in pixels, one keypoint each.
        margin: No keypoint nearer to the border.

    Returns:
        (N, 2) pixel centres.
    """
    height, width = structure.valid.shape
    z = structure.z[0]
    parts = np.ascontiguousarray(z).view(np.float32).reshape(height, width, 2)
    mean = cv2.GaussianBlur(parts, (0, 0), 4.0)
    energy = cv2.GaussianBlur(np.abs(z), (0, 0), 4.0)
    # |z| counts edges, |mean z| only those of one direction; the difference wants corners.
    strength = energy - 0.7 * np.hypot(mean[..., 0], mean[..., 1])
    strength = np.where(structure.valid, strength, -1.0)
    found = []
    for y in range(margin, height - margin, spacing):
        for x in range(margin, width - margin, spacing):
            cell = strength[
                y : min(y + spacing, height - margin), x : min(x + spacing, width - margin)
            ]
            row, column = divmod(int(cell.argmax()), cell.shape[1])
            if cell[row, column] > 0:
                found.append((x + column + 0.5, y + row + 0.5))
    return np.array(found, dtype=np.float64).reshape(-1, 2)


def measure(
    template_of: Structure, search_in: Structure, xy: FloatArray, *, template: int, radius: int
) -> Displacements:
    """Displacement of the surroundings of points from one image to the other.

    Args:
        template_of: Image that the templates are cut from.
        search_in: Image that they are looked for in, on the same lattice.
        xy: (N, 2) pixel centres.
        template: Template side in pixels, even.
        radius: Largest displacement in pixels.

    Returns:
        Rows for the points with enough usable pixels around them, in their order.
    """
    half, reach = template // 2, template // 2 + radius
    side = template + 2 * radius
    height, width = template_of.valid.shape
    size = fft.next_fast_len(side)
    corner = np.floor(xy).astype(np.intp)
    inside = (
        (corner[:, 0] >= half)
        & (corner[:, 1] >= half)
        & (corner[:, 0] <= width - half)
        & (corner[:, 1] <= height - half)
    )
    corner = corner[inside]
    pad = ((0, 0), (reach, reach), (reach, reach))
    other = np.pad(search_in.z, pad)
    sums_other = _integral(np.pad(search_in.valid, reach).astype(np.float64))
    energy_other = _integral((np.abs(other) ** 2).sum(axis=0).astype(np.float64))
    sums_own = _integral(template_of.valid.astype(np.float64))
    area = float(template * template)
    share_own = _box(sums_own, corner - half, template) / area
    share_other = _box(sums_other, corner + reach - half, template) / area
    corner = corner[(share_own >= MIN_VALID_SHARE) & (share_other >= MIN_VALID_SHARE)]
    if len(corner) == 0:
        return Displacements.none()
    grid = np.arange(-radius, radius + 1)
    parts = []
    for start in range(0, len(corner), CHUNK):
        block = corner[start : start + CHUNK]
        own = np.zeros((len(block), 2, size, size), np.complex64)
        seen = np.zeros_like(own)
        for k, (x, y) in enumerate(block):
            own[k, :, :template, :template] = template_of.z[
                :, y - half : y + half, x - half : x + half
            ]
            # In padded coordinates the window of centre (x, y) starts at (x, y) itself.
            seen[k, :, :side, :side] = other[:, y : y + side, x : x + side]
        energy_own = (np.abs(own) ** 2).sum(axis=(1, 2, 3))
        product = (np.conj(fft.fft2(own)) * fft.fft2(seen)).sum(axis=1)
        surface = fft.ifft2(product).real[:, : 2 * radius + 1, : 2 * radius + 1]
        offsets = block + reach - half
        energy = _boxes(energy_other, offsets, grid, template)
        norm = np.sqrt(np.maximum(energy_own[:, None, None] * energy, 1e-12))
        parts.append(read_surfaces((surface / norm).astype(np.float64), radius))
    found = Displacements(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    at_edge = np.abs(found.shift).max(axis=1) > radius - 1
    return found._replace(
        xy=corner.astype(np.float64), probability=np.where(at_edge, 0.0, found.probability)
    )


def read_surfaces(surface: FloatArray, radius: int) -> Displacements:
    """Peak, its sub-pixel place and its evidence for (N, S, S) surfaces; `xy` is left 0."""
    n, side, _ = surface.shape
    rows = np.arange(n)
    flat = surface.reshape(n, -1)
    best = flat.argmax(axis=1)
    y, x = np.divmod(best, side)
    peak = flat[rows, best]
    yc, xc = np.clip(y, 1, side - 2), np.clip(x, 1, side - 2)
    near = surface[
        rows[:, None, None],
        yc[:, None, None] + np.arange(-1, 2)[:, None],
        xc[:, None, None] + np.arange(-1, 2),
    ]
    dx, dy = paraboloid(near)
    inner = (y == yc) & (x == xc)
    dx, dy = np.where(inner, dx, 0.0), np.where(inner, dy, 0.0)
    axis = np.arange(side)
    distance = np.maximum(
        np.abs(axis[None, :, None] - y[:, None, None]),
        np.abs(axis[None, None, :] - x[:, None, None]),
    )
    away = distance > 3
    count = away.sum(axis=(1, 2))
    mean = np.where(away, surface, 0).sum(axis=(1, 2)) / count
    spread = np.sqrt(
        np.where(away, (surface - mean[:, None, None]) ** 2, 0).sum(axis=(1, 2)) / count
    )
    spread = np.maximum(spread, 1e-6)
    second = np.where(away, surface, -np.inf).max(axis=(1, 2))
    height = (peak - mean) / spread
    ratio = np.clip((second - mean) / np.maximum(peak - mean, 1e-9), 0.0, 1.0)
    logits = (surface - peak[:, None, None]) / (TEMPERATURE * spread[:, None, None])
    mass = np.exp(np.minimum(logits, 0.0))
    mass /= mass.sum(axis=(1, 2), keepdims=True)
    close = distance <= 1
    probability = np.where(close, mass, 0).sum(axis=(1, 2))
    local = np.where(distance <= 3, mass, 0)
    total = np.maximum(local.sum(axis=(1, 2)), 1e-12)
    variance = (
        local
        * (
            (axis[None, :, None] - (y + dy)[:, None, None]) ** 2
            + (axis[None, None, :] - (x + dx)[:, None, None]) ** 2
        )
    ).sum(axis=(1, 2)) / (2 * total)
    shift = np.stack([x - radius + dx, y - radius + dy], axis=1)
    return Displacements(
        np.zeros_like(shift), shift, peak, height, ratio, probability, np.sqrt(variance)
    )


def paraboloid(near: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Maximum of the least-squares paraboloid through (N, 3, 3) values, within one pixel."""
    gx = (near[:, :, 2] - near[:, :, 0]).sum(axis=1) / 6
    gy = (near[:, 2, :] - near[:, 0, :]).sum(axis=1) / 6
    gxx = (near[:, :, 0] - 2 * near[:, :, 1] + near[:, :, 2]).sum(axis=1) / 3
    gyy = (near[:, 0, :] - 2 * near[:, 1, :] + near[:, 2, :]).sum(axis=1) / 3
    gxy = (near[:, 2, 2] + near[:, 0, 0] - near[:, 0, 2] - near[:, 2, 0]) / 4
    det = gxx * gyy - gxy * gxy
    safe = (det > 1e-12) & (gxx < 0)
    det = np.where(safe, det, 1.0)
    dx = np.where(safe, (gxy * gy - gyy * gx) / det, 0.0)
    dy = np.where(safe, (gxy * gx - gxx * gy) / det, 0.0)
    return np.clip(dx, -1, 1), np.clip(dy, -1, 1)


def _integral(image: FloatArray) -> FloatArray:
    total = np.zeros((image.shape[0] + 1, image.shape[1] + 1))
    total[1:, 1:] = image.cumsum(axis=0).cumsum(axis=1)
    return total


def _box(integral: FloatArray, corner: IntArray, side: int) -> FloatArray:
    """Sums over (side, side) boxes whose upper left corners (x, y) are given."""
    x, y = corner[:, 0], corner[:, 1]
    return np.asarray(
        integral[y + side, x + side]
        - integral[y, x + side]
        - integral[y + side, x]
        + integral[y, x]
    )


def _boxes(integral: FloatArray, corner: IntArray, grid: IntArray, side: int) -> FloatArray:
    """Box sums (N, S, S) at every shift of `grid` around each corner."""
    y = corner[:, 1, None, None] + grid[None, :, None]
    x = corner[:, 0, None, None] + grid[None, None, :]
    return np.asarray(
        integral[y + side, x + side]
        - integral[y, x + side]
        - integral[y + side, x]
        + integral[y, x]
    )
