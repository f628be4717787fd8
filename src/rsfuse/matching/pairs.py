"""Training pairs of the matcher with exactly known displacements.

A *stack* is a set of images of the same ground on one grid: bands of one sensor, a registered pair,
or the sensors of a simulated scene. A training pair is two windows of a stack, turned and scaled
together, then moved against each other by a small known motion; one of the two may pass a modality
operator. Stacks of one image give pairs through operators alone.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from rsfuse.errors import InputError
from rsfuse.matching.constructed import pixel_centres
from rsfuse.matching.inputs import network_channels
from rsfuse.matching.model import CELL
from rsfuse.matching.operators import OPERATORS, Operator, degraded, stretched
from rsfuse.matching.structure import LONG_TAIL
from rsfuse.ops.geometry2d import apply_matrix

if TYPE_CHECKING:
    from rsfuse.matching.data import MatchPair

log = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float64]
Bands = npt.NDArray[np.float32]

LARGEST_SIDE_PX = 1600  # larger images are cut into pieces of this side


@dataclass(frozen=True)
class Stack:
    """Images of the same ground.

    Attributes:
        layers: Each (C, H, W), 0 to 255, on the grid of the first.
        shifts: Per layer: where its content lies against that of the first, pixels (x, y).
    """

    layers: tuple[npt.NDArray[np.uint8], ...]
    shifts: tuple[tuple[float, float], ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the first layer."""
        return self.layers[0].shape[1:]


@dataclass(frozen=True)
class Motions:
    """How a window is moved against its partner.

    Attributes:
        shift_px: Largest shift.
        far: Chance of a shift beyond the radius, up to a quarter of the window.
        rotation_deg: Largest rotation.
        scale: Largest change of scale, as a share.
        bend_px: Largest amplitude of the smooth field.
        zoom: Smallest and largest number of image pixels per window pixel.
        unrelated: Chance of a partner from elsewhere.
        holes: Chance of unknown ground.
    """

    shift_px: float = 10.0
    far: float = 0.12
    rotation_deg: float = 5.0
    scale: float = 0.05
    bend_px: float = 2.0
    zoom: tuple[float, float] = (0.7, 3.2)
    unrelated: float = 0.1
    holes: float = 0.15


class MatchSample(NamedTuple):
    """One training pair.

    Attributes:
        image0: (6, S, S) channels of the network.
        image1: (6, S, S).
        mass0: (1, S / 8, S / 8) keypoints per block.
        mass1: (1, S / 8, S / 8).
        shift: (S / 8 + 1, S / 8 + 1, 2) displacement at the block corners, pixels.
        related: () 1 where the two show the same ground.
    """

    image0: Bands
    image1: Bands
    mass0: Bands
    mass1: Bands
    shift: Bands
    related: npt.NDArray[np.float32]


