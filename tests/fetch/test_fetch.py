"""Fetching from a STAC API and images that a server of the test's own answers for."""

import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.warp import transform_bounds

from rsfuse.cli.main import main
from rsfuse.errors import InputError
from rsfuse.fetch import Query, fetch, parse_bbox, parse_dates, read_sources
from rsfuse.fetch import download as downloading
from rsfuse.geo.write import write_cog

for package in ("pystac_client", "odc.stac"):
    pytest.importorskip(package, reason="fetching is an extra")

# 3 km around 3.9 E, 51.45 N in UTM 31; the images reach 2 km further on every side.
BOX = (3.88, 51.44, 3.90, 51.45)
GRID = GeoBox((1200, 1200), Affine(10, 0, 557_000, 0, -10, 5_706_000), "EPSG:32631")


class Server(ThreadingHTTPServer):
    """A STAC API with pages and an object store with ranges, with faults on demand."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.items: dict[str, list[dict[str, Any]]] = {}
        self.sent = 0  # bytes of images
        self.failures: dict[str, int] = {}  # path -> requests that still fail
        self.hangs: set[str] = set()
        self.cut: dict[str, int] = {}  # path -> transfers that still break off
        self.asked: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: Any) -> None:
        pass  # broken transfers are part of the tests


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path in self.server.hangs:
            time.sleep(30)
        if self.server.failures.get(path, 0) > 0:
            self.server.failures[path] -= 1
            return self._json({"error": "later"}, 503)
        if path == "/stac":
            return self._json(self._landing())
        if path == "/token":
            return self._json({"token": "sig=secret"})
        if path.startswith("/data/"):
            return self._file(path)
        return self._json({}, 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.failures.get("/stac/search", 0) > 0:
            self.server.failures["/stac/search"] -= 1
            return self._json({}, 503)
        self.server.asked.append(body)
        items = self.server.items.get(body["collections"][0], [])
        start = int(body.get("token", 0))
        page = items[start : start + 2]
        links = []
        if start + 2 < len(items):
            links = [{"rel": "next", "method": "POST", "href": f"{self.server.url}/stac/search",
                      "body": {**body, "token": start + 2}}]  # fmt: skip
        return self._json({"type": "FeatureCollection", "features": page, "links": links})

    def _landing(self) -> dict[str, Any]:
        url = f"{self.server.url}/stac"
        return {
            "type": "Catalog", "id": "test", "stac_version": "1.0.0", "description": "test",
            "conformsTo": ["https://api.stacspec.org/v1.0.0/core",
                           "https://api.stacspec.org/v1.0.0/item-search"],
            "links": [{"rel": "self", "href": url}, {"rel": "root", "href": url},
                      {"rel": "search", "href": f"{url}/search", "method": "POST",
                       "type": "application/geo+json"}],
        }  # fmt: skip

    def _json(self, content: Any, status: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def _file(self, path: str) -> None:
        if "secret" in path or ("private" in path and "sig=secret" not in self.path):
            return self._json({}, 403)
        file = self.server.folder / path.removeprefix("/data/")
        if not file.is_file():
            return self._json({}, 404)
        content, size = file.read_bytes(), file.stat().st_size
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (
            (int(found[1]), min(int(found[2] or size - 1), size - 1)) if found else (0, size - 1)
        )
        self.send_response(206 if found else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last - first + 1))
        if found:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        if self.command == "HEAD":
            return None
        part = content[first : last + 1]
        if self.server.cut.get(path, 0) > 0:
            self.server.cut[path] -= 1
            self.wfile.write(part[: len(part) // 2])
            self.close_connection = True
            return None
        self.server.sent += len(part)
        self.wfile.write(part)
        return None

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two optical bands, one of them at 20 m, and a radar band; incompressible."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name in ("red", "private_vv"):
        values = rng.integers(1, 10_000, GRID.shape).astype(np.uint16)
        write_cog(folder / f"{name}.tif", values, geobox=GRID, nodata=0)
    coarse = GeoBox((600, 600), Affine(20, 0, 557_000, 0, -20, 5_706_000), GRID.crs)
    values = rng.integers(1, 10_000, coarse.shape).astype(np.uint16)
    write_cog(folder / "swir.tif", values, geobox=coarse, nodata=0)
    return folder


@pytest.fixture
def server(images: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(downloading, "WAIT_S", 0.01)
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.05")
    monkeypatch.setenv("GDAL_HTTP_TIMEOUT", "2")
    monkeypatch.setenv("CPL_VSIL_CURL_NON_CACHED", "/vsicurl/http://127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server(images)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()

    def item(name: str, when: str, cloud: float | None, *keys: str, cover: float = 1.0) -> Any:
        west, south, east, north = BOX
        east = west + (east - west) * cover if cover < 1 else east + 0.02
        ring = [[west - 0.02, south - 0.02], [east, south - 0.02], [east, north + 0.02],
                [west - 0.02, north + 0.02], [west - 0.02, south - 0.02]]  # fmt: skip
        return {
            "type": "Feature", "stac_version": "1.0.0", "id": name, "collection": "c",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {"datetime": when, "eo:cloud_cover": cloud},
            "assets": {key: {"href": f"{server.url}/data/{key}.tif"} for key in keys},
            "links": [{"rel": "self", "href": f"{server.url}/stac/{name}"}],
        }  # fmt: skip

    server.items["optical"] = [
        item("cloudy", "2024-05-02T10:00:00Z", 90, "red", "swir"),
        item("partial", "2024-05-03T10:00:00Z", 1, "red", "swir", cover=0.5),
        item("early", "2024-05-04T10:00:00Z", 5, "red", "swir"),
        item("no swir", "2024-05-05T10:00:00Z", 0, "red"),
        item("late/one", "2024-05-20T10:00:00Z", 10, "red", "swir"),
    ]
    server.items["radar"] = [
        item("r1", "2024-05-08T06:00:00Z", None, "private_vv"),
        item("r2", "2024-05-21T06:00:00Z", None, "private_vv"),
    ]
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def config(server: Server, tmp_path: Path) -> Path:
    path = tmp_path / "sources.toml"
    path.write_text(
        f'[pair.optical]\nendpoint = "{server.url}/stac"\ncollection = "optical"\n'
        'assets = ["red", "swir"]\nlicence = "open"\n'
        f'[pair.radar]\nendpoint = "{server.url}/stac"\ncollection = "radar"\n'
        f'assets = ["private_vv"]\ntoken = "{server.url}/token"\n'
        f'[alone.ms]\nendpoint = "{server.url}/stac"\ncollection = "optical"\nassets = ["red"]\n'
    )
    return path


QUERY = Query(BOX, ("2024-05-01", "2024-06-01"))


def test_the_closest_pair_is_fetched_and_only_its_bytes(
    server: Server, config: Path, images: Path, tmp_path: Path
) -> None:
    found = fetch(read_sources("pair", config), QUERY, tmp_path / "out")
    assert [group.name for group in found] == ["late_one"]
    assert server.asked[0]["datetime"] == "2024-05-01T00:00:00Z/2024-06-01T23:59:59Z"
    whole = sum(path.stat().st_size for path in images.glob("*.tif"))
    assert 0 < server.sent < 0.5 * whole
    files = found[0].files
    with rasterio.open(files["optical"]) as optical, rasterio.open(images / "red.tif") as red:
        assert optical.crs == red.crs
        assert optical.dtypes == ("uint16", "uint16")
        assert optical.descriptions == ("red", "swir")
        assert optical.nodata == 0
        column, row = (round(v) for v in ~red.transform @ (optical.bounds.left, optical.bounds.top))
        part = red.read(1)[row : row + optical.height, column : column + optical.width]
        assert (optical.read(1) == part).all()  # not resampled
        assert optical.read(2).min() > 0
        box = transform_bounds("EPSG:4326", red.crs, *BOX)
        assert optical.bounds.left <= box[0] + 1 < box[2] - 1 <= optical.bounds.right
    item = json.loads((files["optical"].parent / "late_one.json").read_text())
    assert item["properties"]["rsfuse:licences"] == {"optical": "open", "radar": ""}
    assert item["properties"]["rsfuse:origins"]["radar"]["id"] == "r2"
    assert set(item["assets"]) == {"optical", "radar"}
    assert "secret" not in json.dumps(item)


def test_what_is_there_is_kept_and_what_is_damaged_is_fetched_again(
    server: Server, config: Path, tmp_path: Path
) -> None:
    sources = read_sources("pair", config)
    query = QUERY._replace(limit=2)
    first = fetch(sources, query, tmp_path / "out")
    assert [group.name for group in first] == ["late_one", "early"]
    assert not any(group.kept for group in first)
    server.sent = 0
    assert all(group.kept for group in fetch(sources, query, tmp_path / "out"))
    assert server.sent == 0
    first[0].files["radar"].write_bytes(b"half")
    again = fetch(sources, query, tmp_path / "out")
    assert [group.kept for group in again] == [False, True]
    with rasterio.open(first[0].files["radar"]) as radar:
        assert radar.read(1).min() > 0
    other = fetch(sources, query._replace(bbox=(3.881, 51.441, 3.89, 51.449)), tmp_path / "out")
    assert not any(group.kept for group in other)


def test_a_batch_goes_on_from_the_catalog(server: Server, config: Path, tmp_path: Path) -> None:
    from rsfuse.batch import read_stac

    fetch(read_sources("pair", config), QUERY, tmp_path / "out")
    batch = read_stac(str(tmp_path / "out/catalog.json"), "match",
                      {"reference": "optical", "query": "radar"}, {})  # fmt: skip
    assert [Path(p).is_file() for p in batch.items[0].inputs.values()] == [True, True]


def test_a_server_that_fails_twice_is_asked_again(
    server: Server, config: Path, tmp_path: Path
) -> None:
    server.failures = {"/stac": 2, "/stac/search": 2, "/data/red.tif": 2, "/token": 2}
    server.cut = {"/data/swir.tif": 1}
    found = fetch(read_sources("pair", config), QUERY, tmp_path / "out")
    with rasterio.open(found[0].files["optical"]) as optical:
        assert optical.read().min() > 0


@pytest.mark.slow
def test_a_server_that_hangs_is_left(
    server: Server, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloading, "TRIES", 1)
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "0")
    server.hangs = {"/data/red.tif"}
    begun = time.monotonic()
    with pytest.raises(InputError, match=r"red\.tif"):
        fetch(read_sources("alone", config), QUERY, tmp_path / "out")
    assert time.monotonic() - begun < 20
    assert not list((tmp_path / "out" / "items").iterdir())  # nothing half-written


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"dates": ("1999-01-01", "1999-01-02")}, "optical"),
        ({"bbox": (-10.0, 10.0, -9.9, 10.1)}, "has no image for the box"),
        ({"max_cloud": 0.5}, "at most 0.5 % cloud"),
        ({"max_days": 0.1}, "within 0.1 days"),
    ],
)
def test_nothing_found_says_what_was_searched(
    server: Server, config: Path, tmp_path: Path, change: dict[str, Any], what: str
) -> None:
    if "dates" in change:
        server.items["optical"] = []
    with pytest.raises(InputError, match=what):
        fetch(read_sources("pair", config), QUERY._replace(**change), tmp_path / "out")


@pytest.mark.parametrize(
    "text",
    ["1,2,3", "a,b,c,d", "4,51,3,52", "3,52,4,51", "200,0,210,1", "3,-95,4,0", "170,0,-170,1"],
)
def test_boxes_that_are_none(text: str) -> None:
    with pytest.raises(InputError):
        parse_bbox(text)


@pytest.mark.parametrize(
    "text", ["yesterday", "2024-13-01", "2024-05-02/2024-05-01", "2024-05-01/2024-05-02/2024-05-03"]
)
def test_days_that_are_none(text: str) -> None:
    with pytest.raises(InputError):
        parse_dates(text)


def test_days_and_boxes() -> None:
    assert parse_dates("2024-05-01") == ("2024-05-01", "2024-05-01")
    assert parse_dates("2024-05-01/2024-06-30") == ("2024-05-01", "2024-06-30")
    assert parse_bbox("3.8,51.4,3.9,51.5") == (3.8, 51.4, 3.9, 51.5)


def test_the_packaged_sources_are_valid() -> None:
    assert tuple(read_sources("s1s2")) == ("optical", "radar")
    assert read_sources("landsat")["ms"].licence
    with pytest.raises(InputError, match="s1s2, landsat"):
        read_sources("spot")


def test_the_command_explains_what_is_wrong(
    server: Server, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    box, out = "3.88,51.44,3.90,51.45", str(tmp_path / "out")
    words = ["fetch", "alone", "--date", "2024-05-01/2024-06-01", "-o", out]
    assert main([*words, "--bbox", box, "--config", str(config), "--json", "-q"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["items"] == ["no_swir"]
    with rasterio.open(said["files"][0]) as found:
        assert found.descriptions == ("red",)
    assert main([*words, "--bbox", "1,2"]) == 2
    assert main([*words, "--bbox", box]) == 2  # no such set in the package
    good = config.read_text()
    config.write_text(f'{good}lisence = "x"\n')
    assert main([*words, "--bbox", box, "--config", str(config)]) == 2
    said = capsys.readouterr().err
    assert "did you mean" in said
    assert "Traceback" not in said
    config.write_text(re.sub(r"http://127.0.0.1:\d+", "http://127.0.0.1:9", good))
    assert main([*words, "--bbox", box, "--config", str(config)]) == 2
    assert "does not answer" in capsys.readouterr().err
