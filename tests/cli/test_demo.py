"""`rsfuse demo`: the found transform is compared with the true one, and a page tells about it."""

import json
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from rsfuse.cli import demo
from rsfuse.cli.main import main
from rsfuse.errors import InputError
from rsfuse.runs import RunRecord, read_json, write_json


def similarity(rotation_deg: float, scale: float) -> np.ndarray:
    angle = np.deg2rad(rotation_deg)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[cos, -sin, 7.0], [sin, cos, -9.0], [0.0, 0.0, 1.0]])


def scene(seed: int) -> SimpleNamespace:
    return SimpleNamespace(seed=seed, shape=(400, 600))


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RSFUSE_DATA", raising=False)
    monkeypatch.setattr(demo, "data_folder", lambda named: None)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with three pairs of two kinds."""
    folder = tmp_path / "data"
    pairs = folder / "matching" / "srif"
    pairs.mkdir(parents=True)
    Image.new("L", (8, 8)).save(pairs / "a.png")
    entries = [
        {
            "set": "srif",
            "category": category,
            "pair": number,
            "use": "dev",
            "licence": "B",
            "image1": "a.png",
            "image2": "a.png",
            "affine_1to2": [[1, 0, 0], [0, 1, 0]],
        }
        for category, number in (("Optical-SAR", 4), ("Optical-SAR", 2), ("Nighttime", 1))
    ]
    write_json(pairs / "index.json", entries)
    return folder


@pytest.mark.parametrize("rotation_deg", [-170.0, -12.5, 0.0, 90.0])
@pytest.mark.parametrize("scale", [0.5, 1.0, 1.7])
def test_pose_recovers_rotation_and_scale(rotation_deg: float, scale: float) -> None:
    found = demo.pose(similarity(rotation_deg, scale), (300, 500))
    assert found.rotation_deg == pytest.approx(rotation_deg)
    assert found.scale == pytest.approx(scale)


def test_pose_measures_the_shift_at_the_centre() -> None:
    matrix = similarity(30.0, 1.2)
    found = demo.pose(matrix, (300, 500))
    moved = matrix @ (250.0, 150.0, 1.0)
    assert (found.x, found.y) == pytest.approx((moved[0] - 250.0, moved[1] - 150.0))


def test_pose_of_a_function_equals_that_of_its_matrix() -> None:
    matrix = similarity(5.0, 1.1)

    def mapping(xy: np.ndarray) -> np.ndarray:
        return xy @ matrix[:2, :2].T + matrix[:2, 2]

    assert demo.pose(mapping, (90, 70)) == pytest.approx(demo.pose(matrix, (90, 70)))


@pytest.mark.parametrize("seed", range(8))
def test_the_query_is_turned_scaled_and_shifted_enough_to_be_no_gift(seed: int) -> None:
    found = demo.pose(demo.turned(scene(seed)).matrix, (400, 600))
    assert 8.0 <= abs(found.rotation_deg) <= 20.0
    assert 0.029 <= abs(np.log(found.scale)) <= 0.076
    assert np.hypot(found.x, found.y) == pytest.approx(24.0)


def test_another_seed_is_another_warp() -> None:
    first, again, other = (demo.turned(scene(seed)).matrix for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_error_is_the_distance_over_the_image() -> None:
    found, truth = np.eye(3), np.eye(3)
    found[:2, 2] = 3.0, 4.0
    error = demo.transform_error(found, truth, (100, 100), (100, 100))
    assert error == pytest.approx({"mean": 5.0, "most": 5.0})


def test_checks_show_truth_finding_and_difference() -> None:
    rows = demo.checks(demo.Pose(-4.0, 1.1, 3.0, -2.0), demo.Pose(-4.25, 1.1, 3.5, -2.0))
    assert (rows[0].truth, rows[0].found, rows[0].difference) == ("−4.000°", "−4.250°", "0.250°")
    assert rows[1].difference == "0.00000"
    assert rows[2].difference == "0.50 px"


def test_first_pair_of_each_kind_is_shown(data: Path) -> None:
    pairs = demo.real_pairs(data)
    assert [pair.id for pair in pairs] == ["srif/Optical-SAR/4", "srif/Nighttime/1"]


def test_radar_comes_first_among_the_real_pairs(data: Path) -> None:
    index = data / "matching" / "srif" / "index.json"
    write_json(index, read_json(index)[::-1])
    assert [pair.id for pair in demo.real_pairs(data)] == ["srif/Optical-SAR/2", "srif/Nighttime/1"]


def test_without_data_there_are_no_real_pairs() -> None:
    assert demo.real_pairs(None) == ()


def test_named_folder_without_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no real pairs"):
        demo.data_folder(tmp_path)


def test_picture_is_reduced_and_stretched(write_raster, tmp_path: Path) -> None:
    ramp = np.linspace(100, 2000, 64 * 2000).reshape(1, 64, 2000).astype(np.uint16)
    path = demo.save_picture(write_raster(ramp), tmp_path / "pictures" / "p.webp")
    picture = np.asarray(Image.open(path).convert("RGB"))
    assert picture.shape == (29, 900, 3)
    assert picture.min() < 20
    assert picture.max() > 235
    assert np.ptp(picture.astype(int), axis=2).max() <= 2  # one band is grey


def test_demo_registers_the_simulated_pair_and_tells_about_it(
    no_data: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "demo"
    assert main(["demo", "-o", str(folder), "--size", "1024", "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["status"] == "ok"
    assert outcome["error_px"]["mean"] < 2.0
    assert outcome["page"] == str(folder / "index.html")
    page = (folder / "index.html").read_text("utf-8")
    truth = demo.pose(
        np.array(read_json(folder / "scene" / "truth" / "transform.json")["transform_px"]),
        (1024, 1024),
    )
    assert f"{truth.rotation_deg:.3f}°".replace("-", "−") in page
    assert page.count("<figcaption>") == 2
    assert "Compared with the truth" in page
    assert outcome["objects"] > 10
    assert outcome["map50"] > 0.3
    assert outcome["land_cover_accuracy"] > 0.7
    assert "Objects with their direction" in page
    assert "Land cover from MS and PAN" in page
    assert (folder / "objects.gpkg").is_file()
    assert (folder / "land_cover.tif").is_file()
    assert (folder / "match" / "report.html").is_file()


class Answer:
    """What a matcher with a fixed opinion returns."""

    def __init__(self, status: str, matrix: np.ndarray | None) -> None:
        self.status = status
        self.transform = None if matrix is None else SimpleNamespace(matrix=matrix)

    def save(self, folder: Path, *, page: bool) -> None:
        assert page
        images = [{"role": role, "shape": [8, 8]} for role in ("reference", "query")]
        RunRecord(
            task="match",
            command="rsfuse match a b -o out",
            started="2026-11-25T02:00:00Z",
            seconds=0.5,
            inputs=tuple(images),
            parameters={},
            status=self.status,
            confidence=0.5,
        ).save(folder)


@pytest.fixture
def matcher(monkeypatch: pytest.MonkeyPatch) -> list[Answer]:
    """Replace the matcher by one that gives these answers in turn."""
    answers: list[Answer] = []
    import_module("rsfuse.matching.align")  # which keeps the real one
    module = ModuleType("rsfuse.matching.predict")
    module.match = lambda reference, query: answers.pop(0)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rsfuse.matching.predict", module)
    return answers


def test_demo_that_was_refused_says_so_and_ends_with_three(
    no_data: None, matcher: list[Answer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matcher.append(Answer("refused", np.eye(3)))
    assert main(["demo", "-o", str(tmp_path / "demo"), "--size", "256", "--json"]) == 3
    outcome = json.loads(capsys.readouterr().out)
    assert (outcome["status"], outcome["error_px"]) == ("refused", None)
    page = (tmp_path / "demo" / "index.html").read_text("utf-8")
    assert "did not find how the second image lies on the first" in page


def test_real_pairs_are_measured_against_their_stated_transform(
    data: Path, matcher: list[Answer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shifted = np.array([[1.0, 0.0, 0.6], [0.0, 1.0, 0.8], [0.0, 0.0, 1.0]])
    matcher += [Answer("ok", np.eye(3)), Answer("ok", shifted), Answer("refused", None)]
    folder = tmp_path / "demo"
    words = ["demo", "-o", str(folder), "--size", "256", "--data", str(data), "--json"]
    assert main(words) == 0
    real = json.loads(capsys.readouterr().out)["real_pairs"]
    assert real["Optical-SAR"]["error_px"]["mean"] == pytest.approx(1.0)
    assert real["Nighttime"]["error_px"] is None
    page = (folder / "index.html").read_text("utf-8")
    assert page.index("Optical-SAR") < page.index("Nighttime")
    assert "1.00 px from the stated transform" in page
    assert (folder / "real" / "srif_Nighttime_1" / "report.html").is_file()


def test_without_json_each_real_pair_is_told_in_words(
    data: Path, matcher: list[Answer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matcher += [Answer("ok", np.eye(3)), Answer("weak", np.eye(3)), Answer("refused", None)]
    words = ["demo", "-o", str(tmp_path / "demo"), "--size", "256", "--data", str(data)]
    assert main(words) == 0
    assert "Optical-SAR weak, 0.00 px off, Nighttime refused" in capsys.readouterr().out


def test_folder_in_use_is_refused(
    no_data: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("x")
    assert main(["demo", "-o", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
