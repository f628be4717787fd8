"""The run folder of a class map: areas, pictures, style, record."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np

from rsfuse.classification.predict import NO_CLASS, NO_PERCENT, MapFiles, rgb
from rsfuse.engine.bundle import ClassInfo
from rsfuse.geo.grid import gsd_m
from rsfuse.geo.picture import preview, preview_shape, save_picture, stretch
from rsfuse.geo.raster import RasterSource, open_raster
from rsfuse.geo.tiles import plan_tiles
from rsfuse.runs import atomic_path

# The strips in which finished maps are counted.
_COUNT_TILE = 1024


@dataclass(frozen=True)
class ClassArea:
    """How much of a map is of one class.

    Attributes:
        info: Name and colour.
        pixels: Pixels of the map.
        share: Of all pixels that have a class.
        area_m2: On the ground; None without a CRS.
        mean_confidence: Mean probability of these pixels; None where there are none.
    """

    info: ClassInfo
    pixels: int
    share: float
    area_m2: float | None
    mean_confidence: float | None

    def to_dict(self) -> dict[str, Any]:
        """As it is stored in run records."""
        return {
            "name": self.info.name,
            "color": self.info.color,
            "pixels": self.pixels,
            "share": self.share,
            "area_m2": self.area_m2,
            "mean_confidence": self.mean_confidence,
        }


@dataclass(frozen=True)
class MapSummary:
    """What a finished map holds.

    Attributes:
        classes: One entry per class, in the order of their numbers.
        mean_confidence: Over all pixels that have a class; None where there are none.
        uncertain_share: Share of the pixels whose confidence is below the limit.
    """

    classes: tuple[ClassArea, ...]
    mean_confidence: float | None
    uncertain_share: float | None


def sidecars(target: Path) -> tuple[Path, Path]:
    """The style and the areas of a map, beside it."""
    return target.with_suffix(".qml"), target.with_name(f"{target.stem}_areas.csv")


def summarise(files: MapFiles, classes: Sequence[ClassInfo], uncertain_below: float) -> MapSummary:
    """Count a finished map, strip by strip.

    Areas are pixels times the area of a pixel at the middle of the map.

    Args:
        files: The map and its confidence.
        classes: Its classes.
        uncertain_below: Pixels of a lower confidence, in [0, 1], count as uncertain.
    """
    count = len(classes)
    pixels = np.zeros(count, np.int64)
    total = np.zeros(count, np.float64)
    uncertain = 0
    with open_raster(files.classes) as found:
        confidence = None if files.confidence is None else open_raster(files.confidence)
        for tile in plan_tiles(found.shape, tile=_COUNT_TILE, halo=0, block=found.block):
            raster = found.read(tile.core)
            numbers = raster.data[0][raster.valid].astype(np.int64)
            pixels += np.bincount(numbers, minlength=count)[:count]
            if confidence is not None:
                percent = confidence.read(tile.core).data[0][raster.valid]
                total += np.bincount(numbers, weights=percent, minlength=count)[:count]
                uncertain += int((percent < 100.0 * uncertain_below).sum())
        pixel_m2 = gsd_m(found.geobox) ** 2 if found.is_georeferenced else None
    mapped = int(pixels.sum())
    known = files.confidence is not None
    areas = tuple(
        ClassArea(
            info,
            int(pixels[i]),
            float(pixels[i] / mapped) if mapped else 0.0,
            None if pixel_m2 is None else float(pixels[i] * pixel_m2),
            float(total[i] / pixels[i] / 100.0) if known and pixels[i] else None,
        )
        for i, info in enumerate(classes)
    )
    return MapSummary(
        areas,
        float(total.sum() / mapped / 100.0) if known and mapped else None,
        uncertain / mapped if known and mapped else None,
    )


def write_areas(path: Path, summary: MapSummary) -> None:
    """Class areas as CSV, atomically."""
    columns = ["class", "name", "pixels", "share", "area_m2", "mean_confidence"]
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for number, area in enumerate(summary.classes):
            values = [area.share, area.area_m2, area.mean_confidence]
            cells = ["" if value is None else f"{value:.6g}" for value in values]
            writer.writerow([number, area.info.name, area.pixels, *cells])


def write_style(path: Path, classes: Sequence[ClassInfo]) -> None:
    """A style for QGIS: one palette entry with name and colour per class; atomically."""
    entries = "\n".join(
        f'        <paletteEntry value="{i}" color="{item.color}" label={quoteattr(item.name)} '
        'alpha="255"/>'
        for i, item in enumerate(classes)
    )
    text = f"""<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>
<qgis version="3.22" styleCategories="Symbology">
  <pipe>
    <rasterrenderer type="paletted" band="1" opacity="1" alphaBand="-1" nodataColor="">
      <rasterTransparency/>
      <colorPalette>
{entries}
      </colorPalette>
    </rasterrenderer>
  </pipe>
</qgis>
"""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_previews(
    folder: Path, ms: RasterSource, files: MapFiles, classes: Sequence[ClassInfo]
) -> dict[str, str]:
    """Small pictures of the MS image, the map and its confidence, all of one size."""
    names = {"ms": "previews/ms.webp", "map": "previews/map.webp"}
    save_picture(folder / names["ms"], stretch(preview(ms)))
    shape = preview_shape(ms.shape)
    with open_raster(files.classes) as found:
        raster = found.read(shape=shape)
    table = np.zeros((NO_CLASS + 1, 4), np.uint8)
    for i, item in enumerate(classes):
        table[i] = (*rgb(item.color), 255)
    numbers = np.where(raster.valid, raster.data[0], NO_CLASS).astype(np.uint8)
    save_picture(folder / names["map"], table[numbers], lossless=True)
    if files.confidence is not None:
        names["confidence"] = "previews/confidence.webp"
        with open_raster(files.confidence) as found:
            raster = found.read(shape=shape)
        save_picture(folder / names["confidence"], confidence_colours(raster.data[0], raster.valid))
    return names


def confidence_colours(percent: np.ndarray[Any, Any], valid: np.ndarray[Any, Any]) -> Any:
    """(H, W, 4): from dark violet (a guess) over teal to yellow (certain)."""
    stops = np.array([0.0, 50.0, 75.0, 90.0, 100.0])
    colours = np.array(
        [[45, 10, 80], [72, 40, 120], [38, 130, 142], [122, 209, 81], [253, 231, 37]]
    )
    clean = np.where(valid, np.minimum(percent, NO_PERCENT - 1), 0)
    layers = [np.interp(clean, stops, colours[:, band]) for band in range(3)]
    return np.stack([*layers, np.where(valid, 255, 0)], axis=-1).astype(np.uint8)


def accuracy_record(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an evaluation that pages show."""
    return {
        "overall": scores["overall_accuracy"],
        "kappa": scores["kappa"],
        "mean_f1": scores["mean_f1"],
        "classes": list(scores["classes"]),
        "confusion": scores["confusion"],
    }
