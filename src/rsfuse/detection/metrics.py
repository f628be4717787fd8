"""Average precision of oriented boxes, by the rules of the DOTA devkit and its relatives.

For one class: detections of all images are taken by falling score (stable, in the order given).
Each is compared with all objects of its image and class, difficult and taken ones too; the first
with the largest IoU is its object. If that IoU is greater than the threshold, a difficult object
makes the detection count as nothing, a free one makes it right and is taken, a taken one makes it
wrong; else it is wrong. Overlaps are computed once and serve every threshold.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from numba import njit

from rsfuse.errors import InputError
from rsfuse.ops.polygons import quad_iou, repaired

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Rule = Literal["voc07", "voc12"]

# COCO's ten thresholds, as the decimal numbers that they are meant to be.
THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))


@dataclass(frozen=True)
class Protocol:
    """How a score is counted.

    Attributes:
        name: As printed beside every number.
        rule: "voc07" is the mean precision at eleven recalls, "voc12" the area under the curve.
        difficult: "ignored" as DOTA 1.0, or "counted" as DOTA 1.5.
        strict: Whether an IoU must be greater than the threshold, or at least as large.
    """

    name: str
    rule: Rule
    difficult: Literal["ignored", "counted"] = "ignored"
    strict: bool = True


PROTOCOLS: Mapping[str, Protocol] = {
    "dota-1.0": Protocol("DOTA devkit 1.0: VOC07, difficult ignored", "voc07"),
    "dota-1.5": Protocol("DOTA devkit 1.5: VOC07, difficult counted", "voc07", "counted"),
    "voc12": Protocol("VOC12, difficult ignored", "voc12"),
    "hrsc-07": Protocol("HRSC2016: VOC07, difficult ignored", "voc07"),
    "hrsc-12": Protocol("HRSC2016: VOC12, difficult ignored", "voc12"),
}


@dataclass(frozen=True, eq=False)
class Truth:
    """The objects of all images.

    Attributes:
        image: (G,) number of the image.
        corners: (G, 4, 2).
        labels: (G,).
        difficult: (G,) not 0 where difficult.
    """

    image: Ints
    corners: Floats
    labels: Ints
    difficult: Ints


@dataclass(frozen=True, eq=False)
class Answers:
    """The detections of all images.

    Attributes:
        image: (D,) number of the image.
        corners: (D, 4, 2).
        labels: (D,).
        scores: (D,).
    """

    image: Ints
    corners: Floats
    labels: Ints
    scores: Floats


@dataclass(frozen=True, eq=False)
class Curve:
    """Precision over recall of one class at one threshold, by falling score.

    Attributes:
        recall: (D,).
        precision: (D,).
        scores: (D,).
        positives: Objects that count.
    """

    recall: Floats
    precision: Floats
    scores: Floats
    positives: int


@dataclass(frozen=True, eq=False)
class Scores:
    """Average precision of every class at every threshold.

    Attributes:
        protocol: How it was counted.
        classes: Names.
        thresholds: IoU.
        ap: (K, T); NaN for classes without objects, which no mean includes.
        positives: (K,) objects that count.
        curves: Per class, the curve at the first threshold.
        repaired: Quadrilaterals that crossed themselves and were put in order.
    """

    protocol: Protocol
    classes: tuple[str, ...]
    thresholds: tuple[float, ...]
    ap: Floats
    positives: Ints
    curves: tuple[Curve, ...]
    repaired: int = 0

    def mean(self, threshold: float | None = None) -> float:
        """Mean over classes with objects, at one threshold or over all; NaN without any."""
        known = self.positives > 0
        if not known.any():
            return float("nan")
        if threshold is None:
            return float(self.ap[known].mean())
        return float(self.ap[known, self.thresholds.index(threshold)].mean())

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, as stored and printed."""
        entry: dict[str, Any] = {"protocol": self.protocol.name}
        for threshold, name in ((0.5, "map50"), (0.75, "map75")):
            if threshold in self.thresholds:
                entry[name] = self.mean(threshold)
        if self.thresholds == THRESHOLDS:
            entry["map50_95"] = self.mean()
        entry["classes"] = {
            name: {
                "positives": int(self.positives[k]),
                **{f"ap{round(100 * t)}": float(self.ap[k, i]) for i, t in self._shown()},
            }
            for k, name in enumerate(self.classes)
        }
        return entry

    def _shown(self) -> list[tuple[int, float]]:
        return [(i, t) for i, t in enumerate(self.thresholds) if t in (0.5, 0.75)]


