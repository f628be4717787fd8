"""From a placement back to query pixels, whatever the georeference."""

import numpy as np
import pytest

from rsfuse.geo.raster import open_raster
from rsfuse.matching.reader import compose, pair_reader
from rsfuse.ops.geometry2d import SplineField, Transform, apply_matrix

SIDE = 200
PROJECTIVE = np.array([[1.1, 0.1, 5.0], [-0.1, 1.2, 3.0], [4e-4, -2e-4, 1.0]])
BEHIND = np.array([[1.0, 0, 0], [0, 1, 0], [1e-2, 0, -1.0]])  # its origin is not seen


def bent(rng: np.random.Generator) -> Transform:
    base = np.array([[1.0, 0.02, 4.0], [-0.02, 1.0, -3.0], [0, 0, 1]])
    field = SplineField((0.0, 0.0), (25.0, 25.0), rng.normal(size=(11, 11, 2)))
    return Transform("smooth", base, field)


@pytest.mark.parametrize(
    ("prior", "tolerance"),
    [(np.diag([2.0, 2.0, 1.0]), 1e-9), (2 * np.diag([2.0, 2.0, 1.0]), 1e-9), (PROJECTIVE, 0.02)],
)
@pytest.mark.parametrize("has_field", [False, True])
def test_a_placement_and_a_prior_are_one_transform(
    rng: np.random.Generator, prior: np.ndarray, tolerance: float, has_field: bool
) -> None:
    image = open_raster(np.zeros((SIDE, SIDE)))
    placed = bent(rng) if has_field else Transform("rigid", bent(rng).base)
    pair, linear, _ = pair_reader(image, image, prior=prior)
    assert pair is not None
    found = compose(placed, pair, linear)
    xy = rng.uniform(10, SIDE - 10, (100, 2))
    there = apply_matrix(prior, placed.apply(xy))
    np.testing.assert_allclose(found.apply(xy), there, atol=tolerance)


def test_a_prior_whose_origin_lies_behind_the_horizon_keeps_its_side(
    rng: np.random.Generator,
) -> None:
    image = open_raster(np.zeros((SIDE, SIDE)))
    pair, linear, _ = pair_reader(image, image, prior=BEHIND)
    assert pair is not None
    found = compose(Transform("shift", np.eye(3)), pair, linear)
    xy = rng.uniform(110, 190, (20, 2))
    np.testing.assert_allclose(found.apply(xy), apply_matrix(BEHIND, xy))
    assert np.isfinite(found.apply(xy)).all()
