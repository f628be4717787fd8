"""Plane transforms: fit, apply, invert. Points are (x, y), (0, 0) the outer corner of a pixel.

A `Transform` maps reference pixels to query pixels. It is a 3 x 3 matrix (shift, rigid, similarity,
affine or homography) or a matrix plus a smooth displacement field on a lattice of cubic B-splines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rsfuse.errors import InputError

FloatArray = npt.NDArray[np.float64]

# Parameters of each model; the order is the order of growing freedom.
PARAMETERS = {"shift": 2, "rigid": 3, "similarity": 4, "affine": 6, "homography": 8}
LEAST_DENOMINATOR = 0.02  # of a homography at the points it is fitted to, against their centre
MINIMUM_POINTS = {"shift": 1, "rigid": 2, "similarity": 2, "affine": 3, "homography": 4}


def as_points(xy: npt.ArrayLike) -> FloatArray:
    """Points as a (N, 2) float64 array."""
    points = np.asarray(xy, dtype=np.float64)
    return points.reshape(-1, 2)


def apply_matrix(matrix: npt.NDArray[Any], xy: npt.ArrayLike) -> FloatArray:
    """(N, 2) points through a (3, 3) matrix; points behind the horizon become NaN."""
    points = as_points(xy)
    homogeneous = points @ matrix[:, :2].T + matrix[:, 2]
    w = homogeneous[:, 2:]
    with np.errstate(divide="ignore", invalid="ignore"):
        mapped = homogeneous[:, :2] / w
    return np.where(w > 0, mapped, np.nan)


def for_opencv(matrix: npt.NDArray[Any]) -> FloatArray:
    """(3, 3) the same map for OpenCV, which counts from the centre of the first pixel."""
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    return np.asarray(np.linalg.inv(half) @ matrix @ half, dtype=np.float64)


def jacobian_of(matrix: npt.NDArray[Any], xy: npt.ArrayLike) -> FloatArray:
    """(N, 2, 2) derivative of a (3, 3) matrix at points; NaN behind the horizon."""
    points = as_points(xy)
    w = points @ matrix[2, :2] + matrix[2, 2]
    w = np.where(w > 0, w, np.nan)[:, None, None]
    mapped = apply_matrix(matrix, points)
    return np.asarray((matrix[:2, :2] - mapped[:, :, None] * matrix[2, :2]) / w)


def is_invertible(matrix: FloatArray) -> bool:
    """Whether this is a (3, 3) matrix of finite numbers that has an inverse."""
    return bool(matrix.shape == (3, 3) and np.isfinite(matrix).all() and np.linalg.det(matrix))


def derivative(mapping: Callable[[FloatArray], FloatArray], xy: npt.ArrayLike) -> FloatArray:
    """(N, 2, 2) derivative of a mapping of points, by differences over a pixel."""
    points = as_points(xy)
    steps = 0.5 * np.eye(2)
    columns = [mapping(points + step) - mapping(points - step) for step in steps]
    return np.stack(columns, axis=-1)


def unit_matrix(matrix: npt.NDArray[Any]) -> FloatArray:
    """The same map with a last entry of 1, or of -1 where the origin lies behind its horizon.

    The sign of a homography is part of it: it says which side of the horizon can be seen.
    """
    last = abs(float(matrix[2, 2]))
    return np.asarray(matrix / (last if last > 1e-12 * np.abs(matrix).max() else 1.0), np.float64)


def rotation_scale_of(matrix: FloatArray, at: npt.ArrayLike = (0.0, 0.0)) -> tuple[float, float]:
    """Rotation in degrees (clockwise on the screen) and scale of a matrix near a point.

    A matrix that mirrors has no rotation: NaN.
    """
    a = jacobian_of(matrix, as_points(at))[0]
    area = float(np.linalg.det(a))
    rotation = float(np.degrees(np.arctan2(a[1, 0] - a[0, 1], a[0, 0] + a[1, 1])))
    return rotation if area > 0 else math.nan, math.sqrt(abs(area))


@dataclass(frozen=True, eq=False)
class SplineField:
    """A displacement field: cubic B-splines on a lattice over a rectangle.

    Attributes:
        origin: (x, y) of the rectangle, pixels of the reference.
        spacing: Knot distance (x, y) in pixels.
        coefficients: (rows, columns, 2) in query pixels; rows = cells + 3.
    """

    origin: tuple[float, float]
    spacing: tuple[float, float]
    coefficients: FloatArray

    @property
    def cells(self) -> tuple[int, int]:
        """(rows, columns) of lattice cells."""
        return self.coefficients.shape[0] - 3, self.coefficients.shape[1] - 3

    def __call__(self, xy: npt.ArrayLike) -> FloatArray:
        """(N, 2) displacement; beyond the rectangle that of its nearest edge."""
        points = as_points(xy)
        rows, weights = self.basis(points)
        flat = self.coefficients.reshape(-1, 2)
        return np.asarray(np.einsum("nk,nkd->nd", weights, flat[rows]))

    def basis(self, xy: FloatArray) -> tuple[npt.NDArray[np.intp], FloatArray]:
        """Indices (N, 16) into the flattened lattice and their weights (N, 16)."""
        cell_rows, cell_columns = self.cells
        u = np.clip((xy[:, 0] - self.origin[0]) / self.spacing[0], 0, cell_columns - 1e-9)
        v = np.clip((xy[:, 1] - self.origin[1]) / self.spacing[1], 0, cell_rows - 1e-9)
        # What lies nowhere has no displacement: weights of NaN, at an index that exists.
        i, j = (np.where(np.isnan(axis), 0, axis).astype(np.intp) for axis in (u, v))
        bu, bv = _cubic(u - i), _cubic(v - j)
        columns = i[:, None] + np.arange(4)
        rows = j[:, None] + np.arange(4)
        index = rows[:, :, None] * (cell_columns + 3) + columns[:, None, :]
        weights = bv[:, :, None] * bu[:, None, :]
        return index.reshape(len(xy), 16), weights.reshape(len(xy), 16)


def _cubic(t: FloatArray) -> FloatArray:
    """The four uniform cubic B-spline weights at t in [0, 1): (N, 4)."""
    return (
        np.stack(
            [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1
        )
        / 6.0
    )


@dataclass(frozen=True, eq=False)
class Transform:
    """Reference pixels -> query pixels.

    Attributes:
        model: `shift`, `rigid` (turn and shift), `similarity`, `affine`, `homography` or `smooth`.
        base: (3, 3) matrix.
        field: Displacement added in query pixels, for `smooth`.
    """

    model: str
    base: FloatArray
    field: SplineField | None = None

    @property
    def matrix(self) -> FloatArray | None:
        """The (3, 3) matrix, or None where a field is needed too."""
        return None if self.field is not None else self.base

    def apply(self, xy: npt.ArrayLike) -> FloatArray:
        """(N, 2) query pixels of (N, 2) reference pixels."""
        points = as_points(xy)
        mapped = apply_matrix(self.base, points)
        return mapped if self.field is None else mapped + self.field(points)

    def invert(self, xy: npt.ArrayLike, *, steps: int = 20) -> FloatArray:
        """(N, 2) reference pixels of (N, 2) query pixels; by fixed point for a field."""
        points = as_points(xy)
        back = np.asarray(np.linalg.inv(self.base), np.float64)
        found = apply_matrix(back, points)
        if self.field is None:
            return found
        for _ in range(steps):
            update = apply_matrix(back, points - self.field(found))
            gap = np.abs(update - found)
            found = update
            if not gap.max(where=np.isfinite(gap), initial=0.0) > 1e-9:
                break
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        field = self.field
        return {
            "model": self.model,
            "matrix": self.base.tolist(),
            "field": None
            if field is None
            else {
                "basis": "uniform cubic B-spline",
                "origin": list(field.origin),
                "spacing": list(field.spacing),
                "coefficients": field.coefficients.tolist(),
            },
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Transform:
        """The inverse of `to_dict`.

        Raises:
            InputError: The content is not a transform.
        """
        try:
            model = content["model"]
            matrix = np.asarray(content["matrix"], np.float64)
            stored = content.get("field")
            field = None if stored is None else _field_from(stored)
        except (
            AttributeError,
            KeyError,
            TypeError,
            ValueError,
            IndexError,
            OverflowError,
        ) as error:
            if isinstance(error, InputError):
                raise
            raise _no_transform(f"{type(error).__name__} {error}") from error
        if model not in (*PARAMETERS, "smooth"):
            raise _no_transform(f"the model is {model!r}")
        if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
            raise _no_transform("the matrix is not 3 x 3 finite numbers")
        if not np.linalg.cond(matrix) < 1e15:
            raise _no_transform("the matrix cannot be inverted")
        if (model == "smooth") != (field is not None):
            raise _no_transform(
                f"a {model} transform {'without a' if field is None else 'with a'} field"
            )
        return cls(model, matrix, field)


def _field_from(stored: Mapping[str, Any]) -> SplineField:
    origin, spacing = (tuple(float(v) for v in stored[key]) for key in ("origin", "spacing"))
    lattice = np.asarray(stored["coefficients"], np.float64)
    if len(origin) != 2 or len(spacing) != 2 or not np.isfinite([*origin, *spacing]).all():
        raise _no_transform("the lattice has no origin and spacing of two numbers each")
    if min(spacing) <= 0:
        raise _no_transform(f"the lattice has a spacing of {spacing}")
    if lattice.ndim != 3 or lattice.shape[2] != 2 or min(lattice.shape[:2]) < 4:
        raise _no_transform(f"the lattice has the shape {lattice.shape}")
    if not np.isfinite(lattice).all():
        raise _no_transform("the lattice holds numbers that are not finite")
    return SplineField((origin[0], origin[1]), (spacing[0], spacing[1]), lattice)


def _no_transform(found: str) -> InputError:
    return InputError(
        f"this is no transform: {found}",
        "needed are a model, an invertible 3 x 3 matrix and, for smooth, a lattice of at least "
        "4 x 4 displacements",
        "take what Transform.to_dict gives",
    )


def fit_matrix(
    model: str, xy0: npt.ArrayLike, xy1: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> FloatArray:
    """The (3, 3) matrix of a model that maps xy0 to xy1 best in weighted least squares.

    Args:
        model: `shift`, `rigid`, `similarity`, `affine` or `homography`.
        xy0: (N, 2) points.
        xy1: (N, 2) points.
        weights: (N,) inverse variances up to a factor; all 1 when None.

    Returns:
        The denominator is positive at the points.

    Raises:
        InputError: Unknown model, too few points of any weight, or points that do not determine it.
    """
    p, q, w = _usable_points(model, xy0, xy1, weights)
    if model == "shift":
        matrix = np.eye(3)
        matrix[:2, 2] = np.average(q - p, axis=0, weights=w)
        return matrix
    if model == "rigid":
        return _rigid(p, q, w)
    # Centred and scaled coordinates keep the normal equations well conditioned.
    n0, n1 = _normaliser(p, w), _normaliser(q, w)
    a, b = apply_matrix(n0, p), apply_matrix(n1, q)
    if model == "homography":
        h = _homography(a, b, w)
    else:
        design, target = _design(model, a, b)
        root = np.sqrt(np.repeat(w, 2))
        solution, _, rank, _ = np.linalg.lstsq(design * root[:, None], target * root, rcond=None)
        if rank < design.shape[1]:
            raise _undetermined(model)
        h = np.eye(3)
        if model == "similarity":
            c, s, tx, ty = solution
            h[:2] = [[c, -s, tx], [s, c, ty]]
        else:
            h[:2] = solution.reshape(2, 3)
    matrix = np.linalg.inv(n1) @ h @ n0
    if np.median(p @ matrix[2, :2] + matrix[2, 2]) < 0:
        matrix = -matrix
    return unit_matrix(matrix)


def _usable_points(
    model: str, xy0: npt.ArrayLike, xy1: npt.ArrayLike, weights: npt.ArrayLike | None
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Points and weights of a fit, once it is known that they can be fitted."""
    p, q = as_points(xy0), as_points(xy1)
    w = np.ones(len(p)) if weights is None else np.asarray(weights, np.float64)
    if model not in PARAMETERS:
        raise InputError(
            f"unknown model {model!r}", f"the models are {', '.join(PARAMETERS)}", "choose one"
        )
    if len(p) != len(q) or w.shape != (len(p),):
        raise InputError(
            f"{len(p)} points, {len(q)} counterparts and weights of shape {w.shape}",
            "each point needs one of both",
            "pass arrays of one length",
        )
    if not all(np.isfinite(column).all() for column in (p, q, w)) or (w < 0).any():
        raise InputError(
            "points or weights that are not finite, or weights below 0",
            "a fit needs positions and weights that are numbers",
            "leave such points out",
        )
    if np.count_nonzero(w) < MINIMUM_POINTS[model]:
        raise InputError(
            f"{model} needs {MINIMUM_POINTS[model]} points with a weight above 0, "
            f"got {np.count_nonzero(w)} of {len(p)}",
            "fewer do not determine it",
            "give more points, or a model with fewer parameters",
        )
    return p, q, w


