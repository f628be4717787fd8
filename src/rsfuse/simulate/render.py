"""One scene, many sensors: `render` makes the image that a sensor takes of a scene."""

import difflib
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from rsfuse.errors import InputError
from rsfuse.geo.raster import Raster
from rsfuse.simulate.cartography import draw_map
from rsfuse.simulate.imaging import Image, Rows, form_image, sample, to_numbers
from rsfuse.simulate.light import Sun, sunlit
from rsfuse.simulate.materials import OPTICAL_BANDS, SEASONS
from rsfuse.simulate.noise import generator
from rsfuse.simulate.optical import PAN_WEIGHTS, Camera, make_camera
from rsfuse.simulate.sar import NOISE_FLOOR, make_radar, speckle, spread_points
from rsfuse.simulate.scene import Scene
from rsfuse.simulate.thermal import make_thermal_camera
from rsfuse.simulate.warp import Warp

MODALITIES = ("ms", "pan", "sar", "thermal", "map")

BANDS = {
    "ms": OPTICAL_BANDS,
    "pan": ("pan",),
    "sar": ("vv",),
    "thermal": ("lwir",),
    "map": ("red", "green", "blue"),
}

# Digital numbers: reflectance times 10,000; amplitude, the root of sigma0, times 1,000; kelvin
# times 100.
_REFLECTANCE_DN = 10_000.0
_AMPLITUDE_DN = 1_000.0
_KELVIN_DN = 100.0
_MOST = 65_535

# Standard deviation of the response of each sensor, in pixels of its image. PAN is the sharpest.
_BLUR_PX = {"ms": 0.62, "pan": 0.40, "sar": 0.50, "thermal": 1.25, "map": 0.35}

_SUN = {
    "spring": Sun(152.0, 42.0),
    "summer": Sun(148.0, 54.0),
    "autumn": Sun(160.0, 31.0),
    "winter": Sun(166.0, 19.0),
}


@dataclass(frozen=True, kw_only=True)
class Acquisition:
    """When and how an image is taken.

    Attributes:
        season: One of `SEASONS`: colours of plants, height of the sun.
        sun: Where the sun stands; by default that of a late morning in the season at 51° north.
        clouds: Share of the sky covered, for optical and thermal images.
        haze: From 0 (clear) to 1.
        night: Thermal images are taken at night.
        looks: Of the radar: the equivalent number of looks of its speckle.
        incidence_deg: Of the radar, from the vertical at the ground.
        side: Where the radar stands: "left" or "right" of the scene.
        ratio: Size of an MS pixel in scene pixels; 4 makes PAN four times as fine as MS.
        border_px: Width of the widest corner of slanted nodata borders, in scene pixels.
        seed: Of noise, speckle, wind, moisture and clouds: another seed is another date.
    """

    season: str = "summer"
    sun: Sun | None = None
    clouds: float = 0.0
    haze: float = 0.12
    night: bool = False
    looks: float = 4.0
    incidence_deg: float = 38.0
    side: str = "left"
    ratio: int = 1
    border_px: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        checks = (
            ("season", self.season in SEASONS, f"one of {', '.join(SEASONS)}"),
            ("side", self.side in ("left", "right"), "left or right"),
            ("clouds", 0 <= self.clouds <= 1, "a share from 0 to 1"),
            ("haze", 0 <= self.haze <= 1, "from 0 to 1"),
            ("looks", 0.5 <= self.looks <= 1000, "from 0.5 to 1000"),
            ("incidence_deg", 15 <= self.incidence_deg <= 65, "from 15 to 65 degrees"),
            ("ratio", self.ratio >= 1, "a whole number of at least 1"),
            ("border_px", self.border_px >= 0, "a number of pixels of at least 0"),
        )
        for name, is_good, need in checks:
            if not is_good:
                raise InputError(
                    f"{name} {getattr(self, name)!r} cannot be simulated",
                    f"{name} is {need}",
                    f"for example {name}={getattr(Acquisition(), name)!r}"
                    if name != "side"
                    else "",
                )

    @property
    def sunlight(self) -> Sun:
        """Where the sun stands."""
        return _SUN[self.season] if self.sun is None else self.sun


