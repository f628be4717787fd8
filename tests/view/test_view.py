"""The viewer: what it collects, what it serves, what it refuses, and the page in a browser."""

import http.client
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from chromium import LAPTOP, PHONE, Browser
from rsfuse.cli.main import main
from rsfuse.errors import InputError
from rsfuse.geo.grid import apply_affine
from rsfuse.geo.raster import open_raster
from rsfuse.view import ViewServer, collect
from rsfuse.view.layers import Scene, area_text
from rsfuse.view.tiles import SIDE, Pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders of all three tasks, as the commands leave them."""
    folder = tmp_path_factory.mktemp("runs")

    def run(*words: str) -> int:
        return main([*words, "--progress", "none", "-q"])

    scene = folder / "scene"
    assert main(["simulate", "-o", str(scene), "--size", "384", "--modalities", "pan,ms,sar",
                 "--gsd", "1", "--ratio", "2", "--seed", "11", "-q"]) == 0  # fmt: skip
    assert run("match", f"{scene}/ms.tif", f"{scene}/sar.tif", "-o", f"{folder}/match") in (0, 3)
    assert run("detect", f"{scene}/pan.tif", "-m", "simulated-objects", "--score", "0.05",
               "-o", f"{folder}/objects.gpkg") == 0  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ViewServer]:
    with ViewServer(collect([folder / "match"])).start() as server:
        yield server


def ask(server: ViewServer, path: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    """Status, content and headers of a request below the page's address."""
    return ask_raw(server, server.url.split("/", 3)[3].join(["/", path]), **headers)


def ask_raw(
    server: ViewServer, path: str, method: str = "GET", **headers: str
) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), dict(answer.getheaders())
    finally:
        connection.close()


def as_json(server: ViewServer, path: str) -> Any:
    status, content, _ = ask(server, path)
    assert status == 200, path
    return json.loads(content)


def test_a_match_run_shows_reference_query_and_registered(server: ViewServer) -> None:
    told = as_json(server, "scene")
    assert [r["title"] for r in told["rasters"]] == ["reference", "query", "registered"]
    assert told["sides"] == [0, 2]
    assert told["vectors"][0]["title"] == "tie points"
    assert told["vectors"][0]["score"] == "probability"
    assert told["lattice"]["width"] == 192 or told["lattice"]["width"] == 384
    assert str(Path.cwd()) not in json.dumps(told)


def test_a_detect_run_shows_boxes_and_classes(folder: Path) -> None:
    scene = collect([folder / "objects_run"])
    assert [layer.title for layer in scene.rasters] == ["scene"]
    assert [layer.title for layer in scene.vectors] == ["objects"]
    assert {name for name, _, _ in scene.classes} & {"ship", "plane", "small-vehicle"}


def test_a_folder_of_runs_shows_all_of_them(folder: Path) -> None:
    scene = collect([folder])
    assert [fact[0] for fact in scene.facts].count("match") == 1
    assert [fact[0] for fact in scene.facts].count("detect") == 1
    assert len(scene.vectors) == 2


def test_a_tile_holds_the_pixels_of_the_raster(folder: Path) -> None:
    path = folder / "scene" / "ms.tif"
    pictures = Pictures(collect([path]).rasters)
    with open_raster(path) as source:
        raster = source.read(bands=["red", "green", "blue"])
    tile = np.asarray(Image.open(io.BytesIO(pictures.tile(0, 0, 0, 0))))
    assert tile.shape == (SIDE, SIDE, 4)
    h, w = (min(SIDE, n) for n in raster.shape)
    assert (tile[:h, :w, 3] == 255).all()
    for band in range(3):  # a stretch keeps the order of values
        values, greys = raster.data[band, :h, :w].ravel(), tile[:h, :w, band].ravel()
        order = np.argsort(values, kind="stable")
        assert (np.diff(greys[order].astype(int)) >= 0).all()
    pictures.close()


