"""Template measurement: shifts, evidence, masks and keypoints."""

import cv2
import numpy as np
import pytest

from rsfuse.matching.fine import Displacements, detect_keypoints, measure
from rsfuse.matching.structure import Structure, structure_channels

TEMPLATE, RADIUS = 24, 8
SHAPE = (112, 128)


def random_structure(rng: np.random.Generator, shape: tuple[int, int] = SHAPE) -> Structure:
    """Soft complex noise in both channels."""
    parts = rng.normal(0, 1, (4, *shape)).astype(np.float32)
    soft = [cv2.GaussianBlur(part, (0, 0), 1.5) for part in parts]
    z = np.stack([soft[0] + 1j * soft[1], soft[2] + 1j * soft[3]]).astype(np.complex64)
    return Structure(z / np.abs(z).std(), np.ones(shape, bool))


def moved(structure: Structure, dx: int, dy: int) -> Structure:
    """The content moved by whole pixels, around the border."""
    return Structure(
        np.roll(structure.z, (dy, dx), axis=(1, 2)), np.roll(structure.valid, (dy, dx), axis=(0, 1))
    )


def points() -> np.ndarray:
    """Pixel centres on a grid well inside."""
    x, y = np.meshgrid(np.arange(30, 100, 12) + 0.5, np.arange(30, 84, 12) + 0.5)
    return np.stack([x.ravel(), y.ravel()], axis=1)


def run(a: Structure, b: Structure, xy: np.ndarray | None = None) -> Displacements:
    return measure(a, b, points() if xy is None else xy, template=TEMPLATE, radius=RADIUS)


def slow_surface(a: Structure, b: Structure, x: int, y: int) -> np.ndarray:
    """Normalised correlation at every shift, straight from its definition."""
    half = TEMPLATE // 2
    own = a.z[:, y - half : y + half, x - half : x + half].astype(complex)
    surface = np.zeros((2 * RADIUS + 1, 2 * RADIUS + 1))
    for j, dy in enumerate(range(-RADIUS, RADIUS + 1)):
        for i, dx in enumerate(range(-RADIUS, RADIUS + 1)):
            seen = b.z[:, y + dy - half : y + dy + half, x + dx - half : x + dx + half]
            product = (np.conj(own) * seen).sum().real
            surface[j, i] = product / np.sqrt((abs(own) ** 2).sum() * (abs(seen) ** 2).sum())
    return surface


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (3, -2), (-6, 5), (6, 6)])
def test_whole_pixel_shifts_are_recovered(dx: int, dy: int, rng: np.random.Generator) -> None:
    one = random_structure(rng)
    found = run(one, moved(one, dx, dy))
    assert len(found.xy) == len(points())
    # The nearest whole pixel is exact; the paraboloid adds the noise of its nine values.
    np.testing.assert_array_equal(np.round(found.shift), np.tile([dx, dy], (len(found.xy), 1)))
    np.testing.assert_allclose(np.median(found.shift, axis=0), (dx, dy), atol=0.03)
    np.testing.assert_allclose(found.score, 1.0, atol=1e-4)
    assert (found.probability > 0.5).all()
    assert (found.ratio < 0.8).all()
    assert (found.height > 4).all()


@pytest.mark.parametrize(("dx", "dy"), [(0.3, -0.2), (2.5, 1.5), (-3.25, 0.75)])
def test_a_sub_pixel_shift_of_a_soft_texture(
    dx: float, dy: float, rng: np.random.Generator
) -> None:
    noise = cv2.GaussianBlur(rng.normal(0, 1, SHAPE), (0, 0), 2.5)
    ky = np.fft.fftfreq(SHAPE[0])[:, None]
    kx = np.fft.fftfreq(SHAPE[1])[None]
    ramp = np.exp(-2j * np.pi * (kx * dx + ky * dy))
    other = np.fft.ifft2(np.fft.fft2(noise) * ramp).real
    valid = np.ones(SHAPE, bool)
    a = structure_channels(noise[None].astype(np.float32), valid)
    b = structure_channels(other[None].astype(np.float32), valid)
    found = run(a, b)
    np.testing.assert_allclose(np.median(found.shift, axis=0), (dx, dy), atol=0.1)


def test_the_fourier_way_equals_the_slow_obvious_one(rng: np.random.Generator) -> None:
    one, other = random_structure(rng), random_structure(rng)
    other = Structure((one.z + 1.5 * moved(other, 0, 0).z).astype(np.complex64), other.valid)
    other = moved(other, 2, -3)
    found = run(one, other)
    assert len(found.xy) == len(points())
    for k, (x, y) in enumerate(found.xy.astype(int)):
        surface = slow_surface(one, other, x, y)
        j, i = np.unravel_index(int(surface.argmax()), surface.shape)
        assert found.score[k] == pytest.approx(surface[j, i], abs=1e-4)
        assert np.abs(found.shift[k] - (i - RADIUS, j - RADIUS)).max() <= 1
        away = np.ones_like(surface, bool)
        away[max(j - 3, 0) : j + 4, max(i - 3, 0) : i + 4] = False
        height = (surface[j, i] - surface[away].mean()) / surface[away].std()
        assert found.height[k] == pytest.approx(height, abs=0.01)
        ratio = (surface[away].max() - surface[away].mean()) / (
            surface[j, i] - surface[away].mean()
        )
        assert found.ratio[k] == pytest.approx(ratio, abs=1e-3)


