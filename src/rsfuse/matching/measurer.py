"""What measures displacements on a lattice: templates as they are, or CSTF.

The matcher asks a `Measurer` and does not know which one answers.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from rsfuse.matching.fine import Displacements, measure
from rsfuse.matching.structure import FloatImage, Mask, Structure, structure_channels

FloatArray = npt.NDArray[np.float64]


class View(Protocol):
    """One image on a lattice, prepared for a measurer."""

    @property
    def structure(self) -> Structure:
        """Its structure channels: keypoints come from them."""


V = TypeVar("V", bound=View)


class Measurer(Protocol[V]):
    """Measures how far places of one image are displaced in another on the same lattice.

    Attributes:
        name: The method, as in results and reports.
        weights: What it was trained into, with a checksum; None without training.
    """

    name: str
    weights: str | None

    def prepare(self, image: FloatImage, valid: Mask) -> V:
        """Look at one image.

        Args:
            image: (C, H, W).
            valid: (H, W).
        """

    def measure(
        self, own: V, other: V, xy0: FloatArray, xy1: FloatArray, *, template: int, radius: int
    ) -> tuple[Displacements, Displacements]:
        """Displacements of places of each image in the other.

        Args:
            own: The reference.
            other: The query, placed by what is known so far.
            xy0: (N, 2) keypoints of the reference.
            xy1: (M, 2) keypoints of the query.
            template: Side of the surroundings that are compared, pixels.
            radius: Largest displacement, pixels.

        Returns:
            Of places of the reference in the query, and the other way round.
        """


class PlainView:
    """Structure channels alone."""

    def __init__(self, structure: Structure) -> None:
        self.structure = structure


class TemplateMeasurer:
    """The training-free measurer: correlation of structure channels, see `fine`."""

    name = "classic"
    weights: str | None = None

    def prepare(self, image: FloatImage, valid: Mask) -> PlainView:
        """Structure channels."""
        return PlainView(structure_channels(image, valid))

    def measure(
        self,
        own: PlainView,
        other: PlainView,
        xy0: FloatArray,
        xy1: FloatArray,
        *,
        template: int,
        radius: int,
    ) -> tuple[Displacements, Displacements]:
        """See `Measurer`; templates reach over the border by up to half of themselves."""
        pad = template // 2
        left, right = (
            Structure(np.pad(s.z, ((0, 0), (pad, pad), (pad, pad))), np.pad(s.valid, pad))
            for s in (own.structure, other.structure)
        )

        def one_way(a: Structure, b: Structure, xy: FloatArray) -> Displacements:
            moved = measure(a, b, xy + pad, template=template, radius=radius)
            return moved._replace(xy=moved.xy - pad)

        return one_way(left, right, xy0), one_way(right, left, xy1)


AnyMeasurer = Measurer[Any]
