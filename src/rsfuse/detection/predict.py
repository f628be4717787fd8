"""A bundle as a detector of one image: scaling, best cells, suppression.

Nothing here needs PyTorch: what computes is either of two kinds, `NetworkDetector` and
`OnnxDetector`.
"""

import abc
from typing import Any

import numpy as np
import numpy.typing as npt

from rsfuse.engine.bundle import BundleCard, InputInfo
from rsfuse.errors import InputError
from rsfuse.ops.boxes import canonical
from rsfuse.ops.nms import rotated_nms

Floats = npt.NDArray[np.float64]
# Boxes (N, 5), or (N, 6) with the heading in radians where the network gives one; scores; labels.
Boxes = tuple[Floats, Floats, npt.NDArray[np.int64]]

# Of the cells of a tile, at most so many go into the suppression, and at most so many boxes stay.
MOST_CANDIDATES = 4000
MOST_BOXES = 2000


def select(
    boxes: npt.NDArray[Any],
    scores: npt.NDArray[Any],
    least: float,
    nms: float,
    candidates: int = MOST_CANDIDATES,
    most: int = MOST_BOXES,
) -> Boxes:
    """Boxes, scores and labels of an image, best first.

    Args:
        boxes: (M, 5), one per cell, or (M, 6) with the heading.
        scores: (M, K).
        least: Lowest score.
        nms: Largest IoU of two boxes of a class.
        candidates: Most cells that are compared.
        most: Most boxes.
    """
    cell, label = np.nonzero(scores >= least)
    value = scores[cell, label]
    if len(value) > candidates:
        top = np.argpartition(-value, candidates)[:candidates]
        top.sort()
        cell, label, value = cell[top], label[top], value[top]
    found = boxes[cell].astype(np.float64)
    found[:, :5] = canonical(found[:, :5])
    kept = rotated_nms(found[:, :5], value, nms, label)[:most]
    return found[kept], value[kept].astype(np.float64), label[kept].astype(np.int64)


class ImageDetector(abc.ABC):
    """Finds objects in one image in the numbers of its file; how it looks is for its kinds to say.

    Attributes:
        classes: What it finds.
        gsd_m: The ground sampling distance that it was trained at; None where it varies.
        bands: How many bands it takes.
        partner: The second image that it takes; None for one image.
        score: Lowest score of an object.
        nms: Largest overlap of two boxes of a class.
    """

    def __init__(self, card: BundleCard, *, score: float = 0.3, nms: float | None = None) -> None:
        info = card.inputs[0]
        self.classes = tuple(item.name for item in card.classes)
        self.gsd_m = info.gsd_m
        self.bands = len(info.bands)
        self.partner = card.inputs[1] if len(card.inputs) > 1 else None
        self.score = score
        self.nms = float(card.extra.get("nms", 0.1)) if nms is None else nms
        self._info = info

    @abc.abstractmethod
    def look(
        self, image: npt.NDArray[np.float32], partner: npt.NDArray[np.float32] | None = None
    ) -> Boxes:
        """Boxes, scores and labels in a scaled image."""

    def __call__(
        self,
        image: npt.NDArray[np.float32],
        valid: npt.NDArray[np.bool_],
        partner: npt.NDArray[np.float32] | None = None,
    ) -> Boxes:
        """Boxes, scores and labels in an image.

        Args:
            image: (C, h, w).
            valid: (h, w).
            partner: (P, h, w) a second image on the same pixels, NaN where unknown; None without.

        Raises:
            InputError: Another number of bands.
        """
        if len(image) != self.bands:
            raise InputError(
                f"an image of {len(image)} bands",
                f"the model takes {self.bands}",
                "choose the bands of the scene with --bands",
            )
        seen = scaled(image, self._info)
        seen[:, ~valid] = 0.0
        if partner is None or self.partner is None:
            return self.look(seen)
        return self.look(seen, np.nan_to_num(scaled(partner, self.partner)))


def scaled(image: npt.NDArray[Any], info: InputInfo) -> npt.NDArray[np.float32]:
    """Values as the network wants them: `low` becomes 0 and `high` 1, band by band."""
    low = np.asarray(info.low, np.float32)[:, None, None]
    high = np.asarray(info.high, np.float32)[:, None, None]
    return np.asarray((image.astype(np.float32) - low) / (high - low), np.float32)
