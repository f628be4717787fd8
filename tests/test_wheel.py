"""The wheel: what is in it, and that it works where nothing of the repository is."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

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
