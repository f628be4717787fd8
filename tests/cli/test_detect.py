"""`rsfuse detect`, from a file on the disk to boxes that other software opens."""

import json
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
    words = ["detect", f"{scene}/pan.tif", f"{scene}/pan.tif", "-m", MODEL, "-o",
             str(tmp_path / "out"), "--format", kind, "--overwrite", "-q"]  # fmt: skip
    assert main(words) == 0
    suffix = {"dota": "zip"}.get(kind, kind)
    assert (tmp_path / "out" / f"pan.{suffix}").stat().st_size > 0


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
    assert not (tmp_path / "a.gpkg").exists()


def test_an_empty_scene_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "empty.tif"
    profile = {"driver": "GTiff", "height": 200, "width": 300, "count": 1, "dtype": "uint16",
               "nodata": 0, "crs": "EPSG:32631",
               "transform": rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)}  # fmt: skip
    with rasterio.open(path, "w", **profile) as out:
        out.write(np.zeros((1, 200, 300), np.uint16))
    assert main(["detect", str(path), "-m", MODEL, "-o", str(tmp_path / "a.gpkg"), "-q"]) == 0
    assert RunRecord.load(tmp_path / "a_run").result["objects"] == 0


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
