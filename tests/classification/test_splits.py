"""Parts of the labels: apart on the ground, the same for a seed, every class on both sides."""

import logging

import numpy as np
import pytest

from rsfuse.classification.labels import Labels
from rsfuse.classification.splits import Split, leakage, split_labels
from rsfuse.engine.bundle import ClassInfo
from rsfuse.errors import InputError


def labels_of(numbers: np.ndarray, groups: np.ndarray | None = None) -> Labels:
    names = tuple(ClassInfo(name=f"class {i}") for i in range(int(numbers.max()) + 1))
    return Labels(numbers.astype(np.int64), names, groups)


@pytest.fixture
def mixed(rng: np.random.Generator) -> Labels:
    """96 x 80 labels of three classes, a fifth of the pixels unlabelled."""
    numbers = rng.integers(0, 3, (96, 80))
    numbers[rng.random((96, 80)) < 0.2] = -1
    return labels_of(numbers)


def least_distance(one: np.ndarray, other: np.ndarray) -> int:
    """Chessboard distance of two masks, by comparing all with all."""
    a, b = np.argwhere(one), np.argwhere(other)
    return min(int(np.abs(b - point).max(axis=1).min()) for point in a)


@pytest.mark.parametrize("seed", range(3))
def test_blocks_lie_apart_by_more_than_the_buffer(mixed: Labels, seed: int) -> None:
    found = split_labels(mixed, "blocks", block=16, buffer=3, seed=seed)
    for one, other in (("train", "test"), ("train", "validation"), ("validation", "test")):
        assert least_distance(getattr(found, one), getattr(found, other)) > 3


def test_parts_hold_labelled_pixels_only_and_share_none(mixed: Labels) -> None:
    found = split_labels(mixed, "blocks", block=16, buffer=2)
    total = sum(part.astype(int) for part in (found.train, found.validation, found.test))
    assert total.max() == 1
    assert not total[mixed.numbers < 0].any()


def test_a_split_depends_on_the_seed_alone(mixed: Labels) -> None:
    first, again, other = (
        split_labels(mixed, "blocks", block=16, buffer=2, seed=seed) for seed in (1, 1, 2)
    )
    assert (first.test == again.test).all()
    assert (first.train == again.train).all()
    assert (first.test != other.test).any()


def test_shares_are_near_those_asked_for(mixed: Labels) -> None:
    found = split_labels(mixed, "blocks", test=0.3, validation=0.25, block=8, buffer=0)
    known = (mixed.numbers >= 0).sum()
    assert found.test.sum() / known == pytest.approx(0.3, abs=0.05)
    assert found.validation.sum() / (known - found.test.sum()) == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_a_rare_class_of_two_blocks_is_learned_and_tested(seed: int) -> None:
    numbers = np.zeros((80, 80), np.int64)
    numbers[:, 40:] = 1
    numbers[0:8, 0:8] = 2
    numbers[72:80, 72:80] = 2
    found = split_labels(labels_of(numbers), "blocks", block=8, buffer=0, validation=0.0, seed=seed)
    assert (numbers[found.train] == 2).any()
    assert (numbers[found.test] == 2).any()
    assert found.notes == ()


def test_a_class_of_one_block_is_named_as_missing(caplog: pytest.LogCaptureFixture) -> None:
    numbers = np.zeros((64, 64), np.int64)
    numbers[:, 32:] = 1
    numbers[0:8, 0:8] = 2
    with caplog.at_level(logging.WARNING, "rsfuse"):
        found = split_labels(labels_of(numbers), "blocks", block=8, buffer=0, validation=0.0)
    assert (numbers[found.train] == 2).any(), "a class must rather be untested than unlearned"
    assert found.notes == ("the test labels hold no class 2",)
    assert "class 2" in caplog.text


def test_polygons_are_never_divided(rng: np.random.Generator) -> None:
    groups = np.full((60, 60), -1)
    for i in range(25):
        y, x = divmod(i, 5)
        groups[12 * y + 2 : 12 * y + 10, 12 * x + 2 : 12 * x + 10] = i
    numbers = np.where(groups >= 0, groups % 2, -1)
    found = split_labels(labels_of(numbers, groups), "polygons", buffer=0)
    for number in range(25):
        mine = groups == number
        held = [bool(part[mine].any()) for part in (found.train, found.validation, found.test)]
        assert sum(held) == 1
    assert found.test.any()
    assert found.validation.any()


def test_raster_labels_cannot_be_split_by_polygons(mixed: Labels) -> None:
    with pytest.raises(InputError, match="split by polygons needs polygons"):
        split_labels(mixed, "polygons")


def test_one_class_is_too_few_to_learn() -> None:
    with pytest.raises(InputError, match="fewer than two classes"):
        split_labels(labels_of(np.zeros((40, 40))), "blocks", block=8, buffer=1)


def test_leakage_counts_test_pixels_near_training_pixels() -> None:
    train, test = np.zeros((2, 1, 9), bool)
    train[0, 0] = True
    test[0, [3, 5]] = True
    split = Split(train, np.zeros_like(train), test, "blocks")
    assert [leakage(split, reach) for reach in (2, 3, 4, 5)] == [0.0, 0.5, 0.5, 1.0]


def test_a_diagonal_step_of_leakage_counts_one() -> None:
    train, test = np.zeros((2, 4, 4), bool)
    train[0, 0] = test[2, 2] = True
    split = Split(train, np.zeros_like(train), test, "blocks")
    assert (leakage(split, 1), leakage(split, 2)) == (0.0, 1.0)


def test_leakage_without_a_test_is_unknown() -> None:
    none = np.zeros((3, 3), bool)
    assert np.isnan(leakage(Split(~none, none, none, "blocks"), 2))


def test_random_pixels_leak_and_buffered_blocks_do_not(mixed: Labels) -> None:
    legacy = split_labels(mixed, "random-pixel", block=16, buffer=4)
    honest = split_labels(mixed, "blocks", block=16, buffer=4)
    assert leakage(legacy, 4) > 0.99
    assert leakage(honest, 4) == 0.0
    used = legacy.train | legacy.validation | legacy.test
    assert (used == (mixed.numbers >= 0)).all(), "no buffer is taken from random pixels"


def test_without_a_test_share_nothing_is_kept_back(mixed: Labels) -> None:
    found = split_labels(mixed, "blocks", test=0.0, block=16, buffer=2)
    assert not found.test.any()
    assert found.validation.any()
