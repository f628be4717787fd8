"""`rsfuse match` and `rsfuse apply`, from files to files that others open."""

import json
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio

from rsfuse.cli import match as command
from rsfuse.cli.main import main
from rsfuse.matching import predict
from rsfuse.matching.metrics import grid_errors
from rsfuse.runs import RunRecord, read_json

COLUMNS = (
    "id,x_ref,y_ref,x_query,y_query,X_ref,Y_ref,X_query,Y_query,dx_px,dy_px,residual_px,"
    "probability,sigma_px,score,kept,reason,held_out_px,origin"
)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("match") / "scene"
    words = ["--size", "512", "--gsd", "1", "--modalities", "ms,pan,sar", "--warp", "affine"]
    assert main(["simulate", "-o", str(folder), *words, "--seed", "7", "-q"]) == 0
    return folder


@pytest.fixture(scope="module")
def run(scene: Path) -> Path:
    folder = scene.parent / "out"
    assert main(["match", f"{scene}/ms.tif", f"{scene}/sar.tif", "-o", str(folder), "-q"]) == 0
    return folder


def truth_of(scene: Path) -> np.ndarray:
    return np.array(read_json(scene / "truth" / "transform.json")["transform_px"])


def test_lists_of_the_command_are_those_of_the_library() -> None:
    assert ("auto", *predict.MODELS) == command.MODELS
    assert command.METHODS == predict.METHODS


def test_the_stored_transform_is_the_true_one(run: Path, scene: Path) -> None:
    stored = read_json(run / "transform.json")
    found = np.array(stored["transform"]["matrix"])
    errors = grid_errors(found, truth_of(scene), (512, 512), (512, 512))
    assert errors.mean() < 1.5
    record = RunRecord.load(run)
    assert record.status == "ok"
    assert record.confidence is not None
    assert record.confidence > 0.7


def test_the_registered_raster_lies_on_the_reference_grid(run: Path, scene: Path) -> None:
    with rasterio.open(run / "registered.tif") as file, rasterio.open(scene / "ms.tif") as ms:
        assert (file.shape, file.crs, file.transform) == (ms.shape, ms.crs, ms.transform)
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        registered = file.read(1, masked=True)
    with rasterio.open(scene / "sar.tif") as file:
        raw = file.read(1)
    # A pixel of the result holds what the truth says the query holds there.
    y, x = np.mgrid[100:400:7, 100:400:7]
    there = truth_of(scene) @ np.stack([x.ravel() + 0.5, y.ravel() + 0.5, np.ones(x.size)])
    column, row = np.floor(there[:2] / there[2]).astype(int)
    inside = (column > 2) & (row > 2) & (column < 509) & (row < 509)
    a = np.log(registered.data[y.ravel(), x.ravel()][inside] + 1.0)
    b = np.log(raw[row, column][inside] + 1.0)
    assert np.corrcoef(a, b)[0, 1] > 0.5


def test_tie_points_open_in_other_programs(run: Path) -> None:
    layer = pyogrio.read_info(run / "tie_points.gpkg")
    assert layer["geometry_type"] == "Point"
    assert "32631" in str(layer["crs"])
    lines = (run / "tie_points.csv").read_text().splitlines()
    assert lines[0] == COLUMNS
    assert len(lines) - 1 == layer["features"] > 50
    points = (run / "tie_points.points").read_text().splitlines()
    assert points[0].startswith("#CRS: ")
    assert points[1] == "mapX,mapY,sourceX,sourceY,enable,dX,dY,residual"
    with rasterio.open(run / "registered_gcp.vrt") as file:
        assert len(file.gcps[0]) > 20


def test_the_page_is_self_contained(run: Path) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "data:image/" in page
    assert 'src="http' not in page
    assert "url(http" not in page


def test_without_resampling_the_pixels_stay_and_the_place_is_corrected(
    scene: Path, tmp_path: Path
) -> None:
    words = ["match", f"{scene}/ms.tif", f"{scene}/sar.tif", "-o", str(tmp_path / "o"), "-q"]
    assert main([*words, "--no-resample", "--model", "affine"]) == 0
    with (
        rasterio.open(tmp_path / "o" / "registered.tif") as file,
        rasterio.open(scene / "sar.tif") as sar,
        rasterio.open(scene / "ms.tif") as ms,
    ):
        np.testing.assert_array_equal(file.read(1), sar.read(1))
        true = np.array(ms.transform).reshape(3, 3) @ np.linalg.inv(truth_of(scene))
        found = np.array(file.transform).reshape(3, 3)
        at = np.array([256.0, 256.0, 1.0])
        assert np.hypot(*((true - found) @ at)[:2]) < 3.0  # metres


