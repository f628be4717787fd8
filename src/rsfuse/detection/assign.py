"""Which cells answer for which objects: task-aligned, on candidate pairs only.

A cell is a candidate for an object if its centre lies inside the object's box, enlarged to a few
strides so that small objects have candidates too. Of these, the cells whose score and box together
fit best answer for the object, as many as the overlaps of the best add up to (TOOD, arXiv
2108.07755, with the dynamic number of OTA, arXiv 2103.14259). Only candidate pairs are compared, so
memory does not grow with cells times objects.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rsfuse.detection.model import Cells
from rsfuse.ops.boxes import canonical
from rsfuse.ops.rotated import iou_pairs

# Candidates lie inside the box enlarged to at least this many strides.
_LEAST_STRIDES = 2.5

# An object is looked for at levels whose stride is at most this share of its longer side, and
# always at the finest.
_COARSEST_SHARE = 2.0

# Fit of a cell: score^A * IoU^B.
_SCORE_POWER, _IOU_POWER = 1.0, 4.0

# At most this many cells answer for an object.
_MOST_CELLS = 10


class Assignment(NamedTuple):
    """Which cells are positive.

    Attributes:
        cell: (P,) numbers of the positive cells.
        target: (P,) the object that each answers for.
        quality: (P,) in [0, 1], the score that the cell should give for the object's class.
    """

    cell: Tensor
    target: Tensor
    quality: Tensor


def candidates(boxes: Tensor, cells: Cells) -> tuple[Tensor, Tensor]:
    """Pairs (object, cell) of which the cell's centre lies in the object's enlarged box.

    Args:
        boxes: (G, 5) objects.
        cells: Of the image.

    Returns:
        Numbers of the objects (C,) and of the cells (C,), by object, then by cell.
    """
    obj, cell = cells_inside(boxes, cells, _LEAST_STRIDES)
    stride = cells.strides[cell]
    fits = (stride <= _COARSEST_SHARE * boxes[obj, 2]) | (stride == cells.strides.min())
    return obj[fits], cell[fits]


def cells_inside(boxes: Tensor, cells: Cells, least: float = 0.0) -> tuple[Tensor, Tensor]:
    """Pairs (box, cell) of which the cell's centre lies in the box.

    Only cells in the upright rectangle around a box are looked at, so memory grows with the area of
    the boxes and not with boxes times cells.

    Args:
        boxes: (G, 5).
        cells: Of the image.
        least: Boxes count as at least this many strides wide and high.

    Returns:
        Numbers of the boxes (C,) and of the cells (C,), by box, then by cell.
    """
    found = []
    start = 0
    for h, w, stride in cells.levels:
        box, x, y = _grid_around(boxes, h, w, stride, least)
        found.append((box, start + y * w + x))
        start += h * w
    box, cell = (torch.cat(parts) for parts in zip(*found, strict=True))
    near, size = boxes[box], cells.strides[cell]
    offset = cells.centres[cell] - near[:, :2]
    cos, sin = torch.cos(near[:, 4]), torch.sin(near[:, 4])
    u = offset[:, 0] * cos + offset[:, 1] * sin
    v = offset[:, 1] * cos - offset[:, 0] * sin
    half_w = torch.maximum(near[:, 2], least * size) / 2
    half_h = torch.maximum(near[:, 3], least * size) / 2
    inside = (u.abs() <= half_w) & (v.abs() <= half_h)
    box, cell = box[inside], cell[inside]
    order = torch.argsort(box * start + cell)
    return box[order], cell[order]


def _grid_around(
    boxes: Tensor, h: int, w: int, stride: int, least: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of boxes and columns and rows of the cells of a level in a rectangle around each."""
    half_w = boxes[:, 2].clamp(min=least * stride) / 2
    half_h = boxes[:, 3].clamp(min=least * stride) / 2
    cos, sin = torch.cos(boxes[:, 4]).abs(), torch.sin(boxes[:, 4]).abs()
    reach = torch.stack([half_w * cos + half_h * sin, half_w * sin + half_h * cos], dim=1)
    most = torch.tensor([w, h], device=boxes.device, dtype=boxes.dtype)
    # One cell more on each side: rounding never loses one that lies on the border.
    first = torch.minimum(((boxes[:, :2] - reach) / stride - 1.0).floor().clamp(min=0.0), most)
    last = torch.minimum(((boxes[:, :2] + reach) / stride + 1.0).ceil(), most)
    count = (last - first).clamp(min=0.0).long()
    number = count[:, 0] * count[:, 1]
    box = torch.repeat_interleave(number)
    place = torch.arange(len(box), device=boxes.device) - (number.cumsum(0) - number)[box]
    columns = count[box, 0].clamp(min=1)
    x = first[box, 0].long() + place % columns
    y = first[box, 1].long() + torch.div(place, columns, rounding_mode="floor")
    return box, x, y


