"""Figures of a report as inline SVG, drawn from arrays.

The shapes carry class names and no colours: the style sheet of the page colours them, so that one
figure serves the light and the dark scheme. Only numbers enter the markup.
"""

import math
from collections.abc import Sequence

import numpy as np

from rsfuse.report.tie_points import TiePoints

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 28, 42
PLOT_W, PLOT_H = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

# A scatter of more dots than this is slower to show and no clearer.
MOST_DOTS = 1500


def residual_histogram(points: TiePoints, bins: int = 24) -> str | None:
    """How many kept tie points have which residual, with median and 90th percentile marked.

    The axis ends at 1.6 times the 95th percentile; what lies beyond is counted in the last bar.
    None without a kept tie point.
    """
    residuals = points.residual_px[points.used]
    if not residuals.size:
        return None
    median, p90, p95 = np.percentile(residuals, (50, 90, 95))
    top = nice_ceiling(max(1.6 * float(p95), 1e-3))
    counts, _ = np.histogram(np.minimum(residuals, top), bins=bins, range=(0.0, top))
    highest = nice_ceiling(float(counts.max()))
    step = PLOT_W / bins
    parts = [_grid(ticks(highest), highest, "")]
    for index, count in enumerate(counts.tolist()):
        height = PLOT_H * count / highest
        parts.append(
            f'<rect class="count" x="{LEFT + index * step + 0.5:.1f}" '
            f'y="{TOP + PLOT_H - height:.1f}" width="{step - 1:.1f}" height="{height:.1f}"/>'
        )
    parts += [
        _marker(float(median) / top, f"median {median:.2f}", "end"),
        _marker(float(p90) / top, f"90 % {p90:.2f}", "start"),
    ]
    parts.append(_bottom_axis(ticks(top), top, "residual, query pixels"))
    description = (
        f"Histogram of {residuals.size} residuals: median {median:.2f}, "
        f"90th percentile {p90:.2f} query pixels."
    )
    return _svg("Residuals of the kept tie points", description, parts)


def residual_against_probability(points: TiePoints) -> str | None:
    """Residual (logarithmic) over probability, kept and left-out tie points told apart.

    None where no tie point has both.
    """
    shown = np.isfinite(points.residual_px) & np.isfinite(points.probability)
    total = int(shown.sum())
    if not total:
        return None
    index = np.flatnonzero(shown)
    index = index[:: math.ceil(total / MOST_DOTS)]
    residual = np.maximum(points.residual_px[index], 1e-3)
    low = max(-2, math.floor(math.log10(float(residual.min()))))
    high = max(low + 1, math.ceil(math.log10(float(residual.max()))))
    level = np.clip((np.log10(residual) - low) / (high - low), 0.0, 1.0)
    x = LEFT + PLOT_W * np.clip(points.probability[index], 0.0, 1.0)
    y = TOP + PLOT_H * (1.0 - level)
    parts = []
    for power in range(low, high + 1):
        at = TOP + PLOT_H * (1 - (power - low) / (high - low))
        parts.append(_grid_line(at, f"{10.0**power:g}"))
    for left_out in (True, False):  # the kept ones on top
        name = "dot out" if left_out else "dot"
        chosen = points.kept[index] != left_out
        parts += [
            f'<circle class="{name}" cx="{cx:.1f}" cy="{cy:.1f}" r="2.4"/>'
            for cx, cy in zip(x[chosen].tolist(), y[chosen].tolist(), strict=True)
        ]
    parts.append(_bottom_axis((0.0, 0.25, 0.5, 0.75, 1.0), 1.0, "probability"))
    parts.append(f'<text class="axis" x="{LEFT}" y="{TOP - 10}">residual, query pixels</text>')
    right = WIDTH - RIGHT
    parts.append(
        f'<circle class="dot" cx="{right - 116}" cy="{TOP - 15}" r="3.4"/>'
        f'<text class="tick" x="{right - 108}" y="{TOP - 11}">kept</text>'
        f'<circle class="dot out" cx="{right - 62}" cy="{TOP - 15}" r="3.4"/>'
        f'<text class="tick" x="{right - 54}" y="{TOP - 11}">left out</text>'
    )
    kept = int((points.kept & shown).sum())
    description = f"{total} tie points, {kept} of them kept, as dots over their probability."
    return _svg("Residual and probability", description, parts)


def nice_ceiling(value: float) -> float:
    """The smallest of 1, 1.5, 2, 3, 4, 5, 6, 8 times a power of ten that reaches the value."""
    base: float = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    steps = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
    return next(base * step for step in steps if base * step >= value * (1 - 1e-9))


def ticks(top: float) -> tuple[float, ...]:
    """Four to eight round numbers from 0 to `top` (a value of `nice_ceiling`)."""
    base = 10.0 ** math.floor(math.log10(top) + 1e-9)
    lead = round(top / base, 1)
    parts = {1.0: 5, 1.5: 3, 2.0: 4, 3.0: 3, 4.0: 4, 5.0: 5, 6.0: 6, 8.0: 4}[lead]
    return tuple(top * i / parts for i in range(parts + 1))


def _grid(values: Sequence[float], top: float, unit: str) -> str:
    lines = [_grid_line(TOP + PLOT_H * (1 - v / top), f"{v:g}{unit}") for v in values]
    return "".join(lines)


def _grid_line(y: float, label: str) -> str:
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
    )


def _bottom_axis(values: Sequence[float], top: float, label: str) -> str:
    y = HEIGHT - BOTTOM
    parts = [f'<line class="frame" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>']
    for value in values:
        x = LEFT + PLOT_W * value / top
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{y + 16}" text-anchor="middle">'
            f"{float(f'{value:.6g}'):g}</text>"
        )
    middle = LEFT + PLOT_W / 2
    parts.append(
        f'<text class="axis" x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{label}</text>'
    )
    return "".join(parts)


def _marker(share: float, label: str, anchor: str) -> str:
    x = LEFT + PLOT_W * min(share, 1.0)
    shift = -5 if anchor == "end" else 5
    if x + shift < LEFT + 70:  # no room for the text on its left
        anchor, shift = "start", 5
    return (
        f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 6}" y2="{TOP + PLOT_H}"/>'
        f'<text class="tick strong" x="{x + shift:.1f}" y="{TOP - 10}" text-anchor="{anchor}">'
        f"{label}</text>"
    )


def _svg(title: str, description: str, parts: list[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}. {description}">'
        + "".join(parts)
        + "</svg>"
    )
