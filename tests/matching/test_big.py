"""Measuring a command from outside."""

import sys

import pytest

from rsfuse.errors import RsfuseError
from rsfuse.matching.big import rsfuse_command, run_measured

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
