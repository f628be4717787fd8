"""`rsfuse train TASK CONFIG.toml`: train a model and write it as a bundle."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from rsfuse.cli.options import Device, Json, Overwrite, Progress, Quiet, Resume, Verbose
from rsfuse.cli.output import Counter, emit, progress_reporter
from rsfuse.errors import InputError

app = typer.Typer(no_args_is_help=True, help="Train a model and write it as a bundle.")

Config = Annotated[
    Path, typer.Argument(help="TOML file with the settings; see the folder configs.")
]
Output = Annotated[
    Path,
    typer.Option(
        "-o",
        "--output",
        help="Run folder: bundle/, checkpoints, metrics.csv, pictures.",
        show_default=False,
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="A setting that wins over the file, such as steps=500.", metavar="K=V"
    ),
]
Devices = Annotated[int | None, typer.Option(min=1, help="GPUs, or processes on the CPU.")]
Nodes = Annotated[int | None, typer.Option(min=1, help="Machines.")]


def _command(task: str, doc: str) -> Callable[..., None]:
    """The command of one task."""

    def command(
        config: Config,
        output: Output,
        set_: Set = None,
        device: Device = "auto",
        devices: Devices = None,
        nodes: Nodes = None,
        resume: Resume = False,
        as_json: Json = False,
        overwrite: Overwrite = False,
        progress: Progress = "bar",
        quiet: Quiet = False,
        verbose: Verbose = 0,
    ) -> None:
        from importlib import import_module

        from rsfuse.runs import prepare_output

        module = import_module(f"rsfuse.{PACKAGES[task]}.train")
        from rsfuse.engine.config import read_config
        from rsfuse.engine.processes import is_first_process

        overrides = settings_of(set_ or [])
        overrides |= {"device": device} if device != "auto" else {}
        overrides |= {
            key: value for key, value in (("devices", devices), ("nodes", nodes)) if value
        }
        settings = read_config(config, module.CONFIG, overrides)
        first = is_first_process(settings)
        folder = prepare_output(output, overwrite, resume=resume) if first else output
        reporter = progress_reporter(progress, quiet=quiet or not first)
        with Counter(reporter, f"train {task}") as follow:
            outcome = module.train(settings, folder, resume=resume, progress=follow)
        emit(outcome.summary(), as_json)

    command.__doc__ = doc
    command.__name__ = task
    return command


# Verb -> package whose module `train` holds CONFIG and train().
PACKAGES = {"classify": "classification", "detect": "detection", "match": "matching"}


def settings_of(texts: list[str]) -> dict[str, Any]:
    """Settings of texts such as steps=500, name="mine" or tile=32, each value as TOML.

    Raises:
        InputError: Not K=V.
    """
    import tomllib

    settings: dict[str, Any] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key.strip():
            raise InputError(
                f"--set {text} is not a setting", "K=V is needed", "for example --set steps=500"
            )
        try:
            settings[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            settings[key.strip()] = value.strip()
    return settings


for _task, _doc in (
    ("classify", "Train a land-cover network on labelled MS and PAN images."),
    ("detect", "Train an oriented object detector."),
    ("match", "Train the CSTF matcher on real and simulated images with known warps."),
):
    app.command(_task)(_command(_task, _doc))
