"""A run folder of `rsfuse match` as the contract describes it, made from nothing but arrays."""

import csv
import io
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rsfuse.runs import RunRecord

SIDE = 1024  # reference pixels
PREVIEW = 512  # preview pixels
GEOTRANSFORM = (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_400_000.0)
ROTATION_DEG, SCALE, SHIFT = 4.0, 1.03, (31.0, -22.0)


def transform() -> np.ndarray:
    """Reference pixels to query pixels."""
    angle = np.deg2rad(ROTATION_DEG)
    cos, sin = SCALE * np.cos(angle), SCALE * np.sin(angle)
    return np.array([[cos, -sin, SHIFT[0]], [sin, cos, SHIFT[1]], [0.0, 0.0, 1.0]])


def pictures(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The same fields and roads as an optical and as a radar picture, (H, W, 3) uint8."""
    seeds = rng.uniform(0, PREVIEW, (130, 2))
    y, x = np.mgrid[0:PREVIEW, 0:PREVIEW].astype(np.float32)
    wave = 9 * np.sin(y / 47) + 5 * np.sin(x / 31)
    distance = np.full((2, PREVIEW, PREVIEW), np.inf, np.float32)
    label = np.zeros((PREVIEW, PREVIEW), np.int64)
    for index, (sx, sy) in enumerate(seeds):
        away = np.hypot(x - sx + wave, y - sy)
        closer = away < distance[0]
        distance[1] = np.where(closer, distance[0], np.minimum(distance[1], away))
        label = np.where(closer, index, label)
        distance[0] = np.where(closer, away, distance[0])
    road = distance[1] - distance[0] < 3.0
    river = np.abs(y - 300 - 60 * np.sin(x / 90) - 0.2 * x) < 11
    palette = np.array(
        [[92, 116, 62], [138, 132, 84], [66, 92, 52], [166, 152, 108], [110, 128, 80]]
    )
    kind = rng.integers(0, len(palette), len(seeds))[label]
    optical = palette[kind] + rng.normal(0, 5, (PREVIEW, PREVIEW, 1))
    optical[road] = 178
    optical[river] = (46, 68, 84)
    level = np.array([0.5, 0.28, 0.85, 0.2, 0.42])[kind]
    level = np.where(road, 0.09, np.where(river, 0.03, level))
    radar = 150 * np.sqrt(level * rng.gamma(4.0, 0.25, level.shape))
    return (
        optical.clip(0, 255).astype(np.uint8),
        np.repeat(radar.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2),
    )


@lru_cache(maxsize=1)
def previews() -> dict[str, bytes]:
    """The three previews as WebP files."""
    optical, radar = pictures(np.random.default_rng(7))
    placed = Image.fromarray(radar).convert("RGBA")
    inverse = np.linalg.inv(transform())
    inverse[:2, 2] /= SIDE / PREVIEW
    moved = placed.transform(placed.size, Image.Transform.AFFINE, tuple(inverse[:2].ravel()))
    images = {"reference": Image.fromarray(optical), "before": moved, "after": placed}
    encoded = {}
    for name, image in images.items():
        buffer = io.BytesIO()
        image.save(buffer, "webp", quality=80)
        encoded[name] = buffer.getvalue()
    return encoded


def save_previews(folder: Path) -> None:
    (folder / "preview").mkdir(parents=True, exist_ok=True)
    for name, content in previews().items():
        (folder / "preview" / f"{name}.webp").write_bytes(content)


def tie_point_rows(rng: np.random.Generator, count: int) -> list[dict[str, Any]]:
    rows = []
    matrix = transform()
    for index in range(count):
        x, y = rng.uniform(20, SIDE - 20, 2)
        kept = rng.random() < 0.84
        residual = rng.normal(0, 0.42, 2) if kept else rng.normal(0, 6.0, 2)
        probability = rng.beta(14, 1.5) if kept else rng.beta(2, 4)
        found = matrix @ (x, y, 1.0)
        a, _, c, _, e, f = GEOTRANSFORM
        rows.append(
            {
                "id": index,
                "x_ref": f"{x:.3f}",
                "y_ref": f"{y:.3f}",
                "x_query": f"{found[0] + residual[0]:.3f}",
                "y_query": f"{found[1] + residual[1]:.3f}",
                "X_ref": f"{a * x + c:.3f}",
                "Y_ref": f"{e * y + f:.3f}",
                "X_query": "",
                "Y_query": "",
                "dx_px": f"{residual[0]:.4f}",
                "dy_px": f"{residual[1]:.4f}",
                "residual_px": f"{np.hypot(*residual):.4f}",
                "probability": f"{probability:.4f}",
                "sigma_px": "0.4",
                "score": "0.7",
                "kept": int(kept),
                "reason": "" if kept else "outlier",
                "held_out_px": f"{1.12 * np.hypot(*residual):.4f}" if kept else "",
                "origin": "reference",
            }
        )
    return rows


def write_tie_points(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


REASONS = {
    "ok": (),
    "weak": (
        {
            "code": "uneven_cover",
            "message": "The 61 kept tie points cover 31 % of the overlap; 50 % are needed for OK.",
            "numbers": {"kept": 61, "cover": 0.31, "needed": 0.5},
        },
    ),
    "refused": (
        {
            "code": "few_tie_points",
            "message": "7 tie points agree on one transform where at least 12 are needed.",
            "numbers": {"found": 7, "needed": 12},
        },
        {
            "code": "ambiguous_search",
            "message": "The best placement scores 1.02 times the second best; 1.15 is needed.",
            "numbers": {"ratio": 1.02, "needed": 1.15},
        },
    ),
}


def spread(values: np.ndarray) -> dict[str, float]:
    return {
        "median": float(np.median(values)),
        "rmse": float(np.sqrt(np.mean(values**2))),
        "p90": float(np.percentile(values, 90)),
    }


def make_match_run(
    folder: Path,
    status: str = "ok",
    *,
    crs: str | None = "EPSG:32631",
    count: int = 512,
    **changes: Any,
) -> Path:
    """Write a run folder; `changes` replace fields of its record."""
    rng = np.random.default_rng(7)
    folder.mkdir(parents=True, exist_ok=True)
    count = {"ok": count, "weak": 74, "refused": 40}[status]
    rows = tie_point_rows(rng, count)
    if status == "refused":
        for row in rows[7:]:
            row.update(kept=0, reason="outlier", held_out_px="")
    if crs is None:
        for row in rows:
            row.update(X_ref="", Y_ref="")
    write_tie_points(folder / "tie_points.csv", rows)
    save_previews(folder)
    refused = status == "refused"
    kept = np.array([float(row["residual_px"]) for row in rows if row["kept"]])
    size = 10.0 / SCALE
    result = {
        "model": "similarity",
        "transform_px": transform().tolist(),
        "rotation_deg": ROTATION_DEG,
        "scale": SCALE,
        "shift_px": list(SHIFT),
        "shift_m": [v * size for v in SHIFT] if crs else None,
        "tie_points": {"total": count, "kept": len(kept)},
        "residual_px": spread(kept),
        "held_out_px": None if refused else spread(kept * 1.12),
        "before_px": {"median": 37.1, "rmse": 41.3, "p90": 58.8},
        "before_m": {"median": 360.2, "rmse": 401.0, "p90": 570.9} if crs else None,
        "after_m": {k: v * size for k, v in spread(kept).items()} if crs else None,
        "standard_error_px": 0.31,
        "preview_scale": SIDE / PREVIEW,
    }
    (folder / "transform.json").write_text("{}")
    (folder / "registered.tif").write_bytes(b"II*\0" * 300_000)
    fields: dict[str, Any] = {
        "task": "match",
        "command": "rsfuse match sentinel2_red.tif sentinel1_vv.tif -o out",
        "started": "2026-11-25T02:00:00Z",
        "seconds": 1.93,
        "inputs": (
            {
                "role": "reference",
                "path": "scenes/sentinel2_red.tif",
                "shape": [SIDE, SIDE],
                "bands": ["red", "green", "blue"],
                "crs": crs,
                "gsd_m": 10.0 if crs else None,
                "dtype": "uint16",
                "notes": [],
            },
            {
                "role": "query",
                "path": "scenes/sentinel1_vv.tif",
                "shape": [1100, 1080],
                "bands": ["vv"],
                "crs": crs,
                "gsd_m": size if crs else None,
                "dtype": "float32",
                "notes": ["radiometry taken as amplitude"],
            },
        ),
        "parameters": {
            "method": "classic",
            "model": "auto",
            "max_shift_px": 256.0,
            "upright": False,
        },
        "status": status,
        "confidence": {"ok": 0.983, "weak": 0.71, "refused": 0.04}[status],
        "reasons": REASONS[status],
        "result": result,
        "diagnostics": {
            "stages": [
                {"name": "read", "seconds": 0.12},
                {"name": "structure", "seconds": 0.31},
                {"name": "global search", "seconds": 0.74},
                {"name": "tie points", "seconds": 0.52},
                {"name": "robust fit", "seconds": 0.05},
            ],
            "search_ratio": 1.84,
            "cover": 0.93,
        },
        "outputs": {
            "registered": None if refused else "registered.tif",
            "transform": "transform.json",
            "tie_points": ["tie_points.csv"],
            "displacement": None,
            "report": "report.html",
            "previews": {
                "reference": "preview/reference.webp",
                "before": "preview/before.webp",
                "after": None if refused else "preview/after.webp",
            },
        },
    }
    RunRecord(**{**fields, **changes}).save(folder)
    return folder


@pytest.fixture(scope="session")
def shared_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One run folder of each status, not to be changed by a test."""
    base = tmp_path_factory.mktemp("runs")
    return {status: make_match_run(base / status, status) for status in REASONS}


@pytest.fixture
def match_run(tmp_path: Path) -> Callable[..., Path]:
    """A function that makes a run folder: status first, fields of the record by name."""

    def make(status: str = "ok", **changes: Any) -> Path:
        return make_match_run(tmp_path / "run", status, **changes)

    return make


TASK_SCENE = {
    "role": "scene",
    "path": "harbour.tif",
    "shape": [80, 120],
    "bands": ["red", "green", "blue"],
    "crs": "EPSG:32631",
    "transform": [2.0, 0, 500000, 0, -2.0, 4600000],
    "gsd_m": 2.0,
    "dtype": "uint8",
}


def task_picture(folder: Path, name: str, side: tuple[int, int] = (80, 120)) -> str:
    path = folder / "previews" / name
    path.parent.mkdir(exist_ok=True)
    values = np.random.default_rng(3).integers(0, 255, (*side, 3), np.uint8)
    Image.fromarray(values).save(path)
    return f"previews/{name}"


def save_run(folder: Path, **values: Any) -> Path:
    """Write the record of a run that ended well, unless the values say otherwise."""
    usual = {"status": "ok", "command": "rsfuse ...", "started": "2026-01-01T00:00:00Z"}
    RunRecord(seconds=1.5, **{**usual, **values}).save(folder)
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
    scene = task_picture(tmp_path, "scene.webp")
    (tmp_path / "previews" / "boxes.json").write_text(json.dumps(boxes))
    chip = {"file": task_picture(tmp_path, "chip.webp", (16, 16)), "label": "ship", "score": 0.91}
    (tmp_path / "detections.gpkg").write_bytes(b"x" * 2000)
    classes = [
        {"name": "ship", "color": "#ff0000", "objects": 1, "median_score": 0.91,
         "median_length_m": 40.0, "median_width_m": 16.0},
        {"name": "plane <i>", "color": "#00aaff", "objects": 1, "median_score": 0.35,
         "median_length_m": None, "median_width_m": None},
    ]  # fmt: skip
    return save_run(
        tmp_path,
        task="detect",
        inputs=(TASK_SCENE,),
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
    previews = {
        name: task_picture(tmp_path, f"{name}.webp") for name in ("ms", "map", "confidence")
    }
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
    return save_run(
        tmp_path,
        task="classify",
        inputs=({**TASK_SCENE, "role": "ms"}, {**TASK_SCENE, "role": "pan"}),
        parameters={"uncertain_below": 0.5},
        confidence=0.91,
        result={"classes": classes, "uncertain_share": 0.04, "accuracy": accuracy},
        outputs={"map": "map.tif", "previews": previews},
    )


@pytest.fixture
def save() -> Callable[..., Path]:
    """`save_run`, for tests that change a run."""
    return save_run
