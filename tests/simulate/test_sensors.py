"""Sensors: physics on ground that was built for it, statistics, settings."""

from collections.abc import Callable

import numpy as np
import pytest

from rsfuse.errors import InputError
from rsfuse.simulate import BANDS, MODALITIES, Acquisition, Scene, Sun, render
from rsfuse.simulate.materials import ID, MATERIALS
from rsfuse.simulate.sar import speckle

Bare = Callable[..., Scene]

# A block 20 m high in the middle of 128 m of asphalt.
BLOCK = (slice(44, 84), slice(60, 76), "flat roof", 20.0)


@pytest.mark.parametrize("modality", MODALITIES)
def test_same_settings_give_the_same_image(scene: Scene, modality: str) -> None:
    one, two = (render(scene, modality) for _ in range(2))
    np.testing.assert_array_equal(one.data, two.data)
    assert one.data.shape == (len(BANDS[modality]), *scene.shape)
    assert one.data.dtype == np.float32
    assert one.bands == BANDS[modality]
    assert one.valid.all()
    assert one.geobox == scene.geobox


def test_another_seed_is_another_date_of_the_same_ground(scene: Scene) -> None:
    one, two = (render(scene, "sar", seed=seed).data[0] for seed in (0, 1))
    assert (one != two).mean() > 0.9
    assert np.corrcoef(np.log(one.ravel()), np.log(two.ravel()))[0, 1] > 0.6


@pytest.mark.parametrize("looks", [1.0, 3.5, 16.0])
def test_speckle_has_the_equivalent_number_of_looks(looks: float, rng: np.random.Generator) -> None:
    noise = speckle((600, 600), looks, rng)
    assert noise.mean() == pytest.approx(1.0, abs=0.01)
    assert noise.mean() ** 2 / noise.var() == pytest.approx(looks, rel=0.05)
    # The third moment tells a gamma distribution (2 / sqrt(L)) from a Gaussian (0).
    skew = ((noise - noise.mean()) ** 3).mean() / noise.std() ** 3
    assert skew == pytest.approx(2 / np.sqrt(looks), rel=0.12)


@pytest.mark.parametrize("looks", [1.0, 4.0])
def test_level_ground_in_a_radar_image_has_its_looks(bare: Bare, looks: float) -> None:
    ground = bare(side=256)
    power = (render(ground, "sar", looks=looks).data[0].astype(np.float64) / 1000) ** 2
    # The ground itself varies slowly (moisture): measure in windows.
    windows = power.reshape(8, 32, 8, 32).transpose(0, 2, 1, 3).reshape(64, -1)
    found = np.median(windows.mean(axis=1) ** 2 / windows.var(axis=1))
    assert found == pytest.approx(looks, rel=0.12)
    level_db = 10 * np.log10(np.median(windows.mean(axis=1)))
    assert level_db == pytest.approx(MATERIALS[ID["asphalt"]].sigma0_db, abs=1.5)


def mean_rows(scene: Scene, **settings: object) -> np.ndarray:
    """Radar power along the rows through the block, without speckle."""
    image = render(scene, "sar", looks=1000.0, **settings).data[0] / 1000
    return np.asarray((image[55:73] ** 2).mean(axis=0))


def test_layover_double_bounce_and_shadow_lie_where_geometry_says(bare: Bare) -> None:
    incidence_deg = 40.0
    power = mean_rows(bare(BLOCK), incidence_deg=incidence_deg)
    ground = np.median(power)
    layover_m = 20.0 / np.tan(np.deg2rad(incidence_deg))  # 23.8: the roof comes nearer
    shadow_m = 20.0 * np.tan(np.deg2rad(incidence_deg))  # 16.8: behind the block
    # Double bounce: the brightest line is the foot of the wall that faces the sensor.
    assert abs(int(np.argmax(power)) + 0.5 - 60) <= 1.0
    # The façade and the roof are laid over the ground in front of the block, no further.
    start = 60 - layover_m
    assert power[int(start) + 3 : 58].min() > 2 * ground
    assert power[: int(start) - 3].max() < 2 * ground
    # Behind: dark from the laid-over far edge of the roof to the end of the shadow.
    end = 76 + shadow_m
    assert power[76 : int(end) - 2].max() < 0.35 * ground
    assert power[int(end) + 3 : int(end) + 20].min() > 0.6 * ground


def test_a_radar_on_the_right_sees_the_mirror_image(bare: Bare) -> None:
    left = mean_rows(bare(BLOCK))
    mirrored = (BLOCK[0], slice(128 - 76, 128 - 60), *BLOCK[2:])
    right = mean_rows(bare(mirrored), side="right")
    np.testing.assert_allclose(10 * np.log10(right[::-1] / left), 0, atol=1.6)


def test_walls_square_to_the_sensor_are_brighter(bare: Bare) -> None:
    square = mean_rows(bare(BLOCK)).max()
    scene = bare()
    y, x = np.mgrid[0:128, 0:128] + 0.5
    turned = np.abs(x - 68) + np.abs(y - 64) < 20  # a square on its corner
    scene.material[turned], scene.height_m[turned] = ID["flat roof"], 20.0
    image = (render(scene, "sar", looks=1000.0).data[0] / 1000) ** 2
    assert square > 3 * np.sort(image[60:68], axis=1)[:, -3:].mean()


