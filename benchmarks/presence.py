r"""Whether whole images tell that they lie on each other: true pairs beside strangers.

    python benchmarks/presence.py $RSFUSE_DATA/matching/srif $RSFUSE_DATA/matching/s1s2 \
        --scenes runs/pairs

Every registered pair of the sets, placed by its truth, and two strangers of its kind; the same of
simulated scenes by day and by night. Printed are quantiles of `standing_out` and, fitted to all
with both kinds counting alike, the weights of `trust.PRESENCE_WEIGHTS` and what they tell.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

from detect_pairs import read
from rsfuse.detection.augment import darkened
from rsfuse.detection.formats import read_dataset
from rsfuse.geo.raster import open_raster
from rsfuse.matching.data import read_pairs
from rsfuse.matching.overlay import correlate, views
from rsfuse.matching.pairs import stack_of_pair
from rsfuse.matching.reader import pair_reader

STRANGERS = 2
# Pairs of one optical image: their strangers are none.
SAME_GROUND = {"s1s2/Sentinel-2 / Sentinel-1 VH/130", "s1s2/Sentinel-2 / Sentinel-1 VH/142"}


def stands(first, second) -> float:
    """`standing_out` of the part that two images (C, H, W) have from their first pixel on."""
    h, w = (min(n) for n in zip(first.shape[1:], second.shape[1:], strict=True))
    sources = [open_raster(np.asarray(i[:, :h, :w], np.float32)) for i in (first, second)]
    pair, _, _ = pair_reader(*sources)
    return correlate(views(pair, pair.base)).standing_out


def registered(folder: Path, limit: int | None):
    """Kind -> (name, reference, query in place) of the pairs of a set."""
    kinds = defaultdict(list)
    for pair in read_pairs(folder, limit=limit):
        stack = stack_of_pair(pair)
        x, y = (-round(v) for v in stack.shifts[1])
        kinds[f"{pair.set} {pair.group}"].append(
            (pair.id, stack.layers[0], np.roll(stack.layers[1], (y, x), axis=(1, 2)))
        )
    return kinds


def simulated(folder: Path):
    """The same of scenes of the training part with a thermal image, by day and by night."""
    kinds = defaultdict(list)
    data = read_dataset(folder, format="simulated", split="train", partner="thermal")
    for number, sample in enumerate(data.samples):
        pan, thermal = read(sample.image).data, read(sample.partner).data
        low, high = np.percentile(pan, (0.5, 99.5))
        night = darkened((pan - low) / (high - low), np.random.default_rng(1000 + number))
        kinds["simulated, day"].append((sample.name, pan, thermal))
        kinds["simulated, night"].append((sample.name, night, thermal))
    return kinds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", type=Path, nargs="+")
    parser.add_argument("--scenes", type=Path)
    parser.add_argument("--limit", type=int, default=120, help="pairs of a set")
    options = parser.parse_args()
    kinds = {} if options.scenes is None else dict(simulated(options.scenes))
    for folder in options.sets:
        kinds |= registered(folder, options.limit)
    values, truth, outliers = [], [], []
    print("| pairs | number | 5 % | median | strangers | median | 99 % |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for kind, pairs in kinds.items():
        own = [stands(first, second) for _, first, second in pairs]
        others = {
            f"{name} with {pairs[(k + n) % len(pairs)][0]}": stands(
                first, pairs[(k + n) % len(pairs)][2]
            )
            for k, (name, first, _) in enumerate(pairs)
            for n in range(1, STRANGERS + 1)
            if not {name, pairs[(k + n) % len(pairs)][0]} <= SAME_GROUND
        }
        values += [*own, *others.values()]
        truth += [True] * len(own) + [False] * len(others)
        outliers += sorted((round(v, 1), name) for name, v in others.items())
        low, middle = np.quantile(own, (0.05, 0.5))
        stranger, high = np.quantile(list(others.values()), (0.5, 0.99))
        print(f"| {kind} | {len(own)} | {low:.1f} | {middle:.1f} | {len(others)} | "
              f"{stranger:.1f} | {high:.1f} |", flush=True)  # fmt: skip
    z, right = np.array(values), np.array(truth)
    alike = np.where(right, 0.5 / right.sum(), 0.5 / (~right).sum())

    def loss(weights):
        logit = weights[0] + weights[1] * z
        return (alike * np.logaddexp(0, np.where(right, -logit, logit))).sum()

    level, slope = minimize(loss, [0.0, 1.0]).x
    even = -level / slope
    print(f"weights {level:.3f}, {slope:.3f}: even odds at {even:.2f}")
    print(f"above: {100 * (z[right] > even).mean():.1f} % of {right.sum()} true pairs, "
          f"{(z[~right] > even).sum()} of {(~right).sum()} strangers")  # fmt: skip
    print("strangers that stand out most:", sorted(outliers)[-5:])


if __name__ == "__main__":
    main()
