"""The run folder: what a command leaves behind, and the only contract between tasks and reports.

A run folder holds the products and one `run.json` that says what was done with what, how it ended
and where each product lies. `run.json` is written last: a folder without it is not a finished run.
Paths inside it are relative to the folder, so that the folder can be moved or zipped.

Everything here is standard library, so that a run can be read where nothing else is installed.
"""

import ctypes
import errno
import glob
import json
import math
import os
import platform
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rsfuse.errors import InputError, OutputError, RsfuseError

RUN_FILE = "run.json"
RUN_FORMAT = "rsfuse-run"
RUN_FORMAT_VERSION = 1
STATUSES = ("ok", "weak", "refused")

# Exit code of a command whose result is weak or refused; files and reason are still written.
EXIT_NOT_OK = 3


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What one run did, as stored in `run.json`.

    Attributes:
        task: The verb, for example "match".
        command: The command line that repeats the run.
        started: Start in UTC, ISO 8601 with a trailing Z (see `utc_now`).
        seconds: Wall-clock duration in seconds.
        inputs: One mapping per input: role, path, shape (h, w), bands, crs, gsd_m, dtype, notes.
        parameters: Every setting that the result depends on.
        status: "ok", "weak" (usable with care) or "refused" (no result is claimed).
        confidence: Probability that the result is right, in [0, 1]; None where a task has none.
        reasons: Why the status is not ok: code, message, numbers.
        result: The numbers of the task.
        diagnostics: Free numbers and small lists that explain the result.
        outputs: Name of a product -> its path (or list of paths) relative to the run folder.
        rsfuse_version: The version that made the run.
    """

    task: str
    command: str
    started: str
    seconds: float
    inputs: tuple[Mapping[str, Any], ...]
    parameters: Mapping[str, Any]
    status: str
    confidence: float | None = None
    reasons: tuple[Mapping[str, Any], ...] = ()
    result: Mapping[str, Any] = field(default_factory=dict)
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[str, Any] = field(default_factory=dict)
    rsfuse_version: str = ""

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise InputError(
                f"status {self.status!r} of a {self.task} run is unknown",
                f"a run ends as one of {', '.join(STATUSES)}",
                "pass one of these",
            )
        if self.confidence is not None and not 0.0 <= self.confidence <= 1.0:
            raise InputError(
                f"confidence {self.confidence!r} of a {self.task} run is not a probability",
                "it must lie in [0, 1]",
                "pass None where a task has no confidence",
            )

    @property
    def exit_code(self) -> int:
        """Exit code of the command that made this run: 0 for ok, 3 for weak or refused."""
        return 0 if self.status == "ok" else EXIT_NOT_OK

    def to_dict(self) -> dict[str, Any]:
        """The content of `run.json`."""
        from rsfuse import __version__

        record: dict[str, Any] = {"format": RUN_FORMAT, "format_version": RUN_FORMAT_VERSION}
        record.update({f.name: getattr(self, f.name) for f in fields(self)})
        record["rsfuse_version"] = self.rsfuse_version or __version__
        return record

    def save(self, folder: str | Path) -> Path:
        """Write `run.json` into the folder, atomically, and return its path."""
        path = Path(folder) / RUN_FILE
        write_json(path, self.to_dict())
        return path

    @classmethod
    def load(cls, folder: str | Path) -> "RunRecord":
        """Read the record of a run folder.

        Raises:
            InputError: No `run.json`, not one of ours, made by a later format, or incomplete.
        """
        path = Path(folder) / RUN_FILE
        if not path.is_file():
            raise InputError(
                f"{folder} is not a run folder",
                f"it holds no {RUN_FILE}; an interrupted run has none",
                "give the folder that a command wrote with -o, or run the command again",
            )
        content = read_json(path)
        if not isinstance(content, dict) or content.get("format") != RUN_FORMAT:
            raise InputError(
                f"{path} is not the record of an rsfuse run",
                f'its "format" is not "{RUN_FORMAT}"',
                "give a folder that an rsfuse command wrote with -o",
            )
        version, writer = content.get("format_version"), content.get("rsfuse_version", "unknown")
        if version != RUN_FORMAT_VERSION:
            raise InputError(
                f"{path} has format version {version!r}",
                f"this rsfuse reads version {RUN_FORMAT_VERSION}",
                f"use the rsfuse that wrote it ({writer}) or a later one",
            )
        names = {f.name for f in fields(cls)}
        values = {key: value for key, value in content.items() if key in names}
        for key in ("inputs", "reasons"):
            if isinstance(values.get(key), list):
                values[key] = tuple(values[key])
        try:
            return cls(**values)
        except TypeError as error:
            raise InputError(
                f"{path} is incomplete: {error}", "a finished run has every key", "run it again"
            ) from error


def utc_now() -> str:
    """The present time in UTC as written into run records, for example 2026-11-25T02:00:00Z."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def is_run_folder(folder: str | Path) -> bool:
    """Whether the folder holds a finished run."""
    return (Path(folder) / RUN_FILE).is_file()