@pytest.mark.parametrize("azimuth_deg", [90.0, 180.0, 215.0])
def test_shadows_point_away_from_the_sun_and_have_their_length(
    bare: Bare, azimuth_deg: float
) -> None:
    sun = Sun(azimuth_deg, 45.0)
    tower = bare((slice(62, 66), slice(62, 66), "flat roof", 24.0))
    image = render(tower, "pan", sun=sun, haze=0.0).data[0]
    level = np.median(image)
    away = -np.array([np.sin(np.deg2rad(azimuth_deg)), -np.cos(np.deg2rad(azimuth_deg))])
    distance = np.arange(3, 50)
    path = np.round(np.array([63.5, 63.5]) + distance[:, None] * away).astype(int)
    dark = image[path[:, 1], path[:, 0]] < 0.75 * level
    length = distance[dark].max()
    assert dark[(distance > 4) & (distance < 20)].all()
    assert length == pytest.approx(24.0, abs=3.5)
    other_side = np.round(np.array([63.5, 63.5]) - distance[5:, None] * away).astype(int)
    assert (image[other_side[:, 1], other_side[:, 0]] > 0.85 * level).all()


def test_pan_is_finer_than_ms_by_the_ratio(scene: Scene) -> None:
    ms, pan = render(scene, "ms", ratio=4), render(scene, "pan", ratio=4)
    assert ms.data.shape == (4, 128, 128)
    assert pan.data.shape == (1, 512, 512)
    assert (ms.geobox.affine.c, ms.geobox.affine.f) == (560_000.0, 5_700_000.0)
    assert ms.geobox.affine.a == 4 * pan.geobox.affine.a
    reduced = pan.data[0].reshape(128, 4, 128, 4).mean(axis=(1, 3))
    weighted = np.tensordot([0.12, 0.30, 0.36, 0.22], ms.data, axes=1)
    assert np.corrcoef(reduced.ravel(), weighted.ravel())[0, 1] > 0.95


def test_pan_is_sharper_than_ms(scene: Scene, optical: np.ndarray) -> None:
    weighted = np.tensordot([0.12, 0.30, 0.36, 0.22], optical, axes=1)
    pan = render(scene, "pan", haze=0.0).data[0]
    steep = [np.abs(np.diff(image)).mean() for image in (pan, weighted)]
    assert steep[0] > 1.1 * steep[1]


def test_seasons_change_trees_and_not_roofs(scene: Scene, optical: np.ndarray) -> None:
    winter = render(scene, "ms", season="winter", sun=Acquisition().sunlight, haze=0.0).data
    vegetation = [(nir - red) / (nir + red) for _, _, red, nir in (optical, winter)]
    labels = scene.labels()
    index = {name: k for k, name in enumerate(scene.class_names)}
    change = vegetation[0] - vegetation[1]
    assert np.median(change[labels == index["woodland"]]) > 0.2
    assert abs(np.median(change[labels == index["building"]])) < 0.1


def test_clouds_cover_their_share_and_cast_shadows(scene: Scene, optical: np.ndarray) -> None:
    clear, cloudy = optical[0], render(scene, "ms", clouds=0.3, haze=0.0).data[0]
    assert 0.2 < (cloudy > clear + 1500).mean() < 0.4
    assert (cloudy < 0.9 * clear).mean() > 0.05


def test_haze_lowers_contrast(scene: Scene, optical: np.ndarray) -> None:
    clear, hazy = optical[0], render(scene, "ms", haze=1.0).data[0]
    assert hazy.mean() > clear.mean()
    assert hazy.std() < 0.7 * clear.std()


def test_water_is_cold_by_day_and_warm_by_night(scene: Scene) -> None:
    labels = scene.labels()
    water, fields = (labels == scene.class_names.index(n) for n in ("water", "cropland"))
    day, night = (render(scene, "thermal", night=n).data[0] / 100 for n in (False, True))
    assert np.median(day[water]) < np.median(day[fields]) - 3
    assert np.median(night[water]) > np.median(night[fields]) + 3
    assert 260 < night.min() < day.max() < 345


def test_a_map_shows_no_movable_objects(scene: Scene) -> None:
    from rsfuse.simulate import simulate_scene

    empty = simulate_scene(512, gsd_m=1.0, seed=scene.seed, objects=())
    with_objects, without = (render(s, "map").data for s in (scene, empty))
    # Wakes are water of another kind; a plane may hide a seam of the apron.
    assert (np.abs(with_objects - without).max(axis=0) > 40).mean() < 0.002


def test_borders_are_slanted_and_invalid(scene: Scene) -> None:
    image = render(scene, "pan", border_px=40)
    assert 0.01 < (~image.valid).mean() < 0.25
    assert image.valid[scene.shape[0] // 2, scene.shape[1] // 2]
    assert (image.data[0][~image.valid] == 0).all()


@pytest.mark.parametrize(
    ("modality", "settings", "text"),
    [
        ("lidar", {}, "lidar"),
        ("sar", {"look": 4}, "did you mean looks"),
        ("sar", {"looks": 0.1}, "looks 0.1"),
        ("ms", {"season": "monsoon"}, "monsoon"),
        ("ms", {"ratio": 7}, "multiple of the ratio 7"),
        ("sar", {"side": "above"}, "above"),
    ],
)
def test_impossible_settings_are_refused(
    scene: Scene, modality: str, settings: dict, text: str
) -> None:
    with pytest.raises(InputError, match=text):
        render(scene, modality, **settings)
