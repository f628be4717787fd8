"""Windows: pixels, boxes and headings move alike, and boxes are never cut."""

import math

import numpy as np
import numpy.typing as npt
import pytest

from rsfuse.detection.augment import (
    Jitter,
    cut,
    moved,
    other_light,
    random_window,
    turned,
    visible_share,
    window_matrix,
)
from rsfuse.detection.views import TrainImage, View, mosaic, window_view
from rsfuse.ops.boxes import corners_of, from_corners


def test_a_plain_window_is_the_crop() -> None:
    image = np.random.default_rng(0).integers(0, 255, (3, 60, 80)).astype(np.uint8)
    matrix = window_matrix(32, (40, 30), 1.0, 0.0, False)
    np.testing.assert_array_equal(cut(image, matrix, 32), image[:, 14:46, 24:56])


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_quarter_turn_moves_no_pixel_between_pixels(turns: int) -> None:
    image = np.random.default_rng(0).random((1, 40, 40)).astype(np.float32)
    matrix = window_matrix(40, (20, 20), 1.0, turns * math.pi / 2, False)
    # The window turned clockwise in the image shows the image turned the other way.
    np.testing.assert_allclose(cut(image, matrix, 40)[0], np.rot90(image[0], turns), atol=1e-5)


def test_a_mirrored_window_is_the_mirrored_crop() -> None:
    image = np.random.default_rng(0).random((1, 40, 40)).astype(np.float32)
    matrix = window_matrix(40, (20, 20), 1.0, 0.0, True)
    np.testing.assert_allclose(cut(image, matrix, 40)[0], image[0, :, ::-1], atol=1e-5)


@pytest.mark.parametrize(
    ("scale", "angle", "mirrored"), [(1, 0.3, False), (1.6, 2, True), (0.8, -0.7, True)]
)
def test_each_pixel_comes_from_where_the_matrix_says(
    scale: float, angle: float, mirrored: bool
) -> None:
    y, x = np.mgrid[0.5:300, 0.5:300]
    matrix = window_matrix(60, (150, 140), scale, angle, mirrored)
    found = cut(np.stack([x, y]).astype(np.float32), matrix, 60)
    row, column = np.mgrid[0.5:60, 0.5:60]
    expected = np.einsum("ij,jhw->ihw", matrix[:, :2], np.stack([column, row]))
    expected += matrix[:, 2, None, None]
    # OpenCV places samples on a grid of 1/32 pixel.
    assert np.abs(found - expected).max() < 1 / 32


@pytest.mark.parametrize("bands", [1, 3, 5])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_only_the_part_in_view_is_read(bands: int, kind: type) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (bands, 150, 190)).astype(kind)
    for scale in (0.4, 1.3):
        matrix = window_matrix(48, (60, 70), scale, 0.6, False)
        whole = cut(image, matrix, 48)
        assert whole.shape == (bands, 48, 48)
        # What is far from the window has no say.
        other = image.copy()
        reach = math.ceil(24 * math.sqrt(2) / scale + 20)
        far = np.ones(image.shape[1:], bool)
        far[max(70 - reach, 0) : 70 + reach, max(60 - reach, 0) : 60 + reach] = False
        other[:, far] = 0
        assert far.any()
        np.testing.assert_array_equal(cut(other, matrix, 48), whole)


def test_a_window_beside_the_image_is_empty() -> None:
    image = np.full((2, 30, 30), 9, np.uint8)
    found = cut(image, window_matrix(16, (-500, 10), 1.0, 0.3, False), 16)
    assert found.shape == (2, 16, 16)
    assert not found.any()


def test_windows_move_pixels_and_boxes_alike() -> None:
    image = np.zeros((1, 80, 100), np.uint8)
    image[0, 30:34, 60:72] = 200  # a bar of 12 x 4 around (66, 32)
    corners = corners_of(np.array([[66.0, 32, 12, 4, 0.0]]))
    seen = 0
    for seed in range(12):
        random = np.random.default_rng(seed)
        jitter = Jitter(scale=(0.8, 2.0), focus=1.0)
        matrix = random_window(random, 64, (80, 100), corners.mean(axis=1), jitter)
        pixels = cut(image, matrix, 64)[0]
        shape = moved(corners, matrix)[0]
        if visible_share(shape[None], 64)[0] < 0.999:
            continue
        seen += 1
        weight = pixels / pixels.sum()
        y, x = np.mgrid[0.5:64, 0.5:64]
        middle = np.array([(x * weight).sum(), (y * weight).sum()])
        np.testing.assert_allclose(middle, shape.mean(axis=0), atol=0.2)
        spread = np.cov(np.stack([x.ravel(), y.ravel()]), aweights=weight.ravel())
        longest = np.linalg.eigh(spread)[1][:, 1]
        angle = from_corners(shape[None])[0, 4]
        assert abs(longest @ (math.cos(angle), math.sin(angle))) > 0.99
    assert seen > 5


