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

from rsfuse.engine.processes import mean_over_processes
from rsfuse.matching.model import Positions, expected_position
from rsfuse.nn.cstf import mirrored_labels, patch_centres, patch_labels, soft_cross_entropy

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
    parts = {"fine": _mean(soft_cross_entropy(said.logits, label), counted)}
    found = (label[..., -1] == 0) & (counted > 0)
    scores = said.maps.scores[:, :, said.maps.scores.shape[2] // 2].flatten(2)
    parts["hinge"] = hardest_hinge(scores[found], label[found][:, :-1])
    parts["place"] = place_loss(said.logits[found][:, :-1], truth.shift[found], radius)
    target = coarse_labels(truth)
    weight = truth.patches_counted.float()
    back = mirrored_labels(target)
    parts["coarse"] = 0.5 * (
        _mean(soft_cross_entropy(said.coarse[0], target), weight)
        + _mean(soft_cross_entropy(said.coarse[1], back), weight)
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


def hardest_hinge(scores: Tensor, label: Tensor) -> Tensor:
    """Margin between the true position and the highest wrong ones.

    Args:
        scores: (N, K) correlations.
        label: (N, K) soft labels; positions with none of it are wrong ones.
    """
    right = (scores * label).sum(dim=1, keepdim=True)
    wrong = scores.masked_fill(label > 0, -torch.inf).topk(HARDEST, dim=1).values
    gap = F.relu(MARGIN - right + wrong)
    return _mean(gap, torch.ones_like(gap))


def place_loss(logits: Tensor, shift: Tensor, radius: int) -> Tensor:
    """Smooth L1 distance of the expected position, where it is within 3 px of the truth."""
    place = expected_position(logits, radius)
    near = (place.detach() - shift).norm(dim=-1) < 3
    gap = F.smooth_l1_loss(place, shift, reduction="none", beta=0.5).sum(dim=-1)
    return _mean(gap, near.to(gap.dtype))


def coarse_labels(truth: Truth) -> Tensor:
    """(B, n, n + 1) labels of the patches, see `patch_labels`."""
    place = patch_centres(truth.grid).to(truth.patches) + truth.patches / truth.patch
    return patch_labels(place, truth.patches_related, truth.grid)


def cycle_loss(coarse: tuple[Tensor, Tensor], grid: tuple[int, int], counted: Tensor) -> Tensor:
    """Smooth L1 distance in patches between a patch and where a round trip brings it.

    Args:
        coarse: Log-probabilities (B, n, n + 1) there and back.
        grid: Rows and columns.
        counted: (B, n).
    """
    there, back = (c[..., :-1].softmax(dim=-1) for c in coarse)
    home = patch_centres(grid).to(there)
    returned = there @ (back @ home)
    gap = F.smooth_l1_loss(returned, home.expand_as(returned), reduction="none").sum(dim=-1)
    return _mean(gap, counted.to(gap.dtype))


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / mean_over_processes(weights.sum()).clamp(min=1)
