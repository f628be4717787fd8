"""Measuring a command from outside, and the large pair through the command line."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from rsfuse.errors import RsfuseError
from rsfuse.matching import big
from rsfuse.matching.big import Measured, rsfuse_command, run_measured
from rsfuse.matching.evaluate import evaluate_big
from rsfuse.matching.output import TRANSFORM_FORMAT, TRANSFORM_FORMAT_VERSION
from rsfuse.ops.geometry2d import SplineField, Transform
from rsfuse.runs import RunRecord, write_json

MB = 1_000_000


def test_memory_of_a_child_of_the_command_counts() -> None:
    child = "import time; block = bytearray(200_000_000); time.sleep(0.6)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    measured = run_measured([sys.executable, "-c", parent])
    assert measured.exit_code == 0
    assert 200 * MB < measured.peak_bytes < 320 * MB
    assert measured.seconds > 0.6


def test_memory_of_two_processes_adds_up() -> None:
    child = "import time; block = bytearray(100_000_000); time.sleep(0.8)"
    parent = (
        "import subprocess, sys; ps = [subprocess.Popen([sys.executable, '-c', "
        f"{child!r}]) for _ in range(2)]; [p.wait() for p in ps]"
    )
    assert run_measured([sys.executable, "-c", parent]).peak_bytes > 200 * MB


def test_exit_code_and_last_lines_of_stderr_are_kept() -> None:
    script = "import sys; sys.stderr.write('a\\nb\\nc\\nd\\n'); sys.exit(7)"
    measured = run_measured([sys.executable, "-c", script])
    assert (measured.exit_code, measured.stderr) == (7, "b\nc\nd")


def test_failed_command_is_an_error_with_its_own_words() -> None:
    with pytest.raises(RsfuseError, match="exit code 2") as caught:
        rsfuse_command("evaluate", "match", "/nowhere/at-all")
    assert "at-all" in caught.value.why
    assert "rsfuse evaluate match" in caught.value.fix


class Commands:
    """Stands in for the command line: writes what `simulate` and `match` would write."""

    def __init__(self, status: str, found: Transform) -> None:
        self.status = status
        self.found = found
        self.asked: list[str] = []

    def __call__(self, verb: str, *arguments: str) -> Measured:
        self.asked.append(verb)
        folder = Path(arguments[arguments.index("-o") + 1])
        if verb == "simulate":
            truth = [[1.0, 0.0, 5.0], [0.0, 1.0, -2.0], [0.0, 0.0, 1.0]]
            write_json(folder / "truth" / "transform.json", {"transform_px": truth})
            write_json(folder / "scene.json", {})
            return Measured(0, 40.0, 3 * 10**9, "")
        side = {"shape": [600, 800]}
        RunRecord(
            task="match",
            command="rsfuse match",
            started="2026-11-25T02:00:00Z",
            seconds=1.0,
            inputs=({"role": "reference", **side}, {"role": "query", **side}),
            parameters={},
            status=self.status,
            confidence=0.9,
            result={"tie_points": {"total": 50, "kept": 40}},
        ).save(folder)
        grid = {"shape": [600, 800], "crs": None, "transform": [1, 0, 0, 0, 1, 0]}
        stored = {"format": TRANSFORM_FORMAT, "format_version": TRANSFORM_FORMAT_VERSION}
        stored |= {"transform": self.found.to_dict(), "reference": grid}
        stored |= {"query": {**grid, "georeferenced": False}}
        stored |= {"status": self.status, "confidence": 0.9}
        write_json(folder / "transform.json", stored)
        return Measured(0, 7.0, 1_500_000_000, "")


# 3, 4 off the truth: the matrix by 3, 0, its field by 0, 4.
FOUND = Transform(
    "smooth",
    np.array([[1.0, 0.0, 8.0], [0.0, 1.0, -2.0], [0.0, 0.0, 1.0]]),
    SplineField((0.0, 0.0), (200.0, 200.0), np.tile([0.0, 4.0], (6, 7, 1))),
)


def test_big_pair_is_made_registered_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = Commands("ok", FOUND)
    monkeypatch.setattr(big, "rsfuse_command", commands)
    result = evaluate_big(tmp_path / "scene", size=800, out_dir=tmp_path / "out")
    row = result.rows[0]
    assert commands.asked == ["simulate", "match"]
    assert row["grid_error_px"] == pytest.approx(5.0)
    assert (row["seconds"], row["peak_gb"], row["kept"]) == (7.0, 1.5, 40)
    assert (row["simulate_seconds"], row["simulate_peak_gb"]) == (40.0, 3.0)
    assert row["group"] == "optical-sar 800 x 600"
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["protocol"] == "big"
    assert "5.00" in (tmp_path / "out" / "table.txt").read_text()


def test_big_pair_that_is_there_is_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = Commands("ok", FOUND)
    monkeypatch.setattr(big, "rsfuse_command", commands)
    evaluate_big(tmp_path / "scene")
    assert evaluate_big(tmp_path / "scene").rows[0]["simulate_seconds"] is None
    assert commands.asked == ["simulate", "match", "match"]


def test_refused_big_pair_has_no_error_to_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(big, "rsfuse_command", Commands("refused", FOUND))
    result = evaluate_big(tmp_path / "scene")
    assert result.rows[0]["status"] == "refused"
    assert result.rows[0]["grid_error_px"] is None