def _undetermined(model: str) -> InputError:
    return InputError(
        f"the points do not determine a {model}",
        "they coincide, or lie on a line",
        "give points that are spread, or a model with fewer parameters",
    )


def _normaliser(xy: FloatArray, weights: FloatArray) -> FloatArray:
    centre = np.average(xy, axis=0, weights=weights)
    spread = np.sqrt(np.average(((xy - centre) ** 2).sum(axis=1), weights=weights)) + 1e-12
    matrix = np.diag([1 / spread, 1 / spread, 1.0])
    matrix[:2, 2] = -centre / spread
    return matrix


def _design(model: str, p: FloatArray, q: FloatArray) -> tuple[FloatArray, FloatArray]:
    n = len(p)
    one, zero = np.ones(n), np.zeros(n)
    x, y = p.T
    if model == "similarity":
        rows_x = np.stack([x, -y, one, zero], 1)
        rows_y = np.stack([y, x, zero, one], 1)
    else:
        rows_x = np.stack([x, y, one, zero, zero, zero], 1)
        rows_y = np.stack([zero, zero, zero, x, y, one], 1)
    design = np.stack([rows_x, rows_y], 1).reshape(2 * n, -1)
    return design, q.reshape(-1)


def _rigid(p: FloatArray, q: FloatArray, w: FloatArray) -> FloatArray:
    """Turn and shift, as Kabsch (1976) in the plane: the angle is that of the summed products."""
    middle0, middle1 = np.average(p, axis=0, weights=w), np.average(q, axis=0, weights=w)
    a, b = (p - middle0) @ [1, 1j], (q - middle1) @ [1, 1j]
    product = complex((w * np.conj(a) * b).sum())
    if abs(product) <= 1e-12 * float((w * np.abs(a) * np.abs(b)).sum()):
        raise _undetermined("rigid")
    turn = product / abs(product)
    matrix = np.array([[turn.real, -turn.imag, 0.0], [turn.imag, turn.real, 0.0], [0.0, 0.0, 1.0]])
    matrix[:2, 2] = middle1 - matrix[:2, :2] @ middle0
    return matrix


