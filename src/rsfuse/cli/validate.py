"""`rsfuse validate`: what is wrong with a detection data set."""

from typing import Any

import typer

from rsfuse.cli.labels import Classes, Format, Ignored, Source, Split, read_labels
from rsfuse.cli.options import Json, Quiet, Verbose
from rsfuse.cli.output import emit


def validate(
    source: Source,
    format: Format = "auto",
    split: Split = None,
    classes: Classes = None,
    ignored: Ignored = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Say what in SOURCE would cost accuracy, or all of it.

    The exit code is 0 when nothing was found, 3 when there are warnings, 2 when the data set is of
    no use as it is.
    """
    from rsfuse.detection.formats.yolo import image_size
    from rsfuse.detection.validate import validate as look

    name, dataset = read_labels(source, format, split, classes, ignored)
    findings = look(dataset, size_of=image_size)
    counts = {n: int(c) for n, c in zip(dataset.classes, dataset.count(), strict=True)}
    content: dict[str, Any] = {
        "format": name,
        "images": sum(s.image is not None for s in dataset.samples),
        "label files": len(dataset.samples),
        "objects": counts,
    }
    if as_json:
        emit({**content, "findings": [f.to_dict() for f in findings]}, as_json)
    else:
        told = [
            f"{f.level}: {f.count} x {f.what} ({f.why})"
            + (f"; {'; '.join(f.examples)}" if f.examples else "")
            for f in findings
        ]
        emit({**content, "findings": told or "none"}, as_json)
    levels = {f.level for f in findings}
    if levels & {"error", "warning"}:
        raise typer.Exit(2 if "error" in levels else 3)
