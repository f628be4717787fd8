"""Commands that are killed: the old output or the new one is there, whole, and never half of one.

Each command runs as a real process on small simulated data, once undisturbed to learn how long it
takes, then killed at moments spread over that time, by SIGINT (which it may answer) and by SIGKILL
(which it cannot), where an older output lies and where none does.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import rasterio

from rsfuse.cli.main import main
from rsfuse.engine.bundle import load_bundle
from rsfuse.runs import RunRecord
from trainings import DETECT


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    for seed in (104, 105):
        assert main(["simulate", "-o", str(folder / f"s{seed}"), "--size", "256", "--gsd", "0.5",
                     "--ratio", "4", "--modalities", "ms,pan,sar", "--seed", str(seed),
                     "-q"]) == 0  # fmt: skip
    return folder


def whole_run(folder: Path) -> bool:
    """A run folder whose record loads and whose products are all there and open."""
    record = RunRecord.load(folder)
    for value in record.outputs.values():
        for name in [value] if isinstance(value, str) else []:
            assert (folder / name).is_file(), name
            if name.endswith(".tif"):
                with rasterio.open(folder / name) as raster:
                    raster.read(1)
    return True


def whole_map(path: Path) -> bool:
    with rasterio.open(path) as raster:
        assert raster.read(1).shape == raster.shape
    return True


def whole_boxes(path: Path) -> bool:
    import pyogrio

    return pyogrio.read_info(path)["features"] >= 0


def whole_labels(folder: Path) -> bool:
    files = sorted((folder / "labelTxt").glob("*.txt"))
    assert len(files) == 2
    for path in files:
        assert path.read_text().endswith("\n")
    return True


def whole_scores(folder: Path) -> bool:
    assert json.loads((folder / "metrics.json").read_text())["rows"]
    assert (folder / "table.txt").stat().st_size > 0
    assert (folder / "figure.svg").read_text().rstrip().endswith("</svg>")
    return True


def whole_bundle(path: Path) -> bool:
    bundle = load_bundle(path)
    for name in bundle.card.files:
        bundle.file(name)
    return True


@dataclass(frozen=True)
class Command:
    """A command: words without the output, the name of its output, and whether that is whole."""

    words: tuple[str, ...]
    output: str
    is_whole: Callable[[Path], bool]


def commands(scenes: Path) -> dict[str, Command]:
    one = scenes / "s104"
    return {
        "match": Command(("match", f"{one}/ms.tif", f"{one}/sar.tif", "--upright"), "o", whole_run),
        "detect": Command(("detect", f"{one}/pan.tif", "-m", "simulated-objects"), "o.gpkg",
                          whole_boxes),
        "classify": Command(("classify", f"{one}/ms.tif", f"{one}/pan.tif", "-m",
                             "simulated-land-cover"), "o.tif", whole_map),
        "simulate": Command(("simulate", "--size", "200"), "o", whole_run),
        "convert": Command(("convert", str(scenes), "--to", "dota"), "o", whole_labels),
        "export": Command(("export", "simulated-objects", "--tile", "64"), "o", whole_bundle),
    }  # fmt: skip


NAMES = ("match", "detect", "classify", "simulate", "convert", "export")
# Shares of the undisturbed time; the last ones fall on the writing at the end.
MOMENTS = (0.3, 0.6, 0.8, 0.9, 0.95, 0.98)


def start(command: Command, folder: Path) -> subprocess.Popen[bytes]:
    words = [*command.words, "-o", str(folder / command.output), "--overwrite", "-q"]
    return subprocess.Popen(
        [sys.executable, "-m", "rsfuse", *words], stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def kill_after(command: Command, folder: Path, seconds: float, how: signal.Signals) -> bytes:
    process = start(command, folder)
    try:
        _, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(how)
        _, said = process.communicate(timeout=60)
    return said


def survives(name: str, scenes: Path, folder: Path, moments: tuple[float, ...]) -> None:
    command = commands(scenes)[name]
    begun = time.monotonic()
    first = start(command, folder)
    _, said = first.communicate(timeout=120)
    seconds = time.monotonic() - begun
    assert first.returncode in (0, 3), said
    output = folder / command.output
    assert command.is_whole(output)
    rng = np.random.default_rng(len(name))
    for moment in moments:
        for how in (signal.SIGINT, signal.SIGKILL):
            at = seconds * moment * rng.uniform(0.97, 1.03)
            said = kill_after(command, folder, at, how)
            assert b"Traceback" not in said, said
            assert command.is_whole(output), (moment, how)  # the old one or the new one
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for moment in moments[1::2]:
        kill_after(command, folder, seconds * moment, signal.SIGKILL)
        if output.exists():
            assert command.is_whole(output), moment
    last = start(command, folder)
    _, said = last.communicate(timeout=120)
    assert last.returncode in (0, 3), said
    assert command.is_whole(output)
    left = [path.name for path in folder.iterdir() if ".part" in path.name and path.is_dir()]
    assert left == []  # a later run removes what killed ones left


def test_a_killed_command_leaves_the_old_output_or_the_new(scenes: Path, tmp_path: Path) -> None:
    survives("match", scenes, tmp_path, (0.95,))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_at_many_moments(name: str, scenes: Path, tmp_path: Path) -> None:
    survives(name, scenes, tmp_path, MOMENTS)


@pytest.mark.slow
def test_a_killed_training_goes_on(scenes: Path, tmp_path: Path) -> None:
    config = tmp_path / "train.toml"
    config.write_text(DETECT.format(data=scenes))
    longer = ("steps=40", "validate_every=4", "threads=1")
    words = ["train", "detect", str(config), "-o", str(tmp_path / "run"), "--progress", "none"]
    words += [word for setting in longer for word in ("--set", setting)]
    process = subprocess.Popen([sys.executable, "-m", "rsfuse", *words])
    end = time.monotonic() + 90
    while not (tmp_path / "run/checkpoints/last.ckpt").is_file() and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=20)
    assert main([*words, "--resume", "-q"]) == 0
    assert whole_bundle(tmp_path / "run" / "bundle")
    assert load_bundle(tmp_path / "run" / "bundle").card.training["steps"] == 40
