"""`rsfuse doctor`: an installation described, and known conflicts named."""

import json

import pytest

from rsfuse.cli import doctor
from rsfuse.cli.main import main


def test_json_lists_versions_devices_and_drivers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert findings["ok"]
    assert findings["core"]["rasterio"]["version"]
    assert findings["devices"][0].startswith("cpu")
    assert {"GTiff", "COG", "JP2OpenJPEG", "NITF", "VRT"} <= set(findings["gdal"]["present"])


def test_text_says_that_everything_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "GDAL" in text
    assert "everything needed is here" in text


def test_missing_core_package_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "CORE", {**doctor.CORE, "absent-package": "absent_package"})
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "does not import" in text
    assert "conflict: absent-package: ModuleNotFoundError" in text


def find(versions: dict[str, str], environment: dict[str, str] | None = None) -> list[str]:
    return doctor.find_conflicts(versions.get, environment or {})


def test_clean_installation_has_no_conflicts() -> None:
    assert find({"opencv-python-headless": "5.0"}) == []


def test_two_copies_of_opencv_are_a_conflict() -> None:
    (conflict,) = find({"opencv-python-headless": "5.0", "opencv-python": "5.0"})
    assert "opencv-python and opencv-python-headless" in conflict
    assert "pip install opencv-python-headless" in conflict


def test_torchvision_is_named() -> None:
    (conflict,) = find({"torchvision": "0.28"})
    assert "pip uninstall torchvision" in conflict


@pytest.mark.parametrize("name", ["GDAL_DATA", "PROJ_LIB", "PROJ_DATA", "GDAL_DRIVER_PATH"])
def test_files_of_another_gdal_are_a_conflict(name: str) -> None:
    (conflict,) = find({}, {name: "/usr/share/other"})
    assert f"{name} is set to /usr/share/other" in conflict
