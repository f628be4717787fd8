"""`rsfuse detect`, from a file on the disk to boxes that other software opens."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio

import rsfuse
from rsfuse.cli.main import main
from rsfuse.detection.evaluate import answers_of_images, evaluate
from rsfuse.detection.formats import read_dataset
from rsfuse.engine.bundle import load_bundle, shipped_bundles, zip_bundle
from rsfuse.geo.raster import open_raster
from rsfuse.geo.vectors import read_features
from rsfuse.runs import RunRecord

MODEL = "simulated-objects"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scene")
    words = ["simulate", "-o", str(folder), "--size", "512", "--gsd", "0.5", "--modalities",
             "ms,pan", "--warp", "none", "--seed", "204", "--overwrite", "-q"]  # fmt: skip
    assert main(words) == 0
    return folder


def detect(scene: Path, target: Path, *more: str) -> int:
    words = ["detect", f"{scene}/pan.tif", "-m", MODEL, "-o", str(target), "--progress", "none"]
    return main([*words, *more])


def test_shipped_models_have_cards_that_say_what_they_are() -> None:
    shipped = shipped_bundles()
    assert {"hit-uav-tiny", "simulated-objects", "simulated-land-cover"} <= set(shipped)
    for name, path in shipped.items():
        bundle = load_bundle(name)
        assert bundle.path == path
        assert bundle.state()
        assert bundle.card.training["licence"]
        assert bundle.card.scores
        assert len(bundle.file("README.md")) > 200


def test_boxes_open_in_other_software(scene: Path, tmp_path: Path) -> None:
    target = tmp_path / "found.gpkg"
    assert detect(scene, target, "--score", "0.2", "-q") == 0
    with open_raster(scene / "pan.tif") as source:
        found = read_features(target, source.geobox)
        h, w = source.shape
    assert len(found) > 0
    centres = np.array([shape.centroid.coords[0] for shape in found.shapes])
    assert ((centres >= 0) & (centres <= (w, h))).all()
    assert found.columns["score"].min() >= 0.2
    assert (found.columns["length_m"] >= found.columns["width_m"]).all()
    record = RunRecord.load(tmp_path / "found_run")
    assert record.result["objects"] == len(found)
    text = (tmp_path / "found_run" / "report.html").read_text()
    assert 'data-control="score"' in text
    assert not list((tmp_path / "found_run").glob("boxes.jsonl*"))
    assert detect(scene, target, "-q") == 2  # exists
    assert detect(scene, target, "--overwrite", "-q") == 0


def test_it_finds_what_is_there(scene: Path) -> None:
    found = rsfuse.detect(scene / "pan.tif", MODEL, score=0.05)
    truth = read_dataset(scene, format="simulated", classes=found.classes)
    from dataclasses import replace

    named = replace(found, name=truth.samples[0].name)
    scores = evaluate(truth, answers_of_images([named], truth), "voc12")
    assert scores.mean(0.5) > 0.3


def test_arrays_zipped_models_and_classes(scene: Path, tmp_path: Path) -> None:
    with rasterio.open(scene / "pan.tif") as source:
        pixels = source.read(1)
    bundle = zip_bundle(load_bundle(MODEL), tmp_path / "model.zip")
    whole = rsfuse.detect(scene / "pan.tif", bundle, score=0.3)
    bare = rsfuse.detect(pixels, bundle, score=0.3)
    assert bare.sizes_m() is None
    np.testing.assert_allclose(bare.corners, whole.corners, atol=0.1)
    assert len(whole) > 0
    name = whole.classes[int(whole.labels[0])]
    only = rsfuse.detect(scene / "pan.tif", bundle, score=0.3, classes=[name])
    assert len(only) == int((whole.labels == whole.labels[0]).sum())


@pytest.mark.parametrize("kind", ["geojson", "csv", "dota"])
def test_formats_and_several_scenes(scene: Path, tmp_path: Path, kind: str) -> None:
    other = Path(shutil.copy(scene / "pan.tif", tmp_path / "other.tif"))
    words = ["detect", f"{scene}/pan.tif", str(other), "-m", MODEL, "-o",
             str(tmp_path / "out"), "--format", kind, "--overwrite", "-q"]  # fmt: skip
    assert main(words) == 0
    suffix = {"dota": "zip"}.get(kind, kind)
    for name in ("pan", "other"):
        assert (tmp_path / "out" / f"{name}.{suffix}").stat().st_size > 0


def test_dry_run_writes_nothing(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert detect(scene, tmp_path / "a.gpkg", "--dry-run", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["tiles"] == 1
    assert said["classes"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["{scene}/ms.tif", "-m", MODEL], "4 bands"),
        (["{scene}/pan.tif", "-m", "simulated-land-cover"], "rsfuse classify"),
        (["{scene}/pan.tif", "-m", "no-such-model"], "not a model bundle"),
        (["{scene}/none.tif", "-m", MODEL], "none.tif"),
        (["{scene}/pan.tif", "-m", MODEL, "--classes", "cow"], "'cow'"),
        (["{scene}/pan.tif", "-m", MODEL, "--format", "shp"], "shp"),
        (["{scene}/pan.tif", "-m", MODEL, "--aoi", "{scene}/none.gpkg"], "none.gpkg"),
        (["{scene}/pan.tif", "-m", MODEL, "--format", "csv"], "not the name of a csv file"),
    ],
)
def test_bad_input_is_explained(
    scene: Path, tmp_path: Path, words: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.format(scene=scene) for word in words]
    assert main(["detect", *words, "-o", str(tmp_path / "a.gpkg"), "--progress", "none"]) == 2
    said = capsys.readouterr().err
    assert what in said
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


def unused(*_: object, **__: object) -> None:
    raise AssertionError("a scene was looked at")


def test_scenes_of_one_name_are_refused_before_the_first(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rsfuse.detection.run.run_scene", unused)
    scenes = [str(shutil.copytree(scene, tmp_path / name) / "pan.tif") for name in ("a", "b")]
    for more in ([], ["--overwrite"], ["--dry-run"]):
        assert main(["detect", *scenes, "-m", MODEL, "-o", str(tmp_path / "out"), *more]) == 2
        assert "two results would be written to" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("left", ["second.gpkg", "second_run/run.json"])
def test_earlier_results_are_refused_before_the_first_scene(
    scene: Path, tmp_path: Path, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rsfuse.detection.run.run_scene", unused)
    scenes = [shutil.copy(scene / "pan.tif", tmp_path / f"{n}.tif") for n in ("first", "second")]
    (tmp_path / "out" / left).parent.mkdir(parents=True)
    (tmp_path / "out" / left).write_text("{}")
    assert main(["detect", *map(str, scenes), "-m", MODEL, "-o", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out" / "first_run").exists()


def test_boxes_do_not_replace_an_input(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    area = tmp_path / "area.geojson"
    area.write_text(polygon(500_000, 5_000_000))
    assert detect(scene, area, "--aoi", str(area), "--overwrite") == 2
    assert "is an input" in capsys.readouterr().err
    assert area.read_text() == polygon(500_000, 5_000_000)


def test_names_that_a_submission_cannot_hold_are_refused_before_a_look(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rsfuse.detection.run.run_scene", unused)
    path = shutil.copy(scene / "pan.tif", tmp_path / "a b.tif")
    assert main(["detect", str(path), "-m", MODEL, "-o", str(tmp_path / "sub.zip")]) == 2
    assert "'a b'" in capsys.readouterr().err


def test_a_file_in_the_path_of_the_output_is_explained(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.tif").write_text("text")
    assert detect(scene, tmp_path / "text.tif" / "n.gpkg") == 1
    assert "a part of this path is a file" in capsys.readouterr().err


def test_a_run_folder_that_was_there_stays(scene: Path, tmp_path: Path) -> None:
    (tmp_path / "a_run").mkdir()
    assert detect(scene, tmp_path / "a.gpkg", "--aoi", f"{scene}/none.gpkg", "-q") == 2
    assert (tmp_path / "a_run").is_dir()


def polygon(left: float, top: float) -> str:
    """GeoJSON of a square of 100 m in EPSG:32631."""
    x, y = [left, left + 100, left + 100, left, left], [top, top, top - 100, top - 100, top]
    geometry = {"type": "Polygon", "coordinates": [list(zip(x, y, strict=True))]}
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32631"}}
    feature = {"type": "Feature", "properties": {}, "geometry": geometry}
    return json.dumps({"type": "FeatureCollection", "crs": crs, "features": [feature]})


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_an_area_of_interest_elsewhere_is_refused(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    area = tmp_path / "area.geojson"
    area.write_text(polygon(100_000, 5_000_000))
    assert detect(scene, tmp_path / "a.gpkg", "--aoi", str(area), *more) == 2
    assert "shares no ground with the raster" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [area]


@pytest.mark.parametrize("gsd_m", [500.0, 0.0005])
def test_pixels_far_from_those_of_the_model_are_refused(
    tmp_path: Path, gsd_m: float, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "scene.tif"
    profile = {"driver": "GTiff", "height": 64, "width": 64, "count": 1, "dtype": "uint16",
               "crs": "EPSG:32631",
               "transform": rasterio.Affine(gsd_m, 0, 500_000, 0, -gsd_m, 5_000_000)}  # fmt: skip
    with rasterio.open(path, "w", **profile) as out:
        out.write(np.full((1, 64, 64), 1000, np.uint16))
    for more in ([], ["--dry-run"]):
        assert main(["detect", str(path), "-m", MODEL, "-o", str(tmp_path / "a.gpkg"), *more]) == 2
        assert f"a GSD of {gsd_m:g} m, the model 0.5 m" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [path]


def test_a_scene_without_valid_pixels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.tif"
    profile = {"driver": "GTiff", "height": 200, "width": 300, "count": 1, "dtype": "uint16",
               "nodata": 0, "crs": "EPSG:32631",
               "transform": rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)}  # fmt: skip
    with rasterio.open(path, "w", **profile) as out:
        out.write(np.zeros((1, 200, 300), np.uint16))
    assert main(["detect", str(path), "-m", MODEL, "-o", str(tmp_path / "a.gpkg"), "-q"]) == 3
    record = RunRecord.load(tmp_path / "a_run")
    assert record.status == "refused"
    assert [reason["code"] for reason in record.reasons] == ["no_valid_pixels"]
    assert record.result["objects"] == 0
    assert (tmp_path / "a.gpkg").is_file()
    assert "no usable pixels" in (tmp_path / "a_run" / "report.html").read_text()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    for seed in ("358", "359"):
        words = ["simulate", "-o", str(folder / seed), "--size", "512", "--gsd", "0.5",
                 "--modalities", "pan,thermal", "--warp", "none", "--seed", seed, "-q"]  # fmt: skip
        assert main(words) == 0
    return folder


def with_second(pan: Path, second: Path, target: Path, *more: str) -> int:
    return main(["detect", str(pan), "-m", "simulated-pairs", "-o", str(target), "--with",
                 str(second), "--progress", "none", "-q", *more])  # fmt: skip


def test_a_second_image_is_brought_into_place(pairs: Path, tmp_path: Path) -> None:
    pan, thermal = (pairs / "358" / f"{name}.tif" for name in ("pan", "thermal"))
    shifted = tmp_path / "shifted.tif"
    with rasterio.open(thermal) as source:
        profile, pixels = source.profile, source.read()
    profile["transform"] *= rasterio.Affine.translation(14, -9)  # its file says another place
    with rasterio.open(shifted, "w", **profile) as target:
        target.write(pixels)
    assert with_second(pan, thermal, tmp_path / "right.gpkg", "--align", "georeference") == 0
    assert with_second(pan, shifted, tmp_path / "found.gpkg") == 0
    with open_raster(pan) as source:
        grid = source.geobox
    right, found = (read_features(tmp_path / f"{n}.gpkg", grid) for n in ("right", "found"))
    assert len(found) > 5
    assert abs(len(found) - len(right)) <= 0.2 * len(right)
    record = RunRecord.load(tmp_path / "found_run")
    assert record.result["second_image"]["used"]
    assert record.result["second_image"]["confidence"] > 0.7
    stages = {stage["name"]: stage["seconds"] for stage in record.diagnostics["stages"]}
    assert list(stages) == ["align", "tiles", "write"]
    assert min(stages.values()) > 0
    assert sum(stages.values()) == pytest.approx(record.seconds, abs=0.01)
    assert [entry["role"] for entry in record.inputs] == ["scene", "partner"]
    assert (tmp_path / "found_run" / "previews" / "partner.webp").is_file()
    assert "Both images were used." in (tmp_path / "found_run" / "report.html").read_text()


def test_a_second_image_of_other_ground_is_left_out_and_told(pairs: Path, tmp_path: Path) -> None:
    pan = pairs / "358" / "pan.tif"
    assert with_second(pan, pairs / "359" / "thermal.tif", tmp_path / "found.gpkg") == 3
    record = RunRecord.load(tmp_path / "found_run")
    assert record.status == "weak"
    assert record.reasons[0]["code"] == "second_image_left_out"
    assert not record.result["second_image"]["used"]
    alone = rsfuse.detect(pan, "simulated-pairs", score=0.3)
    assert record.result["objects"] == len(alone)
    assert "The second image was not used" in (tmp_path / "found_run" / "report.html").read_text()


def test_a_transform_that_was_found_before_places_the_second_image(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pan, thermal = (pairs / "358" / f"{name}.tif" for name in ("pan", "thermal"))
    run = tmp_path / "run"
    assert main(["match", str(pan), str(thermal), "-o", str(run), "-q", "--upright"]) in (0, 3)
    assert with_second(pan, thermal, tmp_path / "a.gpkg", "--align", f"{run}/transform.json") == 0
    assert RunRecord.load(tmp_path / "a_run").result["second_image"]["used"]
    small = tmp_path / "small.tif"
    with rasterio.open(thermal) as source:
        profile, pixels = source.profile, source.read()[:, :100, :100]
    with rasterio.open(small, "w", **{**profile, "width": 100, "height": 100}) as target:
        target.write(pixels)
    capsys.readouterr()
    assert with_second(pan, small, tmp_path / "b.gpkg", "--align", f"{run}/transform.json") == 2
    assert "512 x 512" in capsys.readouterr().err
    assert with_second(pan, small, tmp_path / "b.gpkg", "--align", "nowhere.json") == 2
