"""The protocol `big`: a large simulated optical-SAR pair through the command line.

Everything runs as a user would run it, in a process of its own: `rsfuse simulate` makes the pair
once, `rsfuse match` registers it; wall time and the peak of the memory of the whole process tree
are taken from outside, and the stored transform is compared with the simulated truth.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from rsfuse.errors import RsfuseError

POLL_S = 0.1


class Measured(NamedTuple):
    """A finished command.

    Attributes:
        exit_code: What the command returned.
        seconds: Wall time.
        peak_bytes: Largest sum of resident memory over the process and its descendants, sampled
            ten times a second, and never below what the system reports for the largest of them.
            Pages that processes share count once for each: an upper bound.
        stderr: The last lines that the command wrote to stderr.
    """

    exit_code: int
    seconds: float
    peak_bytes: int
    stderr: str


def run_measured(command: list[str]) -> Measured:
    """Run a command to its end and take its time and memory."""
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        try:
            peak = 0
            while True:
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                if pid:
                    break
                peak = max(peak, _tree_bytes(process.pid))
                time.sleep(POLL_S)
        except BaseException:
            process.kill()
            raise
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        text = errors.read().decode(errors="replace")
    # Linux counts in KiB, macOS in bytes.
    largest = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Measured(
        process.returncode, seconds, max(peak, largest), "\n".join(text.splitlines()[-3:])
    )


def _tree_bytes(root: int) -> int:
    """Resident memory of a process and its descendants now; 0 where there is no /proc."""
    parents: dict[int, int] = {}
    pages: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The name may hold spaces and brackets; what follows the last bracket is fixed.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        parents[int(folder.name)] = int(fields[1])
        pages[int(folder.name)] = int(fields[21])
    tree, found = {root}, {root}
    while found:
        found = {pid for pid, parent in parents.items() if parent in found} - tree
        tree |= found
    return sum(pages.get(pid, 0) for pid in tree) * os.sysconf("SC_PAGE_SIZE")


def rsfuse_command(*arguments: str) -> Measured:
    """Run the `rsfuse` command of this installation.

    Raises:
        RsfuseError: It failed; weak and refused results (exit code 3) are answers.
    """
    measured = run_measured([sys.executable, "-m", "rsfuse", *arguments])
    if measured.exit_code not in (0, 3):
        raise RsfuseError(
            f"rsfuse {arguments[0]} ended with exit code {measured.exit_code}",
            measured.stderr.replace("\n", "; ") or "It gave no reason.",
            f"Run it by itself: rsfuse {' '.join(arguments)}",
        )
    return measured
