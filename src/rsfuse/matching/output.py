"""Files of a match: the run folder, the stored transform, and its use on other rasters."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rsfuse.errors import GridError, InputError, OutputError, RsfuseError
from rsfuse.matching.results import MatchResult, summary_px
from rsfuse.matching.trust import Status
from rsfuse.ops.geometry2d import FloatArray, Transform, apply_matrix

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

    from rsfuse.geo.raster import Raster, RasterSource
    from rsfuse.geo.warp import Resampling

logger = logging.getLogger(__name__)

TRANSFORM_FORMAT = "rsfuse-transform"
TRANSFORM_FORMAT_VERSION = 1
PREVIEW_SIDE_PX = 1400
DISPLACEMENT_SIDE_PX = 2048


def map_correction(result: MatchResult) -> FloatArray | None:
    """(3, 3) from map positions by the query's own georeference to the right ones."""
    transform, reference, query = result.transform, result.reference, result.query
    if transform is None or transform.matrix is None:
        return None
    if reference.geobox.crs is None or reference.geobox.crs != query.geobox.crs:
        return None
    to_map = _matrix_of(reference.geobox)
    from_map = np.linalg.inv(_matrix_of(query.geobox))
    correction = to_map @ np.linalg.inv(transform.matrix) @ from_map
    return np.asarray(correction / correction[2, 2])


def _matrix_of(geobox: GeoBox) -> FloatArray:
    return np.array(geobox.affine, np.float64).reshape(3, 3)


def _to_map(source: RasterSource, xy: FloatArray) -> FloatArray:
    return apply_matrix(_matrix_of(source.geobox), xy)


def _grid_record(source: RasterSource) -> dict[str, Any]:
    crs = source.geobox.crs
    return {
        "path": source.name,
        "shape": list(source.shape),
        "crs": None if crs is None else crs.to_wkt(),
        "transform": [float(v) for v in tuple(source.geobox.affine)[:6]],
        "georeferenced": source.is_georeferenced,
    }


def write_transform(result: MatchResult, path: Path) -> None:
    """`transform.json`: all that `apply` needs."""
    from rsfuse.runs import write_json

    assert result.transform is not None
    correction = map_correction(result)
    write_json(
        path,
        {
            "format": TRANSFORM_FORMAT,
            "format_version": TRANSFORM_FORMAT_VERSION,
            "direction": "reference pixels -> query pixels; (0, 0) is the outer corner of the "
            "first pixel, x right, y down",
            "transform": result.transform.to_dict(),
            "map_correction": None if correction is None else correction.tolist(),
            "map_correction_direction": "map position by the query's own georeference -> corrected "
            "map position, column vectors (x, y, 1)",
            "reference": _grid_record(result.reference),
            "query": _grid_record(result.query),
            "status": result.status,
            "confidence": result.confidence,
        },
    )


class StoredTransform:
    """What `transform.json` holds.

    Attributes:
        transform: Reference pixels -> query pixels.
        reference: Grid of the reference.
        query: Grid of the query.
        query_georeferenced: Whether the query's grid came from its file.
        status: How the match ended.
        confidence: Probability that the transform is right.
    """

    def __init__(
        self,
        transform: Transform,
        reference: GeoBox,
        query: GeoBox,
        query_georeferenced: bool,
        status: Status,
        confidence: float,
    ) -> None:
        """Store the parts."""
        self.transform = transform
        self.reference = reference
        self.query = query
        self.query_georeferenced = query_georeferenced
        self.status = status
        self.confidence = confidence

    @classmethod
    def load(cls, path: str | Path) -> StoredTransform:
        """Read a `transform.json`.

        Raises:
            InputError: It is none, or of a newer version.
        """
        from pyproj.exceptions import CRSError

        from rsfuse.runs import read_json

        content = read_json(path)
        if not isinstance(content, dict) or content.get("format") != TRANSFORM_FORMAT:
            raise InputError(
                f"{path} is not a transform of rsfuse",
                "a transform.json that `rsfuse match` wrote is needed",
                "give the transform.json in the output folder of rsfuse match",
            )
        version = content.get("format_version")
        if version != TRANSFORM_FORMAT_VERSION:
            raise InputError(
                f"{path} has format version {version}",
                f"this rsfuse reads version {TRANSFORM_FORMAT_VERSION}",
                "use the version of rsfuse that wrote it",
            )
        try:
            return cls(
                Transform.from_dict(content["transform"]),
                _grid_of(content["reference"]),
                _grid_of(content["query"]),
                bool(content["query"]["georeferenced"]),
                content["status"],
                float(content["confidence"]),
            )
        except (KeyError, TypeError, ValueError, IndexError, CRSError) as error:
            raise InputError(
                f"{path} is damaged: {type(error).__name__} {error}",
                "it must hold a transform and two grids",
                "make it again with rsfuse match",
            ) from error


