"""Files of a scene: what GIS and matchers read is what the scene knows."""

from pathlib import Path

import numpy as np
import pytest
import rasterio

from rsfuse.errors import InputError
from rsfuse.geo.raster import open_raster
from rsfuse.runs import read_json
from rsfuse.simulate import (
    CLASS_NAMES,
    Acquisition,
    MatrixWarp,
    Scene,
    WrittenScene,
    make_warp,
    render,
    simulate_scene,
    write_scene,
)
from rsfuse.simulate.write import boxes_in_image


@pytest.fixture(scope="module")
def small() -> Scene:
    return simulate_scene(256, gsd_m=1.0, seed=3)


@pytest.fixture(scope="module")
def written(small: Scene, tmp_path_factory: pytest.TempPathFactory) -> WrittenScene:
    folder = tmp_path_factory.mktemp("scene")
    return write_scene(
        folder,
        small,
        warp=make_warp("smooth", small),
        acquisition=Acquisition(ratio=4),
    )


def test_images_are_what_render_gives(small: Scene, written: WrittenScene) -> None:
    warp = make_warp("smooth", small)
    for name, path in written.images.items():
        image = render(small, name, warp=warp if name in written.queries else None, ratio=4)
        with rasterio.open(path) as file:
            data = file.read()
            np.testing.assert_array_equal(data[:, image.valid], image.data[:, image.valid])
            assert file.dtypes[0] == ("uint8" if name == "map" else "uint16")
            assert file.crs.to_epsg() == 32631
            assert file.res == ((4.0, 4.0) if name == "ms" else (1.0, 1.0))
            assert file.descriptions == image.bands
    assert written.references == ("ms", "pan")
    assert written.queries == ("sar", "thermal", "map")


def test_images_open_through_the_one_door(written: WrittenScene) -> None:
    with open_raster(written.images["sar"]) as source:
        raster = source.read()
    assert raster.bands == ("vv",)
    assert 0 < (~raster.valid).mean() < 0.5
    with open_raster(written.images["ms"], bands=["nir"]) as source:
        assert source.read().data.shape == (1, 64, 64)


def test_displacement_is_the_warp(small: Scene, written: WrittenScene) -> None:
    warp = make_warp("smooth", small)
    with rasterio.open(written.truth["displacement"]) as file:
        moved = file.read()
        assert file.descriptions == ("dx", "dy")
    points = np.array([[0.5, 0.5], [100.5, 37.5], [255.5, 255.5]])
    found = [moved[:, int(y), int(x)] for x, y in points]
    np.testing.assert_allclose(found, warp.forward(points) - points, atol=0.01)
    truth = read_json(written.truth["transform"])
    assert (truth["model"], truth["transform_px"]) == ("smooth", None)
    assert truth["displacement"] == "displacement.tif"


def test_labels_carry_names_and_colours(small: Scene, written: WrittenScene) -> None:
    with rasterio.open(written.truth["labels"]) as file:
        np.testing.assert_array_equal(file.read(1), small.labels())
        for index, colour in enumerate(small.class_colours):
            assert file.colormap(1)[index][:3] == colour
        tags = " ".join([*file.tags().values(), *file.tags(1).values()])
    assert all(name in tags for name in small.class_names)


def test_boxes_in_dota_form_are_those_of_each_image(small: Scene, written: WrittenScene) -> None:
    warp = make_warp("smooth", small)
    assert warp is not None
    for name, ratio in (("pan", 1), ("ms", 4), ("sar", 1)):
        text = (written.folder / "truth" / "labelTxt" / f"{name}.txt").read_text()
        head, lines = text.splitlines()[:2], text.splitlines()[2:]
        assert head == ["imagesource:rsfuse simulate", f"gsd:{ratio}"]
        found = np.array([line.split()[:8] for line in lines], float).reshape(-1, 4, 2)
        expected = small.objects.corners / ratio
        if name == "sar":
            expected = warp.forward(small.objects.corners.reshape(-1, 2)).reshape(-1, 4, 2)
        centre, side = expected.mean(axis=1), 256 / ratio
        kept = ((centre >= 0) & (centre <= side)).all(axis=1)
        np.testing.assert_allclose(found, expected[kept], atol=6e-4)
        assert {line.split()[8] for line in lines} <= set(CLASS_NAMES)
        assert len(found) > 5


def test_objects_on_the_map_are_those_in_pixels(small: Scene, written: WrittenScene) -> None:
    import pyogrio
    import shapely

    meta, _, geometry, columns = pyogrio.raw.read(written.truth["objects"])
    table = dict(zip(meta["fields"], columns, strict=True))
    assert list(table["class"]) == small.objects.names()
    rings = [shapely.get_coordinates(shape)[:4] for shape in shapely.from_wkb(geometry)]
    pixels = (np.array(rings) - [560_000.0, 5_700_000.0]) * [1, -1]
    np.testing.assert_allclose(np.sort(pixels, axis=1), np.sort(small.objects.corners, axis=1))
    np.testing.assert_allclose(table["length_m"], small.objects.boxes[:, 2])


def test_boxes_at_the_border_are_hard_or_left_out(small: Scene) -> None:
    centre = small.objects.corners[0].mean(axis=0)
    reach = np.abs(small.objects.corners[0] - centre)[:, 0].max()

    def shifted(to_x: float) -> tuple[np.ndarray, np.ndarray]:
        matrix = np.eye(3)
        matrix[:2, 2] = np.array([to_x, 128.0]) - centre
        warp = MatrixWarp(matrix, "shift")
        corners, _, hard = boxes_in_image(small.objects, small.shape, warp)
        here = np.abs(corners.mean(axis=1) - [to_x, 128.0]).max(axis=1) < 1e-6
        return here, hard

    here, hard = shifted(0.5 * reach)
    assert here.sum() == 1
    assert hard[here].all()
    assert shifted(-0.5 * reach)[0].sum() == 0


def test_without_a_warp_all_images_are_references(tmp_path: Path) -> None:
    scene = simulate_scene(96, seed=1)
    written = write_scene(tmp_path, scene, modalities=("pan", "sar"))
    assert written.references == ("pan", "sar")
    truth = read_json(written.truth["transform"])
    assert (truth["model"], truth["transform_px"], truth["displacement"]) == ("none", None, None)
    assert not (tmp_path / "truth" / "displacement.tif").exists()
    assert sorted(p.name for p in tmp_path.glob("*.tif")) == ["pan.tif", "sar.tif"]


def test_unknown_modality_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sonar"):
        write_scene(tmp_path / "out", simulate_scene(96, seed=1), modalities=("ms", "sonar"))
    assert not (tmp_path / "out").exists()
