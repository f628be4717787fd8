"""`rsfuse evaluate classify`: numbers of a map against labels, its files, its errors."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from rsfuse.classification.evaluate import evaluate_map, table_of, write_evaluation
from rsfuse.cli.main import main
from rsfuse.errors import InputError
from rsfuse.geo.write import write_cog

GRID = Affine(10.0, 0.0, 500_000.0, 0.0, -10.0, 5_400_000.0)
NAMES = {0: "water", 1: "road"}


def write_map(
    path: Path, numbers: np.ndarray, names: dict[int, str] | None = None, crs: str = "EPSG:32631"
) -> Path:
    """A map of 10 m pixels as `rsfuse classify` writes it: 255 where there is no class."""
    known = numbers != 255
    write_cog(
        path, np.where(known, numbers, 0).astype(np.uint8), geobox=GeoBox(known.shape, GRID, crs),
        bands=["class"], nodata=255, class_names=names, valid=known,
    )  # fmt: skip
    return path


@pytest.fixture
def numbers() -> np.ndarray:
    """128 x 128: the left half is water, the right half road; the last row has no class."""
    found = np.zeros((128, 128), np.int64)
    found[:, 64:] = 1
    found[127] = 255
    return found


@pytest.fixture
def class_map(tmp_path: Path, numbers: np.ndarray) -> Path:
    return write_map(tmp_path / "map.tif", numbers, NAMES)


@pytest.fixture
def labels(tmp_path: Path, numbers: np.ndarray) -> Path:
    """Right but for 16 columns of water that the map calls road; numbered the other way round."""
    truth = 1 - np.where(numbers == 255, 0, numbers)
    truth[:, 64:80] = 1
    return write_map(tmp_path / "labels.tif", truth, {0: "road", 1: "water"})


def test_numbers_worked_out_on_paper(class_map: Path, labels: Path) -> None:
    found = evaluate_map(class_map, labels)
    assert found["classes"] == ["water", "road"]
    # 127 mapped rows of 128 columns: 64 water right, 16 water as road, 48 road right.
    assert found["confusion"] == [[64 * 127, 16 * 127], [0, 48 * 127]]
    assert found["labels"] == 128 * 127
    assert found["overall_accuracy"] == pytest.approx(112 / 128)
    np.testing.assert_allclose(found["producers_accuracy"], [0.8, 1.0])
    np.testing.assert_allclose(found["users_accuracy"], [1.0, 0.75])
    low, high = found["intervals"]["overall"]
    assert low < 112 / 128 < high


def test_areas_are_corrected_by_the_errors_of_the_map(class_map: Path, labels: Path) -> None:
    areas = evaluate_map(class_map, labels)["areas_m2"]
    half = 64 * 127 * 100.0
    assert areas["water"]["mapped"] == areas["road"]["mapped"] == half
    # A quarter of what is mapped as road is water.
    assert areas["water"]["estimated"] == pytest.approx(1.25 * half)
    assert areas["road"]["estimated"] == pytest.approx(0.75 * half)
    low, high = areas["road"]["interval"]
    assert low < 0.75 * half < high


def test_labels_on_pixels_without_a_class_do_not_count(tmp_path: Path, class_map: Path) -> None:
    truth = np.full((128, 128), 255)
    truth[126:, 60:70] = [0] * 4 + [1] * 6  # one row on the map, one below it
    found = evaluate_map(class_map, write_map(tmp_path / "few.tif", truth, NAMES))
    assert found["labels"] == 10


def test_labels_that_miss_the_map_are_an_error(tmp_path: Path, class_map: Path) -> None:
    truth = np.full((128, 128), 255)
    truth[127] = 0
    with pytest.raises(InputError, match=r"no label of .* lies on a mapped pixel"):
        evaluate_map(class_map, write_map(tmp_path / "beside.tif", truth, NAMES))


def test_a_class_that_the_map_does_not_know_is_named(tmp_path: Path, class_map: Path) -> None:
    other = write_map(tmp_path / "other.tif", np.zeros((128, 128)), {0: "glacier"})
    with pytest.raises(InputError, match="class 'glacier'"):
        evaluate_map(class_map, other)


def test_calibration_is_that_of_the_confidence(
    tmp_path: Path, class_map: Path, labels: Path, numbers: np.ndarray
) -> None:
    confidence = write_map(tmp_path / "confidence.tif", np.where(numbers == 255, 255, 75))
    found = evaluate_map(class_map, labels, confidence=confidence)
    assert found["ece"] == pytest.approx(112 / 128 - 0.75)
    assert [row["pixels"] for row in found["reliability"]] == [128 * 127]
    assert "ece" not in evaluate_map(class_map, labels)


def test_areas_need_a_crs(tmp_path: Path) -> None:
    grid = GeoBox((128, 128), Affine.identity(), None)
    for name in ("plain_map.tif", "plain_labels.tif"):
        write_cog(
            tmp_path / name, np.indices((128, 128))[1].astype(np.uint8) // 64, geobox=grid,
            bands=["class"], nodata=255, class_names=NAMES,
        )  # fmt: skip
    found = evaluate_map(tmp_path / "plain_map.tif", tmp_path / "plain_labels.tif")
    assert found["overall_accuracy"] == 1.0
    assert "areas_m2" not in found


def test_table_shows_percent_and_a_dash_where_there_is_none() -> None:
    scores = {
        "classes": ["water", "road"],
        "confusion": [[3, 1], [0, 0]],
        "producers_accuracy": [0.75, float("nan")],
        "users_accuracy": [1.0, 0.0],
        "f1": [6 / 7, float("nan")],
    }
    assert table_of(scores)[1:] == [
        ["water", "4", "75.0", "100.0", "85.7"],
        ["road", "0", "-", "0.0", "-"],
    ]


def test_folder_holds_numbers_table_and_figure(
    tmp_path: Path, class_map: Path, labels: Path
) -> None:
    folder = tmp_path / "out"
    write_evaluation(folder, evaluate_map(class_map, labels), {"task": "classify"})
    assert sorted(path.name for path in folder.iterdir()) == [
        "figure.svg", "metrics.json", "table.txt",
    ]  # fmt: skip
    stored = json.loads((folder / "metrics.json").read_text())
    assert stored["task"] == "classify"
    assert stored["overall_accuracy"] == pytest.approx(112 / 128)
    assert "water" in (folder / "table.txt").read_text()
    assert ElementTree.parse(folder / "figure.svg").getroot().tag.endswith("svg")


def test_command_prints_json(
    class_map: Path, labels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "classify", str(class_map), str(labels), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["overall_accuracy"] == pytest.approx(112 / 128)
    assert printed.err == ""


def test_command_names_what_is_wrong_in_three_lines(
    tmp_path: Path, class_map: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_map(tmp_path / "other.tif", np.zeros((128, 128)), {0: "glacier"})
    output = tmp_path / "out"
    assert main(["evaluate", "classify", str(class_map), str(other), "-o", str(output)]) == 2
    printed = capsys.readouterr().err
    assert [line.split(":")[0] for line in printed.splitlines()] == ["error", "why", "fix"]
    assert not output.exists(), "nothing half-written"


def test_a_map_numbered_from_one_is_read_by_its_names(tmp_path: Path, numbers: np.ndarray) -> None:
    shifted = np.where(numbers == 255, 255, numbers + 1)
    names = {1: "water", 2: "road", 3: "field"}
    one = write_map(tmp_path / "map.tif", shifted, names)
    labels = write_map(tmp_path / "labels.tif", numbers, NAMES)
    found = evaluate_map(one, labels)
    assert found["overall_accuracy"] == 1.0
    assert found["areas_m2"]["field"]["mapped"] == 0.0


def test_a_number_without_a_name_is_told(tmp_path: Path, numbers: np.ndarray, labels: Path) -> None:
    numbers = numbers.copy()
    numbers[0, 0] = 7
    with pytest.raises(InputError, match="holds the number 7"):
        evaluate_map(write_map(tmp_path / "odd.tif", numbers, NAMES), labels)


def test_confidence_of_another_size_is_told(tmp_path: Path, class_map: Path, labels: Path) -> None:
    small = write_map(tmp_path / "small.tif", np.full((64, 64), 90))
    with pytest.raises(InputError, match="must lie on one grid"):
        evaluate_map(class_map, labels, confidence=small)