def _grid_of(record: dict[str, Any]) -> GeoBox:
    from affine import Affine
    from odc.geo.geobox import GeoBox as Box

    height, width = (int(v) for v in record["shape"])
    return Box((height, width), Affine(*record["transform"]), record["crs"])


def apply_stored(
    stored: StoredTransform,
    raster: Any,
    path: Path,
    *,
    resampling: Resampling | None = None,
    workers: int = 1,
    memory: int | None = None,
) -> Path:
    """Resample a raster that shares the query's georeference onto the reference's grid.

    The raster may have other bands, another resolution or another extent than the query. Without
    georeference it is taken to show what the query shows, at whatever size.

    Args:
        stored: The transform.
        raster: What `open_raster` takes.
        path: Cloud-optimised GeoTIFF to write.
        resampling: See `warp_raster`.
        workers: Threads.
        memory: Most bytes to use; see `warp_raster`.

    Raises:
        GridError: The query was georeferenced and the raster is not, or the reverse.
        InputError: The match was refused.
        NoOverlapError: The raster does not reach the reference.
        OutputError: The result cannot be written.
    """
    from rsfuse.geo.grid import pixel_mapping
    from rsfuse.geo.raster import RasterSource, open_raster
    from rsfuse.geo.warp import warp_raster

    if stored.status == "refused":
        raise InputError(
            f"the match was refused (confidence {stored.confidence:.2g})",
            "its transform is a guess and not to be relied on",
            "read the reasons in run.json of the match; match other images, or with other options",
        )
    source = raster if isinstance(raster, RasterSource) else open_raster(raster)
    transform = stored.transform
    if source.is_georeferenced and stored.query_georeferenced:
        onward = pixel_mapping(stored.query, source.geobox)
    elif not source.is_georeferenced and not stored.query_georeferenced:
        ratio = np.array(source.shape[::-1], np.float64) / np.array(stored.query.shape[::-1])

        def onward(xy: FloatArray) -> FloatArray:
            return np.asarray(xy * ratio)
    else:
        has, lacks = ("raster", "query") if source.is_georeferenced else ("query", "raster")
        raise GridError(
            f"the {has} is georeferenced and the {lacks} of the transform is not",
            "their pixels cannot be tied to each other",
            "apply the transform to files of the same product as the query",
        )
    warp_raster(
        source,
        stored.reference,
        lambda xy: onward(transform.apply(xy)),
        path,
        resampling=resampling,
        workers=workers,
        memory=memory,
        nodata=source.nodata,
    )
    return path


def apply_result(
    result: MatchResult,
    raster: Any,
    path: Path,
    *,
    resampling: Resampling | None = None,
    memory: int | None = None,
) -> Path:
    """`MatchResult.apply`."""
    if result.transform is None:
        raise InputError(
            "the match was refused, so there is no transform to apply",
            "; ".join(r.message for r in result.reasons),
            "look at result.reasons",
        )
    stored = StoredTransform(
        result.transform,
        result.reference.geobox,
        result.query.geobox,
        result.query.is_georeferenced,
        result.status,
        result.confidence,
    )
    return apply_stored(stored, raster, path, resampling=resampling, memory=memory)


