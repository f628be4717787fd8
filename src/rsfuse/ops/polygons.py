"""Overlap of quadrilaterals in float64, compiled: what scores and suppression are made with.

Convex quadrilaterals are clipped against each other (Sutherland-Hodgman). A concave one is cut
along its inner diagonal into two triangles, and the overlaps of the parts are added: exact for
every simple quadrilateral. One that crosses itself has no area that two programs agree on; its
corners are put in order, see `repaired`.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

Floats = npt.NDArray[np.float64]

# A corner this close to a straight line, as a share of the squared size, does not make a
# quadrilateral concave.
_STRAIGHT = 1e-12


@njit(cache=True, nogil=True, inline="always")
def _cross(ox: float, oy: float, ax: float, ay: float, bx: float, by: float) -> float:
    return (ax - ox) * (by - oy) - (ay - oy) * (bx - ox)


def polygon_areas(polygons: npt.ArrayLike) -> Floats:
    """(...) areas of polygons (..., n, 2), whichever way they turn."""
    x, y = np.moveaxis(np.asarray(polygons, np.float64), -1, 0)
    cross = x * np.roll(y, -1, axis=-1) - np.roll(x, -1, axis=-1) * y
    return np.asarray(np.abs(cross.sum(axis=-1)) / 2)


@njit(cache=True, nogil=True)
def signed_area(polygon: Floats) -> float:
    """Area of a polygon (n, 2): positive where it turns clockwise on the screen."""
    total = 0.0
    n = len(polygon)
    for i in range(n):
        j = (i + 1) % n
        total += (polygon[i, 0] - polygon[0, 0]) * (polygon[j, 1] - polygon[0, 1])
        total -= (polygon[j, 0] - polygon[0, 0]) * (polygon[i, 1] - polygon[0, 1])
    return 0.5 * total


@njit(cache=True, nogil=True)
def _clip(subject: Floats, count: int, clip: Floats, corners: int, spare: Floats) -> float:
    """Area of a convex polygon (its first `count` rows) inside another of positive area.

    `subject` and `spare` are worked in, with room for all corners.
    """
    for i in range(corners):
        j = (i + 1) % corners
        ax, ay = clip[i, 0], clip[i, 1]
        bx, by = clip[j, 0], clip[j, 1]
        kept = 0
        for k in range(count):
            px, py = subject[k, 0], subject[k, 1]
            last = (k + 1) % count
            qx, qy = subject[last, 0], subject[last, 1]
            side_p = _cross(ax, ay, bx, by, px, py)
            side_q = _cross(ax, ay, bx, by, qx, qy)
            if side_p >= 0.0:
                spare[kept, 0], spare[kept, 1] = px, py
                kept += 1
            if (side_p > 0.0 and side_q < 0.0) or (side_p < 0.0 and side_q > 0.0):
                share = side_p / (side_p - side_q)
                spare[kept, 0] = px + share * (qx - px)
                spare[kept, 1] = py + share * (qy - py)
                kept += 1
        count = kept
        if count < 3:
            return 0.0
        for k in range(count):
            subject[k, 0], subject[k, 1] = spare[k, 0], spare[k, 1]
    total = 0.0
    for k in range(1, count - 1):
        total += _cross(
            subject[0, 0], subject[0, 1], subject[k, 0], subject[k, 1],
            subject[k + 1, 0], subject[k + 1, 1],
        )  # fmt: skip
    return 0.5 * total


@njit(cache=True, nogil=True)
def _parts(quad: Floats, out: Floats) -> int:
    """Write the convex parts of a simple quadrilateral of positive area; how many corners each has.

    Returns 4 for one convex part in out[0], 3 for two triangles in out[0] and out[1].
    """
    width = abs(quad[2, 0] - quad[0, 0]) + abs(quad[3, 0] - quad[1, 0])
    height = abs(quad[2, 1] - quad[0, 1]) + abs(quad[3, 1] - quad[1, 1])
    slack = _STRAIGHT * (width + height) ** 2
    for i in range(4):
        before, after = (i + 3) % 4, (i + 1) % 4
        turn = _cross(
            quad[before, 0], quad[before, 1], quad[i, 0], quad[i, 1], quad[after, 0], quad[after, 1]
        )
        if turn < -slack:  # the corner that points inwards; its diagonal lies inside
            across = (i + 2) % 4
            for part, third in ((0, after), (1, before)):
                first, second = (i, across) if part == 1 else (across, i)
                out[part, 0] = quad[second if part == 0 else first]
                out[part, 1] = quad[third if part == 0 else across]
                out[part, 2] = quad[across if part == 0 else third]
            return 3
    for k in range(4):
        out[0, k] = quad[k]
    return 4


@njit(cache=True, nogil=True)
def _oriented(quad: Floats, origin_x: float, origin_y: float, out: Floats) -> float:
    """The quadrilateral relative to an origin with positive area; the area."""
    area = signed_area(quad)
    for k in range(4):
        source = k if area >= 0.0 else 3 - k
        out[k, 0] = quad[source, 0] - origin_x
        out[k, 1] = quad[source, 1] - origin_y
    return abs(area)


@njit(cache=True, nogil=True)
def _overlap(a: Floats, b: Floats, work: Floats) -> float:
    """Area that two simple quadrilaterals of positive area share; `work` is (6, 16, 2)."""
    corners_a = _parts(a, work[0:2])
    corners_b = _parts(b, work[2:4])
    total = 0.0
    for i in range(1 if corners_a == 4 else 2):
        for j in range(1 if corners_b == 4 else 2):
            for k in range(corners_a):
                work[4, k, 0], work[4, k, 1] = work[i, k, 0], work[i, k, 1]
            total += _clip(work[4], corners_a, work[2 + j], corners_b, work[5])
    return max(total, 0.0)


@njit(cache=True, nogil=True)
def quad_iou(a: Floats, b: Floats, work: Floats) -> float:
    """IoU of two simple quadrilaterals (4, 2) in either sense; `work` is (8, 16, 2)."""
    area_a = _oriented(a, a[0, 0], a[0, 1], work[6])
    area_b = _oriented(b, a[0, 0], a[0, 1], work[7])
    common = _overlap(work[6], work[7], work)
    union = area_a + area_b - common
    return common / union if union > 0.0 else 0.0


@njit(cache=True, nogil=True)
def _apart(a: Floats, b: Floats) -> bool:
    """Whether the axis-aligned boxes around two quadrilaterals do not touch."""
    for axis in range(2):
        low_a = min(a[0, axis], a[1, axis], a[2, axis], a[3, axis])
        high_a = max(a[0, axis], a[1, axis], a[2, axis], a[3, axis])
        low_b = min(b[0, axis], b[1, axis], b[2, axis], b[3, axis])
        high_b = max(b[0, axis], b[1, axis], b[2, axis], b[3, axis])
        if high_a <= low_b or high_b <= low_a:
            return True
    return False


@njit(cache=True, nogil=True)
def _iou_pairs(a: Floats, b: Floats, out: Floats) -> None:
    work = np.zeros((8, 16, 2))
    for i in range(len(a)):
        out[i] = 0.0 if _apart(a[i], b[i]) else quad_iou(a[i], b[i], work)


@njit(cache=True, nogil=True)
def _intersections(a: Floats, b: Floats, common: Floats, area: Floats) -> None:
    work = np.zeros((8, 16, 2))
    for i in range(len(a)):
        area[i] = _oriented(a[i], a[i, 0, 0], a[i, 0, 1], work[6])
        _oriented(b[i], a[i, 0, 0], a[i, 0, 1], work[7])
        common[i] = 0.0 if _apart(a[i], b[i]) else _overlap(work[6], work[7], work)


@njit(cache=True, nogil=True)
def _iou_matrix(a: Floats, b: Floats, out: Floats) -> None:
    work = np.zeros((8, 16, 2))
    for i in range(len(a)):
        for j in range(len(b)):
            out[i, j] = 0.0 if _apart(a[i], b[j]) else quad_iou(a[i], b[j], work)


def polygon_iou_pairs(a: npt.ArrayLike, b: npt.ArrayLike) -> Floats:
    """IoU (N,) of simple quadrilaterals (N, 4, 2) and (N, 4, 2), pair by pair, in float64."""
    first, second = _quads(a), _quads(b)
    out = np.zeros(len(first))
    _iou_pairs(first, second, out)
    return out


def polygon_intersections(a: npt.ArrayLike, b: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Area (N,) that quadrilaterals (N, 4, 2) share with others, and area (N,) of the first."""
    first, second = _quads(a), _quads(b)
    common, area = np.zeros(len(first)), np.zeros(len(first))
    _intersections(first, second, common, area)
    return common, area


