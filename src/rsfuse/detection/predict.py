"""From the numbers of the network to boxes: best cells, suppression."""

from typing import Any

import numpy as np
import numpy.typing as npt

from rsfuse.detection.model import Prediction
from rsfuse.ops.boxes import canonical
from rsfuse.ops.nms import rotated_nms

Floats = npt.NDArray[np.float64]
Boxes = tuple[Floats, Floats, npt.NDArray[np.int64]]

# Of the cells of a tile, at most so many go into the suppression, and at most so many boxes stay.
MOST_CANDIDATES = 4000
MOST_BOXES = 2000


def boxes_of(
    prediction: Prediction,
    *,
    least: float = 0.05,
    nms: float = 0.1,
    candidates: int = MOST_CANDIDATES,
    most: int = MOST_BOXES,
) -> list[Boxes]:
    """Boxes (N, 5), scores (N,) and labels (N,) of each image of a batch, best first.

    Args:
        prediction: Of the network.
        least: Lowest score.
        nms: Largest IoU of two boxes of a class.
        candidates: Most cells that are compared.
        most: Most boxes per image.
    """
    scores = prediction.logits.float().sigmoid().cpu()
    boxes = prediction.boxes.float().cpu()
    return [
        select(boxes[i].numpy(), scores[i].numpy(), least, nms, candidates, most)
        for i in range(len(scores))
    ]


def select(
    boxes: npt.NDArray[Any],
    scores: npt.NDArray[Any],
    least: float,
    nms: float,
    candidates: int = MOST_CANDIDATES,
    most: int = MOST_BOXES,
) -> Boxes:
    """The same for the boxes (N, 5) and scores (N, K) of one image."""
    cell, label = np.nonzero(scores >= least)
    value = scores[cell, label]
    if len(value) > candidates:
        top = np.argpartition(-value, candidates)[:candidates]
        top.sort()
        cell, label, value = cell[top], label[top], value[top]
    found = canonical(boxes[cell].astype(np.float64))
    kept = rotated_nms(found, value, nms, label)[:most]
    return found[kept], value[kept].astype(np.float64), label[kept].astype(np.int64)


__all__ = ["MOST_BOXES", "MOST_CANDIDATES", "Boxes", "boxes_of", "select"]
