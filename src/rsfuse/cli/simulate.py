"""`rsfuse simulate`: make scenes with exactly known truth."""

import shlex
import sys
import time
from dataclasses import asdict
from typing import Annotated

import typer

from rsfuse.cli.options import (
    Json,
    Output,
    Overwrite,
    Progress,
    Quiet,
    Seed,
    Verbose,
    choice,
    names_of,
)
from rsfuse.cli.output import emit, progress_reporter

# Named here so that --help needs no import of the simulation; a test compares the lists.
MODALITIES = ("ms", "pan", "sar", "thermal", "map")
QUERIES = ("sar", "thermal", "map")
WARPS = ("none", "shift", "affine", "homography", "smooth", "relief")
OBJECTS = ("ships", "planes", "vehicles")
SEASONS = ("spring", "summer", "autumn", "winter")


def simulate(
    output: Output,
    size: Annotated[int, typer.Option(min=64, help="Side of the scene in pixels.")] = 2048,
    gsd: Annotated[float, typer.Option(help="Ground sampling distance in metres.")] = 1.0,
    modalities: Annotated[
        str, typer.Option(help=f"Images to make, of {','.join(MODALITIES)}.", metavar="LIST")
    ] = ",".join(MODALITIES),
    warp: Annotated[
        str, typer.Option(help=f"Geometry of the queries: {', '.join(WARPS)}.")
    ] = "affine",
    queries: Annotated[
        str,
        typer.Option(
            help="Images that are seen through the warp and whose georeference is wrong by it.",
            metavar="LIST",
        ),
    ] = ",".join(QUERIES),
    objects: Annotated[
        str,
        typer.Option(help=f"Objects to place, of {','.join(OBJECTS)}, or none.", metavar="LIST"),
    ] = ",".join(OBJECTS),
    seed: Seed = 0,
    crs: Annotated[str, typer.Option(help="A projected CRS in metres.")] = "EPSG:32631",
    ratio: Annotated[int, typer.Option(min=1, help="PAN pixels per MS pixel, for example 4.")] = 1,
    season: Annotated[str, typer.Option(help=f"{', '.join(SEASONS)}.")] = "summer",
    clouds: Annotated[float, typer.Option(min=0, max=1, help="Share of the sky covered.")] = 0.0,
    haze: Annotated[float, typer.Option(min=0, max=1, help="From 0 (clear) to 1.")] = 0.12,
    night: Annotated[bool, typer.Option("--night", help="Thermal image at night.")] = False,
    looks: Annotated[float, typer.Option(min=0.5, help="Looks of the SAR image.")] = 4.0,
    side: Annotated[str, typer.Option(help="Where the SAR sensor stands: left or right.")] = "left",
    border: Annotated[
        int, typer.Option(min=0, help="Width of slanted nodata borders in pixels.")
    ] = 0,
    as_json: Json = False,
    overwrite: Overwrite = False,
    progress: Progress = "bar",
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Make a scene: GeoTIFFs of several sensors and the truth about them.

    OUTPUT receives one GeoTIFF per modality, truth/ (transform, displacement field, land cover,
    oriented boxes in DOTA's form and as GeoPackage) and scene.json. The same options give the same
    pixels. Simulated scenes show that software works; accuracy is measured on real images.
    """
    wanted = _listed(modalities, MODALITIES, "--modalities")
    warped = _listed(queries, MODALITIES, "--queries")
    placed = _listed(objects, (*OBJECTS, "none"), "--objects")
    choice(warp, WARPS, "--warp")
    choice(season, SEASONS, "--season")
    choice(side, ("left", "right"), "--side")
    reporter = progress_reporter(progress, quiet=quiet)
    from rsfuse.runs import RunRecord, staged, utc_now
    from rsfuse.simulate import Acquisition, make_warp, simulate_scene, write_scene

    began, started = time.monotonic(), utc_now()
    acquisition = Acquisition(
        season=season,
        clouds=clouds,
        haze=haze,
        night=night,
        looks=looks,
        side=side,
        ratio=ratio,
        border_px=border,
        seed=seed,
    )
    with staged(output, overwrite) as folder:
        reporter.start(len(wanted) + 2, f"scene of {size} x {size} pixels")
        try:
            kinds = tuple(kind for kind in placed if kind != "none")
            scene = simulate_scene(size, gsd_m=gsd, seed=seed, objects=kinds, crs=crs)
            written = write_scene(
                folder,
                scene,
                modalities=wanted,
                warp=make_warp(warp, scene),
                queries=warped,
                acquisition=acquisition,
                progress=lambda _: reporter.advance(),
            )
            reporter.advance()
        finally:
            reporter.finish()
        result = {
            "references": [f"{name}.tif" for name in written.references],
            "queries": [f"{name}.tif" for name in written.queries],
            "warp": warp,
            "objects": len(scene.objects),
        }
        RunRecord(
            task="simulate",
            command=shlex.join(["rsfuse", *sys.argv[1:]]),
            started=started,
            seconds=round(time.monotonic() - began, 3),
            inputs=(),
            parameters={
                "size": size,
                "gsd_m": gsd,
                "crs": crs,
                "modalities": wanted,
                "queries": warped,
                "warp": warp,
                "objects": kinds,
                "seed": seed,
                **asdict(acquisition),
            },
            status="ok",
            result=result,
            outputs=written.outputs,
        ).save(folder)
        truth = sorted(str(path.relative_to(folder)) for path in written.truth.values())
    emit({"folder": output, **result, "truth": truth}, as_json)


def _listed(text: str, allowed: tuple[str, ...], option: str) -> tuple[str, ...]:
    """The names of a comma-separated list, each checked."""
    names = tuple(dict.fromkeys(names_of(text)))
    return tuple(choice(name, allowed, option) for name in names)
