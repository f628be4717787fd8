"""Install size, number of packages and import time of rsfuse and of its peers.

    python benchmarks/footprint.py --constraint constraints.txt

Each is installed by pip into an environment of its own, from wheels where it has them, with the
same torch as rsfuse, so that what is compared is what each adds. Import times are the median of
five fresh processes, by turns. Where something does not install or import, the reason is printed.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
# Name -> what pip installs, and what Python imports.
PEERS = {
    "rsfuse": (str(REPOSITORY), "rsfuse"),
    "rsfuse[report]": (f"{REPOSITORY}[report]", "rsfuse, rsfuse.report"),
    "rsfuse, the matcher loaded": ("", "rsfuse.matching.predict"),
    "AROSICS": ("arosics", "arosics"),
    "TorchGeo": ("torchgeo", "torchgeo"),
    "Ultralytics": ("ultralytics", "ultralytics"),
}


def install(what: str, home: Path, torch: str) -> str:
    """Install into a new environment; the reason where that fails."""
    venv.create(home, with_pip=True)
    pinned = home / "pin.txt"
    pinned.write_text(f"{torch}\n")
    done = subprocess.run(
        [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--constraint",
         str(pinned), what], capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    errors = [line for line in done.stderr.splitlines() if re.match(r"(?i)\s*error", line)]
    return "" if done.returncode == 0 else (errors or ["pip failed"])[-1].strip()


def size_mb(home: Path) -> float:
    """Megabytes of the packages, pip and setuptools left out."""
    packages = next((home / "lib").glob("python*/site-packages"))
    own = ("pip", "setuptools")
    files = (p for p in packages.rglob("*") if p.is_file() and not p.is_symlink())
    return sum(
        p.stat().st_size for p in files
        if not p.relative_to(packages).parts[0].lower().startswith(own)
        and "__pycache__" not in p.parts
    ) / 1e6  # fmt: skip


def packages(home: Path) -> int:
    """Number of packages, pip left out."""
    command = [str(home / "bin" / "python"), "-m", "pip", "list", "--format", "freeze"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return sum(not line.startswith(("pip==", "setuptools==")) for line in listed)


def import_seconds(home: Path, module: str) -> float | str:
    """Seconds of one import in a fresh process without the start of Python, or what went wrong."""
    code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    done = subprocess.run(
        [str(home / "bin" / "python"), "-c", code], capture_output=True, text=True, timeout=300
    )
    if done.returncode:
        return done.stderr.strip().splitlines()[-1]
    return float(done.stdout.split()[-1])


def main() -> None:
    """Install all, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--constraint", type=Path, default=REPOSITORY / "constraints.txt")
    parser.add_argument("--only", nargs="+", choices=PEERS, default=list(PEERS))
    options = parser.parse_args()
    lines = options.constraint.read_text().splitlines()
    torch = next(line for line in lines if line.startswith("torch=="))
    with tempfile.TemporaryDirectory() as scratch:
        homes: dict[str, Path] = {}
        rows: dict[str, list[str]] = {}
        for number, name in enumerate(options.only):
            what, _ = PEERS[name]
            if not what:
                homes[name] = homes["rsfuse"]
                continue
            home = Path(scratch) / f"env{number}"
            problem = install(what, home, torch)
            if problem:
                rows[name] = ["–", "–", f"does not install: {problem}"]
            else:
                homes[name] = home
        times: dict[str, list[float | str]] = {name: [] for name in homes}
        for turn in range(6):
            for name, home in homes.items():
                found = import_seconds(home, PEERS[name][1])
                if turn:  # the first compiles bytecode
                    times[name].append(found)
        for name, home in homes.items():
            said = [t for t in times[name] if isinstance(t, str)]
            value = f"fails: {said[0]}" if said else f"{statistics.median(times[name]):.2f}"
            rows[name] = [f"{size_mb(home):.0f}", str(packages(home)), value]
    print(f"{torch}, Python {sys.version.split()[0]}")
    print("| | MB installed | packages | import, s |")
    print("| --- | --- | --- | --- |")
    for name in options.only:
        print(f"| {name} | " + " | ".join(rows[name]) + " |")


if __name__ == "__main__":
    main()
