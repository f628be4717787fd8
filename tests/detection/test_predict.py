"""From numbers to boxes: suppression, limits, and large images tile by tile."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rsfuse.detection.model import Prediction, phases_of
from rsfuse.detection.network import detect_array, detect_tile


class Spots(nn.Module):
    """Finds each pixel of at least 0.5 as a box of 9 x 5, its score the value of the pixel.

    A spot nearer than four pixels to the edge of what it sees is found two pixels off: an object at
    the edge of a tile is seen badly.
    """

    def forward(self, image: Tensor) -> Prediction:
        h, w = image.shape[-2:]
        y, x = (image[0, 0] >= 0.5).nonzero(as_tuple=True)
        value = image[0, 0, y, x]
        near = (torch.minimum(x, w - 1 - x) < 4) | (torch.minimum(y, h - 1 - y) < 4)
        boxes = torch.zeros(1, len(x), 5)
        boxes[0, :, 0], boxes[0, :, 1] = x + 0.5 + 2.0 * near, y + 0.5
        boxes[0, :, 2], boxes[0, :, 3] = 9.0, 5.0
        logits = torch.logit(value)[None, :, None]
        return Prediction(logits, boxes, phases_of(torch.zeros(1, len(x))))


@pytest.fixture
def scene() -> Tensor:
    rng = np.random.default_rng(0)
    image = torch.zeros(1, 150, 230)
    for y in range(6, 150, 12):
        for x in range(6, 230, 12):
            image[0, y, x] = float(rng.uniform(0.55, 0.95))
    return image


def sorted_boxes(boxes: np.ndarray) -> np.ndarray:
    return boxes[np.lexsort(boxes.T)]


@pytest.mark.parametrize(("tile", "overlap"), [(64, 16), (100, 20), (73, 17), (149, 40)])
def test_boxes_do_not_depend_on_the_tiles(scene: Tensor, tile: int, overlap: int) -> None:
    whole = detect_tile(Spots(), scene)
    parts = detect_array(Spots(), scene, tile=tile, overlap=overlap)
    assert len(whole[0]) == 12 * 19
    np.testing.assert_allclose(sorted_boxes(parts[0]), sorted_boxes(whole[0]), atol=1e-9)
    assert (np.diff(parts[1]) <= 0).all()


def test_an_image_of_one_tile_is_looked_at_once(scene: Tensor) -> None:
    for a, b in zip(detect_tile(Spots(), scene), detect_array(Spots(), scene), strict=True):
        np.testing.assert_array_equal(a, b)


def test_scores_suppression_and_limits() -> None:
    image = torch.zeros(1, 40, 60)
    image[0, 20, 20], image[0, 20, 23], image[0, 20, 45] = 0.9, 0.8, 0.6
    boxes, scores, labels = detect_tile(Spots(), image)
    np.testing.assert_allclose(scores, (0.9, 0.6), atol=1e-6)  # the second overlaps the first
    np.testing.assert_allclose(boxes[:, :2], [[20.5, 20.5], [45.5, 20.5]])
    assert labels.tolist() == [0, 0]
    assert len(detect_tile(Spots(), image, nms=0.6)[0]) == 3  # 6 of 12 columns in common: 0.5
    assert len(detect_tile(Spots(), image, score=0.7)[0]) == 1
    np.testing.assert_allclose(detect_tile(Spots(), image, max_candidates=1)[1], [0.9], atol=1e-6)
    assert len(detect_tile(Spots(), torch.zeros(1, 8, 8))[0]) == 0
