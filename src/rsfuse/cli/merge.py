"""`rsfuse merge`: results of tiles put together."""

from pathlib import Path
from typing import Annotated

import typer

from rsfuse.cli.options import Json, Output, Overwrite, Quiet, Verbose
from rsfuse.cli.output import emit
from rsfuse.errors import InputError


def merge(
    results: Annotated[Path, typer.Argument(help="Folder or zip of Task1_<class>.txt of tiles.")],
    output: Output,
    nms: Annotated[float, typer.Option(min=0, max=1, help="Largest overlap of two boxes.")] = 0.1,
    as_json: Json = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Put results of tiles together to those of whole images, as a DOTA submission.

    Tile names of both dialects are understood: IMAGE__RATE__X___Y and IMAGE__WINDOW__X___Y.
    """
    from rsfuse.detection.results import of_submission, write_submission
    from rsfuse.detection.tiles import merge as join
    from rsfuse.detection.tiles import parse_name

    if output.exists() and not overwrite:
        raise InputError(f"{output} exists", "nothing is replaced unasked", "add --overwrite")
    tiles = of_submission(results)
    whole = join(tiles, nms=nms)
    write_submission(output, whole)
    names = {name.dialect for tile in tiles if (name := parse_name(tile.name))}
    emit(
        {
            "tiles": len(tiles),
            "names": " and ".join(sorted(names)),
            "images": len(whole),
            "boxes": f"{sum(len(t) for t in tiles)} -> {sum(len(w) for w in whole)}",
            "written": str(output),
        },
        as_json,
    )
