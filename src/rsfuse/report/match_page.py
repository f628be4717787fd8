"""What the page of a match run shows, worked out from the run folder alone."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rsfuse.errors import InputError
from rsfuse.ops.geometry2d import is_invertible
from rsfuse.report import figures, wording
from rsfuse.report.parts import (
    File,
    Tile,
    Viewer,
    data_uri,
    files,
    input_of,
    inputs_table,
    inside,
    name_of,
    pairs,
    stages,
)
from rsfuse.report.tie_points import (
    Floats,
    TiePoints,
    fit_geotransform,
    read_tie_points,
    to_reference_frame,
)
from rsfuse.runs import RunRecord

# The viewer draws every tie point on each frame; above this number they cover the picture anyway.
MOST_DRAWN = 4000
SPREADS = ("median", "rmse", "p90")


@dataclass(frozen=True)
class ErrorRow:
    """Median, RMSE and 90th percentile of one kind of error, in pixels and metres."""

    label: str
    pixels: tuple[str, ...]
    ground: tuple[str, ...]


@dataclass(frozen=True)
class MatchPage:
    """Everything that the template of a match run prints."""

    record: RunRecord
    reference: str
    query: str
    verdict: str
    tiles: tuple[Tile, ...]
    errors: tuple[ErrorRow, ...]
    geometry: tuple[tuple[str, str], ...]
    matrix: tuple[tuple[str, ...], ...]
    viewer: Viewer | None
    figures: tuple[tuple[str, str], ...]
    inputs: tuple[tuple[str, tuple[str, ...]], ...]
    parameters: tuple[tuple[str, str], ...]
    diagnostics: tuple[tuple[str, str], ...]
    stages: tuple[tuple[str, str, float], ...]
    files: tuple[File, ...]

    @property
    def title(self) -> str:
        """What the page is about."""
        return f"{self.query} onto {self.reference}"

    @property
    def has_metres(self) -> bool:
        """Whether any error is known on the ground."""
        return any(cell != wording.NONE for row in self.errors for cell in row.ground)


def match_page(folder: Path, record: RunRecord, *, link_prefix: str = "") -> MatchPage:
    """Work out the page of a match run.

    Args:
        folder: The run folder.
        record: Its record.
        link_prefix: Path from the page to the run folder, empty or ending in a slash.
    """
    result = record.result
    points = _tie_points(folder, record)
    names = {role: name_of(record, role) for role in ("reference", "query")}
    errors = _errors(record)
    return MatchPage(
        record=record,
        reference=names["reference"],
        query=names["query"],
        verdict=_verdict(record),
        tiles=_tiles(record),
        errors=errors,
        geometry=_geometry(result),
        matrix=_matrix_text(result.get("transform_px")),
        viewer=_viewer(folder, record, points),
        figures=_figures(points),
        inputs=inputs_table(record),
        parameters=pairs(record.parameters),
        diagnostics=pairs({k: v for k, v in record.diagnostics.items() if k != "stages"}),
        stages=stages(record),
        files=files(folder, record, link_prefix),
    )


def _tie_points(folder: Path, record: RunRecord) -> TiePoints | None:
    named = record.outputs.get("tie_points") or ()
    names = [named] if isinstance(named, str) else list(named)
    table = next((name for name in names if str(name).endswith(".csv")), None)
    if table is None:
        return None
    path = inside(folder, table)
    if path is None:
        raise InputError(
            f"{folder / table} is missing",
            "the record of the run names it as its table of tie points",
            "copy the whole run folder, or run the command again",
        )
    return read_tie_points(path)


def metres_per_pixel(record: RunRecord) -> float | None:
    """Metres of one query pixel on the ground, as the run itself converted or by the grids."""
    result = record.result
    in_metres = (result.get("after_m") or {}).get("median")
    in_pixels = (result.get("residual_px") or {}).get("median")
    if in_metres and in_pixels:
        return float(in_metres) / float(in_pixels)
    reference_gsd, scale = input_of(record, "reference").get("gsd_m"), result.get("scale")
    if reference_gsd and scale:
        return float(reference_gsd) / float(scale)
    query_gsd = input_of(record, "query").get("gsd_m")
    return float(query_gsd) if query_gsd else None


def _error(record: RunRecord, key: str) -> ErrorRow | None:
    """The row of `before_px`, `residual_px` or `held_out_px`; None where the run has none."""
    labels = {
        "before_px": "Before registration",
        "residual_px": "After, tie points of the fit",
        "held_out_px": "After, held-out tie points",
    }
    spread = record.result.get(key)
    if not isinstance(spread, Mapping) or spread.get("median") is None:
        return None
    given = {"before_px": "before_m", "residual_px": "after_m"}.get(key, "")
    on_ground = record.result.get(given)
    if not isinstance(on_ground, Mapping):
        size = metres_per_pixel(record)
        on_ground = (
            {} if size is None else {k: v * size for k, v in spread.items() if v is not None}
        )
    return ErrorRow(
        label=labels[key],
        pixels=tuple(wording.pixels(spread.get(name)) for name in SPREADS),
        ground=tuple(wording.metres(on_ground.get(name)) for name in SPREADS),
    )


def _errors(record: RunRecord) -> tuple[ErrorRow, ...]:
    rows = (_error(record, key) for key in ("before_px", "residual_px", "held_out_px"))
    return tuple(row for row in rows if row is not None)


def _in_words(row: ErrorRow | None) -> str | None:
    """The median of a row, on the ground too where that is known."""
    if row is None:
        return None
    ground = row.ground[0]
    return row.pixels[0] + ("" if ground == wording.NONE else f" ({ground})")


def _verdict(record: RunRecord) -> str:
    held_out = _error(record, "held_out_px")
    return wording.verdict(
        record.status,
        before=_in_words(_error(record, "before_px")),
        after=_in_words(held_out or _error(record, "residual_px")),
        held_out=held_out is not None,
        tie_points=(record.result.get("tie_points") or {}).get("kept"),
    )


def _tiles(record: RunRecord) -> tuple[Tile, ...]:
    result = record.result
    refused = record.status == "refused"
    tiles = []
    before = _error(record, "before_px")
    held_out = _error(record, "held_out_px")
    after = held_out or _error(record, "residual_px")
    if before and not refused:
        tiles.append(Tile("Before", before.pixels[0], _detail(before, "median")))
    if after and not refused:
        what = "held out" if held_out else "of the fit"
        tiles.append(Tile("After", after.pixels[0], _detail(after, what)))
    if record.confidence is not None:
        share = float(record.confidence)
        tiles.append(Tile("Confidence", wording.percent(share), "that it is right", share))
    counts = result.get("tie_points") or {}
    if "kept" in counts:
        found = f"of {counts['total']:,} candidates".replace(",", "\u202f")
        tiles.append(Tile("Tie points", f"{counts['kept']:,}".replace(",", "\u202f"), found))
    if result.get("model") and not refused:
        error = result.get("standard_error_px")
        detail = f"standard error {wording.pixels(error)}" if error is not None else ""
        tiles.append(Tile("Model", str(result["model"]).replace("_", " "), detail))
    return tuple(tiles)


def _detail(row: ErrorRow, what: str) -> str:
    return what if row.ground[0] == wording.NONE else f"{row.ground[0]} · {what}"


def _geometry(result: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    rows = []
    if result.get("model"):
        rows.append(("Model", str(result["model"]).replace("_", " ")))
    if result.get("rotation_deg") is not None:
        rows.append(("Rotation", f"{result['rotation_deg']:.3f}°".replace("-", "−")))
    if result.get("scale") is not None:
        rows.append(("Scale, query pixels per reference pixel", f"{result['scale']:.5f}"))
    for key, name in (("shift_px", "Shift, pixels (x, y)"), ("shift_m", "Shift, metres (x, y)")):
        if result.get(key) is not None:
            rows.append((name, ",\u00a0".join(wording.number(value) for value in result[key])))
    if result.get("standard_error_px") is not None:
        rows.append(("Standard error", wording.pixels(result["standard_error_px"])))
    return tuple(rows)


def _matrix(value: Any) -> Floats | None:
    matrix = None if value is None else np.array(value, dtype=np.float64)
    return matrix if matrix is not None and is_invertible(matrix) else None


def _matrix_text(value: Any) -> tuple[tuple[str, ...], ...]:
    matrix = _matrix(value)
    if matrix is None:
        return ()
    return tuple(tuple(f"{v:.8g}".replace("-", "−") for v in row) for row in matrix.tolist())


def _viewer(folder: Path, record: RunRecord, points: TiePoints | None) -> Viewer | None:
    named = record.outputs.get("previews") or {}
    found = {role: data_uri(folder, named.get(role)) for role in ("reference", "before", "after")}
    images = {role: uri for role, uri in found.items() if uri is not None}
    if "reference" not in images:
        return None
    height, width = (int(side) for side in input_of(record, "reference")["shape"])
    drawn = _drawn_points(points, record)
    count = len(drawn["x"])
    note = ""
    if points is not None and count < len(points):
        note = f"{count:,} of {len(points):,} tie points are drawn, evenly picked. "
    if "after" not in images:
        note += (
            "There is no registered picture, because no registration is claimed. "
            if record.status == "refused"
            else "This run wrote no registered picture. "
        )
        if "before" in images:
            note += "The query is shown where its own position puts it."
    return Viewer(
        images=images,
        width=width,
        height=height,
        data={
            "reference": [width, height],
            "geotransform": _geotransform(record, points),
            "crs": input_of(record, "reference").get("crs"),
            "points": drawn,
        },
        note=note.replace(",", "\u202f").strip(),
    )


def _geotransform(record: RunRecord, points: TiePoints | None) -> list[float] | None:
    stored = input_of(record, "reference").get("transform")
    if stored and input_of(record, "reference").get("crs"):
        return [float(value) for value in stored][:6]
    fitted = None if points is None else fit_geotransform(points)
    return None if fitted is None else list(fitted)


def _drawn_points(points: TiePoints | None, record: RunRecord) -> dict[str, Any]:
    """Columns of tie points for the script, short enough to be drawn on every frame."""
    if points is None:
        return {name: [] for name in ("x", "y", "dx", "dy", "r", "p", "kept", "held", "why")}
    vector = to_reference_frame(points, _matrix(record.result.get("transform_px")))
    finite = np.isfinite(points.reference).all(axis=1) & np.isfinite(points.residual_px)
    finite &= np.isfinite(vector).all(axis=1)
    index = np.flatnonzero(finite)
    index = index[:: max(1, math.ceil(len(index) / MOST_DRAWN))]
    probability = np.nan_to_num(points.probability[index], nan=0.0)
    return {
        "x": points.reference[index, 0].round(2).tolist(),
        "y": points.reference[index, 1].round(2).tolist(),
        "dx": vector[index, 0].round(3).tolist(),
        "dy": vector[index, 1].round(3).tolist(),
        "r": points.residual_px[index].round(3).tolist(),
        "p": probability.round(3).tolist(),
        "kept": points.kept[index].astype(int).tolist(),
        "held": np.nan_to_num(points.held_out_px[index], nan=-1.0).round(3).tolist(),
        "why": [points.reason[i].replace("_", " ") for i in index],
    }


def _figures(points: TiePoints | None) -> tuple[tuple[str, str], ...]:
    if points is None:
        return ()
    drawn = (
        ("Residuals of the kept tie points", figures.residual_histogram(points)),
        ("Residual and probability", figures.residual_against_probability(points)),
    )
    return tuple((title, svg) for title, svg in drawn if svg is not None)
