"""Pages of detect and classify runs, from run folders made by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rsfuse.report import build_report
from rsfuse.runs import RunRecord

SCENE = {
    "role": "scene",
    "path": "harbour.tif",
    "shape": [80, 120],
    "bands": ["red", "green", "blue"],
    "crs": "EPSG:32631",
    "transform": [2.0, 0, 500000, 0, -2.0, 4600000],
    "gsd_m": 2.0,
    "dtype": "uint8",
}


def picture(folder: Path, name: str, side: tuple[int, int] = (80, 120)) -> str:
    path = folder / "previews" / name
    path.parent.mkdir(exist_ok=True)
    values = np.random.default_rng(3).integers(0, 255, (*side, 3), np.uint8)
    Image.fromarray(values).save(path)
    return f"previews/{name}"


def save(folder: Path, **values: Any) -> Path:
    RunRecord(
        command="rsfuse ...", started="2026-01-01T00:00:00Z", seconds=1.5, status="ok", **values
    ).save(folder)
    return folder


@pytest.fixture
def detect_run(tmp_path: Path) -> Path:
    boxes = {
        "corners": [[10, 10, 30, 10, 30, 18, 10, 18], [50, 40, 60, 45, 55, 55, 45, 50]],
        "scores": [0.91, 0.35],
        "labels": [0, 1],
        "names": ["ship", "plane <i>"],
        "colors": ["#ff0000", "#00aaff"],
    }
    scene = picture(tmp_path, "scene.webp")
    (tmp_path / "previews" / "boxes.json").write_text(json.dumps(boxes))
    chip = {"file": picture(tmp_path, "chip.webp", (16, 16)), "label": "ship", "score": 0.91}
    (tmp_path / "detections.gpkg").write_bytes(b"x" * 2000)
    classes = [
        {"name": "ship", "color": "#ff0000", "objects": 1, "median_score": 0.91,
         "median_length_m": 40.0, "median_width_m": 16.0},
        {"name": "plane <i>", "color": "#00aaff", "objects": 1, "median_score": 0.35,
         "median_length_m": None, "median_width_m": None},
    ]  # fmt: skip
    return save(
        tmp_path,
        task="detect",
        inputs=(SCENE,),
        parameters={"score": 0.3, "nms": 0.1},
        result={"objects": 2, "classes": classes},
        diagnostics={"megapixels_per_second": 3.2, "stages": [{"name": "tiles", "seconds": 1.0}]},
        outputs={
            "detections": "detections.gpkg",
            "previews": {
                "scene": scene,
                "boxes": "previews/boxes.json",
                "most_certain": [chip],
                "least_certain": [],
            },
        },
    )


@pytest.fixture
def classify_run(tmp_path: Path) -> Path:
    previews = {name: picture(tmp_path, f"{name}.webp") for name in ("ms", "map", "confidence")}
    classes = [
        {"name": "water", "color": "#2266cc", "pixels": 6000, "share": 0.625, "area_m2": 24000.0,
         "mean_confidence": 0.97, "area_interval_m2": [20000.0, 28000.0]},
        {"name": "forest", "color": "#228833", "pixels": 3600, "share": 0.375, "area_m2": 14400.0,
         "mean_confidence": 0.81},
    ]  # fmt: skip
    accuracy = {
        "overall": 0.9,
        "kappa": 0.8,
        "mean_f1": 0.89,
        "classes": ["water", "forest"],
        "confusion": [[45, 5], [5, 45]],
    }
    return save(
        tmp_path,
        task="classify",
        inputs=({**SCENE, "role": "ms"}, {**SCENE, "role": "pan"}),
        parameters={"uncertain_below": 0.5},
        confidence=0.91,
        result={"classes": classes, "uncertain_share": 0.04, "accuracy": accuracy},
        outputs={"map": "map.tif", "previews": previews},
    )


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


def test_a_detect_run_without_objects(detect_run: Path) -> None:
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


def test_a_class_map_without_labels(classify_run: Path) -> None:
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
