"""What was found in a scene: oriented boxes with classes and scores, and the files they go into."""

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from rsfuse.errors import InputError
from rsfuse.geo.grid import apply_affine, ground_segments
from rsfuse.geo.write import write_polygons
from rsfuse.ops.boxes import corners_of, from_corners
from rsfuse.runs import atomic_path

Floats = npt.NDArray[np.float64]

# Format -> suffixes of its files, the usual one first.
SUFFIXES = {
    "gpkg": (".gpkg",),
    "geojson": (".geojson",),
    "geoparquet": (".parquet", ".geoparquet"),
    "dota": (".zip",),
    "csv": (".csv",),
}
FORMATS = tuple(SUFFIXES)


@dataclass(frozen=True, eq=False)
class Detections:
    """Oriented boxes, best score first.

    Attributes:
        corners: (N, 4, 2) in pixels, corner convention, clockwise on the screen.
        scores: (N,) in [0, 1].
        labels: (N,) numbers of classes.
        classes: Names.
        shape: (h, w) of the image.
        geobox: Its grid; None without georeference.
        headings: (N,) direction of the front in radians, clockwise from +x in the image; None where
            the model gives none.
        name: Stem of the image.
    """

    corners: Floats
    scores: Floats
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    shape: tuple[int, int]
    geobox: GeoBox | None = None
    headings: Floats | None = None
    name: str = ""
    _cache: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        count = len(self.scores)
        if self.corners.shape != (count, 4, 2) or len(self.labels) != count:
            raise InputError(
                f"corners {self.corners.shape}, {count} scores, {len(self.labels)} labels",
                "one quadrilateral, one score and one label are needed per object",
                "check where they come from",
            )
        if count and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            raise InputError(
                f"labels from {self.labels.min()} to {self.labels.max()}",
                f"there are {len(self.classes)} classes, numbered from 0",
                "check the order of the classes",
            )

    @classmethod
    def of_boxes(
        cls,
        boxes: Floats,
        scores: Floats,
        labels: npt.NDArray[np.int64],
        classes: Sequence[str],
        shape: tuple[int, int],
        geobox: GeoBox | None = None,
        name: str = "",
    ) -> "Detections":
        """From oriented boxes (N, 5), or (N, 6) with the heading."""
        order = np.argsort(-scores, kind="stable")
        boxes = np.asarray(boxes, np.float64)[order]
        headings = boxes[:, 5] if boxes.shape[1] == 6 else None
        corners = corners_of(boxes[:, :5])
        return cls(
            corners, scores[order], labels[order], tuple(classes), shape, geobox, headings, name
        )

    def __len__(self) -> int:
        """Number of objects."""
        return len(self.scores)

    def __str__(self) -> str:
        counts = np.bincount(self.labels, minlength=len(self.classes))
        parts = [f"{n} {name}" for n, name in zip(counts, self.classes, strict=True) if n]
        return f"{len(self)} objects in {self.name or 'an image'}: {', '.join(parts) or 'none'}"

    @property
    def boxes(self) -> Floats:
        """(N, 5): cx, cy, w, h, angle in pixels."""
        return from_corners(self.corners)

    def at(self, which: npt.NDArray[Any]) -> "Detections":
        """Those of an index or a mask."""
        headings = None if self.headings is None else self.headings[which]
        return Detections(
            self.corners[which],
            self.scores[which],
            self.labels[which],
            self.classes,
            self.shape,
            self.geobox,
            headings,
            self.name,
        )

    def above(self, score: float, classes: Sequence[str] | None = None) -> "Detections":
        """Those of at least a score, of some classes.

        Raises:
            InputError: A class is unknown.
        """
        keep = self.scores >= score
        if classes is not None:
            unknown = [name for name in classes if name not in self.classes]
            if unknown:
                raise InputError(
                    f"class {unknown[0]!r} is unknown",
                    f"the model knows {', '.join(self.classes)}",
                    "choose among them",
                )
            keep &= np.isin(self.labels, [self.classes.index(name) for name in classes])
        return self.at(keep)

    @property
    def is_georeferenced(self) -> bool:
        """Whether lengths and places on the ground are known."""
        return self.geobox is not None and self.geobox.crs is not None

    def world(self) -> Floats:
        """(N, 4, 2) corners in map units; pixels without georeference."""
        if self.geobox is None:
            return self.corners
        flat = apply_affine(self.geobox.affine, self.corners.reshape(-1, 2))
        return flat.reshape(-1, 4, 2)

    def sizes_m(self) -> Floats | None:
        """(N, 2) length and width in metres; None without a CRS."""
        found = self._ground()
        return None if found is None else found[:, :2]

    def azimuths_deg(self) -> Floats | None:
        """(N,) direction of the long side, clockwise from north, 0 to 180; None without a CRS."""
        found = self._ground()
        return None if found is None else found[:, 2]

    def _ground(self) -> Floats | None:
        """(N, 3) length, width, azimuth."""
        if not self.is_georeferenced:
            return None
        if "ground" not in self._cache:
            assert self.geobox is not None
            c = self.corners
            middles = [(c[:, i] + c[:, (i + 1) % 4]) / 2 for i in range(4)]
            one, azimuth_one = ground_segments(self.geobox, middles[3], middles[1])
            two, azimuth_two = ground_segments(self.geobox, middles[0], middles[2])
            long_first = one >= two
            table = np.column_stack(
                [
                    np.where(long_first, one, two),
                    np.where(long_first, two, one),
                    np.where(long_first, azimuth_one, azimuth_two) % 180.0,
                ]
            )
            self._cache["ground"] = table
        found: Floats = self._cache["ground"]
        return found

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """Attributes of each object: class, score and, where known, sizes and directions."""
        names = np.array(self.classes, dtype=object)
        table: dict[str, npt.NDArray[Any]] = {
            "class": names[self.labels] if len(self) else np.empty(0, object),
            "score": self.scores.round(4),
        }
        ground = self._ground()
        if ground is None:
            boxes = self.boxes
            table |= {"length_px": boxes[:, 2], "width_px": boxes[:, 3]}
        else:
            table |= {
                "length_m": ground[:, 0].round(3),
                "width_m": ground[:, 1].round(3),
                "azimuth_deg": ground[:, 2].round(2),
            }
        if self.headings is not None and self.is_georeferenced:
            assert self.geobox is not None
            centre = self.corners.mean(axis=1)
            ahead = centre + np.column_stack([np.cos(self.headings), np.sin(self.headings)])
            _, heading = ground_segments(self.geobox, centre, ahead)
            table["heading_deg"] = heading.round(2)
        return table

    def save(self, path: str | Path, kind: str | None = None) -> Path:
        """Write the objects, atomically; the suffix chooses the format, `kind` may only confirm it.

        Raises:
            InputError: Unknown format, or a suffix of another one.
            OutputError: The file cannot be written.
        """
        path = Path(path)
        kind = format_of(path, kind)
        if kind == "dota":
            write_submission(path, [self])
        elif kind == "geoparquet":
            self._to_geoparquet(path)
        else:
            write_polygons(path, self.world(), self.columns(), self._crs(), layer="detections")
        return path

    def to_geopackage(self, path: str | Path) -> Path:
        """Write a GeoPackage in the CRS of the scene."""
        return self.save(path, "gpkg")

    def to_geojson(self, path: str | Path) -> Path:
        """Write GeoJSON, in longitude and latitude where a CRS is known (RFC 7946)."""
        return self.save(path, "geojson")

    def to_csv(self, path: str | Path) -> Path:
        """Write CSV with the outlines as well-known text."""
        return self.save(path, "csv")

    def to_dota(self, path: str | Path, task: Literal[1, 2] = 1) -> Path:
        """Write the zip file that the DOTA server takes: Task 1 oriented, Task 2 horizontal."""
        return write_submission(path, [self], task=task)

    def to_geodataframe(self) -> Any:
        """A GeoDataFrame; needs `pip install rsfuse[vector]`."""
        import shapely

        from rsfuse.geo.vectors import geodataframe

        shapes = shapely.polygons(self.world()) if len(self) else []
        return geodataframe(self.columns(), shapes, self._crs())

    def _to_geoparquet(self, path: Path) -> None:
        with atomic_path(path) as temporary:
            self.to_geodataframe().to_parquet(temporary)

    def _crs(self) -> Any:
        return None if not self.is_georeferenced else self.geobox.crs.to_wkt()  # type: ignore[union-attr]

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(
            f"<tr><td>{escape(name)}</td><td>{int((self.labels == k).sum())}</td></tr>"
            for k, name in enumerate(self.classes)
        )
        return (
            f"<table><thead><tr><th>{escape(self.name or 'objects')}</th><th>{len(self)}</th></tr>"
            f"</thead><tbody>{rows}</tbody></table>"
        )

    def plot(self, image: npt.NDArray[Any] | None = None) -> Any:
        """A matplotlib figure of the boxes, on the image (H, W) or (H, W, 3) where it is given."""
        from matplotlib.collections import PolyCollection
        from matplotlib.figure import Figure

        h, w = self.shape
        figure = Figure(figsize=(8, 8 * h / w), layout="constrained")
        axes = figure.add_subplot()
        if image is not None:
            axes.imshow(image, cmap="gray", extent=(0, w, h, 0))
        for k, name in enumerate(self.classes):
            mine = self.corners[self.labels == k]
            if len(mine):
                axes.add_collection(
                    PolyCollection(list(mine), facecolors="none", edgecolors=f"C{k}", label=name)
                )
        axes.set_xlim(0, w)
        axes.set_ylim(h, 0)
        if len(self):
            axes.legend()
        axes.set_title(str(self))
        return figure


