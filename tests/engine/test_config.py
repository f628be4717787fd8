"""Run files: what is read, and what is refused."""

from pathlib import Path

import pytest

from rsfuse.engine.config import Config, TrainSettings, make_config, read_config
from rsfuse.errors import ConfigError


class Inner(Config):
    width: int = 8


class Outer(Config):
    data: str
    train: TrainSettings = TrainSettings()
    inner: Inner = Inner()


def write(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text)
    return path


def test_a_file_and_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, 'data = "here"\n[train]\nsteps = 7\n')
    config = read_config(path, Outer, {"data": "there"})
    assert (config.data, config.train.steps, config.inner.width) == ("there", 7, 8)


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        ('data = "x"\ntrian = 1\n', "trian", "train"),
        ('data = "x"\n[train]\nlerning_rate = 1\n', "train.lerning_rate", "learning_rate"),
        ("", "lacks the key 'data'", "data = ..."),
        ('data = "x"\n[train]\nsteps = 0\n', "train.steps = 0", "change train.steps"),
        ("data = \n", "not valid TOML", "correct that line"),
        ('data = "x"\n[train]\nbatch = 3\ndevices = 2\n', "train", "change"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, what: str, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(write(tmp_path, text), Outer)
    assert what in caught.value.what
    assert fix in caught.value.fix


def test_a_missing_file() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config("no/such.toml", Outer)


def test_settings_do_not_change() -> None:
    config = make_config(Outer, {"data": "x"}, "here")
    with pytest.raises(ValueError, match="frozen"):
        config.data = "y"  # type: ignore[misc]
