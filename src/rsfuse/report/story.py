"""One page that tells a story over several runs, each checked against a known truth."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsfuse.report.build import PAGES, explained_failure, link_prefix, render, write_page
from rsfuse.report.parts import Tile, data_uri
from rsfuse.runs import RunRecord


@dataclass(frozen=True)
class Check:
    """A found value beside the true one, as text."""

    quantity: str
    truth: str
    found: str
    difference: str


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """One run and what is known about it from elsewhere.

    Attributes:
        run: The run folder.
        title: What it shows.
        text: A paragraph under the title.
        pictures: Pictures to show side by side: a caption and a PNG, JPEG or WebP file each.
        summary: One line with the outcome, for the list of chapters.
        tiles: Headline numbers of the comparison with the truth.
        checks: The comparison, row by row.
        columns: Headings of the comparison.
    """

    run: Path
    title: str
    text: str = ""
    pictures: tuple[tuple[str, Path], ...] = ()
    summary: str = ""
    tiles: tuple[Tile, ...] = ()
    checks: tuple[Check, ...] = ()
    columns: tuple[str, str, str] = ("true", "found", "difference")


@dataclass(frozen=True)
class Shown:
    """A chapter with the page of its run."""

    chapter: Chapter
    page: Any
    link: str
    pictures: tuple[tuple[str, str], ...]


def build_story(
    path: str | Path,
    chapters: Sequence[Chapter],
    *,
    title: str,
    lead: str,
    commands: Sequence[tuple[str, str]] = (),
    more: Sequence[Chapter] = (),
) -> Path:
    """Write the story as one self-contained HTML file and return its path.

    The first chapter is told in full, and so are those of `more`; the later ones open on demand.

    Args:
        path: The page.
        chapters: At least one.
        title: Headline of the page.
        lead: Paragraph below it.
        commands: What to try next: a sentence and a command each.
        more: Runs of other tasks, told after the first chapter.

    Raises:
        InputError: A chapter without a finished run.
        OutputError: The page cannot be written.
        RsfuseError: Anything else that keeps the page from being made.
    """
    path = Path(path)
    shown = tuple(_show(chapter, path) for chapter in chapters)
    told = tuple(_show(chapter, path) for chapter in more)
    with explained_failure(path.parent):
        text = render(
            "story.html.j2",
            title=title,
            lead=lead,
            first=shown[0],
            others=shown[1:],
            more=told,
            commands=commands,
        )
    write_page(path, text)
    return path


def _show(chapter: Chapter, path: Path) -> Shown:
    record = RunRecord.load(chapter.run)
    with explained_failure(chapter.run):
        prefix = link_prefix(path, chapter.run)
        page = PAGES[record.task](chapter.run, record, link_prefix=prefix)
        found = ((name, data_uri(at.parent, at.name)) for name, at in chapter.pictures)
        pictures = tuple((name, uri) for name, uri in found if uri is not None)
        report = record.outputs.get("report")
        exists = isinstance(report, str) and (chapter.run / report).is_file()
        link = f"{prefix}{report}" if exists else ""
    return Shown(chapter, page, link, pictures)