def average_precision(
    truth: Truth,
    answers: Answers,
    classes: Sequence[str],
    protocol: Protocol,
    thresholds: Sequence[float] = THRESHOLDS,
) -> Scores:
    """Score detections against objects.

    Args:
        truth: The objects.
        answers: The detections.
        classes: Names of the classes.
        protocol: How to count, see `PROTOCOLS`.
        thresholds: IoU from which a detection may be right.

    Raises:
        InputError: A number is not finite.
    """
    for name, values in (("object", truth.corners), ("detection", answers.corners)):
        if not np.isfinite(values).all():
            raise InputError(
                f"a corner of an {name} is not a finite number",
                "scores need the corners of every box",
                "run rsfuse validate on the data set",
            )
    objects, fixed = repaired(truth.corners)
    boxes, fixed_too = repaired(answers.corners)
    counts = protocol.difficult == "ignored"
    ap = np.full((len(classes), len(thresholds)), np.nan)
    positives = np.zeros(len(classes), np.int64)
    curves = []
    levels = np.asarray(thresholds, np.float64)
    for k in range(len(classes)):
        mine = np.flatnonzero(truth.labels == k)
        mine = mine[np.argsort(truth.image[mine], kind="stable")]
        difficult = (truth.difficult[mine] != 0) & counts
        positives[k] = int((~difficult).sum())
        theirs = np.flatnonzero(answers.labels == k)
        theirs = theirs[np.argsort(-answers.scores[theirs], kind="stable")]
        best, overlap = _best_objects(
            objects[mine], truth.image[mine], boxes[theirs], answers.image[theirs]
        )
        right, wrong = _judge(best, overlap, difficult, levels, protocol.strict)
        for t in range(len(levels)):
            recall, precision = _curve(right[t], wrong[t], int(positives[k]))
            if not t:
                scores = answers.scores[theirs]
                curves.append(Curve(recall, precision, scores, int(positives[k])))
            if positives[k]:
                ap[k, t] = ap_of(recall, precision, protocol.rule)
    return Scores(
        protocol,
        tuple(classes),
        tuple(float(t) for t in thresholds),
        ap,
        positives,
        tuple(curves),
        fixed + fixed_too,
    )


def _best_objects(
    objects: Floats, object_image: Ints, boxes: Floats, box_image: Ints
) -> tuple[Ints, Floats]:
    """For each box the first object of its image with the largest IoU (-1: none), and that IoU.

    Objects come sorted by image.
    """
    start = np.searchsorted(object_image, box_image, "left")
    stop = np.searchsorted(object_image, box_image, "right")
    best = np.full(len(boxes), -1, np.int64)
    overlap = np.full(len(boxes), -1.0)
    _search(np.ascontiguousarray(objects), np.ascontiguousarray(boxes), start, stop, best, overlap)
    return best, overlap


@njit(cache=True, nogil=True)
def _search(
    objects: Floats, boxes: Floats, start: Ints, stop: Ints, best: Ints, overlap: Floats
) -> None:
    work = np.zeros((8, 16, 2))
    low = np.zeros((len(objects), 2))
    high = np.zeros((len(objects), 2))
    for j in range(len(objects)):
        for axis in range(2):
            low[j, axis] = objects[j, :, axis].min()
            high[j, axis] = objects[j, :, axis].max()
    for i in range(len(boxes)):
        x0, x1 = boxes[i, :, 0].min(), boxes[i, :, 0].max()
        y0, y1 = boxes[i, :, 1].min(), boxes[i, :, 1].max()
        for j in range(start[i], stop[i]):
            value = 0.0
            if x0 < high[j, 0] and low[j, 0] < x1 and y0 < high[j, 1] and low[j, 1] < y1:
                value = quad_iou(boxes[i], objects[j], work)
            if value > overlap[i]:
                overlap[i], best[i] = value, j


@njit(cache=True, nogil=True)
def _judge(
    best: Ints,
    overlap: Floats,
    difficult: npt.NDArray[np.bool_],
    thresholds: Floats,
    strict: bool,
) -> Any:
    """Right and wrong (T, D) of detections in the order of their scores."""
    count = len(best)
    right = np.zeros((len(thresholds), count), np.bool_)
    wrong = np.zeros((len(thresholds), count), np.bool_)
    for t in range(len(thresholds)):
        taken = np.zeros(len(difficult), np.bool_)
        for i in range(count):
            enough = overlap[i] > thresholds[t] or (not strict and overlap[i] == thresholds[t])
            if best[i] < 0 or not enough:
                wrong[t, i] = True
            elif difficult[best[i]]:
                continue
            elif taken[best[i]]:
                wrong[t, i] = True
            else:
                taken[best[i]] = True
                right[t, i] = True
    return right, wrong


def _curve(right: Any, wrong: Any, positives: int) -> tuple[Floats, Floats]:
    hits, misses = np.cumsum(right), np.cumsum(wrong)
    recall = hits / max(positives, 1)
    precision = hits / np.maximum(hits + misses, np.finfo(np.float64).eps)
    return recall.astype(np.float64), precision


def ap_of(recall: Floats, precision: Floats, rule: Rule) -> float:
    """Average precision of a curve.

    VOC07 takes the recalls of arange(0, 1.1, 0.1) as they are in floating point: three of them
    lie a last digit above the decimal number, so a recall of exactly 0.3 does not reach the fourth.
    """
    if not len(recall):
        return 0.0
    if rule == "voc07":
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        total = 0.0
        for level in np.arange(0.0, 1.1, 0.1):
            at = int(np.searchsorted(recall, level, "left"))
            total += (envelope[at] if at < len(recall) else 0.0) / 11.0
        return float(total)
    ends = np.concatenate([[0.0], recall, [1.0]])
    heights = np.concatenate([[0.0], precision, [0.0]])
    envelope = np.maximum.accumulate(heights[::-1])[::-1]
    steps = np.flatnonzero(ends[1:] != ends[:-1])
    return float(((ends[steps + 1] - ends[steps]) * envelope[steps + 1]).sum())
