"""Run folder in, one HTML page out."""

import base64
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from rsfuse.errors import InputError, RsfuseError
from rsfuse.report import wording
from rsfuse.report.classify_page import classify_page
from rsfuse.report.detect_page import detect_page
from rsfuse.report.match_page import match_page
from rsfuse.runs import RunRecord, atomic_path

if TYPE_CHECKING:
    from jinja2 import Environment

PAGE_NAME = "report.html"

# Task of a run -> what works out its page; the template has the name of the task.
PAGES: Mapping[str, Callable[..., Any]] = {
    "match": match_page,
    "detect": detect_page,
    "classify": classify_page,
}


def build_report(run_dir: str | Path, output: str | Path | None = None) -> Path:
    """Write the page of a run and return its path.

    The run folder itself is only read; the page is written atomically, so a failure leaves
    everything as it was.

    Args:
        run_dir: The folder that a command wrote.
        output: Where the page goes; by default `report.html` in the run folder.

    Raises:
        InputError: No run folder, or a run of a kind that has no page.
        OutputError: The page cannot be written.
        RsfuseError: Anything else that keeps the page from being made.
    """
    folder = Path(run_dir)
    record = RunRecord.load(folder)
    make_page = PAGES.get(record.task)
    if make_page is None:
        raise InputError(
            f"{folder} holds a {record.task} run",
            f"pages exist for runs of {', '.join(PAGES)}",
            "see rsfuse info",
        )
    path = folder / PAGE_NAME if output is None else Path(output)
    with explained_failure(folder):
        page = make_page(folder, record, link_prefix=link_prefix(path, folder))
        text = render(f"{record.task}.html.j2", page=page, title=page.title)
    write_page(path, text)
    return path


@contextmanager
def explained_failure(folder: Path) -> Iterator[None]:
    """Turn whatever goes wrong while a page is made into an `RsfuseError` that says so."""
    try:
        yield
    except RsfuseError:
        raise
    except Exception as error:
        raise RsfuseError(
            f"the page of {folder} cannot be made: {type(error).__name__}: {error}",
            "the run record does not hold what the page expects; its results are unchanged",
            "run the command again; if it stays, report it with the run.json",
        ) from error


def render(template: str, **context: Any) -> str:
    """The text of a page: template, style sheet and script in one file."""
    environment = _environment()
    style = _source("style.css")
    script = "\n".join(_source(f"{part}.js") for part in ("drawing", "viewer", "controls"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return environment.get_template(template).render(
        style=style, script=script, script_hash=f"sha256-{digest}", **context
    )


def write_page(path: Path, text: str) -> None:
    """Write the page atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def link_prefix(page: Path, folder: Path) -> str:
    """The path from the page to the run folder, as links need it."""
    relative = Path(os.path.relpath(folder.resolve(), page.resolve().parent)).as_posix()
    return "" if relative == "." else f"{relative}/"


def _source(name: str) -> str:
    return (resources.files("rsfuse.report") / "templates" / name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _environment() -> "Environment":
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise RsfuseError(
            "Jinja2 is not installed",
            "pages are made from its templates",
            'pip install "rsfuse[report]"',
        ) from error
    environment = Environment(
        loader=PackageLoader("rsfuse.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(badges=wording.BADGES)
    environment.filters.update(
        duration=wording.seconds, plain=wording.plain_value, words=wording.label, quoted=quote
    )
    return environment
