"""`rsfuse convert`, `validate`, `split`, `merge` as commands."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from rsfuse.cli.main import main
from rsfuse.detection.formats import read_dataset
from rsfuse.detection.results import Detections, read_submission, write_submission
from rsfuse.detection.tiles import parse_name, starts
from rsfuse.geo.raster import open_raster
from rsfuse.geo.write import write_cog
from rsfuse.ops.boxes import corners_of


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """One image of 300 x 200 with objects; one of them lies across the edge of tiles."""
    folder = tmp_path / "set"
    (folder / "images").mkdir(parents=True)
    (folder / "labelTxt").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (3, 200, 300)).astype(np.uint8)
    write_cog(folder / "images" / "a.tif", pixels)
    lines = ["10 10 40 10 40 20 10 20 ship 0", "90 90 118 90 118 100 90 100 ship 0"]
    (folder / "labelTxt" / "a.txt").write_text("\r\n".join(lines))
    return folder


def run(*arguments: str) -> int:
    return main([str(a) for a in arguments])


def test_convert_there_and_back(dataset: Path, tmp_path: Path, capsys) -> None:
    there, back = tmp_path / "coco", tmp_path / "dota"
    assert run("convert", dataset, "-o", there, "--to", "coco", "--json") == 0
    assert json.loads(capsys.readouterr().out)["format"] == "dota -> coco"
    assert run("convert", there, "-o", back, "--to", "dota") == 0
    before, after = read_dataset(dataset), read_dataset(back)
    np.testing.assert_allclose(after.samples[0].objects.corners, before.samples[0].objects.corners)


def test_convert_refuses_what_it_cannot_do(dataset: Path, tmp_path: Path, capsys) -> None:
    assert run("convert", dataset, "-o", tmp_path / "x", "--to", "vedai") == 2
    assert "cannot be written" in capsys.readouterr().err
    assert run("convert", tmp_path / "none", "-o", tmp_path / "y", "--to", "dota") == 2
    assert run("convert", dataset, "-o", tmp_path / "z", "--to", "coco", "--from", "nope") == 2
    assert "nope" in capsys.readouterr().err


def test_validate_names_the_causes_of_a_zero(dataset: Path, capsys) -> None:
    label = dataset / "labelTxt" / "a.txt"
    rows = [
        "400 10 440 10 440 20 400 20 ship 0",  # outside
        "10 10 40 20 40 8 10 25 ship 0",  # crosses itself
        "10 50 40 50 40 50.5 10 50.5 Ship 0",  # tiny, and spelt in another way
        "60 10 60 10 60 10 60 10 ship 0",  # no area
        "20 60 40 60 40 70 20 70 ship 0",
        "20 60 40 60 40 70 20 70 ship 0",  # twice
    ]
    label.write_text("\n".join(rows))
    (dataset / "labelTxt" / "b.txt").write_text(rows[4])
    assert run("validate", dataset, "--json") == 2
    content = json.loads(capsys.readouterr().out)
    found = {f["what"]: f for f in content["findings"]}
    assert found["objects wholly outside their image"]["level"] == "error"
    for part in (
        "quadrilaterals that cross themselves",
        "objects with a side below 2 px",
        "objects given twice",
        "objects without area",
        "labels without an image",
        "classes with names that differ by case or separators only",
        "classes with fewer than 20 objects",
    ):
        assert found[part]["count"] >= 1, part
    assert found["objects given twice"]["examples"] == ["a, object 5"]


def test_validate_tells_shares_from_pixels(dataset: Path, capsys) -> None:
    (dataset / "labelTxt" / "a.txt").write_text("0.1 0.1 0.4 0.1 0.4 0.2 0.1 0.2 ship 0")
    assert run("validate", dataset) == 3
    assert "shares of the image's sides" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize("dialect", ["toolkit", "devkit"])
def test_split_keeps_objects_whole(dataset: Path, tmp_path: Path, dialect: str) -> None:
    target = tmp_path / "tiles"
    code = run(
        "split", dataset, "-o", target, "--size", "100", "--overlap", "0", "--dialect", dialect
    )
    assert code == 0
    tiles = read_dataset(target)
    names = {s.name: s for s in tiles.samples}
    middle = "100" if dialect == "toolkit" else "1"
    assert len(names) == 6
    left, right = names[f"a__{middle}__0___0"], names[f"a__{middle}__100___0"]
    assert left.objects.corners[1].tolist() == [[90, 90], [118, 90], [118, 100], [90, 100]]
    assert left.objects.difficult.tolist() == [0, 2]  # 10 of 28 px show
    assert right.objects.corners[0].tolist() == [[-10, 90], [18, 90], [18, 100], [-10, 100]]
    assert right.objects.difficult.tolist() == [2]  # 18 of 28 are less than 70 %
    with open_raster(right.image) as tile, open_raster(dataset / "images" / "a.tif") as whole:
        np.testing.assert_array_equal(tile.read().data, whole.read().data[:, :100, 100:200])


def test_last_tiles_end_at_the_border() -> None:
    assert starts(300, 100, 80) == [0, 80, 160, 200]
    assert starts(90, 100, 80) == [0]


def test_tile_names_of_both_dialects() -> None:
    toolkit = parse_name("P0001__1024__824___0")
    devkit = parse_name("P0001__0.5__400___100")
    assert toolkit is not None
    assert (toolkit.image, toolkit.rate, toolkit.x, toolkit.dialect) == ("P0001", 1, 824, "toolkit")
    assert devkit is not None
    assert (devkit.rate, devkit.x, devkit.y, devkit.dialect) == (0.5, 800, 200, "devkit")
    assert parse_name("P0001") is None


def test_merge_maps_back_and_suppresses(tmp_path: Path, capsys) -> None:
    box = np.array([[90.0, 50.0, 20.0, 8.0, 0.3]])
    one = np.zeros(1, np.int64)
    place = (("ship",), (100, 100), None)
    tiles = [
        Detections.of_boxes(box, np.array([0.8]), one, *place, "a__100__0___0"),
        Detections.of_boxes(
            box - [80, 0, 0, 0, 0], np.array([0.9]), one, *place, "a__100__80___0"
        ),
    ]  # fmt: skip
    write_submission(tmp_path / "tiles.zip", tiles)
    assert run("merge", tmp_path / "tiles.zip", "-o", tmp_path / "whole.zip", "--json") == 0
    assert json.loads(capsys.readouterr().out)["boxes"] == "2 -> 1"
    names, scores, corners = read_submission(tmp_path / "whole.zip")["ship"]
    assert names == ["a"]
    assert scores.tolist() == [0.9]
    np.testing.assert_allclose(corners[0], corners_of(box)[0], atol=0.01)
    assert run("merge", tmp_path / "tiles.zip", "-o", tmp_path / "whole.zip") == 2
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("Task1_ship.txt", "a 0.5 1 2 3 4 5 6 7 8\n")
    assert run("merge", tmp_path / "bad.zip", "-o", tmp_path / "y.zip") == 2
    assert "not the name of a tile" in capsys.readouterr().err
