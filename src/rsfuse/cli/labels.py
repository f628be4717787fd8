"""What the commands on detection data sets share: their options, and how a data set is read."""

from pathlib import Path
from typing import Annotated, Any

import typer

from rsfuse.cli.options import names_of
from rsfuse.errors import InputError

Source = Annotated[Path, typer.Argument(help="The data set: its folder or file.")]
Format = Annotated[
    str, typer.Option("--format", "--from", help="Format of the data set; auto looks.")
]
Split = Annotated[str | None, typer.Option(help="A part of it, for example train.")]
Classes = Annotated[
    str | None, typer.Option(help="Classes in the order of the labels, such as ship,plane.")
]
Ignored = Annotated[str | None, typer.Option(help="Classes whose objects become difficult.")]


def read_labels(
    source: Path, format: str, part: str | None, classes: str | None, ignored: str | None
) -> tuple[str, Any]:
    """Name of the format and the data set."""
    from rsfuse.detection.formats import read_dataset, sniff

    if not source.exists():
        raise InputError(f"{source} does not exist", "a data set is needed", "check the path")
    name = sniff(source) if format == "auto" else format
    wanted = names_of(classes)
    dataset = read_dataset(
        source, format=name, split=part, classes=wanted or None, ignored=names_of(ignored)
    )
    return name, dataset
