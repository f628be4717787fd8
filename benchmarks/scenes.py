"""Whole scenes: wall time and peak memory of `rsfuse detect` and `rsfuse classify`.

    python benchmarks/scenes.py detect --size 20000
    python benchmarks/scenes.py classify --ms 2000 2500

The scenes are one simulated scene repeated; what is measured is the work, not the result. Each run
is a process of its own; its peak memory is what the system says of it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import rasterio
from rasterio.windows import Window

RSFUSE = Path(sys.executable).parent / "rsfuse"


def repeat(source: Path, target: Path, shape: tuple[int, int]) -> None:
    """Write a raster of a shape that shows the source again and again."""
    with rasterio.open(source) as small:
        data, profile, names = small.read(), small.profile, small.descriptions
    h, w = data.shape[1:]
    profile.update(
        height=shape[0], width=shape[1], tiled=True, blockxsize=512, blockysize=512, BIGTIFF="YES",
        driver="GTiff", compress=None,
    )  # fmt: skip
    with rasterio.open(target, "w", **profile) as large:
        for y in range(0, shape[0], h):
            for x in range(0, shape[1], w):
                part = data[:, : min(h, shape[0] - y), : min(w, shape[1] - x)]
                large.write(part, window=Window(x, y, part.shape[2], part.shape[1]))
        large.descriptions = names


def run(*words: str) -> tuple[float, float]:
    """Seconds and peak megabytes of a command."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        [str(RSFUSE), *words, "-q", "--progress", "none"], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"rsfuse {' '.join(words)} failed")
    return time.perf_counter() - begun, usage.ru_maxrss / 1024


def simulate(folder: Path, ratio: int) -> None:
    """A scene of 1024 x 1024 PAN pixels."""
    subprocess.run(
        [str(RSFUSE), "simulate", "-o", str(folder), "--size", "1024", "--gsd", "0.5",
         "--modalities", "ms,pan", "--ratio", str(ratio), "--warp", "none", "--seed", "3", "-q"],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip


def detect(folder: Path, size: int, workers: int) -> None:
    """A square scene of `size` pixels."""
    simulate(folder / "scene", 4)
    repeat(folder / "scene" / "pan.tif", folder / "large.tif", (size, size))
    seconds, memory = run("detect", f"{folder}/large.tif", "-m", "simulated-objects",
                          "-o", f"{folder}/found.gpkg", "--workers", str(workers))  # fmt: skip
    print(f"detect {size} x {size}, {workers} workers: {seconds:.0f} s, {memory:.0f} MB")


def classify(folder: Path, shape: tuple[int, int], workers: int) -> None:
    """A scene of MS (h, w) and PAN four times as large."""
    simulate(folder / "scene", 4)
    repeat(folder / "scene" / "ms.tif", folder / "ms.tif", shape)
    repeat(folder / "scene" / "pan.tif", folder / "pan.tif", (4 * shape[0], 4 * shape[1]))
    seconds, memory = run("classify", f"{folder}/ms.tif", f"{folder}/pan.tif", "-m",
                          "simulated-land-cover", "-o", f"{folder}/map.tif",
                          "--workers", str(workers))  # fmt: skip
    print(f"classify MS {shape}, {workers} workers: {seconds:.0f} s, {memory:.0f} MB")


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("detect", "classify"))
    parser.add_argument("--size", type=int, default=20_000)
    parser.add_argument("--ms", type=int, nargs=2, default=(2000, 2500))
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.what == "detect":
            detect(Path(folder), options.size, options.workers)
        else:
            classify(Path(folder), tuple(options.ms), options.workers)


if __name__ == "__main__":
    main()