def test_what_no_geotransform_says_is_resampled(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["match", f"{scene}/ms.tif", f"{scene}/sar.tif", "-o", str(tmp_path / "o")]
    assert main([*words, "--no-resample", "--model", "homography"]) in (0, 3)
    assert "resampling" in capsys.readouterr().err
    with (
        rasterio.open(tmp_path / "o" / "registered.tif") as file,
        rasterio.open(scene / "ms.tif") as ms,
    ):
        assert file.transform == ms.transform


def test_a_refused_transform_is_not_applied(
    run: Path, scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = read_json(run / "transform.json")
    path = tmp_path / "refused.json"
    path.write_text(json.dumps({**stored, "status": "refused", "confidence": 0.01}))
    assert main(["apply", str(path), f"{scene}/sar.tif", "-o", str(tmp_path / "x.tif")]) == 2
    assert "the match was refused" in capsys.readouterr().err
    assert not (tmp_path / "x.tif").exists()


def test_a_raster_is_not_replaced_by_its_own_result(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.tif"
    own.write_bytes(b"pixels")
    words = ["apply", str(run / "transform.json"), str(own), "-o", str(own), "--overwrite"]
    assert main(words) == 2
    assert "input of this command" in capsys.readouterr().err
    assert own.read_bytes() == b"pixels"


def test_an_earlier_run_is_replaced_only_when_asked(
    run: Path, scene: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["match", f"{scene}/ms.tif", f"{scene}/sar.tif", "-o", str(run), "-q"]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_bands_and_a_limit_can_be_given(scene: Path, tmp_path: Path) -> None:
    words = ["match", f"{scene}/ms.tif", f"{scene}/sar.tif", "-o", str(tmp_path / "o"), "-q"]
    assert main([*words, "--band-ref", "red,1", "--max-shift", "75m", "--upright"]) == 0
    record = RunRecord.load(tmp_path / "o")
    assert list(record.inputs[0]["bands"]) == ["red", "blue"]
    assert record.parameters["max_shift_px"] == 75


def test_an_unknown_model_names_its_neighbour(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["match", f"{scene}/ms.tif", f"{scene}/sar.tif", "-o", str(tmp_path / "o")]
    assert main([*words, "--model", "afine"]) == 2
    assert "affine" in capsys.readouterr().err


def test_the_transform_fits_other_resolutions_and_bands(
    run: Path, scene: Path, tmp_path: Path
) -> None:
    with rasterio.open(scene / "sar.tif") as file:
        half = file.read(1)[: file.height // 2 * 2, : file.width // 2 * 2]
        half = half.reshape(half.shape[0] // 2, 2, half.shape[1] // 2, 2).mean((1, 3))
        profile = {
            **file.profile,
            "driver": "GTiff",
            "height": half.shape[0],
            "width": half.shape[1],
            "transform": file.transform @ file.transform.scale(2, 2),
        }
        for name in ("BLOCKXSIZE", "BLOCKYSIZE", "blockxsize", "blockysize", "tiled", "interleave"):
            profile.pop(name, None)
    with rasterio.open(tmp_path / "half.tif", "w", **profile) as file:
        file.write(half.astype(profile["dtype"])[None])
    out = tmp_path / "half_registered.tif"
    words = ["apply", str(run / "transform.json"), str(tmp_path / "half.tif"), "-o", str(out)]
    assert main([*words, "-q"]) == 0
    with rasterio.open(out) as file, rasterio.open(run / "registered.tif") as whole:
        assert file.transform == whole.transform
        a, b = file.read(1, masked=True), whole.read(1, masked=True)
    both = ~np.ma.getmaskarray(a) & ~np.ma.getmaskarray(b)
    both[:8] = both[-8:] = False
    assert np.corrcoef(np.log1p(a.data[both]), np.log1p(b.data[both]))[0, 1] > 0.6
    assert main([*words, "-q"]) == 2  # the result exists


def test_several_rasters_go_into_a_folder(run: Path, scene: Path, tmp_path: Path) -> None:
    files = [str(scene / "sar.tif"), str(scene / "pan.tif")]
    words = ["apply", str(run / "transform.json"), *files, "-o", str(tmp_path / "many"), "--json"]
    assert main(words) == 0
    assert sorted(p.name for p in (tmp_path / "many").iterdir()) == ["pan.tif", "sar.tif"]


@pytest.mark.parametrize("damage", ["{", '{"format": "other"}', "matrix"])
def test_a_damaged_transform_is_explained(
    run: Path, scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    path = tmp_path / "transform.json"
    if damage == "matrix":
        content = read_json(run / "transform.json")
        content["transform"]["matrix"] = [[1, 0], [0, 1]]
        damage = json.dumps(content)
    path.write_text(damage)
    out = tmp_path / "o.tif"
    assert main(["apply", str(path), str(scene / "sar.tif"), "-o", str(out)]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") >= 3
    assert "Traceback" not in told
    assert not out.exists()


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["match", f"{scene}/ms.tif", f"{scene}/sar.tif", "-o", str(tmp_path / "o"), "--dry-run"]
    assert main([*words, "--json", "--memory", "400MB"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["reference"] == "512 x 512 px, 4 bands, uint16, 1 m"
    assert said["query_on_reference_px"] == {"x": 0, "y": 0, "w": 512, "h": 512}
    assert said["memory_mb"] <= 400
    assert not list(tmp_path.iterdir())
    assert main([*words, "--memory", "1MB"]) == 2
    assert "--memory" in capsys.readouterr().err


def test_classes_are_matched_by_colour_and_registered_as_numbers(
    scene: Path, tmp_path: Path
) -> None:
    labels = scene / "truth" / "labels.tif"
    words = ["match", f"{scene}/ms.tif", str(labels), "-o", str(tmp_path / "o"), "--upright", "-q"]
    assert main(words) in (0, 3)
    with rasterio.open(labels) as given, rasterio.open(tmp_path / "o" / "registered.tif") as file:
        numbers = set(np.unique(given.read(1)))
        found = file.read(1, masked=True).compressed()
        assert file.colormap(1)[1] == given.colormap(1)[1]
        assert (found == given.read(1)[~file.read(1, masked=True).mask]).mean() > 0.85
    assert set(np.unique(found)) <= numbers
    assert len(numbers) > 3
