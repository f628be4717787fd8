"""Archive throughput with one worker process and with two, side by side.

    python benchmarks/batch_scaling.py --items 12

Scenes are simulated; what is measured is `rsfuse batch match --upright`. Printed are seconds, items
per minute and the ratio, once with the start of the workers and once without, and what the
scheduler itself can take: empty tasks per second.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RSFUSE = Path(sys.executable).parent / "rsfuse"


def prepare(folder: Path, items: int) -> Path:
    """Scenes and the list of jobs; each pair occurs under several names."""
    rows = []
    for seed in range(3):
        scene = folder / f"s{seed}"
        subprocess.run(
            [str(RSFUSE), "simulate", "-o", str(scene), "--size", "384", "--modalities", "ms,sar",
             "--seed", str(seed), "-q"], check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    for number in range(items):
        scene = folder / f"s{number % 3}"
        rows.append(
            f'[[items]]\nid = "i{number}"\nreference = "{scene}/ms.tif"\nquery = "{scene}/sar.tif"'
        )
    jobs = folder / "jobs.toml"
    jobs.write_text('task = "match"\n[options]\nupright = true\n' + "\n".join(rows))
    return jobs


def seconds(jobs: Path, output: Path, workers: int) -> float:
    """Wall time of a batch."""
    shutil.rmtree(output, ignore_errors=True)
    begun = time.perf_counter()
    subprocess.run(
        [str(RSFUSE), "batch", str(jobs), "-o", str(output), "--workers", str(workers), "-q"],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return time.perf_counter() - begun


def scheduler_rate(tasks: int = 2000) -> float:
    """Empty tasks per second of a scheduler with two workers."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        client.submit(int, 1).result()
        begun = time.perf_counter()
        client.gather(client.map(abs, range(tasks), pure=False))
        return tasks / (time.perf_counter() - begun)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        jobs = prepare(folder, options.items)
        one = prepare(folder / "few", 1) if (folder / "few").mkdir() is None else jobs
        # Interleaved, so that both meet the same other load; the smaller counts.
        whole = {w: [] for w in (1, 2)}
        start = {w: [] for w in (1, 2)}
        for _ in range(2):
            for workers in (1, 2):
                whole[workers].append(seconds(jobs, folder / "out", workers))
                start[workers].append(seconds(one, folder / "out", workers))
        print("| workers | s for all | items per minute | s with one item | s per further item |")
        print("| --- | --- | --- | --- | --- |")
        for workers in (1, 2):
            total, first = min(whole[workers]), min(start[workers])
            further = (total - first) / (options.items - 1)
            print(f"| {workers} | {total:.1f} | {60 * options.items / total:.1f} | {first:.1f} "
                  f"| {further:.2f} |")  # fmt: skip
        print(f"ratio {min(whole[1]) / min(whole[2]):.2f}")
    print(f"scheduler: {scheduler_rate():.0f} empty tasks per second")


if __name__ == "__main__":
    main()
