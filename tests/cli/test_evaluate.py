"""`rsfuse evaluate match`: the table, the JSON, the files, the exit codes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rsfuse.cli.main import main
from rsfuse.matching import evaluate as evaluation
from rsfuse.matching.protocols import PROTOCOLS, Answer


@pytest.fixture
def dataset(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Two pairs of one image with itself moved by 12 pixels."""
    folder = tmp_path / "set"
    folder.mkdir()
    entries = []
    for number in range(2):
        pixels = rng.integers(0, 256, (48, 48), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}_1.png")
        Image.fromarray(np.roll(pixels, 12, axis=1)).save(folder / f"{number}_2.png")
        entries.append(
            {
                "pair": number,
                "category": "Optical-SAR",
                "image1": f"{number}_1.png",
                "image2": f"{number}_2.png",
                "affine_1to2": [[1, 0, 12], [0, 1, 0]],
            }
        )
    (folder / "index.json").write_text(json.dumps(entries))
    return folder


def exact(image0: np.ndarray, image1: np.ndarray, **settings: object) -> Answer:
    transform = np.array([[1.0, 0.0, 12.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    points = np.random.default_rng(0).uniform(0, 36, (20, 2))
    return Answer(transform, points, points + np.array([12, 0]), np.full(20, 0.9), "ok", 0.9)


def broken(image0: np.ndarray, image1: np.ndarray, **settings: object) -> Answer:
    raise RuntimeError("out of luck")


def test_table_is_printed_on_stdout(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluation, "product_matcher", exact)
    assert main(["evaluate", "match", str(dataset)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    lines = {line.split("  ")[0]: line.split() for line in map(str.strip, printed.out.splitlines())}
    # Too wide for 120 columns, so measures are lines and modalities are columns.
    assert lines["modality"] == ["modality", "optical-sar", "all"]
    assert lines["pairs"] == ["pairs", "2", "2"]
    assert lines["mean counted px"][-2:] == ["0.00", "0.00"]


def test_json_holds_rows_and_no_records(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluation, "product_matcher", exact)
    assert main(["evaluate", "match", str(dataset), "--protocol", "trust", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["protocol"] == "trust"
    assert content["rows"][-1]["true_accept"]["value"] == 1.0
    assert "records" not in content


def test_output_folder_holds_metrics_table_and_figure(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "product_matcher", exact)
    out = tmp_path / "out"
    assert main(["evaluate", "match", str(dataset), "-o", str(out), "--limit", "1"]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["figure.svg", "metrics.json", "table.txt"]
    assert json.loads((out / "metrics.json").read_text())["parameters"]["limit"] == 1


def test_used_output_folder_is_refused_before_anything_is_measured(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "product_matcher", broken)
    out = tmp_path / "out"
    out.mkdir()
    (out / "metrics.json").write_text("{}")
    assert main(["evaluate", "match", str(dataset), "-o", str(out)]) == 2
    assert (out / "metrics.json").read_text() == "{}"


def test_exceptions_of_the_matcher_are_exit_code_three_with_the_table(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluation, "product_matcher", broken)
    assert main(["evaluate", "match", str(dataset)]) == 3
    printed = capsys.readouterr()
    assert "out of luck" in printed.err
    assert "refused %" in printed.out


def test_progress_as_json_lines_goes_to_stderr(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluation, "product_matcher", exact)
    assert main(["evaluate", "match", str(dataset), "--progress", "json"]) == 0
    last = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert (last["done"], last["total"]) == (2, 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--protocol", "trsut"], "did you mean --protocol trust"),
        (["--protocol", "loop", "--upright"], "no upright form"),
        (["--protocol", "sub", "--as-they-lie"], "asked of the protocol sub"),
        (["--upright", "--as-they-lie"], "together with --upright"),
    ],
)
def test_wrong_choice_is_a_usage_error(
    dataset: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(["evaluate", "match", str(dataset), *arguments]) == 2
    assert words in capsys.readouterr().err


def test_folder_without_index_is_three_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "match", str(tmp_path)]) == 2
    labels = [line.split(":")[0] for line in capsys.readouterr().err.splitlines()]
    assert labels == ["error", "why", "fix"]


def test_command_offers_the_protocols_that_exist() -> None:
    from rsfuse.cli.evaluate import PROTOCOLS as OFFERED

    assert set(OFFERED) == {*PROTOCOLS, "big"}
