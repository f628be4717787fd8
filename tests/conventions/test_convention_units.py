"""Units in names, ground distances: docs/conventions.md, "Units"."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from rsfuse.geo.grid import gsd_m

# Names that hide a unit, and what to call the thing.
UNNAMED = {
    "gsd": "gsd_m",
    "resolution_metres": "gsd_m",
    "pixel_size": "gsd_m, or a pair with a unit",
    "degrees": "angle_deg",
    "radians": "angle_rad",
    "rotation_degrees": "rotation_deg",
    "angle_degrees": "angle_deg",
    "metres": "distance_m",
    "meters": "distance_m",
    "decibel": "a name ending in _db",
    "milliseconds": "seconds, or a name ending in _s",
}


def names_of_values(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Parameters and annotated fields, with their line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, node.lineno


def test_convention_units_are_in_names(repository: Path) -> None:
    wrong = [
        f"{path.relative_to(repository)}:{line}: {name}, better {UNNAMED[name]}"
        for path in sorted((repository / "src").rglob("*.py"))
        if "cli" not in path.parts  # option names follow the habits of the command line
        for name, line in names_of_values(ast.parse(path.read_text("utf-8")))
        if name in UNNAMED
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("latitude", "expected_m"),
    # A pixel of 0.0001 degrees on the WGS 84 ellipsoid, from the series for the length of a degree:
    # 111132.92 - 559.82 cos 2p + 1.175 cos 4p north, 111412.84 cos p - 93.5 cos 3p east.
    [(0.0, (11.0574, 11.1319)), (60.0, (11.1412, 5.5800))],
)
def test_convention_gsd_is_in_metres_on_the_ground(
    latitude: float, expected_m: tuple[float, float]
) -> None:
    step = 1e-4
    geobox = GeoBox((100, 100), Affine(step, 0, 10.0, 0, -step, latitude + 50 * step), "EPSG:4326")
    north, east = expected_m
    assert gsd_m(geobox) == pytest.approx((north * east) ** 0.5, rel=1e-3)
