"""The story page: chapters with their own words, viewers and checks."""

from pathlib import Path

import pytest

from rsfuse.errors import InputError, OutputError
from rsfuse.report import Chapter, Check, Tile, build_report, build_story

EVIL = "<script>alert('x')</script>"


def test_first_chapter_is_told_in_full(shared_runs: dict[str, Path], tmp_path: Path) -> None:
    picture = shared_runs["ok"] / "preview" / "reference.webp"
    chapter = Chapter(
        run=shared_runs["ok"],
        title="Two sensors",
        text="One scene.",
        pictures=(("the optical one", picture), ("absent", tmp_path / "absent.webp")),
        tiles=(Tile("Mean error", "0.21 px", "2.1 m"),),
        checks=(Check("Rotation", "4.000°", "4.003°", "0.003°"),),
    )
    page = build_story(
        tmp_path / "index.html",
        [chapter],
        title="A headline",
        lead="A lead.",
        commands=[("Try this:", "rsfuse match a.tif b.tif -o out")],
    )
    text = page.read_text("utf-8")
    for part in ("A headline", "A lead.", "Two sensors", "One scene.", "0.21 px", "4.003°"):
        assert part in text
    assert "rsfuse match a.tif b.tif -o out" in text
    assert text.count("<figcaption>") == 1
    assert text.count("<canvas") == 1
    assert "Real pairs" not in text


def test_later_chapters_follow_in_order(shared_runs: dict[str, Path], tmp_path: Path) -> None:
    chapters = [
        Chapter(run=shared_runs["ok"], title="Simulated"),
        Chapter(run=shared_runs["weak"], title="Night", summary="1.3 px off"),
        Chapter(run=shared_runs["refused"], title="Depth"),
    ]
    text = build_story(tmp_path / "i.html", chapters, title="t", lead="l").read_text("utf-8")
    assert text.index("Real pairs") < text.index("Night") < text.index("1.3 px off")
    assert text.index("1.3 px off") < text.index("Depth")
    assert text.count("<canvas") == 3
    assert "at least 12 are needed" in text


def test_runs_with_a_page_are_linked(shared_runs: dict[str, Path], tmp_path: Path) -> None:
    build_report(shared_runs["ok"])
    (shared_runs["weak"] / "report.html").unlink(missing_ok=True)
    chapters = [Chapter(run=shared_runs[s], title=s) for s in ("ok", "weak")]
    page = build_story(tmp_path / "i.html", chapters, title="t", lead="l")
    text = page.read_text("utf-8")
    assert text.count("The full report of this run") == 1
    link = text.split("The full report")[0].rsplit('href="', 1)[1].split('"')[0]
    assert (page.parent / link).resolve() == (shared_runs["ok"] / "report.html").resolve()


def test_words_of_the_caller_are_escaped(shared_runs: dict[str, Path], tmp_path: Path) -> None:
    chapter = Chapter(
        run=shared_runs["ok"],
        title=EVIL,
        text=EVIL,
        tiles=(Tile(EVIL, EVIL, EVIL),),
        checks=(Check(EVIL, EVIL, EVIL, EVIL),),
    )
    page = build_story(
        tmp_path / "i.html", [chapter, chapter], title=EVIL, lead=EVIL, commands=[(EVIL, EVIL)]
    )
    assert "<script>alert" not in page.read_text("utf-8")


def test_chapter_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run folder"):
        build_story(tmp_path / "i.html", [Chapter(run=tmp_path, title="x")], title="t", lead="l")
    assert not (tmp_path / "i.html").exists()


def test_page_that_cannot_be_written_is_an_output_error(
    shared_runs: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(OutputError):
        build_story(tmp_path, [Chapter(run=shared_runs["ok"], title="x")], title="t", lead="l")
