"""What the ground is made of: one row per material, with what each sensor sees of it.

Reflectances are round values of the kind found in spectral libraries (USGS, ECOSTRESS), backscatter
is typical of C and X band at middle incidence, temperatures are differences to the air on a clear
day and in a clear night. They make scenes look right; they calibrate nothing.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SEASONS = ("spring", "summer", "autumn", "winter")
OPTICAL_BANDS = ("blue", "green", "red", "nir")

# Kinds of one material (crops, paints, roofs) that a raster of variants can tell apart.
VARIANTS = 32


class LandCover(NamedTuple):
    """A class of the truth raster: name and colour."""

    name: str
    colour: tuple[int, int, int]


LAND_COVER = (
    LandCover("water", (66, 133, 190)),
    LandCover("bare ground", (196, 164, 116)),
    LandCover("cropland", (222, 202, 92)),
    LandCover("grassland", (150, 200, 96)),
    LandCover("woodland", (38, 110, 58)),
    LandCover("paved", (128, 128, 132)),
    LandCover("building", (190, 60, 50)),
    LandCover("movable object", (170, 60, 190)),
)


class Material(NamedTuple):
    """One material.

    Attributes:
        name: What it is.
        land_cover: Index into `LAND_COVER`.
        colour: On a map.
        reflectance: Blue, green, red, near infrared of its first variant in summer.
        sigma0_db: Mean backscatter.
        sigma0_spread_db: Half the range of backscatter between variants.
        day_k: Warmer than the air by day, in the sun.
        night_k: Warmer than the air by night (metal mirrors the cold sky).
        texture: Relative standard deviation of its brightness at the scale of metres.
        is_soft: Its surface has no walls: no double bounce.
    """

    name: str
    land_cover: int
    colour: tuple[int, int, int]
    reflectance: tuple[float, float, float, float]
    sigma0_db: float
    sigma0_spread_db: float
    day_k: float
    night_k: float
    texture: float
    is_soft: bool = True


MATERIALS = (
    Material("water", 0, (166, 205, 227), (0.056, 0.042, 0.020, 0.009), -23, 2, -5, 6, 0.03),
    Material("sand", 1, (240, 228, 190), (0.20, 0.26, 0.31, 0.37), -16, 1, 12, -2, 0.07),
    Material("bare soil", 1, (238, 232, 214), (0.075, 0.105, 0.14, 0.20), -13, 2.5, 13, -3, 0.10),
    Material("crop", 2, (246, 241, 222), (0.03, 0.065, 0.035, 0.44), -11.5, 3, 3, -3, 0.08),
    Material("grass", 3, (226, 238, 205), (0.035, 0.070, 0.048, 0.34), -13, 2, 4, -4, 0.10),
    Material("undergrowth", 4, (196, 222, 178), (0.022, 0.042, 0.028, 0.28), -9, 1, 1, 0, 0.12),
    Material("broadleaf", 4, (182, 214, 162), (0.023, 0.052, 0.028, 0.37), -7, 1, -1, 1, 0.10),
    Material("conifer", 4, (168, 204, 158), (0.017, 0.033, 0.022, 0.22), -7.5, 1, -1, 1.5, 0.10),
    Material("asphalt", 5, (255, 255, 255), (0.080, 0.086, 0.092, 0.11), -19, 1, 18, 5, 0.04),
    Material("concrete", 5, (232, 230, 226), (0.21, 0.235, 0.25, 0.28), -18, 1.5, 13, 4, 0.05),
    Material("gravel", 5, (236, 226, 206), (0.15, 0.18, 0.20, 0.24), -13, 1, 13, 0, 0.10),
    Material("road paint", 5, (255, 255, 255), (0.45, 0.48, 0.50, 0.50), -18, 0, 10, 4, 0.05),
    Material("tile roof", 6, (206, 190, 178), (0.07, 0.10, 0.19, 0.27), -9, 2, 20, -2, 0.06, False),
    Material(
        "flat roof", 6, (206, 190, 178), (0.15, 0.16, 0.17, 0.19), -13, 3, 21, -2, 0.05, False
    ),
    Material(
        "metal roof", 6, (200, 186, 180), (0.30, 0.32, 0.33, 0.34), -12, 3, -2, -9, 0.04, False
    ),
    Material("vehicle", 7, (255, 255, 255), (0.55, 0.56, 0.57, 0.55), -6, 3, 8, -3, 0.02, False),
    Material("ship", 7, (166, 205, 227), (0.30, 0.24, 0.20, 0.25), -6, 3, 9, -2, 0.05, False),
    Material("plane", 7, (232, 230, 226), (0.62, 0.62, 0.61, 0.60), -10, 3, -3, -8, 0.02, False),
    Material("rock", 1, (214, 208, 200), (0.13, 0.14, 0.15, 0.17), -6, 1, 10, 2, 0.25, False),
)

ID = {material.name: index for index, material in enumerate(MATERIALS)}

_WHEAT_GREEN = (0.028, 0.066, 0.034, 0.46)
_WHEAT_RIPE = (0.085, 0.145, 0.185, 0.34)
_STUBBLE = (0.105, 0.150, 0.195, 0.29)
_RAPE_BLOOM = (0.055, 0.20, 0.19, 0.46)
_MAIZE = (0.022, 0.058, 0.026, 0.50)
_BEET = (0.026, 0.078, 0.034, 0.55)
_PALE_SOIL = (0.10, 0.14, 0.185, 0.25)
_SOIL = (0.075, 0.105, 0.14, 0.20)
_DARK_SOIL = (0.050, 0.068, 0.088, 0.13)
_CATCH_CROP = (0.040, 0.085, 0.055, 0.33)

# Crop -> its colour in spring, summer, autumn, winter.
_CROPS = (
    (_WHEAT_GREEN, _WHEAT_RIPE, _STUBBLE, _CATCH_CROP),
    (_WHEAT_GREEN, _STUBBLE, _SOIL, _CATCH_CROP),
    (_RAPE_BLOOM, _WHEAT_RIPE, _CATCH_CROP, _CATCH_CROP),
    (_SOIL, _MAIZE, _STUBBLE, _SOIL),
    (_PALE_SOIL, _BEET, _BEET, _DARK_SOIL),
    (_DARK_SOIL, _MAIZE, _MAIZE, _DARK_SOIL),
    (_CATCH_CROP, _WHEAT_GREEN, _PALE_SOIL, _PALE_SOIL),
    (_SOIL, _DARK_SOIL, _CATCH_CROP, _SOIL),
)

_DEAD_GRASS = (0.060, 0.090, 0.095, 0.22)
_RED_LEAVES = (0.030, 0.055, 0.070, 0.30)
_BARE_TREES = (0.045, 0.060, 0.068, 0.15)

_SEASONAL = {
    "grass": {"winter": _DEAD_GRASS, "autumn": (0.042, 0.075, 0.065, 0.29)},
    "undergrowth": {"winter": _BARE_TREES, "autumn": (0.035, 0.050, 0.052, 0.22)},
    "broadleaf": {
        "winter": _BARE_TREES,
        "autumn": _RED_LEAVES,
        "spring": (0.024, 0.062, 0.030, 0.42),
    },
}

_KINDS: dict[str, tuple[tuple[float, float, float, float], ...]] = {
    # open sea, river, pond, wake and surf
    "water": (
        (0.056, 0.042, 0.020, 0.009),
        (0.050, 0.066, 0.050, 0.018),
        (0.036, 0.042, 0.026, 0.012),
        (0.130, 0.140, 0.120, 0.080),
    ),
    "bare soil": (_SOIL, _PALE_SOIL, _DARK_SOIL, (0.07, 0.10, 0.155, 0.22)),
    # pasture, lawn, rough margin, mown hay
    "grass": (
        (0.035, 0.070, 0.048, 0.34),
        (0.030, 0.070, 0.038, 0.40),
        (0.042, 0.072, 0.060, 0.28),
        (0.060, 0.105, 0.095, 0.32),
    ),
    # worn, fresh, patched, yard
    "asphalt": (
        (0.080, 0.086, 0.092, 0.11),
        (0.050, 0.053, 0.057, 0.07),
        (0.098, 0.104, 0.110, 0.13),
        (0.115, 0.123, 0.130, 0.15),
    ),
    "concrete": (
        (0.21, 0.235, 0.25, 0.28),
        (0.165, 0.18, 0.19, 0.22),
        (0.25, 0.275, 0.29, 0.31),
        (0.14, 0.15, 0.16, 0.18),
    ),
    "tile roof": (
        (0.070, 0.100, 0.190, 0.27),
        (0.065, 0.085, 0.145, 0.22),
        (0.085, 0.095, 0.110, 0.15),
        (0.060, 0.066, 0.074, 0.10),
        (0.080, 0.120, 0.225, 0.30),
        (0.090, 0.110, 0.150, 0.20),
    ),
    "flat roof": (
        (0.15, 0.16, 0.17, 0.19),
        (0.09, 0.095, 0.10, 0.12),
        (0.23, 0.24, 0.25, 0.27),
        (0.38, 0.40, 0.41, 0.42),
        (0.12, 0.14, 0.15, 0.19),
    ),
    # whole, then diluted by the asphalt beside it
    "road paint": (
        (0.45, 0.48, 0.50, 0.50),
        (0.31, 0.33, 0.35, 0.36),
        (0.22, 0.24, 0.25, 0.26),
        (0.15, 0.16, 0.17, 0.19),
    ),
    # sheets, then containers in their paints
    "metal roof": (
        (0.30, 0.32, 0.33, 0.34),
        (0.42, 0.44, 0.45, 0.45),
        (0.19, 0.22, 0.22, 0.24),
        (0.17, 0.16, 0.21, 0.26),
        (0.06, 0.06, 0.22, 0.30),
        (0.22, 0.13, 0.06, 0.14),
        (0.09, 0.17, 0.08, 0.20),
        (0.40, 0.41, 0.42, 0.40),
        (0.07, 0.15, 0.24, 0.32),
    ),
    # white, silver, black, grey, red, blue, dark blue, white again, glass
    "vehicle": (
        (0.55, 0.56, 0.57, 0.55),
        (0.32, 0.33, 0.34, 0.33),
        (0.025, 0.025, 0.027, 0.04),
        (0.14, 0.145, 0.15, 0.16),
        (0.045, 0.045, 0.25, 0.32),
        (0.20, 0.12, 0.07, 0.15),
        (0.07, 0.05, 0.04, 0.08),
        (0.48, 0.49, 0.50, 0.48),
        (0.05, 0.05, 0.05, 0.05),
    ),
    # red-brown deck, green deck, grey deck, white superstructure, then container paints
    "ship": (
        (0.09, 0.10, 0.20, 0.24),
        (0.08, 0.14, 0.09, 0.16),
        (0.20, 0.21, 0.22, 0.22),
        (0.52, 0.53, 0.53, 0.50),
        (0.06, 0.06, 0.26, 0.33),
        (0.25, 0.15, 0.06, 0.14),
        (0.07, 0.20, 0.24, 0.33),
        (0.12, 0.20, 0.09, 0.22),
        (0.05, 0.055, 0.06, 0.07),
    ),
    "plane": (
        (0.62, 0.62, 0.61, 0.60),
        (0.46, 0.47, 0.48, 0.46),
        (0.30, 0.16, 0.07, 0.20),
        (0.08, 0.08, 0.32, 0.38),
    ),
}


def reflectance_table(season: str) -> NDArray[np.float32]:
    """Reflectance (material, variant, band) in a season.

    Materials with few kinds repeat them with small differences of brightness, so that two houses of
    one kind are not the same grey.
    """
    table = np.empty((len(MATERIALS), VARIANTS, 4), np.float32)
    for row, material in enumerate(MATERIALS):
        kinds = _kinds(material, season)
        for variant in range(VARIANTS):
            turn = variant // len(kinds)
            brighter = 1.0 + 0.16 * (((turn * 7) % 5) - 2) / 2 if turn else 1.0
            table[row, variant] = np.multiply(kinds[variant % len(kinds)], brighter)
    for name in ("broadleaf", "conifer"):
        table[ID[name]] = _tree_tints(table[ID[name], 0])
    return table


def _kinds(material: Material, season: str) -> tuple[tuple[float, float, float, float], ...]:
    if material.name == "crop":
        return tuple(crop[SEASONS.index(season)] for crop in _CROPS)
    if season in _SEASONAL.get(material.name, {}):
        return (_SEASONAL[material.name][season],)
    return _KINDS.get(material.name, (material.reflectance,))


def _tree_tints(colour: NDArray[np.float32]) -> NDArray[np.float32]:
    """One colour per kind of tree: darker and lighter, yellower and bluer."""
    step = np.arange(VARIANTS)
    light = 0.72 + 0.56 * ((step * 11) % VARIANTS) / (VARIANTS - 1)
    yellow = (((step * 5) % VARIANTS) / (VARIANTS - 1) - 0.5)[:, None] * [-0.05, 0.16, 0.36, 0.10]
    return np.asarray(colour * light[:, None] * (1.0 + yellow), np.float32)


def variant_column(values: tuple[float, ...]) -> NDArray[np.float32]:
    """One number per material as a column, to be broadcast over variants."""
    return np.asarray(values, np.float32)[:, None]


def sigma0_table() -> NDArray[np.float32]:
    """Mean backscatter, linear, (material, variant)."""
    mean = variant_column(tuple(m.sigma0_db for m in MATERIALS))
    spread = variant_column(tuple(m.sigma0_spread_db for m in MATERIALS))
    place = (((np.arange(VARIANTS) * 13) % VARIANTS) / (VARIANTS - 1) * 2 - 1).astype(np.float32)
    # Crops differ in the way their variants cycle, so that a kind of crop keeps its backscatter.
    decibel = np.broadcast_to(mean + spread * place, (len(MATERIALS), VARIANTS)).copy()
    kinds = len(_CROPS)
    by_crop = np.array([0.2, -0.4, 0.5, 1.0, 0.8, 0.6, -0.2, -1.0], np.float32)
    crop = ID["crop"]
    decibel[crop] = mean[crop] + spread[crop] * by_crop[np.arange(VARIANTS) % kinds]
    water = ID["water"]
    decibel[water] = mean[water] + np.array([1.0, -1.0, -1.5, 7.0])[np.arange(VARIANTS) % 4]
    return np.asarray(10.0 ** (decibel / 10.0), np.float32)


def warmth_table(*, is_night: bool) -> NDArray[np.float32]:
    """Kelvin above the air, (material, variant); dark kinds get warmer in the sun."""
    base = variant_column(tuple(m.night_k if is_night else m.day_k for m in MATERIALS))
    if is_night:
        return np.asarray(np.broadcast_to(base, (len(MATERIALS), VARIANTS)), np.float32)
    visible = reflectance_table("summer")[..., :3].mean(axis=2)
    contrast = np.clip(visible.mean(axis=1, keepdims=True) - visible, -0.15, 0.15)
    return np.asarray(base + 30.0 * contrast, np.float32)


def land_cover_table() -> NDArray[np.uint8]:
    """Index into `LAND_COVER` of each material."""
    return np.array([m.land_cover for m in MATERIALS], np.uint8)
