"""How well detections agree with labels, by the rules of a named protocol."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rsfuse.detection.data import Dataset
from rsfuse.detection.metrics import (
    PROTOCOLS,
    THRESHOLDS,
    Answers,
    Scores,
    Truth,
    average_precision,
)
from rsfuse.detection.results import Detections
from rsfuse.errors import InputError
from rsfuse.runs import atomic_path, text_table, utc_now, write_json

Submission = dict[str, tuple[list[str], Any, Any]]


def truth_of(dataset: Dataset) -> Truth:
    """The objects of a data set as arrays."""
    samples = dataset.samples
    number = [np.full(len(s.objects), i, np.int64) for i, s in enumerate(samples)]
    return Truth(
        np.concatenate(number) if number else np.zeros(0, np.int64),
        np.concatenate([s.objects.corners for s in samples] or [np.zeros((0, 4, 2))]),
        np.concatenate([s.objects.labels for s in samples] or [np.zeros(0, np.int64)]),
        np.concatenate([s.objects.difficult for s in samples] or [np.zeros(0, np.int64)]),
    )


def answers_of(submission: Submission, dataset: Dataset) -> Answers:
    """Detections of a submission, numbered as the images and classes of a data set.

    Raises:
        InputError: A class or an image is not one of the data set; the error names it.
    """
    images = {sample.name: i for i, sample in enumerate(dataset.samples)}
    parts: list[tuple[Any, Any, Any, Any]] = []
    for name, (stems, scores, corners) in submission.items():
        if name not in dataset.classes:
            raise InputError(
                f"the results hold the class {name!r}",
                f"the data set has {', '.join(dataset.classes)}",
                "map the names, or leave this file out",
            )
        unknown = next((stem for stem in stems if stem not in images), None)
        if unknown is not None:
            raise InputError(
                f"the results hold the image {unknown!r}",
                f"the data set has {len(images)} images and not this one",
                "are these results of tiles? join them with rsfuse merge",
            )
        number = np.array([images[stem] for stem in stems], np.int64)
        label = np.full(len(stems), dataset.classes.index(name), np.int64)
        parts.append((number, corners, label, scores))
    if not parts:
        return Answers(
            np.zeros(0, np.int64), np.zeros((0, 4, 2)), np.zeros(0, np.int64), np.zeros(0)
        )
    one, two, three, four = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Answers(one, two, three, four)


def answers_of_images(images: Sequence[Detections], dataset: Dataset) -> Answers:
    """The same from detections of each image, by their names."""
    submission: Submission = {}
    for k, name in enumerate(dataset.classes):
        stems: list[str] = []
        scores, corners = [np.zeros(0)], [np.zeros((0, 4, 2))]
        for image in images:
            mine = np.flatnonzero(image.labels == k)
            stems += [image.name] * len(mine)
            scores.append(image.scores[mine])
            corners.append(image.corners[mine])
        submission[name] = (stems, np.concatenate(scores), np.concatenate(corners))
    return answers_of(submission, dataset)


def evaluate(dataset: Dataset, answers: Answers, protocol: str) -> Scores:
    """Score detections by a named protocol.

    Raises:
        InputError: An unknown protocol.
    """
    if protocol not in PROTOCOLS:
        raise InputError(
            f"protocol {protocol!r} is unknown",
            f"known are {', '.join(PROTOCOLS)}",
            "choose one of them",
        )
    return average_precision(
        truth_of(dataset), answers, dataset.classes, PROTOCOLS[protocol], THRESHOLDS
    )


def table_of(scores: Scores) -> list[list[str]]:
    """Scores per class as cells, headings first; the protocol is in the heading."""
    cells = [[scores.protocol.name, "objects", "AP50 %", "AP75 %", "AP50:95 %"]]
    at = [scores.thresholds.index(t) for t in (0.5, 0.75)]
    for k, name in enumerate(scores.classes):
        row = scores.ap[k]
        values = [row[at[0]], row[at[1]], row.mean()]
        cells.append([name, str(int(scores.positives[k])), *[_percent(v) for v in values]])
    means = [scores.mean(0.5), scores.mean(0.75), scores.mean()]
    cells.append(["mean", str(int(scores.positives.sum())), *[_percent(v) for v in means]])
    return cells


def _percent(value: float) -> str:
    return "-" if not np.isfinite(value) else f"{100 * value:.2f}"


def write_evaluation(folder: Path, scores: Scores, about: dict[str, Any]) -> None:
    """Write metrics.json, table.txt and figure.svg into a folder, atomically."""
    write_json(folder / "metrics.json", {**about, "started": utc_now(), **scores.to_dict()})
    with atomic_path(folder / "table.txt") as temporary:
        temporary.write_text(text_table(table_of(scores)), encoding="utf-8")
    with atomic_path(folder / "figure.svg") as temporary:
        plot_scores(scores).savefig(temporary, metadata={"Date": None})


def plot_scores(scores: Scores) -> Any:
    """Precision over recall of each class at the first threshold, as a matplotlib figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    for name, curve, ap in zip(scores.classes, scores.curves, scores.ap[:, 0], strict=True):
        if curve.positives:
            axes.plot(curve.recall, curve.precision, label=f"{name} {100 * ap:.1f}")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    axes.set_title(f"{scores.protocol.name}, IoU {scores.thresholds[0]:g}", fontsize=10)
    if any(curve.positives for curve in scores.curves):
        axes.legend(fontsize=8)
    return figure
