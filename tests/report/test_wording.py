"""Numbers and sentences as they are printed."""

import pytest

from rsfuse.report import wording


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "0.50"),
        (9.994, "9.99"),
        (9.996, "10.0"),
        (99.96, "100"),
        (12345.6, "12\u202f346"),
        (-3.0, "−3.00"),
        (None, "–"),
        (float("nan"), "–"),
    ],
)
def test_number(value: float | None, text: str) -> None:
    assert wording.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.31, "31.0 cm"), (5.0, "5.00 m"), (371.2, "371 m"), (25000.0, "25.0 km"), (None, "–")],
)
def test_metres(value: float | None, text: str) -> None:
    assert wording.metres(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.98, "98 %"), (0.9996, "99.9 %"), (0.995, "99.5 %"), (1.0, "100 %"), (0.0, "0 %")],
)
def test_probability_is_not_rounded_up_to_certainty(share: float, text: str) -> None:
    assert wording.percent(share) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.12, "120 ms"), (1.94, "1.9 s"), (125.0, "2 min 5 s")]
)
def test_seconds(seconds: float, text: str) -> None:
    assert wording.seconds(seconds) == text


@pytest.mark.parametrize(
    ("key", "text"),
    [("max_shift_px", "max shift (px)"), ("rotation_deg", "rotation (°)"), ("m", "m")],
)
def test_unit_of_a_key_goes_into_brackets(key: str, text: str) -> None:
    assert wording.label(key) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (True, "yes"),
        ([1, 2.5], "1, 2.5"),
        ({"a_px": 1}, "a (px) 1"),
        ([], "–"),
        ("x", "x"),
    ],
)
def test_plain_value(value: object, text: str) -> None:
    assert wording.plain_value(value) == text


def test_verdict_without_held_out_points_names_the_tie_points() -> None:
    sentence = wording.verdict("ok", before=None, after="0.5 px", held_out=False, tie_points=80)
    assert sentence == (
        "The images are registered. Half of the 80 tie points agree with it to 0.5 px or better."
    )


def test_verdict_of_a_refusal_repeats_no_error() -> None:
    sentence = wording.verdict(
        "refused", before="9 px", after="0.1 px", held_out=True, tie_points=7
    )
    assert "px" not in sentence
