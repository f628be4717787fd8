"""Suppression of boxes that show the same object, exact and fast on a grid.

Greedy: boxes are looked at by falling score, and one is kept if it overlaps no kept box of its
class by more than the threshold. A grid whose cells are as large as the largest box of a class
limits the comparison to nine cells; the result is that of comparing all with all.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from rsfuse.ops.boxes import corners_of
from rsfuse.ops.polygons import quad_iou

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def rotated_nms(
    boxes: npt.ArrayLike,
    scores: npt.ArrayLike,
    threshold: float = 0.1,
    labels: npt.ArrayLike | None = None,
) -> Ints:
    """Indices of the boxes (N, 5) that are kept, by falling score.

    Args:
        boxes: Oriented boxes (cx, cy, w, h, angle).
        scores: (N,); equal scores are taken in the order given.
        threshold: Largest IoU of two kept boxes of a class.
        labels: (N,) classes; one class when None.
    """
    found = np.asarray(boxes, np.float64).reshape(-1, 5)
    return polygon_nms(corners_of(found), scores, threshold, labels)


def polygon_nms(
    quads: npt.ArrayLike,
    scores: npt.ArrayLike,
    threshold: float = 0.1,
    labels: npt.ArrayLike | None = None,
) -> Ints:
    """The same for simple quadrilaterals (N, 4, 2)."""
    corners = np.ascontiguousarray(quads, np.float64).reshape(-1, 4, 2)
    count = len(corners)
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    kinds = np.zeros(count, np.int64) if labels is None else np.asarray(labels, np.int64)
    keep = np.zeros(count, np.bool_)
    for kind in np.unique(kinds):
        mine = order[kinds[order] == kind]
        keep[mine] = _kept(corners[mine], float(threshold))
    return order[keep[order]]


def _kept(corners: Floats, threshold: float) -> npt.NDArray[np.bool_]:
    """Which boxes of one class stay; they come by falling score."""
    low, high = corners.min(axis=1), corners.max(axis=1)
    size = max(float((high - low).max()), 1e-9)
    middle = (low + high) / 2
    cell = np.floor((middle - middle.min(axis=0)) / size).astype(np.int64)
    width = int(cell[:, 0].max()) + 3
    keys = (cell[:, 1] + 1) * width + cell[:, 0] + 1
    cells, place = np.unique(keys, return_inverse=True)
    neighbours = np.full((len(cells), 9), -1, np.int64)
    for column, step in enumerate(dy * width + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1)):
        at = np.searchsorted(cells, cells + step)
        at[at == len(cells)] = 0
        neighbours[:, column] = np.where(cells[at] == cells + step, at, -1)
    return _greedy(corners, low, high, place.astype(np.int64), neighbours, threshold)


@njit(cache=True, nogil=True)
def _greedy(
    corners: Floats,
    low: Floats,
    high: Floats,
    place: Ints,
    neighbours: Ints,
    threshold: float,
) -> Any:
    count = len(corners)
    work = np.zeros((8, 16, 2))
    keep = np.zeros(count, np.bool_)
    head = np.full(len(neighbours), -1, np.int64)  # newest kept box of each cell
    following = np.full(count, -1, np.int64)
    for i in range(count):
        free = True
        for column in range(9):
            cell = neighbours[place[i], column]
            if cell < 0:
                continue
            j = head[cell]
            while j >= 0 and free:
                if (
                    low[i, 0] < high[j, 0]
                    and low[j, 0] < high[i, 0]
                    and low[i, 1] < high[j, 1]
                    and low[j, 1] < high[i, 1]
                    and quad_iou(corners[i], corners[j], work) > threshold
                ):
                    free = False
                j = following[j]
            if not free:
                break
        if free:
            keep[i] = True
            following[i] = head[place[i]]
            head[place[i]] = i
    return keep
