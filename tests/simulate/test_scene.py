"""The ground: the same for the same arguments, and true to its own description."""

from dataclasses import fields

import cv2
import numpy as np
import pytest

from rsfuse.errors import InputError
from rsfuse.simulate import CLASS_NAMES, Scene, render, simulate_scene
from rsfuse.simulate.materials import ID, LAND_COVER

KIND = {"plane": "plane", "ship": "ship", "small-vehicle": "vehicle", "large-vehicle": "vehicle"}


def test_same_arguments_give_the_same_scene() -> None:
    one, two = (simulate_scene(192, seed=5) for _ in range(2))
    for field in fields(Scene):
        first, second = getattr(one, field.name), getattr(two, field.name)
        if isinstance(first, np.ndarray):
            np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(one.objects.corners, two.objects.corners)
    np.testing.assert_array_equal(one.terrain_m.values, two.terrain_m.values)
    assert len(one.roads) == len(two.roads)


def test_another_seed_gives_another_scene() -> None:
    one, two = (simulate_scene(192, seed=seed).material for seed in (5, 6))
    assert (one != two).mean() > 0.2


def test_leaving_out_a_kind_of_object_does_not_move_the_others(scene: Scene) -> None:
    few = simulate_scene(512, gsd_m=1.0, seed=scene.seed, objects=("ships", "planes"))
    assert "small-vehicle" not in few.objects.names()
    still = np.isin(scene.objects.labels, few.objects.labels)
    np.testing.assert_array_equal(scene.objects.corners[still], few.objects.corners)
    none = simulate_scene(192, seed=5, objects=())
    assert len(none.objects) == 0
    assert none.objects.boxes.shape == (0, 5)


def test_a_scene_holds_every_kind_of_ground(scene: Scene) -> None:
    share = np.bincount(scene.labels().ravel(), minlength=len(LAND_COVER)) / scene.labels().size
    named = dict(zip(scene.class_names, share, strict=True))
    assert all(share > 0.0005), named
    assert 0.1 < named["water"] < 0.4
    assert len(scene.buildings) > 20
    assert {road.kind for road in scene.roads} == {"major", "minor", "street", "track"}
    assert set(scene.objects.names()) >= {"plane", "ship", "small-vehicle"}


def test_boxes_lie_on_their_objects(scene: Scene) -> None:
    for corners, label in zip(scene.objects.corners, scene.objects.labels, strict=True):
        name = CLASS_NAMES[label]
        mask = np.zeros(scene.material.shape, np.uint8)
        fine = corners * scene.oversample - 0.5
        cv2.fillConvexPoly(mask, np.round(fine).astype(np.int32), 1)
        share = (scene.material[mask > 0] == ID[KIND[name]]).mean()
        # A plane is a cross in its box, everything else fills it.
        assert share > (0.2 if name == "plane" else 0.6), (name, corners)
        x, y = (corners.mean(axis=0) * scene.oversample).astype(int)
        assert scene.material[y, x] == ID[KIND[name]], name


def test_no_object_lies_outside_the_boxes(scene: Scene) -> None:
    inside = np.zeros(scene.material.shape, np.uint8)
    for corners in scene.objects.corners:
        grown = corners.mean(axis=0) + 1.15 * (corners - corners.mean(axis=0))
        fine = np.round(grown * scene.oversample - 0.5).astype(np.int32)
        cv2.fillConvexPoly(inside, fine, 1)
    movable = np.isin(scene.material, [ID[name] for name in set(KIND.values())])
    assert movable.any()
    assert (movable & (inside == 0)).sum() / movable.sum() < 0.01


def test_box_of_a_known_rectangle() -> None:
    from rsfuse.simulate.objects import corners_to_boxes

    # 6 long, 2 wide, turned by 30 degrees clockwise on the screen about (10, 20); then its corners
    # in another order, which makes the first side the short one.
    cos, sin = np.cos(np.pi / 6), np.sin(np.pi / 6)
    half = np.array([[-3.0, -1.0], [3.0, -1.0], [3.0, 1.0], [-3.0, 1.0]])
    corners = half @ np.array([[cos, sin], [-sin, cos]]) + [10, 20]
    for order in (corners, np.roll(corners, 1, axis=0), corners[::-1]):
        box = corners_to_boxes(order[None])[0]
        np.testing.assert_allclose(box, [10, 20, 6, 2, np.pi / 6], atol=1e-12)


def test_angles_of_boxes_lie_in_half_a_turn(scene: Scene) -> None:
    boxes = scene.objects.boxes
    assert (boxes[:, 2] >= boxes[:, 3]).all()
    assert (boxes[:, 4] >= -np.pi / 2).all()
    assert (boxes[:, 4] < np.pi / 2).all()


def test_labels_are_the_commonest_cover_of_each_pixel(scene: Scene) -> None:
    from rsfuse.simulate.materials import land_cover_table

    labels = scene.labels()
    cover = land_cover_table()[scene.material]
    h, w = scene.shape
    parts = cover.reshape(h, 2, w, 2).transpose(0, 2, 1, 3).reshape(h, w, 4)
    count = (parts == labels[..., None]).sum(axis=2)
    others = np.stack([(parts == k).sum(axis=2) for k in range(len(LAND_COVER))]).max(axis=0)
    np.testing.assert_array_equal(count, others)


def test_labels_agree_with_the_multispectral_image(scene: Scene) -> None:
    blue, green, red, nir = render(scene, "ms", season="spring").data / 10_000
    labels = scene.labels()
    vegetation = (nir - red) / (nir + red)
    index = {name: k for k, name in enumerate(scene.class_names)}

    def middle(image: np.ndarray, name: str) -> float:
        return float(np.median(image[labels == index[name]]))

    assert middle(vegetation, "woodland") > 0.3
    assert middle(vegetation, "grassland") > 0.3
    assert middle(vegetation, "paved") < 0.15
    assert middle(nir, "water") < 0.06 < middle(nir, "cropland")
    water = (green - nir) / (green + nir) > 0.25
    assert (water == (labels == index["water"])).mean() > 0.96
    assert blue.min() > 0


@pytest.mark.parametrize(("size", "shape"), [(100, (100, 100)), ((97, 161), (97, 161))])
def test_any_size_from_the_smallest(size: int, shape: tuple[int, int]) -> None:
    scene = simulate_scene(size, gsd_m=2.0, seed=1)
    assert scene.shape == shape
    assert scene.labels().shape == shape
    assert scene.geobox.crs is not None
    assert scene.gsd_m == 2.0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"size": 32}, "too small"),
        ({"size": 128, "gsd_m": 0.01}, "out of range"),
        ({"size": 128, "objects": ("ships", "trains")}, "trains"),
    ],
)
def test_impossible_scenes_are_refused(arguments: dict, text: str) -> None:
    with pytest.raises(InputError, match=text):
        simulate_scene(**arguments)