def save_run(
    result: MatchResult,
    folder: Path,
    *,
    command: str = "",
    resample: bool = True,
    memory: int | None = None,
    page: bool = False,
) -> Path:
    """Write every product of a match into a folder and `run.json` last.

    Args:
        result: What was found.
        folder: An empty one, or one that is not there yet.
        command: See `MatchResult.save`.
        resample: See `MatchResult.save`.
        memory: See `MatchResult.save`.
        page: A page will be made of the run: the record names it.
    """
    import time

    from rsfuse.runs import RunRecord, utc_now

    began = time.perf_counter()
    if not resample and result.query.path is None:
        raise InputError(
            "the query is an array, which has no file to copy",
            "only a file can be given a corrected geotransform",
            "save with resample=True",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "preview").mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder}: {error.strerror}",
            "the output folder cannot be made",
            "give another -o",
        ) from error
    outputs: dict[str, Any] = {"report": "report.html"} if page else {}
    outputs["previews"], preview_scale = write_previews(result, folder)
    if result.transform is not None:
        write_transform(result, folder / "transform.json")
        outputs["transform"] = "transform.json"
        outputs["tie_points"] = write_tie_points(result, folder)
        if result.status != "refused":
            outputs.update(_write_registered(result, folder, resample, memory))
    stages = list(result.diagnostics.get("stages", ()))
    stages.append({"name": "write", "seconds": round(time.perf_counter() - began, 3)})
    record = RunRecord(
        task="match",
        command=command,
        started=utc_now(),
        seconds=round(sum(s["seconds"] for s in stages), 3),
        inputs=(
            _input_record("reference", result.reference),
            _input_record("query", result.query),
        ),
        parameters=dict(result.parameters),
        status=result.status,
        confidence=result.confidence,
        reasons=tuple(
            {"code": r.code, "message": r.message, "numbers": dict(r.numbers)}
            for r in result.reasons
        ),
        result={**_numbers(result), "preview_scale": preview_scale},
        diagnostics={**result.diagnostics, "stages": stages},
        outputs=outputs,
    )
    record.save(folder)
    return folder


def _input_record(role: str, source: RasterSource) -> dict[str, Any]:
    return {
        "role": role,
        "path": source.name,
        "shape": list(source.shape),
        "bands": list(source.bands),
        "crs": None if source.geobox.crs is None else str(source.geobox.crs),
        "gsd_m": _gsd_m(source),
        "dtype": source.dtype,
        "notes": list(source.notes),
        "transform": [float(v) for v in tuple(source.geobox.affine)[:6]],
    }


def _gsd_m(source: RasterSource) -> float | None:
    from rsfuse.geo.grid import gsd_m

    try:
        return gsd_m(source.geobox)
    except RsfuseError:
        return None


def _numbers(result: MatchResult) -> dict[str, Any]:
    """The `result` part of the run record."""
    transform, ties = result.transform, result.tie_points
    if transform is None:
        return {"tie_points": {"total": len(ties), "kept": 0}}
    rotation, scale = result.rotation_scale or (math.nan, math.nan)
    shift = _misplacement(result)
    gsd = _gsd_m(result.query)
    after = summary_px(ties.residual_px[ties.kept])
    before = None if result.before_px is None else summary_px(result.before_px)

    def in_metres(numbers: dict[str, float] | None) -> dict[str, float] | None:
        if numbers is None or gsd is None:
            return None
        return {name: value * gsd for name, value in numbers.items()}

    return {
        "model": transform.model,
        "transform_px": transform.matrix,
        "rotation_deg": rotation if math.isfinite(rotation) else None,
        "scale": scale,
        "shift_px": shift,
        "shift_m": None if gsd is None or shift is None else shift * gsd,
        "tie_points": {"total": len(ties), "kept": int(ties.kept.sum())},
        "residual_px": after,
        "held_out_px": result.held_out_px,
        "before_px": before,
        "before_m": in_metres(before),
        "after_m": in_metres(after),
        "standard_error_px": _standard_error_px(result),
        "map_correction": map_correction(result),
    }


