"""Structure channels: what a change of sensor must not change, and what it must."""

import cv2
import numpy as np
import pytest

from rsfuse.matching.structure import structure_channels


def texture(rng: np.random.Generator, shape: tuple[int, int] = (72, 96)) -> np.ndarray:
    """A symmetric grey texture with edges of all directions, (1, H, W) float32."""
    noise = rng.normal(0, 1, shape).astype(np.float32)
    soft = cv2.GaussianBlur(noise, (0, 0), 3.0)
    return (np.tanh(3 * soft / soft.std()) + 0.05 * noise)[None].astype(np.float32)


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Normalised correlation of two channel stacks."""
    product = (np.conj(a) * b).sum().real
    return float(product / np.sqrt((np.abs(a) ** 2).sum() * (np.abs(b) ** 2).sum()))


def everywhere(image: np.ndarray) -> np.ndarray:
    return np.ones(image.shape[1:], bool)


def test_inverted_polarity_leaves_the_channels_unchanged(rng: np.random.Generator) -> None:
    image = texture(rng)
    upright = structure_channels(image, everywhere(image))
    inverted = structure_channels(1 - image, everywhere(image))
    np.testing.assert_allclose(inverted.z, upright.z, atol=2e-3)


def test_gain_and_offset_leave_the_channels_unchanged(rng: np.random.Generator) -> None:
    image = texture(rng)
    plain = structure_channels(image, everywhere(image))
    stretched = structure_channels(250 * image + 1000, everywhere(image))
    np.testing.assert_allclose(stretched.z, plain.z, atol=5e-3)


@pytest.mark.parametrize("power", [0.5, 2.0])
def test_a_monotone_contrast_change_leaves_them_nearly_unchanged(
    power: float, rng: np.random.Generator
) -> None:
    image = texture(rng)
    unit = (image - image.min()) / np.ptp(image)
    plain = structure_channels(unit, everywhere(unit))
    bent = structure_channels((unit**power).astype(np.float32), everywhere(unit))
    assert agreement(plain.z, bent.z) > 0.95


def test_other_content_does_not_agree(rng: np.random.Generator) -> None:
    one, two = texture(rng), texture(rng)
    a = structure_channels(one, everywhere(one))
    b = structure_channels(two, everywhere(two))
    assert abs(agreement(a.z, b.z)) < 0.15


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_turn_the_double_angle_by_half_a_circle(
    turns: int, rng: np.random.Generator
) -> None:
    image = texture(rng)
    upright = structure_channels(image, everywhere(image)).z
    turned = np.ascontiguousarray(np.rot90(image, turns, axes=(1, 2)))
    found = structure_channels(turned, everywhere(turned)).z
    expected = np.rot90(upright, turns, axes=(1, 2)).copy()
    expected[0] *= (-1) ** turns
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_the_phase_is_twice_the_direction_of_the_gradient() -> None:
    y, x = np.mgrid[0:64, 0:64].astype(np.float32)
    for degrees in (0, 30, 80, 140):
        angle = np.deg2rad(degrees)
        ramp = np.sin((x * np.cos(angle) + y * np.sin(angle)) / 4).astype(np.float32)[None]
        z = structure_channels(ramp, everywhere(ramp)).z[:, 20:-20, 20:-20]
        for k, order in enumerate((2, 4)):
            off = np.angle(z[k].sum() * np.exp(-1j * order * angle))
            assert abs(off) < 0.05


def test_invalid_pixels_are_zero(rng: np.random.Generator) -> None:
    image = texture(rng)
    valid = everywhere(image)
    valid[20:40, 30:60] = False
    image[:, ~valid] = np.nan
    structure = structure_channels(image, valid)
    assert np.isfinite(structure.z).all()
    assert (structure.z[:, ~valid] == 0).all()
    assert not structure.valid[~valid].any()
    # The gradient next to a hole is not known either.
    assert not structure.valid[19, 40]
    assert (structure.z[:, ~structure.valid] == 0).all()
    assert structure.valid[5, 5]


def test_what_hides_behind_a_mask_does_not_matter(rng: np.random.Generator) -> None:
    image = texture(rng)
    valid = everywhere(image)
    valid[10:30, 50:80] = False
    other = np.where(valid, image, np.float32(1e6))
    np.testing.assert_array_equal(
        structure_channels(image, valid).z, structure_channels(other, valid).z
    )


def test_nothing_valid_gives_nothing() -> None:
    image = np.full((1, 24, 32), np.nan, np.float32)
    structure = structure_channels(image, np.zeros((24, 32), bool))
    assert (structure.z == 0).all()
    assert not structure.valid.any()


@pytest.mark.parametrize("level", [0.0, 7.0, -3e5])
def test_a_flat_image_gives_finite_values_without_structure(level: float) -> None:
    image = np.full((2, 40, 50), level, np.float32)
    structure = structure_channels(image, np.ones((40, 50), bool))
    assert structure.z.dtype == np.complex64
    assert np.isfinite(structure.z).all()
    assert np.abs(structure.z).max() < 1e-3


def test_a_long_tail_is_taken_by_its_logarithm(rng: np.random.Generator) -> None:
    amplitude = texture(rng)
    radar = np.exp(2.0 * amplitude).astype(np.float32)
    radar *= np.exp(1.2 * np.abs(rng.normal(0, 1, radar.shape))).astype(np.float32)
    a = structure_channels(amplitude, everywhere(amplitude))
    b = structure_channels(radar, everywhere(radar))
    assert agreement(a.z, b.z) > 0.3


def test_a_weak_and_a_strong_half_count_alike(rng: np.random.Generator) -> None:
    image = texture(rng, (64, 128))
    image[:, :, 64:] *= 0.2
    power = np.abs(structure_channels(image, everywhere(image)).z[0])
    ratio = power[:, 90:].mean() / power[:, :38].mean()
    assert 0.5 < ratio < 2


def test_the_root_mean_square_is_about_one(rng: np.random.Generator) -> None:
    image = texture(rng)
    z = structure_channels(image, everywhere(image)).z
    assert 0.5 < np.sqrt((np.abs(z) ** 2).sum(axis=0).mean()) < 2
