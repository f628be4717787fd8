"""A scene: ground of which everything is known, and how it is made."""

from collections.abc import Collection
from dataclasses import dataclass

import cv2
import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj import CRS
from pyproj.exceptions import CRSError

from rsfuse.errors import InputError
from rsfuse.simulate import settlement, sites, trees
from rsfuse.simulate.canvas import Canvas
from rsfuse.simulate.land import Land, Road, divide_land, keep_off
from rsfuse.simulate.materials import LAND_COVER, MATERIALS, land_cover_table
from rsfuse.simulate.noise import generator
from rsfuse.simulate.objects import ObjectPainter, Objects
from rsfuse.simulate.settlement import Building
from rsfuse.simulate.terrain import Field, Terrain, make_terrain

OBJECT_KINDS = ("ships", "planes", "vehicles")

# UTM zone 31 north, on the coast of the North Sea; any projected CRS will do.
DEFAULT_CRS = "EPSG:32631"
_UPPER_LEFT = (560_000.0, 5_700_000.0)

MIN_SIZE = 64

# Canvases up to this many pixels are painted twice as fine as the scene, so that edges are smooth.
_FINE_PIXELS = 8192 * 8192

# Smaller than this many pixels an object is not worth a box.
_SMALLEST_OBJECT_PX = 2.5


@dataclass(frozen=True)
class Scene:
    """Ground with exactly known truth.

    The rasters of the ground are painted `oversample` times as fine as the grid of the scene.

    Attributes:
        geobox: Grid of the scene: (h, w), CRS, one pixel per ground sampling distance.
        oversample: Ground pixels per scene pixel along each axis.
        material: (H, W) uint8 index into `MATERIALS`.
        variant: (H, W) uint8 kind of the material.
        grain: (H, W) uint8 direction of rows on fields, in 1/256 of a half turn from +x towards +y.
        height_m: (H, W) float32 height above the terrain.
        terrain_m: Height of the terrain, a smooth field in metres from the upper left corner.
        roads: Middle lines in metres from the upper left corner.
        buildings: Footprints in metres from the upper left corner.
        objects: Planes, ships and vehicles, in scene pixels.
        seed: What the scene was made from.
    """

    geobox: GeoBox
    oversample: int
    material: NDArray[np.uint8]
    variant: NDArray[np.uint8]
    grain: NDArray[np.uint8]
    height_m: NDArray[np.float32]
    terrain_m: Field
    roads: tuple[Road, ...]
    buildings: tuple[Building, ...]
    objects: Objects
    seed: int

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w) of the scene in pixels."""
        h, w = self.geobox.shape
        return int(h), int(w)

    @property
    def gsd_m(self) -> float:
        """Ground sampling distance of the scene."""
        return float(self.geobox.affine.a)

    @property
    def step_m(self) -> float:
        """Size of a pixel of the painted ground."""
        return self.gsd_m / self.oversample

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes of `labels`."""
        return tuple(cover.name for cover in LAND_COVER)

    @property
    def class_colours(self) -> tuple[tuple[int, int, int], ...]:
        """Colours of the classes of `labels`."""
        return tuple(cover.colour for cover in LAND_COVER)

    @property
    def material_names(self) -> tuple[str, ...]:
        """Names of the materials that `material` indexes."""
        return tuple(material.name for material in MATERIALS)

    @property
    def material_colours(self) -> tuple[tuple[int, int, int], ...]:
        """Colours of the materials on a map."""
        return tuple(material.colour for material in MATERIALS)

    def labels(self) -> NDArray[np.uint8]:
        """(h, w) land cover class of each scene pixel: the commonest of its ground pixels."""
        cover = land_cover_table()[self.material]
        if self.oversample == 1:
            return cover
        h, w = self.shape
        best = np.zeros((h, w), np.float32)
        labels = np.zeros((h, w), np.uint8)
        for index in range(len(LAND_COVER)):
            share = cv2.resize(
                (cover == index).astype(np.float32), (w, h), interpolation=cv2.INTER_AREA
            )
            labels[share > best] = index
            np.maximum(best, share, out=best)
        return labels


