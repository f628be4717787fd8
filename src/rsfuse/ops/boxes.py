"""Oriented boxes: one form inside, named conversions to every other.

Inside, a box is (cx, cy, w, h, angle): w the long side, angle in [-pi/2, pi/2) in radians, the
direction of the long side, turning clockwise on the screen (x right, y down). Corners (4, 2) are
the form in which boxes are exchanged, because their meaning cannot be mistaken.

Every function takes NumPy arrays or torch tensors (..., 5) or (..., 4, 2) and gives the same kind.
Angles are never taken from OpenCV, whose minAreaRect changed its range twice (4.5.1 and 4.13).
"""

import math
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

A = TypeVar("A", np.ndarray, "torch.Tensor")

HALF_TURN = math.pi
QUARTER_TURN = math.pi / 2


def _library(array: Any) -> Any:
    """NumPy, or PyTorch, which is loaded for tensors alone."""
    if isinstance(array, np.ndarray | np.generic):
        return np
    import torch

    return torch


def _stack(parts: list[Any], like: A, axis: int = -1) -> A:
    stacked: A = _library(like).stack(parts, axis)
    return stacked


def wrapped(angle: A, start: float = -QUARTER_TURN, period: float = HALF_TURN) -> A:
    """The angle in [start, start + period)."""
    turned = angle - period * _library(angle).floor((angle - start) / period)
    # Rounding may land exactly on the open end.
    return _library(angle).where(turned >= start + period, turned - period, turned)


def canonical(boxes: A) -> A:
    """Boxes (..., 5) with w >= h and the angle in [-pi/2, pi/2); the same rectangles.

    A square keeps its first side as w.
    """
    cx, cy, w, h, angle = (boxes[..., i] for i in range(5))
    swap = h > w
    where = _library(boxes).where
    angle = where(swap, angle + QUARTER_TURN, angle)
    return _stack([cx, cy, where(swap, h, w), where(swap, w, h), wrapped(angle)], boxes)


def corners_of(boxes: A) -> A:
    """Corners (..., 4, 2) of boxes (..., 5), clockwise on the screen.

    The first is the one at (-w/2, -h/2) before turning.
    """
    cx, cy, w, h, angle = (boxes[..., i] for i in range(5))
    library = _library(boxes)
    cos, sin = library.cos(angle), library.sin(angle)
    points = []
    for side_x, side_y in ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)):
        dx, dy = side_x * w, side_y * h
        points.append(_stack([cx + dx * cos - dy * sin, cy + dx * sin + dy * cos], boxes))
    return _stack(points, boxes, axis=-2)


def from_corners(corners: A) -> A:
    """Boxes (..., 5) of quadrilaterals (..., 4, 2).

    A rectangle gives itself, exactly but for rounding, whichever corner comes first and in either
    sense. Any other quadrilateral gives the rectangle of least area that holds it, one of whose
    sides lies on an edge of its hull or on a diagonal that is one.
    """
    rectangle = _of_rectangle(corners)
    is_rectangle = _is_rectangle(corners)
    if bool(is_rectangle.all()):
        return rectangle
    least = _least_rectangle(corners)
    return _library(corners).where(is_rectangle[..., None], rectangle, least)


def _is_rectangle(corners: A) -> A:
    """Whether both diagonals are equally long and share their middle, to single precision."""
    library = _library(corners)
    a, b, c, d = (corners[..., i, :] for i in range(4))
    scale = library.abs(c - a).sum(-1) + library.abs(d - b).sum(-1)
    middle = library.abs((a + c) - (b + d)).sum(-1)
    lengths = library.abs(((c - a) ** 2).sum(-1) ** 0.5 - ((d - b) ** 2).sum(-1) ** 0.5)
    return (middle <= 2e-6 * scale + 1e-300) & (lengths <= 2e-6 * scale + 1e-300)


