"""A dense map beside one patch per pixel: same weights, same scan, CPU time per MS pixel.

    python benchmarks/dense_map.py

The published network classifies a patch of 16 x 16 MS pixels (and its 64 x 64 PAN pixels) at a
time; a map by it runs once per pixel. Its flatten head becomes a sliding one (`with_sliding_head`),
and a tile is classified in one pass. Both are measured by turns, one thread, the smaller of some
rounds; `tests/classification/test_folding.py` shows that both heads say the same.
"""

import argparse
import time

import torch

from rsfuse.classification.folding import with_sliding_head
from rsfuse.classification.model import das2f_reference


def cpu_seconds(work) -> float:
    """CPU time of one call."""
    begun = time.process_time()
    with torch.inference_mode():
        work()
    return time.process_time() - begun


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tile", type=int, default=96, help="MS pixels along a side")
    parser.add_argument("--batch", type=int, default=32, help="patches at once")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    patch = das2f_reference(7, 1).eval()
    dense = with_sliding_head(patch).eval()
    side, ratio = patch.size.window, 4
    few = (
        torch.rand(options.batch, 4, side, side),
        torch.rand(options.batch, 1, *[ratio * side] * 2),
    )
    tile = torch.rand(1, 4, *[options.tile] * 2), torch.rand(1, 1, *[ratio * options.tile] * 2)
    seconds = {"patch": [], "dense": []}
    for turn in range(options.rounds + 1):
        one = cpu_seconds(lambda: patch(*few)) / options.batch
        other = cpu_seconds(lambda: dense(*tile)) / options.tile**2
        if turn:  # the first compiles
            seconds["patch"].append(one)
            seconds["dense"].append(other)
    one, other = (min(values) for values in seconds.values())
    print(f"one patch per pixel: {1e3 * one:.2f} ms per MS pixel")
    print(f"dense: {1e3 * other:.4f} ms per MS pixel, {one / other:.0f} times less")


if __name__ == "__main__":
    main()
