"""`rsfuse report`: an HTML page from a run folder."""

from pathlib import Path
from typing import Annotated

import typer

from rsfuse.cli.options import Json, Quiet, Verbose
from rsfuse.cli.output import emit


def report(
    run_dir: Annotated[Path, typer.Argument(help="Folder that a command wrote with -o.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The page; report.html in the run folder if left out."),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Make one self-contained HTML page from a run folder.

    The page makes no network request: it can be mailed, archived and opened as a local file.
    """
    from rsfuse.report import build_report

    emit({"report": build_report(run_dir, output)}, as_json)
