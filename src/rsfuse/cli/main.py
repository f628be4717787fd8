"""The `rsfuse` command: a literal table of verbs, each loaded when it is called.

`rsfuse --help` imports none of the commands, so it answers at once. This file also turns every way
of ending into an exit code: 0 ok, 1 failed, 2 usage or bad input, 3 partly failed, weak or refused.
"""

import importlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from rsfuse import __version__
from rsfuse.cli.options import Quiet, Verbose
from rsfuse.cli.output import print_error, print_unexpected, set_up_logging
from rsfuse.errors import RsfuseError

# verb: (module, function or Typer group in it, one line of help)
COMMANDS = {
    "match": ("rsfuse.cli.match", "match", "Find the transform between two images."),
    "detect": ("rsfuse.cli.detect", "detect", "Find oriented objects in whole scenes."),
    "classify": ("rsfuse.cli.classify", "classify", "Map land cover from MS and PAN images."),
    "apply": ("rsfuse.cli.apply", "apply", "Apply a found transform to other rasters."),
    "batch": ("rsfuse.cli.batch", "batch", "Run a command on every scene of an archive."),
    "train": ("rsfuse.cli.train", "app", "Train a model and write it as a bundle."),
    "evaluate": ("rsfuse.cli.evaluate", "app", "Measure a task on a data set with known truth."),
    "export": ("rsfuse.cli.export", "export", "Put an ONNX file into a detector's bundle."),
    "convert": ("rsfuse.cli.convert", "convert", "Write detection labels in another format."),
    "validate": ("rsfuse.cli.validate", "validate", "Say what is wrong with a detection data set."),
    "split": ("rsfuse.cli.split", "split", "Cut a detection data set into tiles."),
    "merge": ("rsfuse.cli.merge", "merge", "Put detections of tiles together."),
    "fetch": ("rsfuse.cli.fetch", "fetch", "Get images of a box from public catalogs."),
    "simulate": ("rsfuse.cli.simulate", "simulate", "Make scenes with exactly known truth."),
    "report": ("rsfuse.cli.report", "report", "Make an HTML page from run folders."),
    "view": ("rsfuse.cli.view", "view", "Show rasters and results in the browser."),
    "demo": ("rsfuse.cli.demo", "demo", "Register a simulated pair and show the page."),
    "info": ("rsfuse.cli.info", "info", "Describe a raster, a run folder or a model bundle."),
    "doctor": ("rsfuse.cli.doctor", "doctor", "Show versions, devices and known conflicts."),
}


class LazyGroup(TyperGroup):
    """The verbs as stubs with a name and a line of help; the one that is called is imported."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {
            name: TyperCommand(name=name, help=line) for name, (_, _, line) in COMMANDS.items()
        }

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Find the verb in the arguments and import it."""
        name, _, rest = super().resolve_command(ctx, args)
        return name, None if name is None else load_command(name), rest

    def invoke(self, ctx: Any) -> None:
        """Run the verb; an interrupt ends it in an orderly way."""
        try:
            super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Abort from None


def load_command(name: str) -> Any:
    """Import the command of a verb of `COMMANDS`."""
    module, attribute, line = COMMANDS[name]
    target = getattr(importlib.import_module(module), attribute)
    if isinstance(target, typer.Typer):
        command: Any = typer.main.get_group(target)
    else:
        holder = typer.Typer(add_completion=False)
        holder.command(name)(target)
        command = typer.main.get_command(holder)
    command.name = name
    command.help = command.help or line
    return command


app = typer.Typer(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"rsfuse {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Multimodal remote sensing: register images across sensors, find objects, map land cover.

    Exit codes: 0 ok, 1 failed, 2 usage or bad input, 3 partly failed, weak or refused result (its
    files and the reason are still written).
    """
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    set_up_logging()
    command = typer.main.get_command(app)
    try:
        code = command.main(args, prog_name="rsfuse", standalone_mode=False)
    except typer.TyperException as error:
        print_error(_usage_error(error))
        return error.exit_code
    except typer.Abort:
        print_error(RsfuseError("interrupted"))
        return 1
    except RsfuseError as error:
        _traceback_if_asked()
        print_error(error)
        return error.exit_code
    except MemoryError:
        _traceback_if_asked()
        print_error(
            RsfuseError(
                "out of memory",
                "the work did not fit into what this machine has free",
                "give a smaller --memory or --tile, fewer --workers, or close other programs",
            )
        )
        return 1
    except BrokenPipeError:
        # The reader of a pipe went away; keep the interpreter from failing again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # the last line of defence: three lines instead of a traceback
        _traceback_if_asked()
        print_unexpected(error)
        return 1
    return int(code or 0)


def _usage_error(error: typer.TyperException) -> RsfuseError:
    """A parser error in three beats."""
    ctx = getattr(error, "ctx", None)
    usage = ctx.get_usage().removeprefix("Usage: ") if ctx is not None else "rsfuse COMMAND"
    path = ctx.command_path if ctx is not None else "rsfuse"
    return RsfuseError(error.format_message(), f"the usage is {usage}", f"see {path} --help")


def _traceback_if_asked() -> None:
    if logging.getLogger("rsfuse").level <= logging.DEBUG:
        traceback.print_exc()


if __name__ == "__main__":
    sys.exit(main())
