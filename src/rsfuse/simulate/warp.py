"""Known geometry: from pixels of the reference to pixels of the query, and exactly back.

Points are (x, y), (0, 0) the outer corner of the first pixel.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rsfuse.errors import InputError
from rsfuse.simulate.noise import generator
from rsfuse.simulate.scene import Scene
from rsfuse.simulate.terrain import Field

Points = NDArray[np.float64]

MODELS = ("none", "shift", "affine", "homography", "smooth", "relief")

# Nodes of a lattice on which a smooth mapping is evaluated for whole images.
_LATTICE_PX = 8

# The inverse of a smooth mapping is iterated until nothing moves by more than this.
_INVERSE_PX = 1e-9
_MOST_ITERATIONS = 100


class Warp(Protocol):
    """A mapping from reference pixels to query pixels."""

    @property
    def model(self) -> str:
        """One of `MODELS`."""

    @property
    def matrix(self) -> NDArray[np.float64] | None:
        """3 x 3, acting on columns (x, y, 1); None where the mapping has none."""

    def forward(self, points: Points) -> Points:
        """Query pixels of reference pixels (N, 2)."""

    def inverse(self, points: Points) -> Points:
        """Reference pixels of query pixels (N, 2)."""


@dataclass(frozen=True)
class MatrixWarp:
    """A shift, affine map or homography.

    Attributes:
        matrix: 3 x 3, acting on columns (x, y, 1).
        model: Its kind.
    """

    matrix: NDArray[np.float64]
    model: str

    def forward(self, points: Points) -> Points:
        """Query pixels of reference pixels (N, 2)."""
        return _project(self.matrix, points)

    def inverse(self, points: Points) -> Points:
        """Reference pixels of query pixels (N, 2)."""
        return _project(np.linalg.inv(self.matrix), points)


@dataclass(frozen=True)
class SmoothWarp:
    """An affine map after a smooth displacement by sums of sines.

    Attributes:
        base: 3 x 3 affine map.
        waves: One row per wave: wave vector (2) per pixel, displacement (2) in pixels, phase.
    """

    base: NDArray[np.float64]
    waves: NDArray[np.float64]

    model = "smooth"
    matrix = None

    def forward(self, points: Points) -> Points:
        """Query pixels of reference pixels (N, 2)."""
        return _project(self.base, points + self._displacement(points))

    def inverse(self, points: Points) -> Points:
        """Reference pixels of query pixels (N, 2)."""
        return _undo(_project(np.linalg.inv(self.base), points), self._displacement)

    def _displacement(self, points: Points) -> Points:
        phase = points @ self.waves[:, :2].T + self.waves[:, 4]
        return np.asarray(np.sin(phase) @ self.waves[:, 2:4])


@dataclass(frozen=True)
class ReliefWarp:
    """An affine map after the lean of the terrain in an oblique view that nobody corrected.

    Attributes:
        base: 3 x 3 affine map.
        terrain_m: Height of the ground.
        gsd_m: Size of a reference pixel.
        lean: Displacement (x, y) of the ground per height, the tangent of the view angle.
    """

    base: NDArray[np.float64]
    terrain_m: Field
    gsd_m: float
    lean: tuple[float, float]

    model = "relief"
    matrix = None

    def forward(self, points: Points) -> Points:
        """Query pixels of reference pixels (N, 2)."""
        return _project(self.base, points + self._displacement(points))

    def inverse(self, points: Points) -> Points:
        """Reference pixels of query pixels (N, 2)."""
        return _undo(_project(np.linalg.inv(self.base), points), self._displacement)

    def _displacement(self, points: Points) -> Points:
        height = self.terrain_m.at(points * self.gsd_m, order=3)
        return np.asarray(height[:, None] / self.gsd_m * np.asarray(self.lean))


def make_warp(
    model: str,
    scene: Scene,
    *,
    rng: np.random.Generator | None = None,
    shift_px: float | None = None,
    rotation_deg: float = 4.0,
    scale: float = 1.04,
) -> Warp | None:
    """A random warp of a kind for a scene; None for "none".

    Args:
        model: One of `MODELS`.
        scene: Gives size and relief.
        rng: By default a generator of the scene's own seed.
        shift_px: Length of the shift; by default 3 % of the longer side.
        rotation_deg: Most rotation, except for a shift.
        scale: Most change of scale, up or down, except for a shift.

    Raises:
        InputError: An unknown model.
    """
    if model not in MODELS:
        raise InputError(
            f"warp {model!r} is unknown",
            f"the warps are {', '.join(MODELS)}",
            "for example --warp affine",
        )
    if model == "none":
        return None
    rng = generator(scene.seed, "warp", model) if rng is None else rng
    h, w = scene.shape
    length = 0.03 * max(h, w) if shift_px is None else shift_px
    way = rng.uniform(0, 2 * np.pi)
    shift = length * np.array([np.cos(way), np.sin(way)])
    if model == "shift":
        return MatrixWarp(_translation(*shift), "shift")
    angle = np.deg2rad(rotation_deg) * rng.uniform(0.4, 1.0) * rng.choice([-1.0, 1.0])
    grow = scale ** (rng.uniform(0.4, 1.0) * rng.choice([-1.0, 1.0]))
    shear = rng.uniform(-0.012, 0.012, 2) if model in ("affine", "homography") else np.zeros(2)
    linear = np.array(
        [
            [grow * np.cos(angle) * (1 + shear[0]), -grow * np.sin(angle) + shear[1]],
            [grow * np.sin(angle), grow * np.cos(angle) * (1 - shear[0])],
        ]
    )
    base = np.eye(3)
    base[:2, :2] = linear
    base = _translation(*shift) @ _translation(w / 2, h / 2) @ base @ _translation(-w / 2, -h / 2)
    if model == "affine":
        return MatrixWarp(base, "affine")
    if model == "homography":
        tilt = np.eye(3)
        tilt[2, :2] = rng.uniform(0.02, 0.045, 2) * rng.choice([-1.0, 1.0], 2) / (w, h)
        centred = _translation(w / 2, h / 2) @ tilt @ _translation(-w / 2, -h / 2)
        return MatrixWarp(base @ centred, "homography")
    if model == "smooth":
        return SmoothWarp(base, _waves(max(h, w), rng))
    lean = np.tan(np.deg2rad(rng.uniform(18, 28))) * np.array([np.cos(way), np.sin(way)])
    return ReliefWarp(base, scene.terrain_m, scene.gsd_m, (float(lean[0]), float(lean[1])))


def _waves(side_px: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Waves of 0.4 to 1.3 sides, that displace by up to about 0.6 % of the side each."""
    waves = []
    for _ in range(5):
        angle, way, phase = rng.uniform(0, 2 * np.pi, 3)
        k = 2 * np.pi / (side_px * rng.uniform(0.4, 1.3))
        size = side_px * rng.uniform(0.002, 0.006)
        waves.append(
            [k * np.cos(angle), k * np.sin(angle), size * np.cos(way), size * np.sin(way), phase]
        )
    return np.array(waves)


