"""Training in two processes, started by the command itself or by torchrun, beside one process.

CPU processes talk through gloo. At equal global batch the loss and the weights must be the same but
for rounding, also where the processes hold different numbers of things that count.
"""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from rsfuse.cli.main import main
from trainings import CLASSIFY, DETECT, MATCH

TORCHRUN = ["torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517"]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "s104"
    assert main(["simulate", "-o", str(folder), "--size", "256", "--gsd", "2", "--modalities",
                 "ms,pan", "--ratio", "2", "--seed", "4", "-q"]) == 0  # fmt: skip
    return folder


def trained(
    task: str, config: Path, output: Path, *more: str, launcher: tuple[str, ...] = ()
) -> None:
    words = [*launcher, "-m", "rsfuse"] if launcher else ["rsfuse"]
    command = [sys.executable, "-m", *words, "train", task, str(config), "-o", str(output), *more]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RANK", "LOCAL_RANK"))}
    done = subprocess.run(
        [*command, "--progress", "none"], capture_output=True, text=True, timeout=300,
        env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("bundle/") + done.stdout.count("bundle\n") == 1  # one process answers


def losses(run: Path) -> list[float]:
    rows = csv.DictReader((run / "metrics.csv").read_text().splitlines())
    return [float(row["train_loss"]) for row in rows]


def assert_same(one: Path, two: Path) -> None:
    assert len(losses(one)) == 2
    assert losses(two) == pytest.approx(losses(one), rel=2e-4)
    first, second = (load_file(run / "bundle" / "model.safetensors") for run in (one, two))
    assert first.keys() == second.keys()
    # As a whole: Adam moves a weight without gradient by the sign of a rounding error.
    gap, size = (
        np.sqrt(sum(np.square(part, dtype=np.float64).sum() for part in parts))
        for parts in ([second[name] - first[name] for name in first], first.values())
    )
    assert gap < 1e-3 * size


@pytest.mark.parametrize(
    "task",
    ["match", pytest.param("classify", marks=pytest.mark.slow)],
)
def test_two_processes_train_like_one(task: str, scene: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(
        {"match": f"{MATCH}ema = 0\n", "classify": CLASSIFY}[task].format(scene=scene)
    )
    assert main(["train", task, str(config), "-o", str(tmp_path / "one"), "-q",
                 "--progress", "none"]) == 0  # fmt: skip
    trained(task, config, tmp_path / "two", "--devices", "2")
    assert_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_torchrun_starts_them_as_well(scene: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(CLASSIFY.format(scene=scene))
    trained("classify", config, tmp_path / "one")
    trained("classify", config, tmp_path / "two", "--devices", "2", launcher=tuple(TORCHRUN))
    assert_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_a_detector_trains_in_two_processes(scene: Path, tmp_path: Path) -> None:
    """Its BatchNorm sees one process's part of the batch on the CPU, so weights may differ."""
    config = tmp_path / "c.toml"
    config.write_text(DETECT.format(data=scene.parent))
    shorter = ("steps=4", "validate_every=2", "threads=1", 'validation_split="train"')
    more = [word for setting in shorter for word in ("--set", setting)]
    trained("detect", config, tmp_path / "two", "--devices", "2", "--device", "cpu", *more)
    assert len(losses(tmp_path / "two")) == 2


def test_a_wrong_number_of_processes_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "c.toml"
    config.write_text(MATCH)
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert main(["train", "match", str(config), "-o", str(tmp_path / "run"), "--set", "batch=4",
                 "--devices", "2"]) == 2  # fmt: skip
    assert "4 processes were started" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
