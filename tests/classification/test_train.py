"""From a simulated scene to a bundle, a map, its page and its scores."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import rasterio

from rsfuse.classification.config import ClassifyTrainConfig
from rsfuse.classification.train import prepare
from rsfuse.cli.main import main
from rsfuse.engine.bundle import load_bundle
from rsfuse.geo.raster import open_raster
from rsfuse.geo.write import write_cog
from rsfuse.runs import RunRecord
from rsfuse.simulate import render, simulate_scene
from rsfuse.simulate.render import Acquisition


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scene")
    assert main(["simulate", "-o", str(folder), "--size", "256", "--gsd", "2", "--modalities",
                 "ms,pan", "--ratio", "2", "--seed", "4", "--overwrite", "-q"]) == 0  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def trained(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    config = folder / "train.toml"
    config.write_text(
        f'ms = "{scene}/ms.tif"\npan = "{scene}/pan.tif"\nlabels = "{scene}/truth/labels.tif"\n'
        'resolution = "pan"\nblock = 16\nbuffer = 2\ntile = 16\nsteps = 60\nbatch = 4\n'
        "learning_rate = 4e-3\nwarmup = 5\nema = 0.9\nvalidate_every = 30\n"
    )
    run = folder / "run"
    assert main(["train", "classify", str(config), "-o", str(run), "--progress", "none", "-q"]) == 0
    return run


def classify(scene: Path, trained: Path, output: Path, *more: str) -> int:
    return main(["classify", f"{scene}/ms.tif", f"{scene}/pan.tif", "-m", f"{trained}/bundle",
                 "-o", str(output), "--progress", "none", *more])  # fmt: skip


def test_training_beats_guessing_and_says_so(trained: Path) -> None:
    scores = json.loads((trained / "scores.json").read_text())
    assert scores["overall_accuracy"] > 0.6
    assert scores["leakage"] >= 0
    bundle = load_bundle(trained / "bundle", "classify")
    assert bundle.card.inputs[0].bands == ("blue", "green", "red", "nir")
    assert "water" in [item.name for item in bundle.card.classes]
    assert "water" in bundle.file("README.md").decode()
    rows = list(csv.DictReader((trained / "metrics.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["30.0", "60.0"]


def test_a_map_opens_in_other_software(scene: Path, trained: Path, tmp_path: Path) -> None:
    output = tmp_path / "map.tif"
    code = classify(
        scene, trained, output, "--probs", str(tmp_path / "p.tif"), "--vector",
        str(tmp_path / "map.gpkg"), "--labels", f"{scene}/truth/labels.tif",
    )  # fmt: skip
    assert code == 0
    with rasterio.open(output) as found, rasterio.open(scene / "pan.tif") as pan:
        assert found.shape == pan.shape
        assert found.transform == pan.transform
        assert found.crs == pan.crs
        assert found.nodata == 255
        numbers = found.read(1)
        names = json.loads(found.tags()["class_names"])
        assert len(found.colormap(1)) >= len(names)
        assert found.overviews(1) or max(found.shape) <= 256
    with rasterio.open(tmp_path / "p.tif") as odds:
        shares = odds.read().astype(int)
        assert odds.descriptions[0] == names["0"]
    assert (np.abs(shares.sum(axis=0) - 100) <= len(names)).all()
    clear = np.sort(shares, axis=0)[-1] - np.sort(shares, axis=0)[-2] > 1
    assert (shares.argmax(axis=0)[clear] == numbers[clear]).all()
    with open_raster(scene / "truth" / "labels.tif") as truth:
        raster = truth.read()
        stored = dict(truth.class_names)
    right = np.array([names[str(v)] for v in numbers.ravel()]) == np.array(
        [stored[int(v)] for v in raster.data[0].ravel()]
    )
    assert right.mean() > 0.6
    record = RunRecord.load(tmp_path / "map_run")
    assert record.result["accuracy"]["overall"] == pytest.approx(right.mean(), abs=1e-6)
    shares_sum = sum(entry["share"] for entry in record.result["classes"])
    assert shares_sum == pytest.approx(1)
    text = (tmp_path / "map_run" / "report.html").read_text()
    assert "Labels against the map" in text
    assert (tmp_path / "map.qml").read_text().count("paletteEntry") == len(names)
    rows = list(csv.DictReader((tmp_path / "map_areas.csv").read_text().splitlines()))
    assert sum(int(row["pixels"]) for row in rows) == numbers.size
    pyogrio = pytest.importorskip("pyogrio")
    assert pyogrio.read_info(tmp_path / "map.gpkg")["features"] > 5


def test_a_map_does_not_depend_on_its_tiles_and_resumes(
    scene: Path, trained: Path, tmp_path: Path
) -> None:
    assert classify(scene, trained, tmp_path / "a.tif", "--tile", "64", "-q") == 0
    assert classify(scene, trained, tmp_path / "b.tif", "--tile", "128", "-q") == 0
    with rasterio.open(tmp_path / "a.tif") as a, rasterio.open(tmp_path / "b.tif") as b:
        assert (a.read() == b.read()).mean() > 0.9999  # rounding may turn a tie
    assert classify(scene, trained, tmp_path / "a.tif", "-q") == 2  # exists
    assert classify(scene, trained, tmp_path / "a.tif", "--overwrite", "-q") == 0


def test_dry_run_writes_nothing(
    scene: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert classify(scene, trained, tmp_path / "a.tif", "--dry-run", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["tiles"] >= 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda s, t, o: ["classify", f"{s}/pan.tif", f"{s}/ms.tif", "-m", f"{t}/bundle", "-o", o],
         "1 bands"),
        (lambda s, t, o: ["classify", f"{s}/ms.tif", f"{s}/pan.tif", "-m", f"{s}", "-o", o],
         "not a model bundle"),
        (lambda s, t, o: ["classify", f"{s}/ms.tif", f"{s}/none.tif", "-m", f"{t}/bundle", "-o", o],
         "none.tif"),
        (lambda s, t, o: ["classify", f"{s}/ms.tif", f"{s}/pan.tif", "-m", f"{t}/bundle", "-o",
                          o.replace(".tif", ".png")], "not a GeoTIFF"),
    ],
)  # fmt: skip
def test_bad_input_is_explained(scene: Path, trained: Path, tmp_path: Path, change, what: str,
                                capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]  # fmt: skip
    assert main([*change(scene, trained, str(tmp_path / "m.tif")), "--progress", "none"]) == 2
    said = capsys.readouterr().err
    assert what in said
    assert "Traceback" not in said
    assert not (tmp_path / "m.tif").exists()


def test_a_map_of_numbers_never_seen_is_weak(scene: Path, trained: Path, tmp_path: Path) -> None:
    for name in ("ms", "pan"):
        with open_raster(scene / f"{name}.tif") as source:
            raster = source.read()
        write_cog(tmp_path / f"{name}.tif", raster.data / 10_000, geobox=raster.geobox)
    code = main(["classify", f"{tmp_path}/ms.tif", f"{tmp_path}/pan.tif", "-m", f"{trained}/bundle",
                 "-o", f"{tmp_path}/map.tif", "--progress", "none"])  # fmt: skip
    assert code == 3
    record = RunRecord.load(tmp_path / "map_run")
    assert record.status == "weak"
    assert record.reasons[0]["code"] == "unlike_training"
    assert "in training from" in record.reasons[0]["message"]


def test_a_map_has_the_pixels_that_were_asked_for(
    scene: Path, trained: Path, tmp_path: Path
) -> None:
    for name in ("model", "ms", "pan"):
        more = ("--resolution", name, "--probs", str(tmp_path / f"{name}_p.tif"))
        assert classify(scene, trained, tmp_path / f"{name}.tif", *more) == 0
    with (
        rasterio.open(scene / "ms.tif") as ms,
        rasterio.open(tmp_path / "ms_p.tif") as small,
        rasterio.open(tmp_path / "pan_p.tif") as large,
    ):
        assert small.shape == ms.shape
        assert small.transform == ms.transform
        fine, coarse = large.read().astype(float), small.read().astype(float)
    mean = fine.reshape(len(fine), coarse.shape[1], 2, coarse.shape[2], 2).mean((2, 4))
    assert abs(mean - coarse).max() <= 1.0  # percent, rounded twice
    one, two = (rasterio.open(tmp_path / f"{name}.tif") for name in ("model", "pan"))
    with one, two:
        assert (one.read() == two.read()).all()  # it was trained for PAN pixels


def test_a_new_user_needs_no_file(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--ms", f"{scene}/ms.tif", "--pan", f"{scene}/pan.tif"]
    words = ["train", "classify", *files, "-o", str(tmp_path / "mine"), "--progress", "none", "-q"]
    assert main(words) == 2
    assert "--labels" in capsys.readouterr().err
    quick = ["--set", "tile=16", "--set", "steps=4", "--set", "batch=2", "--set", "block=16",
             "--set", "buffer=2", "--set", "validate_every=4", "--model", "unet"]  # fmt: skip
    assert main([*words, "--labels", f"{scene}/truth/labels.tif", *quick]) == 0
    card = load_bundle(tmp_path / "mine" / "bundle").card
    assert (card.name, card.architecture) == ("mine", "unet")


def test_repeats_tell_the_spread_and_keep_the_best(scene: Path, tmp_path: Path) -> None:
    files = ["--ms", f"{scene}/ms.tif", "--pan", f"{scene}/pan.tif", "--labels",
             f"{scene}/truth/labels.tif"]  # fmt: skip
    quick = ["--set", "tile=16", "--set", "steps=4", "--set", "batch=2", "--set", "block=16",
             "--set", "buffer=2", "--set", "validate_every=4", "--model", "unet"]  # fmt: skip
    words = ["train", "classify", *files, *quick, "--set", "repeats=2", "--progress", "none", "-q"]
    assert main([*words, "-o", str(tmp_path / "run")]) == 0
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    each = [json.loads((tmp_path / f"run/repeat_{n}/scores.json").read_text()) for n in (1, 2)]
    found = [one["overall_accuracy"] for one in each]
    assert scores["overall_accuracy"] == pytest.approx(np.mean(found))
    assert scores["overall_accuracy_std"] == pytest.approx(np.std(found, ddof=1))

    def validated(number: int) -> float:
        lines = (tmp_path / f"run/repeat_{number}/metrics.csv").read_text().splitlines()
        return max(float(row["mean_f1"]) for row in csv.DictReader(lines))

    best = max((1, 2), key=validated)
    kept = load_bundle(tmp_path / "run" / "bundle")
    expected = load_bundle(tmp_path / "run" / f"repeat_{best}" / "bundle")
    assert kept.card.training["seed"] == expected.card.training["seed"] == best - 1
    assert kept.card.files == expected.card.files


@pytest.mark.parametrize("pan", ["{}/pan.tif", "simulated"])
def test_further_scenes_are_read_with_the_bands_of_the_first(
    scene: Path, tmp_path: Path, pan: str
) -> None:
    with open_raster(scene / "ms.tif") as source:
        raster = source.read()
    write_cog(tmp_path / "ms.tif", raster.data[::-1].astype(np.uint16), geobox=raster.geobox,
              bands=raster.bands[::-1])  # fmt: skip
    labels = f"{scene}/truth/labels.tif"
    ready = prepare(
        ClassifyTrainConfig(
            ms=(f"{scene}/ms.tif", f"{tmp_path}/ms.tif"), pan=(pan.format(scene),) * 2,
            labels=(labels, labels), block=16, buffer=2, tile=16,
        )
    )  # fmt: skip
    one, two = ready.scenes
    np.testing.assert_array_equal(one.ms, two.ms)
    np.testing.assert_array_equal(one.pan, two.pan)


def test_another_ratio_is_explained(
    scene: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_raster(scene / "ms.tif") as source:
        raster = source.read(bands=[1])
    write_cog(tmp_path / "pan.tif", raster.data, geobox=raster.geobox)
    code = main(["classify", f"{scene}/ms.tif", f"{tmp_path}/pan.tif", "-m", f"{trained}/bundle",
                 "-o", f"{tmp_path}/map.tif", "--progress", "none"])  # fmt: skip
    assert code == 2
    assert "was trained with 2" in capsys.readouterr().err


def test_where_one_image_has_no_data_the_map_has_none(
    scene: Path, trained: Path, tmp_path: Path
) -> None:
    with rasterio.open(scene / "ms.tif") as source:
        profile, data = source.profile, source.read()
    profile.update(nodata=0)
    data[:, :, :100] = 0
    folder = tmp_path / "in"
    folder.mkdir()
    with rasterio.open(folder / "ms.tif", "w", **profile) as out:
        out.write(data)
        out.descriptions = ("blue", "green", "red", "nir")
    (folder / "pan.tif").write_bytes((scene / "pan.tif").read_bytes())
    assert classify(folder, trained, tmp_path / "m.tif", "-q") == 0
    with rasterio.open(tmp_path / "m.tif") as found:
        numbers = found.read(1)
    assert (numbers[:, :200] == 255).all()
    assert (numbers[:, 200:] != 255).all()


def test_the_simulator_gives_what_a_pair_needs() -> None:
    ground = simulate_scene(128, gsd_m=2.0, seed=1)
    image = render(ground, "ms", acquisition=Acquisition(ratio=2))
    assert (
        image.data.shape[1] * 2 == render(ground, "pan", acquisition=Acquisition(ratio=2)).shape[0]
    )
