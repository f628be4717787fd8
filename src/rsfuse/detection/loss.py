"""What the detector learns from: scores that know their overlap, exact rotated IoU, phases.

The overlap of boxes that do not touch has no gradient, so a Gaussian distance helps at the start
and fades out; it says nothing about the angle of a square, which the second phase does.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rsfuse.detection.assign import Assignment, assign, cells_inside
from rsfuse.detection.model import Cells, Prediction, phases_of
from rsfuse.detection.pair import PATCH, WINDOW, Match, in_windows
from rsfuse.engine.processes import mean_over_processes
from rsfuse.nn.cstf import mirrored_labels, patch_centres, patch_labels, soft_cross_entropy
from rsfuse.ops.boxes import canonical
from rsfuse.ops.rotated import gaussian_distance, iou_pairs

WEIGHTS = {"score": 1.0, "overlap": 2.0, "gaussian": 1.0, "phase": 0.25, "front": 0.25}

# The focus of the score loss on cells that are far from right (arXiv 2006.04388).
_FOCUS = 2.0

# The phase of the half turn counts fully from this ratio of sides on, and not at all for squares.
_FULL_RATIO = 1.5


class Targets(NamedTuple):
    """Objects of one image.

    Attributes:
        boxes: (G, 5).
        labels: (G,).
        ignored: (I, 5) places where a detection is neither right nor wrong.
        headings: (G,) direction of the front in radians, NaN where unknown; None where no object's
            is known.
    """

    boxes: Tensor
    labels: Tensor
    ignored: Tensor
    headings: Tensor | None = None


def pair_loss(match: Match, shift: Tensor, related: Tensor, present: Tensor) -> Tensor:
    """Cross-entropy of the coarse matching of two images, both directions.

    Args:
        match: What the network said.
        shift: (B, 2, g, g) where the ground of each patch lies in the query, pixels.
        related: (B,) whether the query shows the same ground.
        present: (B,) whether there is a query; others do not count.
    """
    moved = in_windows(shift) / PATCH
    per_image = len(moved) // len(shift)
    grid = (WINDOW, WINDOW)
    same = related.repeat_interleave(per_image)[:, None].expand(moved.shape[:2]) > 0
    counted = in_windows(torch.ones_like(shift[:, :1]))[..., 0]
    counted = counted * present.repeat_interleave(per_image)[:, None]
    label = patch_labels(patch_centres(grid).to(moved) + moved, same, grid)
    there = soft_cross_entropy(match.there, label)
    back = soft_cross_entropy(match.back, mirrored_labels(label))
    return ((there + back) / 2 * counted).sum() / mean_over_processes(counted.sum()).clamp(min=1)


def detection_loss(
    prediction: Prediction, targets: list[Targets], cells: Cells, *, gaussian: float = 1.0
) -> dict[str, Tensor]:
    """Loss of a batch and its parts.

    Args:
        prediction: Of the network.
        targets: One per image.
        cells: Of the images.
        gaussian: Weight of the Gaussian term, from 1 at the start of a training to 0.

    Returns:
        "loss" and its parts, each a mean over the quality of the positive cells of all processes.
    """
    logits = prediction.logits.float()
    scores = logits.detach().sigmoid()
    quality = torch.zeros_like(logits)
    counted = torch.ones_like(logits[..., :1])
    picked: list[tuple[int, Assignment]] = []
    for i, target in enumerate(targets):
        found = assign(scores[i], prediction.boxes[i].detach(), target.boxes, target.labels, cells)
        quality[i, found.cell, target.labels[found.target]] = found.quality.to(quality.dtype)
        if len(target.ignored):
            counted[i, cells_inside(target.ignored, cells)[1]] = 0.0
            counted[i, found.cell] = 1.0
        picked.append((i, found))
    total = mean_over_processes(quality.sum()).clamp(min=1.0)
    focus = (quality - logits.sigmoid()).abs() ** _FOCUS
    entropy = F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    parts = {"score": (focus * entropy * counted).sum() / total}
    boxes = torch.cat([prediction.boxes[i, found.cell] for i, found in picked])
    phases = torch.cat([prediction.phases[i, found.cell].float() for i, found in picked])
    truth = torch.cat([targets[i].boxes[found.target] for i, found in picked])
    # A positive cell whose box fits badly must still learn.
    weight = torch.cat([found.quality for _, found in picked]).clamp(min=0.05)
    share = weight / mean_over_processes(weight.sum()).clamp(min=1e-6)
    overlap = iou_pairs(canonical(boxes), truth)
    parts["overlap"] = (share * (1.0 - overlap)).sum()
    if gaussian > 0:
        parts["gaussian"] = gaussian * (share * gaussian_distance(boxes, truth)).sum()
    parts["phase"] = (share * _phase_error(phases, truth)).sum()
    if prediction.fronts is not None:
        parts["front"] = _front_loss(prediction.fronts, targets, picked, share)
    parts["loss"] = sum(
        (WEIGHTS[name] * part for name, part in parts.items()), start=logits.new_zeros(())
    )
    return parts


def _phase_error(phases: Tensor, truth: Tensor) -> Tensor:
    """(P,): how far the two phases are from the truth; the first counts less for near-squares."""
    error = F.smooth_l1_loss(phases, phases_of(truth[:, 4]), reduction="none", beta=0.1)
    ratio = truth[:, 2] / truth[:, 3].clamp(min=1e-6)
    known = ((ratio - 1.0) / (_FULL_RATIO - 1.0)).clamp(0.0, 1.0)
    return known * error[:, :2].sum(1) + error[:, 2:].sum(1)


def _front_loss(
    fronts: Tensor,
    targets: list[Targets],
    picked: list[tuple[int, Assignment]],
    share: Tensor,
) -> Tensor:
    """How far the direction of the front is from the truth, over the objects that have one."""
    given = torch.cat([fronts[i, found.cell].float() for i, found in picked])
    truth = torch.cat([_headings(targets[i], found) for i, found in picked])
    known = truth.isfinite()
    wanted = torch.stack([torch.cos(truth), torch.sin(truth)], dim=1)[known]
    error = F.smooth_l1_loss(given[known], wanted, reduction="none", beta=0.1).sum(1)
    return (share[known] * error).sum()


def _headings(target: Targets, found: Assignment) -> Tensor:
    if target.headings is None:
        return target.boxes.new_full((len(found.target),), torch.nan)
    return target.headings[found.target]
