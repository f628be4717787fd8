"""Noise: unit variance, the same by rows as whole, features of the size that was asked for."""

import numpy as np
import pytest

from rsfuse.simulate.noise import fractal, generator, noise
from rsfuse.simulate.terrain import Field


@pytest.mark.parametrize("period", [1, 3, 17, 100, 300])
def test_rows_are_parts_of_the_whole(period: float) -> None:
    field = noise((301, 203), period, generator(1, "test"))
    whole = field.full()
    assert whole.shape == (301, 203)
    parts = np.concatenate([field.rows(a, b) for a, b in ((0, 1), (1, 64), (64, 250), (250, 301))])
    np.testing.assert_allclose(parts, whole, atol=2e-5)


@pytest.mark.parametrize("period", [1, 4, 16])
def test_unit_variance(period: float) -> None:
    whole = noise((800, 800), period, generator(2, "test")).full()
    assert whole.std() == pytest.approx(1.0, abs=0.12)
    assert abs(whole.mean()) < 0.1


def test_longer_periods_are_smoother() -> None:
    steps = [
        np.abs(np.diff(fractal((400, 400), p, generator(3, "t"), octaves=1).full())).mean()
        for p in (2, 8, 32)
    ]
    assert steps[0] > 2 * steps[1] > 4 * steps[2]


def test_parts_share_no_stream() -> None:
    assert generator(1, "a").random() != generator(1, "b").random()
    assert generator(1, "a").random() == generator(1, "a").random()


def test_a_field_is_the_same_by_points_and_by_rows() -> None:
    y, x = np.mgrid[0:20, 0:30]
    plane = Field((3.0 * x + 2.0 * y), 5.0)
    rows = plane.rows((100, 150), 1.0, 40, 60)
    points = np.array([[60.5, 45.5], [71.5, 59.5]])
    np.testing.assert_allclose(plane.at(points), [rows[5, 60], rows[19, 71]], atol=1e-9)
    assert rows[1, 80] - rows[0, 80] == pytest.approx(2.0 / 5.0)
