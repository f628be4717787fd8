"""What commands print: results on stdout, progress and words on stderr."""

import json
import sys

import numpy as np
import pytest

from rsfuse.cli.output import BarProgress, NoProgress, emit, progress_reporter
from rsfuse.errors import InputError


def test_json_result_is_one_line_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"shift_px": np.array([1.5, np.nan]), "model": "affine"}, as_json=True)
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert json.loads(out) == {"shift_px": [1.5, None], "model": "affine"}
    assert err == ""


def test_plain_result_is_one_line_per_key(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"gsd_m": 10.0, "crs": None, "bands": ["red", "nir"], "notes": []})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["gsd", "m", "10"],
        ["crs", "–"],
        ["bands", "red,", "nir"],
        ["notes", "–"],
    ]


def test_long_value_is_not_wrapped_when_piped(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"path": "x" * 400})
    assert "x" * 400 in capsys.readouterr().out


def test_json_progress_counts_to_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = progress_reporter("json")
    reporter.start(3, "tiles")
    for _ in range(3):
        reporter.advance()
    reporter.finish()
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in err.splitlines()]
    assert out == ""
    assert lines[0]["done"] == 0
    assert (lines[-1]["done"], lines[-1]["total"], lines[-1]["left_s"]) == (3, 3, 0.0)
    assert {line["what"] for line in lines} == {"tiles"}


def test_finishing_twice_writes_once(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = progress_reporter("json")
    reporter.start(1, "tiles")
    reporter.finish()
    reporter.finish()
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_bar_is_silent_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = progress_reporter("bar")
    assert isinstance(reporter, NoProgress)
    reporter.start(1, "tiles")
    reporter.advance()
    reporter.finish()
    assert capsys.readouterr() == ("", "")


def test_bar_shows_the_work_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    reporter = progress_reporter("bar")
    assert isinstance(reporter, BarProgress)
    reporter.start(2, "reading tiles")
    reporter.advance(2)
    reporter.finish()
    out, err = capsys.readouterr()
    assert out == ""
    assert "reading tiles" in err


def test_unknown_progress_mode_is_refused() -> None:
    with pytest.raises(InputError, match="--progress dots"):
        progress_reporter("dots")
