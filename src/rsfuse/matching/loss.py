"""The loss of the matcher: where each anchor lies, where each patch lies, and back again.

    L = L_fine + 0.2 L_hinge + 0.2 L_place + 0.5 L_coarse + 0.1 L_cycle

L_fine and L_coarse are cross-entropies over positions and "no match" with soft labels; L_hinge
keeps the correlation at the true position above the highest wrong ones; L_place is the distance of
the expected position; L_cycle asks that patches come home after a round trip through the other
image.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rsfuse.matching.model import Positions, expected_position

SIGMA_PX = 1.0  # of the soft label
LABEL_RADIUS = 2.5  # cells of the soft label lie this near
MARGIN = 0.2
HARDEST = 16
WEIGHTS = {"fine": 1.0, "hinge": 0.2, "place": 0.2, "coarse": 0.5, "cycle": 0.1}


class Truth(NamedTuple):
    """Where anchors and patches of image 0 really lie in image 1.

    Attributes:
        shift: (B, A, 2) displacement of the anchors, pixels.
        related: (B, A) whether the anchor has a counterpart at all.
        counted: (B, A) whether the anchor counts.
        patches: (B, n, 2) displacement of the patch centres, pixels.
        patches_related: (B, n) whether the patch has a counterpart inside image 1.
        patches_counted: (B, n).
        grid: Rows and columns of the patches.
        patch: Side of a patch, pixels.
    """

    shift: Tensor
    related: Tensor
    counted: Tensor
    patches: Tensor
    patches_related: Tensor
    patches_counted: Tensor
    grid: tuple[int, int]
    patch: int


def match_loss(said: Positions, truth: Truth, radius: int) -> dict[str, Tensor]:
    """The parts of the loss and their weighted sum under "loss"."""
    label = fine_labels(truth.shift, truth.related, radius)
    counted = (truth.counted & said.maps.known).float()
    number = counted.sum().clamp(min=1)
    parts = {"fine": (cross_entropy(said.logits, label) * counted).sum() / number}
    found = (label[..., -1] == 0) & (counted > 0)
    scores = said.maps.scores[:, :, said.maps.scores.shape[2] // 2].flatten(2)
    parts["hinge"] = hardest_hinge(scores[found], label[found][:, :-1])
    parts["place"] = place_loss(said.logits[found][:, :-1], truth.shift[found], radius)
    target = coarse_labels(truth)
    weight = truth.patches_counted.float()
    back = _mirrored(target, truth)
    parts["coarse"] = 0.5 * (
        _mean(cross_entropy(said.coarse[0], target), weight)
        + _mean(cross_entropy(said.coarse[1], back), weight)
    )
    parts["cycle"] = cycle_loss(said.coarse, truth.grid, truth.patches_related & (weight > 0))
    parts["loss"] = torch.stack([WEIGHTS[name] * part for name, part in parts.items()]).sum()
    return parts


def fine_labels(shift: Tensor, related: Tensor, radius: int) -> Tensor:
    """(..., S * S + 1) soft labels: a Gaussian around the true displacement, or "no match".

    Args:
        shift: (..., 2) true displacement.
        related: (...) whether there is one. Beyond the radius it is "no match" as well.
        radius: r.
    """
    axis = torch.arange(-radius, radius + 1, device=shift.device, dtype=shift.dtype)
    square = (axis[:, None] - shift[..., 1, None, None]) ** 2 + (
        axis[None, :] - shift[..., 0, None, None]
    ) ** 2
    mass = torch.exp(-square / (2 * SIGMA_PX**2)) * (square <= LABEL_RADIUS**2)
    mass = mass.flatten(-2)
    total = mass.sum(dim=-1, keepdim=True)
    inside = related & (shift.abs().amax(dim=-1) <= radius)
    mass = torch.where(inside[..., None], mass / total.clamp(min=1e-12), 0.0)
    return torch.cat([mass, (~inside).to(mass.dtype)[..., None]], dim=-1)


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """(...) cross-entropy of (..., K) logits or log-probabilities with soft labels."""
    total: Tensor = (label * logits.log_softmax(dim=-1)).sum(dim=-1)
    return -total


def hardest_hinge(scores: Tensor, label: Tensor) -> Tensor:
    """Margin between the true position and the highest wrong ones.

    Args:
        scores: (N, K) correlations.
        label: (N, K) soft labels; positions with none of it are wrong ones.
    """
    if len(scores) == 0:
        return scores.sum() * 0.0
    right = (scores * label).sum(dim=1, keepdim=True)
    wrong = scores.masked_fill(label > 0, -torch.inf).topk(HARDEST, dim=1).values
    return F.relu(MARGIN - right + wrong).mean()


def place_loss(logits: Tensor, shift: Tensor, radius: int) -> Tensor:
    """Smooth L1 distance of the expected position, where it is within 3 px of the truth."""
    if len(logits) == 0:
        return logits.sum() * 0.0
    place = expected_position(logits, radius)
    near = (place.detach() - shift).norm(dim=-1) < 3
    gap = F.smooth_l1_loss(place, shift, reduction="none", beta=0.5).sum(dim=-1)
    return _mean(gap, near.to(gap.dtype))


def coarse_labels(truth: Truth) -> Tensor:
    """(B, n, n + 1): the true patch, spread bilinearly over its neighbours, or "no match"."""
    rows, columns = truth.grid
    y, x = torch.meshgrid(
        torch.arange(rows, device=truth.patches.device),
        torch.arange(columns, device=truth.patches.device),
        indexing="ij",
    )
    home = torch.stack([x, y], dim=-1).reshape(1, -1, 2)
    place = home + truth.patches / truth.patch
    size = torch.tensor([columns, rows], device=place.device)
    label = torch.zeros(*place.shape[:2], rows * columns + 1, device=place.device)
    low = place.floor()
    for dx in (0, 1):
        for dy in (0, 1):
            cell = low + torch.tensor([dx, dy], device=place.device)
            share = (1 - (place - cell).abs()).clamp(min=0).prod(dim=-1)
            inside = ((cell >= 0) & (cell < size)).all(dim=-1)
            index = (cell[..., 1] * columns + cell[..., 0]).long()
            index = torch.where(inside & truth.patches_related, index, rows * columns)
            label.scatter_add_(2, index[..., None], share[..., None])
    return label


def _mirrored(label: Tensor, truth: Truth) -> Tensor:
    """Labels of the query's patches: the transposed matrix; what nobody claims has no match."""
    back = label[..., :-1].transpose(1, 2)
    total = back.sum(dim=-1, keepdim=True)
    claimed = total > 0.3
    back = torch.where(claimed, back / total.clamp(min=1e-6), 0.0)
    return torch.cat([back, (~claimed).to(back.dtype)], dim=-1)


def cycle_loss(coarse: tuple[Tensor, Tensor], grid: tuple[int, int], counted: Tensor) -> Tensor:
    """Smooth L1 distance in patches between a patch and where a round trip brings it.

    Args:
        coarse: Log-probabilities (B, n, n + 1) there and back.
        grid: Rows and columns.
        counted: (B, n).
    """
    there, back = (c[..., :-1].softmax(dim=-1) for c in coarse)
    index = torch.arange(grid[0] * grid[1], device=there.device)
    home = torch.stack([index % grid[1], index // grid[1]], dim=-1).to(there.dtype)
    returned = there @ (back @ home)
    gap = F.smooth_l1_loss(returned, home.expand_as(returned), reduction="none").sum(dim=-1)
    return _mean(gap, counted.to(gap.dtype))


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / weights.sum().clamp(min=1)
