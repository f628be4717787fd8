"""Pages of detect and classify runs, from run folders made by hand."""

from collections.abc import Callable
from pathlib import Path

from rsfuse.report import build_report
from rsfuse.runs import RunRecord


def test_the_page_of_detections(detect_run: Path) -> None:
    text = build_report(detect_run).read_text()
    assert "2 objects were found with a score of at least 0.30." in text
    assert "plane &lt;i&gt;" in text
    assert "plane <i>" not in text.replace("\\u003c", "<").split("<script")[0]
    assert 'data-control="score"' in text
    assert "Most certain" in text
    assert "Least certain" not in text
    assert "detections.gpkg" in text
    assert "http://" not in text.replace("http://www.w3.org", "")


def test_the_page_of_a_class_map(classify_run: Path) -> None:
    text = build_report(classify_run).read_text()
    assert "the most common is water, 62 % of the mapped area" in text
    assert "90 % of the given labels agree" in text
    assert "2.40 ha" in text
    assert "2.00 ha to 2.80 ha" in text
    assert "Labels against the map" in text
    assert text.count('class="right"') == 2
    assert "missing" in text  # map.tif was never written


def test_a_detect_run_without_objects(detect_run: Path, save: Callable[..., Path]) -> None:
    record = RunRecord.load(detect_run)
    save(
        detect_run,
        task="detect",
        inputs=record.inputs,
        parameters={},
        result={"objects": 0, "classes": []},
    )
    text = build_report(detect_run).read_text()
    assert "No object was found." in text
    assert "no preview pictures" in text


def test_a_scene_that_was_refused_says_why(detect_run: Path, save: Callable[..., Path]) -> None:
    reason = {
        "code": "no_valid_pixels",
        "message": "The scene has no usable pixels.",
        "numbers": {},
    }
    record = RunRecord.load(detect_run)
    content = {"task": "detect", "inputs": record.inputs, "parameters": {}}
    save(detect_run, **content, status="refused", reasons=(reason,), result={"objects": 0})
    text = build_report(detect_run).read_text()
    assert "The scene has no usable pixels." in text
    assert "No object was found" not in text


def test_a_class_map_without_labels(classify_run: Path, save: Callable[..., Path]) -> None:
    record = RunRecord.load(classify_run)
    result = {key: value for key, value in record.result.items() if key != "accuracy"}
    save(
        classify_run,
        task="classify",
        inputs=record.inputs,
        parameters=record.parameters,
        result=result,
        outputs=record.outputs,
    )
    text = build_report(classify_run).read_text()
    assert "Labels against the map" not in text
    assert "Overall accuracy" not in text
