"""`rsfuse batch`: one command over an archive of scenes."""

import difflib
import io
import shlex
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rsfuse.cli.options import Json, Output, Progress, Quiet, Verbose
from rsfuse.cli.output import Counter, emit, progress_reporter
from rsfuse.errors import ConfigError, InputError, RsfuseError
from rsfuse.runs import EXIT_NOT_OK

if TYPE_CHECKING:
    from rsfuse.batch import Item


def batch(
    jobs: Annotated[
        str,
        typer.Argument(help="A file JOBS.toml, or a STAC catalog (path or URL of its JSON)."),
    ],
    output: Output,
    task: Annotated[
        str | None, typer.Option(help="For a catalog: match, detect or classify.")
    ] = None,
    asset: Annotated[
        list[str] | None,
        typer.Option(help="For a catalog: the asset of an input, such as scene=visual."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="An option of the command for all items.", metavar="K=V"),
    ] = None,
    scheduler: Annotated[
        str, typer.Option(help="local, or the address of a Dask scheduler: tcp://HOST:8786.")
    ] = "local",
    workers: Annotated[int, typer.Option(min=1, help="Processes of a local cluster.")] = 1,
    retries: Annotated[
        int, typer.Option(min=0, help="Further tries of an item that fails; bad input has none.")
    ] = 2,
    as_json: Json = False,
    progress: Progress = "bar",
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Run match, detect or classify on every item of an archive.

    OUTPUT receives a folder per item, a STAC catalog, summary.json and failures.csv. Run it again
    to go on after an interrupt or to try failures again: items that are whole and were made of the
    same inputs and options are kept. The exit code is 3 when items failed.
    """
    from rsfuse.batch import read_jobs, read_stac, run_batch
    from rsfuse.batch.jobs import is_toml
    from rsfuse.cli.train import settings_of

    shared = settings_of(set_ or [])
    if is_toml(jobs):
        if task or asset or shared:
            raise InputError(
                "--task, --asset and --set are for catalogs",
                f"{jobs} says itself what is to be done",
                "put them into the file",
            )
        work = read_jobs(jobs)
    else:
        work = read_stac(jobs, task or "", _pairs(asset or []), shared)
    for item in work.items:  # mistakes are found before any work is done
        _check(work.task, item)
    reporter = progress_reporter(progress, quiet=quiet)
    said: dict[str, Any] = {}
    with Counter(reporter, f"batch {work.task}") as follow:
        found = run_batch(
            work, output, run_item, scheduler=scheduler, workers=workers, retries=retries,
            progress=follow, announce=lambda link: _announce(link, quiet),
        )  # fmt: skip
    failed = [outcome for outcome in found if outcome.state == "failed"]
    said |= {
        "items": len(found),
        "done": sum(outcome.state == "done" for outcome in found),
        "kept": sum(outcome.state == "kept" for outcome in found),
        "failed": len(failed),
        "not ok": sum(outcome.status in ("weak", "refused") for outcome in found),
        "first failures": [f"{outcome.id}: {outcome.what}" for outcome in failed[:5]],
        "catalog": str(output / "catalog.json"),
    }
    emit(said, as_json)
    if failed:
        raise typer.Exit(EXIT_NOT_OK)


def _announce(link: str, quiet: bool) -> None:
    if not quiet:
        typer.echo(f"dashboard {link}", err=True)


def _pairs(texts: list[str]) -> dict[str, str]:
    """Role -> asset of texts such as scene=visual."""
    pairs = dict(text.partition("=")[::2] for text in texts)
    wrong = next((text for text in texts if "=" not in text), None)
    if wrong is not None:
        raise InputError(
            f"--asset {wrong}", "ROLE=KEY is needed", "for example --asset scene=visual"
        )
    return pairs


def run_item(task: str, item: "Item", scratch: Path, place: Path) -> int:
    """Run the command of one item; results go to `scratch` and will lie in `place`.

    Raises:
        RsfuseError: As the command does.
    """
    from rsfuse.cli.main import load_command

    told = sys.argv
    try:
        # What run.json calls the command that repeats the run.
        sys.argv = ["rsfuse", task, *words_of(task, item, place)]
        with redirect_stdout(io.StringIO()):  # what it says is in run.json
            code = load_command(task).main(
                [*words_of(task, item, scratch), "--overwrite", "--quiet", "--progress", "none"],
                prog_name=f"rsfuse {task}", standalone_mode=False,
            )  # fmt: skip
    except typer.TyperException as error:
        raise InputError(error.format_message(), "", f"see rsfuse {task} --help") from error
    finally:
        sys.argv = told
    if code not in (None, 0, EXIT_NOT_OK):
        raise RsfuseError(f"the command ended with exit code {code}")
    return int(code or 0)


def words_of(task: str, item: "Item", folder: Path) -> list[str]:
    """The words of the command line of an item.

    Raises:
        ConfigError: An option that the command does not have.
    """
    from rsfuse.batch.jobs import RESERVED, TASKS
    from rsfuse.cli.main import load_command

    roles, product = TASKS[task]
    known = {p.name: p for p in load_command(task).params if p.param_type_name == "option"}
    words = [item.inputs[role] for role in roles]
    options = dict(item.options)
    if "threads" in known:
        options.setdefault("threads", 1)  # one process per core already
    for name, value in options.items():
        key = name.replace("-", "_")
        key = next((k for k, p in known.items() if f"--{key.replace('_', '-')}" in p.opts), key)
        if key not in known or key in RESERVED:
            near = difflib.get_close_matches(key, [k for k in known if k not in RESERVED], n=1)
            raise ConfigError(
                f"item {item.id}: rsfuse {task} has no option {name!r} for a batch",
                "options are those of the command line, without the dashes",
                f"did you mean {near[0]}?" if near else f"see rsfuse {task} --help",
            )
        words += _option(known[key], value)
    return [*words, "-o", str(folder / product if product else folder)]


def _option(parameter: Any, value: Any) -> list[str]:
    """The words of one option."""
    name = max(parameter.opts, key=len)
    if isinstance(value, bool):
        off = max(parameter.secondary_opts, key=len, default="")
        return [name] if value else [off] if off else []
    if isinstance(value, list):
        if parameter.multiple:
            return [word for one in value for word in (name, str(one))]
        return [name, ",".join(map(str, value))]
    return [name, str(value)]


def _check(task: str, item: "Item") -> None:
    """Parse the command line of an item without running it."""
    from rsfuse.cli.main import load_command

    words = words_of(task, item, Path("x"))
    try:
        load_command(task).make_context(f"rsfuse {task}", list(words))
    except typer.TyperException as error:
        raise ConfigError(
            f"item {item.id}: {error.format_message()}",
            f"its command would be rsfuse {task} {shlex.join(words[:-2])}",
            f"see rsfuse {task} --help",
        ) from error
