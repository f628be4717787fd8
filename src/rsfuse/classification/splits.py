"""Which labels are learned from, which choose the weights, and which are looked at once.

Pixels beside each other look alike, so a random draw of pixels tests on what was learned
(arXiv 1605.05829). Blocks or whole polygons are drawn instead, with a buffer between the parts, and
the share of test pixels whose surroundings reach into training areas is counted and told.
"""

import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_cdt

from rsfuse.classification.labels import Labels
from rsfuse.errors import InputError

Mask = npt.NDArray[np.bool_]
Kind = Literal["blocks", "polygons", "random-pixel"]

log = logging.getLogger(__name__)

# How often a draw is repeated until every class is on both sides.
_DRAWS = 200


@dataclass(frozen=True, eq=False)
class Split:
    """Masks (H, W) of the labelled pixels of each part; what is in none lies in a buffer.

    Attributes:
        train: Learned from.
        validation: Chooses the best weights.
        test: Looked at once.
        kind: How they were told apart.
        notes: Classes that are missing from a part.
    """

    train: Mask
    validation: Mask
    test: Mask
    kind: Kind
    notes: tuple[str, ...] = ()


def split_labels(
    labels: Labels,
    kind: Kind,
    *,
    test: float = 0.3,
    validation: float = 0.2,
    block: int = 32,
    buffer: int = 8,
    seed: int = 0,
) -> Split:
    """Draw training, validation and test labels.

    Of many draws the one is taken that leaves no class out of a part where that can be, and whose
    shares are nearest to those asked for in every class.

    Args:
        labels: All labels of a scene.
        kind: "blocks" of `block` pixels, "polygons", or the legacy "random-pixel", which leaks.
        test: Share of the labelled pixels for the test; none when 0.
        validation: Share of the rest for validation, from training blocks only.
        block: Side of a block in label pixels.
        buffer: Label pixels between the parts that belong to none; not for random pixels.
        seed: Of the draw.

    Raises:
        InputError: Only one class is left for training, or polygons are asked for and there are
            none.
    """
    numbers = labels.numbers
    known = numbers >= 0
    if kind == "random-pixel":
        groups = np.arange(numbers.size).reshape(numbers.shape)
        buffer = 0
    elif kind == "polygons":
        if labels.groups is None:
            raise InputError(
                "the labels are a raster",
                "a split by polygons needs polygons",
                "use split = 'blocks', or give the labels as polygons",
            )
        groups = labels.groups
    else:
        rows = np.arange(numbers.shape[0])[:, None] // block
        columns = np.arange(numbers.shape[1])[None] // block
        groups = rows * (numbers.shape[1] // block + 1) + columns
    rng = np.random.default_rng(seed)
    table = _counts(groups[known], numbers[known], len(labels.classes))
    in_test = _draw(table, test, rng)
    rest = table * ~in_test[:, None]
    in_validation = _draw(rest, validation, rng) & ~in_test
    ids = np.unique(groups[known])
    part = np.zeros(numbers.shape, np.int8)
    place = np.searchsorted(ids, groups[known])
    part[known] = np.where(in_test[place], 3, np.where(in_validation[place], 2, 1))
    train = part == 1
    if buffer:
        train &= ~_near(part == 3, buffer)
        train &= ~_near(part == 2, buffer)
        held_back = (part == 2) & ~_near(part == 3, buffer)
    else:
        held_back = part == 2
    found = Split(train, held_back, part == 3, kind, _notes(labels, train, held_back, part == 3))
    for note in found.notes:
        log.warning(note)
    if len(np.unique(numbers[train])) < 2:
        raise InputError(
            "fewer than two classes are left for training",
            f"the split {kind} with buffer {buffer} leaves {int(train.sum())} training pixels",
            "use smaller blocks or a smaller buffer, or label more places",
        )
    return found


def leakage(split: Split, reach: int) -> float:
    """Share of test pixels within `reach` pixels (chessboard) of a training pixel, or NaN."""
    if not split.test.any():
        return float("nan")
    return float(_near(split.train, reach)[split.test].mean())


def _near(mask: Mask, distance: int) -> Mask:
    """Which pixels lie within `distance` of the mask, diagonal steps counting one."""
    if not mask.any():
        return np.zeros_like(mask)
    return np.asarray(distance_transform_cdt(~mask, metric="chessboard") <= distance)


def _counts(
    groups: npt.NDArray[np.integer], numbers: npt.NDArray[np.int64], classes: int
) -> npt.NDArray[np.int64]:
    """(G, K): pixels of each class in each group."""
    ids, place = np.unique(groups, return_inverse=True)
    flat = np.bincount(place * classes + numbers, minlength=len(ids) * classes)
    return flat.reshape(len(ids), classes).astype(np.int64)


def _draw(
    table: npt.NDArray[np.int64], share: float, rng: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """(G,): the groups of a part of a given share, as even over the classes as can be found."""
    total = table.sum(axis=0)
    filled = np.flatnonzero(table.sum(axis=1))
    if share <= 0 or len(filled) < 2:
        return np.zeros(len(table), bool)
    best, least = np.zeros(len(table), bool), np.inf
    draws = 1 if len(filled) > 20_000 else _DRAWS
    for _ in range(draws):
        order = rng.permutation(filled)
        sums = np.cumsum(table[order].sum(axis=1))
        count = int(np.searchsorted(sums, share * sums[-1])) + 1
        count = min(max(1, count), len(filled) - 1)
        chosen = np.zeros(len(table), bool)
        chosen[order[:count]] = True
        part = table[chosen].sum(axis=0)
        known = total > 0
        off = np.abs(part[known] / total[known] - share)
        # A class that nothing is left of to learn from is worse than one that is not tested.
        missing = (part[known] == 0).sum() + 2 * (part[known] == total[known]).sum()
        cost = float(missing * 10.0 + off.mean())
        if cost < least:
            best, least = chosen, cost
    return best


def _notes(labels: Labels, train: Mask, validation: Mask, test: Mask) -> tuple[str, ...]:
    notes = []
    for name, mask in (("training", train), ("validation", validation), ("test", test)):
        if not mask.any():
            continue
        counts = np.bincount(labels.numbers[mask], minlength=len(labels.classes))
        absent = [
            c.name for c, n, all_ in zip(labels.classes, counts, labels.counts(), strict=True)
            if all_ and not n
        ]  # fmt: skip
        if absent:
            notes.append(f"the {name} labels hold no {', '.join(absent)}")
    return tuple(notes)


__all__ = ["Split", "leakage", "split_labels"]
