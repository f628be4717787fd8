"""What commands print: results on stdout, everything else on stderr.

Results are a short table on a terminal and one JSON object with `--json`. Errors are three lines.
Progress is a bar with the time left on a terminal, JSON lines where a program reads it, or nothing.
"""

import json
import logging
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from rsfuse.errors import InputError, RsfuseError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

PROGRESS_MODES = ("bar", "json", "none")

# A progress line at most this often, and a bar only for work that lasts.
JSON_INTERVAL_S = 0.5


def console(*, stderr: bool = True) -> "Console":
    """A Rich console: stderr for words about the work, stdout for results.

    It does not wrap or colour when the stream is not a terminal, so that output can be piped.
    """
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    if stream.isatty():
        return Console(file=stream, highlight=False)
    return Console(file=stream, highlight=False, soft_wrap=True, no_color=True, width=120)


def emit(result: Mapping[str, Any], as_json: bool = False) -> None:
    """Print a result on stdout: one JSON object, or one line per key."""
    if as_json:
        from rsfuse.runs import plain

        sys.stdout.write(json.dumps(plain(result), ensure_ascii=False, allow_nan=False) + "\n")
        sys.stdout.flush()
        return
    print_rows({str(key).replace("_", " "): _readable(value) for key, value in result.items()})


def print_rows(rows: Mapping[str, str]) -> None:
    """Print one line per label on stdout, the texts below each other and never cut."""
    from rich.text import Text

    out = console(stderr=False)
    width = max(map(len, rows), default=0)
    for label, text in rows.items():
        line = Text.assemble((label.ljust(width), "bold"), "  ", " ".join(text.split()))
        out.print(line, soft_wrap=True)


def print_error(error: RsfuseError) -> None:
    """Three lines on stderr: what, why, the fix."""
    lines = [("error", error.what), ("why", error.why), ("fix", error.fix)]
    _print_lines([(label, text) for label, text in lines if text])


def print_unexpected(error: BaseException) -> None:
    """Three lines on stderr for an error that rsfuse did not foresee."""
    _print_lines(
        [
            ("error", f"unexpected error: {type(error).__name__}: {error}".replace("\n", " ")),
            ("why", "this is a fault of rsfuse or of a library, not of your input"),
            ("fix", "run again with -vv for the traceback and report it with `rsfuse doctor`"),
        ]
    )


def set_up_logging(*, quiet: bool = False, verbose: int = 0) -> None:
    """Send the library's log to stderr: warnings by default, errors with -q, more with -v."""
    level = logging.WARNING
    if quiet:
        level = logging.ERROR
    elif verbose:
        level = logging.INFO if verbose == 1 else logging.DEBUG
    logger = logging.getLogger("rsfuse")
    logger.setLevel(level)
    if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        logger.addHandler(_StderrHandler())


class _StderrHandler(logging.Handler):
    """Writes to the stderr of the moment, also after it was redirected."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{record.levelname.lower()}: {self.format(record)}\n")


class Reporter(Protocol):
    """What a loop tells about its progress."""

    def start(self, total: int | None, what: str) -> None:
        """Begin work of `total` steps (None where unknown)."""

    def advance(self, n: int = 1) -> None:
        """Report `n` more steps."""

    def finish(self) -> None:
        """End the work; also called after a failure."""


def progress_reporter(mode: str = "bar", *, quiet: bool = False) -> Reporter:
    """The reporter for `--progress`: a bar only where stderr is a terminal.

    Raises:
        InputError: An unknown mode.
    """
    if mode not in PROGRESS_MODES:
        raise InputError(
            f"--progress {mode} is unknown",
            f"it takes one of {', '.join(PROGRESS_MODES)}",
            "for example --progress none",
        )
    if mode == "json":
        return JsonProgress()
    if mode == "bar" and not quiet and sys.stderr.isatty():
        return BarProgress()
    return NoProgress()


class Counter:
    """A reporter for work that tells (done, total), such as `run_tiles` and `fit`."""

    def __init__(self, reporter: Reporter, what: str) -> None:
        self._reporter = reporter
        self._what = what
        self._seen: int | None = None

    def __enter__(self) -> "Counter":
        return self

    def __exit__(self, *_: object) -> None:
        self._reporter.finish()

    def __call__(self, done: int, total: int, *_: object) -> None:
        """Report that `done` of `total` steps are done."""
        if self._seen is None:
            self._reporter.start(total, self._what)
            self._seen = 0
        self._reporter.advance(done - self._seen)
        self._seen = done


class NoProgress:
    """Says nothing."""

    def start(self, total: int | None, what: str) -> None:
        """Begin work of `total` steps."""

    def advance(self, n: int = 1) -> None:
        """Report `n` more steps."""

    def finish(self) -> None:
        """End the work."""


class BarProgress:
    """A Rich bar with the time left, on stderr."""

    def __init__(self) -> None:
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def start(self, total: int | None, what: str) -> None:
        """Show a bar; a bar that is still shown ends first."""
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.finish()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console(),
            transient=True,
        )
        self._task = self._bar.add_task(what, total=total)
        self._bar.start()

    def advance(self, n: int = 1) -> None:
        """Move the bar by `n` steps."""
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, n)

    def finish(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None


class JsonProgress:
    """JSON lines on stderr: what, done, total, seconds, left_s."""

    def __init__(self) -> None:
        self._what = ""
        self._total: int | None = None
        self._done = 0
        self._began = self._last = 0.0
        self._active = False

    def start(self, total: int | None, what: str) -> None:
        """Write the first line; work that is still reported ends first."""
        self.finish()
        self._what, self._total, self._done = what, total, 0
        self._began = time.monotonic()
        self._active = True
        self._write()

    def advance(self, n: int = 1) -> None:
        """Count `n` steps, and write a line at most twice a second."""
        self._done += n
        if time.monotonic() - self._last >= JSON_INTERVAL_S:
            self._write()

    def finish(self) -> None:
        """Write the last line."""
        if self._active:
            self._write()
        self._active = False

    def _write(self) -> None:
        self._last = time.monotonic()
        seconds = self._last - self._began
        left = None
        if self._total and self._done:
            left = round(seconds * (self._total - self._done) / self._done, 1)
        line = {
            "event": "progress",
            "what": self._what,
            "done": self._done,
            "total": self._total,
            "seconds": round(seconds, 1),
            "left_s": left,
        }
        sys.stderr.write(json.dumps(line, ensure_ascii=False) + "\n")
        sys.stderr.flush()


def _print_lines(lines: list[tuple[str, str]]) -> None:
    from rich.text import Text

    out = console()
    for label, text in lines:
        style = "bold red" if label == "error" else "bold"
        line = " ".join(text.split())
        out.print(Text.assemble((f"{label}: ", style), line), soft_wrap=True)


def _readable(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_readable(item)}" for key, item in value.items()) or "–"
    if isinstance(value, list | tuple):
        return ", ".join(_readable(item) for item in value) or "–"
    return str(value)
