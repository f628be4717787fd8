"""Which parts of CSTF help: the ablation of arXiv 2507.19118, and the baseline that it replaces.

    python benchmarks/cstf_ablation.py configs/match/cstf.toml --seeds 3 --set steps=1000 \
        --kept-out $RSFUSE_DATA/matching/srif $RSFUSE_DATA/matching/s1s2

Every variant is trained on the same data with the same schedule; the seed changes the weights and
the samples. Measured are the share of anchors found within 2 px, their median error, how well "no
match" is told (AUROC), and the share of patches that the coarse matching puts right: on registered
pairs that no training saw, moved by known amounts, and on the images of the training with operators
that it did not see. Printed are mean and spread over the seeds; before them, to compare with, an
untrained network, which sees structure channels alone, and the shipped one.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rounds import parser_of, print_table, run_rounds
from rsfuse.cli.train import settings_of
from rsfuse.engine.bundle import Bundle, load_bundle
from rsfuse.engine.config import read_config
from rsfuse.engine.seeds import seeded
from rsfuse.matching.data import held_out_of, read_pairs
from rsfuse.matching.model import CstfMatcher
from rsfuse.matching.operators import same
from rsfuse.matching.pairs import Stack, stack_of_pair
from rsfuse.matching.train import CONFIG, MatchLearner, MatchTrainConfig, train

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
KEPT_OUT = ", kept-out pairs"
UNSEEN = ", unseen operators"
WINDOWS = 256  # of the kept-out pairs
MOST = 120  # pairs of a set that they are cut from


def main() -> None:
    """Train every variant with every seed and print the table."""
    parser = parser_of(__doc__, list(VARIANTS))
    parser.add_argument("--kept-out", nargs="+", required=True, metavar="FOLDER")
    options = parser.parse_args()
    groups = kept_out(options.kept_out)

    def run(changes: Mapping[str, Any]) -> dict[str, float]:
        config = read_config(options.config, CONFIG, {**settings_of(options.set), **changes})
        with tempfile.TemporaryDirectory() as folder:
            outcome = train(config, Path(folder))
            found = measured(outcome.bundle, config, groups)
        return {**outcome.scores, **{f"{name}{KEPT_OUT}": value for name, value in found.items()}}

    config = read_config(options.config, CONFIG, settings_of(options.set))
    for name in (None, "cstf"):
        found = measured(None if name is None else load_bundle(name, "match"), config, groups)
        print(name or "untrained", {k: round(v, 3) for k, v in found.items()}, flush=True)
    chosen = {name: VARIANTS[name] for name in options.variants}
    done = run_rounds(chosen, options.seeds, run, options.output)
    print_table(
        done, options.variants, [f"{m}{kind}" for kind in (KEPT_OUT, UNSEEN) for m in MEASURES]
    )


def kept_out(folders: Sequence[str]) -> list[list[Stack]]:
    """A group for each modality of each set: all pairs not for training, else every second."""
    groups: dict[tuple[str, str], list[Stack]] = {}
    for folder in folders:
        kept = held_out_of(read_pairs(folder), 2)
        for pair in read_pairs(folder, limit=MOST):
            if pair.use != "train" or pair.id in kept:
                groups.setdefault((folder, pair.group), []).append(stack_of_pair(pair))
    return list(groups.values())


def measured(
    bundle: Bundle | None, config: MatchTrainConfig, groups: list[list[Stack]]
) -> Mapping[str, float]:
    """What a network does on windows of registered pairs, the same ones for every variant."""
    with seeded(0):
        model = CstfMatcher(**config.arguments)
    if bundle is not None:
        bundle.load_into(model)
    same_windows = config.model_copy(update={"seed": 0, "validation": WINDOWS})
    learner = MatchLearner(model.eval(), groups, same_windows)
    with torch.no_grad():
        return learner.scores(model, torch.device("cpu"), {"same": same})


if __name__ == "__main__":
    main()
