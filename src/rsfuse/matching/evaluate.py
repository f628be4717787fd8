"""Run a frozen protocol on a dataset and write what came out: JSON, a table, a figure.

    result = evaluate("data/matching/srif", "srif", workers=2, out_dir="runs/srif")
    print(result.table())

A matcher is a function of two (C, H, W) float32 arrays that returns an `Answer`; the default asks
`rsfuse.match`. Every pair counts: a refusal, a wrong answer and an exception are all in the sums.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from rsfuse.errors import InputError, RsfuseError
from rsfuse.matching import metrics
from rsfuse.matching.data import ImageArray, held_out_of, read_pairs, spread
from rsfuse.matching.metrics import Interval
from rsfuse.matching.protocols import PROTOCOLS, Answer, Case, Matcher, Protocol, Record

logger = logging.getLogger(__name__)

EVALUATION_FORMAT = "rsfuse-evaluation"
EVALUATION_FORMAT_VERSION = 1
METRICS_FILE = "metrics.json"
TABLE_FILE = "table.txt"
FIGURE_FILE = "figure.svg"

# Read by numerical libraries when they load; a worker must find them set before its imports.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)

# Evidence per tie point that the sums have used up; too long for a result file.
LEFT_OUT_OF_FILES = ("tie_probability", "tie_correct", "ellipse_hits", "phase_sums")

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a protocol found on a dataset.

    Attributes:
        protocol: Name of the protocol.
        dataset: The folder.
        method: Name of the matcher.
        rows: One mapping per modality, the last over all pairs. Shares lie in 0..1; an `Interval`
            is a value with its 95 % bootstrap interval.
        columns: (key, heading) of the table; headings with % are printed in percent.
        records: One mapping per case.
        parameters: Seed, limit, workers and the like.
        started: UTC time.
        seconds: Wall time.
    """

    protocol: str
    dataset: str
    method: str
    rows: tuple[Record, ...]
    columns: tuple[tuple[str, str], ...]
    records: tuple[Record, ...]
    parameters: Mapping[str, Any]
    started: str
    seconds: float

    def cells(self) -> list[list[str]]:
        """Headings and rows as text, for any kind of table."""
        body = [
            [_cell(row.get(key), heading) for key, heading in self.columns] for row in self.rows
        ]
        return [[heading for _, heading in self.columns], *body]

    def table(self) -> str:
        """The table in plain text."""
        cells = self.cells()
        widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
        lines = ["  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
        lines.insert(1, "  ".join("-" * w for w in widths))
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The content of `metrics.json`."""
        from rsfuse import __version__

        return {
            "format": EVALUATION_FORMAT,
            "format_version": EVALUATION_FORMAT_VERSION,
            "task": "match",
            "protocol": self.protocol,
            "dataset": self.dataset,
            "method": self.method,
            "rsfuse_version": __version__,
            "started": self.started,
            "seconds": self.seconds,
            "machine": {
                "processor": platform.processor() or platform.machine(),
                "cores": os.cpu_count(),
            },
            "parameters": dict(self.parameters),
            "rows": [
                {k: v._asdict() if isinstance(v, Interval) else v for k, v in row.items()}
                for row in self.rows
            ],
            "records": [
                {k: v for k, v in record.items() if k not in LEFT_OUT_OF_FILES}
                for record in self.records
            ],
        }

    def save(self, out_dir: str | Path) -> Path:
        """Write `metrics.json`, `table.txt` and, but for `big`, `figure.svg`; return the folder."""
        from rsfuse.matching.evaluation_figure import draw
        from rsfuse.runs import atomic_path, write_json

        folder = Path(out_dir)
        texts = {TABLE_FILE: self.table() + "\n"}
        if self.protocol != "big":
            texts[FIGURE_FILE] = draw(self)
        for name, text in texts.items():
            with atomic_path(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
        write_json(folder / METRICS_FILE, self.to_dict())
        return folder


def product_matcher(
    image0: ImageArray, image1: ImageArray, *, method: str = "auto", weights: str | None = None
) -> Answer:
    """What `rsfuse.match` says, as an `Answer`: its kept tie points and its transform."""
    from rsfuse.matching.predict import match

    result = match(image0, image1, method=method, weights=weights)
    ties = result.tie_points
    kept = np.asarray(ties.kept, dtype=bool)
    found = result.transform
    transform: metrics.Transform | None = None
    if found is not None:
        transform = found.apply if found.matrix is None else found.matrix
    return Answer(
        transform=transform,
        points0=np.asarray(ties.xy0, dtype=np.float64)[kept],
        points1=np.asarray(ties.xy1, dtype=np.float64)[kept],
        probabilities=np.asarray(ties.probability, dtype=np.float64)[kept],
        status=result.status,
        confidence=float(result.confidence),
        covariances_px2=ties.covariances_px2[kept],
    )


def evaluate(
    dataset: str | Path,
    protocol: str,
    *,
    matcher: Matcher = product_matcher,
    method: str = "rsfuse",
    workers: int = 1,
    seed: int = 0,
    limit: int | None = None,
    held_out: int = 0,
    upright: bool = False,
    as_they_lie: bool = False,
    out_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a matcher on a dataset by a frozen protocol.

    Args:
        dataset: Folder with an `index.json`.
        protocol: `srif`, `mmim`, `sub`, `loop` or `trust`.
        matcher: Function of two arrays; with more than one worker it must be importable, that is
            defined at the top of a module.
        method: Name of the matcher in the results.
        workers: Processes; each is held to one thread. 1 runs here, with the threads as they are.
        seed: Seed of all motions and shuffles; 0 is that of published numbers.
        limit: At most this many pairs, spread over the modalities.
        held_out: Only every so-many-th pair, those that a training with the same number left out;
            0 takes all.
        upright: `srif` only: take rotation and scale out of every pair.
        as_they_lie: `srif` only: leave pairs that nearly lie on each other as they are.
        out_dir: Folder for `metrics.json`, `table.txt`, `figure.svg`.
        progress: Called with (done, total) after every case.

    Raises:
        InputError: Unknown protocol, unusable dataset, impossible number.
    """
    import time

    from rsfuse.runs import utc_now

    rules = _rules(protocol, upright=upright, as_they_lie=as_they_lie)
    if workers < 1:
        raise InputError(
            f"the number of workers is {workers}", "At least one is needed.", "Use --workers 1."
        )
    pairs = read_pairs(dataset)
    if held_out:
        kept = held_out_of(pairs, held_out)
        pairs = tuple(p for p in pairs if p.id in kept)
    if limit is not None:
        pairs = spread(pairs, limit)
    cases = [replace(c, as_it_lies=as_they_lie) for c in rules.cases(pairs, seed, upright)]
    started, start = utc_now(), time.perf_counter()
    records: list[Record] = []
    for record in _records(cases, rules, matcher, workers=workers):
        if record["exception"] is not None:
            logger.warning("%s: %s", record["id"], record["exception"])
        records.append(record)
        if progress is not None:
            progress(len(records), len(cases))
    rows = rules.summarise(records, np.random.default_rng(seed))
    result = Evaluation(
        protocol=protocol,
        dataset=str(dataset),
        method=method,
        rows=tuple(rows),
        columns=rules.columns,
        records=tuple(records),
        parameters={
            "seed": seed,
            "limit": limit,
            "held_out": held_out,
            "upright": upright,
            "as_they_lie": as_they_lie,
            "workers": workers,
            "pairs": len(pairs),
        },
        started=started,
        seconds=time.perf_counter() - start,
    )
    if out_dir is not None:
        result.save(out_dir)
    return result


def evaluate_big(
    folder: str | Path,
    *,
    size: int = 10_000,
    seed: int = 0,
    out_dir: str | Path | None = None,
) -> Evaluation:
    """The protocol `big`: wall time, memory and error on a large simulated optical-SAR pair.

    Args:
        folder: Folder of the simulated pair; the pair is made there if it is missing.
        size: Side of the pair in pixels, if it has to be made.
        seed: Seed of the scene.
        out_dir: Folder for `metrics.json`, `table.txt` and the run itself (`match/`).

    Raises:
        RsfuseError: A command failed.
    """
    import tempfile
    import time

    from rsfuse.matching.big import COLUMNS, measure_big
    from rsfuse.runs import utc_now

    started, start = utc_now(), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="rsfuse-big-") as temporary:
        run_folder = Path(temporary if out_dir is None else out_dir) / "match"
        record = measure_big(Path(folder), run_folder, size=size, seed=seed)
    result = Evaluation(
        protocol="big",
        dataset=str(folder),
        method="rsfuse",
        rows=(record,),
        columns=COLUMNS,
        records=(record,),
        parameters={"seed": seed, "size": size},
        started=started,
        seconds=time.perf_counter() - start,
    )
    if out_dir is not None:
        result.save(out_dir)
    return result


