"""DAS2F beside a random forest and a small U-Net, one protocol, several seeds.

    python benchmarks/land_cover.py configs/classify/quickbird.toml --seeds 3
    python benchmarks/land_cover.py configs/classify/north_carolina.toml --seeds 3

Every model sees the same training labels of the same split; the seed changes the weights, the
samples and, where the split is drawn, the split. Printed are mean and spread over the seeds of the
scores on test labels that took no part in training or in the choice of the weights.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from rsfuse.classification.train import CONFIG, train
from rsfuse.cli.train import settings_of
from rsfuse.engine.config import read_config

MODELS = ("das2f", "unet", "forest")
MEASURES = ("overall_accuracy", "kappa", "mean_f1", "ece")


def main() -> None:
    """Train every model with every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--set", nargs="*", default=[], metavar="K=V")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {}
    for model in options.models:
        for seed in range(options.seeds):
            overrides = {**settings_of(options.set), "model": model, "seed": seed}
            config = read_config(options.config, CONFIG, overrides)
            begun = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                scores = train(config, Path(folder)).scores
            kept = {name: float(scores[name]) for name in MEASURES}
            found.setdefault(model, []).append(kept)
            seconds = time.perf_counter() - begun
            print(model, seed, {k: round(v, 4) for k, v in kept.items()}, f"{seconds:.0f} s",
                  flush=True)  # fmt: skip
    print("| model | " + " | ".join(MEASURES) + " |")
    print("| --- " * (len(MEASURES) + 1) + "|")
    for model, rows in found.items():
        cells = []
        for name in MEASURES:
            values = np.array([row[name] for row in rows])
            cells.append(f"{values.mean():.3f} ± {values.std(ddof=min(1, len(values) - 1)):.3f}")
        print(f"| {model} | " + " | ".join(cells) + " |")
    if options.output is not None:
        options.output.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
