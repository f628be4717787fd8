"""Area averages: exact coverage, valid pixels only."""

import numpy as np
import pytest

from rsfuse.geo.reduce import average, cover


def reduced(image: np.ndarray, valid: np.ndarray, size: tuple[int, int]) -> tuple:
    h, w = valid.shape
    return average(image, valid, cover(0, h, size[0], h), cover(0, w, size[1], w))


def test_cover_is_the_length_that_pixels_share() -> None:
    found = cover(0.0, 5.0, 2, 5)
    expected = [[1, 1, 0.5, 0, 0], [0, 0, 0.5, 1, 1]]
    np.testing.assert_allclose(found.weights.toarray(), expected)
    assert (found.first, found.stop, found.length) == (0, 5, 2.5)


def test_cover_ends_at_the_axis() -> None:
    found = cover(-2.0, 6.0, 4, 5)
    assert (found.first, found.stop) == (0, 5)
    np.testing.assert_allclose(found.weights.toarray().sum(axis=1), [0, 2, 2, 1])


def test_cover_outside_of_the_axis_is_empty() -> None:
    for start, stop in ((7.0, 9.0), (-5.0, -1.0)):
        found = cover(start, stop, 2, 5)
        assert found.stop == found.first
        assert found.weights.nnz == 0


def test_rows_of_a_cover_touch_only_what_they_need() -> None:
    found = cover(0.0, 12.0, 4, 12).rows(1, 3)
    assert (found.first, found.stop) == (3, 9)
    np.testing.assert_allclose(found.weights.toarray(), np.kron(np.eye(2), np.ones(3)))


def test_edges_that_rounding_moves_take_no_share_of_the_next_pixel() -> None:
    found = cover(0.1 + 0.2 - 0.3, 3 * 1.1 / 1.1, 3, 3)  # 5.6e-17 to 3.0000000000000004
    np.testing.assert_array_equal(found.weights.toarray(), np.eye(3))


@pytest.mark.parametrize("size", [(4, 6), (3, 5), (1, 1), (8, 12)])
def test_constant_stays_constant(size: tuple[int, int]) -> None:
    image, valid = np.full((2, 8, 12), 7, np.float32), np.ones((8, 12), bool)
    means, usable = reduced(image, valid, size)
    assert usable.all()
    np.testing.assert_allclose(means, 7, rtol=1e-6)


def test_invalid_pixels_take_no_part() -> None:
    image = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    valid = np.ones((4, 4), bool)
    valid[0, 0] = False
    image[:, ~valid] = 0
    means, usable = reduced(image, valid, (2, 2))
    assert usable.all()
    np.testing.assert_allclose(means[0], [[(1 + 4 + 5) / 3, 4.5], [10.5, 12.5]])
