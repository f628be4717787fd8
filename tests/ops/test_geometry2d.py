"""Plane transforms: exact fits, weights, round trips and the smooth field."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsfuse.errors import InputError
from rsfuse.ops.geometry2d import (
    MINIMUM_POINTS,
    SplineField,
    Transform,
    apply_matrix,
    fit_field,
    fit_matrix,
    jacobian_of,
    rotation_scale_of,
    unit_matrix,
)

MATRICES = {
    "shift": np.array([[1, 0, 5.25], [0, 1, -3.5], [0, 0, 1.0]]),
    "rigid": np.array([[0.8, -0.6, 7.0], [0.6, 0.8, -20.0], [0, 0, 1.0]]),
    "similarity": np.array([[1.2, -0.4, 7.0], [0.4, 1.2, -20.0], [0, 0, 1.0]]),
    "affine": np.array([[1.1, 0.2, 3.0], [-0.3, 0.8, 12.0], [0, 0, 1.0]]),
    "homography": np.array([[1.05, 0.1, -4.0], [-0.08, 0.95, 9.0], [4e-4, -3e-4, 1.0]]),
}
MODELS = sorted(MATRICES)
WAVE_AREA = (10.0, 20.0, 240.0, 160.0)


def wave(xy: np.ndarray) -> np.ndarray:
    """A smooth displacement of a few pixels."""
    x, y = xy.T
    return np.stack([3 * np.sin(x / 60) + 0.01 * y, 2 * np.cos(y / 50 + x / 90)], axis=1)


@pytest.fixture
def wave_field(rng: np.random.Generator) -> SplineField:
    """A field through dense samples of the wave."""
    xy = rng.uniform(WAVE_AREA[:2], (WAVE_AREA[0] + 240, WAVE_AREA[1] + 160), (1500, 2))
    return fit_field(xy, wave(xy), np.ones(1500), area=WAVE_AREA, cells=(6, 9), stiffness=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_fit_recovers_the_exact_matrix(model: str, rng: np.random.Generator) -> None:
    xy = rng.uniform(0, 500, (20, 2))
    found = fit_matrix(model, xy, apply_matrix(MATRICES[model], xy))
    np.testing.assert_allclose(found, MATRICES[model], atol=1e-8)


@pytest.mark.parametrize("model", MODELS)
def test_the_fewest_points_determine_the_model(model: str) -> None:
    xy = np.array([[0, 0], [400, 20], [380, 300], [-10, 310.0]])[: MINIMUM_POINTS[model]]
    found = fit_matrix(model, xy, apply_matrix(MATRICES[model], xy))
    np.testing.assert_allclose(found, MATRICES[model], atol=1e-8)


@settings(max_examples=40, deadline=None)
@given(
    linear=st.lists(st.floats(-0.3, 0.3), min_size=4, max_size=4),
    shift=st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=2),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_affine_map_is_recovered(linear: list[float], shift: list[float], seed: int) -> None:
    matrix = np.eye(3)
    matrix[:2, :2] += np.reshape(linear, (2, 2))
    matrix[:2, 2] = shift
    xy = np.random.default_rng(seed).uniform(0, 2000, (12, 2))
    there = apply_matrix(matrix, xy)
    found = fit_matrix("affine", xy, there)
    np.testing.assert_allclose(apply_matrix(found, xy), there, atol=1e-6)
    back = Transform("affine", found).invert(there)
    np.testing.assert_allclose(back, xy, atol=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_a_heavy_weight_wins_over_a_wrong_point(model: str, rng: np.random.Generator) -> None:
    xy = rng.uniform(0, 300, (15, 2))
    there = apply_matrix(MATRICES[model], xy)
    there[4] += (40, -25)
    weights = np.ones(15)
    spoilt = fit_matrix(model, xy, there, weights)
    weights[4] = 1e-9
    found = fit_matrix(model, xy, there, weights)
    good = np.arange(15) != 4

    def error(matrix: np.ndarray) -> float:
        return float(np.abs(apply_matrix(matrix, xy) - there)[good].max())

    assert error(found) < 1e-4
    assert error(spoilt) > 0.5


def test_a_weight_counts_as_a_repetition(rng: np.random.Generator) -> None:
    xy = rng.uniform(0, 100, (8, 2))
    there = xy + rng.normal(0, 2, (8, 2))
    repeats = np.array([1, 2, 1, 3, 1, 1, 2, 1])
    for model in ("shift", "rigid", "similarity", "affine"):
        weighted = fit_matrix(model, xy, there, repeats)
        repeated = fit_matrix(model, np.repeat(xy, repeats, 0), np.repeat(there, repeats, 0))
        np.testing.assert_allclose(weighted, repeated, atol=1e-8)


@pytest.mark.parametrize("model", MODELS)
def test_too_few_points_are_refused(model: str, rng: np.random.Generator) -> None:
    xy = rng.uniform(0, 10, (MINIMUM_POINTS[model] - 1, 2))
    with pytest.raises(ValueError, match="needs"):
        fit_matrix(model, xy, xy)


@pytest.mark.parametrize("model", ["rigid", "similarity", "affine", "homography"])
def test_coincident_points_are_refused(model: str) -> None:
    xy = np.full((9, 2), 3.0)
    with pytest.raises(ValueError, match="do not determine"):
        fit_matrix(model, xy, xy + 1)


@pytest.mark.parametrize("model", ["affine", "homography"])
def test_points_on_a_line_are_refused(model: str) -> None:
    xy = np.stack([np.arange(9.0), np.zeros(9)], axis=1)
    with pytest.raises(ValueError, match="do not determine"):
        fit_matrix(model, xy, xy)


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown model"):
        fit_matrix("spiral", [[0, 0]], [[0, 0]])


def test_points_behind_the_horizon_are_nan() -> None:
    matrix = np.array([[1, 0, 0], [0, 1, 0], [-0.01, 0, 1.0]])
    mapped = apply_matrix(matrix, [[50, 10], [100, 10], [150, 10]])
    np.testing.assert_allclose(mapped[0], [100, 20])
    assert np.isnan(mapped[1:]).all()
    there = Transform("homography", matrix).invert(mapped)
    np.testing.assert_allclose(there[0], [50, 10])
    assert np.isnan(there[1:]).all()


@pytest.mark.parametrize("model", MODELS)
def test_invert_undoes_apply(model: str, rng: np.random.Generator) -> None:
    transform = Transform(model, MATRICES[model])
    xy = rng.uniform(0, 500, (30, 2))
    np.testing.assert_allclose(transform.invert(transform.apply(xy)), xy, atol=1e-8)
    assert transform.matrix is transform.base


def test_invert_undoes_apply_of_a_smooth_field(
    wave_field: SplineField, rng: np.random.Generator
) -> None:
    transform = Transform("smooth", MATRICES["affine"], wave_field)
    assert transform.matrix is None
    xy = rng.uniform(-50, 320, (200, 2))  # some beyond the rectangle
    np.testing.assert_allclose(transform.invert(transform.apply(xy)), xy, atol=1e-6)


def test_no_points_give_no_points(wave_field: SplineField) -> None:
    transform = Transform("smooth", np.eye(3), wave_field)
    assert transform.apply([]).shape == (0, 2)
    assert transform.invert([]).shape == (0, 2)


@pytest.mark.parametrize("model", [*MODELS, "smooth"])
def test_a_transform_survives_json(
    model: str, wave_field: SplineField, rng: np.random.Generator
) -> None:
    if model == "smooth":
        transform = Transform("smooth", MATRICES["affine"], wave_field)
    else:
        transform = Transform(model, MATRICES[model])
    again = Transform.from_dict(json.loads(json.dumps(transform.to_dict())))
    assert again.model == model
    assert again.to_dict() == transform.to_dict()
    xy = rng.uniform(0, 300, (20, 2))
    np.testing.assert_array_equal(again.apply(xy), transform.apply(xy))


IDENTITY = np.eye(3).tolist()
LATTICE = {"origin": [0, 0], "spacing": [8, 8], "coefficients": np.zeros((4, 5, 2)).tolist()}


@pytest.mark.parametrize(
    "content",
    [
        {},
        None,
        {"model": "shift"},
        {"matrix": IDENTITY},
        {"model": "spiral", "matrix": IDENTITY},
        {"model": ["shift"], "matrix": IDENTITY},
        {"model": "shift", "matrix": [[1, 0], [0, 1]]},
        {"model": "shift", "matrix": [[1, 0, float("nan")], [0, 1, 0], [0, 0, 1]]},
        {"model": "affine", "matrix": np.zeros((3, 3)).tolist()},
        {"model": "affine", "matrix": IDENTITY, "field": LATTICE},
        {"model": "smooth", "matrix": IDENTITY},
        {"model": "smooth", "matrix": IDENTITY, "field": {"origin": [0, 0]}},
        {"model": "smooth", "matrix": IDENTITY, "field": 3},
        {"model": "smooth", "matrix": IDENTITY, "field": {**LATTICE, "spacing": [8, 0]}},
        {"model": "smooth", "matrix": IDENTITY, "field": {**LATTICE, "spacing": [8]}},
        {"model": "smooth", "matrix": IDENTITY, "field": {**LATTICE, "origin": [0, float("inf")]}},
        {
            "model": "smooth",
            "matrix": IDENTITY,
            "field": {**LATTICE, "coefficients": np.zeros((3, 5, 2)).tolist()},
        },
        {
            "model": "smooth",
            "matrix": IDENTITY,
            "field": {**LATTICE, "coefficients": np.full((4, 5, 2), np.nan).tolist()},
        },
    ],
)
def test_what_is_no_transform_is_refused(content: dict) -> None:
    with pytest.raises(InputError) as caught:
        Transform.from_dict(content)
    assert caught.value.fix


def test_the_smallest_lattice_is_a_transform() -> None:
    found = Transform.from_dict({"model": "smooth", "matrix": IDENTITY, "field": LATTICE})
    np.testing.assert_array_equal(found.apply([[3, 4]]), [[3, 4]])


@pytest.mark.parametrize("model", MODELS)
def test_points_without_weight_are_refused(model: str, rng: np.random.Generator) -> None:
    xy = rng.uniform(0, 100, (20, 2))
    weights = np.zeros(20)
    weights[: MINIMUM_POINTS[model] - 1] = 1.0
    for few in (np.zeros(20), weights):
        with pytest.raises(InputError, match="needs"):
            fit_matrix(model, xy, xy, few)


@pytest.mark.parametrize("model", MODELS)
def test_points_that_are_nowhere_are_refused(model: str, rng: np.random.Generator) -> None:
    xy = rng.uniform(0, 100, (20, 2))
    lost = xy.copy()
    lost[3, 0] = np.nan
    for p, q, w in [(lost, xy, None), (xy, lost, None), (xy, xy, lost[:, 0]), (xy, xy, -xy[:, 0])]:
        with pytest.raises(InputError, match="finite"):
            fit_matrix(model, p, q, w)
    with pytest.raises(InputError, match="one of both"):
        fit_matrix(model, xy, xy[:5])


def test_a_field_of_weightless_samples_is_refused(rng: np.random.Generator) -> None:
    xy = rng.uniform(0, 100, (30, 2))
    area = (0.0, 0.0, 100.0, 100.0)
    for moved, weights in [(xy, np.zeros(30)), (xy * np.nan, np.ones(30))]:
        with pytest.raises(InputError, match="weights"):
            fit_field(xy, moved, weights, area=area, cells=(3, 3), stiffness=0.02)


def test_a_field_is_nan_where_the_point_is(wave_field: SplineField) -> None:
    xy = [[np.nan, 50], [60, np.nan], [np.nan, np.nan], [60, 50]]
    found = wave_field(xy)  # warnings are errors
    assert np.isnan(found[:3]).all()
    np.testing.assert_array_equal(found[3:], wave_field([[60, 50]]))
    transform = Transform("smooth", MATRICES["affine"], wave_field)
    back = transform.invert(transform.apply(xy))
    assert np.isnan(back[:3]).all()
    np.testing.assert_allclose(back[3], (60, 50), atol=1e-6)
    assert np.isnan(transform.invert(np.full((2, 2), np.nan))).all()


def test_nothing_is_mirrored_at_the_horizon() -> None:
    matrix = np.array([[1, 0, 0], [0, 1, 0], [-0.01, 0, 1.0]])
    slope = jacobian_of(matrix, [[50, 10], [100, 10], [150, 10]])
    np.testing.assert_allclose(slope[0], [[4, 0], [0.4, 2]], atol=1e-9)
    assert np.isnan(slope[1:]).all()


def test_a_homography_whose_origin_lies_behind_its_horizon_is_fitted(
    rng: np.random.Generator,
) -> None:
    # Visible where x > 100; the points are there, the origin is not.
    matrix = np.array([[1.2, 0.1, 5], [0.05, 0.9, -8], [0.01, 0, -1.0]])
    xy = rng.uniform((150, 0), (400, 300), (25, 2))
    there = apply_matrix(matrix, xy)
    assert np.isfinite(there).all()
    found = fit_matrix("homography", xy, there)
    np.testing.assert_allclose(apply_matrix(found, xy), there, atol=1e-5)
    np.testing.assert_allclose(found, matrix, atol=1e-6)
    assert np.isnan(apply_matrix(found, [[50, 10]])).all()


def test_a_unit_matrix_keeps_its_side_of_the_horizon() -> None:
    matrix = np.array([[2, 0, 0], [0, 2, 0], [0.02, 0, -2.0]])
    found = unit_matrix(matrix)
    assert found[2, 2] == -1
    xy = [[50, 1], [150, 1]]
    np.testing.assert_allclose(apply_matrix(found, xy), apply_matrix(matrix, xy))
    level = np.array([[1, 0, 0], [0, 1, 0], [0.01, 0, 0]])
    np.testing.assert_array_equal(unit_matrix(level), level)


def test_a_field_reproduces_a_smooth_function(wave_field: SplineField) -> None:
    x, y = np.meshgrid(np.linspace(15, 245, 24), np.linspace(25, 175, 16))
    xy = np.stack([x.ravel(), y.ravel()], axis=1)
    np.testing.assert_allclose(wave_field(xy), wave(xy), atol=0.03)
    assert wave_field.cells == (6, 9)


def test_a_field_is_constant_beyond_its_rectangle(wave_field: SplineField) -> None:
    for beyond, edge in [
        ((-500, 90), (10, 90)),
        ((900, 90), (250, 90)),
        ((100, -70), (100, 20)),
        ((100, 999), (100, 180)),
        ((1e6, 1e6), (250, 180)),
    ]:
        np.testing.assert_allclose(wave_field([beyond]), wave_field([edge]), atol=1e-6)


def test_the_weights_of_a_field_sum_to_one(
    wave_field: SplineField, rng: np.random.Generator
) -> None:
    index, weights = wave_field.basis(rng.uniform(-100, 400, (50, 2)))
    np.testing.assert_allclose(weights.sum(axis=1), 1.0)
    assert weights.min() >= 0
    assert index.min() >= 0
    assert index.max() < wave_field.coefficients[..., 0].size


def test_a_weightless_sample_does_not_bend_a_field(rng: np.random.Generator) -> None:
    xy = rng.uniform(0, 100, (300, 2))
    moved = np.tile([1.0, -2.0], (300, 1))
    weights = np.ones(300)
    moved[7], weights[7] = (80, 80), 0.0
    area = (0.0, 0.0, 100.0, 100.0)
    field = fit_field(xy, moved, weights, area=area, cells=(3, 3), stiffness=0.02)
    np.testing.assert_allclose(field(xy), np.tile([1.0, -2.0], (300, 1)), atol=1e-3)


def test_stiffness_flattens_a_field_towards_a_plane(rng: np.random.Generator) -> None:
    xy = rng.uniform(0, 100, (200, 2))
    moved = rng.normal(0, 1, (200, 2))
    area = (0.0, 0.0, 100.0, 100.0)

    def bend(stiffness: float) -> float:
        field = fit_field(xy, moved, np.ones(200), area=area, cells=(5, 5), stiffness=stiffness)
        return float(np.abs(np.diff(field.coefficients, 2, axis=0)).max())

    assert bend(1e3) < 0.01 < bend(1e-3)


def test_the_jacobian_is_the_derivative(rng: np.random.Generator) -> None:
    xy = rng.uniform(0, 300, (10, 2))
    matrix, step = MATRICES["homography"], 1e-4
    numeric = np.stack(
        [
            (apply_matrix(matrix, xy + d) - apply_matrix(matrix, xy - d)) / (2 * step)
            for d in np.eye(2) * step
        ],
        axis=2,
    )
    np.testing.assert_allclose(jacobian_of(matrix, xy), numeric, atol=1e-6)


@given(angle=st.floats(-179, 179), scale=st.floats(0.2, 5))
def test_rotation_and_scale_are_read_from_a_similarity(angle: float, scale: float) -> None:
    c, s = scale * np.cos(np.deg2rad(angle)), scale * np.sin(np.deg2rad(angle))
    matrix = np.array([[c, -s, 3], [s, c, -8], [0, 0, 1.0]])
    np.testing.assert_allclose(rotation_scale_of(matrix, (10, 20)), (angle, scale), atol=1e-9)
    rotation, scale = rotation_scale_of(matrix @ np.diag([1.0, -1.0, 1.0]), (10, 20))
    assert np.isnan(rotation)  # a mirror image has none
    assert scale > 0
