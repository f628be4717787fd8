"""Scenes with exactly known truth, seen by several sensors.

    scene = simulate_scene(1024, gsd_m=1.0, seed=7)      # ground: materials, heights, objects
    optical = render(scene, "ms")                        # Raster on the grid of the scene
    warp = make_warp("affine", scene)                    # reference pixels -> query pixels
    radar = render(scene, "sar", warp=warp, looks=4)     # the same ground through the warp
    write_scene("folder", scene, warp=warp)              # GeoTIFFs and truth files

The ground is procedural: fields with the passes of machines, woods of single crowns, rivers and
coasts, roads, towns with houses, a harbour with ships, an airfield with planes, car parks. It is
rendered by simple sensor models: sunlight, cast shadows, air and clouds for optical images;
backscatter, layover, shadow, double bounce, bright points and gamma speckle for radar; warmth of
materials by day or night for thermal images; flat colours and drawn roads for maps. The same
arguments give the same pixels.

What it cannot stand for. Whatever a method assumes and the simulation shares is flattered. Real
sensors differ in radiometry between and within scenes; the materials here have a handful of colours
and no mixtures, no bidirectional reflectance, no polarimetry, no volume scattering, no azimuth
ambiguities, no atmosphere that changes across a scene, no parallax of roofs, no change between
dates other than season. Geometry is exact, while real images carry attitude jitter, terrain errors
and orthorectification seams. Accuracy claims come from real data only (docs/decisions/0013);
simulated scenes serve demonstrations, tests of the plumbing and cheap pre-training.
"""

from rsfuse.simulate.light import Sun
from rsfuse.simulate.materials import SEASONS
from rsfuse.simulate.objects import CLASS_NAMES, Objects
from rsfuse.simulate.render import BANDS, MODALITIES, Acquisition, render
from rsfuse.simulate.scene import OBJECT_KINDS, Scene, simulate_scene
from rsfuse.simulate.warp import (
    MODELS,
    Displacement,
    MatrixWarp,
    ReliefWarp,
    SmoothWarp,
    Warp,
    make_warp,
)
from rsfuse.simulate.write import DEFAULT_QUERIES, WrittenScene, write_scene

__all__ = [
    "BANDS",
    "CLASS_NAMES",
    "DEFAULT_QUERIES",
    "MODALITIES",
    "MODELS",
    "OBJECT_KINDS",
    "SEASONS",
    "Acquisition",
    "Displacement",
    "MatrixWarp",
    "Objects",
    "ReliefWarp",
    "Scene",
    "SmoothWarp",
    "Sun",
    "Warp",
    "WrittenScene",
    "make_warp",
    "render",
    "simulate_scene",
    "write_scene",
]