def render(
    scene: Scene,
    modality: str,
    *,
    warp: Warp | None = None,
    acquisition: Acquisition | None = None,
    **changes: Any,
) -> Raster:
    """The image that a sensor takes of a scene.

    Args:
        scene: The ground.
        modality: One of `MODALITIES`.
        warp: Geometry of the image; None puts it on the grid of the scene. A warped image carries
            the georeference of the scene all the same: it is wrong by the warp, for a matcher to
            find out.
        acquisition: When and how it is taken.
        **changes: Fields of the acquisition to change, for example `season="winter"`.

    Returns:
        Digital numbers as they would be in a file: reflectance times 10,000 for "ms" and "pan",
        amplitude times 1,000 for "sar", kelvin times 100 for "thermal", colours for "map". Zero is
        kept for pixels that are not valid, except in a map.

    Raises:
        InputError: An unknown modality or setting, or a ratio that does not divide the scene.
    """
    if modality not in MODALITIES:
        raise InputError(
            f"modality {modality!r} is unknown",
            f"the modalities are {', '.join(MODALITIES)}",
            f"for example {MODALITIES[0]}",
        )
    taken = _changed(acquisition or Acquisition(), changes)
    ratio = taken.ratio if modality == "ms" else 1
    shape = divided(scene.shape, ratio)
    image, valid = _EXPOSE[modality](scene, taken, warp, shape)
    if taken.border_px:
        valid &= _inside_border(shape, taken.border_px / ratio, generator(taken.seed, "border"))
    image[:, ~valid] = 0.0
    a, b, c, d, e, f = scene.geobox.affine[:6]
    affine = Affine(a * ratio, b * ratio, c, d * ratio, e * ratio, f)
    return Raster(
        data=image,
        valid=valid,
        geobox=GeoBox(shape, affine, scene.geobox.crs),
        bands=BANDS[modality],
        radiometry="amplitude" if modality == "sar" else "dn",
    )


def _changed(acquisition: Acquisition, changes: dict[str, Any]) -> Acquisition:
    names = [field.name for field in fields(Acquisition)]
    for name in changes:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            raise InputError(
                f"an acquisition has no setting {name!r}",
                f"its settings are {', '.join(names)}",
                f"did you mean {near[0]}?" if near else "leave it out",
            )
    return replace(acquisition, **changes)


def divided(shape: tuple[int, int], ratio: int) -> tuple[int, int]:
    """The shape of an image whose pixels are `ratio` scene pixels wide.

    Raises:
        InputError: The shape is no multiple of the ratio.
    """
    if shape[0] % ratio or shape[1] % ratio:
        raise InputError(
            f"a scene of {shape[0]} x {shape[1]} pixels is not a multiple of the ratio {ratio}",
            "MS and PAN pixels must have common corners",
            f"use a size that is a multiple of {ratio}",
        )
    return shape[0] // ratio, shape[1] // ratio


def _expose_ms(
    scene: Scene, taken: Acquisition, warp: Warp | None, shape: tuple[int, int]
) -> tuple[Image, NDArray[np.bool_]]:
    camera = _camera(scene, taken)
    image, valid = _form(scene, camera.rows, "ms", shape, warp)
    rng = generator(taken.seed, "ms noise")
    for band in image:
        to_numbers(band, _REFLECTANCE_DN, _MOST, rng, floor=0.0009, share=0.006)
    return image, valid


def _expose_pan(
    scene: Scene, taken: Acquisition, warp: Warp | None, shape: tuple[int, int]
) -> tuple[Image, NDArray[np.bool_]]:
    camera = _camera(scene, taken)

    def rows(start: int, stop: int) -> Image:
        return np.asarray((camera.rows(start, stop) @ PAN_WEIGHTS)[..., None], np.float32)

    image, valid = _form(scene, rows, "pan", shape, warp)
    rng = generator(taken.seed, "pan noise")
    to_numbers(image[0], _REFLECTANCE_DN, _MOST, rng, floor=0.0016, share=0.006)
    return image, valid


