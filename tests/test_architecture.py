"""The direction of imports, and what an import may load."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "torch",
    "torchvision",
    "lightning",
    "rasterio",
    "pyogrio",
    "geopandas",
    "pandas",
    "xarray",
    "odc",
    "pyproj",
    "shapely",
    "numba",
    "cv2",
    "scipy",
    "matplotlib",
    "onnxruntime",
    "dask",
)


def loaded_by(code: str) -> set[str]:
    """Top-level names of the modules that a fresh interpreter has loaded after the code."""
    report = "import sys; print('\\n' + ' '.join(sorted({m.split('.')[0] for m in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return set(done.stdout.splitlines()[-1].split())


def run_command(*words: str) -> str:
    return f"from rsfuse.cli.main import main; assert main({list(words)!r}) == 0"


@pytest.mark.parametrize(
    "code",
    [
        "import rsfuse",
        "import rsfuse.errors, rsfuse.runs",
        run_command("--help"),
        run_command("--version"),
        *(
            run_command(name, "--help")
            for name in ("info", "doctor", "detect", "classify", "train")
        ),
    ],
)
def test_import_and_help_load_nothing_heavy(code: str) -> None:
    assert loaded_by(code) & set(HEAVY) == set()


def test_help_imports_no_verb() -> None:
    code = (
        f"{run_command('--help')}\n"
        "import sys\n"
        "from rsfuse.cli.main import COMMANDS\n"
        "assert not [m for m, _, _ in COMMANDS.values() if m in sys.modules]"
    )
    loaded_by(code)


def test_geo_loads_no_tensor_library() -> None:
    loaded = loaded_by("import rsfuse.geo.raster, rsfuse.geo.tiles, rsfuse.geo.warp")
    assert loaded & {"torch", "lightning", "matplotlib"} == set()


def test_ops_load_no_raster_library() -> None:
    loaded = loaded_by("import rsfuse.ops.geometry2d")
    assert loaded & {"rasterio", "pyproj", "odc", "shapely", "pyogrio", "matplotlib"} == set()


def test_simulate_loads_no_tensor_library() -> None:
    assert loaded_by("import rsfuse.simulate") & {"torch", "lightning", "matplotlib"} == set()


def test_import_contracts_hold(repository: Path) -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
