"""How well a class map agrees with labels: numbers, a table and a figure."""

from pathlib import Path
from typing import Any

import numpy as np

from rsfuse.classification import metrics
from rsfuse.classification.labels import read_labels
from rsfuse.classification.results import ClassMap
from rsfuse.errors import GridError, InputError
from rsfuse.geo.grid import gsd_m, same_grid
from rsfuse.geo.raster import open_raster
from rsfuse.runs import atomic_path, text_table, utc_now, write_json

# Side of the blocks that are drawn whole for the intervals, in map pixels.
BOOTSTRAP_BLOCK = 64


def evaluate_map(
    path: str | Path,
    labels: str | Path,
    *,
    confidence: str | Path | None = None,
    class_column: str = "class",
    block: int = BOOTSTRAP_BLOCK,
) -> dict[str, Any]:
    """Measure a class map with labels.

    Args:
        path: A map that `rsfuse classify` wrote.
        labels: Raster or polygons; classes are matched by name.
        confidence: The confidence of the map, for its calibration.
        class_column: Column of polygons that holds the class.
        block: Side of the blocks of the bootstrap, in map pixels.

    Returns:
        Accuracies with 95 % intervals, confusion matrix, calibration, and areas corrected for the
        errors of the map, with 95 % intervals, where the map has a CRS.

    Raises:
        InputError: A class of the labels is not one of the map, or nothing overlaps.
    """
    found = ClassMap.open(path, confidence)
    with open_raster(path) as source:
        raster = source.read(bands=[1])
        listed = np.array(sorted(source.class_names), np.int64)
        pixel = gsd_m(source.geobox) ** 2 if source.is_georeferenced else None
        grid = source.geobox
    truth = read_labels(labels, grid, column=class_column).as_classes(found.classes, str(labels))
    use = (truth.numbers >= 0) & raster.valid
    if not use.any():
        raise InputError(
            f"no label of {labels} lies on a mapped pixel of {path}",
            "labels and map must overlap",
            "check both with rsfuse info",
        )
    whole = np.where(raster.valid, raster.data[0], listed[0]).astype(np.int64)
    unnamed = np.setdiff1d(whole, listed)
    if len(unnamed):
        raise InputError(
            f"{path} holds the number {unnamed[0]}, which has no name",
            f"its tag class_names names {', '.join(str(v) for v in listed)}",
            "give a map that rsfuse classify wrote",
        )
    numbers = np.searchsorted(listed, whole)
    rows, columns = np.nonzero(use)
    percent = None
    if confidence is not None:
        with open_raster(confidence) as source:
            if source.shape != raster.shape or not same_grid(source.geobox, grid):
                raise GridError(
                    f"{confidence} is {source.shape} pixels and {path} {raster.shape}",
                    "confidence and map must lie on one grid",
                    "give the confidence that was written with this map",
                )
            percent = source.read(bands=[1]).data[0][use].astype(np.float64) / 100.0
    names = [item.name for item in found.classes]
    answers = numbers[use]
    scores = metrics.summary(
        truth.numbers[use],
        answers,
        names,
        blocks=(rows // block) * (raster.shape[1] // block + 1) + columns // block,
        confidence=percent,
    )
    if pixel is not None:
        mapped = np.bincount(numbers[raster.valid], minlength=len(names))
        total = float(mapped.sum() * pixel)
        estimate = metrics.estimate_areas(np.array(scores["confusion"]), (mapped * pixel).tolist())
        scores["areas_m2"] = {
            name: {
                "mapped": float(mapped[i] * pixel),
                "estimated": float(estimate.share[i] * total),
                "interval": interval,
            }
            for i, (name, interval) in enumerate(zip(names, estimate.interval(total), strict=True))
        }
    return scores


def table_of(scores: dict[str, Any]) -> list[list[str]]:
    """The numbers per class as cells, headings first."""
    cells = [["class", "labels", "found %", "correct %", "F1 %"]]
    for i, name in enumerate(scores["classes"]):
        count = sum(scores["confusion"][i])
        shares = [scores[k][i] for k in ("producers_accuracy", "users_accuracy", "f1")]
        cells.append([name, str(count), *[_percent(v) for v in shares]])
    return cells


def _percent(value: float | None) -> str:
    return "-" if value is None or not np.isfinite(value) else f"{100 * value:.1f}"


def write_evaluation(folder: Path, scores: dict[str, Any], about: dict[str, Any]) -> None:
    """Write metrics.json, table.txt and figure.svg into a folder, atomically.

    Args:
        folder: Where to.
        scores: Of `evaluate_map`.
        about: What was measured, put on top of metrics.json.
    """
    write_json(folder / "metrics.json", {**about, "started": utc_now(), **scores})
    with atomic_path(folder / "table.txt") as temporary:
        temporary.write_text(text_table(table_of(scores)), encoding="utf-8")
    figure = plot_scores(scores)
    with atomic_path(folder / "figure.svg") as temporary:
        figure.savefig(temporary, metadata={"Date": None})


def plot_scores(scores: dict[str, Any]) -> Any:
    """Confusion matrix and, where confidence is known, reliability, as a matplotlib figure."""
    from matplotlib.figure import Figure

    matrix = np.array(scores["confusion"], np.float64)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    names = scores["classes"]
    known = "reliability" in scores
    figure = Figure(figsize=(11 if known else 6, 5), layout="constrained")
    axes = figure.add_subplot(1, 2 if known else 1, 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i in range(len(names)):
        for j in range(len(names)):
            if matrix[i, j]:
                colour = "white" if share[i, j] > 0.5 else "black"
                axes.text(j, i, f"{matrix[i, j]:.0f}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("map")
    axes.set_ylabel("labels")
    axes.set_title(f"overall accuracy {100 * scores['overall_accuracy']:.1f} %")
    if known:
        axes = figure.add_subplot(1, 2, 2)
        rows = scores["reliability"]
        axes.plot([0, 1], [0, 1], color="0.7")
        axes.plot([r["confidence"] for r in rows], [r["right"] for r in rows], "o-")
        axes.set_xlabel("confidence")
        axes.set_ylabel("share right")
        axes.set_title(f"ECE {scores['ece']:.3f}")
    return figure


__all__ = ["evaluate_map", "plot_scores", "table_of", "write_evaluation"]
