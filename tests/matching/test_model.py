"""The matching network: what an untrained one sees, motions it must find, missing ground."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rsfuse.engine.seeds import seeded
from rsfuse.matching.inputs import network_channels
from rsfuse.matching.learned import CstfMeasurer, corners_near, displacements_of
from rsfuse.matching.model import (
    CELL,
    TEMPLATES,
    CstfMatcher,
    NoMatch,
    PositionHead,
    VectorHead,
    at_corners,
    box_sums,
    expected_position,
    patch_of,
)
from rsfuse.nn.cstf import FUSIONS

RADIUS = 4


def scene(seed: int, size: int = 128) -> np.ndarray:
    """Blobs of a few pixels: (1, size, size)."""
    import cv2

    noise = np.random.default_rng(seed).standard_normal((size, size)).astype(np.float32)
    return cv2.GaussianBlur(noise, (0, 0), 3.0)[None]


@pytest.fixture(scope="module")
def matcher() -> CstfMatcher:
    with seeded(0):
        return CstfMatcher(width=32, features=16).eval()


def measured(
    matcher: CstfMatcher, image0: np.ndarray, image1: np.ndarray, valid: np.ndarray | None = None
):
    measurer = CstfMeasurer(matcher)
    known = np.ones(image0.shape[1:], bool) if valid is None else valid
    views = measurer.prepare(image0, known), measurer.prepare(image1, np.ones_like(known))
    xy = np.stack(np.meshgrid(np.arange(40, 96, 8), np.arange(40, 96, 8)), -1).reshape(-1, 2)
    return measurer.measure(*views, xy.astype(float), xy.astype(float), template=64, radius=RADIUS)


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (3, -2), (-1, 2)])
def test_an_untrained_network_finds_a_shift_both_ways(
    matcher: CstfMatcher, dx: int, dy: int
) -> None:
    image = scene(5, 160)
    image0 = image[:, 16:144, 16:144]
    image1 = image[:, 16 - dy : 144 - dy, 16 - dx : 144 - dx]
    forward, back = measured(matcher, image0, image1)
    assert len(forward.xy) == len(back.xy) == 49
    np.testing.assert_allclose(np.median(forward.shift, axis=0), (dx, dy), atol=0.15)
    np.testing.assert_allclose(np.median(back.shift, axis=0), (-dx, -dy), atol=0.15)
    assert np.median(forward.probability) > 0.5


def test_inverted_contrast_changes_little(matcher: CstfMatcher) -> None:
    image = scene(6)
    forward, _ = measured(matcher, image, -image)
    np.testing.assert_allclose(np.median(forward.shift, axis=0), (0, 0), atol=0.2)


def test_the_baseline_head_measures_as_well() -> None:
    with seeded(0):
        model = CstfMatcher(width=32, features=16, head="fc").eval()
    forward, back = measured(model, scene(5), scene(5))
    assert len(forward.xy) == len(back.xy) == 49
    np.testing.assert_allclose(np.median(forward.shift, axis=0), (0, 0), atol=0.2)


def test_other_ground_is_less_probable(matcher: CstfMatcher) -> None:
    same, _ = measured(matcher, scene(7), scene(7))
    other, _ = measured(matcher, scene(7), scene(8))
    assert np.median(other.probability) < 0.5 * np.median(same.probability)


def test_places_without_enough_known_ground_are_left_out(matcher: CstfMatcher) -> None:
    valid = np.ones((128, 128), bool)
    valid[:, 60:] = False
    forward, _ = measured(matcher, scene(9), scene(9), valid)
    assert 0 < len(forward.xy) < 49
    assert forward.xy[:, 0].max() < 64


def test_nothing_known_gives_no_rows(matcher: CstfMatcher) -> None:
    forward, back = measured(matcher, scene(9), scene(9), np.zeros((128, 128), bool))
    assert len(forward.xy) == len(back.xy) == 0


def test_untrained_features_are_the_structure_channels(matcher: CstfMatcher) -> None:
    view = network_channels(scene(1), np.ones((128, 128), bool))
    image = torch.from_numpy(view.image)[None]
    features, _ = matcher.encoder(image)
    torch.testing.assert_close(features[:, :4], image[:, :4])


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("head", ["fcn", "fc"])
def test_every_variant_gives_logits_for_positions_and_no_match(fusion, head) -> None:
    model = CstfMatcher(width=16, features=16, depth=1, fusion=fusion, head=head, heads=2)
    image, mass = torch.randn(2, 6, 64, 96), torch.ones(2, 1, 8, 12)
    anchors = torch.tensor([[[4, 4], [6, 3], [11, 7]]] * 2)
    said = model(image, image, mass, mass, anchors, radius=2)
    assert said.logits.shape == (2, 3, 26)
    assert said.coarse[0].shape == (2, 24, 25)
    said.logits.sum().backward()
    assert model.encoder.last.weight.grad.isfinite().all()


def test_a_fully_connected_layer_at_every_place_is_a_convolution() -> None:
    head = VectorHead(3, width=5)
    features, side = torch.randn(1, 3, 40, 48), TEMPLATES[-1] * CELL
    found = head.vectors(features)
    assert found.shape == (1, 5, 41, 49)
    padded = F.pad(features, (side // 2,) * 4)
    for x, y in ((0, 0), (13, 7), (40, 21)):
        template = padded[:, :, y : y + side, x : x + side]
        means = F.avg_pool2d(template, CELL)[0].permute(1, 2, 0).reshape(-1)
        expected = F.normalize(head.describe(means), dim=0)
        torch.testing.assert_close(found[0, :, y, x], expected)


def test_flat_maps_cost_the_logarithm_of_the_number_of_positions() -> None:
    logits = PositionHead()(torch.zeros(1, 1, 10, 33, 33))[0, 0].detach()
    assert logits.shape == (1090,)
    positions = logits[:-1].log_softmax(0)
    assert float(-positions.mean()) == pytest.approx(math.log(1089), abs=1e-4)


def test_no_match_gradient_is_finite_on_flat_logits() -> None:
    logits = torch.zeros(3, 25, requires_grad=True)
    NoMatch()(logits).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_box_sums_by_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.rand(2, 3, 5, 6, generator=generator)
    sums = box_sums(blocks, 4)
    assert sums.shape == (2, 3, 6, 7)
    for row, column in ((0, 0), (2, 3), (5, 6), (4, 1)):
        expected = blocks[..., max(0, row - 2) : row + 2, max(0, column - 2) : column + 2].sum(
            dim=(-2, -1)
        )
        taken = at_corners(sums, torch.tensor([[[column, row]]] * 2))[:, 0]
        torch.testing.assert_close(taken, expected)


@pytest.mark.parametrize(("x", "y"), [(0.0, 0.0), (1.3, -0.6), (-2.45, 0.5)])
def test_expected_position_of_a_gaussian(x: float, y: float) -> None:
    axis = torch.arange(-5, 6.0)
    logits = -((axis[None, :] - x) ** 2 + (axis[:, None] - y) ** 2) / 2
    place = expected_position(logits.flatten()[None], 5)[0]
    assert place.tolist() == pytest.approx([x, y], abs=0.12)


def test_a_peak_at_the_edge_is_not_believed() -> None:
    logits = torch.zeros(1, 82)
    logits[0, 0] = 20.0
    found = displacements_of(logits, torch.zeros(1, 9, 9), np.zeros((1, 2)), 4)
    assert found.probability[0] == 0.0


def test_anchors_are_block_corners_once_each() -> None:
    corners = corners_near(np.array([[7.0, 9.0], [9.0, 7.5], [30.0, 2.0]]))
    assert corners.tolist() == [[1, 1], [4, 0]]
    assert CELL == 8


@pytest.mark.parametrize(("shape", "size"), [((512, 256), 16), ((513, 64), 32), ((2048, 9), 64)])
def test_large_lattices_have_large_patches(shape: tuple[int, int], size: int) -> None:
    assert patch_of(shape, 16) == size
