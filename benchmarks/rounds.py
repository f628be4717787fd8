"""What ablations share: every variant with every seed, in rounds, resumable; mean and spread."""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Scores = Mapping[str, float]


def parser_of(doc: str, variants: Sequence[str]) -> argparse.ArgumentParser:
    """The options that all ablations have."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", choices=variants, default=list(variants))
    parser.add_argument("--set", nargs="*", default=[], metavar="K=V")
    parser.add_argument("-o", "--output", type=Path, help="rows so far; an earlier run goes on")
    return parser


def run_rounds(
    variants: Mapping[str, Mapping[str, Any]],
    seeds: int,
    run: Callable[[Mapping[str, Any]], Scores],
    output: Path | None,
) -> dict[str, dict[str, float]]:
    """Scores of each "variant #seed".

    Seed by seed, so that an early end leaves whole rounds; what `output` holds is not done again.

    Args:
        variants: Name -> what differs in its settings.
        seeds: How many.
        run: Trains with these settings, `seed` among them, and measures.
        output: JSON file of the rows so far; None keeps none.
    """
    done: dict[str, dict[str, float]] = {}
    if output is not None and output.is_file():
        done = json.loads(output.read_text())
    for seed in range(seeds):
        for name, changes in variants.items():
            key = f"{name} #{seed}"
            if key in done:
                continue
            begun = time.perf_counter()
            done[key] = {k: float(v) for k, v in run({**changes, "seed": seed}).items()}
            print(key, {k: round(v, 3) for k, v in done[key].items()},
                  f"{time.perf_counter() - begun:.0f} s", flush=True)  # fmt: skip
            if output is not None:
                output.write_text(json.dumps(done, indent=2))
    return done


def print_table(
    done: Mapping[str, Scores], variants: Sequence[str], heads: Sequence[str], digits: int = 3
) -> None:
    """Mean and standard deviation over the seeds, a row for each variant."""
    print("| variant | " + " | ".join(heads) + " |")
    print("| --- " * (len(heads) + 1) + "|")
    for name in variants:
        rows = [row for key, row in done.items() if key.rsplit(" #", 1)[0] == name]
        cells = []
        for head in heads:
            values = np.array([row[head] for row in rows])
            spread = values.std(ddof=min(1, len(values) - 1))
            cells.append(f"{values.mean():.{digits}f} ± {spread:.{digits}f}")
        print(f"| {name} | " + " | ".join(cells) + " |")
