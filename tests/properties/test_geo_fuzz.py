"""Damaged headers: a read that works or a RasterError in three beats, never anything else.

Each example runs in a child process that is killed when it hangs and whose death by a signal is a
failure; one child takes many examples.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine

# Opens each file that is named on stdin and says how it went: one line per file.
CHILD = """
import resource, sys
from rsfuse.errors import RasterError
from rsfuse.geo.grid import Window
from rsfuse.geo.raster import open_raster

resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))
for line in sys.stdin:
    try:
        with open_raster(line.strip()) as source:
            h, w = source.shape
            raster = source.read(Window(0, 0, min(w, 40), min(h, 40)))
            assert raster.data.shape == (len(source.bands), min(h, 40), min(w, 40))
            source.read(Window(w - 1, h - 1, 3, 3), shape=(1, 2))
        print("read", flush=True)
    except RasterError as error:
        print("refused" if all((error.what, error.why, error.fix)) else "beats", flush=True)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}".replace(chr(10), " "), flush=True)
"""

EXAMPLES = 250


def write(path: Path, **profile: object) -> bytes:
    rng = np.random.default_rng(5)
    image = rng.integers(1, 250, (2, 45, 50)).astype(np.uint16)
    with rasterio.open(
        path, "w", driver="GTiff", width=50, height=45, count=2, dtype="uint16", nodata=7,
        crs="EPSG:32631", transform=Affine(10, 0, 5e5, 0, -10, 5.4e6), **profile,
    ) as file:  # fmt: skip
        file.write(image)
        file.set_band_description(1, "vv")
    return path.read_bytes()


def damaged(content: bytes, rng: np.random.Generator, header: int) -> bytes:
    """The content, cut short or with a few bits of its header turned over."""
    if rng.uniform() < 0.25:
        return content[: int(rng.integers(0, len(content)))]
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(0, min(header, len(changed))))
        changed[at] ^= 1 << int(rng.integers(0, 8)) if rng.uniform() < 0.7 else 0xFF
    return bytes(changed)


@pytest.mark.parametrize(
    ("name", "profile", "header"),
    [
        ("strips", {}, 900),
        ("tiles", {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "lzw"}, 1500),
        ("deflate", {"compress": "deflate", "predictor": 2, "interleave": "band"}, 900),
        ("big", {"bigtiff": "YES", "tiled": True, "blockxsize": 32, "blockysize": 32}, 1200),
    ],
)
def test_damaged_tiff_is_read_or_refused(
    tmp_path: Path, name: str, profile: dict[str, object], header: int
) -> None:
    content = write(tmp_path / "whole.tif", **profile)
    rng = np.random.default_rng([20261125, len(name)])
    paths = []
    for index in range(EXAMPLES):
        paths.append(tmp_path / f"{name}{index}.tif")
        paths[-1].write_bytes(damaged(content, rng, header))
    answers, noise = ask(paths)
    wrong = [
        f"{path.name}: {answer}"
        for path, answer in zip(paths, answers, strict=True)
        if answer not in ("read", "refused")
    ]
    assert wrong == []
    assert noise == ""
    assert {"read", "refused"} <= set(answers)  # the damage is neither harmless nor all there is


@pytest.mark.parametrize(
    ("driver", "suffix"),
    [("PNG", ".png"), ("JP2OpenJPEG", ".jp2"), ("NITF", ".ntf"), ("VRT", ".vrt")],
)
def test_damaged_file_of_another_format_is_read_or_refused(
    tmp_path: Path, driver: str, suffix: str
) -> None:
    write(tmp_path / "whole.tif")
    with rasterio.open(tmp_path / "whole.tif") as file:
        whole = tmp_path / f"whole{suffix}"
        if driver == "VRT":
            rasterio.shutil.copy(file, whole, driver=driver)
        else:
            with rasterio.open(
                tmp_path / "one.tif", "w", driver="GTiff", width=50, height=45, count=1,
                dtype="uint8", crs=file.crs, transform=file.transform,
            ) as one:  # fmt: skip
                one.write(file.read(1).astype(np.uint8), 1)
            rasterio.shutil.copy(tmp_path / "one.tif", whole, driver=driver)
    content = whole.read_bytes()
    rng = np.random.default_rng([20261125, len(driver)])
    paths = []
    for index in range(EXAMPLES // 5):
        paths.append(tmp_path / f"a{index}{suffix}")
        paths[-1].write_bytes(damaged(content, rng, len(content)))
    answers, noise = ask(paths)
    assert [a for a in answers if a not in ("read", "refused")] == []
    if driver != "JP2OpenJPEG":  # the GeoTIFF library inside of JP2 writes to stderr by itself
        assert noise == ""


def ask(paths: list[Path]) -> tuple[list[str], str]:
    """What became of each file, and what was said on stderr meanwhile."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input="".join(f"{path}\n" for path in paths),
        capture_output=True,
        text=True,
        timeout=300,  # two seconds on an idle machine
        check=False,
    )
    answers = done.stdout.splitlines()
    if done.returncode != 0:
        at = paths[len(answers)].name if len(answers) < len(paths) else "the end"
        pytest.fail(f"the child ended with {done.returncode} at {at}: {done.stderr[-500:]}")
    return answers, done.stderr