def _homography(p: FloatArray, q: FloatArray, w: FloatArray) -> FloatArray:
    """Gauss-Newton on the transfer error, started from the affine fit (h33 = 1)."""
    design, target = _design("affine", p, q)
    root = np.sqrt(np.repeat(w, 2))
    h = np.append(np.linalg.lstsq(design * root[:, None], target * root, rcond=None)[0], [0.0, 0.0])
    n = len(p)
    x, y = p.T
    for _ in range(12):
        m = np.array([[h[0], h[1], h[2]], [h[3], h[4], h[5]], [h[6], h[7], 1.0]])
        hom = p @ m[:, :2].T + m[:, 2]
        inv = 1.0 / hom[:, 2]
        u, v = hom[:, 0] * inv, hom[:, 1] * inv
        zero = np.zeros(n)
        jx = np.stack([x * inv, y * inv, inv, zero, zero, zero, -u * x * inv, -u * y * inv], 1)
        jy = np.stack([zero, zero, zero, x * inv, y * inv, inv, -v * x * inv, -v * y * inv], 1)
        jacobian = np.stack([jx, jy], 1).reshape(2 * n, 8)
        residual = (q - np.stack([u, v], 1)).reshape(-1)
        step, _, rank, _ = np.linalg.lstsq(jacobian * root[:, None], residual * root, rcond=None)
        if rank < 8:
            raise _undetermined("homography")
        # No step puts a point behind the horizon: from there the error has no way back.
        while ((p @ (h + step)[6:] + 1.0)[w > 0] < LEAST_DENOMINATOR).any():
            step = step / 2
        h = h + step
        if np.abs(step).max() < 1e-12:
            break
    return np.array([[h[0], h[1], h[2]], [h[3], h[4], h[5]], [h[6], h[7], 1.0]])