def polygon_iou_matrix(a: npt.ArrayLike, b: npt.ArrayLike) -> Floats:
    """IoU (N, M) of simple quadrilaterals (N, 4, 2) with (M, 4, 2), in float64."""
    first, second = _quads(a), _quads(b)
    out = np.zeros((len(first), len(second)))
    _iou_matrix(first, second, out)
    return out


def _quads(quads: Any) -> Floats:
    return np.ascontiguousarray(quads, np.float64).reshape(-1, 4, 2)


def crosses_itself(quads: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Which quadrilaterals (N, 4, 2) have two opposite sides that cross."""
    q = _quads(quads)

    def cross(o: Floats, a: Floats, b: Floats) -> Floats:
        return (a[:, 0] - o[:, 0]) * (b[:, 1] - o[:, 1]) - (a[:, 1] - o[:, 1]) * (b[:, 0] - o[:, 0])

    def meet(a: Floats, b: Floats, c: Floats, d: Floats) -> npt.NDArray[np.bool_]:
        return (cross(a, b, c) * cross(a, b, d) < 0) & (cross(c, d, a) * cross(c, d, b) < 0)

    corners = [q[:, i] for i in range(4)]
    return meet(corners[0], corners[1], corners[2], corners[3]) | meet(
        corners[1], corners[2], corners[3], corners[0]
    )


def repaired(quads: npt.ArrayLike) -> tuple[Floats, int]:
    """Quadrilaterals (N, 4, 2) with those that cross themselves put in hull order, and how many.

    The corners of a quadrilateral that crosses itself are in convex position or one lies inside the
    others' triangle; they are sorted around their middle, which gives the hull in the first case
    and a simple quadrilateral in the second.
    """
    q = _quads(quads).copy()
    bad = crosses_itself(q)
    if bad.any():
        offset = q[bad] - q[bad].mean(axis=1, keepdims=True)
        order = np.argsort(np.arctan2(offset[..., 1], offset[..., 0]), axis=1)
        q[bad] = np.take_along_axis(q[bad], order[..., None], axis=1)
    return q, int(bad.sum())


__all__ = [
    "crosses_itself",
    "polygon_intersections",
    "polygon_iou_matrix",
    "polygon_iou_pairs",
    "quad_iou",
    "repaired",
    "signed_area",
]
