"""What the page of a match run shows, worked out from the run folder alone."""

import base64
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import numpy as np

from rsfuse.errors import InputError
from rsfuse.report import figures, wording
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
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP")


@dataclass(frozen=True)
class Tile:
    """One headline number."""

    label: str
    value: str
    detail: str = ""
    share: float | None = None


@dataclass(frozen=True)
class ErrorRow:
    """Median, RMSE and 90th percentile of one kind of error, in pixels and metres."""

    label: str
    pixels: tuple[str, ...]
    ground: tuple[str, ...]


@dataclass(frozen=True)
class Viewer:
    """Pictures as data URIs and what the script of the page needs to draw over them."""

    images: Mapping[str, str]
    width: int
    height: int
    data: Mapping[str, Any]
    note: str = ""


@dataclass(frozen=True)
class File:
    """A product of the run, linked from the page."""

    name: str
    link: str
    what: str
    size: str


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
    names = {role: _name(record, role) for role in ("reference", "query")}
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
        inputs=_inputs(record),
        parameters=_pairs(record.parameters),
        diagnostics=_pairs({k: v for k, v in record.diagnostics.items() if k != "stages"}),
        stages=_stages(record),
        files=_files(folder, record, link_prefix),
    )


def data_uri(folder: Path, name: object) -> str | None:
    """A picture of the run folder as a data URI.

    None where it is missing, damaged, lies outside the folder, or is no PNG, JPEG or WebP: a page
    is made to be passed on, so nothing but the run's own pictures may get into it.
    """
    from PIL import Image

    path = inside(folder, name)
    if path is None:
        return None
    content = path.read_bytes()
    try:
        with Image.open(io.BytesIO(content), formats=PICTURE_FORMATS) as picture:
            picture.load()
            kind = str(picture.format).lower()
    except (OSError, SyntaxError, ValueError):  # how Pillow says that a picture is damaged
        return None
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def inside(folder: Path, name: object) -> Path | None:
    """A file of the run folder; None where it is missing or lies elsewhere."""
    if not isinstance(name, str):
        return None
    path = (folder / name).resolve()
    return path if path.is_relative_to(folder.resolve()) and path.is_file() else None


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


def _input(record: RunRecord, role: str) -> Mapping[str, Any]:
    return next((item for item in record.inputs if item.get("role") == role), {})


def _name(record: RunRecord, role: str) -> str:
    path = str(_input(record, role).get("path", f"the {role}"))
    return PurePosixPath(path.replace("\\", "/")).name or path


def metres_per_pixel(record: RunRecord) -> float | None:
    """Metres of one query pixel on the ground, as the run itself converted or by the grids."""
    result = record.result
    in_metres = (result.get("after_m") or {}).get("median")
    in_pixels = (result.get("residual_px") or {}).get("median")
    if in_metres and in_pixels:
        return float(in_metres) / float(in_pixels)
    reference_gsd, scale = _input(record, "reference").get("gsd_m"), result.get("scale")
    if reference_gsd and scale:
        return float(reference_gsd) / float(scale)
    query_gsd = _input(record, "query").get("gsd_m")
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
        expected = result.get("expected_error_px")
        detail = f"expected error {wording.pixels(expected)}" if expected is not None else ""
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
    if result.get("expected_error_px") is not None:
        rows.append(("Expected error", wording.pixels(result["expected_error_px"])))
    return tuple(rows)


def _matrix(value: Any) -> Floats | None:
    matrix = None if value is None else np.array(value, dtype=np.float64)
    usable = matrix is not None and matrix.shape == (3, 3) and np.linalg.det(matrix) != 0
    return matrix if usable else None


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
    height, width = (int(side) for side in _input(record, "reference")["shape"])
    drawn = _drawn_points(points, record)
    count = len(drawn["x"])
    note = ""
    if points is not None and count < len(points):
        note = f"{count:,} of {len(points):,} tie points are drawn, evenly picked."
    return Viewer(
        images=images,
        width=width,
        height=height,
        data={
            "reference": [width, height],
            "geotransform": _geotransform(record, points),
            "crs": _input(record, "reference").get("crs"),
            "points": drawn,
        },
        note=note.replace(",", "\u202f"),
    )


def _geotransform(record: RunRecord, points: TiePoints | None) -> list[float] | None:
    stored = _input(record, "reference").get("transform")
    if stored and _input(record, "reference").get("crs"):
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
        "held": points.held_out[index].astype(int).tolist(),
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


def _inputs(record: RunRecord) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Rows of the table of inputs: a label and one cell per input."""

    def size(item: Mapping[str, Any]) -> str:
        height, width = item.get("shape") or (None, None)
        return wording.NONE if width is None else f"{width} × {height} px"

    def gsd(item: Mapping[str, Any]) -> str:
        value = item.get("gsd_m")
        return wording.NONE if value is None else f"{wording.metres(value)} per pixel"

    readers: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "File": lambda item: str(item.get("path", wording.NONE)),
        "Size": size,
        "Bands": lambda item: wording.plain_value(item.get("bands")),
        "CRS": lambda item: str(item.get("crs") or "none: pixels only"),
        "Pixel size": gsd,
        "Data type": lambda item: str(item.get("dtype") or wording.NONE),
        "Notes": lambda item: "; ".join(map(str, item.get("notes") or ())) or wording.NONE,
    }
    return tuple((key, tuple(read(i) for i in record.inputs)) for key, read in readers.items())


def _pairs(values: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((wording.label(k), wording.plain_value(v)) for k, v in values.items())


def _stages(record: RunRecord) -> tuple[tuple[str, str, float], ...]:
    """Name, duration as text and share of the longest stage."""
    stages = [s for s in record.diagnostics.get("stages") or () if s.get("seconds") is not None]
    longest = max((float(stage["seconds"]) for stage in stages), default=0.0) or 1.0
    return tuple(
        (
            str(stage.get("name", "")).replace("_", " "),
            wording.seconds(float(stage["seconds"])),
            float(stage["seconds"]) / longest,
        )
        for stage in stages
    )


FILE_MEANINGS = {
    "registered": "the query on the reference grid",
    "transform": "the transform, for rsfuse apply",
    "tie_points": "tie points",
    "displacement": "displacement field",
    "report": "this page",
}


def _files(folder: Path, record: RunRecord, link_prefix: str) -> tuple[File, ...]:
    files = []
    for product, names in record.outputs.items():
        if product in ("previews", "report"):
            continue
        for name in [names] if isinstance(names, str) else list(names or ()):
            path = inside(folder, name)
            files.append(
                File(
                    name=str(name),
                    link=quote(f"{link_prefix}{name}") if path else "",
                    what=FILE_MEANINGS.get(product, product.replace("_", " ")),
                    size=_file_size(path) if path else "missing",
                )
            )
    return tuple(files)


def _file_size(path: Path) -> str:
    size = float(path.stat().st_size)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
