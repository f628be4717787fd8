"""What the page of a detect run shows, worked out from the run folder alone."""

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
    inside,
    name_of,
    pairs,
    stages,
)
from rsfuse.runs import RunRecord, read_json


@dataclass(frozen=True)
class Chip:
    """A small picture around one object."""

    image: str
    label: str
    score: str


@dataclass(frozen=True)
class DetectPage:
    """Everything that the template of a detect run prints."""

    record: RunRecord
    title: str
    verdict: str
    tiles: tuple[Tile, ...]
    viewer: Viewer | None
    classes: tuple[tuple[str, ...], ...]
    chips: tuple[tuple[str, tuple[Chip, ...]], ...]
    inputs: tuple[tuple[str, tuple[str, ...]], ...]
    parameters: tuple[tuple[str, str], ...]
    diagnostics: tuple[tuple[str, str], ...]
    stages: tuple[tuple[str, str, float], ...]
    files: tuple[File, ...]


def detect_page(folder: Path, record: RunRecord, *, link_prefix: str = "") -> DetectPage:
    """Work out the page of a detect run.

    Args:
        folder: The run folder.
        record: Its record; `result` holds `objects` and `classes`, a list with `name`, `color`,
            `objects`, `median_score`, `median_length_m` and `median_width_m`.
        link_prefix: Path from the page to the run folder, empty or ending in a slash.
    """
    return DetectPage(
        record=record,
        title=name_of(record, "scene"),
        verdict=_verdict(record),
        tiles=_tiles(record),
        viewer=_viewer(folder, record),
        classes=tuple(_class_row(entry) for entry in record.result.get("classes") or ()),
        chips=_chips(folder, record),
        inputs=inputs_table(record),
        parameters=pairs(record.parameters),
        diagnostics=pairs({k: v for k, v in record.diagnostics.items() if k != "stages"}),
        stages=stages(record),
        files=files(folder, record, link_prefix),
    )


def _verdict(record: RunRecord) -> str:
    if record.status == "refused":
        return " ".join(str(reason["message"]) for reason in record.reasons)
    count = int(record.result.get("objects") or 0)
    score = record.parameters.get("score")
    threshold = "" if score is None else f" with a score of at least {wording.number(score)}"
    if not count:
        return f"No object was found{threshold}."
    partner = " Both images were used." if input_of(record, "partner") else ""
    objects = "One object was" if count == 1 else f"{wording.count(count)} objects were"
    return f"{objects} found{threshold}.{partner}"


def _tiles(record: RunRecord) -> tuple[Tile, ...]:
    result = record.result
    tiles = [Tile("Objects", wording.count(int(result.get("objects") or 0)))]
    for entry in sorted(result.get("classes") or (), key=lambda e: -e["objects"])[:4]:
        if entry["objects"]:
            detail = f"median score {wording.number(entry.get('median_score'))}"
            tiles.append(Tile(str(entry["name"]), wording.count(entry["objects"]), detail))
    speed = record.diagnostics.get("megapixels_per_second")
    if speed is not None:
        tiles.append(Tile("Speed, Mpx/s", wording.number(speed), "the whole scene loop"))
    return tuple(tiles)


def _class_row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """Colour, name, number, median score, median length and width."""
    return (
        str(entry.get("color", "#808080")),
        str(entry["name"]),
        wording.count(int(entry["objects"])),
        wording.number(entry.get("median_score")),
        wording.metres(entry.get("median_length_m")),
        wording.metres(entry.get("median_width_m")),
    )


def _viewer(folder: Path, record: RunRecord) -> Viewer | None:
    named = record.outputs.get("previews") or {}
    found = {"reference": named.get("scene"), "after": named.get("partner")}
    images = {role: uri for role, name in found.items() if (uri := data_uri(folder, name))}
    if "reference" not in images:
        return None
    scene = input_of(record, "scene")
    height, width = (int(side) for side in scene["shape"])
    path = inside(folder, named.get("boxes"))
    boxes = None if path is None else read_json(path)
    total = int(record.result.get("objects") or 0)
    drawn = 0 if boxes is None else len(boxes["scores"])
    note = "" if drawn >= total else f"The {wording.count(drawn)} best objects are drawn."
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
            "boxes": boxes,
        },
        note=note,
        names={"reference": "scene", "after": "second image"},
    )


def _chips(folder: Path, record: RunRecord) -> tuple[tuple[str, tuple[Chip, ...]], ...]:
    """The rows of chips: a heading and its small pictures."""
    named = record.outputs.get("previews") or {}
    rows = []
    for key, heading in (("most_certain", "Most certain"), ("least_certain", "Least certain")):
        chips = []
        for entry in named.get(key) or ():
            uri = data_uri(folder, entry.get("file"))
            if uri is not None:
                chips.append(Chip(uri, str(entry["label"]), wording.number(entry["score"])))
        if chips:
            rows.append((heading, tuple(chips)))
    return tuple(rows)
