"""What there is to show: the rasters and vectors of run folders and files."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rsfuse.errors import InputError
from rsfuse.geo.raster import open_raster
from rsfuse.runs import RunRecord, is_run_folder

VECTOR_SUFFIXES = (".gpkg", ".geojson", ".json", ".fgb", ".shp")

# Outputs of runs that are shown as rasters: name in run.json -> title.
RASTER_OUTPUTS = {"registered": "registered", "map": "map", "confidence": "confidence"}
VECTOR_OUTPUTS = {"detections": "objects", "tie_points": "tie points"}

RasterKind = Literal["picture", "classes", "confidence"]


@dataclass(frozen=True)
class RasterLayer:
    """A raster.

    Attributes:
        title: What the page calls it.
        path: What GDAL opens.
        kind: "picture" is stretched, "classes" has a colour table, "confidence" runs from 0 to 1.
    """

    title: str
    path: str
    kind: RasterKind = "picture"


@dataclass(frozen=True)
class VectorLayer:
    """Boxes, other polygons, or points.

    Attributes:
        title: What the page calls it.
        path: What GDAL opens.
    """

    title: str
    path: str


@dataclass(frozen=True)
class Scene:
    """Everything that one page shows.

    Attributes:
        title: Of the page.
        rasters: The first one's grid is that of the page.
        vectors: Over the rasters.
        facts: Label and value of each line about the runs.
        classes: Name, colour "#rrggbb" and area in square metres (or None) of each class of a map
            or of objects.
        notes: What could not be shown, and why.
        sides: Numbers of the rasters to the left and the right of the swipe at first.
    """

    title: str
    rasters: tuple[RasterLayer, ...]
    vectors: tuple[VectorLayer, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    classes: tuple[tuple[str, str, float | None], ...] = ()
    notes: tuple[str, ...] = ()
    sides: tuple[int, int] = (0, 0)


@dataclass
class _Found:
    """What has been collected so far."""

    rasters: list[RasterLayer] = field(default_factory=list)
    vectors: list[VectorLayer] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    classes: dict[str, tuple[str, float | None]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add_raster(self, layer: RasterLayer) -> None:
        if layer.path not in [other.path for other in self.rasters]:
            self.rasters.append(layer)


def collect(paths: Sequence[str | Path]) -> Scene:
    """The layers of run folders, of folders that hold some, of rasters and of vector files.

    Raises:
        InputError: A path does not exist, or there is no raster among them.
    """
    found = _Found()
    for path in paths:
        folder = Path(path)
        if folder.is_dir():
            for run in _runs_in(folder):
                _add_run(found, run)
        elif folder.suffix.lower() in VECTOR_SUFFIXES:
            if not folder.is_file():
                raise InputError(
                    f"{path} does not exist", "a vector file is needed", "check the path"
                )
            found.vectors.append(VectorLayer(folder.stem, str(path)))
        else:
            found.add_raster(_raster(folder.name, str(path)))
    if not found.rasters:
        raise InputError(
            "there is no raster to show",
            "the page needs the grid of at least one",
            "name a raster as well, for example the image that the boxes were found in",
        )
    return Scene(
        title=", ".join(Path(path).resolve().name for path in paths),
        rasters=tuple(found.rasters),
        vectors=tuple(found.vectors),
        facts=tuple(found.facts),
        classes=tuple((name, *rest) for name, rest in found.classes.items()),
        notes=tuple(found.notes),
        sides=_sides(found.rasters),
    )


def _runs_in(folder: Path) -> list[Path]:
    """The run folder itself, or those right below it."""
    if is_run_folder(folder):
        return [folder]
    runs = sorted(child for child in folder.iterdir() if child.is_dir() and is_run_folder(child))
    if not runs:
        raise InputError(
            f"{folder} is no run folder and holds none",
            "a folder that a command wrote with -o, or rasters, are needed",
            "name the files themselves, for example rsfuse view FOLDER/*.tif",
        )
    return runs


def _add_run(found: _Found, folder: Path) -> None:
    record = RunRecord.load(folder)
    confidence = "" if record.confidence is None else f", confidence {record.confidence:.2f}"
    found.facts.append((record.task, f"{record.status}{confidence}"))
    found.facts.extend((str(reason.get("code")), str(reason.get("message")))
                       for reason in record.reasons)  # fmt: skip
    for given in record.inputs:
        path = _input_path(str(given.get("path", "")), folder)
        role = str(given.get("role", "image"))
        if path is None:
            found.notes.append(f"{role} of {folder.name}: {given.get('path')} is not there")
        else:
            found.add_raster(_raster(role, path))
    for name, path in _outputs(record, folder):
        if name in RASTER_OUTPUTS:
            found.add_raster(_raster(RASTER_OUTPUTS[name], path))
        elif Path(path).suffix.lower() in VECTOR_SUFFIXES:
            found.vectors.append(VectorLayer(VECTOR_OUTPUTS[name], path))
    for entry in record.result.get("classes", ()):
        found.classes[entry["name"]] = (entry.get("color", "#808080"), entry.get("area_m2"))


def _outputs(record: RunRecord, folder: Path) -> Iterator[tuple[str, str]]:
    """Name and path of each file that can be shown."""
    for name, value in record.outputs.items():
        if name not in RASTER_OUTPUTS and name not in VECTOR_OUTPUTS:
            continue
        for relative in [value] if isinstance(value, str) else value:
            path = folder / relative
            if path.is_file():
                yield name, str(path)


def _input_path(path: str, folder: Path) -> str | None:
    """Where an input lies: as it was given, or beside the run when the whole was moved."""
    if "://" in path or path.startswith("/vsi"):
        return path
    places = [Path(path), *(parent / path for parent in folder.resolve().parents)]
    return next((str(place) for place in places if place.is_file()), None)


def _raster(title: str, path: str) -> RasterLayer:
    with open_raster(path) as source:
        if source.colours:
            return RasterLayer(title, path, "classes")
    return RasterLayer(title, path, "confidence" if title == "confidence" else "picture")


def _sides(rasters: Sequence[RasterLayer]) -> tuple[int, int]:
    """The reference beside what was registered or mapped; the first two otherwise."""
    titles = [layer.title for layer in rasters]
    for wanted in ("registered", "map"):
        if wanted in titles:
            return 0, titles.index(wanted)
    return 0, min(1, len(rasters) - 1)


def area_text(area_m2: float | None) -> str:
    """An area for people."""
    if area_m2 is None:
        return ""
    if area_m2 >= 1e6:
        return f"{area_m2 / 1e6:,.2f} km²"
    return f"{area_m2 / 1e4:,.2f} ha" if area_m2 >= 1e4 else f"{area_m2:,.0f} m²"


def described(scene: Scene) -> Mapping[str, Any]:
    """What the page itself is told of a scene; paths are not part of it."""
    return {
        "title": scene.title,
        "rasters": [{"title": layer.title, "kind": layer.kind} for layer in scene.rasters],
        "vectors": [{"title": layer.title} for layer in scene.vectors],
        "facts": [list(fact) for fact in scene.facts],
        "classes": [[name, colour, area_text(area)] for name, colour, area in scene.classes],
        "notes": list(scene.notes),
        "sides": list(scene.sides),
    }
