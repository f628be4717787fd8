"""Overlap of oriented boxes in plain PyTorch: exact, differentiable, without a loop over pairs.

The boundary of the intersection of two convex polygons consists of the parts of each polygon's
edges that lie inside the other. Each edge of one box is clipped against the other box in the
latter's own frame, where the box is |x| <= w/2, |y| <= h/2 (slab method), and the area follows from
Green's theorem as half the sum of the cross products of the clipped edges. It is exact in float64
to about 1e-14 and has gradients wherever the area has.
"""

import torch
from torch import Tensor

from rsfuse.ops.boxes import corners_of

# An edge lies on a border within this share of the size of both boxes.
_ON_EDGE = {torch.float32: 1e-6, torch.float64: 1e-9}


def intersection_pairs(a: Tensor, b: Tensor) -> Tensor:
    """Area (M,) that boxes (M, 5) have in common with boxes (M, 5), pair by pair.

    Differentiable. Half precision is computed in float32.
    """
    a, b = _at_least_single(a), _at_least_single(b)
    # Relative to the first centre: large coordinates cost no digits.
    origin = a[..., :2].detach()
    a = torch.cat([a[..., :2] - origin, a[..., 2:]], dim=-1)
    b = torch.cat([b[..., :2] - origin, b[..., 2:]], dim=-1)
    inside_b = _clipped_edges(a, b, keep_border=True)
    inside_a = _clipped_edges(b, a, keep_border=False)
    return (inside_b + inside_a).clamp(min=0.0)


def _clipped_edges(edges_of: Tensor, inside: Tensor, *, keep_border: bool) -> Tensor:
    """Half the sum of cross products of the edges of one box clipped to the other, (M,)."""
    corners = corners_of(edges_of)  # (M, 4, 2), clockwise on the screen: positive area
    start, end = corners, corners.roll(-1, dims=-2)
    cos, sin = torch.cos(inside[..., 4])[..., None], torch.sin(inside[..., 4])[..., None]

    def to_frame(points: Tensor) -> tuple[Tensor, Tensor]:
        dx = points[..., 0] - inside[..., 0, None]
        dy = points[..., 1] - inside[..., 1, None]
        return dx * cos + dy * sin, dy * cos - dx * sin

    x0, y0 = to_frame(start)
    x1, y1 = to_frame(end)
    half_w, half_h = inside[..., 2, None] / 2, inside[..., 3, None] / 2
    size = (half_w + half_h).detach() + (edges_of[..., 2, None] + edges_of[..., 3, None]).detach()
    slack = _ON_EDGE[x0.dtype] * size
    dx, dy = x1 - x0, y1 - y0
    enter_x, leave_x, out_x = _slab(x0, dx, half_w, slack, dy, keep_border=keep_border)
    enter_y, leave_y, out_y = _slab(y0, dy, half_h, slack, -dx, keep_border=keep_border)
    enter = torch.maximum(enter_x, enter_y).clamp(min=0.0)
    leave = torch.minimum(leave_x, leave_y).clamp(max=1.0)
    length = torch.where(out_x | out_y, torch.zeros_like(enter), (leave - enter).clamp(min=0.0))
    # Cross product of the clipped ends: (start + t0 d) x (start + t1 d) = (t1 - t0) start x d.
    step = end - start
    cross = start[..., 0] * step[..., 1] - start[..., 1] * step[..., 0]
    return 0.5 * (length * cross).sum(-1)


