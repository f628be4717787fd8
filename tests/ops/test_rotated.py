"""Overlap of oriented boxes: PyTorch and compiled, against shapely and against paper."""

import math

import numpy as np
import pytest
import shapely
import torch

from rsfuse.ops.boxes import canonical, corners_of
from rsfuse.ops.nms import rotated_nms
from rsfuse.ops.polygons import (
    crosses_itself,
    polygon_intersections,
    polygon_iou_matrix,
    polygon_iou_pairs,
    repaired,
)
from rsfuse.ops.rotated import gaussian_distance, iou_matrix, iou_pairs


def random_boxes(count: int, seed: int, side: float = 10.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    sizes = random.uniform(0.5, 12, (count, 2))
    places = random.uniform(0, side, (count, 2))
    return canonical(np.column_stack([places, sizes, random.uniform(-2, 2, count)]))


def shapely_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    one, two = shapely.polygons(a), shapely.polygons(b)
    common = shapely.area(shapely.intersection(one, two))
    return common / (shapely.area(one) + shapely.area(two) - common)


def test_random_pairs_equal_shapely() -> None:
    a, b = random_boxes(3000, 0), random_boxes(3000, 1)
    expected = shapely_iou(corners_of(a), corners_of(b))
    found = iou_pairs(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    assert np.abs(found - expected).max() < 1e-12
    single = iou_pairs(torch.from_numpy(a).float(), torch.from_numpy(b).float()).numpy()
    assert np.abs(single - expected).max() < 5e-6
    assert np.abs(polygon_iou_pairs(corners_of(a), corners_of(b)) - expected).max() < 1e-12


FLAT = (0.0, 0.0, 4.0, 2.0, 0.0)


@pytest.mark.parametrize(
    ("a", "b", "iou"),
    [
        (FLAT, FLAT, 1.0),
        (FLAT, (0.0, 0.0, 4.0, 2.0, math.pi), 1.0),
        (FLAT, (2.0, 0.0, 4.0, 2.0, 0.0), 1 / 3),
        (FLAT, (4.0, 0.0, 4.0, 2.0, 0.0), 0.0),  # side on side
        (FLAT, (0.0, 2.0, 4.0, 2.0, 0.0), 0.0),
        (FLAT, (0.0, -2.0, 4.0, 2.0, 0.0), 0.0),
        (FLAT, (4.0, 2.0, 4.0, 2.0, 0.0), 0.0),  # corner on corner
        (FLAT, (0.0, 0.5, 2.0, 1.0, 0.0), 0.25),  # inside, a side on a side
        (FLAT, (1.0, 0.0, 2.0, 2.0, 0.0), 0.5),
        (FLAT, (0.0, 0.0, 4.0, 2.0, math.pi / 2), 1 / 3),  # a cross: 4 of 12
        (FLAT, (9.0, 9.0, 1.0, 1.0, 0.3), 0.0),
        (FLAT, (0.0, 0.0, 4.0, 0.0, 0.0), 0.0),  # no area
    ],
)
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_pairs_worked_out_on_paper(a, b, iou: float, kind: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    one = torch.tensor([a], dtype=kind, requires_grad=True)
    two = torch.tensor([b], dtype=kind, requires_grad=True)
    found = iou_pairs(one, two)
    assert float(found.detach()) == pytest.approx(iou, abs=1e-6)
    swapped = iou_pairs(two, one)
    assert float(swapped.detach()) == pytest.approx(iou, abs=1e-6)
    found.sum().backward()
    assert torch.isfinite(one.grad).all()
    assert torch.isfinite(two.grad).all()
    ours = polygon_iou_pairs(corners_of(np.array([a])), corners_of(np.array([b])))
    assert ours[0] == pytest.approx(iou, abs=1e-12)


def test_gradients() -> None:
    a = torch.from_numpy(random_boxes(8, 2)).requires_grad_()
    b = torch.from_numpy(random_boxes(8, 3)).requires_grad_()
    assert torch.autograd.gradcheck(iou_pairs, (a, b))
    assert torch.autograd.gradcheck(gaussian_distance, (a, b))


def test_the_gaussian_distance_leads_boxes_together() -> None:
    here = torch.tensor([[0.0, 0, 4, 2, 0]]).expand(4, -1)
    there = torch.tensor([[0.0, 0, 4, 2, 0], [3, 0, 4, 2, 0], [30, 0, 4, 2, 0], [0, 0, 4, 2, 1]])
    found = gaussian_distance(here, there)
    assert found[0] < 0.01 < found[3] < found[1] < found[2] <= 1.0


def test_a_matrix_equals_its_pairs() -> None:
    a, b = torch.from_numpy(random_boxes(40, 4, 60)), torch.from_numpy(random_boxes(30, 5, 60))
    matrix = iou_matrix(a, b)
    for i in range(40):
        torch.testing.assert_close(matrix[i], iou_pairs(a[i : i + 1].expand(30, -1), b))
    compiled = polygon_iou_matrix(corners_of(a.numpy()), corners_of(b.numpy()))
    np.testing.assert_allclose(compiled, matrix.numpy(), atol=1e-12)


def test_far_from_the_origin_nothing_is_lost() -> None:
    a, b = random_boxes(200, 6), random_boxes(200, 7)
    moved = np.array([4e5, 5e6, 0, 0, 0])
    near = iou_pairs(torch.from_numpy(a), torch.from_numpy(b))
    far = iou_pairs(torch.from_numpy(a + moved), torch.from_numpy(b + moved))
    torch.testing.assert_close(far, near, rtol=0, atol=1e-7)


def test_simple_quadrilaterals_of_any_form_equal_shapely() -> None:
    random = np.random.default_rng(8)
    a, b = (random.uniform(0, 10, (6000, 4, 2)) for _ in range(2))
    simple = ~(crosses_itself(a) | crosses_itself(b))
    a, b = a[simple], b[simple]
    assert len(a) > 1000
    assert np.abs(polygon_iou_pairs(a, b) - shapely_iou(a, b)).max() < 1e-12
    common, area = polygon_intersections(a, b)
    one, two = shapely.polygons(a), shapely.polygons(b)
    np.testing.assert_allclose(area, shapely.area(one), atol=1e-10)
    np.testing.assert_allclose(common, shapely.area(shapely.intersection(one, two)), atol=1e-10)


def test_crossing_quadrilaterals_are_put_in_order() -> None:
    bow = np.array([[[0, 0], [2, 2], [2, 0], [0, 2]]], float)
    assert crosses_itself(bow).all()
    found, count = repaired(bow)
    assert count == 1
    assert shapely.Polygon(found[0]).area == pytest.approx(4)
    assert not crosses_itself(found).any()
    square = np.array([[[0, 0], [2, 0], [2, 2], [0, 2]]], float)
    kept, count = repaired(square)
    assert count == 0
    np.testing.assert_array_equal(kept, square)


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5])
def test_suppression_equals_the_plain_greedy_one(threshold: float) -> None:
    random = np.random.default_rng(9)
    boxes = random_boxes(400, 10, 120)
    scores, labels = random.random(400).round(2), random.integers(0, 3, 400)
    overlap = polygon_iou_matrix(corners_of(boxes), corners_of(boxes))
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        if all(overlap[i, j] <= threshold or labels[i] != labels[j] for j in kept):
            kept.append(int(i))
    assert rotated_nms(boxes, scores, threshold, labels).tolist() == kept


def test_suppression_of_nothing_and_of_twins() -> None:
    assert rotated_nms(np.zeros((0, 5)), np.zeros(0)).tolist() == []
    twins = np.repeat(np.array([[5.0, 5, 4, 2, 0.3]]), 3, axis=0)
    assert rotated_nms(twins, np.array([0.5, 0.9, 0.9])).tolist() == [1]
