"""The work itself on a Dask cluster: submit, follow, retry, and say what became of each item."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from rsfuse.archive import Archive
from rsfuse.batch.jobs import Batch, Item
from rsfuse.batch.stac import STATUS, describe, request_of, write_summary
from rsfuse.errors import InputError, RsfuseError

LOCAL = "local"
# A worker that dies takes an item with it; the third that does is the fault of the item.
DEATHS = 3
CONNECT_TIMEOUT_S = 20

# Runs one item: (task, item, where its results go, where they will lie) -> exit code. It raises an
# RsfuseError where the command fails.
Runner = Callable[[str, Item, Path, Path], int]


class Outcome(NamedTuple):
    """What became of an item.

    Attributes:
        id: Of the item.
        state: "done", "kept" (was there already) or "failed".
        status: Of the run: "ok", "weak" or "refused"; empty where it failed.
        what: The error: what was found.
        why: Why that is a problem.
        fix: What to do next.
    """

    id: str
    state: str
    status: str = ""
    what: str = ""
    why: str = ""
    fix: str = ""


def make(folder: str, task: str, item: Item, runner: Runner) -> Outcome:
    """Make one item on a worker, unless it is there.

    What is wrong with the input is an outcome; what another try may cure is raised.
    """
    archive = Archive(folder)
    if archive.is_done(item.id, request_of(task, item)):
        return Outcome(item.id, "kept", str(archive.properties(item.id).get(STATUS, "")))
    try:
        with archive.making(item.id) as scratch:
            runner(task, item, scratch, archive.place(item.id))
            record = describe(task, item, scratch)
    except InputError as error:
        return Outcome(item.id, "failed", "", error.what, error.why, error.fix)
    return Outcome(item.id, "done", record.status)


def run_batch(
    batch: Batch,
    folder: str | Path,
    runner: Runner,
    *,
    scheduler: str = LOCAL,
    workers: int = 1,
    retries: int = 2,
    progress: Callable[[int, int], None] | None = None,
    announce: Callable[[str], None] | None = None,
) -> list[Outcome]:
    """Make all items of a batch that are not there yet.

    The catalog and the summary are written at the end, also after an interrupt; an item that is
    finished stays, whatever happens to the rest.

    Args:
        batch: What is to be done.
        folder: The archive.
        runner: Runs one item; importable on the workers.
        scheduler: "local", or the address of a Dask scheduler.
        workers: Processes of a local cluster; a remote one has its own.
        retries: Further tries of an item that failed for another reason than its input.
        progress: Called with (finished, all).
        announce: Called once with the address of the dashboard.

    Raises:
        InputError: Dask is not installed, or the scheduler does not answer.
    """
    archive = Archive(folder)
    archive.folder.mkdir(parents=True, exist_ok=True)
    archive.sweep()
    found: list[Outcome] = []
    try:
        with _client(scheduler, workers) as client:
            if announce is not None:
                announce(client.dashboard_link)
            work = partial(make, str(archive.folder), batch.task, runner=runner)
            for outcome in _follow(client, work, batch.items, retries):
                found.append(outcome)
                if progress is not None:
                    progress(len(found), len(batch.items))
    finally:
        _conclude(archive, batch, found)
    return found


def _follow(
    client: Any, work: Callable[[Item], Outcome], items: Sequence[Item], retries: int
) -> Iterator[Outcome]:
    """Outcomes in the order in which items finish."""
    from distributed import as_completed

    futures = client.map(work, items, key=[item.id for item in items], retries=retries, pure=False)
    names = {future.key: item.id for future, item in zip(futures, items, strict=True)}
    for future in as_completed(futures):
        if future.status == "finished":
            yield future.result()
        else:
            yield _failed(names[future.key], future.exception())
        future.release()


def _failed(name: str, error: BaseException) -> Outcome:
    if isinstance(error, RsfuseError):
        return Outcome(name, "failed", "", error.what, error.why, error.fix)
    if type(error).__name__ == "KilledWorker":
        return Outcome(
            name, "failed", "", f"{DEATHS} workers died while they made it",
            "it may need more memory than a worker has", "run it alone, or with fewer workers",
        )  # fmt: skip
    return Outcome(
        name, "failed", "", f"{type(error).__name__}: {error}",
        "this is a fault of rsfuse or of a library", "run the item alone with -vv",
    )  # fmt: skip


def _conclude(archive: Archive, batch: Batch, found: Sequence[Outcome]) -> None:
    """Write the catalog, the summary and the list of failures."""
    archive.sweep()
    archive.write_catalog(f"Results of rsfuse {batch.task}")
    failures = [outcome._asdict() for outcome in found if outcome.state == "failed"]
    counts = {state: sum(o.state == state for o in found) for state in ("done", "kept", "failed")}
    statuses = [o.status for o in found if o.status]
    summary = {
        "task": batch.task,
        "items": len(batch.items),
        **counts,
        "left": len(batch.items) - len(found),
        "statuses": {status: statuses.count(status) for status in sorted(set(statuses))},
    }
    write_summary(archive, summary, failures)


@contextmanager
def _client(scheduler: str, workers: int) -> Iterator[Any]:
    """A client of a remote scheduler, or of a cluster of processes on this machine."""
    if find_spec("distributed") is None:
        raise InputError(
            "the package distributed is not installed",
            "batches run on Dask, an extra of rsfuse",
            'install it: pip install "rsfuse[cluster]"',
        )
    import dask
    from distributed import Client, LocalCluster

    settings = {"distributed.scheduler.allowed-failures": DEATHS - 1}
    if scheduler != LOCAL:
        try:
            client = Client(scheduler, timeout=CONNECT_TIMEOUT_S)
        except (OSError, ValueError) as error:
            raise InputError(
                f"the scheduler {scheduler} does not answer: {error}",
                "an address such as tcp://host:8786 is needed",
                "start one with `dask scheduler`, or use --scheduler local",
            ) from error
        with client:
            yield client
        return
    # One thread per process: the kernels have threads of their own.
    threads = {name: os.environ.get(name, "1") for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    with (
        dask.config.set({**settings, "distributed.nanny.pre-spawn-environ": threads}),
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, memory_limit=None,
            dashboard_address="127.0.0.1:0", host="127.0.0.1", silence_logs="CRITICAL",
        ) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        yield client
