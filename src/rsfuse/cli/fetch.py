"""`rsfuse fetch`: images of a box from public catalogs."""

from pathlib import Path
from typing import Annotated

import typer

from rsfuse.cli.options import Json, Output, Progress, Quiet, Verbose
from rsfuse.cli.output import Counter, emit, progress_reporter


def fetch(
    name: Annotated[str, typer.Argument(help="What: s1s2, landsat, or a set of --config.")],
    bbox: Annotated[
        str, typer.Option(help="Box in degrees: west,south,east,north.", metavar="W,S,E,N")
    ],
    dates: Annotated[
        str, typer.Option("--date", help="Day, or first and last: YYYY-MM-DD/YYYY-MM-DD.")
    ],
    output: Output,
    max_cloud: Annotated[
        float, typer.Option(min=0, max=100, help="Largest cloud cover of an image in percent.")
    ] = 20.0,
    min_cover: Annotated[
        float, typer.Option(min=0, max=1, help="Smallest share of the box that an image covers.")
    ] = 0.95,
    max_days: Annotated[
        float, typer.Option(min=0, help="Most days between images that belong together.")
    ] = 5.0,
    limit: Annotated[int, typer.Option(min=1, help="Most images, or groups of them.")] = 1,
    config: Annotated[
        Path | None, typer.Option(help="Catalogs of your own; see docs/fetch.md.")
    ] = None,
    as_json: Json = False,
    progress: Progress = "bar",
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Copy the images of a box from STAC catalogs into the archive OUTPUT.

    Only the bytes under the box are read. Run it again to go on after an interrupt: what is there
    and whole is kept. `rsfuse batch OUTPUT/catalog.json` takes it from there.
    """
    from rsfuse.fetch import Query, parse_bbox, parse_dates, read_sources
    from rsfuse.fetch import fetch as fetch_groups

    query = Query(parse_bbox(bbox), parse_dates(dates), max_cloud, min_cover, max_days, limit)
    sources = read_sources(name, config)
    with Counter(progress_reporter(progress, quiet=quiet), f"fetch {name}") as follow:
        found = fetch_groups(sources, query, output, progress=follow)
    emit(
        {
            "items": [group.name for group in found],
            "files": [str(path) for group in found for path in group.files.values()],
            "kept": sum(group.kept for group in found),
            "catalog": str(output / "catalog.json"),
        },
        as_json,
    )
