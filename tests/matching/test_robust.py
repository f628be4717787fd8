"""Robust fit: agreement among random displacements, and the simplest model that predicts."""

import numpy as np
import pytest

from rsfuse.matching import robust
from rsfuse.matching.robust import (
    BLOCKS,
    Consensus,
    Fit,
    bare_share,
    consensus,
    design_matrix,
    fit_transform,
)
from rsfuse.ops.geometry2d import Transform, apply_matrix, fit_field

AREA = (0.0, 0.0, 600.0, 480.0)
RADIUS, TOLERANCE = 12.0, 2.0
ALL = ("shift", "rigid", "similarity", "affine", "homography", "smooth")
NOISE = 0.3
C, S = np.cos(0.04), np.sin(0.04)

MATRICES = {
    "shift": np.array([[1, 0, 5.25], [0, 1, -3.5], [0, 0, 1.0]]),
    "rigid": np.array([[C, -S, 7.0], [S, C, -20.0], [0, 0, 1.0]]),
    "similarity": np.array([[1.02, -0.05, 7.0], [0.05, 1.02, -20.0], [0, 0, 1.0]]),
    "affine": np.array([[1.06, 0.05, 3.0], [-0.02, 0.93, 12.0], [0, 0, 1.0]]),
    "homography": np.array([[1.05, 0.1, -4.0], [-0.08, 0.95, 9.0], [2e-4, -1.5e-4, 1.0]]),
}


