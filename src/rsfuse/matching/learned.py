"""CSTF at work: displacements on a lattice by a trained `CstfMatcher`."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from rsfuse.engine.bundle import load_bundle
from rsfuse.errors import InputError
from rsfuse.matching.fine import Displacements, paraboloid, read_surfaces
from rsfuse.matching.inputs import NetworkInput, network_channels
from rsfuse.matching.model import (
    CELL,
    CstfMatcher,
    Described,
    patch_of,
)
from rsfuse.matching.structure import FloatImage, Mask

FloatArray = npt.NDArray[np.float64]

SHIPPED = "cstf"
ARCHITECTURE = "cstf"
CHUNK = 512  # anchors that the head reads at once: bounds memory
NEAR = 2  # positions around the peak whose probability counts as its own


class CstfMeasurer:
    """The learned measurer.

    Args:
        model: A trained network.
        weights: Its name and checksum.
    """

    name = "cstf"

    def __init__(self, model: CstfMatcher, weights: str | None = None) -> None:
        self.model = model.eval()
        self.weights = weights

    def prepare(self, image: FloatImage, valid: Mask) -> NetworkInput:
        """Structure channels, grey values and keypoints."""
        return network_channels(image, valid)

    def measure(
        self,
        own: NetworkInput,
        other: NetworkInput,
        xy0: FloatArray,
        xy1: FloatArray,
        *,
        template: int,
        radius: int,
    ) -> tuple[Displacements, Displacements]:
        """See `Measurer`. Places are the corners of 8 x 8 blocks nearest to the keypoints.

        The sizes of the templates are those of the network, whatever `template` says.
        """
        anchors0, anchors1 = corners_near(xy0), corners_near(xy1)
        with torch.no_grad():
            image0, image1, mass0, mass1 = self._tensors(own, other)
            first, second, *_ = self.model.describe(image0, image1, mass0, mass1)
            return (
                self._read(first, second, anchors0, radius),
                self._read(second, first, anchors1, radius),
            )

    def _tensors(self, own: NetworkInput, other: NetworkInput) -> list[Tensor]:
        """Images and keypoint masses as batches of one, grown to whole patches."""
        height, width = own.image.shape[1:]
        patch = patch_of((height, width), self.model.patch)
        grow = (0, -width % patch, 0, -height % patch)
        images = [F.pad(torch.from_numpy(v.image)[None], grow) for v in (own, other)]
        rows, columns = (n // CELL for n in images[0].shape[-2:])
        masses = []
        for view in (own, other):
            mass = torch.from_numpy(view.mass)[None]
            masses.append(F.pad(mass, (0, columns - mass.shape[3], 0, rows - mass.shape[2])))
        return [*images, *masses]

    def _read(
        self, own: Described, other: Described, anchors: npt.NDArray[np.intp], radius: int
    ) -> Displacements:
        """Displacements at anchors (A, 2) of `own` by the head."""
        if len(anchors) == 0:
            return Displacements.none()
        places = torch.from_numpy(anchors)[None]
        found = self.model.head.maps(own, other, places, radius)
        known = found.known[0].numpy()
        if not known.any():
            return Displacements.none()
        scores = found.scores[:, found.known[0]]
        chunks = torch.split(scores, CHUNK, dim=1)
        logits = torch.cat([self.model.head(part) for part in chunks], dim=1)[0]
        return displacements_of(
            logits,
            scores[0, :, scores.shape[2] // 2],
            CELL * anchors[known].astype(np.float64),
            radius,
        )


def displacements_of(logits: Tensor, own: Tensor, xy: FloatArray, radius: int) -> Displacements:
    """What the head says, and where exactly.

    The SoftMax says which position it is; where within it, the correlation of the large template
    says: labels are a Gaussian of a pixel, so the distribution is too wide to tell.

    Args:
        logits: (N, S * S + 1).
        own: (N, S, S) correlation of the place itself.
        xy: (N, 2) places.
        radius: r.
    """
    if len(xy) == 0:
        return Displacements.none()
    side = 2 * radius + 1
    surface = logits[:, :-1].reshape(-1, side, side)
    best = logits[:, :-1].argmax(dim=1)
    mass = logits.softmax(dim=1)[:, :-1].reshape(-1, 1, side, side)
    near = F.avg_pool2d(F.pad(mass, (NEAR,) * 4), 2 * NEAR + 1, stride=1) * (2 * NEAR + 1) ** 2
    rows = torch.arange(len(xy))
    shift = peaks_near(own, best, radius)
    probability = near.flatten(1)[rows, best]
    offset = torch.stack([best % side, best // side], dim=1) - radius
    at_edge = torch.maximum(shift, offset).amax(dim=1) > radius - 1
    at_edge |= torch.minimum(shift, offset).amin(dim=1) < 1 - radius
    probability = torch.where(at_edge, 0.0, probability)
    read = read_surfaces(surface.double().numpy(), radius)
    return read._replace(
        xy=xy,
        shift=shift.numpy(),
        score=own.flatten(1)[rows, best].double().numpy(),
        probability=probability.double().numpy(),
    )


def peaks_near(surface: Tensor, cell: Tensor, radius: int) -> Tensor:
    """(N, 2) maxima of surfaces (N, S, S) beside given cells, below a cell by a paraboloid.

    Args:
        surface: Correlations.
        cell: (N,) numbers of cells, row by row; the maximum is looked for in 3 x 3 around each.
        radius: r.
    """
    side = 2 * radius + 1
    y, x = cell // side, cell % side
    axis = torch.arange(side)
    beside = ((axis[:, None] - y[:, None, None]).abs() <= 1) & (
        (axis[None, :] - x[:, None, None]).abs() <= 1
    )
    best = surface.masked_fill(~beside, -torch.inf).flatten(1).argmax(dim=1)
    y, x = (v.clamp(1, side - 2) for v in (best // side, best % side))
    rows, step = torch.arange(len(cell))[:, None, None], torch.arange(-1, 2)
    around = surface[rows, y[:, None, None] + step[:, None], x[:, None, None] + step]
    dx, dy = paraboloid(around.double().numpy())
    place = torch.stack([x, y], dim=1) - radius + torch.from_numpy(np.stack([dx, dy], axis=1))
    return place.double()


def corners_near(xy: FloatArray) -> npt.NDArray[np.intp]:
    """(A, 2) columns and rows of the block corners nearest to places, each once."""
    corners = np.round(xy / CELL).astype(np.intp).reshape(-1, 2)
    return np.unique(corners, axis=0)


@functools.cache
def load_measurer(path: str | Path = SHIPPED) -> CstfMeasurer:
    """The measurer of a bundle.

    Args:
        path: Folder, zip file, or the name of a bundle that comes with rsfuse.

    Raises:
        InputError: Not a bundle of a CSTF matcher.
    """
    bundle = load_bundle(path, "match")
    if bundle.card.architecture != ARCHITECTURE:
        raise InputError(
            f"{path} holds the architecture {bundle.card.architecture!r}",
            f"rsfuse match uses {ARCHITECTURE!r}",
            "train one with rsfuse train match",
        )
    model = CstfMatcher(**bundle.card.arguments)
    bundle.load_into(model)
    checksum = next(iter(bundle.card.files.values()), "")[:12]
    return CstfMeasurer(model, f"{bundle.card.name} {checksum}".strip())
