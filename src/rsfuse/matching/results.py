"""What `match` returns: tie points, a transform, and how far to trust them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rsfuse.matching.trust import Status
from rsfuse.ops.geometry2d import FloatArray, Transform, rotation_scale_of

if TYPE_CHECKING:
    from rsfuse.geo.raster import RasterSource
    from rsfuse.geo.warp import Resampling


@dataclass(frozen=True)
class Reason:
    """Why a result is weak or refused.

    Attributes:
        code: Short fixed word, for programs.
        message: A sentence with the numbers.
        numbers: The numbers themselves.
    """

    code: str
    message: str
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class TiePoints:
    """Places that were found in both images, pixels in the corner convention.

    Attributes:
        xy0: (N, 2) in the reference.
        xy1: (N, 2) in the query.
        probability: (N,) that the tie point is right to within 3 px.
        score: (N,) normalised correlation of the structure channels.
        sigma_px: (N,) standard deviation of the position in the query.
        residual: (N, 2) measured minus fitted, query pixels.
        kept: (N,) whether the transform rests on it.
        held_out_px: (N,) distance to a fit without it; NaN where it was not kept.
        from_query: (N,) whether the keypoint was found in the query.
    """

    xy0: FloatArray
    xy1: FloatArray
    probability: FloatArray
    score: FloatArray
    sigma_px: FloatArray
    residual: FloatArray
    kept: npt.NDArray[np.bool_]
    held_out_px: FloatArray
    from_query: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        """Check that all columns have one length."""
        lengths = {name: len(value) for name, value in vars(self).items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"tie point columns differ in length: {lengths}")

    def __len__(self) -> int:
        """How many tie points."""
        return len(self.xy0)

    @property
    def residual_px(self) -> FloatArray:
        """(N,) length of the residual."""
        return np.asarray(np.hypot(*self.residual.T)) if len(self) else np.zeros(0)

    @property
    def covariances_px2(self) -> FloatArray:
        """(N, 2, 2) covariance of the position in the query."""
        return np.asarray((self.sigma_px**2)[:, None, None] * np.eye(2))

    @classmethod
    def none(cls) -> TiePoints:
        """No tie points at all."""
        pair, one = np.zeros((0, 2)), np.zeros(0)
        no = np.zeros(0, bool)
        return cls(pair, pair, one, one, one, pair, no, one, no)


def summary_px(distance: FloatArray) -> dict[str, float] | None:
    """Median, root mean square and 90th percentile of distances; None without any."""
    known = distance[np.isfinite(distance)]
    if known.size == 0:
        return None
    return {
        "median": float(np.median(known)),
        "rmse": float(np.sqrt(np.mean(known**2))),
        "p90": float(np.quantile(known, 0.9)),
    }


@dataclass(frozen=True, eq=False)
class MatchResult:
    """The answer to "where does the query lie on the reference?".

    Attributes:
        status: `ok`, `weak` (use with care) or `refused` (no transform to rely on).
        confidence: Calibrated probability that the transform is right to within a few pixels.
        reasons: Why the status is not `ok`.
        transform: Reference pixels -> query pixels; None when refused without a guess.
        covariance: (P, P) of the parameters of `placed`, by the scatter of the tie points; None for
            a field.
        tie_points: All measured tie points, kept or not.
        before_px: (N,) distance of kept tie points from where georeference alone, or the same
            pixel, would have them; None where that says nothing.
        diagnostics: Times, evidence, scores of models.
        reference: The reference that was matched.
        query: The query that was matched.
        parameters: What was asked for.
        placed: Reference pixels -> where their content lies by the query's own georeference, as
            reference pixels: what was fitted, of which `transform` is the rest of the way.
    """

    status: Status
    confidence: float
    reasons: tuple[Reason, ...]
    transform: Transform | None
    covariance: FloatArray | None
    tie_points: TiePoints
    before_px: FloatArray | None
    diagnostics: Mapping[str, Any]
    reference: RasterSource
    query: RasterSource
    parameters: Mapping[str, Any]
    placed: Transform | None = None

    @property
    def held_out_px(self) -> dict[str, float] | None:
        """Error of tie points that their own fit did not see: the honest residual."""
        return summary_px(self.tie_points.held_out_px)

    @property
    def transform_px(self) -> FloatArray | None:
        """(3, 3) reference pixels -> query pixels; None without a transform by a matrix."""
        return None if self.transform is None else self.transform.matrix

    @property
    def transform_map(self) -> FloatArray | None:
        """(3, 3) from map position by the query's own georeference to the right map position.

        None without a transform by a matrix, or where a raster has no CRS.
        """
        from rsfuse.matching.output import map_correction

        return map_correction(self)

    @property
    def rotation_scale(self) -> tuple[float, float] | None:
        """Rotation in degrees (clockwise on the screen) and scale at the reference's centre.

        The rotation is NaN where one of the images is mirrored.
        """
        if self.transform is None:
            return None
        h, w = self.reference.shape
        return rotation_scale_of(self.transform.base, (w / 2, h / 2))

    def standard_error_px(self, xy: npt.ArrayLike) -> FloatArray:
        """(N,) standard error of the mapped position in query pixels, by the covariance.

        It tells how well the tie points fix the transform. What they are off by together, relief or
        how sensors see edges, is not in it.
        """
        from rsfuse.matching.robust import design_matrix
        from rsfuse.ops.geometry2d import as_points, derivative

        points = as_points(xy)
        if self.transform is None or self.placed is None or self.covariance is None:
            return np.full(len(points), np.nan)
        onward = derivative(self.transform.apply, points) @ np.linalg.inv(
            derivative(self.placed.apply, points)
        )
        design = onward @ design_matrix(self.placed, points)
        variance = np.einsum("nip,pq,niq->n", design, self.covariance, design)
        return np.asarray(np.sqrt(np.maximum(variance, 0.0)))

    def save(
        self,
        folder: str | Path,
        *,
        command: str = "",
        resample: bool = True,
        memory: int | None = None,
        page: bool = False,
    ) -> Path:
        """Write the run folder: registered raster, transform, tie points, previews, record.

        Args:
            folder: Where; created when missing. An earlier run there is replaced.
            command: What to note as the command.
            resample: Resample the query to the reference's grid; else correct only its
                geotransform, where an affine transform allows that, of a query from a file.
            memory: Most bytes to use for the registered raster; its tiles get smaller to fit.
            page: A page will be made of the run (`rsfuse report`): the record names it.

        Raises:
            OutputError: Something cannot be written.
            InputError: The query is an array and is not to be resampled.
        """
        from rsfuse.matching.output import save_run
        from rsfuse.runs import staged

        with staged(folder, overwrite=True) as scratch:
            save_run(self, scratch, command=command, resample=resample, memory=memory, page=page)
        return Path(folder)

    def apply(self, raster: Any, path: str | Path, *, resampling: Resampling | None = None) -> Path:
        """Resample another raster of the query's sensor onto the reference's grid.

        Args:
            raster: What `open_raster` takes: another band or resolution of the query.
            path: Cloud-optimised GeoTIFF to write.
            resampling: `nearest`, `bilinear`, `cubic` or `lanczos`; by default `nearest` for
                colour tables and `cubic` for the rest.
        """
        from rsfuse.matching.output import apply_result

        return apply_result(self, raster, Path(path), resampling=resampling)

    def plot(self) -> Any:
        """A matplotlib figure: tie points on the reference, coloured by residual."""
        from rsfuse.matching.output import plot_result

        return plot_result(self)

    def to_geodataframe(self) -> Any:
        """The tie points as a GeoDataFrame; needs `pip install rsfuse[vector]`."""
        from rsfuse.matching.output import tie_points_geodataframe

        return tie_points_geodataframe(self)

    def _repr_html_(self) -> str:
        from html import escape

        rows = {"status": self.status, "confidence": f"{self.confidence:.2f}"}
        if self.transform is not None:
            rows["transform"] = self.transform.model
            rows["tie points"] = f"{int(self.tie_points.kept.sum())} of {len(self.tie_points)}"
        if self.held_out_px:
            rows["held-out error"] = f"{self.held_out_px['median']:.2f} px"
        rows |= {"reason": "; ".join(r.message for r in self.reasons)} if self.reasons else {}
        cells = (f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in rows.items())
        return f"<table>{''.join(cells)}</table>"

    def __str__(self) -> str:
        """One line."""
        kept, total = int(self.tie_points.kept.sum()), len(self.tie_points)
        head = f"{self.status}, confidence {self.confidence:.2f}"
        if self.transform is None:
            return f"{head}: " + "; ".join(r.message for r in self.reasons)
        held = self.held_out_px
        error = f", held-out error {held['median']:.2f} px" if held else ""
        return f"{head}: {self.transform.model}, {kept} of {total} tie points{error}"

    __repr__ = __str__
