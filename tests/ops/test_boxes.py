"""Oriented boxes: every form says the same rectangle."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rsfuse.ops import boxes as ops

box = st.tuples(
    st.floats(-1e3, 1e3),
    st.floats(-1e3, 1e3),
    st.floats(0.5, 500),
    st.floats(0.5, 500),
    st.floats(-10, 10),
).map(lambda values: np.array([values]))


def same_rectangle(a: np.ndarray, b: np.ndarray) -> None:
    """Equal corners, whichever comes first."""
    one, two = ops.corners_of(a)[0], ops.corners_of(b)[0]
    scale = np.abs(one).max() + 1
    gaps = [np.abs(np.roll(two, k, axis=0) - one).max() for k in range(4)]
    assert min(gaps) <= 1e-9 * scale


FORMS = {
    "le135": (ops.to_le135, ops.from_le135, -math.pi / 4, 3 * math.pi / 4),
    "oc": (ops.to_oc, ops.from_oc, 0.0, math.pi / 2),
    "opencv 4.5.1 to 4.12": (ops.to_opencv_old, ops.from_opencv, 0.0, 90.0),
    "opencv from 4.13": (ops.to_opencv_new, ops.from_opencv, -90.0, 0.0),
    "counter-clockwise degrees": (ops.to_ccw_degrees, ops.from_ccw_degrees, -90.0, 90.0),
}


@pytest.mark.parametrize("form", FORMS)
@given(box)
@settings(max_examples=60, derandomize=True, deadline=None)
def test_forms_go_round(form: str, given_box: np.ndarray) -> None:
    there, back, low, high = FORMS[form]
    other = there(given_box)
    assert low - 1e-9 <= other[0, 4] <= high + 1e-9
    same_rectangle(given_box, back(other))


@given(box)
@settings(max_examples=100, derandomize=True, deadline=None)
def test_canonical_boxes_are_the_same_rectangles(given_box: np.ndarray) -> None:
    found = ops.canonical(given_box)
    assert found[0, 2] >= found[0, 3]
    assert -math.pi / 2 <= found[0, 4] < math.pi / 2
    same_rectangle(given_box, found)


@given(box, st.integers(0, 3), st.booleans())
@settings(max_examples=100, derandomize=True, deadline=None)
def test_corners_go_round(given_box: np.ndarray, first: int, backwards: bool) -> None:
    corners = np.roll(ops.corners_of(given_box), first, axis=1)
    if backwards:
        corners = corners[:, ::-1].copy()
    found = ops.from_corners(corners)
    assert found[0, 2] >= found[0, 3]
    assert -math.pi / 2 <= found[0, 4] < math.pi / 2
    same_rectangle(given_box, found)


def test_ends_of_the_ranges() -> None:
    upright = np.array([[0.0, 0.0, 10.0, 4.0, math.pi / 2]])
    assert ops.canonical(upright)[0, 4] == -math.pi / 2
    lying = np.array([[0.0, 0.0, 10.0, 4.0, 0.0]])
    # oc has no 0: the side that is met first is then the short one, at a quarter turn.
    np.testing.assert_allclose(ops.to_oc(lying)[0, 2:], (4, 10, math.pi / 2))
    np.testing.assert_allclose(ops.to_opencv_old(lying)[0, 2:], (4, 10, 90))


def test_torch_and_numpy_agree() -> None:
    random = np.random.default_rng(0)
    given_boxes = random.uniform(1, 9, (50, 5))
    corners = ops.corners_of(given_boxes)
    skewed = corners + random.uniform(-0.5, 0.5, corners.shape)
    for function, argument in (
        (ops.canonical, given_boxes),
        (ops.corners_of, given_boxes),
        (ops.from_corners, skewed),
        (ops.to_oc, given_boxes),
        (ops.to_hbb, given_boxes),
    ):
        ours = function(torch.from_numpy(argument)).numpy()
        np.testing.assert_allclose(ours, function(argument), atol=1e-12)


def test_other_quadrilaterals_get_the_least_rectangle_around_them() -> None:
    import shapely

    random = np.random.default_rng(1)
    quads = random.uniform(0, 10, (200, 4, 2))
    found = ops.from_corners(quads)
    for quad, corners, area in zip(
        quads, ops.corners_of(found), found[:, 2] * found[:, 3], strict=True
    ):
        best = shapely.MultiPoint(quad).minimum_rotated_rectangle
        assert area == pytest.approx(best.area, rel=1e-6)
        assert shapely.Polygon(corners).buffer(1e-6).covers(shapely.MultiPoint(quad))


def test_axis_aligned_rectangles() -> None:
    turned = np.array([[5.0, 5.0, 4.0, 2.0, math.pi / 4]])
    half = 3 / math.sqrt(2)
    np.testing.assert_allclose(ops.to_hbb(turned)[0], (5 - half, 5 - half, 5 + half, 5 + half))
    flat = ops.from_hbb(np.array([[1.0, 2.0, 3.0, 8.0]]))
    np.testing.assert_allclose(flat[0], (2, 5, 6, 2, -math.pi / 2))
    np.testing.assert_allclose(ops.to_hbb(flat)[0], (1, 2, 3, 8), atol=1e-12)
