"""Which parts of CSTF help: the ablation of arXiv 2507.19118, and the baseline that it replaces.

    python benchmarks/cstf_ablation.py configs/match/cstf.toml --seeds 3 --set steps=1000

Every variant is trained on the same data with the same schedule; the seed changes the weights and
the samples. Printed are mean and spread over the seeds of what the training measures at its end, on
constructed motions of images, once with the operators of the training and once with some that no
training saw: the share of anchors found within 2 px, their median error, how well "no match" is
told (AUROC), and the share of patches that the coarse matching puts right.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rounds import parser_of, print_table, run_rounds
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
    parser = parser_of(__doc__, list(VARIANTS))
    options = parser.parse_args()

    def run(changes: Mapping[str, Any]) -> dict[str, float]:
        config = read_config(options.config, CONFIG, {**settings_of(options.set), **changes})
        with tempfile.TemporaryDirectory() as folder:
            return dict(train(config, Path(folder)).scores)

    chosen = {name: VARIANTS[name] for name in options.variants}
    done = run_rounds(chosen, options.seeds, run, options.output)
    print_table(done, options.variants, [f"{m}{kind}" for kind in ("", UNSEEN) for m in MEASURES])


if __name__ == "__main__":
    main()
