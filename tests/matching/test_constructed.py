"""Constructed truth: images move as their matrices say, and resampling adds no error of its own."""

import numpy as np
import pytest

from rsfuse.matching.constructed import (
    Box,
    Motion,
    crop,
    disjoint_windows,
    pair_generator,
    pixel_centres,
    resample,
    subpixel_motion,
    turned_window,
    upright_motion,
)
from rsfuse.matching.metrics import centre_placement, grid_errors, transform_points


def waves(xy: np.ndarray) -> np.ndarray:
    """A band-limited scene: its value is known at every position."""
    x, y = xy[..., 0], xy[..., 1]
    return 2 + np.sin(0.9 * x + 0.4 * y) + np.cos(0.5 * x - 1.1 * y + 1)


def scene(h: int, w: int) -> np.ndarray:
    return waves(pixel_centres((h, w))).astype(np.float32)[None]


def test_resampling_at_pixel_centres_changes_nothing(rng: np.random.Generator) -> None:
    image = rng.random((2, 9, 12)).astype(np.float32)
    assert resample(image, pixel_centres((9, 12))) == pytest.approx(image, abs=1e-6)


def test_resampling_between_pixels_is_exact_for_a_band_limited_scene(
    rng: np.random.Generator,
) -> None:
    xy = rng.uniform(10, 50, (20, 30, 2))
    assert resample(scene(60, 60), xy)[0] == pytest.approx(waves(xy), abs=2e-4)


def test_resampling_outside_is_not_a_number() -> None:
    xy = np.array([[[-0.1, 5.0], [5.0, 10.1], [0.0, 0.0]]])
    assert np.isnan(resample(scene(10, 10), xy))[0, 0].tolist() == [True, True, False]


def test_resampling_keeps_to_the_range_of_the_image() -> None:
    image = np.zeros((1, 20, 20), dtype=np.float32)
    image[0, 10, 10] = 100.0
    moved = resample(image, pixel_centres((20, 20)) + 0.5)
    assert moved[np.isfinite(moved)].min() >= 0.0


def test_convention_motion_matrix_moves_content_from_corner_to_corner() -> None:
    # A quarter turn clockwise of a 4 x 4 image: what is at its left edge comes to its top edge.
    motion = Motion(90.0, 1.0, 2.0, 2.0, 4, 4)
    corners = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    expected = np.array([[4.0, 0.0], [4.0, 4.0], [0.0, 0.0]])
    assert transform_points(motion.matrix, corners) == pytest.approx(expected)


def test_moved_image_equals_a_quarter_turn_by_indexing(rng: np.random.Generator) -> None:
    image = rng.random((1, 8, 8)).astype(np.float32)
    turned = Motion(90.0, 1.0, 4.0, 4.0, 8, 8).apply(image)
    assert turned[0] == pytest.approx(np.rot90(image[0], -1), abs=1e-5)


def test_moved_image_shows_the_scene_where_the_matrix_says(rng: np.random.Generator) -> None:
    motion = Motion(33.0, 1.0, 41.3, 37.7, 30, 34)
    moved = motion.apply(scene(80, 80))
    source = transform_points(np.linalg.inv(motion.matrix), pixel_centres((30, 34)).reshape(-1, 2))
    assert moved[0].ravel() == pytest.approx(waves(source), abs=2e-4)


def test_turned_window_lies_inside_and_knowing_nothing_does_not_help() -> None:
    misses = []
    for number in range(50):
        motion = turned_window((400, 640), pair_generator(0, str(number), "test"))
        corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * [motion.width, motion.height]
        source = transform_points(np.linalg.inv(motion.matrix), corners)
        assert (source > -1e-6).all()
        assert (source < np.array([640, 400]) + 1e-6).all()
        shape1 = (motion.height, motion.width)
        nothing = centre_placement((400, 640), shape1)
        misses.append(grid_errors(nothing, motion.matrix, (400, 640), shape1).mean())
    assert np.median(misses) > 50


def test_upright_motion_leaves_a_shift_only() -> None:
    a = np.deg2rad(50)
    truth = np.eye(3)
    truth[:2, :2] = 1.4 * np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    truth[:2, 2] = [30, -20]
    motion = upright_motion(truth, (100, 120), (256, 256), pair_generator(0, "a", "test"))
    left = motion.matrix @ truth
    assert left[:2, :2] == pytest.approx(np.eye(2), abs=1e-9)
    assert np.abs(left[:2, 2]).max() <= 10
    assert (motion.height, motion.width) == (100, 120)


def test_motion_depends_on_seed_and_name_alone() -> None:
    first = turned_window((100, 100), pair_generator(0, "a", "window"))
    assert turned_window((100, 100), pair_generator(0, "a", "window")) == first
    assert turned_window((100, 100), pair_generator(1, "a", "window")) != first
    assert turned_window((100, 100), pair_generator(0, "b", "window")) != first


@pytest.mark.parametrize("is_smooth", [False, True])
def test_subpixel_target_inverts_source(rng: np.random.Generator, is_smooth: bool) -> None:
    motion = subpixel_motion(1, 4, rng, is_smooth=is_smooth)
    xy = rng.uniform(0, 300, (50, 2))
    assert motion.source(motion.target(xy)) == pytest.approx(xy, abs=1e-9)


def test_subpixel_motion_shows_the_scene_where_target_says(rng: np.random.Generator) -> None:
    motion = subpixel_motion(1, 4, rng, is_smooth=True)
    moved = motion.apply(scene(90, 100))
    assert moved.shape == (1, 90 - 32, 100 - 32)
    source = motion.source(pixel_centres(moved.shape[1:]).reshape(-1, 2))
    assert moved[0].ravel() == pytest.approx(waves(source), abs=2e-4)


def test_subpixel_versions_spread_their_fractions_over_the_pixel() -> None:
    rng = np.random.default_rng(0)
    fractions = [subpixel_motion(k, 4, rng, is_smooth=False).shift_px[0] % 1 for k in range(4)]
    assert [int(4 * fraction) for fraction in fractions] == [0, 1, 2, 3]


@pytest.mark.parametrize("angle_deg", [0.0, 20.0, 75.0, 180.0])
def test_disjoint_windows_share_no_ground(angle_deg: float) -> None:
    truth = Motion(angle_deg, 0.8, 100.0, 75.0, 160, 200).matrix
    windows = disjoint_windows(truth, (150, 200), (160, 200))
    (x0, y0, w0, h0), (x1, y1, w1, h1) = windows
    centres = pixel_centres((h1, w1)).reshape(-1, 2) + np.array([x1, y1])
    back = transform_points(np.linalg.inv(truth), centres)
    inside = (back > [x0, y0]).all(axis=1) & (back < [x0 + w0, y0 + h0]).all(axis=1)
    assert not inside.any()
    assert w1 * h1 > 160 * 200 / 8


def test_crop_takes_the_window_in_x_y_w_h() -> None:
    image = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    assert crop(image, Box(1, 2, 2, 1)).tolist() == [[[9.0, 10.0]]]
