"""rsfuse beside other matchers, on the same pairs, in one run.

    python benchmarks/match_peers.py data/matching/srif -o runs/peers/srif
    python benchmarks/match_peers.py data/matching/s1s2 --upright --peers rsfuse,gefolki,arosics

Every peer runs as an outside program in an environment of its own, which this script makes under
`build/peers` the first time. A peer whose environment cannot be made is a row that says so. Pairs
come from the frozen `srif` protocol; one program runs at a time, held to one thread; seconds are
those of the matching alone, loading and imports excluded. Failures count in every mean.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rsfuse import __version__
from rsfuse.matching.data import read_pairs
from rsfuse.matching.evaluate import THREAD_VARIABLES, Evaluation
from rsfuse.matching.protocols import PROTOCOLS, Answer, load, measure_srif_scene
from rsfuse.runs import utc_now, write_json

ROOT = Path(__file__).resolve().parent.parent
PEERS_DIR = Path(__file__).resolve().parent / "peers"
ENVIRONMENTS_DIR = ROOT / "build" / "peers"
TIMEOUT_S = 180


@dataclass(frozen=True)
class Environment:
    """How to make a peer's environment.

    Attributes:
        name: Folder under `build/peers`; None for the environment that runs this script.
        requirements: What pip installs.
        without_dependencies: What pip installs after that, dependencies left out.
        python: The interpreter that makes the environment; this one when None.
        options: Arguments of `venv`.
    """

    name: str | None
    requirements: tuple[str, ...] = ()
    without_dependencies: tuple[str, ...] = ()
    python: str | None = None
    options: tuple[str, ...] = ()


OWN = Environment(None)
OPENCV = Environment("opencv", ("opencv-python-headless<5", "numpy"))
SCIKIT_IMAGE = Environment("scikit-image", ("scikit-image", "numpy", "scipy"))
GEFOLKI = Environment("gefolki", ("gefolki",))
# GDAL's Python bindings have no wheels: they come from Debian's python3-gdal (3.6), and with GDAL
# 3.6 these three releases are the newest that work together.
AROSICS = Environment(
    "arosics",
    (
        *("numpy<2", "cartopy", "cmocean", "dill", "folium", "geojson", "geopandas", "joblib"),
        *("matplotlib", "packaging", "pandas", "plotly", "pyproj", "scikit-image", "scipy"),
        *("shapely", "spectral"),
    ),
    ("arosics==1.12.1", "geoarray==0.17.2", "py_tools_ds==0.22.3"),
    python="/usr/bin/python3",
    options=("--system-site-packages",),
)

PEERS = {
    "rsfuse": (OWN, "rsfuse_match.py"),
    "sift": (OPENCV, "opencv_features.py", "sift"),
    "orb": (OPENCV, "opencv_features.py", "orb"),
    "akaze": (OPENCV, "opencv_features.py", "akaze"),
    "phase": (SCIKIT_IMAGE, "phase_correlation.py", "shift"),
    "phase-polar": (SCIKIT_IMAGE, "phase_correlation.py", "polar"),
    "gefolki": (GEFOLKI, "gefolki_flow.py"),
    "arosics": (AROSICS, "arosics_local.py"),
}


class PeerError(Exception):
    """A peer could not be installed, started, or did not answer in time."""


def ready(environment: Environment) -> Path:
    """The interpreter of a peer's environment, made the first time."""
    if environment.name is None:
        return Path(sys.executable)
    folder = ENVIRONMENTS_DIR / environment.name
    python, stamp = folder / "bin" / "python", folder / "installed"
    wanted = json.dumps([environment.requirements, environment.without_dependencies])
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    maker = environment.python or sys.executable
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    steps = [[maker, "-m", "venv", "--clear", *environment.options, str(folder)]]
    steps.append([*pip, *environment.requirements])
    if environment.without_dependencies:
        steps.append([*pip, "--no-deps", *environment.without_dependencies])
    for step in steps:
        try:
            done = subprocess.run(step, capture_output=True, text=True, check=False)
        except OSError as error:
            raise PeerError(f"not installed: {error}") from error
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise PeerError(f"not installed: {lines[-1] if lines else 'no reason given'}")
    stamp.write_text(wanted)
    return python