def _misplacement(result: MatchResult) -> FloatArray | None:
    """(2,) from where the files have the reference's centre to where it is, query pixels.

    Two images of one size without georeference have it at the same pixel. None where nothing is
    stated.
    """
    from rsfuse.geo.grid import pixel_mapping

    transform, reference, query = result.transform, result.reference, result.query
    h, w = reference.shape
    centre = np.array([[w / 2, h / 2]])
    if reference.is_georeferenced and query.is_georeferenced:
        if (reference.geobox.crs is None) != (query.geobox.crs is None):
            return None
        stated = pixel_mapping(reference.geobox, query.geobox)(centre)
    elif reference.shape == query.shape:
        stated = centre
    else:
        return None
    assert transform is not None
    shift = (transform.apply(centre) - stated)[0]
    return shift if np.isfinite(shift).all() else None


def _standard_error_px(result: MatchResult) -> float | None:
    """Root mean square standard error of the transform over the reference, query pixels."""
    h, w = result.reference.shape
    grid = np.stack(np.meshgrid(np.linspace(0, w, 9), np.linspace(0, h, 9)), -1).reshape(-1, 2)
    error = result.standard_error_px(grid)
    return float(np.sqrt(np.mean(error**2))) if np.isfinite(error).all() else None


def tie_point_columns(result: MatchResult) -> dict[str, npt.NDArray[Any]]:
    """The columns of the table of tie points, one row each; pixels are those of the query."""
    ties = result.tie_points
    n = len(ties)
    georeferenced = result.reference.is_georeferenced
    map0 = _to_map(result.reference, ties.xy0)
    map1 = _to_map(result.query, ties.xy1)
    blank = np.full(n, np.nan)
    reason = np.where(
        ties.kept, "", np.where(ties.probability < 0.5, "low_probability", "outlier")
    ).astype(object)
    return {
        "id": np.arange(n),
        "x_ref": ties.xy0[:, 0],
        "y_ref": ties.xy0[:, 1],
        "x_query": ties.xy1[:, 0],
        "y_query": ties.xy1[:, 1],
        "X_ref": map0[:, 0] if georeferenced else blank,
        "Y_ref": map0[:, 1] if georeferenced else blank,
        "X_query": map1[:, 0] if result.query.is_georeferenced else blank,
        "Y_query": map1[:, 1] if result.query.is_georeferenced else blank,
        "dx_px": ties.residual[:, 0],
        "dy_px": ties.residual[:, 1],
        "residual_px": ties.residual_px,
        "probability": ties.probability,
        "sigma_px": ties.sigma_px,
        "score": ties.score,
        "kept": ties.kept.astype(np.int64),
        "reason": reason,
        "held_out_px": ties.held_out_px,
        "origin": np.where(ties.from_query, "query", "reference").astype(object),
    }


def tie_points_geodataframe(result: MatchResult) -> Any:
    """The tie points as points of the reference's map, or of its pixels without a CRS."""
    import shapely

    from rsfuse.geo.vectors import geodataframe

    crs = result.reference.geobox.crs
    places = _to_map(result.reference, result.tie_points.xy0)
    points = shapely.points(places) if len(places) else []
    return geodataframe(tie_point_columns(result), points, None if crs is None else crs.to_wkt())


def write_tie_points(result: MatchResult, folder: Path) -> list[str]:
    """Tie points as GeoPackage, CSV and QGIS points; returns the names."""
    from rsfuse.geo.write import write_points, write_qgis_points

    ties = result.tie_points
    columns = tie_point_columns(result)
    map0 = _to_map(result.reference, ties.xy0)
    crs = result.reference.geobox.crs
    # GeoPackage does not tell x from X, and its geometry is the map position already.
    renamed = {"X_query": "map_x_query", "Y_query": "map_y_query"}
    layer = {renamed.get(k, k): v for k, v in columns.items() if k not in ("X_ref", "Y_ref")}
    write_points(folder / "tie_points.gpkg", map0, layer, crs, "tie_points")
    write_csv(folder / "tie_points.csv", columns)
    write_qgis_points(
        folder / "tie_points.points",
        map0,
        ties.xy1,
        enabled=ties.kept,
        residual=ties.residual,
        crs=crs,
        source_geobox=result.query.geobox if result.query.is_georeferenced else None,
    )
    return ["tie_points.gpkg", "tie_points.csv", "tie_points.points"]


