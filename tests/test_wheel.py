"""The wheel: what is in it, and that it works where nothing of the repository is."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import geopandas
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

# A file of each kind that is no Python and must travel.
DATA = (
    "rsfuse/py.typed",
    "rsfuse/fetch/sources.toml",
    "rsfuse/models/cstf/model.safetensors",
    "rsfuse/models/hit-uav-tiny/bundle.json",
    "rsfuse/report/templates/match.html.j2",
    "rsfuse/view/static/ol.js",
    "rsfuse/view/static/OPENLAYERS-LICENSE.md",
)
MOST_BYTES = 12_000_000

# Names of packages that are PyTorch or do not work without it, and this package itself.
WITH_TORCH = ("torch", "functorch", "lightning", "pytorch_lightning", "rsfuse", "__editable__")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--wheel-dir", str(folder), str(REPOSITORY)], check=True, timeout=300,
    )  # fmt: skip
    return next(folder.glob("rsfuse-*-py3-none-any.whl"))


def smoke(python: Path, folder: Path) -> None:
    """The first things that a user does, far from the repository."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}

    def rsfuse(*words: str) -> str:
        done = subprocess.run(
            [str(python.parent / "rsfuse"), *words], cwd=folder, env=environment, timeout=300,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert rsfuse("--version").startswith("rsfuse ")
    assert str(REPOSITORY) not in rsfuse("doctor", "--json")
    rsfuse("simulate", "-o", "s", "--size", "256", "--modalities", "pan,ms,thermal", "--seed", "12")
    rsfuse("match", "s/ms.tif", "s/thermal.tif", "-o", "m", "--progress", "none")
    rsfuse("detect", "s/pan.tif", "-m", "simulated-objects", "-o", "o.gpkg", "--progress", "none")
    assert (folder / "m" / "report.html").is_file()
    assert (folder / "o.gpkg").is_file()


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        size = sum(entry.compress_size for entry in archive.infolist())
        metadata = next(n for n in names if n.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode("utf-8")
    sources = {p.relative_to(REPOSITORY / "src").as_posix()
               for p in (REPOSITORY / "src").rglob("*.py")}  # fmt: skip
    assert sources <= names
    assert set(DATA) <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"rsfuse"}
    assert not [name for name in names if "__pycache__" in name or name.endswith(".part")]
    assert size < MOST_BYTES
    assert "License-Expression: Apache-2.0" in text
    assert "Requires-Dist: torchvision" not in text


@pytest.mark.slow
def test_it_works_beside_the_installed_dependencies(wheel: Path, tmp_path: Path) -> None:
    """In an environment that has the dependencies of this one, and not this package."""
    home = tmp_path / "env"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    packages = next((home / "lib").glob("python*/site-packages"))
    subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True
    )
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    smoke(python, tmp_path)
    where = subprocess.run(
        [str(python), "-c", "import rsfuse; print(rsfuse.__file__)"], cwd=tmp_path,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert str(packages) in where.stdout


@pytest.mark.slow
def test_detection_works_where_torch_is_not_installed(wheel: Path, tmp_path: Path) -> None:
    """In an environment that holds every dependency of `rsfuse[onnx]` but PyTorch."""
    here = Path(sys.executable).parent
    for words in (
        "simulate -o s --size 256 --modalities pan --seed 12",
        "export simulated-objects -o m --tile 320",
    ):
        subprocess.run([here / "rsfuse", *words.split()], cwd=tmp_path, check=True, timeout=300)
    home, shelf = tmp_path / "env", tmp_path / "shelf"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True
    )
    shelf.mkdir()
    for package in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not package.name.startswith(WITH_TORCH) and package.suffix != ".pth":
            (shelf / package.name).symlink_to(package)
    packages = next((home / "lib").glob("python*/site-packages"))
    (packages / "dependencies.pth").write_text(f"{shelf}\n")
    words = "s/pan.tif -m m --json --progress none"
    rows = []
    for program in (here, python.parent):
        name = f"{len(rows)}.gpkg"
        subprocess.run(
            [program / "rsfuse", "detect", *words.split(), "-o", name], cwd=tmp_path, check=True,
            timeout=300, capture_output=True,
        )  # fmt: skip
        rows.append(len(geopandas.read_file(tmp_path / name)))
    gone = subprocess.run([str(python), "-c", "import torch"], capture_output=True, text=True)
    assert "No module named 'torch'" in gone.stderr
    assert rows[0] == rows[1] > 0


@pytest.mark.slow
def test_it_installs_into_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    """With the exact versions of constraints.txt, from wheels alone."""
    home = tmp_path / "env"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    constraint = str(REPOSITORY / "constraints.txt")
    subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", "--only-binary", ":all:", "--constraint",
         constraint, f"{wheel}[report]"], check=True, timeout=1200,
    )  # fmt: skip
    smoke(python, tmp_path)
    listed = subprocess.run(
        [str(python), "-m", "pip", "list", "--format", "freeze"], capture_output=True, text=True,
        check=True,
    ).stdout.lower()  # fmt: skip
    assert "nvidia" not in listed
    assert "torchvision" not in listed
