"""`rsfuse train`: a config in, a bundle out, and mistakes explained."""

import json
from pathlib import Path

import pytest

from rsfuse.cli.main import main
from rsfuse.cli.train import settings_of
from rsfuse.engine.bundle import load_bundle
from rsfuse.errors import InputError
from trainings import DETECT

CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.toml"))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    for seed in (104, 105):
        words = ["simulate", "-o", str(folder / f"s{seed}"), "--size", "256", "--gsd", "0.5",
                 "--modalities", "pan", "--warp", "none", "--seed", str(seed), "-q"]  # fmt: skip
        assert main(words) == 0
    return folder


@pytest.fixture
def config(scenes: Path, tmp_path: Path) -> Path:
    path = tmp_path / "train.toml"
    path.write_text(DETECT.format(data=scenes))
    return path


def train(config: Path, output: Path, *more: str) -> int:
    return main(["train", "detect", str(config), "-o", str(output), "--progress", "none", *more])


def test_a_detector_is_trained_resumed_and_scored(
    config: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(config, run, "-q") == 0
    bundle = load_bundle(run / "bundle", "detect")
    assert bundle.card.classes[0].name == "ship"
    assert bundle.card.inputs[0].gsd_m == 0.5
    assert bundle.card.training["steps"] == 12
    assert train(config, run, "-q") == 2  # not empty
    assert train(config, run, "--resume", "-q") == 0
    capsys.readouterr()
    words = [
        "evaluate",
        "detect",
        str(run / "bundle"),
        str(scenes),
        "--protocol",
        "voc12",
        "--json",
    ]
    assert main([*words, "-o", str(tmp_path / "scores")]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["protocol"].startswith("VOC12")
    assert 0 <= said["map50"] <= 1
    stored = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert stored["map50"] == pytest.approx(said["map50"])
    assert (tmp_path / "scores" / "figure.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (["--set", "stepz=3"], "'stepz'"),
        (["--set", "steps"], "not a setting"),
        (["--set", "steps=0"], "impossible"),
        (["--set", 'data="absent"'], "absent"),
        (["--set", 'validation_split="vla"'], "'vla'"),
        (["--set", 'weights="none.pth"'], "none.pth"),
        (["--set", 'classes=["ship"]'], "class"),
    ],
)
def test_mistakes_are_explained(
    config: Path, tmp_path: Path, more: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(config, tmp_path / "run", *more) == 2
    said = capsys.readouterr().err
    assert what in said
    assert "Traceback" not in said
    assert not (tmp_path / "run" / "bundle").exists()


def test_a_missing_config_is_an_input_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "none.toml", tmp_path / "run") == 2
    assert "none.toml" in capsys.readouterr().err


def test_settings_are_toml_or_text() -> None:
    found = settings_of(["steps=5", "name=mine", "tile = 32", "x=[1, 2]", 'y="a=b"'])
    assert found == {"steps": 5, "name": "mine", "tile": 32, "x": [1, 2], "y": "a=b"}
    with pytest.raises(InputError):
        settings_of(["=3"])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_valid(path: Path) -> None:
    from importlib import import_module

    from rsfuse.cli.train import PACKAGES
    from rsfuse.engine.config import read_config

    module = import_module(f"rsfuse.{PACKAGES[path.parent.name]}.train")
    assert read_config(path, module.CONFIG).steps > 0