def simulate_scene(
    size: int | tuple[int, int],
    *,
    gsd_m: float = 1.0,
    seed: int = 0,
    objects: Collection[str] = OBJECT_KINDS,
    relief_m: float | None = None,
    crs: str = DEFAULT_CRS,
    oversample: int | None = None,
) -> Scene:
    """Make a scene; the same arguments always give the same scene.

    Args:
        size: Side in pixels, or (h, w).
        gsd_m: Ground sampling distance.
        seed: Chooses the scene.
        objects: Kinds to place, of `OBJECT_KINDS`.
        relief_m: Height of the hills; by default 2.5 % of the side of the scene, at most 120 m.
        crs: A projected CRS in metres.
        oversample: Ground pixels per scene pixel along each axis; by default 2 where the ground
            then has at most 67 million pixels, else 1.

    Raises:
        InputError: A size, distance or kind that cannot be.
    """
    shape = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    _check(shape, gsd_m, objects)
    _check_crs(crs)
    if oversample is None:
        oversample = 2 if 4 * shape[0] * shape[1] <= _FINE_PIXELS else 1
    canvas = Canvas((shape[0] * oversample, shape[1] * oversample), gsd_m / oversample)
    if relief_m is None:
        relief_m = min(120.0, 0.025 * float(np.sqrt(np.prod(canvas.extent_m))))
    terrain = make_terrain(canvas.extent_m, canvas.step_m, relief_m=relief_m, seed=seed)
    land = divide_land(canvas.extent_m, terrain, detail_m=canvas.step_m, seed=seed)
    buildings, roads, painter = _paint(canvas, terrain, land, frozenset(objects), gsd_m, seed)
    affine = Affine(gsd_m, 0.0, _UPPER_LEFT[0], 0.0, -gsd_m, _UPPER_LEFT[1])
    return Scene(
        geobox=GeoBox(shape, affine, crs),
        oversample=oversample,
        material=canvas.material,
        variant=canvas.variant,
        grain=canvas.grain,
        height_m=canvas.height_m,
        terrain_m=terrain.height_m,
        roads=roads,
        buildings=tuple(buildings),
        objects=painter.objects(gsd_m),
        seed=seed,
    )


def _check(shape: tuple[int, int], gsd_m: float, objects: Collection[str]) -> None:
    if min(shape) < MIN_SIZE:
        raise InputError(
            f"a scene of {shape[0]} x {shape[1]} pixels is too small",
            f"there is room for roads and houses from {MIN_SIZE} pixels on",
            "for example --size 512",
        )
    if not 0.1 <= gsd_m <= 60.0:
        raise InputError(
            f"a ground sampling distance of {gsd_m} m is out of range",
            "the ground is made with features between 0.1 m and 60 m in mind",
            "for example --gsd 1",
        )
    unknown = sorted(set(objects) - set(OBJECT_KINDS))
    if unknown:
        raise InputError(
            f"objects {', '.join(unknown)} are unknown",
            f"the kinds are {', '.join(OBJECT_KINDS)}",
            f"for example --objects {','.join(OBJECT_KINDS)}",
        )


def _check_crs(crs: str) -> None:
    try:
        found = CRS.from_user_input(crs)
    except CRSError as error:
        raise InputError(
            f"{crs!r} is not a CRS", str(error).splitlines()[0], f"for example {DEFAULT_CRS}"
        ) from error
    units = {axis.unit_name for axis in found.axis_info[:2]}
    if not found.is_projected or units != {"metre"}:
        raise InputError(
            f"{crs} ({found.name}) is not a projected CRS in metres",
            "scenes are made in metres",
            f"for example {DEFAULT_CRS}",
        )


def _paint(
    canvas: Canvas,
    terrain: Terrain,
    land: Land,
    objects: frozenset[str],
    gsd_m: float,
    seed: int,
) -> tuple[list[Building], tuple[Road, ...], ObjectPainter]:
    """Paint everything in its order: ground, roads, sites, houses, trees, movable objects."""
    hedges = settlement.paint_land(canvas, land, terrain, seed)
    rng = generator(seed, "sites")
    harbour = sites.harbour(canvas, terrain, rng)
    airfield = sites.airfield(canvas, terrain, land, rng)
    grounds = (harbour.ground_m, *((airfield.ground_m,) if airfield else ()))
    roads = keep_off(land.roads, grounds)
    avenues = settlement.paint_roads(canvas, roads, seed)
    bays = sites.car_parks(canvas, land, rng)
    buildings, gardens = settlement.build(canvas, land, seed)
    buildings += [*harbour.buildings, *(airfield.buildings if airfield else ())]
    standing = trees.join([*hedges, *avenues, *gardens, trees.forest(canvas, seed)])
    trees.paint(canvas, trees.on_open_ground(canvas, standing), seed)

    # Each kind has its own generator: leaving one out does not move the others.
    painter = ObjectPainter(canvas, generator(seed, "objects"))
    seen_m = _SMALLEST_OBJECT_PX * gsd_m
    if "planes" in objects and airfield:
        large = tuple(s for s in airfield.berths if s.length_m > seen_m)
        sites.park_planes(
            painter.using(generator(seed, "planes")), large, generator(seed, "stands")
        )
    if "ships" in objects:
        ship_painter = painter.using(generator(seed, "ships"))
        large = tuple(b for b in harbour.berths if b.length_m > seen_m)
        sites.moor(ship_painter, large, generator(seed, "berths"))
        sites.sail(canvas, ship_painter, terrain, generator(seed, "sea"))
    if "vehicles" in objects and seen_m < 4.0:
        sites.traffic(
            painter.using(generator(seed, "vehicles")), roads, bays, generator(seed, "traffic")
        )
    return buildings, roads, painter
