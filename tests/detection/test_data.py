"""Data sets, results and scenes: what is read, kept, written and refused."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from rsfuse.detection.evaluate import answers_of, evaluate, table_of
from rsfuse.detection.formats import read_dataset
from rsfuse.detection.formats.dota import write
from rsfuse.detection.results import Detections, read_submission, write_submission
from rsfuse.detection.scene import (
    Found,
    SceneLattice,
    clear_spool,
    detect_scene,
    is_blank,
    plan_scene,
)
from rsfuse.errors import InputError
from rsfuse.geo.raster import Raster, open_raster
from rsfuse.geo.vectors import read_features


def dota(folder: Path, **files: str) -> Path:
    (folder / "labelTxt").mkdir(parents=True)
    for name, text in files.items():
        (folder / "labelTxt" / f"{name}.txt").write_bytes(text.encode())
    return folder


GOOD = "0 0 10 0 10 5 0 5 ship 0\n"


def test_dota_as_it_is_found_in_the_wild(tmp_path: Path) -> None:
    wild = (
        "\ufeffimagesource:GoogleEarth\r\ngsd:0.5\r\n\r\n"
        "0 0 10 0 10 5 0 5 ship 1\r\n0\t0\t8\t0\t8\t8\t0\t8\tplane\n1 1 1 1 1 1 1 1 ship 0\n"
    )
    data = read_dataset(dota(tmp_path, a=wild, b=""))
    assert data.classes == ("plane", "ship")
    assert data.notes == {"objects without area": 1}
    first = data.samples[0]
    assert first.gsd_m == 0.5
    assert first.objects.labels.tolist() == [1, 0]
    assert first.objects.difficult.tolist() == [1, 0]
    assert len(data.samples[1].objects) == 0
    assert data.count().tolist() == [1, 0]


def test_dota_goes_round(tmp_path: Path) -> None:
    data = read_dataset(dota(tmp_path / "one", a="0.25 0 10 0 10.5 5 0 5 small-vehicle 2\n" + GOOD))
    write(tmp_path / "two", data)
    again = read_dataset(tmp_path / "two")
    assert again.classes == data.classes
    one, two = data.samples[0].objects, again.samples[0].objects
    np.testing.assert_array_equal(one.corners, two.corners)
    np.testing.assert_array_equal(one.difficult, two.difficult)


@pytest.mark.parametrize("text", ['["ship",', '{"ship": 0}', "[0]", '"ship"'])
def test_a_damaged_list_of_classes_is_named(text: str, tmp_path: Path) -> None:
    folder = dota(tmp_path, a=GOOD)
    (folder / "classes.json").write_text(text)
    with pytest.raises(InputError, match=r"classes\.json"):
        read_dataset(folder)


@pytest.mark.parametrize("text", ['{"val": ', '["a"]', '{"val": "a"}', '{"val": [1]}', "null"])
def test_a_damaged_list_of_parts_is_named(text: str, tmp_path: Path) -> None:
    folder = dota(tmp_path, a=GOOD)
    (folder / "split.json").write_text(text)
    with pytest.raises(InputError, match=r"split\.json"):
        read_dataset(folder, split="val")


def test_bad_labels_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.txt, line 2"):
        read_dataset(dota(tmp_path / "nan", a=GOOD + "0 0 nan 0 10 5 0 5 ship 0\n"))
    with pytest.raises(InputError, match="'ship'"):
        read_dataset(dota(tmp_path / "class", a=GOOD), classes=("plane",))
    with pytest.raises(InputError, match="no label files"):
        read_dataset(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        read_dataset(tmp_path / "absent")


def test_ignored_classes_become_difficult(tmp_path: Path) -> None:
    folder = dota(tmp_path, a=GOOD + "0 0 9 0 9 9 0 9 DontCare 0\n")
    data = read_dataset(folder, ignored=("DontCare",))
    assert data.classes == ("ship",)
    assert data.samples[0].objects.difficult.tolist() == [0, 1]


def found_in(geobox: GeoBox | None = None, name: str = "scene") -> Detections:
    boxes = np.array([[20.0, 30.0, 10.0, 4.0, 0.0], [50.0, 60.0, 8.0, 6.0, np.pi / 4]])
    return Detections.of_boxes(
        boxes, np.array([0.4, 0.9]), np.array([0, 1]), ("ship", "plane"), (100, 200), geobox, name
    )


def test_results_come_best_first_and_can_be_filtered() -> None:
    found = found_in()
    assert found.scores.tolist() == [0.9, 0.4]
    assert str(found) == "2 objects in scene: 1 ship, 1 plane"
    assert len(found.above(0.5)) == 1
    assert found.above(0.0, ["ship"]).labels.tolist() == [0]
    with pytest.raises(InputError, match="'car'"):
        found.above(0.0, ["car"])
    assert found.sizes_m() is None


@pytest.mark.parametrize("turn", [0.0, 30.0])
def test_sizes_and_azimuths_on_the_ground(turn: float, tmp_path: Path) -> None:
    affine = Affine.translation(500_000, 5_000_000) @ Affine.rotation(turn) @ Affine.scale(2, -2)
    found = found_in(GeoBox((100, 200), affine, "EPSG:32631"))
    sizes, azimuth = found.sizes_m(), found.azimuths_deg()
    assert sizes is not None
    assert azimuth is not None
    np.testing.assert_allclose(sizes, [[16, 12], [20, 8]], rtol=1e-3)
    # A box along +x lies east-west before the grid is turned; rotation is counter-clockwise on
    # the map, so azimuths fall. The grid's convergence is zero on the central meridian.
    np.testing.assert_allclose(azimuth, [(135 - turn) % 180, (90 - turn) % 180], atol=0.1)
    path = found.to_geopackage(tmp_path / "found.gpkg")
    assert found.geobox is not None
    again = read_features(path, found.geobox)
    assert sorted(again.columns) == ["azimuth_deg", "class", "length_m", "score", "width_m"]
    assert again.columns["class"].tolist() == ["plane", "ship"]
    import shapely

    centres = np.array([shape.centroid.coords[0] for shape in again.shapes])
    np.testing.assert_allclose(centres, [[50, 60], [20, 30]], atol=1e-6)
    assert shapely.area(again.shapes[1]) == pytest.approx(40)


def test_geographic_grids_are_measured_in_metres() -> None:
    step = 1e-5  # degrees; at 60 degrees north half as long to the east as to the north
    grid = GeoBox((100, 200), Affine(step, 0, 10, 0, -step, 60), "EPSG:4326")
    boxes = np.array([[20.0, 30, 10, 4, 0.0], [20.0, 30, 10, 4, -np.pi / 2]])
    found = Detections.of_boxes(boxes, np.ones(2), np.zeros(2, np.int64), ("a",), (100, 200), grid)
    sizes = found.sizes_m()
    assert sizes is not None
    np.testing.assert_allclose(sizes[:, 0], (5.58, 11.14), rtol=2e-2)
    assert found.azimuths_deg() == pytest.approx([90, 0], abs=0.1)


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".csv", ".zip", ".parquet"])
def test_every_format_is_written(suffix: str, tmp_path: Path) -> None:
    if suffix == ".parquet":
        pytest.importorskip("geopandas", reason="geopandas is in the extra [vector]")
        pytest.importorskip("pyarrow", reason="pyarrow is in the extra [vector]")
    path = found_in().save(tmp_path / f"found{suffix}")
    assert path.stat().st_size > 50
    empty = found_in().above(2.0).save(tmp_path / f"none{suffix}")
    assert empty.exists()


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no format"):
        found_in().save(tmp_path / "found.docx")


@pytest.mark.parametrize(
    ("kind", "name"),
    [("csv", "found.geojson"), ("gpkg", "found.txt"), ("dota", "found"), ("geoparquet", "a.gpkg")],
)
def test_a_suffix_of_another_format_is_refused(kind: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"not the name of a {kind} file"):
        found_in().save(tmp_path / name, kind)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", "a b", "a\tb", " a"])
def test_a_submission_names_images_by_one_word(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="image name"):
        write_submission(tmp_path / "s.zip", [found_in(name="P1"), found_in(name=name)])


@pytest.mark.parametrize("task", [1, 2])
def test_submissions_go_round(task: int, tmp_path: Path) -> None:
    path = write_submission(tmp_path / "s.zip", [found_in(name="P1"), found_in(name="P2")],
                            task=task)  # fmt: skip
    with zipfile.ZipFile(path) as archive:
        assert sorted(archive.namelist()) == [f"Task{task}_plane.txt", f"Task{task}_ship.txt"]
    again = read_submission(path)
    stems, scores, corners = again["ship"]
    assert stems == ["P1", "P2"]
    assert scores.tolist() == [0.4, 0.4]
    np.testing.assert_allclose(corners[0].min(axis=0), (15, 28), atol=0.01)
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "Task1_ship.txt").write_text("P1 0.5 1 2 3\n")
    with pytest.raises(InputError, match="line 1"):
        read_submission(bad)


def test_scores_of_a_submission(tmp_path: Path) -> None:
    data = read_dataset(dota(tmp_path / "set", P1="15 28 25 28 25 32 15 32 ship 0\n"))
    data = data.with_classes(("ship", "plane"))
    path = write_submission(tmp_path / "s.zip", [found_in(name="P1")])
    scores = evaluate(data, answers_of(read_submission(path), data), "dota-1.0")
    assert scores.mean(0.5) == pytest.approx(1.0)
    assert table_of(scores)[0][0].startswith("DOTA devkit 1.0")
    stranger = write_submission(tmp_path / "t.zip", [found_in(name="P9")])
    with pytest.raises(InputError, match="'P9'"):
        answers_of(read_submission(stranger), data)
    with pytest.raises(InputError, match="unknown"):
        evaluate(data, answers_of({}, data), "coco")


# -- scenes --------------------------------------------------------------------------------------


def planted(side: int, seed: int = 0) -> tuple[Raster, np.ndarray]:
    """A dark scene with bright pixels, each of which is an object."""
    random = np.random.default_rng(seed)
    data = np.zeros((1, side, side), np.float32)
    cells = random.permutation((side // 8) ** 2)[:60]
    y, x = (cells // (side // 8)) * 8 + 3, (cells % (side // 8)) * 8 + 4
    data[0, y, x] = 1.0
    grid = GeoBox((side, side), Affine(1, 0, 500_000, 0, -1, 5_000_000), "EPSG:32631")
    return Raster(data, np.ones((side, side), bool), grid, ("a",)), np.column_stack([x, y])


def bright(image: np.ndarray, valid: np.ndarray, partner: object) -> Found:
    """Finds bright pixels: a box of 4 x 2 around each."""
    y, x = np.nonzero(image[0] > 0.5)
    boxes = np.column_stack([x + 0.5, y + 0.5, np.full(len(x), 4.0), np.full(len(x), 2.0),
                             np.zeros(len(x))])  # fmt: skip
    return Found(boxes, np.full(len(x), 0.9), np.zeros(len(x), np.int64))


@pytest.mark.parametrize("tile", [64, 96, 512])
def test_each_object_is_found_once_whatever_the_tile(tile: int, tmp_path: Path) -> None:
    scene, truth = planted(256)
    source = open_raster(scene)
    lattice = SceneLattice.of(source, None)
    plan = plan_scene(lattice, tile=tile, halo=32)
    found, run = detect_scene(source, bright, tmp_path / "s.jsonl", plan=plan, lattice=lattice)
    assert run.done == len(plan)
    order = np.lexsort(found.boxes[:, :2].T)
    expected = truth[np.lexsort(truth.T)] + 0.5
    np.testing.assert_allclose(found.boxes[order, :2], expected)


def test_headings_come_through_to_the_table(tmp_path: Path) -> None:
    scene, _ = planted(256)
    source = open_raster(scene)
    lattice = SceneLattice.of(source, None)
    plan = plan_scene(lattice, tile=64, halo=32)

    def facing(image: np.ndarray, valid: np.ndarray, partner: object) -> Found:
        found = bright(image, valid, partner)
        boxes = np.column_stack([found.boxes, np.where(found.boxes[:, 0] % 2 < 1, -1.5, 0.25)])
        return Found(boxes, found.scores, found.labels)

    found, _ = detect_scene(source, facing, tmp_path / "s.jsonl", plan=plan, lattice=lattice)
    result = Detections.of_boxes(
        found.boxes, found.scores, found.labels, ("spot",), source.shape, source.geobox
    )
    assert result.headings is not None
    # Clockwise from +x in the image is 90 degrees less than clockwise from north, but for the
    # convergence of the meridians.
    expected = (90 + np.degrees(result.headings)) % 360
    gap = (result.columns()["heading_deg"] - expected + 180) % 360 - 180
    assert np.abs(gap).max() < 0.1


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    scene, truth = planted(256)
    source = open_raster(scene)
    lattice = SceneLattice.of(source, None)
    plan = plan_scene(lattice, tile=64, halo=32)
    seen = 0

    def dies(image: np.ndarray, valid: np.ndarray, partner: object) -> Found:
        nonlocal seen
        seen += 1
        if seen == 7:
            raise KeyboardInterrupt
        return bright(image, valid, partner)

    spool = tmp_path / "s.jsonl"
    with pytest.raises(KeyboardInterrupt):
        detect_scene(source, dies, spool, plan=plan, lattice=lattice)
    with spool.open("a") as file:
        file.write("[3, [[1, 2")  # what a kill leaves of a line
    found, run = detect_scene(source, bright, spool, plan=plan, lattice=lattice)
    assert run.skipped >= 3
    assert len(found) == len(truth)
    clear_spool(spool)
    assert not list(tmp_path.iterdir())


def test_nodata_and_areas_of_interest_hold_no_objects(tmp_path: Path) -> None:
    scene, truth = planted(256)
    valid = scene.valid.copy()
    valid[:, :128] = False
    source = open_raster(Raster(scene.data, valid, scene.geobox, scene.bands))
    lattice = SceneLattice.of(source, None)
    plan = plan_scene(lattice, tile=64, halo=32)
    found, _ = detect_scene(source, bright, tmp_path / "a.jsonl", plan=plan, lattice=lattice)
    assert len(found) == (truth[:, 0] >= 128).sum()

    class Upper:
        fingerprint = "upper"

        def at(self, window: object, shape: tuple[int, int]) -> np.ndarray:
            mask = np.zeros(shape, bool)
            mask[: max(0, 100 - window.y)] = True  # type: ignore[attr-defined]
            return mask

    found, _ = detect_scene(
        source, bright, tmp_path / "b.jsonl", plan=plan, lattice=lattice, area=Upper()
    )
    assert len(found) == ((truth[:, 0] >= 128) & (truth[:, 1] < 100)).sum()


def test_a_scene_is_looked_at_with_the_pixels_of_the_model(tmp_path: Path) -> None:
    scene, _ = planted(128)
    source = open_raster(scene)
    assert SceneLattice.of(source, 1.02).scale == 1.0
    lattice = SceneLattice.of(source, 0.5)
    assert lattice.shape == (256, 256)
    seen = []

    def middle(image: np.ndarray, valid: np.ndarray, partner: object) -> Found:
        seen.append(image.shape)
        return Found(np.array([[100.0, 60, 8, 4, 0.1]]), np.ones(1), np.zeros(1, np.int64))

    plan = plan_scene(lattice, tile=256, halo=32)
    found, _ = detect_scene(source, middle, tmp_path / "s.jsonl", plan=plan, lattice=lattice)
    assert seen == [(1, 256, 256)]
    np.testing.assert_allclose(found.boxes, [[50, 30, 4, 2, 0.1]])


@pytest.mark.parametrize("target_gsd_m", [0.2, 36.0, 1000.0])
def test_a_scene_far_from_the_pixels_of_the_model_is_refused(target_gsd_m: float) -> None:
    source = open_raster(planted(64)[0])
    with pytest.raises(InputError, match="GSD of 1 m, the model"):
        SceneLattice.of(source, target_gsd_m)


@pytest.mark.parametrize(
    ("target_gsd_m", "warned"),
    [(0.25, True), (0.5, False), (0.9, False), (4.0, False), (8.0, True), (32.0, True)],
)
def test_a_large_step_to_the_pixels_of_the_model_is_told(
    target_gsd_m: float, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    SceneLattice.of(open_raster(planted(64)[0]), target_gsd_m)
    assert ("objects may be missed" in caplog.text) is warned


def test_a_scene_is_blank_where_no_pixel_of_the_area_is_valid() -> None:
    scene, _ = planted(64)
    valid = np.zeros((64, 64), bool)
    assert is_blank(open_raster(Raster(scene.data, valid, scene.geobox, scene.bands)))
    valid[5, 7] = True
    source = open_raster(Raster(scene.data, valid, scene.geobox, scene.bands))

    class Lower:
        fingerprint = "lower"

        def at(self, window: object, shape: tuple[int, int]) -> np.ndarray:
            mask = np.ones(shape, bool)
            mask[:32] = False
            return mask

    assert not is_blank(source)
    assert is_blank(source, Lower())
