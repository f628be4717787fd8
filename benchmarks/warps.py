"""Whether `match` follows the geometry of simulated scenes: warps of four kinds, three sensors.

    python benchmarks/warps.py --size 1024 --seed 11 --folder runs/warps

Printed is the mean error of the transform over the lattice in pixels, with the model that it chose
and how the match ended. Simulated scenes say nothing about real ones.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np

from rsfuse import match
from rsfuse.geo.raster import open_raster

WARPS = ("shift", "affine", "homography", "smooth", "relief")
QUERIES = ("sar", "thermal", "map")


def error_px(found, folder: Path) -> float:
    """Mean distance to the true displacement, at every 32nd pixel."""
    with open_raster(folder / "truth" / "displacement.tif") as source:
        truth = source.read()
    rows, columns = np.nonzero(truth.valid[::32, ::32])
    points = 32.0 * np.stack([columns, rows], 1) + 0.5
    shift = truth.data[:, ::32, ::32][:, rows, columns].T
    return float(np.hypot(*(found.apply(points) - points - shift).T).mean())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=11)
    options = parser.parse_args()
    print("| warp | " + " | ".join(QUERIES) + " |\n| --- " + "| --- " * len(QUERIES) + "|")
    for warp in WARPS:
        folder = options.folder / warp
        if not (folder / "scene.json").is_file():
            words = ["simulate", "-o", folder, "--size", options.size, "--seed", options.seed,
                     "--modalities", ",".join(("pan", *QUERIES)), "--warp", warp, "-q"]  # fmt: skip
            subprocess.run(
                [sys.executable, "-m", "rsfuse", *map(str, words)],
                check=True,
                stdout=subprocess.DEVNULL,
            )
        cells = []
        for query in QUERIES:
            result = match(folder / "pan.tif", folder / f"{query}.tif", threads=1)
            told = f"{result.status}, {result.confidence:.2f}"
            if result.transform is not None:
                error = error_px(result.transform, folder)
                told = f"{error:.1f} ({result.transform.model}, {told})"
            cells.append(told)
        print(f"| {warp} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
