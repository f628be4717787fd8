"""How numbers and verdicts read: one place, so that every page says the same thing the same way."""

import math
from collections.abc import Mapping
from typing import Any

BADGES = {
    "ok": ("✓", "OK"),
    "weak": ("!", "Weak"),
    "refused": ("✕", "Refused"),
}
NONE = "–"


def number(value: float | None) -> str:
    """A measured length or share: two decimals below 10, one below 100, none above."""
    if value is None or not math.isfinite(value):
        return NONE
    size = abs(value)
    decimals = 2 if size < 9.995 else 1 if size < 99.95 else 0
    return f"{value:,.{decimals}f}".replace(",", "\u202f").replace("-", "−")


def pixels(value: float | None) -> str:
    """A length in pixels."""
    return NONE if value is None else f"{number(value)} px"


def metres(value: float | None) -> str:
    """A length on the ground: cm below one metre, km from ten kilometres."""
    if value is None or not math.isfinite(value):
        return NONE
    if abs(value) < 0.995:
        return f"{number(value * 100)} cm"
    return f"{number(value)} m" if abs(value) < 1e4 else f"{number(value / 1000)} km"


def percent(share: float | None) -> str:
    """A probability; never rounded up to certainty."""
    if share is None:
        return NONE
    if 0.99 < share < 1.0:
        return f"{min(math.floor(share * 1000) / 10, 99.9):g} %"
    return f"{share * 100:.0f} %"


def count(value: int) -> str:
    """A number of things, its thousands set apart."""
    return f"{value:,}".replace(",", "\u202f")


def area(square_metres: float | None) -> str:
    """An area on the ground: square metres, hectares from one, square kilometres from ten."""
    if square_metres is None or not math.isfinite(square_metres):
        return NONE
    if square_metres < 1e4:
        return f"{number(square_metres)} m²"
    if square_metres < 1e7:
        return f"{number(square_metres / 1e4)} ha"
    return f"{number(square_metres / 1e6)} km²"


def seconds(value: float) -> str:
    """A duration."""
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 100:
        return f"{value:.1f} s"
    return f"{int(value // 60)} min {int(value % 60)} s"


def plain_value(value: Any) -> str:
    """Any value of a run record as text: numbers short, lists and mappings in line."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}".replace("-", "−")
    if isinstance(value, Mapping):
        return ", ".join(f"{label(k)} {plain_value(v)}" for k, v in value.items()) or NONE
    if isinstance(value, list | tuple):
        return ", ".join(plain_value(item) for item in value) or NONE
    return str(value)


def label(key: str) -> str:
    """The name of a key as words, its unit in brackets: `max_shift_px` is "max shift (px)"."""
    units = {"px": "px", "m": "m", "deg": "°", "rad": "rad", "db": "dB", "s": "s"}
    *words, last = str(key).split("_")
    if words and last in units:
        return f"{' '.join(words)} ({units[last]})"
    return str(key).replace("_", " ")


def verdict(
    status: str,
    *,
    before: str | None,
    after: str | None,
    held_out: bool,
    tie_points: int | None,
) -> str:
    """One or two plain sentences on what the run means for the user.

    Args:
        status: ok, weak or refused.
        before: Median distance before registration, with units; None where unknown.
        after: Median error after it, with units; None where unknown.
        held_out: Whether `after` comes from tie points that the fit did not see.
        tie_points: Number of kept tie points.
    """
    if status == "refused":
        return (
            "No registration is claimed. The evidence that was found does not separate a right "
            "answer from a wrong one, so the query image was left where it was."
        )
    opening = {
        "ok": "The images are registered.",
        "weak": "A registration was found, but the evidence for it is thin: check it by eye "
        "before you rely on it.",
    }[status]
    if after is None:
        return opening
    who = "tie points that the fit did not see" if held_out else f"{tie_points} tie points"
    measured = f"Half of the {who} agree with it to {after} or better"
    return f"{opening} {measured}{f'; before, they were {before} apart' if before else ''}."
