"""The page of a match run: complete, self-contained, escaped, and never a danger to the results."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from rsfuse.errors import InputError, OutputError, RsfuseError
from rsfuse.report import build_report
from rsfuse.runs import RunRecord, read_json, write_json

MakeRun = Callable[..., Path]
VOID = {"meta", "link", "img", "input", "br", "hr"}
EVIL = """<img src=x onerror="fetch('//evil')">'</script><script>alert(1)</script>.tif"""


class Page(HTMLParser):
    """Tags, text and unclosed elements of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture(scope="module")
def texts(shared_runs: dict[str, Path]) -> dict[str, str]:
    return {s: build_report(run).read_text("utf-8") for s, run in shared_runs.items()}


@pytest.fixture(scope="module")
def pages(texts: dict[str, str]) -> dict[str, Page]:
    return {status: Page(text) for status, text in texts.items()}


def viewer_data(text: str) -> dict:
    found = re.search(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found.group(1))


@pytest.mark.parametrize("status", ["ok", "weak", "refused"])
def test_page_is_well_formed(pages: dict[str, Page], status: str) -> None:
    assert pages[status].open == []
    identifiers = [a["id"] for _, a in pages[status].tags if "id" in a]
    assert len(identifiers) == len(set(identifiers))


@pytest.mark.parametrize("status", ["ok", "weak", "refused"])
def test_page_loads_nothing(texts: dict[str, str], pages: dict[str, Page], status: str) -> None:
    sources = [
        (tag, value)
        for tag, attributes in pages[status].tags
        for name, value in attributes.items()
        if name in ("src", "srcset", "data", "poster", "action", "background", "xlink:href")
        or (name == "href" and tag != "a")
    ]
    assert sources
    assert [source for source in sources if not str(source[1]).startswith("data:")] == []
    links = [str(a.get("href")) for a in pages[status].all("a")]
    assert [link for link in links if ":" in link or link.startswith("/")] == []
    assert re.findall(r"url\((?!data:)|@import|https?://", texts[status]) == []
    policy = next(a for a in pages[status].all("meta") if "http-equiv" in a)
    assert str(policy["content"]).startswith("default-src 'none'; img-src data:;")


@pytest.mark.parametrize(
    ("status", "badge", "sentence"),
    [
        ("ok", "✓ OK", "The images are registered."),
        ("weak", "! Weak", "the evidence for it is thin"),
        ("refused", "✕ Refused", "No registration is claimed."),
    ],
)
def test_status_is_said_in_words(
    pages: dict[str, Page], status: str, badge: str, sentence: str
) -> None:
    assert badge in pages[status].text
    assert sentence in pages[status].text


def test_numbers_are_in_pixels_and_metres(pages: dict[str, Page]) -> None:
    text = pages["ok"].text
    for part in ("37.1 px", "360 m", "98 %", "similarity", "4.000°", "1.03000", "31.0, −22.0"):
        assert part in text.replace("\u00a0", " ")


def test_held_out_error_is_the_one_of_the_verdict(match_run: MakeRun) -> None:
    run = match_run()
    record = read_json(run / "run.json")
    record["result"]["residual_px"] = {"median": 0.5, "rmse": 0.6, "p90": 1.0}
    record["result"]["after_m"] = {"median": 2.0, "rmse": 2.4, "p90": 4.0}
    record["result"]["held_out_px"] = {"median": 0.75, "rmse": 0.9, "p90": 1.5}
    write_json(run / "run.json", record)
    text = Page(build_report(run).read_text("utf-8")).text
    assert "agree with it to 0.75 px (3.00 m) or better" in text


def test_reasons_come_with_their_numbers(pages: dict[str, Page]) -> None:
    assert "7 tie points agree on one transform where at least 12 are needed." in (
        pages["refused"].text
    )
    assert "ratio 1.02 needed 1.15" in pages["refused"].text


def test_refused_page_claims_no_error_after(pages: dict[str, Page]) -> None:
    page = pages["refused"]
    assert "There is no registered picture" in page.text
    assert "They say nothing about how the images lie." in page.text
    assert {a["data-role"] for a in page.all("img")} == {"reference", "before"}
    tiles = page.text.split("Confidence")[0]
    assert "held out" not in tiles
    assert "37.1 px" not in tiles


def test_inputs_parameters_stages_command_and_files_are_listed(pages: dict[str, Page]) -> None:
    text = pages["ok"].text
    for part in (
        "scenes/sentinel2_red.tif",
        "1080 × 1100 px",
        "EPSG:32631",
        "10.0 m per pixel",
        "radiometry taken as amplitude",
        "max shift (px)",
        "global search",
        "740 ms",
        "rsfuse match sentinel2_red.tif sentinel1_vv.tif -o out",
        "tie_points.csv",
        "1.2 MB",
    ):
        assert part in text


def test_controls_have_names(pages: dict[str, Page]) -> None:
    page = pages["ok"]
    assert all(a.get("alt") for a in page.all("img"))
    assert all(a.get("aria-label") for a in page.all("canvas"))
    assert all("aria-label" in a or "data-copy" in a for a in page.all("button"))
    # Every input of the page lies inside a label.
    depth, bare = 0, []
    for tag, attributes in page.tags:
        depth += tag == "label"
        if tag == "input":
            bare += [attributes] if depth == 0 else []
    assert bare == []
    assert len(page.all("label")) == len(page.all("input"))


def test_tie_points_reach_the_viewer(texts: dict[str, str]) -> None:
    points = viewer_data(texts["ok"])["points"]
    assert {len(column) for column in points.values()} == {512}
    assert sum(points["kept"]) == 432
    assert set(points["why"]) == {"", "outlier"}


def test_residuals_are_turned_into_the_axes_of_the_reference(match_run: MakeRun) -> None:
    run = match_run()
    record = read_json(run / "run.json")
    # Query pixels are half as large and the query is turned by 90 degrees: (x, y) -> (-2y, 2x).
    record["result"]["transform_px"] = [[0, -2, 0], [2, 0, 0], [0, 0, 1]]
    write_json(run / "run.json", record)
    table = run / "tie_points.csv"
    header, row, *_ = table.read_text("utf-8").splitlines()
    cells = dict(zip(header.split(","), row.split(","), strict=True))
    cells |= {"dx_px": "3.0", "dy_px": "4.0", "residual_px": "5.0"}
    table.write_text(f"{header}\n{','.join(cells.values())}\n", "utf-8")
    points = viewer_data(build_report(run).read_text("utf-8"))["points"]
    assert (points["dx"], points["dy"], points["r"]) == ([2.0], [-1.5], [5.0])


def test_geotransform_is_found_from_the_tie_points(texts: dict[str, str]) -> None:
    data = viewer_data(texts["ok"])
    assert data["crs"] == "EPSG:32631"
    expected = [10.0, 0.0, 500_000.0, 0.0, -10.0, 5_400_000.0]
    assert data["geotransform"] == pytest.approx(expected, abs=1e-2)


def test_stored_geotransform_is_preferred(match_run: MakeRun) -> None:
    run = match_run()
    record = read_json(run / "run.json")
    record["inputs"][0]["transform"] = [5.0, 0.0, 1.0, 0.0, -5.0, 2.0]
    write_json(run / "run.json", record)
    data = viewer_data(build_report(run).read_text("utf-8"))
    assert data["geotransform"] == [5.0, 0.0, 1.0, 0.0, -5.0, 2.0]


def test_run_without_crs_is_told_in_pixels(match_run: MakeRun) -> None:
    text = build_report(match_run(crs=None)).read_text("utf-8")
    page = Page(text)
    assert viewer_data(text)["geotransform"] is None
    assert "none: pixels only" in page.text
    assert " m)" not in page.text.split("Errors")[0]
    assert "Shift, metres" not in page.text


def test_malicious_names_are_shown_as_text(match_run: MakeRun) -> None:
    run = match_run()
    record = read_json(run / "run.json")
    record["inputs"][0]["path"] = record["inputs"][0]["notes"] = EVIL
    record["inputs"][0]["notes"] = [EVIL]
    record["inputs"][0]["crs"] = record["command"] = record["rsfuse_version"] = EVIL
    record["reasons"] = [{"code": EVIL, "message": EVIL, "numbers": {EVIL: EVIL}}]
    record["parameters"] = {EVIL: EVIL}
    record["diagnostics"] = {EVIL: [EVIL], "stages": [{"name": EVIL, "seconds": 1.0}]}
    record["outputs"]["registered"] = "javascript:alert(1)"
    record["outputs"][EVIL] = EVIL
    (run / "javascript:alert(1)").write_text("x")
    write_json(run / "run.json", record)
    table = run / "tie_points.csv"
    table.write_text(table.read_text("utf-8").replace("outlier", "</script><b>"), "utf-8")

    text = build_report(run).read_text("utf-8")
    page = Page(text)

    assert page.open == []
    assert [a for a in page.all("img") if not str(a["src"]).startswith("data:")] == []
    assert [name for _, a in page.tags for name in a if name.startswith("on")] == []
    assert len(page.all("script")) == 2
    assert page.all("b") == [{"data-out": "probability"}]
    assert [a for a in page.all("a") if ":" in str(a["href"])] == []
    assert "onerror=" in page.text
    assert "</script><b>" in viewer_data(text)["points"]["why"]


def test_only_pictures_of_the_run_get_into_the_page(match_run: MakeRun) -> None:
    run = match_run()
    secret = run.parent / "secret.png"
    Image.new("L", (8, 8)).save(secret)
    (run / "notes.txt").write_text("not a picture")
    record = read_json(run / "run.json")
    record["outputs"]["previews"] |= {"before": "../secret.png", "after": "notes.txt"}
    write_json(run / "run.json", record)
    page = Page(build_report(run).read_text("utf-8"))
    assert [a["data-role"] for a in page.all("img")] == ["reference"]
    assert "This run wrote no registered picture." in page.text


def test_missing_pictures_leave_the_rest_of_the_page(match_run: MakeRun) -> None:
    run = match_run()
    for preview in (run / "preview").iterdir():
        preview.unlink()
    page = Page(build_report(run).read_text("utf-8"))
    assert page.all("canvas") == []
    assert "holds no preview pictures" in page.text
    assert "37.1 px" in page.text


@pytest.mark.parametrize("kept", [0, 30, 4000])
def test_damaged_picture_is_left_out(match_run: MakeRun, kept: int) -> None:
    run = match_run()
    preview = run / "preview" / "after.webp"
    preview.write_bytes(preview.read_bytes()[:kept])
    page = Page(build_report(run).read_text("utf-8"))
    assert [a["data-role"] for a in page.all("img")] == ["reference", "before"]


def test_run_with_the_bare_minimum_has_a_page(tmp_path: Path) -> None:
    RunRecord(
        task="match",
        command="rsfuse match a.tif b.tif -o out",
        started="2026-11-25T02:00:00Z",
        seconds=0.2,
        inputs=({"role": "reference", "path": "a.tif"}, {"role": "query", "path": "b.tif"}),
        parameters={},
        status="refused",
        reasons=({"code": "constant_image"},),
    ).save(tmp_path)
    page = Page(build_report(tmp_path).read_text("utf-8"))
    assert "b.tif onto a.tif" in page.text
    assert "constant image" in page.text


def test_page_may_lie_elsewhere_and_links_back(match_run: MakeRun, tmp_path: Path) -> None:
    run = match_run()
    path = build_report(run, tmp_path / "pages" / "p.html")
    assert path == tmp_path / "pages" / "p.html"
    assert not (run / "report.html").exists()
    links = [str(a["href"]) for a in Page(path.read_text("utf-8")).all("a")]
    assert links == ["../run/registered.tif", "../run/transform.json", "../run/tie_points.csv"]
    assert all((path.parent / link).is_file() for link in links)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_only_the_page_is_written(match_run: MakeRun) -> None:
    run = match_run()
    before = snapshot(run)
    build_report(run)
    after = snapshot(run)
    assert {name for name in after if name not in before} == {str(run / "report.html")}
    assert all(after[name] == content for name, content in before.items())


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: record.update(inputs=None),
        lambda record: record.update(seconds="long"),
        lambda record: record["result"].update(transform_px=[["a"]]),
        lambda record: record["inputs"][0].update(shape="wide"),
        lambda record: record["result"].update(tie_points=[1, 2]),
        lambda record: record["outputs"].update(tie_points=["absent.csv"]),
        lambda record: record["diagnostics"].update(stages=[{"seconds": "x"}]),
    ],
)
def test_damaged_record_is_an_error_of_ours_and_spoils_nothing(
    match_run: MakeRun, damage: Callable[[dict], None]
) -> None:
    run = match_run()
    build_report(run)
    record = read_json(run / "run.json")
    damage(record)
    write_json(run / "run.json", record)
    before = snapshot(run)
    with pytest.raises(RsfuseError) as caught:
        build_report(run)
    assert caught.value.fix
    assert snapshot(run) == before


@pytest.mark.parametrize("content", ["", "id,kept\n1,1\n", "\0", "id,x_ref\nno number\n"])
def test_damaged_tie_points_are_an_error_of_ours(match_run: MakeRun, content: str) -> None:
    run = match_run()
    header = (run / "tie_points.csv").read_text("utf-8").splitlines()[0]
    table = content or f"{header}\n{','.join(['x'] * len(header.split(',')))}\n"
    (run / "tie_points.csv").write_text(table, "utf-8")
    with pytest.raises(InputError, match=r"tie_points\.csv"):
        build_report(run)


def test_run_without_any_tie_point_has_a_page(match_run: MakeRun) -> None:
    run = match_run("refused")
    table = run / "tie_points.csv"
    table.write_text(table.read_text("utf-8").splitlines()[0] + "\n", "utf-8")
    page = Page(build_report(run).read_text("utf-8"))
    assert "Probability ≥" not in page.text
    assert page.all("canvas")


def test_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run folder"):
        build_report(tmp_path)


def test_run_of_another_task_is_refused(match_run: MakeRun) -> None:
    with pytest.raises(InputError, match="train run"):
        build_report(match_run(task="train"))


def test_page_that_cannot_be_written_is_an_output_error(match_run: MakeRun) -> None:
    run = match_run()
    with pytest.raises(OutputError):
        build_report(run, run)
