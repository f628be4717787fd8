"""One placement judged by whole images, and polished by them."""

import cv2
import numpy as np
import pytest

from rsfuse.geo.raster import open_raster
from rsfuse.matching.overlay import View, correlate, polished, views
from rsfuse.matching.reader import pair_reader
from rsfuse.matching.trust import presence
from rsfuse.ops.geometry2d import apply_matrix, for_opencv

SIDE = 240


def ground(seed: int) -> np.ndarray:
    """Overlapping boxes in random directions, (H, W)."""
    rng = np.random.default_rng(seed)
    image = np.zeros((SIDE, SIDE), np.float32)
    for _ in range(60):
        corner, size = rng.integers(0, SIDE, 2), rng.integers(12, 70, 2)
        angle = float(rng.uniform(0, 90))
        box = cv2.boxPoints((tuple(map(float, corner)), tuple(map(float, size)), angle))
        cv2.fillPoly(image, [box.astype(np.int32)], float(rng.uniform(0.1, 1.0)))
    return cv2.GaussianBlur(image, (0, 0), 1.0)


def seen(first: np.ndarray, second: np.ndarray) -> list[View]:
    pair, _, _ = pair_reader(open_raster(first), open_raster(second))
    assert pair is not None
    return views(pair, pair.base)


def test_the_same_ground_stands_out_and_strangers_do_not() -> None:
    noise = np.random.default_rng(0)
    for seed in range(4):
        image = ground(seed)
        other = 1 - image**2 + 0.1 * noise.normal(size=image.shape).astype(np.float32)
        assert presence(correlate(seen(image, other)).standing_out) > 0.9
        assert presence(correlate(seen(image, ground(seed + 10))).standing_out) < 0.5


def test_a_shift_beyond_two_pixels_does_not_count_as_in_place() -> None:
    image = ground(1)
    at_home, away = (correlate(seen(image, np.roll(image, s, 1))) for s in (0, 9))
    assert at_home.standing_out > away.standing_out + 2
    assert np.abs(at_home.shift).max() < 0.1


@pytest.mark.parametrize("shift", [(0.0, 0.0), (1.4, -2.3), (-0.5, 0.25)])
def test_the_shift_to_the_peak_is_found_in_fractions_of_a_pixel(
    shift: tuple[float, float],
) -> None:
    image = ground(4)
    there = np.array([[1, 0, shift[0]], [0, 1, shift[1]]])
    moved = cv2.warpAffine(
        image, there, (SIDE, SIDE), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
    )
    assert np.abs(correlate(seen(image, moved)).shift - shift).max() < 0.15


@pytest.mark.parametrize(
    ("turn_deg", "scale", "shift"), [(0.6, 1.0, (2.0, -1.5)), (0, 1.01, (0, 2))]
)
def test_a_small_turn_scale_and_shift_is_found(
    turn_deg: float, scale: float, shift: tuple[float, float]
) -> None:
    image = ground(2)
    truth = np.eye(3)
    truth[:2] = cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), turn_deg, scale)
    truth[:2, 2] += shift
    there = for_opencv(truth)[:2]
    moved = cv2.warpAffine(image, there, (SIDE, SIDE), borderMode=cv2.BORDER_REFLECT)
    found = polished(seen(image, moved), (SIDE, SIDE))
    points = np.random.default_rng(3).uniform(20, SIDE - 20, (20, 2))
    gap = np.hypot(*(apply_matrix(found, points) - apply_matrix(truth, points)).T)
    before = np.hypot(*(points - apply_matrix(truth, points)).T)
    assert gap.max() < 1.5
    assert gap.mean() < 0.4 * before.mean()


def test_nothing_is_said_of_flat_or_tiny_images() -> None:
    flat = np.zeros((SIDE, SIDE), np.float32)
    assert correlate(seen(flat, flat)).standing_out == 0
    assert seen(flat[:40, :40], flat[:40, :40]) == []
    assert correlate([]).standing_out == 0


def test_only_the_part_that_is_asked_for_is_looked_at() -> None:
    image = ground(5)
    half = image.copy()
    half[:, SIDE // 2 :] = ground(6)[:, SIDE // 2 :]
    pair, _, _ = pair_reader(open_raster(image), open_raster(half))
    assert pair is not None
    sides = [(0.0, 0.0, 120.0, 240.0), (120.0, 0.0, 120.0, 240.0)]
    shared, other = (correlate(views(pair, pair.base, area=part)).standing_out for part in sides)
    assert shared > other + 4
    (view,) = views(pair, pair.base, factors=(1.5,), area=sides[1])
    assert view.factor == 1.5
    assert view.rects == [sides[1]]
    assert view.windows[0][0].shape[1:] == (160, 80)
