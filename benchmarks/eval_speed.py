"""Scores of a set as large as DOTA's validation part, and suppression of many boxes.

    python benchmarks/eval_speed.py            458 images, 29 k objects, 220 k detections
    python benchmarks/eval_speed.py --quick    a tenth of it

The plain telling of the same rules (one polygon overlap at a time by shapely, every threshold anew)
runs on a share of the images in the same process; its time is scaled by the number of comparisons.
"""

import argparse
import time

import numpy as np
import shapely

from rsfuse.detection.metrics import (
    PROTOCOLS,
    THRESHOLDS,
    Answers,
    Truth,
    ap_of,
    average_precision,
)
from rsfuse.ops.boxes import canonical, corners_of
from rsfuse.ops.nms import rotated_nms

CLASSES = tuple(f"class {i}" for i in range(15))


def make_set(images: int, seed: int = 0) -> tuple[Truth, Answers]:
    """Objects in clusters, detections near them and at random."""
    random = np.random.default_rng(seed)
    counts = random.geometric(1 / 63, images)
    image = np.repeat(np.arange(images), counts)
    n = len(image)
    boxes = canonical(
        np.column_stack(
            [random.uniform(0, 2000, (n, 2)), random.lognormal(3, 0.5, (n, 2)),
             random.uniform(-1.5, 1.5, n)]
        )
    )  # fmt: skip
    labels = random.choice(15, n, p=np.arange(15, 0, -1) / 120)
    truth = Truth(image, corners_of(boxes), labels, (random.random(n) < 0.05).astype(np.int64))
    pick = random.integers(0, n, int(7.6 * n))
    moved = boxes[pick] + random.normal(0, 1, (len(pick), 5)) * [4, 4, 2, 2, 0.1]
    moved[:, 2:4] = np.maximum(moved[:, 2:4], 1)
    wrong = random.random(len(pick)) < 0.5
    moved[wrong, :2] = random.uniform(0, 2000, (int(wrong.sum()), 2))
    return truth, Answers(image[pick], corners_of(moved), labels[pick], random.random(len(pick)))


def plain(truth: Truth, answers: Answers) -> np.ndarray:
    """AP (K, T): the rules step by step, overlaps by shapely, each threshold from the start."""
    shapes = [shapely.Polygon(c) for c in truth.corners]
    table = np.full((len(CLASSES), len(THRESHOLDS)), np.nan)
    for k in range(len(CLASSES)):
        by_image: dict[int, list[int]] = {}
        for i in np.flatnonzero(truth.labels == k):
            by_image.setdefault(int(truth.image[i]), []).append(int(i))
        positives = int(((truth.labels == k) & (truth.difficult == 0)).sum())
        order = np.flatnonzero(answers.labels == k)
        order = order[np.argsort(-answers.scores[order], kind="stable")]
        for t, threshold in enumerate(THRESHOLDS):
            taken: set[int] = set()
            right, wrong = np.zeros(len(order)), np.zeros(len(order))
            for rank, d in enumerate(order):
                box = shapely.Polygon(answers.corners[d])
                best, overlap = -1, -1.0
                for o in by_image.get(int(answers.image[d]), ()):
                    common = box.intersection(shapes[o]).area
                    value = common / (box.area + shapes[o].area - common)
                    if value > overlap:
                        best, overlap = o, value
                if overlap <= threshold:
                    wrong[rank] = 1
                elif truth.difficult[best]:
                    continue
                elif best in taken:
                    wrong[rank] = 1
                else:
                    taken.add(best)
                    right[rank] = 1
            hits, misses = np.cumsum(right), np.cumsum(wrong)
            if positives:
                recall = hits / positives
                precision = hits / np.maximum(hits + misses, np.finfo(float).eps)
                table[k, t] = ap_of(recall, precision, "voc07")
    return table


def part(truth: Truth, answers: Answers, images: int) -> tuple[Truth, Answers]:
    """The first images."""
    a, b = truth.image < images, answers.image < images
    return (
        Truth(truth.image[a], truth.corners[a], truth.labels[a], truth.difficult[a]),
        Answers(answers.image[b], answers.corners[b], answers.labels[b], answers.scores[b]),
    )


def comparisons(truth: Truth, answers: Answers) -> int:
    """Pairs of a detection and an object of its image and class."""
    keys = truth.image * 15 + truth.labels
    counts = np.bincount(keys, minlength=int(answers.image.max() + 1) * 15)
    return int(counts[answers.image * 15 + answers.labels].sum())


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    images, share = (46, 4) if options.quick else (458, 8)
    truth, answers = make_set(images)
    protocol = PROTOCOLS["dota-1.0"]
    average_precision(*part(truth, answers, 2), CLASSES, protocol)  # compile
    begun = time.perf_counter()
    average_precision(truth, answers, CLASSES, protocol)
    ours = time.perf_counter() - begun
    few = part(truth, answers, share)
    begun = time.perf_counter()
    expected = plain(*few)
    slow = time.perf_counter() - begun
    slow *= comparisons(truth, answers) / comparisons(*few)
    found = average_precision(*few, CLASSES, protocol).ap
    gap = np.nanmax(np.abs(found - expected))
    print(f"{images} images, {len(truth.labels)} objects, {len(answers.labels)} detections")
    print(f"ten thresholds: {ours:.3f} s; plain rules {slow:.0f} s; ratio {slow / ours:.0f}")
    print(f"largest difference of an AP on {share} images: {gap:.1e}")
    count = 20_000 if options.quick else 200_000
    random = np.random.default_rng(1)
    side = np.sqrt(count) * 8
    boxes = np.column_stack(
        [random.uniform(0, side, (count, 2)), random.uniform(5, 40, count),
         random.uniform(5, 20, count), random.uniform(-1.5, 1.5, count)]
    )  # fmt: skip
    scores = random.random(count)
    begun = time.perf_counter()
    kept = rotated_nms(boxes, scores, 0.1)
    print(f"suppression of {count} boxes: {time.perf_counter() - begun:.3f} s, {len(kept)} kept")


if __name__ == "__main__":
    main()
