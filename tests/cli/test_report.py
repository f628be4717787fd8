"""`rsfuse report`: a page from the command line."""

import json
from pathlib import Path

import pytest

from rsfuse.cli.main import main
from rsfuse.runs import RunRecord


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    RunRecord(
        task="match",
        command="rsfuse match a.tif b.tif -o run",
        started="2026-11-25T02:00:00Z",
        seconds=0.2,
        inputs=({"role": "reference", "path": "a.tif"}, {"role": "query", "path": "b.tif"}),
        parameters={},
        status="refused",
        confidence=0.01,
        reasons=({"code": "no_overlap", "message": "The images share no ground."},),
    ).save(folder)
    return folder


def test_page_lands_in_the_run_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run)]) == 0
    assert str(run / "report.html") in capsys.readouterr().out
    assert "The images share no ground." in (run / "report.html").read_text("utf-8")


def test_page_lands_where_asked(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = run.parent / "page.html"
    assert main(["report", str(run), "-o", str(page), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(page)}
    assert page.is_file()


def test_folder_without_a_run_is_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "is not a run folder" in capsys.readouterr().err


def test_place_that_cannot_be_written_fails_in_three_lines(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(run), "-o", str(run)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 3
