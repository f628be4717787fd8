"""The loss: zero where all is right, finite everywhere, and a gradient where one is needed."""

import math

import pytest
import torch
from torch import Tensor

from rsfuse.detection.loss import WEIGHTS, Targets, detection_loss
from rsfuse.detection.model import Cells, Detector, Prediction, cells_of, phases_of

CELLS: Cells = cells_of([(4, 4)], (8,), torch.device("cpu"))
NONE = Targets(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 5))


def targets(*boxes: tuple[float, ...], headings: list[float] | None = None) -> Targets:
    found = torch.tensor(boxes)
    labels = torch.zeros(len(boxes), dtype=torch.int64)
    known = None if headings is None else torch.tensor(headings)
    return Targets(found, labels, torch.zeros(0, 5), known)


def prediction(
    box: Tensor, phases: Tensor | None = None, fronts: Tensor | None = None
) -> Prediction:
    """All 16 cells say the same."""
    given = phases_of(box[4]) if phases is None else phases
    return Prediction(
        torch.zeros(1, 16, 1),
        box.expand(1, 16, 5),
        given.expand(1, 16, 4),
        None if fronts is None else fronts.expand(1, 16, 2),
    )


def test_an_empty_image_costs_what_the_formula_says() -> None:
    # Quality 0, score 0.5: (0.5 - 0)^2 x ln 2 for each of 16 cells, over at least 1.
    parts = detection_loss(prediction(torch.tensor([9.0, 9, 8, 8, 0])), [NONE], CELLS)
    assert float(parts["score"]) == pytest.approx(16 * 0.25 * math.log(2), rel=1e-6)
    assert float(parts["overlap"]) == float(parts["phase"]) == 0.0


def test_the_right_boxes_cost_nothing() -> None:
    box = torch.tensor([16.0, 16, 20, 10, 0.5])
    parts = detection_loss(prediction(box), [targets((16.0, 16, 20, 10, 0.5))], CELLS)
    assert float(parts["overlap"]) < 1e-5
    assert float(parts["gaussian"]) < 2e-3
    assert float(parts["phase"]) < 1e-6


def test_ignored_places_cost_nothing_unless_an_object_is_there() -> None:
    guess = prediction(torch.tensor([16.0, 16, 12, 12, 0]))
    whole = torch.tensor([[16.0, 16, 32, 32, 0.0]])
    assert float(detection_loss(guess, [NONE._replace(ignored=whole)], CELLS)["loss"]) == 0.0
    seen = targets((16.0, 16, 12, 12, 0.0))
    spared = detection_loss(guess, [seen._replace(ignored=whole)], CELLS)
    plain = detection_loss(guess, [seen], CELLS)
    assert 0 < float(spared["score"]) < float(plain["score"])
    assert float(spared["overlap"]) == float(plain["overlap"])


def test_the_gaussian_term_pulls_boxes_that_are_apart_and_fades_out() -> None:
    truth = [targets((8.0, 8, 10, 6, 0.0))]
    for weight in (1.0, 0.25):
        box = torch.tensor([26.0, 24, 8, 6, 0.3], requires_grad=True)
        parts = detection_loss(prediction(box), truth, CELLS, gaussian=weight)
        (overlap,) = torch.autograd.grad(parts["overlap"], box, retain_graph=True)
        (pull,) = torch.autograd.grad(parts["gaussian"], box)
        assert overlap.abs().max() == 0.0
        assert (pull[:2] > 0).all()  # downhill is towards the object
        if weight == 1.0:
            full = pull
    torch.testing.assert_close(pull, 0.25 * full)
    assert "gaussian" not in detection_loss(prediction(box), truth, CELLS, gaussian=0.0)


def test_a_square_learns_its_angle_from_the_second_phase_alone() -> None:
    for sides, first in (((12.0, 12.0), False), ((24.0, 12.0), True)):
        phases = torch.tensor([0.3, 0.2, 0.1, 0.4], requires_grad=True)
        box = torch.tensor([16.0, 16, *sides, 0.0])
        parts = detection_loss(prediction(box, phases), [targets((16.0, 16, *sides, 0.7))], CELLS)
        (pull,) = torch.autograd.grad(parts["phase"], phases)
        assert bool(pull[:2].abs().max() > 0) == first
        assert (pull[2:].abs() > 0).all()


def test_a_square_turned_by_a_quarter_costs_the_same() -> None:
    box = torch.tensor([16.0, 16, 12, 12, 0.2])
    costs = [
        detection_loss(prediction(box), [targets((16.0, 16, 12, 12, angle))], CELLS)
        for angle in (0.5, 0.5 - math.pi / 2)
    ]
    for name in ("overlap", "phase", "gaussian"):
        assert float(costs[0][name]) == pytest.approx(float(costs[1][name]), rel=1e-4, abs=1e-6)


def test_two_equal_images_cost_what_one_does() -> None:
    torch.manual_seed(0)
    one = Prediction(torch.randn(1, 16, 1), torch.rand(1, 16, 5) * 20 + 1, torch.randn(1, 16, 4))
    two = Prediction(
        one.logits.repeat(2, 1, 1), one.boxes.repeat(2, 1, 1), one.phases.repeat(2, 1, 1)
    )
    truth = targets((12.0, 12, 20, 8, 0.3), (22.0, 20, 12, 6, -1.0))
    single, double = detection_loss(one, [truth], CELLS), detection_loss(two, [truth] * 2, CELLS)
    # The score is divided by the quality of all positives, or 1; both have more than half of 1.
    for name in ("overlap", "phase", "gaussian"):
        torch.testing.assert_close(single[name], double[name])


def test_headings_are_learned_where_they_are_known() -> None:
    fronts = torch.tensor([0.1, 0.2], requires_grad=True)
    box = torch.tensor([16.0, 16, 20, 10, 0.5])
    truth = targets((16.0, 16, 20, 10, 0.5), headings=[0.5 + math.pi])
    parts = detection_loss(prediction(box, fronts=fronts), [truth], CELLS)
    (pull,) = torch.autograd.grad(parts["front"], fronts)
    assert (pull > 0).all()  # downhill is towards (cos, sin) of 0.5 + pi, both negative
    unknown = targets((16.0, 16, 20, 10, 0.5), headings=[math.nan])
    for silent in (unknown, targets((16.0, 16, 20, 10, 0.5))):
        parts = detection_loss(prediction(box, fronts=fronts), [silent], CELLS)
        assert float(parts["front"].detach()) == 0.0
        assert torch.isfinite(parts["loss"])


@pytest.mark.parametrize("bands", [1, 3, 5])
def test_gradients_are_finite_from_extreme_weights_on(bands: int) -> None:
    torch.manual_seed(bands)
    model = Detector(2, bands=bands, width=16, heading=True)
    with torch.no_grad():
        for layer in (model.head.place, model.head.phase):
            layer.weight.mul_(300)  # sizes at both ends of their range, boxes far away
    truth = Targets(
        torch.tensor([[30.0, 30, 20, 10, 0.3], [40.0, 20, 0.5, 0.5, 0.0]]),
        torch.tensor([0, 1]),
        torch.tensor([[10.0, 50, 20, 20, 0.0]]),
        torch.tensor([0.3, math.nan]),
    )
    parts = detection_loss(model(torch.rand(2, bands, 64, 64)), [truth, NONE], model.cells(64, 64))
    assert set(parts) == {*WEIGHTS, "loss"}
    parts["loss"].backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.isfinite(parameter.grad).all(), name
    assert sum(p.grad is not None for p in model.head.parameters()) > 10
