"""`rsfuse apply`: a found transform on other rasters of the same sensor."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from rsfuse.cli.options import Json, Memory, Output, Overwrite, Quiet, Verbose, Workers, choice
from rsfuse.cli.output import emit
from rsfuse.errors import InputError

logger = logging.getLogger(__name__)

RESAMPLINGS = ("nearest", "bilinear", "cubic", "lanczos")


def apply(
    transform: Annotated[Path, typer.Argument(help="transform.json of a match.")],
    rasters: Annotated[
        list[Path],
        typer.Argument(help="Rasters that share the query's georeference; any bands, any size."),
    ],
    output: Output,
    resampling: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(RESAMPLINGS)}. Left out: nearest for colour tables, else cubic."
        ),
    ] = None,
    memory: Memory = None,
    workers: Workers = 1,
    as_json: Json = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Resample RASTERS onto the grid of the reference that TRANSFORM was found for.

    OUTPUT is a file for one raster and a folder for several.
    """
    if resampling is not None:
        choice(resampling, RESAMPLINGS, "--resampling")
    from rsfuse.matching.output import StoredTransform, apply_stored
    from rsfuse.runs import distinct_outputs

    stored = StoredTransform.load(transform)
    if stored.status == "weak":
        logger.warning("the match ended weak: look at the result before you use it")
    single = len(rasters) == 1 and output.suffix.lower() in (".tif", ".tiff")
    targets = [output] if single else [output / f"{path.stem}.tif" for path in rasters]
    distinct_outputs(targets, [transform, *rasters])
    taken = [path for path in targets if path.exists()]
    if taken and not overwrite:
        raise InputError(
            f"{taken[0]} exists", "nothing is replaced unasked", "give another -o, or --overwrite"
        )
    for path, target in zip(rasters, targets, strict=True):
        apply_stored(
            stored,
            path,
            target,
            resampling=resampling,  # type: ignore[arg-type]
            workers=workers,
            memory=memory,
        )
    emit({"written": [str(path) for path in targets]}, as_json)
