"""The figure of an evaluation as plain SVG: no plotting library where numbers are made.

Error protocols show, per modality, the share of pairs within a given error: the curve's height at
the right edge is what was solved at all. `trust` shows the reliability diagram of the confidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from rsfuse.matching.evaluate import Evaluation

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 190, 48, 52
# Okabe-Ito: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666", "#000000")

# Protocol -> (key of the error in a record, largest error drawn, unit of a case).
ERROR_KEYS = {
    "srif": ("grid_error_px", 20.0, "pairs"),
    "mmim": ("own_px", 20.0, "pairs"),
    "sub": ("repeat_px", 3.0, "pairs and versions"),
    "loop": ("closure_px", 10.0, "loops"),
}


def draw(evaluation: Evaluation) -> str:
    """The figure of an evaluation as SVG text."""
    title = (
        f"{evaluation.method} on {Path(evaluation.dataset).name}, protocol {evaluation.protocol}"
    )
    if evaluation.protocol == "trust":
        return _reliability(evaluation, title)
    key, most, unit = ERROR_KEYS[evaluation.protocol]
    groups: dict[str, list[float | None]] = {}
    for record in evaluation.records:
        values = record[key] if isinstance(record[key], list) else [record[key]]
        groups.setdefault(record["group"], []).extend(values)
    curves = [
        (f"{name} ({len(errors)})", _cumulative(errors, most)) for name, errors in groups.items()
    ]
    return _chart(title, "error, px", f"share of {unit} within", most, curves)


def _cumulative(errors: Sequence[float | None], most: float) -> list[tuple[float, float]]:
    """Corners of the step curve: share of all errors, failures included, at or below each."""
    reached = sorted(e for e in errors if e is not None and e <= most)
    points, share = [(0.0, 0.0)], 0.0
    for number, error in enumerate(reached, start=1):
        points += [(error, share), (error, number / len(errors))]
        share = number / len(errors)
    return [*points, (most, share)]


def _reliability(evaluation: Evaluation, title: str) -> str:
    row = evaluation.rows[-1]
    curves = [("ideal", [(0.0, 0.0), (1.0, 1.0)])]
    for key, name in (("reliability", "answers"), ("tie_reliability", "tie points")):
        bars: list[dict[str, Any]] = row[key]
        if bars:
            total = sum(bar["members"] for bar in bars)
            points = [(bar["mean_probability"], bar["share_correct"]) for bar in bars]
            curves.append((f"{name} ({total})", points))
    return _chart(title, "stated probability", "share that is right", 1.0, curves)


def _chart(
    title: str,
    x_label: str,
    y_label: str,
    x_most: float,
    curves: Sequence[tuple[str, Sequence[tuple[float, float]]]],
) -> str:
    """A line chart; y runs from 0 to 1."""
    plot_w, plot_h = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(x: float, y: float) -> str:
        return f"{LEFT + plot_w * x / x_most:.1f},{TOP + plot_h * (1 - y):.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"',
        f'font-family="sans-serif" font-size="13" role="img" aria-label="{escape(title)}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="26" font-size="15">{escape(title)}</text>',
    ]
    for step in range(6):
        y = TOP + plot_h * (1 - step / 5)
        x = LEFT + plot_w * step / 5
        parts += [
            f'<line x1="{LEFT}" x2="{LEFT + plot_w}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>',
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{20 * step} %</text>',
            _text(x, TOP + plot_h + 20, f"{x_most * step / 5:g}"),
        ]
    for number, (name, points) in enumerate(curves):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(place(x, y) for x, y in points)
        y = TOP + 14 + 20 * number
        parts += [
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>',
            f'<rect x="{WIDTH - RIGHT + 14}" y="{y - 6}" width="20" height="3" fill="{colour}"/>',
            f'<text x="{WIDTH - RIGHT + 40}" y="{y}">{escape(name)}</text>',
        ]
    middle = TOP + plot_h / 2
    parts += [
        _text(LEFT + plot_w / 2, HEIGHT - 12, x_label),
        f'<g transform="translate(16 {middle:.0f}) rotate(-90)">{_text(0, 0, y_label)}</g>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _text(x: float, y: float, words: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{escape(words)}</text>'
