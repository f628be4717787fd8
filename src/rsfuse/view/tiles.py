"""Tiles, features and values on the lattice of the page, read when they are asked for.

The lattice is that of the first raster: x runs along its columns and y, as maps want it, against
its rows. Every other raster is read through the ground onto it, so turned grids, other CRS and
other pixel sizes need nothing of their own. Level 0 shows one raster pixel per picture pixel, each
level above it half as much.
"""

import io
import math
from collections.abc import Sequence
from functools import lru_cache, partial
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from rsfuse.errors import RsfuseError
from rsfuse.geo.grid import Points, apply_affine, gsd_m, pixel_mapping, to_lonlat
from rsfuse.geo.picture import Tones, picture_bands, preview, stretch, tones_of
from rsfuse.geo.raster import open_raster
from rsfuse.geo.vectors import read_features
from rsfuse.geo.warp import Resampling, read_mapped
from rsfuse.view.layers import RasterLayer, Scene, VectorLayer

SIDE = 256  # of a tile, picture pixels
FINEST = -3  # pictures up to 8 times as fine as the first raster
MOST_FEATURES = 4000  # per answer; the best scores
TONE_SIDE = 1024  # of the reduced picture that the stretch of a raster is taken from
KEPT_TILES = 512

# Low, middle and high confidence, told apart by people who do not see colours too.
_CONFIDENCE = np.array([[94, 60, 153], [247, 247, 247], [230, 97, 1]], np.float64)


class Pictures:
    """The rasters of a scene as pictures on the lattice of the first.

    Attributes:
        shape: (h, w) of the lattice.
        finest: Lowest level that shows more detail than the one above it.
        coarsest: The level at which the lattice fits into a tile.
    """

    def __init__(self, layers: Sequence[RasterLayer]) -> None:
        self.layers = tuple(layers)
        self._sources = [open_raster(layer.path) for layer in layers]
        self.grid = self._sources[0].geobox
        self.shape = self._sources[0].shape
        self.notes: list[str] = []
        self._mappings = [self._mapping(i) for i in range(len(layers))]
        self._tones: dict[int, Tones] = {}
        self._locks = [Lock() for _ in layers]
        self.coarsest = max(0, math.ceil(math.log2(max(self.shape) / SIDE)))
        self.finest = max(FINEST, min(0, *(self._detail(i) for i in range(len(layers)))))
        self.tile = lru_cache(maxsize=KEPT_TILES)(self._tile)

    def close(self) -> None:
        """Close the files."""
        for source in self._sources:
            source.close()

    def usable(self, number: int) -> bool:
        """Whether a raster has a place on the lattice."""
        return self._mappings[number] is not None

    def _mapping(self, number: int) -> Any:
        try:
            return pixel_mapping(self.grid, self._sources[number].geobox)
        except RsfuseError as error:
            self.notes.append(f"{self.layers[number].title} is left out: {error.what}")
            return None

    def _detail(self, number: int) -> int:
        """Level at which a raster shows all that it has."""
        if not self.usable(number):
            return 0
        middle = np.array([self.shape[1] / 2, self.shape[0] / 2])
        steps = self._mappings[number](middle + np.array([[0, 0], [1, 0], [0, 1]], float))
        size = np.hypot(*(steps[1:] - steps[0]).T).max()
        return -math.ceil(math.log2(size) - 0.2) if np.isfinite(size) and size > 0 else 0

    def _tile(self, number: int, level: int, column: int, row: int) -> bytes:
        """One tile as a PNG file, transparent where there is nothing."""
        step = 2.0**level
        corner = np.array([column, row]) * (SIDE * step)

        def onto(points: Points) -> Points:
            placed: Points = self._mappings[number](points * step + corner)
            return placed

        source, layer = self._sources[number], self.layers[number]
        flat = layer.kind == "classes"
        bands = [1] if layer.kind != "picture" else list(picture_bands(source))
        resampling: Resampling = "nearest" if flat else "bilinear"
        with self._locks[number]:
            raster = read_mapped(source, (SIDE, SIDE), onto, bands=bands, resampling=resampling)
            if flat:
                pixels = _palette(raster.data[0], raster.valid, source.colours)
            elif layer.kind == "confidence":
                full = 1.0 if source.dtype.startswith("float") else 100.0
                pixels = _graded(raster.data[0] / full, raster.valid)
            else:
                pixels = stretch(raster, self._tones_of(number))
        return _png(pixels)

    def _tones_of(self, number: int) -> Tones:
        if number not in self._tones:
            self._tones[number] = tones_of(preview(self._sources[number], TONE_SIDE))
        return self._tones[number]

    def place(self, x: float, y: float) -> dict[str, Any]:
        """What is at a place of the lattice: map coordinates, degrees, and the values there."""
        here = np.array([[x, y]])
        said: dict[str, Any] = {"pixel": [x, y], "values": self._values(here)}
        if self.grid.crs is not None:
            said["map"] = apply_affine(self.grid.affine, here)[0].tolist()
            degrees = to_lonlat(self.grid, here)[0]
            if np.isfinite(degrees).all():
                said["degrees"] = degrees.tolist()
        return said

    def _values(self, here: Points) -> list[dict[str, Any]]:
        values = []
        for number, source in enumerate(self._sources):
            if not self.usable(number):
                continue
            mapping = partial(_moved, self._mappings[number], here - 0.5)
            with self._locks[number]:
                raster = read_mapped(source, (1, 1), mapping, resampling="nearest")
            if raster.valid[0, 0]:
                found = [float(v) for v in raster.data[:, 0, 0]]
                text = ", ".join(f"{value:.4g}" for value in found[:4])
                if self.layers[number].kind == "classes":
                    text = source.class_names.get(round(found[0]), text)
                values.append({"title": self.layers[number].title, "value": text})
        return values

    def described(self) -> dict[str, Any]:
        """What the page is told of the lattice."""
        crs = self.grid.crs
        try:
            pixel_m: float | None = gsd_m(self.grid)
        except RsfuseError:
            pixel_m = None
        return {
            "width": self.shape[1],
            "height": self.shape[0],
            "tile": SIDE,
            "finest": self.finest,
            "coarsest": self.coarsest,
            "gsd_m": pixel_m,
            "crs": None if crs is None else str(crs),
        }