def versions(python: Path) -> dict[str, str]:
    """Installed packages of an environment."""
    done = subprocess.run(
        [python, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"],
        capture_output=True,
        text=True,
        check=False,
    )
    return {p["name"]: p["version"] for p in json.loads(done.stdout)} if done.stdout else {}


class Peer:
    """One running peer program; restarted after a timeout or a crash."""

    def __init__(self, name: str, folder: Path) -> None:
        environment, script, *arguments = PEERS[name]
        self.name = name
        self.folder = folder
        self.python = ready(environment)
        self.command = [str(self.python), str(PEERS_DIR / script), *arguments]
        self.process: subprocess.Popen[str] | None = None
        self.log = (folder / f"{name}.log").open("w")

    def start(self) -> subprocess.Popen[str]:
        """The running program."""
        if self.process is None or self.process.poll() is not None:
            environ = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, "1")}
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.log,
                text=True,
                env=environ,
            )
        return self.process

    def answer(self, images: Path) -> Answer:
        """The peer's answer to a task; raises when it crashes or takes too long."""
        process = self.start()
        reply = self.folder / f"{self.name}.json"
        reply.unlink(missing_ok=True)
        assert process.stdin is not None
        assert process.stdout is not None
        watchdog = threading.Timer(TIMEOUT_S, process.kill)
        watchdog.start()
        begun = time.perf_counter()
        try:
            process.stdin.write(json.dumps({"images": str(images), "answer": str(reply)}) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            watchdog.cancel()
        if line != "answered\n":
            process.kill()
            process.wait()
            late = time.perf_counter() - begun >= TIMEOUT_S
            raise PeerError(f"no answer in {TIMEOUT_S} s" if late else "the program ended")
        return to_answer(json.loads(reply.read_text()))

    def stop(self) -> None:
        """End the program."""
        if self.process is not None and self.process.poll() is None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            try:
                self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()


def to_answer(reply: dict) -> Answer:
    """A peer's JSON as an `Answer`."""
    if "exception" in reply:
        raise PeerError(reply["exception"])
    transform = None if reply["matrix"] is None else np.array(reply["matrix"], dtype=np.float64)
    if "lattice" in reply:
        transform = from_lattice(**reply["lattice"])
    return Answer(
        transform=transform,
        points0=np.array(reply.get("points0", []), dtype=np.float64).reshape(-1, 2),
        points1=np.array(reply.get("points1", []), dtype=np.float64).reshape(-1, 2),
        probabilities=np.array(reply.get("probabilities", []), dtype=np.float64),
        status=reply.get("status", "refused" if transform is None else "ok"),
        confidence=float(reply.get("confidence", np.nan)),
        seconds=float(reply["seconds"]),
    )


def from_lattice(xs, ys, x, y):
    """A smooth transform from its values on a lattice over the reference."""
    from scipy.interpolate import RectBivariateSpline

    splines = [RectBivariateSpline(ys, xs, np.array(values)) for values in (x, y)]
    return lambda xy: np.column_stack([s.ev(xy[:, 1], xy[:, 0]) for s in splines])


def commit() -> str:
    """The commit of the working tree, with a mark when it differs."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def run(options: argparse.Namespace) -> dict[str, Evaluation | str]:
    """Every peer's evaluation, or why there is none."""
    protocol = PROTOCOLS["srif"]
    pairs = read_pairs(options.dataset, limit=options.limit)
    cases = protocol.cases(pairs, options.seed, options.upright)
    started, begun = utc_now(), time.perf_counter()
    records: dict[str, list[dict]] = {}
    peers: list[Peer] = []
    results: dict[str, Evaluation | str] = {}
    with tempfile.TemporaryDirectory(prefix="match-peers-") as temporary:
        for name in options.peers:
            try:
                peers.append(Peer(name, Path(temporary)))
                records[name] = []
            except PeerError as error:
                results[name] = str(error)
        for number, case in enumerate(cases, start=1):
            scene = load(case)
            images = Path(temporary) / "pair.npz"
            np.savez(images, image0=scene.image0, image1=scene.image1)
            for peer in peers:

                def ask_peer(image0, image1, peer=peer, images=images):
                    return peer.answer(images)

                records[peer.name].append(measure_srif_scene(case, scene, ask_peer))
            print(f"\r{number}/{len(cases)}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        for peer in peers:
            peer.stop()
    for name, measured in records.items():
        results[name] = Evaluation(
            protocol="srif",
            dataset=str(options.dataset),
            method=name,
            rows=tuple(protocol.summarise(measured, np.random.default_rng(options.seed))),
            columns=protocol.columns,
            records=tuple(measured),
            parameters={
                "seed": options.seed,
                "limit": options.limit,
                "upright": options.upright,
                "pairs": len(pairs),
            },
            started=started,
            seconds=time.perf_counter() - begun,
        )
    return results


COLUMNS = (
    ("success", "success %", 100),
    ("within_10", "<10 px %", 100),
    ("within_5", "<5 px %", 100),
    ("within_2", "<2 px %", 100),
    ("mean_solved_px", "mean solved px", 1),
    ("mean_counted_px", "mean counted px", 1),
    ("median_px", "median px", 1),
    ("refused", "no answer %", 100),
    ("seconds_median", "s/pair", 1),
)


def table(results: dict[str, Evaluation | str]) -> str:
    """One block per modality, one row per peer, in Markdown."""
    evaluations = {n: r for n, r in results.items() if isinstance(r, Evaluation)}
    head = " | ".join(["modality", "pairs", "method", *(heading for _, heading, _ in COLUMNS)])
    lines = [f"| {head} |", "| --- " * (3 + len(COLUMNS)) + "|"]
    groups = [row["group"] for row in next(iter(evaluations.values())).rows] if evaluations else []
    for position, group in enumerate(groups):
        for name, evaluation in evaluations.items():
            row = evaluation.rows[position]
            cells = [group, str(row["pairs"]), name]
            for key, _, factor in COLUMNS:
                number = factor * float(getattr(row[key], "value", row[key]))
                cells.append("-" if np.isnan(number) else f"{number:.{1 if factor == 100 else 2}f}")
            lines.append(f"| {' | '.join(cells)} |")
    lines += [f"{name}: {r}" for name, r in results.items() if isinstance(r, str)]
    return "\n".join(lines)


def main() -> None:
    """Parse, run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset", type=Path, help="folder with an index.json")
    parser.add_argument("-o", "--output", type=Path, help="JSON and table are written here")
    parser.add_argument("--peers", default=",".join(PEERS), help="comma-separated names")
    parser.add_argument("--limit", type=int, help="at most this many pairs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--upright", action="store_true", help="take out rotation and scale")
    options = parser.parse_args()
    options.peers = options.peers.split(",")
    unknown = sorted(set(options.peers) - set(PEERS))
    if unknown:
        parser.error(f"unknown peers {', '.join(unknown)}; there are {', '.join(PEERS)}")
    results = run(options)
    text = table(results)
    print(text)
    if options.output is not None:
        content = {
            "command": " ".join(["python", *sys.argv]),
            "date": utc_now(),
            "commit": commit(),
            "rsfuse_version": __version__,
            "machine": {
                "processor": platform.processor() or platform.machine(),
                "cores": os.cpu_count(),
                "threads_per_peer": 1,
                "load_average": os.getloadavg(),
            },
            "peers": {
                name: r if isinstance(r, str) else r.to_dict() for name, r in results.items()
            },
            "versions": {
                name: versions(ready(PEERS[name][0]))
                for name, r in results.items()
                if isinstance(r, Evaluation)
            },
        }
        write_json(options.output / "peers.json", content)
        (options.output / "table.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