class Displacement:
    """A mapping minus the identity at the pixel centres of an image, by rows.

    A matrix is evaluated at each pixel; a smooth mapping on a lattice, with cubic interpolation
    between its nodes (the tests bound the error by 0.01 pixels).
    """

    def __init__(self, warp: Warp, shape: tuple[int, int], *, inverse: bool) -> None:
        self._shape = shape
        self._mapping = warp.inverse if inverse else warp.forward
        self._fields: tuple[Field, ...] = ()
        if warp.matrix is None:
            self._fields = self._sample()

    def _sample(self) -> tuple[Field, ...]:
        # Two cells beyond each edge keep cubic interpolation inside the lattice.
        cells = [-(-side // _LATTICE_PX) + 4 for side in self._shape]
        y, x = (np.indices(cells).reshape(2, -1) - 1.5) * _LATTICE_PX
        points = np.column_stack((x, y))
        moved = self._mapping(points) - points
        return tuple(Field(axis.reshape(cells), float(_LATTICE_PX)) for axis in moved.T)

    def rows(self, start: int, stop: int) -> NDArray[np.float64]:
        """(stop - start, w, 2) displacement of the pixel centres of rows `start` to `stop`."""
        w = self._shape[1]
        if not self._fields:
            y, x = np.mgrid[start:stop, 0:w] + 0.5
            points = np.column_stack((x.ravel(), y.ravel()))
            moved = (self._mapping(points) - points).reshape(stop - start, w, 2)
            return np.asarray(moved, np.float64)
        pad = 2 * _LATTICE_PX
        wide = (self._shape[0] + 2 * pad, w + 2 * pad)
        parts = [f.rows(wide, 1.0, start + pad, stop + pad)[:, pad:-pad] for f in self._fields]
        return np.asarray(np.stack(parts, axis=-1), np.float64)


def _undo(target: Points, displacement: Callable[[Points], Points]) -> Points:
    """The points p with p + displacement(p) = target, by fixed-point iteration."""
    points = target - displacement(target)
    for _ in range(_MOST_ITERATIONS):
        better = target - displacement(points)
        moved = float(np.abs(better - points).max(initial=0.0))
        points = better
        if moved < _INVERSE_PX:
            break
    return points


def _project(matrix: NDArray[np.floating], points: NDArray[np.floating]) -> Points:
    moved = points @ matrix[:, :2].T + matrix[:, 2]
    return np.asarray(moved[:, :2] / moved[:, 2:])


def _translation(x: float, y: float) -> NDArray[np.float64]:
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])