def prepare_output(folder: str | Path, overwrite: bool = False, *, resume: bool = False) -> Path:
    """Make the folder ready to take a run, and return it.

    An earlier run is removed only with `overwrite`, and then only the files that its record names:
    anything else in the folder is left alone. `resume` accepts a folder that holds files as it is.

    Raises:
        InputError: The folder holds files and neither `overwrite` nor `resume` was asked for.
        OutputError: The folder cannot be made or written to.
    """
    folder = Path(folder)
    try:
        used = _is_used(folder, overwrite or resume)
        folder.mkdir(parents=True, exist_ok=True)
        if used and overwrite:
            remove_run(folder)
        probe = folder / f".writable-{secrets.token_hex(4)}"
        probe.touch()
        probe.unlink()
    except RsfuseError:
        raise
    except OSError as error:
        raise _output_error(folder, error) from error
    return folder


def distinct_outputs(
    outputs: Sequence[str | os.PathLike[str]], inputs: Sequence[str | os.PathLike[str]] = ()
) -> None:
    """Check, before any work, that no output takes the place of an input or of another output.

    Paths are compared by the place that they lead to, symbolic links followed.

    Args:
        outputs: Every file that a command will write, sidecars included.
        inputs: Every file that it reads; what is a URL or a name for GDAL alone equals no output.

    Raises:
        InputError: An output is an input, or two outputs are one file.
    """
    read = {os.path.realpath(path) for path in inputs}
    written: set[str] = set()
    for path in outputs:
        place = os.path.realpath(path)
        if place in read:
            raise InputError(
                f"{os.fspath(path)} is an input of this command and would be replaced",
                "a result needs a file of its own, also with --overwrite",
                "give the result another name",
            )
        if place in written:
            raise InputError(
                f"two results would be written to {os.fspath(path)}",
                "each result needs a file of its own",
                "give one of them another name",
            )
        written.add(place)


