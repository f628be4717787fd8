"""Images that a detector learns from, and the views of them that it sees.

A view is a window of one image, or a mosaic of four. Images that do not fit into memory together
lie decoded on the disk and are read where a window needs them.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rsfuse.detection.augment import (
    IGNORED_SHARE,
    LEARNED_SHARE,
    Jitter,
    cut,
    moved,
    other_light,
    random_window,
    turned,
    visible_share,
)
from rsfuse.detection.data import Sample
from rsfuse.detection.loss import Targets
from rsfuse.detection.pair import PATCH
from rsfuse.errors import InputError
from rsfuse.ops.boxes import from_corners
from rsfuse.runs import atomic_path

Floats = npt.NDArray[np.float64]
ReadImage = Callable[[Path], npt.NDArray[Any]]
Scale = Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class TrainImage:
    """An image in the type of its file, in memory or mapped from the disk, with its objects.

    Attributes:
        pixels: (C, h, w).
        corners: (N, 4, 2).
        labels: (N,).
        difficult: (N,).
        headings: (N,) radians, NaN where unknown; None where the data set has none.
        partner: (P, h, w) a second image on the same pixels; None without.
    """

    pixels: npt.NDArray[Any]
    corners: Floats
    labels: npt.NDArray[np.int64]
    difficult: npt.NDArray[np.int64]
    headings: Floats | None = None
    partner: npt.NDArray[Any] | None = None


@dataclass(frozen=True, eq=False)
class View:
    """What is seen of one image, or of four.

    Attributes:
        pixels: (C, s, s), scaled for the network.
        corners: (N, 4, 2) in pixels of the view; whole, also where the view shows only a part.
        labels: (N,).
        learned: (N,) whether the object is learned.
        ignored: (N,) whether it is neither right nor wrong to find it.
        headings: (N,) radians, NaN where unknown.
        matrix: (2, 3) pixels of the view -> pixels of the image; None of a mosaic.
    """

    pixels: npt.NDArray[np.float32]
    corners: Floats
    labels: npt.NDArray[np.int64]
    learned: npt.NDArray[np.bool_]
    ignored: npt.NDArray[np.bool_]
    headings: Floats
    matrix: Floats | None = None

    def tensors(self) -> tuple[Tensor, Targets]:
        """The image and its targets."""
        boxes = torch.from_numpy(from_corners(self.corners).astype(np.float32).reshape(-1, 5))
        learned, ignored = torch.from_numpy(self.learned), torch.from_numpy(self.ignored)
        headings = torch.from_numpy(self.headings.astype(np.float32))[learned]
        labels = torch.from_numpy(self.labels)[learned]
        found = Targets(boxes[learned], labels, boxes[ignored], headings)
        return torch.from_numpy(self.pixels), found


def window_view(
    image: TrainImage, size: int, rng: np.random.Generator, jitter: Jitter, scale: Scale
) -> View:
    """A random window of `size` pixels; how much of an object is in it decides what it counts."""
    centres = image.corners[image.difficult == 0].mean(axis=1)
    shape = (image.pixels.shape[1], image.pixels.shape[2])
    matrix = random_window(rng, size, shape, centres, jitter)
    pixels = other_light(scale(cut(image.pixels, matrix, size)), rng, jitter)
    corners = moved(image.corners, matrix)
    share = visible_share(corners, size)
    learned = (share >= LEARNED_SHARE) & (image.difficult == 0)
    ignored = (share > IGNORED_SHARE) & ~learned
    given = image.headings
    headings = np.full(len(corners), np.nan) if given is None else turned(given, matrix)
    return View(pixels, corners, image.labels, learned, ignored, headings, matrix)


@dataclass(frozen=True)
class PairJitter:
    """How the second image of a view varies.

    Attributes:
        absent: Chance that there is none.
        unrelated: Chance that it shows other ground.
        displaced: Chance that it does not lie exactly on the first.
        shift_px: Largest shift then.
        rotation: Largest rotation then, radians.
        scale: Largest change of scale then, as a share.
    """

    absent: float = 0.15
    unrelated: float = 0.15
    displaced: float = 0.5
    shift_px: float = 24.0
    rotation: float = 0.05
    scale: float = 0.03


class PartnerView(NamedTuple):
    """The second image of a view.

    Attributes:
        pixels: (P, s, s), scaled for the network; 0 where absent.
        present: Whether there is one.
        related: Whether it shows the same ground.
        shift: (2, g, g) where the ground of each patch of the view lies in it, pixels.
    """

    pixels: npt.NDArray[np.float32]
    present: bool
    related: bool
    shift: npt.NDArray[np.float32]


def partner_view(
    view: View,
    image: TrainImage,
    other: TrainImage,
    rng: np.random.Generator,
    jitter: PairJitter,
    light: Jitter,
    scale: Scale,
) -> PartnerView:
    """The second image as it goes with a view.

    Args:
        view: Of the first image.
        image: What it is a view of, with a partner.
        other: An image whose partner shows other ground.
        rng: Random numbers.
        jitter: How it varies.
        light: How its values vary.
        scale: Values as the network wants them.
    """
    size = view.pixels.shape[1]
    kind = rng.random()
    present = kind >= jitter.absent
    related = kind >= jitter.absent + jitter.unrelated
    motion = _motion(rng, size, jitter) if rng.random() < jitter.displaced else np.eye(3)
    source = image if related else other
    if source.partner is None or view.matrix is None:
        raise InputError(
            "an image has no partner", "every image of a pair training needs one", "check the data"
        )
    if related:
        matrix = view.matrix @ motion
    else:
        matrix = random_window(rng, size, source.partner.shape[1:], np.zeros((0, 2)), light)
    pixels = other_light(scale(cut(source.partner, matrix, size)), rng, light)
    if not present:
        pixels = np.zeros_like(pixels)
    axis = np.arange(size // PATCH) * float(PATCH) + PATCH / 2
    centres = np.stack([*np.meshgrid(axis, axis), np.ones((len(axis), len(axis)))])
    there = np.einsum("ij,jyx->iyx", np.linalg.inv(motion)[:2], centres)
    return PartnerView(
        pixels, present, related and present, (there - centres[:2]).astype(np.float32)
    )


def _motion(rng: np.random.Generator, size: int, jitter: PairJitter) -> Floats:
    """(3, 3) from pixels of the second view to those of the first."""
    angle = rng.uniform(-1, 1) * jitter.rotation
    scale = 1 + rng.uniform(-1, 1) * jitter.scale
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    linear = np.array([[c, -s], [s, c]])
    middle = np.full(2, size / 2)
    motion = np.eye(3)
    motion[:2, :2] = linear
    motion[:2, 2] = middle - linear @ middle + rng.uniform(-1, 1, 2) * jitter.shift_px
    return motion


def mosaic(views: Sequence[View]) -> View:
    """Four views of one size as the quarters of one twice as wide: upper ones first, left to right.

    Each object keeps what it counts in its own quarter, and its box, also where that reaches over
    into another.
    """
    size = views[0].pixels.shape[1]
    upper, lower = (np.concatenate([v.pixels for v in views[i : i + 2]], axis=2) for i in (0, 2))
    places = np.array([[0, 0], [size, 0], [0, size], [size, size]], np.float64)
    return View(
        np.ascontiguousarray(np.concatenate([upper, lower], axis=1)),
        np.concatenate([v.corners + place for v, place in zip(views, places, strict=True)]),
        np.concatenate([v.labels for v in views]),
        np.concatenate([v.learned for v in views]),
        np.concatenate([v.ignored for v in views]),
        np.concatenate([v.headings for v in views]),
    )


def load_images(
    samples: Sequence[Sample],
    read: ReadImage,
    *,
    most_bytes: int | None = None,
    spill: Path | None = None,
    read_partner: ReadImage | None = None,
) -> list[TrainImage]:
    """The images of samples that have one.

    Args:
        samples: Images and their objects.
        read: Gives the pixels (C, h, w) of a file.
        most_bytes: Pixels that are kept in memory; no limit when None.
        spill: Folder for the pixels of the others, as .npy files; those that are there already are
            used again. One folder for each way of reading.
        read_partner: Gives the pixels of a second image; None where it is not wanted.
    """
    images = []
    used = 0
    for sample in samples:
        if sample.image is None:
            continue
        if spill is None or most_bytes is None or used < most_bytes:
            pixels = read(sample.image)
            used += pixels.nbytes
        else:
            pixels = _mapped(sample.image, read, spill)
        found = sample.objects
        images.append(
            TrainImage(
                pixels,
                found.corners,
                found.labels,
                found.difficult,
                found.headings,
                None
                if read_partner is None or sample.partner is None
                else read_partner(sample.partner),
            )
        )
    return images


def _mapped(path: Path, read: ReadImage, folder: Path) -> npt.NDArray[Any]:
    """Decoded pixels of a file, mapped from the disk; the name tells when the file has changed."""
    state = path.stat()
    key = zlib.crc32(f"{path.resolve()} {state.st_size} {state.st_mtime_ns}".encode())
    target = folder / f"{path.stem}_{key:08x}.npy"
    if not target.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(target) as temporary:
            np.save(temporary, read(path))
    pixels: npt.NDArray[Any] = np.load(target, mmap_mode="r")
    return pixels
