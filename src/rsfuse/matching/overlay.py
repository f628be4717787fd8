"""Whether two images lie on each other: one placement judged by all pixels, and polished by them.

Tie points drown in noise, in a dark image or in radar of few looks. The correlation of whole images
does not. It is compared with that at wrong shifts of the same two images, which shows what chance
gives on this ground. Lattices of full, half and a quarter of the resolution have equal say.

Letters: K harmonics, H, W the size of a window.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from scipy import fft, optimize

from rsfuse.matching.pipeline import PairReader, Points, Rect
from rsfuse.matching.structure import ComplexImage, structure_channels
from rsfuse.ops.geometry2d import FloatArray

LATTICES = (1, 2, 4)  # reference pixels per pixel
WINDOW_PX = 768  # side of a window, pixels of the lattice
ACROSS = 3  # windows along a side, at most
REACH_PX = 64  # the null distribution: shifts up to here, reference pixels
SMALLEST_PX = 48  # a window below this tells nothing


class Views(NamedTuple):
    """What lies on what, on one lattice.

    Attributes:
        factor: Reference pixels per pixel.
        windows: Structure channels (K, H, W) of the reference and of the query under it.
        rects: Where the windows lie, (x, y, w, h) in reference pixels.
    """

    factor: float
    windows: list[tuple[ComplexImage, ComplexImage]]
    rects: list[Rect]


def views(pair: PairReader, mapping: Points) -> list[Views]:
    """Both images, the query read through a mapping, on every lattice that is large enough.

    Args:
        pair: The images.
        mapping: Pixels of the reference (N, 2) -> pixels of the query.
    """
    found = []
    for factor in LATTICES:
        if min(pair.shape0) / factor < SMALLEST_PX:
            continue
        rects = _spread(pair.shape0, WINDOW_PX * factor)
        windows = []
        for x, y, w, h in rects:
            shape = (round(h / factor), round(w / factor))
            on_lattice = _through(mapping, np.array([x, y]), np.array([w, h]) / shape[::-1])
            own, other = pair.read0((x, y, w, h), shape), pair.read1(shape, on_lattice)
            windows.append((structure_channels(*own).z, structure_channels(*other).z))
        found.append(Views(float(factor), windows, rects))
    return found


def _through(mapping: Points, corner: FloatArray, step: FloatArray) -> Points:
    return lambda points: mapping(points * step + corner)


def standing_out(seen: list[Views]) -> float:
    """How far the correlation at the placement stands out of that at wrong shifts.

    In standard deviations of the latter, mean over the lattices; about 1 by chance, because the
    best of the shifts up to two pixels counts. 0 where nothing can be said.
    """
    values = []
    for view in seen:
        surface, radius = _surface(view)
        far = surface[radius > max(8.0 / view.factor, 4.0)]
        if far.size < 50 or not far.std() > 0:
            continue
        near = surface[radius <= max(2.0 / view.factor, 1.0)]
        values.append((near.max() - far.mean()) / far.std())
    return float(np.mean(values)) if values else 0.0


def polished(seen: list[Views], shape0: tuple[int, int]) -> FloatArray:
    """(3, 3) small turn, scale and shift of reference pixels before the mapping that agrees best.

    Found by the simplex method as the largest sum of correlations over windows and lattices, each
    lattice by what it resolves.
    """
    h, w = shape0
    half = max(h, w) / 2
    scores = [(v, 1.0 / (v.factor * max(float(_surface(v)[0].std()), 1e-9))) for v in seen]

    def matrix(p: FloatArray) -> FloatArray:
        # p: shift of the centre, and shifts of the edge by scale and turn; pixels
        scale, turn = p[2] / half, p[3] / half
        linear = np.array([[1 + scale, -turn], [turn, 1 + scale]])
        centre = np.array([w / 2, h / 2])
        found = np.eye(3)
        found[:2, :2] = linear
        found[:2, 2] = centre + p[:2] - linear @ centre
        return found

    def disagreement(p: FloatArray) -> float:
        change = matrix(p)
        return -sum(weight * _correlation(view, change) for view, weight in scores)

    simplex = np.vstack([np.zeros(4), 2.5 * np.eye(4)])
    found = optimize.minimize(
        disagreement,
        np.zeros(4),
        method="Nelder-Mead",
        options={"initial_simplex": simplex, "xatol": 0.02, "fatol": 1e-3, "maxfev": 160},
    )
    return matrix(found.x) if found.fun < disagreement(np.zeros(4)) else np.eye(3)


def _correlation(view: Views, change: FloatArray) -> float:
    """Sum over the windows of the correlation when the query is read through `change`."""
    total = 0.0
    for (own, other), (x, y, w, h) in zip(view.windows, view.rects, strict=True):
        rows, columns = own.shape[1:]
        lift = np.array([[w / columns, 0, x], [0, h / rows, y], [0, 0, 1]])
        half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
        there = np.linalg.inv(lift @ half) @ change @ lift @ half
        for a, b in zip(own, other, strict=True):
            parts = np.ascontiguousarray(b).view(np.float32).reshape(rows, columns, 2)
            moved = cv2.warpAffine(
                parts, there[:2], (columns, rows), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            )
            total += float(np.vdot(a.view(np.float32), moved.reshape(rows, -1)))
    return total


def _surface(view: Views) -> tuple[FloatArray, FloatArray]:
    """(S, S) correlation by shift, summed over the windows; and the length of each shift."""
    reach = int(min(REACH_PX / view.factor, min(min(a.shape[1:]) for a, _ in view.windows) / 4))
    surface = np.zeros((2 * reach + 1, 2 * reach + 1))
    for own, other in view.windows:
        size = [fft.next_fast_len(n + reach) for n in own.shape[1:]]
        product = np.conj(fft.fft2(own, size)) * fft.fft2(other, size)
        whole = fft.ifft2(product.sum(axis=0)).real
        surface += np.roll(whole, (reach, reach), axis=(0, 1))[: 2 * reach + 1, : 2 * reach + 1]
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return surface, np.hypot(x, y)


def _spread(shape: tuple[int, int], side: int) -> list[Rect]:
    """Windows of a side, evenly spread over an image."""
    h, w = shape

    def starts(length: int) -> npt.NDArray[np.float64]:
        count = min(ACROSS, int(np.ceil(length / side)))
        return np.round(np.linspace(0, max(length - side, 0), count))

    return [
        (float(x), float(y), float(min(side, w)), float(min(side, h)))
        for y in starts(h)
        for x in starts(w)
    ]
