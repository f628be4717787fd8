"""The loss of the matcher on cases worked out on paper."""

import math

import pytest
import torch

from rsfuse.matching.loss import (
    Truth,
    coarse_labels,
    cycle_loss,
    fine_labels,
    hardest_hinge,
    place_loss,
)
from rsfuse.nn.cstf import soft_cross_entropy


def truth(patches: list[list[float]], related: list[bool]) -> Truth:
    n = len(patches)
    empty = torch.zeros(1, 0, 2)
    none = torch.zeros(1, 0, dtype=torch.bool)
    return Truth(
        empty,
        none,
        none,
        torch.tensor([patches]),
        torch.tensor([related]),
        torch.ones(1, n, dtype=torch.bool),
        (1, n),
        16,
    )


def test_fine_label_of_a_whole_pixel() -> None:
    label = fine_labels(torch.tensor([1.0, 0.0]), torch.tensor(True), 3)
    grid = label[:-1].reshape(7, 7)
    assert float(label.sum()) == pytest.approx(1)
    assert float(label[-1]) == 0
    # Radius 2.5 around the centre: e^0, four e^-1/2, four e^-1, four e^-2, eight e^-5/2.
    total = 1 + 4 * math.exp(-0.5) + 4 * math.exp(-1) + 4 * math.exp(-2) + 8 * math.exp(-2.5)
    assert float(grid[3, 4]) == pytest.approx(1 / total)
    assert float(grid[3, 5]) == pytest.approx(math.exp(-0.5) / total)
    assert float(grid[2, 2]) == pytest.approx(math.exp(-2.5) / total)
    assert float(grid[3, 1]) == 0


@pytest.mark.parametrize(("shift", "related"), [((0.0, 0.0), False), ((3.5, 0.0), True)])
def test_what_is_not_there_is_no_match(shift: tuple[float, float], related: bool) -> None:
    label = fine_labels(torch.tensor(shift), torch.tensor(related), 3)
    assert label[-1] == 1
    assert label[:-1].abs().sum() == 0


def test_cross_entropy_of_even_logits_is_the_logarithm_of_their_number() -> None:
    label = torch.tensor([0.25, 0.75, 0.0, 0.0])
    assert float(soft_cross_entropy(torch.zeros(4), label)) == pytest.approx(math.log(4))


def test_hinge_counts_the_highest_wrong_positions() -> None:
    scores = torch.zeros(1, 20)
    scores[0, 0], scores[0, 1] = 0.5, 0.4  # right; a wrong one 0.1 below, the others 0.5 below
    label = torch.zeros(1, 20)
    label[0, 0] = 1
    assert float(hardest_hinge(scores, label)) == pytest.approx((0.2 - 0.1) / 16)
    assert float(hardest_hinge(scores[:0], label[:0])) == 0


def test_coarse_label_is_spread_over_neighbours() -> None:
    label = coarse_labels(truth([[4.0, 0.0], [0.0, 0.0], [0.0, 0.0]], [True, True, False]))
    assert label[0, 0].tolist() == pytest.approx([0.75, 0.25, 0.0, 0.0])
    assert label[0, 1].tolist() == pytest.approx([0.0, 1.0, 0.0, 0.0])
    assert label[0, 2].tolist() == pytest.approx([0.0, 0.0, 0.0, 1.0])


def test_coarse_label_outside_is_no_match() -> None:
    label = coarse_labels(truth([[-8.0, 0.0], [64.0, 0.0]], [True, True]))
    assert label[0, 0].tolist() == pytest.approx([0.5, 0.0, 0.5])
    assert label[0, 1].tolist() == pytest.approx([0.0, 0.0, 1.0])


def test_a_round_trip_home_costs_nothing() -> None:
    there = torch.full((1, 3, 4), -30.0)
    back = torch.full((1, 3, 4), -30.0)
    for i, j in enumerate((1, 2, 0)):
        there[0, i, j] = back[0, j, i] = 0
    counted = torch.ones(1, 3, dtype=torch.bool)
    assert float(cycle_loss((there, back), (1, 3), counted)) == pytest.approx(0, abs=1e-6)
    # Everything goes to patch 0 and comes back to patch 0: 0, 1 and 2 patches from home.
    stay = torch.full((1, 3, 4), -30.0)
    stay[..., 0] = 0
    assert float(cycle_loss((stay, stay), (1, 3), counted)) == pytest.approx((0 + 0.5 + 1.5) / 3)


def test_place_loss_forgives_what_is_far_off() -> None:
    logits = torch.full((2, 49), -20.0)
    logits[:, 24] = 0  # both at (0, 0)
    near = place_loss(logits, torch.tensor([[1.0, 0.0], [3.0, 3.0]]), 3)
    assert float(near) == pytest.approx(0.75, abs=1e-3)  # |1| beyond beta 0.5: 1 - 0.25
