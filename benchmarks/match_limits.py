"""What limits the accuracy of a set of pairs: the same tie points, with parts of the truth given.

    python benchmarks/match_limits.py $RSFUSE_DATA/matching/s1s2

Pairs as in `rsfuse evaluate match` (those that lie on each other already are turned), the truth
corrected by its measured residual. Printed is the mean grid error of the transform that `match`
found, of a turn and shift through its tie points (the scale is given), and of a shift through them
(turn and scale are given); then of pairs left as they lie, by what was found and by a shift. Last
the distance between what both matchers found, where both lie within 5 px of the truth: what they
have in common is no noise of theirs.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np

from rsfuse import match
from rsfuse.matching.data import read_pairs
from rsfuse.matching.metrics import grid_errors, grid_nodes
from rsfuse.matching.protocols import load, true_cases
from rsfuse.ops.geometry2d import apply_matrix, fit_matrix

REACH_PX = 3.0
BOTH_RIGHT_PX = 5.0


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
    between: list[float] = []
    for case in true_cases(read_pairs(options.dataset, limit=options.limit), 0, False):
        for moved in (True, False):
            scene = load(case, moved=moved)
            shapes = scene.shape0, scene.shape1
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
                    gap = grid_errors(fit(), scene.best_truth, *shapes).mean()
                errors.setdefault(key, []).append(float(gap))
            if moved:
                other = match(scene.image0, scene.image1, threads=1, method="cstf")
                gaps = [np.inf]
                if found.transform is not None and other.transform is not None:
                    gaps = [
                        grid_errors(f.transform.apply, scene.best_truth, *shapes).mean()
                        for f in (found, other)
                    ]
                if max(gaps) < BOTH_RIGHT_PX:
                    nodes = grid_nodes(scene.best_truth, *shapes)
                    apart = other.transform.apply(nodes) - found.transform.apply(nodes)
                    between.append(float(np.hypot(*apart.T).mean()))
    print(
        "| transform | pairs | < 1 px % | < 2 px % | median px |\n| --- | --- | --- | --- | --- |"
    )
    for key, values in errors.items():
        gaps = np.array(values)
        print(f"| {key} | {len(gaps)} | {100 * (gaps < 1).mean():.1f} | "
              f"{100 * (gaps < 2).mean():.1f} | {np.median(gaps):.2f} |")  # fmt: skip
    print(f"\nBetween `classic` and `cstf`: {np.median(between):.2f} px in the middle of "
          f"{len(between)} pairs.")  # fmt: skip


if __name__ == "__main__":
    main()
