"""What the pages of all tasks share, worked out from a run folder."""

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from rsfuse.report import wording
from rsfuse.runs import RunRecord

PICTURE_FORMATS = ("PNG", "JPEG", "WEBP")

MATCH_NAMES = {
    "reference": "reference",
    "before": "query, before",
    "after": "query, registered",
}

# What the script draws where a page has no tie points.
NO_POINTS: Mapping[str, Any] = {
    name: [] for name in ("x", "y", "dx", "dy", "r", "p", "kept", "held", "why")
}


@dataclass(frozen=True)
class Tile:
    """One headline number."""

    label: str
    value: str
    detail: str = ""
    share: float | None = None


@dataclass(frozen=True)
class Viewer:
    """Pictures as data URIs and what the script of the page needs to draw over them.

    Attributes:
        images: "reference", which lies below, and "before" and "after", which are laid over it.
        width: Width of the pictures in pixels.
        height: Their height.
        data: For the script: `reference` (width and height of the image behind the picture),
            `points` (tie points), `boxes` (oriented boxes), `geotransform`, `crs`.
        note: A sentence below the picture.
        names: What each picture is called on the picture.
        layers: What the two upper pictures are called on their switch.
    """

    images: Mapping[str, str]
    width: int
    height: int
    data: Mapping[str, Any]
    note: str = ""
    names: Mapping[str, str] = field(default_factory=lambda: MATCH_NAMES)
    layers: tuple[str, str, str] = ("Query", "Before", "After")

    @property
    def script_data(self) -> Mapping[str, Any]:
        """`data` with the names."""
        return {**self.data, "names": dict(self.names)}


@dataclass(frozen=True)
class File:
    """A product of the run, linked from the page."""

    name: str
    link: str
    what: str
    size: str


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


def input_of(record: RunRecord, role: str) -> Mapping[str, Any]:
    """What the record says of the input of a role; empty where there is none."""
    return next((item for item in record.inputs if item.get("role") == role), {})


def name_of(record: RunRecord, role: str) -> str:
    """The file name of the input of a role."""
    path = str(input_of(record, role).get("path", f"the {role}"))
    return PurePosixPath(path.replace("\\", "/")).name or path


def inputs_table(record: RunRecord) -> tuple[tuple[str, tuple[str, ...]], ...]:
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


def pairs(values: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Keys and values as text."""
    return tuple((wording.label(k), wording.plain_value(v)) for k, v in values.items())


def stages(record: RunRecord) -> tuple[tuple[str, str, float], ...]:
    """Name, duration as text and share of the longest stage."""
    timed = [s for s in record.diagnostics.get("stages") or () if s.get("seconds") is not None]
    longest = max((float(stage["seconds"]) for stage in timed), default=0.0) or 1.0
    return tuple(
        (
            str(stage.get("name", "")).replace("_", " "),
            wording.seconds(float(stage["seconds"])),
            float(stage["seconds"]) / longest,
        )
        for stage in timed
    )


FILE_MEANINGS = {
    "registered": "the query on the reference grid",
    "transform": "the transform, for rsfuse apply",
    "tie_points": "tie points",
    "displacement": "displacement field",
    "detections": "oriented boxes",
    "map": "the class map, with its colours and names",
    "probabilities": "probability of each class",
    "confidence": "probability of the class that was chosen",
    "areas": "area of each class",
    "style": "style for QGIS",
    "polygons": "the map as polygons",
    "report": "this page",
}


def files(folder: Path, record: RunRecord, link_prefix: str) -> tuple[File, ...]:
    """The products that the record names, with links for the page."""
    found = []
    for product, names in record.outputs.items():
        if product in ("previews", "report"):
            continue
        for name in [names] if isinstance(names, str) else list(names or ()):
            # Products may lie beside the run folder: they are linked, never inlined.
            path = folder / str(name) if (folder / str(name)).is_file() else None
            found.append(
                File(
                    name=str(name),
                    link=quote(f"{link_prefix}{name}") if path else "",
                    what=FILE_MEANINGS.get(product, product.replace("_", " ")),
                    size=_file_size(path) if path else "missing",
                )
            )
    return tuple(found)


def _file_size(path: Path) -> str:
    size = float(path.stat().st_size)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
