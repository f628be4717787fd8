"""Which fusion helps detection with a second image: the variants of the CSTF block.

    python benchmarks/pair_ablation.py configs/detect/simulated_pairs.toml \
        --trained runs/pairs_two/bundle --seeds 3 --set steps=100 validate_every=100

Every variant begins as one trained detector of two images whose CSTF block is replaced by one of
its own that knows nothing yet, and sees the same data with the same schedule; what serves one image
is frozen. The seed changes the first weights of the block and the samples. mAP50 (VOC12) on the
validation part by day and by night, with the second image aligned, moved, or of other ground.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detect_pairs import score
from rounds import parser_of, print_table, run_rounds
from rsfuse.cli.train import settings_of
from rsfuse.detection.config import DetectTrainConfig
from rsfuse.detection.formats import read_dataset
from rsfuse.detection.model import Detector
from rsfuse.detection.train import CONFIG, train
from rsfuse.engine.bundle import Bundle, load_bundle, save_bundle
from rsfuse.engine.config import read_config
from rsfuse.engine.seeds import seeded

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
    "unrelated, day": ("of other ground", False),
}


def with_fresh_block(trained: Bundle, config: DetectTrainConfig, folder: Path) -> Bundle:
    """The bundle with a CSTF block as the settings want it, untrained."""
    fusion = {k: getattr(config, k) for k in ("fusion", "temporal", "keypoint_bias")}
    arguments = {**trained.card.arguments, **fusion}
    with seeded(config.seed):
        state = Detector(**arguments).state_dict()
    state |= {name: v for name, v in trained.state().items() if not name.startswith("pair.cstf.")}
    card = trained.card.model_copy(update={"arguments": arguments})
    return save_bundle(folder, card, state, readme="# Start\n")


def main() -> None:
    """Train every variant with every seed and print the table."""
    parser = parser_of(__doc__, list(VARIANTS))
    parser.add_argument("--trained", required=True, help="bundle of a detector of two images")
    options = parser.parse_args()

    def run(changes: Mapping[str, Any]) -> dict[str, float]:
        config = read_config(options.config, CONFIG, {**settings_of(options.set), **changes})
        trained = load_bundle(options.trained, "detect")
        data = read_dataset(
            Path(config.data), format=config.format, split="val", classes=config.classes,
            partner=config.partner,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            start = with_fresh_block(trained, config, Path(folder) / "start")
            config = config.model_copy(update={"start": str(start.path)})
            bundle = train(config, Path(folder) / "run").bundle
            return {
                name: score(bundle, data, night=night, partner=partner, matched=False)[0]
                for name, (partner, night) in CASES.items()
            }

    chosen = {name: VARIANTS[name] for name in options.variants}
    done = run_rounds(chosen, options.seeds, run, options.output)
    print_table(done, options.variants, list(CASES), digits=1)


if __name__ == "__main__":
    main()
