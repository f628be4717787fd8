"""What limits the accuracy of a set of pairs: the same tie points, with parts of the truth given.

    python benchmarks/match_limits.py $RSFUSE_DATA/matching/s1s2

Pairs as in `rsfuse evaluate match` (those that lie on each other already are turned), the truth
corrected by its measured residual. Printed is the mean grid error of the transform that `match`
found, of a turn and shift through its tie points (the scale is given), and of a shift through them
(turn and scale are given); then of pairs left as they lie, by what was found and by a shift.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np

from rsfuse import match
from rsfuse.matching.data import read_pairs
from rsfuse.matching.metrics import grid_errors
from rsfuse.matching.protocols import load, true_cases
from rsfuse.ops.geometry2d import apply_matrix, fit_matrix

REACH_PX = 3.0


def robust(fit, first, second, weights):
    """A (3, 3) by reweighted least squares with Tukey's biweight."""
    gain = np.ones(len(first))
    for _ in range(15):
        matrix = fit(first, second, weights * gain + 1e-9)
        distance = np.hypot(*(apply_matrix(matrix, first) - second).T)
        near = distance[distance < REACH_PX]
        if near.size < 6:
            break
        cut = np.clip(4 * np.median(near) + 0.3, 0.8, REACH_PX)
        gain = np.where(distance < cut, (1 - (distance / cut) ** 2) ** 2, 0.0)
    return matrix


def shift_after(linear):
    """A fit of the shift after a given linear part."""

    def fit(first, second, weights):
        matrix = np.eye(3)
        matrix[:2, :2] = linear
        matrix[:2, 2] = np.average(second - first @ linear.T, axis=0, weights=weights)
        return matrix

    return fit


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--limit", type=int)
    options = parser.parse_args()
    errors: dict[str, list[float]] = {}
    for case in true_cases(read_pairs(options.dataset, limit=options.limit), 0, False):
        for moved in (True, False):
            scene = load(case, moved=moved)
            found = match(scene.image0, scene.image1, threads=1)
            points = found.tie_points
            data = points.xy0, points.xy1, points.probability
            linear = scene.best_truth[:2, :2]
            fits = {"found": lambda f=found: f.transform.apply}
            if moved:
                fits["scale given"] = lambda d=data: robust(partial(fit_matrix, "rigid"), *d)
            fits["turn and scale given"] = lambda d=data, m=linear: robust(shift_after(m), *d)
            for name, fit in fits.items():
                key = f"{'turned' if moved else 'as they lie'}: {name}"
                gap = np.inf
                if found.transform is not None:
                    gap = grid_errors(fit(), scene.best_truth, scene.shape0, scene.shape1).mean()
                errors.setdefault(key, []).append(float(gap))
    print(
        "| transform | pairs | < 1 px % | < 2 px % | median px |\n| --- | --- | --- | --- | --- |"
    )
    for key, values in errors.items():
        gaps = np.array(values)
        print(f"| {key} | {len(gaps)} | {100 * (gaps < 1).mean():.1f} | "
              f"{100 * (gaps < 2).mean():.1f} | {np.median(gaps):.2f} |")  # fmt: skip


if __name__ == "__main__":
    main()
