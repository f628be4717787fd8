"""Archives: jobs and catalogs in, whole items out, and nothing lost when a worker dies."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from rsfuse.archive import Archive, checksum, write_item
from rsfuse.batch import Batch, Item, read_jobs, read_stac, run_batch
from rsfuse.batch.stac import request_of
from rsfuse.cli.batch import run_item, words_of
from rsfuse.cli.main import main
from rsfuse.errors import ConfigError, InputError, RsfuseError
from rsfuse.geo.write import write_cog
from rsfuse.runs import RunRecord

distributed = pytest.importorskip("distributed", reason="Dask is an extra")
psutil = pytest.importorskip("psutil")

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    for seed in (1, 2, 3):
        assert main(["simulate", "-o", str(folder / f"s{seed}"), "--size", "256", "--seed",
                     str(seed), "--modalities", "ms,sar", "-q"]) == 0  # fmt: skip
    return folder


@pytest.fixture
def jobs(scenes: Path, tmp_path: Path) -> Callable[..., Path]:
    def write(*rows: str, task: str = "match", options: str = "upright = true") -> Path:
        path = tmp_path / "jobs.toml"
        items = "\n".join(f"[[items]]\n{row}" for row in rows)
        path.write_text(f'task = "{task}"\n[options]\n{options}\n{items}\n')
        return path

    return write


def pair(scenes: Path, seed: int, name: str) -> str:
    folder = scenes / f"s{seed}"
    return f'id = "{name}"\nreference = "{folder}/ms.tif"\nquery = "{folder}/sar.tif"'


# -- what is to be done --------------------------------------------------------------------


def test_jobs_are_read_beside_their_file(tmp_path: Path) -> None:
    path = tmp_path / "jobs.toml"
    path.write_text(
        'task = "detect"\n[options]\nscore = 0.5\nmodel = "m"\n'
        '[[items]]\nscene = "a/north.tif"\n[[items]]\nid = "b"\n'
        'scene = "/data/b.tif"\nscore = 0.1\n'
        '[[items]]\nid = "c"\nscene = "https://example.org/c.tif"\n'
    )
    batch = read_jobs(path)
    assert batch.task == "detect"
    assert [item.id for item in batch.items] == ["north", "b", "c"]
    assert batch.items[0].inputs == {"scene": str(tmp_path / "a/north.tif")}
    assert batch.items[1].inputs == {"scene": "/data/b.tif"}
    assert batch.items[2].inputs == {"scene": "https://example.org/c.tif"}
    assert [item.options["score"] for item in batch.items] == [0.5, 0.1, 0.5]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("task =", "not valid TOML"),
        ('task = "fly"\n[[items]]\nscene = "a"', "'fly'"),
        ('task = "detect"', "no items"),
        ('task = "detect"\nmodel = "m"', "'model' means nothing"),
        ('task = "match"\n[[items]]\nreference = "a.tif"', "no query"),
        ('task = "detect"\n[[items]]\nid = "../x"\nscene = "a"', "cannot name a folder"),
        ('task = "detect"\n[[items]]\nscene = "a.tif"\n[[items]]\nscene = "b/A.tif"', "twice"),
        ('task = "detect"\nitems = ["a"]', "no table"),
        ('task = "match"\n[[items]]\nid = "Run"\nreference = "a"\nquery = "b"', "Run.json"),
        ('task = "match"\n[[items]]\nid = "transform"\nreference = "a"\nquery = "b"', "another id"),
    ],
)
def test_what_a_file_gets_wrong_is_explained(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "jobs.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=what):
        read_jobs(path)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ("uprigth = true", "did you mean upright"),
        ('model = "affin"', "affin"),
        ("threads = 0", "threads"),
        ('output = "x"', "no option 'output'"),
    ],
)
def test_mistakes_in_options_end_before_any_work(
    jobs: Callable[..., Path], scenes: Path, tmp_path: Path, options: str, what: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = jobs(pair(scenes, 1, "one"), options=options)
    code = main(["batch", str(path), "-o", str(tmp_path / "out")])
    said = capsys.readouterr().err
    if what == "affin":  # a value that only the command itself can judge
        assert code == 3
    else:
        assert code == 2
        assert not (tmp_path / "out").exists()
        assert what in said
    assert "Traceback" not in said


def test_inputs_that_are_called_like_results_are_items_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "jobs.toml"
    path.write_text(
        'task = "detect"\n[[items]]\nscene = "run.tif"\n[[items]]\nscene = "b/transform.tif"\n'
    )
    assert [item.id for item in read_jobs(path).items] == ["run_item", "transform_item"]
    stac = tmp_path / "item.json"
    asset = {"scene": {"href": "a.tif"}}
    stac.write_text(json.dumps({"type": "Feature", "id": "run", "assets": asset}))
    assert read_stac(str(stac), "detect", {"scene": "scene"}, {}).items[0].id == "run_item"


def test_words_are_those_of_the_command_line() -> None:
    item = Item(
        "a", {"scene": "s.tif"}, {"model": "m", "score": 0.25, "classes": ["ship", "plane"]}
    )
    words = words_of("detect", item, Path("/out"))
    assert words[0] == "s.tif"
    assert words[-2:] == ["-o", "/out/objects.gpkg"]
    assert "ship,plane" in words
    match = Item("b", {"reference": "r", "query": "q"}, {"max-shift": "40px", "upright": True})
    words = words_of("match", match, Path("/out"))
    assert words[:2] == ["r", "q"]
    assert {"--max-shift", "40px", "--upright", "--threads"} <= set(words)


def test_a_catalog_gives_the_same_items_as_its_parts(tmp_path: Path) -> None:
    def item(name: str) -> dict[str, Any]:
        return {
            "type": "Feature", "stac_version": "1.0.0", "id": name,
            "properties": {"datetime": "2024-05-01T10:00:00Z"},
            "assets": {"B04": {"href": "./red.tif"}, "far": {"href": "https://example.org/f.tif"}},
            "links": [],
        }  # fmt: skip

    (tmp_path / "in").mkdir()
    for name in ("a", "b c"):
        (tmp_path / "in" / f"{name[0]}.json").write_text(json.dumps(item(name)))
    (tmp_path / "catalog.json").write_text(json.dumps({
        "type": "Catalog", "id": "x", "stac_version": "1.0.0", "description": "",
        "links": [{"rel": "self", "href": "./catalog.json"},
                  {"rel": "child", "href": "./collection.json"}],
    }))  # fmt: skip
    (tmp_path / "collection.json").write_text(json.dumps({
        "type": "Collection", "id": "y", "stac_version": "1.0.0",
        "links": [{"rel": "item", "href": "./in/a.json"}, {"rel": "item", "href": "./in/b.json"},
                  {"rel": "parent", "href": "./catalog.json"}],
    }))  # fmt: skip
    batch = read_stac(str(tmp_path / "catalog.json"), "detect", {"scene": "B04"}, {"model": "m"})
    assert [entry.id for entry in batch.items] == ["a", "b_c"]
    assert batch.items[0].inputs == {"scene": str(tmp_path / "in" / "./red.tif")}
    assert batch.items[0].when == "2024-05-01T10:00:00Z"
    both = read_stac(str(tmp_path / "in" / "a.json"), "match",
                     {"reference": "far", "query": "/data/q.tif"}, {})  # fmt: skip
    assert both.items[0].inputs == {
        "reference": "https://example.org/f.tif", "query": "/data/q.tif"
    }  # fmt: skip
    with pytest.raises(InputError, match="no asset 'B99'"):
        read_stac(str(tmp_path / "catalog.json"), "detect", {"scene": "B99"}, {})
    with pytest.raises(InputError, match="query is missing"):
        read_stac(str(tmp_path / "catalog.json"), "match", {"reference": "B04"}, {})
    (tmp_path / "no.json").write_text("{}")
    with pytest.raises(InputError, match="not STAC"):
        read_stac(str(tmp_path / "no.json"), "detect", {"scene": "B04"}, {})


# -- the archive --------------------------------------------------------------------


def test_an_item_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    with archive.making("a") as scratch:
        (scratch / "f.txt").write_text("old")

    def fail() -> None:
        with archive.making("a") as scratch:
            (scratch / "f.txt").write_text("half")
            raise RsfuseError("stop")

    with pytest.raises(RsfuseError):
        fail()
    assert (archive.place("a") / "f.txt").read_text() == "old"
    with archive.making("a") as scratch:
        (scratch / "f.txt").write_text("new")
    assert (archive.place("a") / "f.txt").read_text() == "new"
    assert [p.name for p in archive.items.iterdir()] == ["a"]


def test_what_a_killed_worker_left_is_swept_away(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    (archive.items / ".part-a-0123abcd").mkdir(parents=True)
    # killed between the two renames: the old folder is put back
    (archive.items / ".part-b-0123abcd-old").mkdir()
    (archive.items / ".part-b-0123abcd-old" / "f").write_text("old")
    archive.sweep()
    assert [p.name for p in archive.items.iterdir()] == ["b"]
    assert (archive.items / "b" / "f").read_text() == "old"


def test_an_item_file_takes_the_place_of_no_result(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("mine")
    with pytest.raises(InputError, match=r"a file a\.json"):
        write_item(
            tmp_path, "a", "", place={}, properties={}, links=[], extensions=[], roles={}
        )  # fmt: skip
    assert (tmp_path / "a.json").read_text() == "mine"


def test_the_request_knows_options_and_files(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(b"1")
    item = Item("a", {"scene": str(path)}, {"score": 0.5})
    first = request_of("detect", item)
    assert request_of("detect", Item("other", item.inputs, item.options)) == first
    assert request_of("detect", Item("a", item.inputs, {"score": 0.6})) != first
    assert request_of("match", item) != first
    path.write_bytes(b"22")
    assert request_of("detect", item) != first


def test_items_are_made_kept_and_made_again(
    jobs: Callable[..., Path], scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = jobs(pair(scenes, 1, "one"), 'id = "gone"\nreference = "no.tif"\nquery = "no.tif"')
    out = tmp_path / "out"
    words = ["batch", str(path), "-o", str(out), "--json", "-q"]
    assert main(words) == 3
    said = json.loads(capsys.readouterr().out)
    assert (said["done"], said["kept"], said["failed"]) == (1, 0, 1)
    assert "no.tif" in (out / "failures.csv").read_text()
    folder = out / "items" / "one"
    with rasterio.open(folder / "registered.tif") as registered:
        assert registered.count == 1
    record = RunRecord.load(folder)
    assert record.command.startswith("rsfuse match ")
    assert record.command.endswith(f"-o {folder}")
    item = json.loads((folder / "one.json").read_text())
    assert item["assets"]["registered"]["roles"] == ["data"]
    assert item["assets"]["registered"]["file:checksum"] == checksum(folder / "registered.tif")
    assert item["properties"]["proj:code"] == "EPSG:32631"
    assert item["bbox"][0] < 4 < 52 > item["bbox"][1]
    links = json.loads((out / "catalog.json").read_text())["links"]
    assert [link["href"] for link in links if link["rel"] == "item"] == ["./items/one/one.json"]

    made = (folder / "one.json").stat().st_mtime_ns
    assert main(words) == 3
    assert json.loads(capsys.readouterr().out)["kept"] == 1
    assert (folder / "one.json").stat().st_mtime_ns == made
    (folder / "registered.tif").write_bytes(b"damaged")
    assert main(words) == 3
    assert json.loads(capsys.readouterr().out)["done"] == 1
    with rasterio.open(folder / "registered.tif") as registered:
        assert registered.count == 1


def test_a_refused_result_that_is_kept_is_counted(
    jobs: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.tif", "b.tif"):
        write_cog(tmp_path / name, np.full((1, 64, 64), 7, np.uint8))  # no structure to match
    path = jobs(f'id = "flat"\nreference = "{tmp_path}/a.tif"\nquery = "{tmp_path}/b.tif"')
    out = tmp_path / "out"
    words = ["batch", str(path), "-o", str(out), "--json", "-q"]
    for state in ("done", "kept"):
        assert main(words) == 0
        said = json.loads(capsys.readouterr().out)
        assert (said[state], said["not ok"]) == (1, 1)
        assert json.loads((out / "summary.json").read_text())["statuses"] == {"refused": 1}


# -- clusters --------------------------------------------------------------------


def products(out: Path) -> dict[str, str]:
    """Checksums of what does not carry the time of the run."""
    names = ("registered.tif", "tie_points.csv", "transform.json")
    return {
        f"{folder.name}/{name}": checksum(folder / name)
        for folder in sorted((out / "items").iterdir())
        for name in names
    }


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def worker_of(process: subprocess.Popen[str], out: Path) -> "psutil.Process":
    """A worker process that is making an item right now."""
    end = time.monotonic() + 90
    while time.monotonic() < end and process.poll() is None:
        if list((out / "items").glob(".part-*/")):
            workers = [
                child for child in psutil.Process(process.pid).children(recursive=True)
                if "spawn_main" in " ".join(child.cmdline())
                and child.cpu_percent(0.1) > 30
            ]  # fmt: skip
            if workers:
                return max(workers, key=lambda child: child.cpu_percent(0.1))
        time.sleep(0.02)
    raise AssertionError("no worker was seen at work")


def test_a_killed_worker_loses_nothing(
    jobs: Callable[..., Path], scenes: Path, tmp_path: Path
) -> None:
    rows = [pair(scenes, seed, f"{name}{seed}") for name in "ab" for seed in (1, 2, 3)]
    path = jobs(*rows)
    quiet = tmp_path / "quiet"
    batch = read_jobs(path)
    for item in batch.items:
        place = quiet / "items" / item.id
        place.mkdir(parents=True)
        run_item("match", item, place, place)

    out = tmp_path / "out"
    process = start("-m", "rsfuse", "batch", str(path), "-o", str(out), "--workers", "2")
    worker_of(process, out).send_signal(signal.SIGKILL)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert products(out) == products(quiet)
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["done"], summary["failed"], summary["left"]) == (6, 0, 0)
    assert not list((out / "items").glob(".part-*"))


@pytest.mark.slow
def test_an_interrupt_keeps_what_is_finished_and_a_second_run_ends_it(
    jobs: Callable[..., Path], scenes: Path, tmp_path: Path
) -> None:
    path = jobs(*(pair(scenes, seed, f"{name}{seed}") for name in "ab" for seed in (1, 2, 3)))
    out = tmp_path / "out"
    process = start("-m", "rsfuse", "batch", str(path), "-o", str(out))
    end = time.monotonic() + 120
    while not list((out / "items").glob("*/*.json")) and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert "Traceback" not in said, said
    first = json.loads((out / "summary.json").read_text())
    assert first["left"] > 0
    assert not list((out / "items").glob(".part-*"))
    assert main(["batch", str(path), "-o", str(out), "-q"]) == 0
    second = json.loads((out / "summary.json").read_text())
    assert second["kept"] >= 1
    assert second["kept"] + second["done"] == 6


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    """A scheduler and two workers, started by their own commands."""
    dask = [sys.executable, "-m", "dask"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    common = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    scheduler = subprocess.Popen(
        [*dask, "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"], **common
    )
    workers = [
        subprocess.Popen(
            [*dask, "worker", address, "--nthreads", "1", "--no-dashboard", "--local-directory",
             str(tmp_path)], **common,
        )
        for _ in range(2)
    ]  # fmt: skip
    yield address
    for process in (*workers, scheduler):
        process.terminate()
    for process in (*workers, scheduler):
        process.wait(timeout=30)


@pytest.mark.slow
def test_a_cluster_started_by_its_own_commands(
    cluster: str, jobs: Callable[..., Path], scenes: Path, tmp_path: Path
) -> None:
    path = jobs(pair(scenes, 1, "one"), pair(scenes, 2, "two"))
    out = tmp_path / "out"
    assert main(["batch", str(path), "-o", str(out), "--scheduler", cluster, "-q"]) == 0
    assert {p.name for p in (out / "items").iterdir()} == {"one", "two"}


def test_a_scheduler_that_does_not_answer_is_an_input_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rsfuse.batch.schedule.CONNECT_TIMEOUT_S", 1)
    batch = Batch("detect", (Item("a", {"scene": "x"}, {}),))
    with pytest.raises(InputError, match="does not answer"):
        run_batch(batch, tmp_path, run_item, scheduler="tcp://127.0.0.1:9")


def test_another_key_is_a_config_error(tmp_path: Path) -> None:
    path = tmp_path / "jobs.toml"
    path.write_text('task = "detect"\nscenes = 3\n[[items]]\nscene = "a.tif"\n')
    with pytest.raises(ConfigError, match="scenes"):
        read_jobs(path)
