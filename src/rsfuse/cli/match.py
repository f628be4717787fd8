"""`rsfuse match`: register a query image to a reference."""

import logging
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rsfuse.cli.options import (
    DryRun,
    Json,
    Memory,
    Output,
    Overwrite,
    Progress,
    Quiet,
    Seed,
    Verbose,
    band_list,
    choice,
    parse_distance,
)
from rsfuse.cli.output import emit, progress_reporter

if TYPE_CHECKING:
    from rsfuse.geo.raster import RasterSource

logger = logging.getLogger(__name__)

# Named here so that --help needs no import of the matcher; a test compares the lists.
MODELS = ("auto", "shift", "rigid", "similarity", "affine", "homography", "smooth")
METHODS = ("auto", "cstf", "classic")


def match(
    reference: Annotated[Path, typer.Argument(help="Image that stays where it is.")],
    query: Annotated[Path, typer.Argument(help="Image to find on it, of any sensor.")],
    output: Output,
    model: Annotated[
        str, typer.Option(help=f"Transform: {', '.join(MODELS)}; auto lets the tie points decide.")
    ] = "auto",
    method: Annotated[str, typer.Option(help=f"Matcher: {', '.join(METHODS)}.")] = "auto",
    weights: Annotated[
        str | None,
        typer.Option(help="Bundle of a CSTF matcher of your own.", metavar="BUNDLE"),
    ] = None,
    max_shift: Annotated[
        str | None,
        typer.Option(help="Largest shift to consider, for example 500m or 40px.", metavar="DIST"),
    ] = None,
    upright: Annotated[
        bool, typer.Option("--upright", help="The query is not turned: faster and safer.")
    ] = False,
    finest: Annotated[
        float,
        typer.Option(min=1, help="Pixels per pixel of the finest lattice: 2 or 4 in noise."),
    ] = 1.0,
    band_ref: Annotated[
        str | None, typer.Option(help="Bands of the reference to use, such as red,nir or 1,2.")
    ] = None,
    band_query: Annotated[str | None, typer.Option(help="The same for the query.")] = None,
    mask_ref: Annotated[
        Path | None,
        typer.Option(help="Usable part of the reference: a raster (not 0) or polygons."),
    ] = None,
    mask_query: Annotated[Path | None, typer.Option(help="The same for the query.")] = None,
    no_resample: Annotated[
        bool,
        typer.Option(
            "--no-resample", help="Keep the query's pixels and correct its geotransform instead."
        ),
    ] = False,
    memory: Memory = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; all cores if left out.")] = (
        None
    ),
    seed: Seed = 0,
    dry_run: DryRun = False,
    as_json: Json = False,
    overwrite: Overwrite = False,
    progress: Progress = "bar",
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Find where QUERY lies on REFERENCE and write it on the reference's grid.

    OUTPUT receives registered.tif, transform.json, tie points for QGIS and GDAL, report.html and
    run.json. The exit code is 3 when the result is weak or refused; the reason is in run.json.
    """
    choice(model, MODELS, "--model")
    choice(method, METHODS, "--method")
    reporter = progress_reporter(progress, quiet=quiet)
    from rsfuse.errors import RsfuseError
    from rsfuse.geo.grid import gsd_m
    from rsfuse.geo.raster import open_raster
    from rsfuse.matching.output import save_run
    from rsfuse.matching.predict import match as match_rasters
    from rsfuse.report import build_report
    from rsfuse.runs import RunRecord, staged

    first = open_raster(reference, bands=band_list(band_ref), mask=mask_ref)
    second = open_raster(query, bands=band_list(band_query), mask=mask_query)
    limit = None
    if max_shift is not None:
        has_crs = first.geobox.crs is not None
        limit = parse_distance(max_shift, gsd_m(first.geobox) if has_crs else None)
    plan = _plan(first, second, memory, limit, output)  # says early that the memory is too small
    if dry_run:
        emit(plan, as_json)
        return
    with staged(output, overwrite) as folder:
        reporter.start(3, "match")
        result = match_rasters(
            first,
            second,
            model=model,
            method=method,
            weights=weights,
            max_shift_px=limit,
            upright=upright,
            threads=threads,
            seed=seed,
            finest=finest,
        )
        reporter.advance()
        command = shlex.join(["rsfuse", *sys.argv[1:]])
        save_run(
            result, folder, command=command, resample=not no_resample, memory=memory, page=True
        )
        reporter.advance()
        try:
            build_report(folder)
        except RsfuseError as error:
            logger.warning("the report could not be made: %s", error.what)
        reporter.advance()
    reporter.finish()
    record = RunRecord.load(output)
    kept = record.result["tie_points"]
    held = record.result.get("held_out_px") or {}
    emit(
        {
            "status": record.status,
            "confidence": record.confidence,
            "method": record.parameters.get("method"),
            "model": record.result.get("model"),
            "tie_points": f"{kept['kept']} of {kept['total']}",
            "held_out_median_px": held.get("median"),
            "rotation_deg": record.result.get("rotation_deg"),
            "scale": record.result.get("scale"),
            "shift_px": record.result.get("shift_px"),
            "reasons": [str(r["message"]) for r in record.reasons],
            "output": str(output),
        },
        as_json,
    )
    if record.exit_code:
        raise typer.Exit(record.exit_code)


def _plan(
    reference: "RasterSource",
    query: "RasterSource",
    memory: int | None,
    max_shift_px: float | None,
    output: Path,
) -> dict[str, Any]:
    """What would be matched and written."""
    import numpy as np

    from rsfuse.geo.grid import gsd_m
    from rsfuse.geo.warp import WARP_TILE, fitting_tile, warp_memory_bytes
    from rsfuse.matching.reader import pair_reader

    def told(source: "RasterSource") -> str:
        h, w = source.shape
        size = f", {gsd_m(source.geobox):.4g} m" if source.is_georeferenced else ", no georeference"
        return f"{w} x {h} px, {len(source.bands)} bands, {source.dtype}{size}"

    pair, _, problem = pair_reader(reference, query, max_shift_px=max_shift_px)
    place: Any = problem.message if problem else None
    if pair is not None:
        place = dict(zip("xywh", (round(v) for v in pair.area1), strict=True))
    depth = len(query.bands), np.dtype(query.dtype).itemsize
    tile = fitting_tile(WARP_TILE, memory, *depth, 1)
    h, w = reference.shape
    return {
        "reference": told(reference),
        "query": told(query),
        "query_on_reference_px": place,
        "registered": f"{w} x {h} px, {depth[0]} bands, {query.dtype}",
        "tile": tile,
        "memory_mb": round(warp_memory_bytes(tile, *depth, 1) / 1e6),
        "output": str(output),
    }
