"""Which fusion helps detection with a second image: CSTF's variants, from one detector held fixed.

    python benchmarks/pair_ablation.py configs/detect/simulated_pairs.toml --seeds 3 \
        --set steps=200 validate_every=200

Every variant starts from the same detector of one image, which is held, and sees the same data with
the same schedule; the seed changes the weights of the fusion and the samples. mAP50 (VOC12) on the
validation part by day and by night, with the second image aligned, moved, or of other ground.
"""

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detect_pairs import score
from rounds import print_table, run_rounds
from rsfuse.cli.train import settings_of
from rsfuse.detection.formats import read_dataset
from rsfuse.detection.network import NetworkDetector
from rsfuse.detection.train import CONFIG, train
from rsfuse.engine.config import read_config

# Name in the table -> what differs from the full model.
VARIANTS = {
    "CA\\|\\|SCA (full)": {},
    "none": {"fusion": "none"},
    "CA": {"fusion": "ca"},
    "SCA": {"fusion": "sca"},
    "CA+SCA": {"fusion": "ca+sca"},
    "no temporal step": {"temporal": False},
    "no keypoint bias": {"keypoint_bias": False},
}
# Name in the table -> second image, night.
CASES = {
    "aligned, day": ("aligned", False),
    "aligned, night": ("aligned", True),
    "moved, day": ("moved", False),
    "unrelated, day": ("unrelated", False),
}


def main() -> None:
    """Train every variant with every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--set", nargs="*", default=[], metavar="K=V")
    parser.add_argument("-o", "--output", type=Path, help="rows so far; an earlier run goes on")
    options = parser.parse_args()

    def run(changes: Mapping[str, Any]) -> dict[str, float]:
        config = read_config(options.config, CONFIG, {**settings_of(options.set), **changes})
        data = read_dataset(
            Path(config.data), format=config.format, split="val", classes=config.classes,
            partner=config.partner,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            bundle = train(config, Path(folder)).bundle
            detector = NetworkDetector.load(bundle, score=0.01)
            return {
                name: score(detector, bundle, data, night=night, partner=partner)
                for name, (partner, night) in CASES.items()
            }

    chosen = {name: VARIANTS[name] for name in options.variants}
    done = run_rounds(chosen, options.seeds, run, options.output)
    print_table(done, options.variants, list(CASES), digits=1)


if __name__ == "__main__":
    main()
