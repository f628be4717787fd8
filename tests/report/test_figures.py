"""Figures as SVG: what they draw is what was measured."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from rsfuse.report.figures import (
    HEIGHT,
    MOST_DOTS,
    WIDTH,
    nice_ceiling,
    residual_against_probability,
    residual_histogram,
    ticks,
)
from rsfuse.report.tie_points import TiePoints


def tie_points(residual_px: np.ndarray, kept: np.ndarray | None = None) -> TiePoints:
    count = len(residual_px)
    nothing = np.full((count, 2), np.nan)
    return TiePoints(
        reference=nothing,
        query=nothing,
        residual=nothing,
        residual_px=np.asarray(residual_px, np.float64),
        probability=np.linspace(0, 1, count),
        kept=np.ones(count, bool) if kept is None else kept,
        held_out_px=np.zeros(count),
        reason=("",) * count,
        map=nothing,
    )


def shapes(svg: str | None, name: str) -> list[ElementTree.Element]:
    assert svg is not None
    return [
        e for e in ElementTree.fromstring(svg).iter() if e.get("class", "").split()[:1] == [name]
    ]


def test_bars_hold_every_kept_tie_point() -> None:
    residuals = np.concatenate([np.full(30, 0.2), np.full(10, 0.6), [55.0]])
    bars = shapes(residual_histogram(tie_points(residuals)), "count")
    heights = np.array([float(bar.get("height", "nan")) for bar in bars])
    counts = heights / heights.max() * 30
    np.testing.assert_allclose(sorted(counts[counts > 0]), [1, 10, 30], atol=0.1)
    assert counts[-1] == pytest.approx(1, abs=0.1)  # what lies beyond the axis is in the last bar


def test_median_and_p90_are_written_on_the_histogram() -> None:
    svg = residual_histogram(tie_points(np.linspace(0, 2, 201)))
    assert svg is not None
    assert "median 1.00" in svg
    assert "90 % 1.80" in svg


def test_left_out_tie_points_do_not_enter_the_histogram() -> None:
    kept = np.array([True, True, False])
    svg = residual_histogram(tie_points(np.array([1.0, 1.0, 90.0]), kept))
    assert svg is not None
    assert "Histogram of 2 residuals" in svg


def test_nothing_to_draw_is_no_figure() -> None:
    none = tie_points(np.empty(0))
    assert residual_histogram(none) is None
    assert residual_against_probability(none) is None
    rejected = tie_points(np.ones(3), np.zeros(3, bool))
    assert residual_histogram(rejected) is None
    assert residual_against_probability(rejected) is not None


def test_residuals_of_zero_are_drawn() -> None:
    assert residual_histogram(tie_points(np.zeros(5))) is not None
    assert len(shapes(residual_against_probability(tie_points(np.zeros(5))), "dot")) == 5 + 2


def test_kept_and_left_out_dots_are_told_apart() -> None:
    kept = np.arange(10) < 7
    dots = shapes(residual_against_probability(tie_points(np.ones(10), kept)), "dot")
    assert sum("out" in dot.get("class", "") for dot in dots) == 3 + 1  # and one in the legend


def test_many_tie_points_are_thinned(rng: np.random.Generator) -> None:
    svg = residual_against_probability(tie_points(rng.gamma(1.0, size=20 * MOST_DOTS)))
    assert MOST_DOTS / 2 < len(shapes(svg, "dot")) <= MOST_DOTS + 2
    assert svg is not None
    assert f"{20 * MOST_DOTS} tie points" in svg


def test_tie_points_without_a_probability_are_left_out_of_the_scatter() -> None:
    points = replace(tie_points(np.ones(4)), probability=np.array([0.1, np.nan, 0.5, np.nan]))
    assert len(shapes(residual_against_probability(points), "dot")) == 2 + 2


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e5])
def test_everything_lies_inside_the_figure(scale: float, rng: np.random.Generator) -> None:
    points = tie_points(scale * rng.gamma(2.0, size=400))
    for svg in (residual_histogram(points), residual_against_probability(points)):
        assert svg is not None
        for x in re.findall(r' (?:x|x1|x2|cx)="([-\d.]+)"', svg):
            assert 0 <= float(x) <= WIDTH
        for y in re.findall(r' (?:y|y1|y2|cy)="([-\d.]+)"', svg):
            assert 0 <= float(y) <= HEIGHT


@pytest.mark.parametrize(
    ("value", "ceiling"), [(0.97, 1.0), (1.0, 1.0), (1.2, 1.5), (37, 40), (0.0021, 0.003), (0, 1.0)]
)
def test_nice_ceiling(value: float, ceiling: float) -> None:
    assert nice_ceiling(value) == pytest.approx(ceiling)


@pytest.mark.parametrize("top", [1.0, 1.5, 2.0, 30.0, 0.4, 0.05, 600.0, 8e-3])
def test_ticks_run_from_zero_to_the_top(top: float) -> None:
    values = ticks(top)
    assert values[0] == 0
    assert values[-1] == pytest.approx(top)
    assert 4 <= len(values) <= 8