def _rules(protocol: str, *, upright: bool, as_they_lie: bool) -> Protocol:
    if protocol not in PROTOCOLS:
        raise InputError(
            f"there is no protocol {protocol!r}",
            f"The protocols on a dataset are {', '.join(PROTOCOLS)}.",
            "Choose one with --protocol.",
        )
    if upright and protocol != "srif":
        raise InputError(
            f"the protocol {protocol} has no upright form",
            "Taking rotation and scale out belongs to srif.",
            "Leave --upright out, or use --protocol srif.",
        )
    if as_they_lie and (upright or protocol != "srif"):
        raise InputError(
            f"--as-they-lie was asked of the protocol {protocol}"
            + (" together with --upright" if upright else ""),
            "Leaving pairs as they lie belongs to srif, without --upright.",
            "Leave --as-they-lie out, or use --protocol srif with it alone.",
        )
    return PROTOCOLS[protocol]


def _records(
    cases: Sequence[Case], rules: Protocol, matcher: Matcher, *, workers: int
) -> Iterator[Record]:
    """Records in the order of the cases, whatever the number of workers."""
    if workers == 1:
        yield from (rules.measure(case, matcher) for case in cases)
        return
    with (
        _one_thread_each(),
        ProcessPoolExecutor(
            workers, mp_context=get_context("spawn"), initializer=_limit_threads
        ) as pool,
    ):
        futures = [pool.submit(rules.measure, case, matcher) for case in cases]
        try:
            for future in futures:
                yield future.result()
        except BrokenProcessPool as error:
            raise RsfuseError(
                "a worker process ended before it answered",
                "Most often the system stopped it because memory ran out.",
                "Use fewer --workers, or close other programs.",
            ) from error
        finally:
            for future in futures:
                future.cancel()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Environment in which processes started meanwhile use one thread."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _limit_threads() -> None:
    """Hold OpenCV, which reads no variable, to one thread; runs first in every worker."""
    import cv2

    cv2.setNumThreads(1)


def _cell(value: Any, heading: str) -> str:
    """A value as a table shows it: percent where the heading says so, `-` for none."""
    if isinstance(value, str):
        return value
    interval = value if isinstance(value, Interval) else None
    number = interval.value if interval is not None else value
    if number is None or number != number:
        return "-"
    if isinstance(number, int):
        return str(number)
    if number in (float("inf"), float("-inf")):
        return "inf"
    if "%" not in heading:
        return f"{number:.2f}" if abs(number) < 100 else f"{number:.0f}"
    text = f"{100 * number:.1f}"
    if interval is not None and np.isfinite([interval.lower, interval.upper]).all():
        text += f" ({100 * interval.lower:.0f}-{100 * interval.upper:.0f})"
    return text