def test_tiles_do_not_depend_on_their_neighbours_and_levels_average(folder: Path) -> None:
    pictures = Pictures(collect([folder / "scene" / "pan.tif"]).rasters)
    outside = np.asarray(Image.open(io.BytesIO(pictures.tile(0, 0, -1, 0))))
    assert (outside[..., 3] == 0).all()
    fine = np.asarray(Image.open(io.BytesIO(pictures.tile(0, 0, 0, 0)))).astype(float)
    coarse = np.asarray(Image.open(io.BytesIO(pictures.tile(0, 1, 0, 0)))).astype(float)
    blocks = fine[..., 0].reshape(SIDE // 2, 2, SIDE // 2, 2).mean((1, 3))
    assert np.corrcoef(blocks.ravel(), coarse[: SIDE // 2, : SIDE // 2, 0].ravel())[0, 1] > 0.97
    pictures.close()


def test_the_place_has_coordinates_and_values(folder: Path, server: ViewServer) -> None:
    said = as_json(server, "place?x=10.5&y=20.5")
    with open_raster(folder / "scene" / "ms.tif") as source:
        expected = source.read().data[:, 20, 10]
        x, y = apply_affine(source.geobox.affine, np.array([[10.5, 20.5]]))[0]
    assert said["map"] == pytest.approx([x, y])
    assert said["degrees"][0] == pytest.approx(3.87, abs=0.1)
    assert said["values"][0]["title"] == "reference"
    found = [float(v) for v in said["values"][0]["value"].split(", ")]
    assert found == pytest.approx(expected, rel=1e-3)
    outside = as_json(server, "place?x=-500&y=-500")
    assert outside["values"] == []


def test_features_are_found_by_window_and_score(folder: Path) -> None:
    with ViewServer(collect([folder / "objects_run"])).start() as server:
        size = as_json(server, "scene")["lattice"]
        whole = f"x0=0&y0=0&x1={size['width']}&y1={size['height']}"
        every = as_json(server, f"features/0?{whole}")
        assert every["total"] == len(every["features"]) > 3
        scores = [item["score"] for item in every["features"]]
        assert scores == sorted(scores, reverse=True)
        middle = scores[len(scores) // 2]
        best = as_json(server, f"features/0?{whole}&least={middle}")
        assert best["total"] == sum(score >= middle for score in scores)
        xy = np.array(every["features"][0]["geometry"]["coordinates"][0])
        assert (xy[:, 1] <= 0).all()  # y of the page runs upwards
        here = as_json(server, "features/0?x0=-9&y0=-9&x1=-1&y1=-1")
        assert here == {"total": 0, "features": []}


@pytest.mark.parametrize(
    "path",
    ["../../etc/passwd", "tile/9/0/0/0", "tile/0/99/0/0", "tile/0/0/0", "tile/0/0/x/0",
     "tile/0/0/99999999999/0", "features/7?x0=0&x1=1&y0=0&y1=1", "features/0", "place?x=a&y=1",
     "place?x=1", "scene/1", "static/view.js", "%2e%2e/tiles.py", "view.py", "place?x=nan&y=1e400"],
)  # fmt: skip
def test_what_was_not_offered_is_refused(server: ViewServer, path: str) -> None:
    status, content, _ = ask(server, path)
    assert status in (400, 404)
    assert content == b""


def test_only_this_machine_and_this_page_are_answered(server: ViewServer) -> None:
    token = server.url.split("/")[3]
    assert ask(server, "scene")[0] == 200
    assert ask_raw(server, f"/{token}/scene", Host=f"localhost:{server.port}")[0] == 200
    assert ask_raw(server, f"/{token}/scene", Host="example.org")[0] == 421
    assert ask_raw(server, f"/{token}/scene", Host=f"example.org:{server.port}")[0] == 421
    assert ask_raw(server, "/")[0] == 404
    other = "y" if token.endswith("x") else "x"
    assert ask_raw(server, f"/{token[:-1]}{other}/scene")[0] == 404
    assert ask_raw(server, f"/{token}/scene", method="POST")[0] == 501
    assert ask_raw(server, f"/{token}/" + "a" * 3000)[0] == 414
    status, content, headers = ask_raw(server, f"/{token}/", method="HEAD")
    assert (status, content) == (200, b"")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_mistakes_are_explained(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputError, match="no raster"):
        collect([folder / "objects.gpkg"])
    with pytest.raises(InputError, match="no run folder"):
        collect([tmp_path])
    assert main(["view", str(tmp_path / "absent.tif"), "--no-browser"]) == 2
    with ViewServer(collect([folder / "scene" / "pan.tif"])).start() as server:
        assert main(["view", str(folder / "scene/pan.tif"), "--no-browser", "--port",
                     str(server.port)]) == 2  # fmt: skip


def test_an_image_without_crs_beside_a_map_is_left_out_with_a_note(
    folder: Path, tmp_path: Path
) -> None:
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "plain.png")
    with ViewServer(collect([folder / "scene/pan.tif", tmp_path / "plain.png"])).start() as server:
        told = as_json(server, "scene")
        assert [r["usable"] for r in told["rasters"]] == [True, False]
        assert "plain.png is left out" in told["notes"][0]
        assert ask(server, "tile/1/0/0/0")[0] == 400


def test_areas_are_for_people() -> None:
    assert area_text(None) == ""
    assert area_text(250.0) == "250 m²"
    assert area_text(25_000.0) == "2.50 ha"
    assert area_text(2_500_000.0) == "2.50 km²"


def test_the_command_serves_until_it_is_interrupted(folder: Path) -> None:
    words = ["view", str(folder / "match"), "--no-browser"]
    with subprocess.Popen(
        [sys.executable, "-m", "rsfuse", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            host, path = url.removeprefix("http://").split("/", 1)
            connection = http.client.HTTPConnection(host, timeout=20)
            connection.request("GET", f"/{path}scene")
            assert connection.getresponse().status == 200
            connection.close()
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == 0
            assert process.stderr is not None
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()  # or leaving the block would wait for ever


def picture(browser: Browser) -> np.ndarray:
    """What the window shows, (H, W, 3)."""
    import base64

    content = base64.b64decode(browser.call("Page.captureScreenshot", format="png")["data"])
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def complaints(browser: Browser, server: ViewServer) -> list[str]:
    """Console messages and errors, and requests that went anywhere else."""
    own = [server.url, f"blob:{server.url.rsplit('/', 2)[0]}"]
    return [c for c in browser.complaints() if not c.startswith(tuple(own))]


@pytest.mark.browser
@pytest.mark.parametrize("size", [LAPTOP, PHONE], ids=["laptop", "phone"])
@pytest.mark.parametrize("run", ["match", "objects_run"])
def test_the_page_in_a_browser(
    browser: Browser, folder: Path, run: str, size: tuple[int, int]
) -> None:
    with ViewServer(collect([folder / run])).start() as server:
        browser.open(server.url, size=size)
        browser.wait("document.body.dataset.ready === 'yes'")
        browser.wait("window.rsfuse.vectors[0].shown > 0")
        first = picture(browser)
        assert first.std() > 20  # something is drawn
        assert browser.js("document.documentElement.scrollWidth <= innerWidth")
        # zoom in by the button: the pixels get larger
        before = browser.js("window.rsfuse.map.getView().getResolution()")
        browser.click(*browser.centre(".ol-zoom-in"))
        browser.wait(f"window.rsfuse.map.getView().getResolution() < {before}")
        if run == "match":
            # the swipe shows the registered radar image on one side only
            browser.wait("!window.rsfuse.map.getView().getAnimating()")
            shown = picture(browser)
            x, y = browser.centre("#swipe span")
            browser.drag((x, y), (x + 60, y))
            browser.settle()
            assert (picture(browser) != shown).any(axis=2).mean() > 0.01
        # a score above all others hides everything
        if size == PHONE:
            browser.click(*browser.centre("#fold"))
        browser.js(
            "(() => { const s = document.getElementById('least-0'); s.value = 100;"
            "s.dispatchEvent(new Event('input')); })()"
        )
        browser.wait("window.rsfuse.vectors[0].total === 0")
        if size == LAPTOP:
            browser.mouse("mouseMoved", 500, 450)
            browser.wait("document.getElementById('place').textContent.includes('pixel')")
        assert complaints(browser, server) == []


def test_scene_defaults() -> None:
    assert Scene("empty", ()).sides == (0, 0)
