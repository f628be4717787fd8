"""What the page of a classify run shows, worked out from the run folder alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsfuse.report import wording
from rsfuse.report.parts import (
    NO_POINTS,
    File,
    Tile,
    Viewer,
    data_uri,
    files,
    input_of,
    inputs_table,
    name_of,
    pairs,
    stages,
)
from rsfuse.runs import RunRecord


@dataclass(frozen=True)
class ClassRow:
    """One line of the legend."""

    color: str
    name: str
    area: str
    share: float
    confidence: str
    interval: str = ""


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix: rows are the truth, columns the map; shares of each row for the shade."""

    names: tuple[str, ...]
    counts: tuple[tuple[str, ...], ...]
    shares: tuple[tuple[float, ...], ...]
    producers: tuple[str, ...]
    users: tuple[str, ...]


@dataclass(frozen=True)
class ClassifyPage:
    """Everything that the template of a classify run prints."""

    record: RunRecord
    title: str
    verdict: str
    tiles: tuple[Tile, ...]
    viewer: Viewer | None
    classes: tuple[ClassRow, ...]
    confusion: Confusion | None
    inputs: tuple[tuple[str, tuple[str, ...]], ...]
    parameters: tuple[tuple[str, str], ...]
    diagnostics: tuple[tuple[str, str], ...]
    stages: tuple[tuple[str, str, float], ...]
    files: tuple[File, ...]


def classify_page(folder: Path, record: RunRecord, *, link_prefix: str = "") -> ClassifyPage:
    """Work out the page of a classify run.

    Args:
        folder: The run folder.
        record: Its record; `result` holds `classes`, a list with `name`, `color`, `pixels`,
            `share`, `area_m2` and `mean_confidence`; `uncertain_share`; and, where labels were
            given, `accuracy` with `overall`, `kappa`, `mean_f1` and `confusion`.
        link_prefix: Path from the page to the run folder, empty or ending in a slash.
    """
    return ClassifyPage(
        record=record,
        title=f"Land cover of {name_of(record, 'ms')}",
        verdict=_verdict(record),
        tiles=_tiles(record),
        viewer=_viewer(folder, record),
        classes=_classes(record),
        confusion=_confusion(record.result.get("accuracy")),
        inputs=inputs_table(record),
        parameters=pairs(record.parameters),
        diagnostics=pairs({k: v for k, v in record.diagnostics.items() if k != "stages"}),
        stages=stages(record),
        files=files(folder, record, link_prefix),
    )


def _verdict(record: RunRecord) -> str:
    classes = record.result.get("classes") or ()
    largest = max(classes, key=lambda entry: entry["share"], default=None)
    if largest is None or not largest["pixels"]:
        return "No pixel could be classified: both images are without data."
    found = sum(1 for entry in classes if entry["pixels"])
    words = f"{found} of {len(classes)} classes occur; the most common is {largest['name']}, "
    words += f"{wording.percent(largest['share'])} of the mapped area."
    accuracy = record.result.get("accuracy")
    if accuracy:
        words += f" {wording.percent(accuracy['overall'])} of the given labels agree with the map."
    return words


def _tiles(record: RunRecord) -> tuple[Tile, ...]:
    result = record.result
    tiles = []
    if record.confidence is not None:
        share = float(record.confidence)
        tiles.append(Tile("Mean confidence", wording.percent(share), "of the mapped pixels", share))
    uncertain = result.get("uncertain_share")
    if uncertain is not None:
        below = wording.number(record.parameters.get("uncertain_below"))
        tiles.append(Tile("Uncertain", wording.percent(uncertain), f"confidence below {below}"))
    accuracy = result.get("accuracy") or {}
    if accuracy:
        overall = float(accuracy["overall"])
        tiles.append(Tile("Overall accuracy", wording.percent(overall), "given labels", overall))
        tiles.append(Tile("Kappa", wording.number(accuracy.get("kappa"))))
        tiles.append(Tile("Mean F1", wording.percent(accuracy.get("mean_f1"))))
    speed = record.diagnostics.get("megapixels_per_second")
    if speed is not None:
        tiles.append(Tile("Speed, Mpx/s", wording.number(speed), "map pixels, whole loop"))
    return tuple(tiles)


def _classes(record: RunRecord) -> tuple[ClassRow, ...]:
    rows = []
    for entry in record.result.get("classes") or ():
        interval = entry.get("area_interval_m2")
        rows.append(
            ClassRow(
                color=str(entry.get("color", "#808080")),
                name=str(entry["name"]),
                area=wording.area(entry.get("area_m2")),
                share=float(entry["share"]),
                confidence=wording.percent(entry.get("mean_confidence")),
                interval="" if not interval else " to ".join(wording.area(v) for v in interval),
            )
        )
    return tuple(rows)


def _viewer(folder: Path, record: RunRecord) -> Viewer | None:
    named = record.outputs.get("previews") or {}
    found = {
        "reference": named.get("ms"),
        "before": named.get("confidence"),
        "after": named.get("map"),
    }
    images = {role: uri for role, name in found.items() if (uri := data_uri(folder, name))}
    if "reference" not in images:
        return None
    scene = input_of(record, "ms")
    height, width = (int(side) for side in scene["shape"])
    transform = scene.get("transform") if scene.get("crs") else None
    return Viewer(
        images=images,
        width=width,
        height=height,
        data={
            "reference": [width, height],
            "geotransform": None if transform is None else [float(v) for v in transform][:6],
            "crs": scene.get("crs"),
            "points": NO_POINTS,
        },
        names={"reference": "multispectral image", "before": "confidence", "after": "class map"},
        layers=("Layer", "Confidence", "Class map"),
    )


def _confusion(accuracy: Mapping[str, Any] | None) -> Confusion | None:
    if not accuracy or not accuracy.get("confusion"):
        return None
    counts = [[int(value) for value in row] for row in accuracy["confusion"]]
    columns = list(zip(*counts, strict=True))
    return Confusion(
        names=tuple(str(name) for name in accuracy["classes"]),
        counts=tuple(tuple(wording.count(value) for value in row) for row in counts),
        shares=tuple(tuple(value / max(1, sum(row)) for value in row) for row in counts),
        producers=tuple(
            wording.percent(row[i] / sum(row)) if sum(row) else wording.NONE
            for i, row in enumerate(counts)
        ),
        users=tuple(
            wording.percent(column[i] / sum(column)) if sum(column) else wording.NONE
            for i, column in enumerate(columns)
        ),
    )