def write_csv(path: Path, columns: dict[str, npt.NDArray[Any]]) -> None:
    """A table as CSV; NaN is empty."""
    import csv

    from rsfuse.runs import atomic_path

    def text(value: Any) -> str:
        if isinstance(value, float | np.floating):
            return "" if np.isnan(value) else f"{value:.10f}".rstrip("0").rstrip(".")
        return str(value)

    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(columns)
        for row in zip(*columns.values(), strict=True):
            table.writerow([text(v) for v in row])


def _write_registered(
    result: MatchResult, folder: Path, resample: bool, memory: int | None
) -> dict[str, Any]:
    """The query on the reference's grid, or with a corrected geotransform."""
    from affine import Affine
    from odc.geo.geobox import GeoBox as Box

    from rsfuse.geo.write import rewrite_geotransform, write_gcp_vrt

    transform = result.transform
    assert transform is not None
    outputs: dict[str, Any] = {}
    matrix = transform.matrix
    is_affine = matrix is not None and np.abs(matrix[2, :2]).max() < 1e-12
    if not resample and not is_affine:
        logger.warning("no geotransform says what a %s says: resampling", transform.model)
    if resample or not is_affine:
        apply_result(result, result.query, folder / "registered.tif", memory=memory)
    else:
        assert matrix is not None
        assert result.query.path is not None
        affine = Affine(*(_matrix_of(result.reference.geobox) @ np.linalg.inv(matrix)).ravel()[:6])
        grid = Box(result.query.shape, affine, result.reference.geobox.crs)
        rewrite_geotransform(result.query.path, folder / "registered.tif", grid)
    outputs["registered"] = "registered.tif"
    if result.query.path is not None:
        ties = result.tie_points
        kept = np.flatnonzero(ties.kept)[:: max(1, int(ties.kept.sum()) // 200)]
        write_gcp_vrt(
            folder / "registered_gcp.vrt",
            result.query.path,
            ties.xy1[kept],
            _to_map(result.reference, ties.xy0[kept]),
            result.reference.geobox.crs,
        )
        outputs["gcp"] = "registered_gcp.vrt"
    if transform.field is not None:
        write_displacement(result, folder / "displacement.tif")
        outputs["displacement"] = "displacement.tif"
    return outputs


def write_displacement(result: MatchResult, path: Path) -> None:
    """Two bands, dx and dy in query pixels: query position minus reference position."""
    from affine import Affine
    from odc.geo.geobox import GeoBox as Box

    from rsfuse.geo.write import write_cog

    assert result.transform is not None
    h, w = result.reference.shape
    step = max(1.0, max(h, w) / DISPLACEMENT_SIDE_PX)
    shape = (max(1, round(h / step)), max(1, round(w / step)))
    scale = (w / shape[1], h / shape[0])
    x, y = (np.arange(shape[1]) + 0.5) * scale[0], (np.arange(shape[0]) + 0.5) * scale[1]
    xy = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    field = (result.transform.apply(xy) - xy).T.reshape(2, *shape).astype(np.float32)
    reference = result.reference.geobox
    grid = Box(shape, reference.affine @ Affine.scale(*scale), reference.crs)
    write_cog(path, field, geobox=grid, nodata=None, bands=("dx_px", "dy_px"))


def write_previews(result: MatchResult, folder: Path) -> tuple[dict[str, str | None], float]:
    """Small pictures of the reference, and of the query before and after, on one grid."""
    from rsfuse.geo.grid import pixel_mapping
    from rsfuse.geo.warp import read_mapped

    reference, query = result.reference, result.query
    h, w = reference.shape
    scale = max(1.0, max(h, w) / PREVIEW_SIDE_PX)
    shape = (max(1, round(h / scale)), max(1, round(w / scale)))
    step = np.array([w / shape[1], h / shape[0]])
    bands0, bands1 = picture_bands(reference), picture_bands(query)
    names: dict[str, str | None] = {"reference": "preview/reference.webp"}
    whole = shape == (h, w)
    _save_picture(
        folder / "preview/reference.webp",
        reference.read(shape=None if whole else shape, bands=bands0),
    )
    names["before"] = names["after"] = None
    both = reference.is_georeferenced and query.is_georeferenced
    if both and (reference.geobox.crs is None) == (query.geobox.crs is None):
        own = pixel_mapping(reference.geobox, query.geobox)
        before = read_mapped(query, shape, lambda p: own(p * step), bands=bands1)
    elif reference.shape == query.shape:
        before = read_mapped(query, shape, lambda p: p * step, bands=bands1)
    else:
        # Nothing says where the query lies: it is shown corner on corner.
        before = read_mapped(query, shape, lambda p: p * step, bands=bands1)
    if before.valid.any():
        _save_picture(folder / "preview/before.webp", before)
        names["before"] = "preview/before.webp"
    transform = result.transform
    if transform is not None and result.status != "refused":
        after = read_mapped(query, shape, lambda p: transform.apply(p * step), bands=bands1)
        _save_picture(folder / "preview/after.webp", after)
        names["after"] = "preview/after.webp"
    return names, float(step.mean())


def picture_bands(source: RasterSource) -> tuple[str | int, ...]:
    """Red, green and blue where the raster names them; else its first three or one."""
    lower = [b.lower() for b in source.bands]
    if all(c in lower for c in ("red", "green", "blue")):
        return tuple(source.bands[lower.index(c)] for c in ("red", "green", "blue"))
    return source.bands[:3] if len(source.bands) >= 3 else source.bands[:1]


def _save_picture(path: Path, raster: Raster) -> None:
    """A stretched picture with transparent invalid pixels."""
    from PIL import Image

    from rsfuse.runs import atomic_path

    layers = []
    for band in raster.data:
        known = band[raster.valid]
        low, middle, high = (
            np.quantile(known, (0.01, 0.5, 0.99)) if known.size else np.array([0.0, 0.5, 1.0])
        )
        spread = max(float(high - low), 1e-9)
        # A tone curve that puts the median at 0.42, so that radar does not drown in black.
        centre = float(np.clip((middle - low) / spread, 0.02, 0.98))
        power = float(np.clip(np.log(0.42) / np.log(centre), 0.4, 1.6))
        layers.append(np.clip((band - low) / spread, 0, 1) ** power)
    if len(layers) != 3:
        layers = [layers[0]] * 3
    alpha = raster.valid.astype(np.float32)
    pixels = (np.stack([*layers, alpha], axis=-1) * 255 + 0.5).astype(np.uint8)
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, quality=82, method=2)


def plot_result(result: MatchResult) -> Any:
    """Tie points on the reference, coloured by residual."""
    from matplotlib.figure import Figure

    reference = result.reference
    h, w = reference.shape
    scale = max(1.0, max(h, w) / 1000)
    shape = (max(1, round(h / scale)), max(1, round(w / scale)))
    raster = reference.read(
        shape=None if shape == (h, w) else shape, bands=picture_bands(reference)
    )
    grey = raster.data.mean(axis=0)
    low, high = np.quantile(grey[raster.valid], (0.01, 0.99)) if raster.valid.any() else (0, 1)
    figure = Figure(figsize=(8, 8 * h / w), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(grey, cmap="gray", vmin=low, vmax=high, extent=(0, w, h, 0))
    ties = result.tie_points
    if ties.kept.any():
        x, y = ties.xy0[ties.kept].T
        points = axes.scatter(x, y, c=ties.residual_px[ties.kept], s=12, cmap="viridis")
        figure.colorbar(points, label="residual (query pixels)")
    axes.set_title(str(result))
    axes.set_xlabel("x (reference pixels)")
    axes.set_ylabel("y (reference pixels)")
    return figure
