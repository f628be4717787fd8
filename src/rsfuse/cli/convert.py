"""`rsfuse convert`: the labels of a detection data set in another format."""

from typing import Annotated

import typer

from rsfuse.cli.labels import Classes, Format, Ignored, Source, Split, read_labels
from rsfuse.cli.options import Json, Output, Overwrite, Quiet, Verbose
from rsfuse.cli.output import emit


def convert(
    source: Source,
    output: Output,
    to: Annotated[str, typer.Option("--to", help="Format to write.")],
    format: Format = "auto",
    split: Split = None,
    classes: Classes = None,
    ignored: Ignored = None,
    as_json: Json = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Write the labels of SOURCE in another format.

    Images stay where they are: OUTPUT receives labels alone, to be put beside them. What the other
    format cannot say (a heading, a flag of difficulty) is left out.
    """
    from rsfuse.detection.formats import write_dataset
    from rsfuse.runs import staged

    name, dataset = read_labels(source, format, split, classes, ignored)
    with staged(output, overwrite) as folder:
        write_dataset(folder, dataset, format=to)
    emit(
        {
            "format": f"{name} -> {to}",
            "images": len(dataset.samples),
            "objects": sum(len(s.objects) for s in dataset.samples),
            "classes": list(dataset.classes),
            **{f"note: {what}": count for what, count in dataset.notes.items()},
            "output": str(output),
        },
        as_json,
    )
