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


Model = Annotated[
    str | None, typer.Option(help="das2f, unet or forest; das2f if neither this nor a file says.")
]
Images = Annotated[list[str] | None, typer.Option(help="Image of each scene, in place of a file.")]


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
        overrides = settings_of(set_ or []) | _given(device=device, devices=devices, nodes=nodes)
        _train(task, config, overrides, output, overwrite, resume, progress, quiet, as_json)

    command.__doc__ = doc
    command.__name__ = task
    return command


@app.command()
def classify(
    output: Output,
    config: Annotated[
        Path | None,
        typer.Argument(help="TOML file with the settings; or --ms, --pan and --labels."),
    ] = None,
    ms: Images = None,
    pan: Images = None,
    labels: Annotated[
        list[str] | None, typer.Option(help="Labels of each scene: rasters or polygons.")
    ] = None,
    model: Model = None,
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
    """Train a land-cover network on labelled MS and PAN images.

    Either CONFIG says what and how, or --ms, --pan and --labels name the scenes and everything else
    is as usual; --set changes single settings.
    """
    files = {key: tuple(v) for key, v in (("ms", ms), ("pan", pan), ("labels", labels)) if v}
    if config is None and len(files) < 3:
        missing = ", ".join(f"--{name}" for name in ("ms", "pan", "labels") if name not in files)
        raise InputError(
            f"neither a file with settings nor {missing} was given",
            "a training needs images and labels",
            "for example --ms ms.tif --pan pan.tif --labels areas.gpkg",
        )
    overrides = settings_of(set_ or []) | files
    overrides |= _given(device=device, devices=devices, nodes=nodes, model=model)
    if config is None:
        overrides.setdefault("name", output.name)
    _train("classify", config, overrides, output, overwrite, resume, progress, quiet, as_json)


def _given(**values: Any) -> dict[str, Any]:
    """The options that were given."""
    return {key: value for key, value in values.items() if value not in (None, "auto")}


def _train(
    task: str,
    config: Path | None,
    overrides: dict[str, Any],
    output: Path,
    overwrite: bool,
    resume: bool,
    progress: str,
    quiet: bool,
    as_json: bool,
) -> None:
    from importlib import import_module

    from rsfuse.runs import prepare_output

    module = import_module(f"rsfuse.{PACKAGES[task]}.train")
    from rsfuse.engine.config import make_config, read_config
    from rsfuse.engine.processes import is_first_process

    if config is None:
        settings = make_config(module.CONFIG, overrides, "the command line")
    else:
        settings = read_config(config, module.CONFIG, overrides)
    first = is_first_process(settings)
    folder = prepare_output(output, overwrite, resume=resume) if first else output
    reporter = progress_reporter(progress, quiet=quiet or not first)
    with Counter(reporter, f"train {task}") as follow:
        outcome = module.train(settings, folder, resume=resume, progress=follow)
    emit(outcome.summary(), as_json)


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
    ("detect", "Train an oriented object detector."),
    ("match", "Train the CSTF matcher on real and simulated images with known warps."),
):
    app.command(_task)(_command(_task, _doc))
