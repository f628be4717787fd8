"""`rsfuse info`: rasters, run folders and model bundles described."""

import json
from pathlib import Path

import numpy as np
import pytest

from rsfuse.cli.main import main
from rsfuse.runs import RunRecord, write_json


def describe(path: Path, capsys: pytest.CaptureFixture[str]) -> dict:
    assert main(["info", str(path), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refusal(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["info", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "why", "fix"]
    return lines[0]


def make_bundle(folder: Path) -> Path:
    """A bundle as `save_bundle` writes it, made without torch."""
    from safetensors.numpy import save_file

    folder.mkdir()
    tensors = {"a": np.zeros((3, 4), np.float32), "b": np.zeros(5, np.float16)}
    save_file(tensors, folder / "model.safetensors")
    card = {
        "format": 1,
        "task": "classify",
        "name": "tiny",
        "architecture": "unet",
        "inputs": [{"name": "ms", "bands": ["red", "nir"], "gsd_m": 10.0}],
        "classes": [{"name": "water", "color": "#0000ff"}],
        "training": {"licence": "none", "settings": {"steps": 3}},
        "scores": {"kappa": 0.5},
    }
    write_json(folder / "bundle.json", card)
    return folder


def test_raster_is_described(tiny_raster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = describe(tiny_raster, capsys)
    assert found["kind"] == "raster"
    assert (found["height"], found["width"]) == (40, 60)
    assert found["bands"] == ["red", "nir"]
    assert found["dtype"] == "uint16"
    assert found["crs"] == "EPSG:32631"
    assert found["gsd_m"] == pytest.approx(10.0, rel=2e-3)
    assert found["bounds"] == [500_000.0, 5_399_600.0, 500_600.0, 5_400_000.0]
    assert found["valid_share"] == pytest.approx(1 - 24 / 2400)
    assert found["statistics"]["red"]["p2"] >= 1


def test_image_without_georeference_is_described(
    plain_image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = describe(plain_image, capsys)
    assert (found["crs"], found["gsd_m"], found["bounds"]) == (None, None, None)
    assert found["notes"]


def test_text_output_names_size_and_crs(
    tiny_raster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(tiny_raster)]) == 0
    text = capsys.readouterr().out
    assert "EPSG:32631" in text
    assert "red, nir" in text


def test_raster_of_nothing_but_nodata_has_no_statistics(
    write_raster, capsys: pytest.CaptureFixture[str]
) -> None:
    found = describe(write_raster(np.zeros((1, 8, 8), np.uint8), nodata=0), capsys)
    assert found["valid_share"] == 0.0
    assert found["statistics"] == {}


def test_run_folder_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RunRecord(
        task="match",
        command="rsfuse match a.tif b.tif -o out",
        started="2026-11-25T02:00:00Z",
        seconds=1.5,
        inputs=({"role": "reference", "path": "a.tif"},),
        parameters={},
        status="refused",
        confidence=0.02,
        reasons=({"code": "few_tie_points", "message": "7 tie points where 12 are needed"},),
    ).save(tmp_path)
    found = describe(tmp_path, capsys)
    assert (found["kind"], found["status"], found["confidence"]) == ("run", "refused", 0.02)
    assert found["reasons"] == ["7 tie points where 12 are needed"]
    assert found["inputs"] == ["reference: a.tif"]


def test_bundle_is_described_without_its_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = describe(make_bundle(tmp_path / "bundle"), capsys)
    assert found["kind"] == "model bundle"
    assert (found["task"], found["name"], found["parameters"]) == ("classify", "tiny", 17)
    assert found["inputs"] == ["ms: red, nir at 10 m"]
    assert found["classes"] == ["water"]
    assert found["training"] == {"licence": "none"}
    assert found["scores"] == {"kappa": 0.5}


@pytest.mark.parametrize("kept", [0, 4, 40, -3])
def test_truncated_weights_are_refused(
    tmp_path: Path, kept: int, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = make_bundle(tmp_path / "bundle") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    assert "model.safetensors cannot be read" in refusal(weights.parent, capsys)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("{", "not valid JSON"),
        ('{"format": 1, "task": "classify"}', "lacks the key"),
        ('{"format": 7}', "format 7"),
        ('{"format": 1, "task": "cook", "name": "a", "architecture": "b"}', "'cook'"),
    ],
)
def test_damaged_cards_are_refused(
    tmp_path: Path, change: str, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_bundle(tmp_path / "bundle")
    (folder / "bundle.json").write_text(change)
    assert what in refusal(folder, capsys)


def test_missing_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "absent.tif" in refusal(tmp_path / "absent.tif", capsys)


def test_file_that_is_no_raster_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.tif").write_text("not a raster")
    assert "a.tif" in refusal(tmp_path / "a.tif", capsys)


def test_folder_of_another_kind_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "neither a run folder nor a model bundle" in refusal(tmp_path, capsys)
