"""What a map shows: flat colours, roads with casings wider than in nature, outlined buildings."""

import cv2
import numpy as np
from numpy.typing import NDArray

from rsfuse.simulate.materials import ID, MATERIALS
from rsfuse.simulate.scene import Scene

# Width on the map at least this many scene pixels, the casing, and the fill of each road.
_ROAD_STYLE = {
    "track": (1.2, None, (186, 160, 128)),
    "street": (3.0, (196, 190, 186), (255, 255, 255)),
    "minor": (4.0, (188, 178, 120), (253, 242, 168)),
    "major": (6.0, (196, 132, 84), (250, 184, 108)),
}
_BUILDING = (208, 194, 184)
_BUILDING_EDGE = (168, 148, 136)
_CONTOUR = (206, 176, 138)
_SHORE = (112, 168, 206)
_BUILT_UP = (233, 229, 224)

# Smaller groups of trees are not drawn as wood.
_WOOD_M = 14.0

_SHIFT = 4


def draw_map(scene: Scene) -> NDArray[np.uint8]:
    """RGB map of the ground (H, W, 3), as fine as the raster of the ground."""
    colours = np.array([material.colour for material in MATERIALS], np.uint8)
    for name in ("broadleaf", "conifer", "undergrowth"):
        colours[ID[name]] = MATERIALS[ID["grass"]].colour
    for name in ("tile roof", "flat roof", "metal roof"):
        colours[ID[name]] = _BUILT_UP
    image = colours[scene.material]
    _draw_woods(scene, image)
    _draw_relief(scene, image)
    _draw_shores(scene, image)
    _draw_roads(scene, image)
    _draw_buildings(scene, image)
    return image


def _draw_woods(scene: Scene, image: NDArray[np.uint8]) -> None:
    side = 2 * max(1, round(_WOOD_M / scene.step_m / 2)) + 1
    woods = ("broadleaf", "conifer", "undergrowth")
    trees = np.isin(scene.material, [ID[name] for name in woods])
    dense = cv2.blur(trees.astype(np.uint8) * 255, (side, side)) > 140
    keep = ~np.isin(scene.material, [ID["water"], ID["asphalt"], ID["concrete"], ID["sand"]])
    image[dense & keep] = MATERIALS[ID["broadleaf"]].colour


def _draw_relief(scene: Scene, image: NDArray[np.uint8]) -> None:
    """Contour lines at a round interval that gives some eight of them."""
    terrain = scene.terrain_m
    span = float(np.ptp(terrain.values))
    interval = min((1, 2, 5, 10, 20, 50), key=lambda m: abs(m - span / 8))
    h, w = scene.material.shape
    for start in range(0, h, 512):
        stop = min(start + 512, h)
        height = np.maximum(terrain.rows((h, w), scene.step_m, start, min(stop + 1, h)), 0.0)
        level = np.floor(height / interval).astype(np.int16)
        line = np.zeros((stop - start, w), bool)
        below = np.diff(level, axis=0) != 0
        line[: len(below)] |= below[: stop - start]
        line[:, :-1] |= np.diff(level[: stop - start], axis=1) != 0
        width = max(1, scene.oversample)
        if width > 1:
            line = cv2.dilate(line.astype(np.uint8), np.ones((width, width), np.uint8)) > 0
        line &= scene.material[start:stop] != ID["water"]
        image[start:stop][line] = _CONTOUR


def _draw_shores(scene: Scene, image: NDArray[np.uint8]) -> None:
    hulls = np.isin(scene.material, [ID["water"], ID["ship"]]).astype(np.uint8)
    edge = cv2.morphologyEx(hulls, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    if scene.oversample > 1:
        edge = cv2.dilate(edge, np.ones((2, 2), np.uint8))
    image[edge > 0] = _SHORE


def _draw_roads(scene: Scene, image: NDArray[np.uint8]) -> None:
    """All casings first, then all fills, so that crossings stay open."""
    for layer in (0, 1):
        for road in scene.roads:
            least_px, casing, fill = _ROAD_STYLE[road.kind]
            width = max(road.width_m * 1.25 / scene.step_m, least_px * scene.oversample)
            colour = casing if layer == 0 else fill
            if colour is None:
                continue
            thick = width + (2.4 * scene.oversample if layer == 0 else 0.0)
            points = np.round((road.line_m / scene.step_m - 0.5) * (1 << _SHIFT)).astype(np.int32)
            cv2.polylines(image, [points], False, colour, max(1, round(thick)), cv2.LINE_AA, _SHIFT)


def _draw_buildings(scene: Scene, image: NDArray[np.uint8]) -> None:
    for building in scene.buildings:
        corners = (building.corners_m / scene.step_m - 0.5) * (1 << _SHIFT)
        points = [np.round(corners).astype(np.int32)]
        cv2.fillPoly(image, points, _BUILDING, cv2.LINE_AA, _SHIFT)
        cv2.polylines(image, points, True, _BUILDING_EDGE, scene.oversample, cv2.LINE_AA, _SHIFT)
