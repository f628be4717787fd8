"""A class map as a value: the raster, its classes, areas, and the files that it goes into."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from rsfuse.classification.output import MapSummary, summarise
from rsfuse.classification.predict import MapFiles
from rsfuse.engine.bundle import ClassInfo
from rsfuse.errors import InputError
from rsfuse.geo.grid import gsd_m
from rsfuse.geo.raster import RasterSource, open_raster

# What maps are written to as polygons.
POLYGON_SUFFIXES = (".gpkg", ".geojson")


@dataclass(frozen=True)
class ClassMap:
    """A class map on disk.

    Attributes:
        files: The map, its confidence and its probabilities.
        classes: Names and colours, by number.
        uncertain_below: Confidence that counts as uncertain.
    """

    files: MapFiles
    classes: tuple[ClassInfo, ...]
    uncertain_below: float = 0.5

    @classmethod
    def open(cls, path: str | Path, confidence: str | Path | None = None) -> "ClassMap":
        """A map that `rsfuse classify` wrote; names and colours come from the file.

        Raises:
            InputError: The file names no classes.
        """
        with open_raster(path) as source:
            names, colours = source.class_names, source.colours
        if not names:
            raise InputError(
                f"{path} names no classes",
                "a class map holds a tag class_names",
                "give a map that rsfuse classify wrote",
            )
        grey = (128, 128, 128)
        classes = tuple(
            ClassInfo(
                name=names[i], color="#" + bytes(int(v) for v in colours.get(i, grey)[:3]).hex()
            )
            for i in sorted(names)
        )
        return cls(MapFiles(Path(path), None if confidence is None else Path(confidence)), classes)

    def read(self, **where: Any) -> Any:
        """Pixels as a `Raster`; arguments as `RasterSource.read`."""
        with open_raster(self.files.classes) as source:
            return source.read(**where)

    def summary(self) -> MapSummary:
        """Areas and confidence of the classes, counted strip by strip."""
        return summarise(self.files, self.classes, self.uncertain_below)

    def to_geopackage(self, path: str | Path, *, min_area_m2: float = 0.0) -> Path:
        """Write the map as polygons."""
        return polygons_of(self.files.classes, Path(path), self.classes, min_area_m2=min_area_m2)

    def to_geodataframe(self, *, min_area_m2: float = 0.0) -> Any:
        """The map as polygons with their class and area; needs `pip install rsfuse[vector]`."""
        from rsfuse.geo.vectors import geodataframe

        shapes, columns, crs = polygons_with(self.files.classes, self.classes, min_area_m2)
        return geodataframe(columns, shapes, crs)

    def __str__(self) -> str:
        parts = [f"{a.info.name} {100 * a.share:.1f} %" for a in self.summary().classes if a.pixels]
        return f"{self.files.classes.name}: {', '.join(parts) or 'no class'}"

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(
            f'<tr><td><span style="background:{a.info.color}">&emsp;</span> {escape(a.info.name)}'
            f"</td><td>{100 * a.share:.1f} %</td></tr>"
            for a in self.summary().classes
        )
        return f"<table>{rows}</table>"

    def plot(self) -> Any:
        """A matplotlib figure of the map with its legend."""
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch

        from rsfuse.classification.predict import rgb
        from rsfuse.geo.picture import preview

        with open_raster(self.files.classes) as source:
            raster = preview(source, 1000)
        picture = np.full((*raster.shape, 3), 255, np.uint8)
        for i, item in enumerate(self.classes):
            picture[raster.valid & (raster.data[0] == i)] = rgb(item.color)
        h, w = raster.shape
        figure = Figure(figsize=(8, 8 * h / w), layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(picture)
        axes.legend(handles=[Patch(color=item.color, label=item.name) for item in self.classes])
        axes.set_axis_off()
        return figure


def polygons_of(
    path: Path, target: Path, classes: Sequence[ClassInfo], *, min_area_m2: float = 0.0
) -> Path:
    """Write a class map as polygons with their class and area, atomically.

    Pixels that touch at a side form one polygon. Polygons smaller than `min_area_m2` take the class
    of their largest neighbour (GDAL's sieve). The map is read whole: use it for maps of up to some
    hundred million pixels.

    Args:
        path: The map.
        target: `.gpkg` or `.geojson`.
        classes: Of the map.
        min_area_m2: Smallest polygon; in pixels where the map has no CRS.

    Raises:
        OutputError: The file cannot be written.
    """
    from rsfuse.geo.write import write_shapes

    shapes, columns, crs = polygons_with(path, classes, min_area_m2)
    write_shapes(target, shapes, columns, crs, layer="land_cover")
    return target


def polygons_with(
    path: Path, classes: Sequence[ClassInfo], min_area_m2: float
) -> tuple[npt.NDArray[np.object_], dict[str, npt.NDArray[Any]], str | None]:
    """The polygons of a class map on the ground, their columns, and the CRS; see `polygons_of`."""
    from rsfuse.geo.vectors import polygonise

    with open_raster(path) as source:
        least = _least_pixels(source, min_area_m2)
        numbers, shapes = polygonise(source, least)
        pixel = gsd_m(source.geobox) ** 2 if source.is_georeferenced else 1.0
        affine = source.geobox.affine
        crs = source.geobox.crs.to_wkt() if source.geobox.crs is not None else None
    names = np.array([item.name for item in classes], dtype=object)
    areas = shapely.area(shapes) * pixel

    def place(xy: Any) -> Any:
        x, y = xy[:, 0], xy[:, 1]
        return np.column_stack(
            [affine.a * x + affine.b * y + affine.c, affine.d * x + affine.e * y + affine.f]
        )

    columns = {
        "class": names[numbers] if len(numbers) else np.empty(0, object),
        "number": numbers,
        "area_m2" if crs else "area_px": areas.round(2),
    }
    return shapely.transform(shapes, place), columns, crs


def _least_pixels(source: RasterSource, min_area_m2: float) -> int:
    if min_area_m2 <= 0:
        return 0
    pixel = gsd_m(source.geobox) ** 2 if source.is_georeferenced else 1.0
    return int(np.ceil(min_area_m2 / pixel))
