"""`rsfuse doctor`: versions, devices, GDAL drivers and known conflicts of this installation."""

import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
from typing import Any

import typer

from rsfuse import __version__
from rsfuse.cli.options import Json, Quiet, Verbose
from rsfuse.cli.output import emit, print_rows

# Distribution -> module to import, for the core and for each extra of pyproject.toml.
CORE = {
    "torch": "torch",
    "numpy": "numpy",
    "scipy": "scipy",
    "rasterio": "rasterio",
    "odc-geo": "odc.geo.geobox",
    "pyproj": "pyproj",
    "shapely": "shapely",
    "pyogrio": "pyogrio",
    "pydantic": "pydantic",
    "typer": "typer",
    "rich": "rich",
    "opencv-python-headless": "cv2",
    "numba": "numba",
    "safetensors": "safetensors",
    "pillow": "PIL",
}
EXTRAS = {
    "report": {"jinja2": "jinja2", "matplotlib": "matplotlib"},
    "vector": {"geopandas": "geopandas", "pyarrow": "pyarrow"},
    "train": {
        "lightning": "lightning",
        "torchmetrics": "torchmetrics",
        "tensorboard": "tensorboard",
    },
    "onnx": {"onnxruntime": "onnxruntime", "onnx": "onnx", "onnxscript": "onnxscript"},
    "cluster": {"dask": "dask", "distributed": "distributed", "bokeh": "bokeh"},
    "fetch": {"pystac-client": "pystac_client", "odc-stac": "odc.stac"},
    "xarray": {"xarray": "xarray"},
}

# What rsfuse reads and writes most; GDAL has many more.
DRIVERS = (
    "GTiff",
    "COG",
    "JP2OpenJPEG",
    "NITF",
    "VRT",
    "PNG",
    "JPEG",
    "HDF5",
    "netCDF",
    "Zarr",
    "SAFE",
)

OPENCV = (
    "opencv-python",
    "opencv-python-headless",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
)


def doctor(as_json: Json = False, quiet: Quiet = False, verbose: Verbose = 0) -> None:
    """Show versions, devices, GDAL drivers and known conflicts.

    Ends with exit code 1 when a package of the core is missing or does not import.
    """
    findings = examine()
    if as_json:
        emit(findings, as_json=True)
    else:
        _print(findings)
    if not findings["ok"]:
        raise typer.Exit(1)


def examine() -> dict[str, Any]:
    """What this installation is made of, and what is wrong with it."""
    core = {name: _state(name, module) for name, module in CORE.items()}
    extras = {
        extra: {name: _version(name) for name in packages} for extra, packages in EXTRAS.items()
    }
    broken = [name for name, state in core.items() if state["error"]]
    return {
        "ok": not broken,
        "rsfuse": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gb": _memory_gb(),
        "core": core,
        "extras": extras,
        "devices": [] if core["torch"]["error"] else _devices(),
        "gdal": {} if core["rasterio"]["error"] else _gdal(),
        "chromium": find_chromium(),
        "conflicts": [
            *(f"{name}: {core[name]['error']}" for name in broken),
            *find_conflicts(_version, dict(os.environ)),
        ],
    }


def find_conflicts(version: Any, environment: dict[str, str]) -> list[str]:
    """Known conflicts, each with what to do.

    Args:
        version: Function from a distribution name to its version, None where it is not installed.
        environment: The environment variables.
    """
    found: list[str] = []
    copies = [name for name in OPENCV if version(name)]
    if len(copies) > 1:
        found.append(
            f"{' and '.join(copies)} overwrite each other's files: "
            f"pip uninstall {' '.join(copies)}, then pip install opencv-python-headless"
        )
    if version("torchvision"):
        found.append(
            "torchvision is installed; rsfuse never needs it, and one built for another torch "
            "stops lightning from importing: pip uninstall torchvision if training fails to start"
        )
    for name in ("GDAL_DATA", "PROJ_LIB", "PROJ_DATA", "GDAL_DRIVER_PATH"):
        if environment.get(name):
            found.append(
                f"{name} is set to {environment[name]}; the wheels bring their own files, and "
                f"those of another GDAL or PROJ break them: unset {name} if CRS or drivers are "
                "not found"
            )
    return found


def find_chromium() -> str | None:
    """Path of a Chromium that the browser tests can use, None where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if path := shutil.which(name):
            return path
    return None


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _state(distribution: str, module: str) -> dict[str, str | None]:
    """Version of a distribution, and why it does not import where it does not."""
    error: str | None = None
    try:
        importlib.import_module(module)
    except Exception as reason:  # a broken package can raise anything
        error = f"{type(reason).__name__}: {reason}"
    return {"version": _version(distribution), "error": error}


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)
    except (ValueError, OSError, AttributeError):
        return None


def _devices() -> list[str]:
    import torch

    devices = [f"cpu ({torch.get_num_threads()} threads)"]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            memory_gb = torch.cuda.get_device_properties(index).total_memory / 1e9
            devices.append(f"cuda:{index} {torch.cuda.get_device_name(index)} ({memory_gb:.0f} GB)")
    return devices


def _gdal() -> dict[str, Any]:
    import pyogrio
    import rasterio

    with rasterio.Env() as env:
        present = set(env.drivers())
    return {
        "rasterio": rasterio.__gdal_version__,
        "pyogrio": ".".join(str(part) for part in pyogrio.__gdal_version__),
        "drivers": len(present),
        "present": [name for name in DRIVERS if name in present],
        "missing": [name for name in DRIVERS if name not in present],
    }


def _print(findings: dict[str, Any]) -> None:
    rows = {
        "rsfuse": findings["rsfuse"],
        "python": f"{findings['python']} ({findings['executable']})",
        "system": findings["system"],
        "cores, memory": f"{findings['cores']}, {findings['memory_gb']} GB",
    }
    for name, state in findings["core"].items():
        rows[name] = "does not import" if state["error"] else state["version"] or "unknown"
    for extra, packages in findings["extras"].items():
        rows[f"extra {extra}"] = ", ".join(
            f"{name} {version or '–'}" for name, version in packages.items()
        )
    rows["devices"] = "; ".join(findings["devices"]) or "–"
    if gdal := findings["gdal"]:
        rows["GDAL"] = f"{gdal['rasterio']} (rasterio), {gdal['pyogrio']} (pyogrio)"
        rows["drivers"] = f"{gdal['drivers']}: {', '.join(gdal['present'])}"
        rows["no driver for"] = ", ".join(gdal["missing"]) or "–"
    rows["chromium"] = findings["chromium"] or "– (browser tests are skipped)"
    print_rows(rows)
    for conflict in findings["conflicts"]:
        typer.echo(f"conflict: {conflict}")
    typer.echo("everything needed is here" if findings["ok"] else "rsfuse cannot run like this")