def fit_field(
    xy: FloatArray,
    displacement: FloatArray,
    weights: FloatArray,
    *,
    area: tuple[float, float, float, float],
    cells: tuple[int, int],
    stiffness: float,
) -> SplineField:
    """A smooth displacement field through scattered displacements.

    Minimises the weighted squared misfit plus `stiffness` times the squared second differences of
    the lattice (P-splines, Eilers and Marx 1996).

    Args:
        xy: (N, 2) positions.
        displacement: (N, 2).
        weights: (N,).
        area: (x, y, width, height) that the lattice covers.
        cells: (rows, columns) of the lattice.
        stiffness: Penalty against bending, relative to the mean data weight of a cell.

    Raises:
        InputError: No sample has a weight above 0, or one is not a number.
    """
    from scipy import sparse
    from scipy.sparse.linalg import spsolve

    samples = (xy, displacement, weights)
    if not all(np.isfinite(column).all() for column in samples) or not weights.sum() > 0:
        raise InputError(
            f"{len(xy)} displacements with weights that sum to {weights.sum():g}",
            "a field needs samples with weights above 0, all of them finite",
            "leave the others out",
        )

    rows, columns = cells[0] + 3, cells[1] + 3
    empty = SplineField(
        (area[0], area[1]),
        (area[2] / cells[1], area[3] / cells[0]),
        np.zeros((rows, columns, 2)),
    )
    index, basis = empty.basis(xy)
    n = len(xy)
    design = sparse.csr_matrix(
        (basis.ravel(), (np.repeat(np.arange(n), 16), index.ravel())), shape=(n, rows * columns)
    )
    second = [
        sparse.diags_array([1.0, -2.0, 1.0], offsets=[0, 1, 2], shape=(k - 2, k))
        for k in (rows, columns)
    ]
    bend_y = sparse.kron(second[0], sparse.eye_array(columns))
    bend_x = sparse.kron(sparse.eye_array(rows), second[1])
    load = stiffness * float(weights.sum()) / (cells[0] * cells[1])
    normal = design.T @ sparse.diags_array(weights) @ design
    normal = normal + load * (bend_y.T @ bend_y + bend_x.T @ bend_x)
    normal = (normal + 1e-6 * load * sparse.eye_array(rows * columns)).tocsc()
    right = design.T @ (weights[:, None] * displacement)
    solution = np.stack([spsolve(normal, right[:, k]) for k in range(2)], axis=1)
    return SplineField(empty.origin, empty.spacing, solution.reshape(rows, columns, 2))
