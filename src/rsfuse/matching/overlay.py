"""Whether two images lie on each other: one placement judged by all pixels, and polished by them.

Tie points drown in noise, in a dark image or in radar of few looks. The correlation of whole images
does not. It is compared with that at wrong shifts of the same two images, which shows what chance
gives on this ground.

Letters: K harmonics, H, W the size of a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from scipy import fft, optimize

from rsfuse.matching.fine import paraboloid
from rsfuse.matching.pipeline import PairReader, Points, Rect, spread_tiles
from rsfuse.matching.search import flattened
from rsfuse.matching.structure import ComplexImage, Mask, structure_channels
from rsfuse.ops.geometry2d import FloatArray, for_opencv

# Reference pixels per pixel: what drowns in noise shows on a coarser lattice.
LATTICES = (1.0, 2.0, 4.0)
WINDOW_PX = 768  # side of a window, pixels of the lattice
WINDOWS = 9  # at most, spread over the area
REACH_PX = 64  # the null distribution: shifts up to here, reference pixels
NEAR_PX = 4.0  # from a placement, beyond which a peak is another one's, reference pixels
SMALLEST_PX = 48  # a window below this tells nothing
FLATTENING = (
    0.4  # for the same reason as in the search: long straight edges fit everywhere along themselves
)


class View(NamedTuple):
    """What lies on what, on one lattice.

    Attributes:
        factor: Reference pixels per pixel.
        windows: Structure channels (K, H, W) of the reference and of the query under it.
        rects: Where the windows lie, (x, y, w, h) in reference pixels.
    """

    factor: float
    windows: list[tuple[ComplexImage, ComplexImage]]
    rects: list[Rect]


def views(
    pair: PairReader,
    mapping: Points,
    *,
    factors: Sequence[float] = LATTICES,
    area: Rect | None = None,
) -> list[View]:
    """Both images, the query read through a mapping, on every lattice that is large enough.

    Args:
        pair: The images.
        mapping: Pixels of the reference (N, 2) -> pixels of the query.
        factors: Reference pixels per pixel of each lattice.
        area: Part of the reference to look at, (x, y, w, h) in pixels; all of it by default.
    """
    h0, w0 = pair.shape0
    area = area or (0.0, 0.0, float(w0), float(h0))
    found = []
    for factor in factors:
        if min(area[2:]) / factor < SMALLEST_PX:
            continue
        rects = spread_tiles(area, WINDOW_PX * factor, WINDOWS)
        windows = []
        for x, y, w, h in rects:
            shape = (round(h / factor), round(w / factor))
            on_lattice = _through(mapping, np.array([x, y]), np.array([w, h]) / shape[::-1])
            own, other = pair.read0((x, y, w, h), shape), pair.read1(shape, on_lattice)
            windows.append((structure_channels(*own).z, structure_channels(*other).z))
        found.append(View(factor, windows, rects))
    return found


def _through(mapping: Points, corner: FloatArray, step: FloatArray) -> Points:
    return lambda points: mapping(points * step + corner)


class Correlation(NamedTuple):
    """What whole images say of a placement.

    Attributes:
        standing_out: How far the correlation at the placement stands out of that at wrong shifts,
            in standard deviations of the latter, mean over the lattices; 2 to 4 by chance, because
            the best of the shifts up to two pixels counts. 0 where nothing can be said.
        shift: (2,) from the placement to the nearest peak of the finest lattice, reference pixels;
            0 where there is none nearby.
    """

    standing_out: float
    shift: FloatArray


def correlate(seen: list[View]) -> Correlation:
    """Correlate what lies on what at all shifts nearby."""
    values = []
    shift = np.zeros(2)
    for view in seen:
        (surface, plain), radius = _surfaces(view, FLATTENING, 0.0)
        if view is seen[0]:
            # Of the plain correlation: a narrow peak is drawn to whole pixels.
            shift = view.factor * _peak(plain, radius <= NEAR_PX / view.factor)
        far = surface[radius > max(8.0 / view.factor, 4.0)]
        if far.size < 50 or not far.std() > 0:
            continue
        near = surface[radius <= max(2.0 / view.factor, 1.0)]
        values.append((near.max() - far.mean()) / far.std())
    return Correlation(float(np.mean(values)) if values else 0.0, shift)


def _peak(surface: FloatArray, allowed: Mask) -> FloatArray:
    """(2,) from the middle to the largest allowed value, (x, y); 0 where that is no peak."""
    row, column = np.unravel_index(int(np.where(allowed, surface, -np.inf).argmax()), surface.shape)
    near = surface[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
    if near.shape != (3, 3) or not near.max() == surface[row, column] > near.min():
        return np.zeros(2)
    (dx,), (dy,) = paraboloid(near[None])
    middle = np.array(surface.shape[::-1]) // 2
    return np.asarray([column + dx, row + dy] - middle, np.float64)


def polished(seen: list[View], shape0: tuple[int, int]) -> FloatArray:
    """(3, 3) small turn, scale and shift of reference pixels before the mapping that agrees best.

    Found by the simplex method as the largest sum of correlations over windows and lattices, each
    lattice by what it resolves.
    """
    h, w = shape0
    half = max(h, w) / 2
    scores = [(v, 1.0 / (v.factor * max(float(_surfaces(v, 0.0)[0].std()), 1e-9))) for v in seen]

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


def _correlation(view: View, change: FloatArray) -> float:
    """Sum over the windows of the correlation when the query is read through `change`."""
    total = 0.0
    for (own, other), (x, y, w, h) in zip(view.windows, view.rects, strict=True):
        rows, columns = own.shape[1:]
        lift = np.array([[w / columns, 0, x], [0, h / rows, y], [0, 0, 1]])
        there = for_opencv(np.linalg.inv(lift) @ change @ lift)
        for a, b in zip(own, other, strict=True):
            parts = np.ascontiguousarray(b).view(np.float32).reshape(rows, columns, 2)
            moved = cv2.warpAffine(
                parts, there[:2], (columns, rows), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            )
            total += float(np.vdot(a.view(np.float32), moved.reshape(rows, -1)))
    return total


def _surfaces(view: View, *powers: float) -> tuple[FloatArray, FloatArray]:
    """(P, S, S) correlation by shift, a sum over the windows, and (S, S) the length of each shift.

    One for each power by which the spectra are flattened.
    """
    reach = int(min(REACH_PX / view.factor, min(min(a.shape[1:]) for a, _ in view.windows) / 4))
    side = 2 * reach + 1
    surfaces = np.zeros((len(powers), side, side))
    for windows in view.windows:
        size = [fft.next_fast_len(n + reach) for n in windows[0].shape[1:]]
        spectra = [fft.fft2(z, size) for z in windows]
        for surface, power in zip(surfaces, powers, strict=True):
            first, second = (flattened(spectrum, power) for spectrum in spectra)
            whole = fft.ifft2((np.conj(first) * second).sum(axis=0)).real
            surface += np.roll(whole, (reach, reach), axis=(0, 1))[:side, :side]
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return surfaces, np.hypot(x, y)
