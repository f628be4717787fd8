"""The protocol `big`: a large simulated optical-SAR pair through the command line.

Everything runs as a user would run it, in a process of its own: `rsfuse simulate` makes the pair
once, `rsfuse match` registers it; wall time and the peak of the memory of the whole process tree
are taken from outside, and the stored transform is compared with the simulated truth. Simulated
images say how fast and how large, never how accurate on real ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rsfuse.errors import RsfuseError
from rsfuse.matching.metrics import distances, grid_nodes, transform_points
from rsfuse.matching.output import StoredTransform
from rsfuse.runs import RunRecord, read_json

POLL_S = 0.1
REFERENCE, QUERY = "ms.tif", "sar.tif"

COLUMNS = (
    ("group", "pair"),
    ("status", "status"),
    ("seconds", "match s"),
    ("peak_gb", "match peak GB"),
    ("grid_error_px", "mean error px"),
    ("kept", "tie points"),
    ("confidence", "confidence"),
    ("simulate_seconds", "simulate s"),
    ("simulate_peak_gb", "simulate peak GB"),
)


class Measured(NamedTuple):
    """A finished command.

    Attributes:
        exit_code: What the command returned.
        seconds: Wall time.
        peak_bytes: Largest sum of resident memory over the process and its descendants, sampled
            ten times a second; where there is no /proc, what the system reports for the largest of
            them. Pages that processes share count once for each: an upper bound.
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
    # KiB on Linux, bytes on macOS; on Linux it starts at the peak of the process that forked.
    largest = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Measured(process.returncode, seconds, peak or largest, "\n".join(text.splitlines()[-3:]))


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


def measure_big(folder: Path, run_folder: Path, *, size: int, seed: int) -> dict[str, Any]:
    """Register the pair in `folder`, made there if it is missing, and compare with its truth.

    Args:
        folder: A folder of `rsfuse simulate` with ms.tif and sar.tif.
        run_folder: Where `rsfuse match` writes; an earlier run there is replaced.
        size: Side of the pair in pixels, if it has to be made.
        seed: Seed of the scene, if it has to be made.

    Raises:
        RsfuseError: A command failed.
    """
    simulated = None
    if not (folder / "scene.json").is_file():
        simulated = rsfuse_command(
            *("simulate", "-o", str(folder), "--size", str(size), "--gsd", "1"),
            *("--modalities", "ms,sar", "--warp", "affine", "--seed", str(seed)),
            *("--progress", "none"),
        )
    reference, query = folder / REFERENCE, folder / QUERY
    matched = rsfuse_command(
        *("match", str(reference), str(query), "-o", str(run_folder), "--overwrite"),
        *("--progress", "none"),
    )
    run = RunRecord.load(run_folder)
    h, w = run.inputs[0]["shape"]
    return {
        "id": folder.name,
        "group": f"optical-sar {w} x {h}",
        "status": run.status,
        "confidence": run.confidence,
        "exception": None,
        "grid_error_px": _error_px(run, run_folder, folder),
        "kept": run.result.get("tie_points", {}).get("kept", 0),
        "seconds": matched.seconds,
        "peak_gb": matched.peak_bytes / 1e9,
        "simulate_seconds": None if simulated is None else simulated.seconds,
        "simulate_peak_gb": None if simulated is None else simulated.peak_bytes / 1e9,
    }


def _error_px(run: RunRecord, run_folder: Path, folder: Path) -> float | None:
    """Mean grid error of a run against the simulated truth; None when it was refused."""
    if run.status == "refused":
        return None
    truth = np.array(read_json(folder / "truth" / "transform.json")["transform_px"])
    shape0, shape1 = (tuple(entry["shape"]) for entry in run.inputs[:2])
    nodes = grid_nodes(truth, shape0, shape1)
    found = StoredTransform.load(run_folder / "transform.json").transform.apply(nodes)
    return float(np.mean(distances(found, transform_points(truth, nodes))))
