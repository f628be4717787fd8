"""`rsfuse split`: the images of a detection data set as tiles."""

from typing import Annotated

import typer

from rsfuse.cli.labels import Classes, Format, Ignored, Source, read_labels
from rsfuse.cli.options import Json, Output, Overwrite, Quiet, Verbose, choice
from rsfuse.cli.output import emit


def split(
    source: Source,
    output: Output,
    size: Annotated[int, typer.Option(min=64, help="Side of a tile in pixels.")] = 1024,
    overlap: Annotated[int, typer.Option(min=0, help="What neighbours share.")] = 200,
    dialect: Annotated[
        str, typer.Option(help="Names of tiles: toolkit (window) or devkit (rate).")
    ] = "toolkit",
    format: Format = "auto",
    part: Annotated[str | None, typer.Option("--split", help="A part of the data set.")] = None,
    classes: Classes = None,
    ignored: Ignored = None,
    as_json: Json = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Cut the images of SOURCE into tiles with DOTA labels, for tools that need them.

    rsfuse itself trains on whole images. Objects are whole in every tile that shows any of them;
    those of which less than 70 % shows are flagged with 2.
    """
    from rsfuse.detection.formats import write_dataset
    from rsfuse.detection.tiles import split as cut
    from rsfuse.runs import staged

    choice(dialect, ("toolkit", "devkit"), "--dialect")
    _, dataset = read_labels(source, format, part, classes, ignored)
    with staged(output, overwrite) as folder:
        tiles = cut(dataset, folder, size=size, overlap=overlap, dialect=dialect)  # type: ignore[arg-type]
        write_dataset(folder, tiles, format="dota")
    emit(
        {
            "images": sum(s.image is not None for s in dataset.samples),
            "tiles": len(tiles.samples),
            "objects": sum(len(s.objects) for s in tiles.samples),
            "output": str(output),
        },
        as_json,
    )
