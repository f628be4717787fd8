"""The run folder of a detection: numbers per class, pictures, chips, record."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rsfuse.detection.results import Detections
from rsfuse.geo.picture import chip_window, picture_bands, preview, save_picture, stretch, tones_of
from rsfuse.geo.raster import Raster, RasterSource
from rsfuse.runs import write_json

# A page draws every box on each frame; above this number they cover the picture anyway.
MOST_DRAWN = 5000
CHIPS_PER_ROW = 10

# Side of a chip on the page, and how much ground it shows around its object.
_CHIP_SIDE_PX = 160
_CHIP_MARGIN = 2.5
_SMALLEST_CHIP_PX = 24


def class_numbers(found: Detections, colors: Sequence[str]) -> list[dict[str, Any]]:
    """One entry per class for run records and pages: number, median score, median size."""
    sizes = found.sizes_m()
    entries = []
    for label, name in enumerate(found.classes):
        mine = found.labels == label
        length, width = (
            (None, None)
            if sizes is None or not mine.any()
            else (float(v) for v in np.median(sizes[mine], axis=0))
        )
        entries.append(
            {
                "name": name,
                "color": colors[label],
                "objects": int(mine.sum()),
                "median_score": float(np.median(found.scores[mine])) if mine.any() else None,
                "median_length_m": length,
                "median_width_m": width,
            }
        )
    return entries


def write_previews(
    folder: Path,
    scene: RasterSource,
    found: Detections,
    colors: Sequence[str],
    partner: Raster | None = None,
    start: float = 0.3,
) -> dict[str, Any]:
    """Pictures of the scene and its partner, the best boxes, chips of the surest and least sure.

    Args:
        folder: The run folder.
        scene: The scene.
        found: Objects in pixels of the scene, best first.
        colors: "#rrggbb" of each class.
        partner: The second image on the pixels of the scene's preview.
        start: Lowest score that the page shows at first.
    """
    picture = preview(scene)
    names: dict[str, Any] = {"scene": "previews/scene.webp", "boxes": "previews/boxes.json"}
    save_picture(folder / names["scene"], stretch(picture))
    if partner is not None:
        names["partner"] = "previews/partner.webp"
        save_picture(folder / names["partner"], stretch(partner))
    drawn = slice(0, MOST_DRAWN)
    lowest = float(found.scores.min()) if len(found) else 0.0
    boxes = {
        "start": round(max(start, lowest), 2),
        "corners": found.corners[drawn].reshape(-1, 8).round(2).tolist(),
        "scores": found.scores[drawn].round(3).tolist(),
        "labels": found.labels[drawn].tolist(),
        "names": list(found.classes),
        "colors": list(colors),
    }
    write_json(folder / names["boxes"], boxes)
    count = min(CHIPS_PER_ROW, len(found))
    rows = {"most_certain": range(count), "least_certain": range(len(found) - count, len(found))}
    for row, indices in rows.items():
        if row == "least_certain" and len(found) <= CHIPS_PER_ROW:
            continue
        names[row] = [_chip(folder, row, i, scene, picture, found) for i in indices]
    return names


def _chip(
    folder: Path, row: str, index: int, scene: RasterSource, like: Raster, found: Detections
) -> dict[str, Any]:
    """Write the small picture around one object, in the tones of the scene's picture."""
    corners = found.corners[index]
    centre = corners.mean(axis=0)
    extent = float((corners.max(axis=0) - corners.min(axis=0)).max())
    side = max(_SMALLEST_CHIP_PX, round(_CHIP_MARGIN * extent))
    window = chip_window((float(centre[0]), float(centre[1])), side, scene.shape)
    shape = None if side <= _CHIP_SIDE_PX else (_CHIP_SIDE_PX, _CHIP_SIDE_PX)
    raster = scene.read(window, shape=shape, bands=picture_bands(scene))
    name = f"previews/{row}_{index}.webp"
    save_picture(folder / name, stretch(raster, tones_of(like)))
    return {
        "file": name,
        "label": found.classes[int(found.labels[index])],
        "score": float(found.scores[index]),
    }