def test_the_order_and_the_number_of_templates_do_not_matter(rng: np.random.Generator) -> None:
    one = random_structure(rng)
    other = moved(one, 1, 2)
    many = np.tile(points(), (4, 1))  # more than one batch
    found = run(one, other, many)
    np.testing.assert_allclose(found.shift, np.tile(run(one, other).shift, (4, 1)), atol=1e-5)
    backwards = run(one, other, points()[::-1])
    np.testing.assert_allclose(backwards.shift[::-1], run(one, other).shift, atol=1e-5)


def test_masked_templates_are_dropped(rng: np.random.Generator) -> None:
    one = random_structure(rng)
    valid = one.valid.copy()
    valid[:, :64] = False
    z = one.z * valid
    holed = Structure(z.astype(np.complex64), valid)
    for a, b in [(holed, one), (one, holed)]:
        found = run(a, b)
        assert 0 < len(found.xy) < len(points())
        # 70 % of a template may start at most 30 % of its side before the edge of the hole.
        assert found.xy[:, 0].min() >= 64 + TEMPLATE * 0.2
        for column in found:
            assert len(column) == len(found.xy)
            assert np.isfinite(column).all()


def test_points_whose_template_leaves_the_image_are_dropped(rng: np.random.Generator) -> None:
    one = random_structure(rng)
    half = TEMPLATE / 2
    xy = np.array([[half - 1, 50], [half + 0.5, 50], [50, SHAPE[0] - 1.5], [-40, 50], [500, 50]])
    found = run(one, one, xy)
    np.testing.assert_array_equal(found.xy, [[half, 50]])
    np.testing.assert_allclose(found.shift, 0, atol=0.2)


@pytest.mark.parametrize("xy", [np.zeros((0, 2)), np.array([[-5.0, -5.0]])])
def test_nothing_to_measure_gives_no_rows(xy: np.ndarray, rng: np.random.Generator) -> None:
    one = random_structure(rng)
    found = run(one, one, xy)
    assert found.xy.shape == found.shift.shape == (0, 2)
    assert all(len(column) == 0 for column in found)


@pytest.mark.parametrize("dx", [RADIUS, RADIUS + 1, -RADIUS])
def test_a_displacement_out_of_reach_has_no_probability(dx: int, rng: np.random.Generator) -> None:
    parts = rng.normal(0, 1, (2, *SHAPE)).astype(np.float32)
    soft = [cv2.GaussianBlur(part, (0, 0), 5.0) for part in parts]
    z = (soft[0] + 1j * soft[1]).astype(np.complex64)
    one = Structure(np.stack([z, z]) / np.abs(z).std(), np.ones(SHAPE, bool))
    found = run(one, moved(one, dx, 0))
    beyond = np.abs(found.shift).max(axis=1) > RADIUS - 1
    assert beyond.mean() > 0.9
    assert (found.probability[beyond] == 0).all()


def test_unrelated_images_have_little_evidence(rng: np.random.Generator) -> None:
    one, other = random_structure(rng), random_structure(rng)
    right, wrong = run(one, moved(one, 2, 1)), run(one, other)
    assert np.median(wrong.height) < 0.6 * np.median(right.height)
    assert np.median(wrong.probability) < 0.5 * np.median(right.probability)
    assert np.median(wrong.ratio) > np.median(right.ratio)


def test_rows_are_selected_in_all_columns(rng: np.random.Generator) -> None:
    found = run(random_structure(rng), random_structure(rng))
    some = found.select(np.array([3, 1]))
    for column, part in zip(found, some, strict=True):
        np.testing.assert_array_equal(part, column[[3, 1]])
    assert len(found.select(found.score > 2).xy) == 0


def test_keypoints_lie_one_in_a_cell_and_inside_the_margin(rng: np.random.Generator) -> None:
    spacing, margin = 16, 12
    xy = detect_keypoints(random_structure(rng), spacing=spacing, margin=margin)
    assert len(xy) > 10
    np.testing.assert_array_equal(xy % 1, 0.5)
    assert (xy > margin).all()
    assert (xy < np.array(SHAPE[::-1]) - margin).all()
    cells = np.floor((xy - margin) / spacing).astype(int)
    assert len(np.unique(cells, axis=0)) == len(xy)


def test_keypoints_of_one_image_do_not_know_the_other(rng: np.random.Generator) -> None:
    one, other = random_structure(rng), random_structure(rng)
    before = detect_keypoints(one, spacing=16, margin=12)
    stored = one.z.copy()
    detect_keypoints(other, spacing=16, margin=12)
    run(one, other)
    np.testing.assert_array_equal(detect_keypoints(one, spacing=16, margin=12), before)
    np.testing.assert_array_equal(one.z, stored)
    assert not np.array_equal(detect_keypoints(other, spacing=16, margin=12), before)


def test_no_keypoints_where_nothing_is_known(rng: np.random.Generator) -> None:
    one = random_structure(rng)
    valid = one.valid.copy()
    valid[:, :60] = False
    xy = detect_keypoints(
        Structure((one.z * valid).astype(np.complex64), valid), spacing=16, margin=12
    )
    assert len(xy) > 0
    assert (xy[:, 0] > 60).all()
    assert detect_keypoints(one, spacing=16, margin=60).shape == (0, 2)
    flat = Structure(np.zeros_like(one.z), one.valid)
    assert detect_keypoints(flat, spacing=16, margin=12).shape == (0, 2)


def test_a_corner_is_preferred_to_an_edge() -> None:
    image = np.zeros((1, 80, 80), np.float32)
    image[:, 40:, 40:] = 1
    structure = structure_channels(image, np.ones((80, 80), bool))
    xy = detect_keypoints(structure, spacing=56, margin=12)
    assert np.abs(xy - 40).max() < 6
