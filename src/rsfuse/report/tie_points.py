"""Tie points as a run folder stores them, ready to be drawn."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsfuse.errors import InputError

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

POSITIONS = {"x_ref", "y_ref", "x_query", "y_query", "X_ref", "Y_ref"}
MEASURES = {"dx_px", "dy_px", "residual_px", "probability", "kept", "held_out_px", "reason"}

# A fitted geotransform is believed when it repeats the map coordinates to this share of a pixel;
# the file stores coordinates rounded, and a grid that is no affine frame misses by far more.
GEOTRANSFORM_TOLERANCE_PX = 0.01


@dataclass(frozen=True)
class TiePoints:
    """The rows of `tie_points.csv` as columns, N of each.

    Attributes:
        reference: Positions in reference pixels (N, 2).
        query: Positions in query pixels (N, 2).
        residual: Residual vectors of the fit in query pixels (N, 2).
        residual_px: Their lengths.
        probability: Probability that the tie point is right, in [0, 1].
        kept: Used by the final fit.
        held_out_px: Distance by a fit that did not see the tie point; NaN where it was left out.
        reason: Why a tie point was left out; empty where it was not.
        map: Positions in map units of the reference (N, 2); NaN without a CRS.
    """

    reference: Floats
    query: Floats
    residual: Floats
    residual_px: Floats
    probability: Floats
    kept: Flags
    held_out_px: Floats
    reason: tuple[str, ...]
    map: Floats

    def __len__(self) -> int:
        return len(self.residual_px)

    @property
    def used(self) -> Flags:
        """Kept, with a finite residual."""
        return self.kept & np.isfinite(self.residual_px)


def read_tie_points(path: Path) -> TiePoints:
    """Read `tie_points.csv`.

    Raises:
        InputError: The file is missing, lacks a column, or holds text where a number belongs.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            table = csv.DictReader(file)
            rows = list(table)
        missing = (POSITIONS | MEASURES) - set(table.fieldnames or ())
        if missing:
            raise KeyError(", ".join(sorted(missing)))
        return TiePoints(
            reference=_columns(rows, "x_ref", "y_ref"),
            query=_columns(rows, "x_query", "y_query"),
            residual=_columns(rows, "dx_px", "dy_px"),
            residual_px=_columns(rows, "residual_px")[:, 0],
            probability=_columns(rows, "probability")[:, 0],
            kept=_columns(rows, "kept")[:, 0] > 0,
            held_out_px=_columns(rows, "held_out_px")[:, 0],
            reason=tuple(row["reason"] or "" for row in rows),
            map=_columns(rows, "X_ref", "Y_ref"),
        )
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(
            f"{path} cannot be read: {type(error).__name__}: {error}",
            "a page needs the table of tie points as the run wrote it",
            "run the command again",
        ) from error


def fit_geotransform(points: TiePoints) -> tuple[float, ...] | None:
    """The reference's geotransform (a, b, c, d, e, f) that its tie points imply.

    X = a x + b y + c, Y = d x + e y + f. None without map coordinates, with fewer than three tie
    points or all on a line, and where the frame is not affine.
    """
    finite = np.isfinite(points.map).all(axis=1)
    pixels, world = points.reference[finite], points.map[finite]
    if len(pixels) < 3:
        return None
    origin, centre = pixels.mean(axis=0), world.mean(axis=0)
    linear, _, rank, _ = np.linalg.lstsq(pixels - origin, world - centre, rcond=1e-9)
    if rank < 2:
        return None
    missed = np.abs((pixels - origin) @ linear - (world - centre)).max()
    pixel_size = np.sqrt(abs(np.linalg.det(linear)))
    if missed > GEOTRANSFORM_TOLERANCE_PX * pixel_size:
        return None
    (a, d), (b, e) = linear.tolist()
    c, f = (centre - origin @ linear).tolist()
    return a, b, c, d, e, f


def fit_affine(points: TiePoints) -> Floats | None:
    """The affine transform (3, 3) nearest to the kept tie points; None below three of them.

    Where a run found a smooth field and no matrix, this tells how its axes lie on the whole.
    """
    pixels, there = points.reference[points.used], points.query[points.used]
    if len(pixels) < 3:
        return None
    homogeneous = np.column_stack([pixels, np.ones(len(pixels))])
    solved, _, rank, _ = np.linalg.lstsq(homogeneous, there, rcond=None)
    return np.vstack([solved.T, [0.0, 0.0, 1.0]]) if rank == 3 else None


def to_reference_frame(points: TiePoints, transform: Floats | None) -> Floats:
    """Residual vectors (N, 2) turned into the reference's axes and pixel size.

    Residuals are in query pixels; on a picture of the reference grid they must be rotated and
    scaled back by the derivative of the transform at each point. Without a transform (3, 3) the
    affine fit of the tie points takes its place.
    """
    transform = fit_affine(points) if transform is None else transform
    if transform is None or not len(points):
        return points.residual
    homogeneous = np.column_stack([points.reference, np.ones(len(points))]) @ transform.T
    weight = homogeneous[:, 2, None, None]
    position = (homogeneous[:, :2] / weight[:, 0])[:, :, None]
    derivative = (transform[None, :2, :2] - position * transform[None, None, 2, :2]) / weight
    turned = np.linalg.solve(derivative, points.residual[:, :, None])[:, :, 0]
    return turned.astype(np.float64, copy=False)


def _columns(rows: list[dict[str, Any]], *names: str) -> Floats:
    """Columns (N, len(names)); an empty cell is NaN."""
    cells = [[float(row[name] or "nan") for name in names] for row in rows]
    return np.array(cells, dtype=np.float64).reshape(len(rows), len(names))