def _camera(scene: Scene, taken: Acquisition) -> Camera:
    sun = taken.sunlight
    return make_camera(
        scene,
        sunlit(scene.height_m, scene.step_m, sun),
        sun=sun,
        season=taken.season,
        haze=taken.haze,
        clouds=taken.clouds,
        seed=taken.seed,
    )


def _expose_sar(
    scene: Scene, taken: Acquisition, warp: Warp | None, shape: tuple[int, int]
) -> tuple[Image, NDArray[np.bool_]]:
    radar = make_radar(
        scene,
        incidence_deg=taken.incidence_deg,
        from_left=taken.side == "left",
        season=taken.season,
        seed=taken.seed,
    )
    image, valid = _form(scene, radar.rows, "sar", shape, warp, channels=2)
    np.maximum(image, 0.0, out=image)
    power, points = image
    power += np.float32(NOISE_FLOOR)
    # Speckle belongs to the pixels of the image, not to the ground: it comes after the warp. A
    # bright point is one scatterer and has none.
    power *= speckle(shape, taken.looks, generator(taken.seed, "speckle"))
    power += spread_points(points)
    np.sqrt(power, out=power)
    rng = generator(taken.seed, "sar noise")
    to_numbers(power, _AMPLITUDE_DN, _MOST, rng, floor=0.0, share=0.0)
    return image[:1].copy(), valid


def _expose_thermal(
    scene: Scene, taken: Acquisition, warp: Warp | None, shape: tuple[int, int]
) -> tuple[Image, NDArray[np.bool_]]:
    sun = taken.sunlight
    if taken.night:
        lit = np.zeros(scene.material.shape, np.uint8)
    else:
        lit = sunlit(scene.height_m, scene.step_m, sun)
    camera = make_thermal_camera(scene, lit, sun=sun, season=taken.season, is_night=taken.night)
    image, valid = _form(scene, camera.rows, "thermal", shape, warp)
    rng = generator(taken.seed, "thermal noise")
    to_numbers(image[0], _KELVIN_DN, _MOST, rng, floor=0.09, share=0.0)
    return image, valid


def _expose_map(
    scene: Scene, taken: Acquisition, warp: Warp | None, shape: tuple[int, int]
) -> tuple[Image, NDArray[np.bool_]]:
    drawn = draw_map(scene)
    if warp is not None:
        image, valid = sample(drawn, warp, shape)
    else:
        image, valid = _form(
            scene, lambda start, stop: drawn[start:stop].astype(np.float32), "map", shape, None
        )
    np.clip(np.round(image, out=image), 0, 255, out=image)
    return image, valid


def _form(
    scene: Scene,
    rows: Rows,
    modality: str,
    shape: tuple[int, int],
    warp: Warp | None,
    *,
    channels: int | None = None,
) -> tuple[Image, NDArray[np.bool_]]:
    return form_image(
        rows,
        scene.height_m.shape,
        shape,
        channels=channels or len(BANDS[modality]),
        blur_px=_BLUR_PX[modality],
        warp=warp,
    )


_EXPOSE = {
    "ms": _expose_ms,
    "pan": _expose_pan,
    "sar": _expose_sar,
    "thermal": _expose_thermal,
    "map": _expose_map,
}


def _inside_border(
    shape: tuple[int, int], border_px: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Inside the slanted quadrilateral that a swath leaves of an image."""
    h, w = shape
    y, x = np.indices(shape, dtype=np.float32)
    near = rng.uniform(0.0, border_px, 8)
    left = near[0] + (near[1] - near[0]) * y / h
    right = near[2] + (near[3] - near[2]) * y / h
    top = near[4] + (near[5] - near[4]) * x / w
    bottom = near[6] + (near[7] - near[6]) * x / w
    return np.asarray((x >= left) & (x < w - right) & (y >= top) & (y < h - bottom))