def _slab(
    start: Tensor, step: Tensor, half: Tensor, slack: Tensor, onward: Tensor, *, keep_border: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Where a segment enters and leaves |x| <= half, as shares of it, and whether it never does.

    A segment along the border bounds what both boxes share only if it runs the way the border
    itself runs (`onward` has the sign of `start` then); else the boxes only touch. Of two such
    segments on each other one is kept, that of the call with `keep_border`.
    """
    parallel = step.abs() <= slack
    safe = torch.where(parallel, torch.ones_like(step), step)
    one, two = (-half - start) / safe, (half - start) / safe
    always = torch.full_like(step, 2.0)
    enter = torch.where(parallel, -always, torch.minimum(one, two))
    leave = torch.where(parallel, always, torch.maximum(one, two))
    beyond = start.abs() - half
    along_border = beyond.abs() <= slack
    kept = along_border & (start * onward > 0) if keep_border else torch.zeros_like(parallel)
    outside = (beyond > 0) | along_border
    return enter, leave, parallel & outside & ~kept


def iou_pairs(a: Tensor, b: Tensor, eps: float = 1e-12) -> Tensor:
    """Intersection over union (M,) of boxes (M, 5) and boxes (M, 5), differentiable."""
    a, b = _at_least_single(a), _at_least_single(b)
    common = intersection_pairs(a, b)
    area_a, area_b = a[..., 2] * a[..., 3], b[..., 2] * b[..., 3]
    common = torch.minimum(common, torch.minimum(area_a, area_b))
    return common / (area_a + area_b - common).clamp(min=eps)


def iou_matrix(a: Tensor, b: Tensor) -> Tensor:
    """IoU (N, M) of all pairs of boxes (N, 5) and (M, 5); only pairs that may overlap count."""
    out = torch.zeros(len(a), len(b), dtype=_at_least_single(a).dtype, device=a.device)
    near = may_overlap(a[:, None], b[None])
    i, j = near.nonzero(as_tuple=True)
    if len(i):
        out[i, j] = iou_pairs(a[i], b[j]).to(out.dtype)
    return out


def may_overlap(a: Tensor, b: Tensor) -> Tensor:
    """Whether the circles around boxes (..., 5) and (..., 5) touch; False means no overlap."""
    reach = (a[..., 2] ** 2 + a[..., 3] ** 2).sqrt() + (b[..., 2] ** 2 + b[..., 3] ** 2).sqrt()
    apart = (a[..., 0] - b[..., 0]) ** 2 + (a[..., 1] - b[..., 1]) ** 2
    return apart <= (reach / 2) ** 2


def gaussian_distance(a: Tensor, b: Tensor) -> Tensor:
    """Hellinger distance (M,) in [0, 1] of the Gaussians of boxes that may not overlap yet.

    A box is the Gaussian of the uniform density over it: covariance R diag(w^2, h^2) R' / 12
    (ProbIoU, arXiv 2106.06072). It has a gradient at any distance and none for the angle of a
    square.
    """
    a, b = _at_least_single(a), _at_least_single(b)
    a1, b1, c1 = _covariance(a)
    a2, b2, c2 = _covariance(b)
    dx, dy = a[..., 0] - b[..., 0], a[..., 1] - b[..., 1]
    sa, sb, sc = a1 + a2, b1 + b2, c1 + c2
    det = (sa * sb - sc * sc).clamp(min=1e-12)
    t1 = (sa * dy**2 + sb * dx**2 - 2 * sc * dx * dy) / det / 4
    dets = ((a1 * b1 - c1**2).clamp(min=0) * (a2 * b2 - c2**2).clamp(min=0) + 1e-12).sqrt()
    t2 = 0.5 * torch.log(det / (4 * dets).clamp(min=1e-12) + 1e-12)
    coefficient = torch.exp(-(t1 + t2).clamp(min=1e-6, max=100.0))
    return (1 - coefficient + 1e-9).clamp(min=1e-9).sqrt()


def _covariance(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """xx, yy and xy of the covariance of a box."""
    w2, h2 = boxes[..., 2] ** 2 / 12, boxes[..., 3] ** 2 / 12
    cos, sin = torch.cos(boxes[..., 4]), torch.sin(boxes[..., 4])
    return (
        w2 * cos**2 + h2 * sin**2,
        w2 * sin**2 + h2 * cos**2,
        (w2 - h2) * cos * sin,
    )


def _at_least_single(boxes: Tensor) -> Tensor:
    return boxes if boxes.dtype in (torch.float32, torch.float64) else boxes.float()