@contextmanager
def staged(folder: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A scratch folder whose content becomes that of `folder` when the block ends well.

    Until then an earlier run in the folder stays as it is, whatever happens; afterwards the new one
    has its place, by one exchange of names where the system can do that. Files in the folder that
    no run wrote are left alone. The scratch folder lies beside the folder, so that relative paths
    between files in it and others are right. A symbolic link stays; the folder that it leads to
    receives the run.

    Raises:
        InputError: The folder holds files and `overwrite` was not asked for.
        OutputError: It cannot be written to.
    """
    folder = Path(folder)
    place = Path(os.path.realpath(folder))
    head = f".{place.name}.{platform.node()}-"
    scratch = place.with_name(f"{head}{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        _is_used(folder, overwrite)
        place.parent.mkdir(parents=True, exist_ok=True)
        _sweep(place.parent, head)
        scratch.mkdir()
    except OSError as error:
        raise error if isinstance(error, RsfuseError) else _output_error(folder, error) from error
    try:
        yield scratch
        try:
            _put(scratch, place)
        except OSError as error:
            raise _output_error(folder, error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _is_used(folder: Path, may_be: bool) -> bool:
    """Whether the folder holds files, which an output may only do where that was asked for."""
    if folder.exists() and not folder.is_dir():
        raise InputError(
            f"{folder} is a file", "the output of this command is a folder", "give another -o"
        )
    used = folder.is_dir() and any(folder.iterdir())
    if used and not may_be:
        raise InputError(
            f"{folder} is not empty",
            "results of two runs must not mix",
            "give another -o, or --overwrite to replace the earlier run",
        )
    return used


def _sweep(parent: Path, head: str) -> None:
    """Remove the scratch folders of processes of this machine that were killed."""
    for left in parent.glob(f"{glob.escape(head)}*.part"):
        pid = left.name.removeprefix(head).split("-")[0]
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            shutil.rmtree(left, ignore_errors=True)
        except (OSError, ValueError):
            continue


def _put(scratch: Path, place: Path) -> None:
    """Give the content of the scratch folder its place."""
    if not place.exists():
        scratch.rename(place)
        return
    files = {path for path in place.rglob("*") if not path.is_dir()}
    alone = files <= _files_of_run(place) and place not in (Path.cwd(), *Path.cwd().parents)
    if alone and exchange_folders(scratch, place):
        return
    remove_run(place)
    new = [path for path in scratch.rglob("*") if path.is_file()]
    for path in sorted(new, key=lambda path: path.name == RUN_FILE):
        target = place / path.relative_to(scratch)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)


def exchange_folders(one: Path, other: Path) -> bool:
    """Exchange the names of two folders at once; False where the system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that becomes `path` when the block ends well.

    The temporary name keeps the suffix, because GDAL chooses its driver by it. The data is flushed
    to the disk before the rename. On any exception, an interrupt included, the temporary file and
    its sidecars (`.aux.xml`, `.ovr`, `-journal`) are removed and what was at `path` stays.

    Raises:
        OutputError: In place of an `OSError` of the block or of the rename.
    """
    path = Path(path)
    temporary = path.with_name(
        f".{path.stem}.{os.getpid()}-{secrets.token_hex(4)}.part{path.suffix}"
    )
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    except BaseException as error:
        _remove_with_sidecars(temporary)
        if isinstance(error, OSError) and not isinstance(error, RsfuseError):
            raise _output_error(path, error) from error
        raise


def write_json(path: str | Path, content: Any) -> None:
    """Write strict JSON, atomically.

    NumPy scalars and arrays become numbers and lists, paths become strings, and numbers that JSON
    does not know (NaN, infinity) become null.
    """
    text = json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def text_table(cells: Sequence[Sequence[str]]) -> str:
    """Rows of cells as aligned text, the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    return "\n".join(lines) + "\n"


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: The file is missing or not JSON.
    """
    path = Path(path)
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}", "a JSON file is needed", "check the path"
        ) from error
    except ValueError as error:
        raise InputError(
            f"{path} is not valid JSON: {error}",
            "the file is damaged or of another kind",
            "make it again with the command that wrote it",
        ) from error


def parse_json(text: str | bytes) -> Any:
    """The content of a JSON text.

    Raises:
        ValueError: It is not JSON, or nested more deeply than Python can follow.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def plain(value: Any) -> Any:
    """The value in terms of what JSON knows."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # NumPy arrays and scalars, without importing NumPy
        return plain(value.tolist())
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _output_error(path: Path, error: OSError) -> OutputError:
    reason = error.strerror or str(error) or type(error).__name__
    fixes = {
        errno.ENOSPC: "free some space, or write to another disk with -o",
        errno.EDQUOT: "free some of your quota, or write to another disk with -o",
        errno.EACCES: "change the permissions, or write elsewhere with -o",
        errno.EPERM: "change the permissions, or write elsewhere with -o",
        errno.EROFS: "this file system is read-only: write elsewhere with -o",
        errno.EISDIR: "give the name of a file, not of a folder",
        errno.ENOTDIR: "a part of this path is a file: give another path",
    }
    return OutputError(
        f"cannot write {path}: {reason[:1].lower()}{reason[1:]}",
        "nothing was left half-written; what was there before is unchanged",
        fixes.get(error.errno or 0, "check the disk and the path, or write elsewhere with -o"),
    )


def _flush(path: Path) -> None:
    """Wait until the file or the folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_with_sidecars(temporary: Path) -> None:
    try:
        leftovers = [p for p in temporary.parent.iterdir() if p.name.startswith(temporary.name)]
    except OSError:
        return
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)


def remove_run(folder: Path) -> None:
    """Remove the record of an earlier run and the files that it names inside this folder."""
    files = _files_of_run(folder)
    # The record first, so that an interrupt leaves no record without its files.
    for path in sorted(files, key=lambda path: path.name != RUN_FILE):
        path.unlink(missing_ok=True)


def _files_of_run(folder: Path) -> set[Path]:
    """The record of the run in a folder and the files inside that it names; empty without one."""
    record = folder / RUN_FILE
    if not record.is_file():
        return set()
    try:
        outputs = read_json(record).get("outputs", {})
    except (InputError, AttributeError):
        outputs = {}
    inside = folder.resolve()
    found = {record}
    for name in _names(outputs):
        path = folder / name
        if path.is_file() and path.resolve().is_relative_to(inside):
            found.add(path)
    return found


def _names(outputs: Any) -> Iterator[str]:
    """Every string in the nested `outputs` of a record."""
    if isinstance(outputs, str):
        yield outputs
    elif isinstance(outputs, Mapping):
        for item in outputs.values():
            yield from _names(item)
    elif isinstance(outputs, list):
        for item in outputs:
            yield from _names(item)