def format_of(path: str | Path, kind: str | None = None) -> str:
    """The format of a file of boxes by its suffix, checked against `kind` where that is given.

    Raises:
        InputError: The suffix or `kind` is unknown, or they contradict each other.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    found = next((name for name, known in SUFFIXES.items() if suffix in known), "")
    wanted = found if kind is None else kind
    if wanted not in SUFFIXES:
        raise InputError(
            f"{path} has no format that is known" if kind is None else f"no format is {kind!r}",
            f"known are {', '.join(FORMATS)}",
            "for example -o found.gpkg",
        )
    if wanted != found:
        raise InputError(
            f"{path} is not the name of a {wanted} file",
            f"its name ends in {' or '.join(SUFFIXES[wanted])}, as other programs expect",
            f"name it {path.stem}{SUFFIXES[wanted][0]}, or ask for another format",
        )
    return found


def check_image_name(name: str) -> None:
    """Check that a submission can name the image.

    Raises:
        InputError: It has no name, or one with a space.
    """
    if not name or name != "".join(name.split()):
        raise InputError(
            f"the image name {name!r} is empty or holds a space",
            "lines of a DOTA submission begin with the name of the image and are cut at spaces",
            "rename the image, or write another format",
        )


def write_submission(
    path: str | Path, images: Sequence[Detections], *, task: Literal[1, 2] = 1
) -> Path:
    """Write the zip file of a DOTA submission, atomically: one text file per class, empty ones too.

    Lines are `image score x1 y1 ... y4` (Task 1) or `image score xmin ymin xmax ymax` (Task 2).

    Args:
        path: The zip file.
        images: Detections of each image, in its pixels, with its name.
        task: 1 for oriented boxes, 2 for horizontal ones.

    Raises:
        InputError: No image, an image without a name, or images of different classes.
    """
    path = Path(path)
    if not images:
        raise InputError(
            "no image to submit", "a submission holds at least one", "give Detections of an image"
        )
    for image in images:
        check_image_name(image.name)
    classes = images[0].classes
    if any(image.classes != classes for image in images):
        raise InputError(
            "the images have different classes", "one list serves all", "use one model for all"
        )
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for k, name in enumerate(classes):
            text = io.StringIO()
            for image in images:
                for i in np.flatnonzero(image.labels == k):
                    corners = image.corners[i]
                    values = (
                        corners.ravel()
                        if task == 1
                        else np.concatenate([corners.min(axis=0), corners.max(axis=0)])
                    )
                    numbers = " ".join(f"{value:.2f}" for value in values)
                    text.write(f"{image.name} {image.scores[i]:.6f} {numbers}\n")
            archive.writestr(f"Task{task}_{name}.txt", text.getvalue())
    return path


def read_submission(
    path: str | Path,
) -> dict[str, tuple[list[str], Floats, Floats]]:
    """Class -> names of images (N), scores (N,), corners (N, 4, 2) of a Task 1 or Task 2 result.

    Args:
        path: A zip file, or a folder of Task1_*.txt or Task2_*.txt.

    Raises:
        InputError: No such files, or a damaged line; the error names it.
    """
    path = Path(path)
    texts: dict[str, str] = {}
    if path.is_dir():
        texts = {p.name: p.read_text(encoding="utf-8") for p in sorted(path.glob("Task*_*.txt"))}
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if Path(n).name.startswith("Task")]
            texts = {Path(n).name: archive.read(n).decode("utf-8") for n in sorted(names)}
    if not texts:
        raise InputError(
            f"{path} holds no results",
            "a folder or zip file of Task1_<class>.txt is needed",
            "check the path",
        )
    return {
        name.partition("_")[2].removesuffix(".txt"): _parse(name, text)
        for name, text in texts.items()
    }


def of_submission(path: str | Path) -> list[Detections]:
    """The results of a Task 1 or Task 2 submission, one per image; sizes of images are not known.

    Raises:
        InputError: As of `read_submission`.
    """
    found = read_submission(path)
    classes = tuple(found)
    names = sorted({name for images, _, _ in found.values() for name in images})
    index = {name: i for i, name in enumerate(names)}
    image = np.concatenate([[index[n] for n in images] for images, _, _ in found.values()])
    scores = np.concatenate([scores for _, scores, _ in found.values()])
    corners = np.concatenate([corners for *_, corners in found.values()])
    labels = np.repeat(np.arange(len(classes)), [len(s) for _, s, _ in found.values()])
    results = []
    for i, name in enumerate(names):
        mine = np.flatnonzero(image == i)
        mine = mine[np.argsort(-scores[mine], kind="stable")]
        most = corners[mine].reshape(-1, 2).max(axis=0)
        shape = (max(1, int(np.ceil(most[1]))), max(1, int(np.ceil(most[0]))))
        results.append(
            Detections(corners[mine], scores[mine], labels[mine], classes, shape, None, None, name)
        )
    return results


def _parse(name: str, text: str) -> tuple[list[str], Floats, Floats]:
    images, rows = [], []
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        try:
            values = [float(v) for v in fields[1:]]
            if len(values) not in (5, 9) or not np.isfinite(values).all():
                raise ValueError(len(values))
        except ValueError as error:
            raise InputError(
                f"{name}, line {number}: {line[:60]!r}",
                "a line is: image score and eight (or, for Task 2, four) coordinates",
                "correct or remove the line",
            ) from error
        if len(values) == 5:
            x0, y0, x1, y1 = values[1:]
            values = [values[0], x0, y0, x1, y0, x1, y1, x0, y1]
        images.append(fields[0])
        rows.append(values)
    table = np.array(rows, np.float64).reshape(-1, 9)
    return images, table[:, 0], table[:, 1:].reshape(-1, 4, 2)