def _of_rectangle(corners: A) -> A:
    library = _library(corners)
    a, b, c, d = (corners[..., i, :] for i in range(4))
    centre = (a + b + c + d) / 4
    along = ((b - a) + (c - d)) / 2
    across = ((d - a) + (c - b)) / 2
    w, h = (along**2).sum(-1) ** 0.5, (across**2).sum(-1) ** 0.5
    # The direction comes from the longer side, where it is better known.
    longer = library.where((h > w)[..., None], across, along)
    angle = library.arctan2(longer[..., 1], longer[..., 0])
    long_side, short_side = library.where(h > w, h, w), library.where(h > w, w, h)
    parts = [centre[..., 0], centre[..., 1], long_side, short_side, wrapped(angle)]
    return _stack(parts, corners)


def _least_rectangle(corners: A) -> A:
    """The rectangle of least area around four points: one side lies on one of the six lines."""
    library = _library(corners)
    best_area: Any = None
    best: Any = None
    centre = corners.mean(-2)
    pairs = ((0, 1), (1, 2), (2, 3), (3, 0), (0, 2), (1, 3))
    for i, j in pairs:
        step = corners[..., j, :] - corners[..., i, :]
        angle = library.arctan2(step[..., 1], step[..., 0])
        cos, sin = library.cos(angle), library.sin(angle)
        offset = corners - centre[..., None, :]
        u = offset[..., 0] * cos[..., None] + offset[..., 1] * sin[..., None]
        v = offset[..., 1] * cos[..., None] - offset[..., 0] * sin[..., None]
        low_u, high_u, low_v, high_v = _limits(u, v)
        w, h = high_u - low_u, high_v - low_v
        mid_u, mid_v = (low_u + high_u) / 2, (low_v + high_v) / 2
        cx = centre[..., 0] + mid_u * cos - mid_v * sin
        cy = centre[..., 1] + mid_u * sin + mid_v * cos
        box = canonical(_stack([cx, cy, w, h, angle], corners))
        area = w * h
        if best is None:
            best_area, best = area, box
            continue
        better = area < best_area * (1 - 1e-9)
        best = library.where(better[..., None], box, best)
        best_area = library.where(better, area, best_area)
    return best


def _limits(u: Any, v: Any) -> tuple[Any, Any, Any, Any]:
    library = _library(u)
    return library.amin(u, -1), library.amax(u, -1), library.amin(v, -1), library.amax(v, -1)


def smallest_box(points: npt.ArrayLike) -> npt.NDArray[np.float64] | None:
    """The smallest box (5,) around points (N, 2); None where they enclose no area.

    One side of it lies on an edge of the convex hull (Freeman and Shapira, 1975).
    """
    from scipy.spatial import ConvexHull, QhullError

    given = np.asarray(points, np.float64).reshape(-1, 2)
    try:
        hull = given[ConvexHull(given).vertices]
    except (QhullError, ValueError):
        return None
    edge = np.roll(hull, -1, axis=0) - hull
    angle = np.arctan2(edge[:, 1], edge[:, 0])
    along = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    across = np.stack([-along[:, 1], along[:, 0]], axis=-1)
    u, v = along @ hull.T, across @ hull.T
    size = np.stack([np.ptp(u, axis=1), np.ptp(v, axis=1)], axis=-1)
    best = int(size.prod(axis=1).argmin())
    middle = (u[best].min() + u[best].max()) / 2, (v[best].min() + v[best].max()) / 2
    centre = middle[0] * along[best] + middle[1] * across[best]
    found: npt.NDArray[np.float64] = canonical(np.array([*centre, *size[best], angle[best]]))
    return found if size[best].min() > 0 else None


def to_hbb(boxes: A) -> A:
    """(..., 4): xmin, ymin, xmax, ymax of the axis-aligned rectangle around each box."""
    cx, cy, w, h, angle = (boxes[..., i] for i in range(5))
    library = _library(boxes)
    cos, sin = library.abs(library.cos(angle)), library.abs(library.sin(angle))
    half_w, half_h = (w * cos + h * sin) / 2, (w * sin + h * cos) / 2
    return _stack([cx - half_w, cy - half_h, cx + half_w, cy + half_h], boxes)


