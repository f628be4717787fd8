"""`rsfuse view`: a local page that shows rasters and results."""

import logging
from typing import Annotated

import typer

from rsfuse.cli.options import Json, Quiet, Verbose
from rsfuse.cli.output import emit

log = logging.getLogger(__name__)


def view(
    paths: Annotated[
        list[str],
        typer.Argument(help="Run folders, folders that hold some, rasters, vector files."),
    ],
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the page; 0 takes a free one.")
    ] = 0,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")
    ] = True,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Show rasters and results in the browser until Ctrl-C.

    The page answers to this machine alone and asks nothing of any other. The grid of the first
    raster is that of the page.
    """
    from rsfuse.view import ViewServer, collect

    server = ViewServer(collect(paths), port)
    emit({"page": server.url, "stop": "Ctrl-C"}, as_json)
    if browser:
        import webbrowser

        webbrowser.open(server.url)
    try:
        server.serve()
    except KeyboardInterrupt:
        log.info("stopped")
