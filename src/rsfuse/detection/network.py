"""The detector by PyTorch: on tensors, on images in memory of any size, and of a bundle."""

import math
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from rsfuse.detection.model import Detector, Prediction, heading_of
from rsfuse.detection.predict import MOST_BOXES, MOST_CANDIDATES, Boxes, ImageDetector, select
from rsfuse.engine.bundle import Bundle, BundleCard
from rsfuse.ops.nms import rotated_nms


def boxes_of(
    prediction: Prediction,
    *,
    least: float = 0.05,
    nms: float = 0.1,
    candidates: int = MOST_CANDIDATES,
    most: int = MOST_BOXES,
) -> list[Boxes]:
    """Boxes, scores and labels of each image of a batch, best first.

    Args:
        prediction: Of the network.
        least: Lowest score.
        nms: Largest IoU of two boxes of a class.
        candidates: Most cells that are compared.
        most: Most boxes per image.
    """
    scores = prediction.logits.float().sigmoid().cpu()
    boxes = prediction.boxes.float()
    if prediction.fronts is not None:
        heading = heading_of(boxes[..., 4], prediction.fronts.float())
        boxes = torch.cat([boxes, heading[..., None]], dim=-1)
    boxes = boxes.cpu()
    return [
        select(boxes[i].numpy(), scores[i].numpy(), least, nms, candidates, most)
        for i in range(len(scores))
    ]


def detect_tile(
    model: nn.Module,
    image: torch.Tensor,
    partner: torch.Tensor | None = None,
    *,
    score: float = 0.05,
    nms: float = 0.1,
    max_candidates: int = MOST_CANDIDATES,
) -> Boxes:
    """Boxes, scores and labels in one image, best first.

    Args:
        model: A `Detector`, in evaluation mode.
        image: (C, h, w) of any size, scaled as the network wants it, on the network's device.
        partner: (P, h, w) a second image of the same ground; None without.
        score: Lowest score.
        nms: Largest IoU of two boxes of a class.
        max_candidates: Most cells that are compared.
    """
    with torch.inference_mode():
        prediction = model(image[None], *([] if partner is None else [partner[None]]))
    return boxes_of(prediction, least=score, nms=nms, candidates=max_candidates)[0]


def detect_array(
    model: nn.Module,
    image: torch.Tensor,
    partner: torch.Tensor | None = None,
    *,
    score: float = 0.05,
    nms: float = 0.1,
    tile: int = 1024,
    overlap: int = 256,
) -> Boxes:
    """The same for an image in memory of any size, tile by tile.

    A box belongs to the tile in whose inner part its centre lies; the inner parts of neighbours
    meet in the middle of their overlap.

    Args:
        model: A `Detector`, in evaluation mode.
        image: (C, h, w).
        partner: (P, h, w) a second image on the same pixels; None without.
        score: Lowest score.
        nms: Largest IoU of two boxes of a class.
        tile: Side of a tile.
        overlap: What neighbouring tiles share.
    """
    h, w = image.shape[-2:]
    parts = []
    for y, low_y, high_y in _stretches(h, tile, overlap):
        for x, low_x, high_x in _stretches(w, tile, overlap):
            part = np.s_[:, y : y + tile, x : x + tile]
            second = None if partner is None else partner[part]
            boxes, scores, labels = detect_tile(model, image[part], second, score=score, nms=nms)
            boxes[:, :2] += (x, y)
            mine = (boxes[:, 0] >= low_x) & (boxes[:, 0] < high_x)
            mine &= (boxes[:, 1] >= low_y) & (boxes[:, 1] < high_y)
            parts.append((boxes[mine], scores[mine], labels[mine]))
    if len(parts) == 1:
        return parts[0]
    found, values, kinds = (np.concatenate(column) for column in zip(*parts, strict=True))
    kept = rotated_nms(found[:, :5], values, nms, kinds)
    return found[kept], values[kept], kinds[kept]


def _stretches(length: int, tile: int, overlap: int) -> list[tuple[int, float, float]]:
    """Where tiles begin along a side, and from where to where each owns the boxes."""
    last = max(length - tile, 0)
    starts = [*range(0, last, tile - overlap), last]
    meet = [(a + tile + b) / 2 for a, b in pairwise(starts)]
    return list(zip(starts, [-math.inf, *meet], [*meet, math.inf], strict=True))


class NetworkDetector(ImageDetector):
    """A network of a bundle by PyTorch."""

    def __init__(
        self,
        model: Detector,
        card: BundleCard,
        *,
        score: float = 0.3,
        nms: float | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(card, score=score, nms=nms)
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()

    @classmethod
    def load(
        cls, bundle: Bundle, *, score: float = 0.3, nms: float | None = None,
        device: str | torch.device = "cpu",
    ) -> "NetworkDetector":  # fmt: skip
        """The detector of a bundle, with its own suppression where `nms` is None.

        Raises:
            InputError: The bundle is damaged, or its weights do not fit its architecture.
        """
        model = Detector(**bundle.card.arguments)
        bundle.load_into(model)
        return cls(model, bundle.card, score=score, nms=nms, device=device)

    def look(
        self, image: npt.NDArray[np.float32], partner: npt.NDArray[np.float32] | None = None
    ) -> Boxes:
        """See `ImageDetector.look`."""
        given = [image] if partner is None else [image, partner]
        inputs = [torch.from_numpy(part)[None].to(self.device) for part in given]
        with torch.inference_mode():
            prediction = self.model(*inputs)
        return boxes_of(prediction, least=self.score, nms=self.nms)[0]