def test_a_heading_turns_with_its_box() -> None:
    box = np.array([[10.0, 12, 8, 4, 0.4]])
    front = box[:, :2] + 3 * np.array([[math.cos(0.4), math.sin(0.4)]])
    for angle, mirrored in ((0.0, False), (1.1, False), (2.5, True), (-0.8, True)):
        matrix = window_matrix(32, (11, 9), 1.4, angle, mirrored)
        points = moved(np.stack([box[:, :2], front], axis=1), matrix)[0]
        step = points[1] - points[0]
        found = turned(np.array([0.4, np.nan]), matrix)
        np.testing.assert_allclose(found[0], math.atan2(step[1], step[0]))
        assert np.isnan(found[1])


def test_a_window_knows_how_much_it_shows() -> None:
    corners = np.array(
        [[[-5, 0], [5, 0], [5, 4], [-5, 4]], [[2, 2], [4, 2], [4, 4], [2, 4]]], float
    )
    matrix = window_matrix(10, (5, 5), 1.0, 0.0, False)
    np.testing.assert_allclose(visible_share(moved(corners, matrix), 10), (0.5, 1.0))
    assert visible_share(np.zeros((0, 4, 2)), 10).shape == (0,)


STILL = Jitter(scale=(1.0, 1.0), rotation=0.0, mirror=0.0, gain=0.0, offset=0.0, focus=1.0)


def plain(pixels: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    return pixels.astype(np.float32)


def image_of(*boxes: tuple[float, ...], size: int = 64) -> TrainImage:
    rows = np.array(boxes, np.float64)
    count = len(rows)
    return TrainImage(
        np.zeros((1, size, size), np.uint8),
        corners_of(rows),
        np.zeros(count, np.int64),
        np.zeros(count, np.int64),
    )


def test_an_object_at_the_edge_keeps_its_whole_box() -> None:
    # In a window of 64 pixels over an image of 64, the box reaches over the edge by a tenth, by
    # half, and by nearly all of it.
    image = image_of((62.0, 10, 20, 6, 0.0), (64.0, 30, 20, 6, 0.0), (73.5, 50, 20, 6, 0.0))
    image = TrainImage(image.pixels, image.corners - (6, 0), image.labels, image.difficult)
    view = window_view(image, 64, np.random.default_rng(0), STILL, plain)
    sides = from_corners(view.corners)[:, 2:4]
    np.testing.assert_allclose(sides, [[20, 6]] * 3, rtol=1e-9)
    assert view.learned.tolist() == [True, True, False]
    assert view.ignored.tolist() == [False, False, True]


def test_difficult_objects_are_ignored_and_not_learned() -> None:
    image = image_of((30.0, 30, 20, 6, 0.3))
    image = TrainImage(image.pixels, image.corners, image.labels, np.array([1]))
    _, targets = window_view(image, 64, np.random.default_rng(0), STILL, plain).tensors()
    assert len(targets.boxes) == len(targets.labels) == 0
    assert targets.ignored.shape == (1, 5)


def quarter(value: float, *boxes: tuple[float, ...]) -> View:
    rows = np.array(boxes, np.float64).reshape(-1, 5)
    count = len(rows)
    return View(
        np.full((1, 8, 8), value, np.float32),
        corners_of(rows),
        np.full(count, int(value)),
        np.ones(count, bool),
        np.zeros(count, bool),
        np.full(count, 0.5),
    )


def test_a_mosaic_has_four_quarters_and_whole_boxes() -> None:
    first, last = quarter(1, (7.0, 4, 6, 2, 0.1)), quarter(4, (4.0, 4, 3, 1, 0))
    found = mosaic([first, quarter(2), quarter(3), last])
    assert found.pixels.shape == (1, 16, 16)
    assert found.pixels[0, [0, 0, 15, 15], [0, 15, 0, 15]].tolist() == [1, 2, 3, 4]
    boxes = from_corners(found.corners)
    # The first reaches over into the second quarter and stays 6 long.
    np.testing.assert_allclose(boxes[:, :4], [[7, 4, 6, 2], [12, 12, 3, 1]])
    image, targets = found.tensors()
    assert targets.labels.tolist() == [1, 4]
    assert image.shape == (1, 16, 16)
    assert targets.headings is not None
    assert targets.headings.tolist() == [0.5, 0.5]


def test_other_light_is_one_gain_and_offset_for_all_bands() -> None:
    image = np.random.default_rng(0).random((3, 8, 8)).astype(np.float32)
    found = other_light(image, np.random.default_rng(1), Jitter())
    gain, offset = np.polyfit(image.ravel(), found.ravel(), 1)
    assert gain != pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(found, image * gain + offset, atol=1e-5)
