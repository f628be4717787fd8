"""`rsfuse simulate` from the command line to files that others open."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio

from rsfuse.cli import simulate as command
from rsfuse.cli.main import main
from rsfuse.runs import RunRecord, read_json


def run(folder: Path, *words: str) -> int:
    return main(["simulate", "-o", str(folder), "--size", "160", "--seed", "4", *words])


def test_lists_of_the_command_are_those_of_the_library() -> None:
    from rsfuse import simulate as library

    assert command.MODALITIES == library.MODALITIES
    assert command.QUERIES == library.DEFAULT_QUERIES
    assert command.WARPS == library.MODELS
    assert command.OBJECTS == library.OBJECT_KINDS
    assert command.SEASONS == library.SEASONS


@pytest.mark.parametrize("warp", ["affine", "relief"])
def test_a_scene_with_all_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], warp: str
) -> None:
    assert run(tmp_path / "scene", "--gsd", "2", "--warp", warp, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["references"] == ["ms.tif", "pan.tif"]
    assert told["queries"] == ["sar.tif", "thermal.tif", "map.tif"]
    for name in told["references"] + told["queries"]:
        with rasterio.open(tmp_path / "scene" / name) as file:
            assert file.shape == (160, 160)
            assert file.crs.to_epsg() == 32631
            assert file.res == (2.0, 2.0)
            assert file.read(1, masked=True).std() > 0
    with rasterio.open(tmp_path / "scene" / "truth" / "displacement.tif") as file:
        moved = file.read()
    truth = read_json(tmp_path / "scene" / "truth" / "transform.json")
    assert truth["model"] == warp
    if warp == "affine":
        matrix = np.array(truth["transform_px"])
        at = matrix @ [80.5, 40.5, 1.0]
        np.testing.assert_allclose(moved[:, 40, 80], at[:2] / at[2] - [80.5, 40.5], atol=1e-3)
    else:
        assert truth["transform_px"] is None
        assert np.ptp(moved[0]) + np.ptp(moved[1]) > 1
    scene = read_json(tmp_path / "scene" / "scene.json")
    assert (scene["seed"], scene["gsd_m"], scene["warp"]) == (4, 2.0, warp)
    assert (tmp_path / "scene" / "truth" / "objects.gpkg").is_file()


def test_the_record_names_every_file(tmp_path: Path) -> None:
    folder = tmp_path / "scene"
    assert run(folder, "--modalities", "pan,sar", "--objects", "none") == 0
    record = RunRecord.load(folder)
    assert (record.task, record.status) == ("simulate", "ok")
    assert record.parameters["objects"] == []
    assert record.result["objects"] == 0

    def names(value: object) -> set[str]:
        if isinstance(value, dict):
            return set().union(*map(names, value.values()))
        return {str(value)}

    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert names(record.outputs) == files - {"run.json"}


def test_same_options_give_the_same_bytes_of_pixels(tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert run(tmp_path / name, "--modalities", "sar") == 0
    one, two = (rasterio.open(tmp_path / name / "sar.tif").read() for name in ("one", "two"))
    np.testing.assert_array_equal(one, two)


def test_a_used_folder_is_kept_unless_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "scene", "--modalities", "pan,sar") == 0
    assert run(tmp_path / "scene", "--modalities", "pan") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(tmp_path / "scene", "--modalities", "pan", "--overwrite") == 0
    assert not (tmp_path / "scene" / "sar.tif").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--modalities", "ms,sra"), "did you mean --modalities sar?"),
        (("--warp", "afine"), "did you mean --warp affine?"),
        (("--objects", "trains"), "--objects trains is unknown"),
        (("--season", "monsoon"), "--season monsoon is unknown"),
        (("--gsd", "500"), "out of range"),
        (("--ratio", "7"), "multiple of the ratio 7"),
        (("--crs", "EPSG:4326"), "EPSG:4326"),
        (("--crs", "nonsense"), "nonsense"),
    ],
)
def test_bad_options_are_told_in_three_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], text: str
) -> None:
    assert run(tmp_path / "scene", *words) == 2
    error = capsys.readouterr().err
    assert text in error
    assert len(error.strip().splitlines()) <= 3
    assert not list(tmp_path.rglob("*.tif"))