def places(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.uniform((0, 0), AREA[2:], (n, 2))


def truth(model: str, xy: np.ndarray) -> np.ndarray:
    """Where a map of the model puts points."""
    if model != "smooth":
        return apply_matrix(MATRICES[model], xy)
    x, y = xy.T
    bend = np.stack([5 * np.sin(x / 90), 4 * np.cos(y / 80 + x / 200)], axis=1)
    return apply_matrix(MATRICES["affine"], xy) + bend


def fit(
    model: str,
    rng: np.random.Generator,
    *,
    n: int = 300,
    outliers: int = 60,
    models: tuple[str, ...] = ALL,
) -> tuple[Fit, np.ndarray, np.ndarray]:
    """A fit to noisy points of a model; outliers come first."""
    xy = places(rng, n)
    there = truth(model, xy) + rng.normal(0, NOISE, (n, 2))
    angle = rng.uniform(0, 2 * np.pi, outliers)
    far = rng.uniform(12, 40, outliers)
    there[:outliers] += np.stack([far * np.cos(angle), far * np.sin(angle)], axis=1)
    found = fit_transform(xy, there, np.full(n, 0.9), area=AREA, models=models, tolerance=6.0)
    assert found is not None
    return found, xy, there


def agree(xy: np.ndarray, shift: np.ndarray, rng: np.random.Generator) -> Consensus:
    return consensus(
        xy,
        shift,
        np.ones(len(xy)),
        radius=RADIUS,
        tolerance=TOLERANCE,
        template=32,
        rng=rng,
    )


def test_consensus_finds_the_inliers_among_random_displacements(rng: np.random.Generator) -> None:
    n, right = 150, 60
    xy = places(rng, n)
    matrix = np.array([[1.01, -0.01, 2.0], [0.01, 1.01, -6.0], [0, 0, 1.0]])
    shift = rng.uniform(-RADIUS, RADIUS, (n, 2))
    shift[:right] = (apply_matrix(matrix, xy) - xy)[:right] + rng.normal(0, 0.3, (right, 2))
    found = agree(xy, shift, rng)
    assert found.inliers[:right].mean() > 0.97
    assert found.inliers[right:].mean() < 0.1
    miss = np.hypot(*(apply_matrix(found.matrix, xy) - apply_matrix(matrix, xy)).T)
    assert miss.max() < 0.6
    assert found.evidence > 10


def test_random_displacements_are_no_evidence(rng: np.random.Generator) -> None:
    evidence = []
    for _ in range(12):
        xy = places(rng, 120)
        evidence.append(agree(xy, rng.uniform(-RADIUS, RADIUS, (120, 2)), rng).evidence)
    assert np.median(evidence) < 0.5
    assert max(evidence) < 3


def test_evidence_grows_with_the_agreement(rng: np.random.Generator) -> None:
    xy = places(rng, 100)
    evidence = []
    for right in (0, 25, 50, 100):
        shift = rng.uniform(-RADIUS, RADIUS, (100, 2))
        shift[:right] = (3, -2)
        evidence.append(agree(xy, shift, rng).evidence)
    assert evidence == sorted(evidence)
    assert np.isfinite(evidence).all()


def test_overlapping_templates_are_no_independent_witnesses(rng: np.random.Generator) -> None:
    xy = places(rng, 60)
    shift = np.tile([1.0, 2.0], (60, 1))
    spread = agree(xy, shift, rng).evidence
    crowded = agree(xy / 6, shift, rng).evidence
    assert crowded < 0.3 * spread


@pytest.mark.parametrize("n", [0, 1, 5])
def test_a_handful_of_points_is_no_consensus(n: int, rng: np.random.Generator) -> None:
    found = agree(places(rng, n), np.zeros((n, 2)), rng)
    assert not found.inliers.any()
    assert found.evidence == 0
    np.testing.assert_array_equal(found.matrix, np.eye(3))


def test_consensus_of_coincident_points_does_not_fail(rng: np.random.Generator) -> None:
    found = agree(places(rng, 40), np.tile([4.0, 0.5], (40, 1)), rng)
    np.testing.assert_allclose(found.matrix[:2, 2], (4, 0.5), atol=0.01)
    assert found.inliers.all()


@pytest.mark.parametrize("model", ALL)
def test_the_model_that_made_the_data_is_chosen(model: str, rng: np.random.Generator) -> None:
    n = 900 if model == "smooth" else 300
    found, xy, _ = fit(model, rng, n=n)
    assert found.transform.model == model
    assert set(found.scores) == set(ALL)
    inside = places(rng, 200) * 0.9 + 0.05 * np.array(AREA[2:])
    miss = np.hypot(*(found.transform.apply(inside) - truth(model, inside)).T)
    assert np.median(miss) < 0.3
    assert miss.max() < 1.5
    assert len(found.inliers) == len(xy)


@pytest.mark.parametrize(("shear", "model"), [(0.006, "similarity"), (0.03, "affine")])
def test_shear_within_the_scatter_is_no_affine_map(
    shear: float, model: str, rng: np.random.Generator
) -> None:
    """What terrain does to radar looks like a little shear; a skewed image has more of it."""
    xy = places(rng, 500)
    matrix = MATRICES["similarity"] @ np.array([[1, shear, 0], [0, 1, 0], [0, 0, 1.0]])
    there = apply_matrix(matrix, xy) + rng.normal(0, 1.0, (500, 2))
    there[:200] += rng.uniform(-5, 5, (200, 2))
    found = fit_transform(xy, there, np.full(500, 0.9), area=AREA, models=ALL, tolerance=3.0)
    assert found is not None
    assert found.transform.model == model


@pytest.mark.parametrize("model", ALL)
def test_outliers_are_not_kept(model: str, rng: np.random.Generator) -> None:
    found, _, _ = fit(model, rng, n=900 if model == "smooth" else 300)
    assert not found.inliers[:60].any()
    assert found.inliers[60:].mean() > 0.9


@pytest.mark.parametrize(
    "model",
    [
        "shift",
        "rigid",
        "similarity",
        "affine",
        "homography",
    ],
)
def test_the_held_out_error_is_close_to_the_noise(model: str, rng: np.random.Generator) -> None:
    found, xy, there = fit(model, rng)
    kept = found.held_out[found.inliers]
    assert np.isfinite(kept).all()
    rms = float(np.sqrt(np.mean(kept**2)))
    assert rms == pytest.approx(NOISE * np.sqrt(2), rel=0.15)
    assert found.scale == pytest.approx(NOISE, rel=0.2)
    np.testing.assert_allclose(found.residual, there - found.transform.apply(xy))
    # A point that the fit did not see is predicted worse than one that it saw.
    assert rms > np.sqrt((found.residual[found.inliers] ** 2).sum(axis=1).mean())


def test_what_was_not_kept_has_no_held_out_error(rng: np.random.Generator) -> None:
    found, _, _ = fit("affine", rng)
    assert np.isnan(found.held_out[~found.inliers]).all()


def test_only_allowed_models_are_tried(rng: np.random.Generator) -> None:
    found, _, _ = fit("shift", rng, models=("similarity", "affine"))
    assert set(found.scores) == {"similarity", "affine"}
    assert found.transform.model == "similarity"
    assert found.covariance.shape == (4, 4)


@pytest.mark.parametrize("model", ["shift", "rigid", "similarity", "affine", "homography"])
def test_the_covariance_describes_the_scatter_of_fits(model: str, rng: np.random.Generator) -> None:
    xy = places(rng, 40)
    errors, variances = [], []
    middle = np.array([[300.0, 240.0]])
    for _ in range(25):
        there = truth(model, xy) + rng.normal(0, NOISE, xy.shape)
        found = fit_transform(xy, there, np.ones(40), area=AREA, models=(model,), tolerance=6.0)
        assert found is not None
        errors.append((found.transform.apply(middle) - truth(model, middle))[0])
        design = design_matrix(found.transform, middle)[0]
        variances.append(np.diag(design @ found.covariance @ design.T))
    ratio = np.mean(np.square(errors)) / np.mean(variances)
    assert 0.4 < ratio < 2.2


@pytest.mark.parametrize("model", ["shift", "rigid", "similarity", "affine", "homography"])
def test_the_design_matrix_is_the_derivative_by_the_parameters(
    model: str, rng: np.random.Generator
) -> None:
    xy = places(rng, 5)
    step = 1e-6
    base = MATRICES[model]
    directions = {
        "shift": [{2: 1}, {5: 1}],
        "rigid": [{0: -S, 1: -C, 3: C, 4: -S}, {2: 1}, {5: 1}],
        "similarity": [{0: 1, 4: 1}, {1: -1, 3: 1}, {2: 1}, {5: 1}],
    }.get(model, [{k: 1} for k in range(6 if model == "affine" else 8)])
    numeric = []
    for direction in directions:
        change = np.zeros(9)
        for entry, amount in direction.items():
            change[entry] = amount * step
        high = apply_matrix(base + change.reshape(3, 3), xy)
        low = apply_matrix(base - change.reshape(3, 3), xy)
        numeric.append((high - low) / (2 * step))
    design = design_matrix(Transform(model, base), xy)
    np.testing.assert_allclose(design, np.stack(numeric, axis=2), rtol=1e-4, atol=1e-3)


def test_too_few_tie_points_give_no_fit(rng: np.random.Generator) -> None:
    xy = places(rng, 2)
    found = fit_transform(xy, xy, np.ones(2), area=AREA, models=ALL, tolerance=6.0)
    assert found is None


def test_hopeless_weights_give_no_fit(rng: np.random.Generator) -> None:
    xy = places(rng, 50)
    found = fit_transform(xy, xy, np.zeros(50), area=AREA, models=ALL, tolerance=6.0)
    assert found is None


def test_few_tie_points_do_not_carry_a_field(rng: np.random.Generator) -> None:
    found, _, _ = fit("smooth", rng, n=60, outliers=0)
    assert "smooth" not in found.scores


def test_a_field_begins_with_the_tie_points_near_where_it_was(rng: np.random.Generator) -> None:
    """A bend far from any affine map is kept whole once a field has come near it."""
    xy = places(rng, 900)
    bend = 40 * np.stack([np.sin(xy[:, 1] / 100), np.cos(xy[:, 0] / 110)], axis=1)
    there = xy + bend + rng.normal(0, NOISE, xy.shape)
    near = fit_field(xy, bend + 4.0, np.ones(900), area=AREA, cells=(8, 8), stiffness=1e-3)
    start = Transform("smooth", np.eye(3), near)
    weights = np.full(900, 0.9)
    assert fit_transform(xy, there, weights, area=AREA, models=ALL, tolerance=3.0) is None
    found = fit_transform(xy, there, weights, area=AREA, models=ALL, tolerance=3.0, start=start)
    assert found is not None
    assert found.transform.model == "smooth"
    assert found.inliers.mean() > 0.9
    assert np.median(np.hypot(*(found.transform.apply(xy) - xy - bend).T)) < 2 * NOISE


def test_bare_blocks_are_those_without_a_kept_tie_point(rng: np.random.Generator) -> None:
    xy = places(rng, 2000)
    assert bare_share(xy, np.ones(2000, bool), AREA) == 0
    assert bare_share(xy, rng.random(2000) < 0.3, AREA) < 0.05
    left = xy[:, 0] < AREA[2] / 3
    assert bare_share(xy, left, AREA) == pytest.approx(2 / 3)
    one = (xy < np.array(AREA[2:]) / BLOCKS).all(axis=1)
    assert bare_share(xy, ~one, AREA) == pytest.approx(1 / BLOCKS**2)
    assert bare_share(xy[:3], np.zeros(3, bool), AREA) == 0  # too few to tell


def test_the_same_generator_gives_the_same_fit() -> None:
    one, _, _ = fit("affine", np.random.default_rng(5))
    two, _, _ = fit("affine", np.random.default_rng(5))
    np.testing.assert_array_equal(one.transform.base, two.transform.base)
    np.testing.assert_array_equal(one.held_out, two.held_out)


def test_a_field_gives_way_to_a_matrix_that_does_as_well(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model in ("affine", "homography"):  # passed over on the way to the field
        monkeypatch.setitem(robust.MODEL_GAIN, model, 0.0)
        monkeypatch.setitem(robust.EXPLAINS_MORE, model, 1e9)
    assert fit("affine", rng, n=900)[0].transform.model == "affine"
    assert fit("smooth", rng, n=900)[0].transform.model == "smooth"
