"""Shared options: sizes, shards, distances, choices."""

import pytest

from rsfuse.cli.options import choice, parse_distance, parse_shard
from rsfuse.errors import InputError


def test_shard_counts_from_one_outside_and_zero_inside() -> None:
    assert parse_shard("1/1") == (0, 1)
    assert parse_shard("2/8") == (1, 8)


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "-1/2"])
def test_impossible_shard_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="shard"):
        parse_shard(text)


@pytest.mark.parametrize(
    ("text", "pixels"), [("40", 40.0), ("40px", 40.0), ("500m", 50.0), ("1.2km", 120.0)]
)
def test_distance_becomes_pixels_of_the_reference(text: str, pixels: float) -> None:
    assert parse_distance(text, gsd_m=10.0) == pytest.approx(pixels)


def test_metres_need_a_crs() -> None:
    assert parse_distance("40px", gsd_m=None) == 40.0
    with pytest.raises(InputError, match="no CRS"):
        parse_distance("500m", gsd_m=None)


@pytest.mark.parametrize("text", ["", "m", "-3", "5 miles", "1e3"])
def test_what_is_no_distance_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="not a distance"):
        parse_distance(text, gsd_m=1.0)


def test_unknown_choice_names_the_nearest() -> None:
    assert choice("affine", ("shift", "affine"), "--model") == "affine"
    with pytest.raises(InputError) as caught:
        choice("afine", ("shift", "affine"), "--model")
    assert caught.value.fix == "did you mean --model affine?"
