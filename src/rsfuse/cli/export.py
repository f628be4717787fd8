"""`rsfuse export`: a bundle with an ONNX file in it."""

from pathlib import Path
from typing import Annotated

import typer

from rsfuse.cli.options import Json, Overwrite, Quiet, Verbose
from rsfuse.cli.output import emit
from rsfuse.errors import InputError


def export(
    model: Annotated[str, typer.Argument(help="Bundle, or the name of one that is shipped.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The new bundle: a folder, or a file .zip.")
    ],
    tile: Annotated[
        int, typer.Option(min=32, help="Side of the input; 1280 is a tile with its halo.")
    ] = 1280,
    int8: Annotated[bool, typer.Option("--int8", help="Quantise convolutions.")] = False,
    calibrate: Annotated[
        list[Path] | None,
        typer.Option(help="Images, or folders of them, that the int8 form is fitted to."),
    ] = None,
    as_json: Json = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Write a copy of the detector MODEL that ONNX Runtime can run.

    `rsfuse detect` then takes ONNX Runtime on the CPU by itself. Suppression stays outside of the
    file.
    """
    import tempfile

    from rsfuse.detection import export as onnx_file
    from rsfuse.engine.bundle import ONNX_FILE, load_bundle, zip_bundle
    from rsfuse.runs import staged

    bundle = load_bundle(model, "detect")
    for path in calibrate or []:
        if not path.exists():
            raise InputError(f"{path} does not exist", "an image is needed", "check the path")
    images = onnx_file.read_calibration(calibrate or [], None)
    precision: onnx_file.Precision = "int8" if int8 else "fp32"
    if output.suffix == ".zip":
        if output.exists() and not overwrite:
            raise InputError(f"{output} exists", "nothing is replaced unasked", "add --overwrite")
        with tempfile.TemporaryDirectory() as scratch:
            made = onnx_file.export(
                bundle, Path(scratch) / "bundle", tile=tile, precision=precision, calibration=images
            )
            zip_bundle(made, output)
    else:
        with staged(output, overwrite) as folder:
            onnx_file.export(bundle, folder, tile=tile, precision=precision, calibration=images)
        made = load_bundle(output)
    emit(
        {
            "bundle": str(output),
            "precision": precision,
            "tile": tile,
            "onnx_mb": round(len(made.file(ONNX_FILE)) / 1e6, 2) if output.is_dir() else None,
        },
        as_json,
    )