@torch.no_grad()
def assign(
    scores: Tensor, boxes: Tensor, targets: Tensor, labels: Tensor, cells: Cells
) -> Assignment:
    """Choose the positive cells of one image.

    Args:
        scores: (N, K) in [0, 1].
        boxes: (N, 5) predicted boxes.
        targets: (G, 5) objects.
        labels: (G,) their classes.
        cells: The N cells.
    """
    empty = torch.zeros(0, dtype=torch.int64, device=scores.device)
    if not len(targets):
        return Assignment(empty, empty, scores.new_zeros(0))
    obj, cell = candidates(targets, cells)
    if not len(obj):
        return Assignment(empty, empty, scores.new_zeros(0))
    overlap = iou_pairs(canonical(boxes[cell]), targets[obj]).clamp(0.0, 1.0)
    fit = scores[cell, labels[obj]] ** _SCORE_POWER * overlap**_IOU_POWER
    # Untrained cells overlap nothing: the nearest centres lead then.
    apart = (cells.centres[cell] - targets[obj, :2]).norm(dim=1) / cells.strides[cell]
    fit = fit + 1e-9 * torch.exp(-apart)
    chosen = _best_per_object(obj, fit, overlap, len(targets))
    obj, cell, fit, overlap = obj[chosen], cell[chosen], fit[chosen], overlap[chosen]
    keep = _best_per_cell(cell, overlap + fit.clamp(max=1e-6), len(scores))
    obj, cell, fit, overlap = obj[keep], cell[keep], fit[keep], overlap[keep]
    # The best cell of an object should score its overlap, the others in proportion.
    best_fit = _maximum_by(obj, fit, len(targets))
    best_overlap = _maximum_by(obj, overlap, len(targets))
    quality = fit / best_fit[obj].clamp(min=1e-30) * best_overlap[obj]
    return Assignment(cell, obj, quality)


def _best_per_object(obj: Tensor, fit: Tensor, overlap: Tensor, count: int) -> Tensor:
    """Indices of the pairs that are among the best of their object."""
    order = torch.argsort(fit, descending=True, stable=True)
    order = order[torch.argsort(obj[order], stable=True)]
    sorted_obj = obj[order]
    start = torch.searchsorted(sorted_obj, torch.arange(count, device=obj.device))
    rank = torch.arange(len(order), device=obj.device) - start[sorted_obj]
    among = rank < _MOST_CELLS
    total = torch.zeros(count, device=obj.device, dtype=overlap.dtype)
    total.index_add_(0, sorted_obj[among], overlap[order][among])
    number = total.round().clamp(min=1, max=_MOST_CELLS)
    # At least three while overlaps are poor, or the first steps have too little to learn from.
    number = number.clamp(min=3)
    return order[rank < number[sorted_obj]]


def _best_per_cell(cell: Tensor, value: Tensor, count: int) -> Tensor:
    """Indices of the pairs that are the best of their cell, one for each cell."""
    order = torch.argsort(value, descending=False, stable=True)
    last = torch.full((count,), -1, dtype=torch.int64, device=cell.device)
    last[cell[order]] = order  # later writes win: the largest value
    return last[last >= 0]


def _maximum_by(group: Tensor, value: Tensor, count: int) -> Tensor:
    out = torch.zeros(count, dtype=value.dtype, device=value.device)
    return out.scatter_reduce_(0, group, value, "amax")