class Shapes:
    """Polygons or points of a vector file, on the lattice, by the window that is seen."""

    def __init__(self, layer: VectorLayer, grid: Any) -> None:
        self.features = read_features(layer.path, grid, points=True)
        self._tree = shapely.STRtree(self.features.shapes)
        names = self.features.columns
        self.score = next((n for n in ("probability", "score", "confidence") if n in names), None)
        self.label = next((n for n in ("class", "class_name", "label") if n in names), None)

    def described(self) -> dict[str, Any]:
        """What the page is told before it asks for features."""
        labels: list[str] = []
        if self.label is not None:
            labels = sorted({str(value) for value in self.features.columns[self.label]})
        return {"count": len(self.features), "score": self.score, "classes": labels}

    def within(self, bounds: tuple[float, float, float, float], least: float) -> dict[str, Any]:
        """Features in a window of the lattice (x0, y0, x1, y1), the best scores first.

        Their coordinates are those of the page: y runs upwards.
        """
        rows = np.sort(self._tree.query(shapely.box(*bounds)))
        if self.score is not None:
            values = np.nan_to_num(self.features.columns[self.score][rows].astype(np.float64))
            rows, values = rows[values >= least], values[values >= least]
            rows = rows[np.argsort(-values, kind="stable")]
        shown = rows[:MOST_FEATURES]
        return {
            "total": len(rows),
            "features": [self._feature(int(row)) for row in shown],
        }

    def _feature(self, row: int) -> dict[str, Any]:
        shape = self.features.shapes[row]
        turned = shapely.transform(shape, lambda xy: xy * np.array([1.0, -1.0]))
        columns = {name: _plain(values[row]) for name, values in self.features.columns.items()}
        return {
            "id": row,
            "geometry": shapely.geometry.mapping(turned),
            "score": None if self.score is None else columns[self.score],
            "class": None if self.label is None else str(columns[self.label]),
            "columns": columns,
        }


def open_scene(scene: Scene) -> tuple[Pictures, list[Shapes]]:
    """The rasters and vectors of a scene, ready to be asked."""
    pictures = Pictures(scene.rasters)
    return pictures, [Shapes(layer, pictures.grid) for layer in scene.vectors]


def _moved(mapping: Any, corner: Points, points: Points) -> Points:
    placed: Points = mapping(points + corner)
    return placed


def _plain(value: Any) -> Any:
    """A cell as JSON can hold it."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value if isinstance(value, int | bool) or value is None else str(value)


def _palette(
    values: npt.NDArray[Any], valid: npt.NDArray[np.bool_], colours: Any
) -> npt.NDArray[np.uint8]:
    table = np.zeros((256, 4), np.uint8)
    for value, colour in colours.items():
        if 0 <= value < 256:
            table[value] = (*colour[:3], 255)
    numbers = np.clip(np.round(values), 0, 255).astype(np.uint8)
    pixels = table[numbers]
    pixels[~valid] = 0
    return pixels


def _graded(values: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """A confidence of 0 to 1 as a colour between three."""
    place = np.clip(values, 0, 1) * 2
    low = np.minimum(place.astype(int), 1)
    part = (place - low)[..., None]
    colour = _CONFIDENCE[low] * (1 - part) + _CONFIDENCE[low + 1] * part
    return np.concatenate([colour, valid[..., None] * 255.0], axis=-1).round().astype(np.uint8)


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png", compress_level=1)
    return buffer.getvalue()