def draw_sample(
    rng: np.random.Generator,
    groups: Sequence[Sequence[Stack]],
    size: int,
    motions: Motions,
    operators: Mapping[str, Operator] = OPERATORS,
) -> MatchSample:
    """A pair of windows of `size` pixels: a group evenly, then a stack of it, then two layers."""
    group = groups[int(rng.integers(len(groups)))]
    stack = group[int(rng.integers(len(group)))]
    place = _placement(rng, stack.shape, size, motions)
    motion = _motion(rng, size, motions)
    first, second = _two_layers(rng, stack)
    related = rng.random() >= motions.unrelated
    other, there = stack, place
    if not related:
        group = groups[int(rng.integers(len(groups)))]
        other = group[int(rng.integers(len(group)))]
        there = _placement(rng, other.shape, size, motions)
        second = int(rng.integers(len(other.layers)))
    grid = pixel_centres((size, size)).reshape(-1, 2)
    image0 = _cut(stack, first, apply_matrix(place, grid), place)
    image1 = _cut(other, second, apply_matrix(there, motion(grid)), there)
    if rng.random() < 0.5:
        image0, image1 = image1, image0
        moved: Callable[[FloatArray], FloatArray] = motion
    else:

        def moved(xy: FloatArray) -> FloatArray:
            return _inverted(motion, xy)

    same_layer = first == second
    pictures = [_as_bands(rng, image) for image in (image0, image1)]
    turn = int(rng.integers(2))
    names = [n for n in operators if n != "same" or not same_layer] or list(operators)
    chosen = names[int(rng.integers(len(names)))]
    if not same_layer and rng.random() < 0.6:
        chosen = "same"  # another sensor is other enough
    changed = operators.get(chosen, OPERATORS["same"])
    pictures[turn] = np.stack([changed(band, rng) for band in pictures[turn][:1]])
    pictures = [np.stack([degraded(band, rng) for band in p]) for p in pictures]
    valid = [_known(rng, image, motions) for image in (image0, image1)]
    corners = CELL * np.stack(
        np.meshgrid(np.arange(size // CELL + 1), np.arange(size // CELL + 1)), -1
    ).astype(np.float64)
    shift = moved(corners.reshape(-1, 2)).reshape(corners.shape) - corners
    channels = [network_channels(p, v) for p, v in zip(pictures, valid, strict=True)]
    return MatchSample(
        channels[0].image,
        channels[1].image,
        channels[0].mass,
        channels[1].mass,
        shift.astype(np.float32),
        np.float32(related),  # type: ignore[arg-type]
    )


def _two_layers(rng: np.random.Generator, stack: Stack) -> tuple[int, int]:
    if len(stack.layers) == 1:
        return 0, 0
    first, second = rng.choice(len(stack.layers), 2, replace=False)
    return int(first), int(second)


def _placement(
    rng: np.random.Generator, shape: tuple[int, int], size: int, motions: Motions
) -> FloatArray:
    """(3, 3) from window pixels to image pixels: any rotation, mirrored or not, zoomed."""
    low, high = motions.zoom
    most = max(low, min(high, 0.9 * min(shape) / size))
    zoom = math.exp(rng.uniform(math.log(low), math.log(most)))
    angle = rng.uniform(0, 2 * np.pi)
    c, s = zoom * np.cos(angle), zoom * np.sin(angle)
    flip = rng.choice([-1.0, 1.0])
    linear = np.array([[c * flip, -s], [s * flip, c]])
    reach = 0.55 * size * zoom
    centre = [rng.uniform(min(reach, n / 2), max(n - reach, n / 2)) for n in (shape[1], shape[0])]
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    matrix[:2, 2] = np.array(centre) - linear @ np.array([size / 2, size / 2])
    return matrix


def _motion(
    rng: np.random.Generator, size: int, motions: Motions
) -> Callable[[FloatArray], FloatArray]:
    """A map of window pixels near the identity: shift, turn, scale, shear, a bend."""
    most = size / 4 if rng.random() < motions.far else motions.shift_px
    shift = rng.uniform(-most, most, 2)
    angle = np.deg2rad(rng.uniform(-1, 1) * motions.rotation_deg)
    scale = 1 + rng.uniform(-1, 1) * motions.scale
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = linear + rng.uniform(-0.4, 0.4, (2, 2)) * motions.scale
    middle = np.array([size / 2, size / 2])
    bend = rng.uniform(0, motions.bend_px) if rng.random() < 0.5 else 0.0
    waves = rng.uniform(-1, 1, (2, 2)) * 2 * np.pi / (0.8 * size)
    phase = rng.uniform(0, 2 * np.pi, 2)

    def moved(xy: FloatArray) -> FloatArray:
        return np.asarray(
            (xy - middle) @ linear.T + middle + shift + bend * np.sin(xy @ waves.T + phase)
        )

    return moved


def _inverted(motion: Callable[[FloatArray], FloatArray], xy: FloatArray) -> FloatArray:
    """Where `motion` takes to `xy`: a fixed point that contracts, for motions near the identity."""
    guess = xy - (motion(xy) - xy)
    for _ in range(12):
        guess = guess + (xy - motion(guess))
    return guess


def _cut(stack: Stack, layer: int, xy: FloatArray, place: FloatArray) -> Bands:
    """(C, S, S) of a layer at image positions of the first layer; NaN outside."""
    image = stack.layers[layer]
    side = round(math.sqrt(len(xy)))
    at = (xy + np.array(stack.shifts[layer]) - 0.5).reshape(side, side, 2).astype(np.float32)
    zoom = math.sqrt(abs(float(np.linalg.det(place[:2, :2]))))
    out = []
    for band in image:
        soft = cv2.GaussianBlur(band, (0, 0), 0.45 * zoom) if zoom > 1.2 else band
        out.append(
            cv2.remap(soft, at[..., 0], at[..., 1], cv2.INTER_LINEAR, borderValue=0.0).astype(
                np.float32
            )
        )
    h, w = image.shape[1:]
    outside = (at < 0).any(axis=-1) | (at > np.array([w - 1, h - 1])).any(axis=-1)
    cut = np.stack(out)
    cut[:, outside] = np.nan
    return cut


def _as_bands(rng: np.random.Generator, image: Bands) -> Bands:
    """One band of the image, or up to three mixed or together, each in 0..1."""
    known = np.nan_to_num(image, nan=float(np.nanmedian(image)) if np.isfinite(image).any() else 0)
    count = len(known)
    if count == 1:
        return stretched(known[0])[None]
    kind = rng.integers(3)
    if kind == 0:
        return stretched(known[int(rng.integers(count))])[None]
    if kind == 1:
        weights = rng.standard_normal(count)
        return stretched(np.tensordot(weights, known, axes=1))[None]
    chosen = rng.choice(count, min(3, count), replace=False)
    return np.stack([stretched(known[int(i)]) for i in chosen])


def _known(rng: np.random.Generator, image: Bands, motions: Motions) -> npt.NDArray[np.bool_]:
    valid = np.asarray(np.isfinite(image).all(axis=0))
    if rng.random() < motions.holes:
        size = valid.shape[0]
        x, y = rng.integers(0, size, 2)
        w, h = rng.integers(size // 10, size // 2, 2)
        valid[y : y + h, x : x + w] = False
    return valid


# --- where stacks come from ---------------------------------------------------------------------


@dataclass(frozen=True)
class Sources:
    """What is trained on.

    Attributes:
        pairs: Folders with an `index.json` of registered pairs; only entries marked "train".
        held_out: Every so-many-th entry is kept for measuring; 0 keeps none.
        images: Groups of rasters: one or several patterns with commas between; the k-th files of
            all patterns, on one grid, make a stack.
        most: At most so many stacks of a group.
        simulated: Simulated scenes, each seen by five sensors.
        simulated_size: Their side in pixels.
    """

    pairs: tuple[str, ...] = ()
    held_out: int = 2
    images: tuple[str, ...] = ()
    most: int = 200
    simulated: int = 8
    simulated_size: int = 640
    seed: int = field(default=0)


def load_groups(sources: Sources) -> list[list[Stack]]:
    """One group of stacks per source.

    Raises:
        InputError: A source holds nothing usable.
    """
    groups = [_pair_stacks(folder, sources.held_out) for folder in sources.pairs]
    groups += [_image_stacks(pattern, sources.most, sources.seed) for pattern in sources.images]
    if sources.simulated:
        groups.append(_simulated_stacks(sources))
    if not groups:
        raise InputError(
            "there is nothing to train on",
            "pairs, images or simulated scenes are needed",
            "set simulated = 8 to begin with",
        )
    return groups


def _pair_stacks(folder: str, held_out: int) -> list[Stack]:
    from rsfuse.matching.data import held_out_of, read_pairs

    pairs = read_pairs(folder)
    kept = held_out_of(pairs, held_out)
    stacks = [stack_of_pair(p) for p in pairs if p.use == "train" and p.id not in kept]
    if not stacks:
        raise InputError(
            f"{folder} holds no pair to train on",
            'entries with "use": "train" are needed',
            "see rsfuse.matching.data",
        )
    return stacks


def stack_of_pair(pair: MatchPair) -> Stack:
    """Reference and query of a registered pair, the residual of its truth taken into account.

    A query on another grid is brought onto that of the reference, and both are cut to the largest
    square that the query covers.
    """
    shift = np.zeros(2) if pair.residual_px is None else np.asarray(pair.residual_px)
    reference, query = (_to_bytes(image) for image in (pair.read_reference(), pair.read_query()))
    if np.abs(pair.truth[:2, :2] - np.eye(2)).max() <= 1e-6:
        x, y = pair.truth[:2, 2] + shift
        return Stack((reference, query), ((0.0, 0.0), (float(x), float(y))))
    to_query = np.array(pair.truth)
    to_query[:2, 2] += shift
    h, w = reference.shape[1:]
    grid = pixel_centres((h, w)).reshape(-1, 2)
    at = apply_matrix(to_query, grid).reshape(h, w, 2).astype(np.float32) - 0.5
    limit = np.array(query.shape[:0:-1]) - 1
    covered = ((at >= 0) & (at <= limit)).all(axis=-1)
    placed = [cv2.remap(b, at[..., 0], at[..., 1], cv2.INTER_LINEAR) for b in query]
    reach = cv2.distanceTransform(np.pad(covered, 1).astype(np.uint8), cv2.DIST_C, 3)[1:-1, 1:-1]
    row, column = np.unravel_index(int(reach.argmax()), reach.shape)
    half = int(reach.max()) - 1
    square = np.s_[row - half : row + half + 1, column - half : column + half + 1]
    layers = tuple(np.stack([b[square] for b in bands]) for bands in (reference, placed))
    return Stack(layers, ((0.0, 0.0), (0.0, 0.0)))


def _image_stacks(patterns: str, most: int, seed: int) -> list[Stack]:
    import glob

    from rsfuse.matching.data import read_image

    lists = [sorted(glob.glob(p.strip())) for p in patterns.split(",")]
    if not lists[0] or len({len(files) for files in lists}) != 1:
        raise InputError(
            f"{patterns}: the patterns find {', '.join(str(len(f)) for f in lists)} files",
            "every pattern must find the same number, at least one",
            "check the paths",
        )
    rows = list(zip(*lists, strict=True))
    if len(rows) > most:
        chosen = np.random.default_rng(seed).choice(len(rows), most, replace=False)
        rows = [rows[int(i)] for i in sorted(chosen)]
    stacks = []
    for row in rows:
        layers = tuple(_to_bytes(read_image(Path(name))) for name in row)
        if len({layer.shape[1:] for layer in layers}) != 1:
            raise InputError(
                f"{', '.join(row)} differ in size",
                "the files of a stack lie on one grid",
                "give them as groups of their own",
            )
        stacks += _pieces(Stack(layers, ((0.0, 0.0),) * len(layers)))
    return stacks


def _pieces(stack: Stack) -> list[Stack]:
    h, w = stack.shape
    side = LARGEST_SIDE_PX
    return [
        Stack(tuple(layer[:, y : y + side, x : x + side] for layer in stack.layers), stack.shifts)
        for y in range(0, h, side)
        for x in range(0, w, side)
        if min(h - y, w - x) >= 200 or (y == 0 and x == 0)
    ]


def _simulated_stacks(sources: Sources) -> list[Stack]:
    from rsfuse.simulate import Acquisition, render, simulate_scene

    stacks = []
    for number in range(sources.simulated):
        seed = 7000 + number
        gsd_m = (0.5, 1.0, 2.0, 5.0)[number % 4]
        scene = simulate_scene(sources.simulated_size, gsd_m=gsd_m, seed=seed)
        taken = Acquisition(seed=seed, ratio=1)
        layers = []
        for modality in ("ms", "pan", "sar", "thermal", "map"):
            layers.append(_to_bytes(render(scene, modality, acquisition=taken).data))
        stacks.append(Stack(tuple(layers), ((0.0, 0.0),) * len(layers)))
        log.info("simulated scene %d of %d", number + 1, sources.simulated)
    return stacks


def _to_bytes(image: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """Every band between its 0.5th and 99.5th percentile, in logarithms where its tail is long."""
    out = []
    for band in image:
        known = band[np.isfinite(band)]
        low, middle, high = np.percentile(known[:: max(1, known.size // 50000)], (0.5, 50, 99.5))
        values = np.nan_to_num(band, nan=low)
        if high - middle > LONG_TAIL * (middle - low) > 0:
            offset = 0.1 * (middle - low)
            values, high = np.log(np.maximum(values - low, 0) + offset), np.log(high - low + offset)
            low = np.log(offset)
        out.append(np.clip(255 * (values - low) / max(high - low, 1e-9), 0, 255).astype(np.uint8))
    return np.stack(out)
