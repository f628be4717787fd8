"""Which parts of CSTF help: the ablation of arXiv 2507.19118, and the baseline that it replaces.

    python benchmarks/cstf_ablation.py configs/match/cstf.toml --seeds 3 --set steps=1000

Every variant is trained on the same data with the same schedule; the seed changes the weights and
the samples. Printed are mean and spread over the seeds of what the training measures at its end, on
constructed motions of images, once with the operators of the training and once with some that no
training saw: the share of anchors found within 2 px, their median error, how well "no match" is
told (AUROC), and the share of patches that the coarse matching puts right.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from rsfuse.cli.train import settings_of
from rsfuse.engine.config import read_config
from rsfuse.matching.train import CONFIG, train

# Name in the table -> what differs from the full model.
VARIANTS = {
    "CA\\|\\|SCA (full)": {},
    "none": {"fusion": "none"},
    "CA": {"fusion": "ca"},
    "SCA": {"fusion": "sca"},
    "CA+SCA": {"fusion": "ca+sca"},
    "patch 32": {"patch": 32},
    "patch 64": {"patch": 64},
    "no temporal step": {"temporal": False},
    "no keypoint bias": {"keypoint_bias": False},
    "FC head (Siamese)": {"head": "fc"},
}
MEASURES = ("within_2px", "median_px", "auroc", "patches")
UNSEEN = ", unseen operators"


def main() -> None:
    """Train every variant with every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--set", nargs="*", default=[], metavar="K=V")
    parser.add_argument("-o", "--output", type=Path, help="rows so far; an earlier run goes on")
    options = parser.parse_args()
    done: dict[str, dict[str, float]] = {}
    if options.output is not None and options.output.is_file():
        done = json.loads(options.output.read_text())
    for seed in range(options.seeds):  # so that an early end leaves whole rounds
        for name in options.variants:
            key = f"{name} #{seed}"
            if key in done:
                continue
            overrides = {**settings_of(options.set), **VARIANTS[name], "seed": seed}
            config = read_config(options.config, CONFIG, overrides)
            begun = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                scores = dict(train(config, Path(folder)).scores)
            done[key] = {k: float(v) for k, v in scores.items()}
            print(key, {k: round(v, 3) for k, v in done[key].items()},
                  f"{time.perf_counter() - begun:.0f} s", flush=True)  # fmt: skip
            if options.output is not None:
                options.output.write_text(json.dumps(done, indent=2))
    heads = [f"{m}{kind}" for kind in ("", UNSEEN) for m in MEASURES]
    print("| variant | " + " | ".join(heads) + " |")
    print("| --- " * (len(heads) + 1) + "|")
    for name in options.variants:
        rows = [row for key, row in done.items() if key.rsplit(" #", 1)[0] == name]
        cells = []
        for head in heads:
            values = np.array([row[head] for row in rows])
            cells.append(f"{values.mean():.3f} ± {values.std(ddof=min(1, len(values) - 1)):.3f}")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