def from_hbb(rectangles: A) -> A:
    """Boxes (..., 5) of axis-aligned rectangles (..., 4): xmin, ymin, xmax, ymax."""
    x0, y0, x1, y1 = (rectangles[..., i] for i in range(4))
    zero = x0 * 0
    return canonical(_stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0, zero], rectangles))


def to_le135(boxes: A) -> A:
    """le135: w the long side, angle in [-pi/4, 3 pi/4), clockwise, radians (S2A-Net)."""
    found = canonical(boxes)
    return _with_angle(found, wrapped(found[..., 4], -math.pi / 4))


def from_le135(boxes: A) -> A:
    """From le135."""
    return canonical(boxes)


def to_oc(boxes: A) -> A:
    """oc: angle in (0, pi/2], clockwise, radians; w is the side met first (R3Det, KLD).

    It is the form of OpenCV 4.5.1 to 4.12, in radians.
    """
    found = canonical(boxes)
    # (0, pi/2] from [-pi/2, 0): a quarter turn later with the sides swapped.
    angle = -wrapped(-found[..., 4], -QUARTER_TURN, QUARTER_TURN)
    turns = _library(boxes).round((found[..., 4] - angle) / QUARTER_TURN)
    odd = turns % 2 != 0
    where = _library(boxes).where
    w, h = where(odd, found[..., 3], found[..., 2]), where(odd, found[..., 2], found[..., 3])
    return _stack([found[..., 0], found[..., 1], w, h, angle], boxes)


def from_oc(boxes: A) -> A:
    """From oc."""
    return canonical(boxes)


def to_opencv_new(boxes: A) -> A:
    """OpenCV before 4.5.1 and from 4.13 on: angle in [-90, 0) degrees, sides swapped beside oc."""
    found = to_oc(boxes)
    degrees = (found[..., 4] - QUARTER_TURN) * (180 / math.pi)
    degrees = _library(boxes).where(degrees >= 0, degrees * 0 - 90.0, degrees)
    at_end = found[..., 4] - QUARTER_TURN >= 0
    where = _library(boxes).where
    # At oc's closed end the new range begins: (w, h, 90) is (w, h, -90) with the same sides.
    w = where(at_end, found[..., 2], found[..., 3])
    h = where(at_end, found[..., 3], found[..., 2])
    return _stack([found[..., 0], found[..., 1], w, h, degrees], boxes)


def to_opencv_old(boxes: A) -> A:
    """OpenCV 4.5.1 to 4.12: angle in (0, 90] degrees."""
    found = to_oc(boxes)
    return _with_angle(found, found[..., 4] * (180 / math.pi))


def from_opencv(boxes: A) -> A:
    """From either range of OpenCV: both say the same rectangle in degrees, clockwise."""
    return canonical(_with_angle(boxes, boxes[..., 4] * (math.pi / 180)))


def to_ccw_degrees(boxes: A) -> A:
    """Torchvision's CXCYWHR and detectron2: counter-clockwise degrees, here in (-90, 90]."""
    found = canonical(boxes)
    return _with_angle(found, found[..., 4] * (-180 / math.pi))


def from_ccw_degrees(boxes: A) -> A:
    """From counter-clockwise degrees of any range."""
    return canonical(_with_angle(boxes, boxes[..., 4] * (-math.pi / 180)))


def _with_angle(boxes: A, angle: A) -> A:
    return _stack([boxes[..., 0], boxes[..., 1], boxes[..., 2], boxes[..., 3], angle], boxes)


def scaled(boxes: A, factor: float) -> A:
    """Boxes of an image that was enlarged by `factor`."""
    parts: list[Any] = [boxes[..., i] * factor for i in range(4)]
    return _stack([*parts, boxes[..., 4]], boxes)
