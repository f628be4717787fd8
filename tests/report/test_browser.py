"""The page in a real browser."""

import time
from pathlib import Path

import numpy as np
import pytest

from chromium import LAPTOP, PHONE, Browser
from rsfuse.report import Chapter, build_report, build_story

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def pages(
    shared_runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    found = {s: build_report(run, folder / f"{s}.html") for s, run in shared_runs.items()}
    chapters = [Chapter(run=run, title=f"A pair that is {s}") for s, run in shared_runs.items()]
    found["story"] = build_story(
        folder / "index.html", chapters, title="A story", lead="Three runs."
    )
    return found


def colourfulness(picture: np.ndarray) -> float:
    """Mean spread of red, green and blue: the optical picture has some, the radar picture none."""
    values = picture.astype(float)
    return float((values.max(axis=2) - values.min(axis=2)).mean())


@pytest.mark.parametrize("size", [LAPTOP, PHONE], ids=["laptop", "phone"])
@pytest.mark.parametrize("name", ["ok", "weak", "refused", "story"])
def test_page_shows_without_complaint_request_or_overflow(
    browser: Browser, pages: dict[str, Path], name: str, size: tuple[int, int]
) -> None:
    browser.open(pages[name], size=size)
    assert browser.complaints() == []
    assert browser.js("document.documentElement.scrollWidth <= innerWidth")
    assert colourfulness(browser.canvas()) > 5


def test_swipe_shows_reference_left_and_query_right(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages["ok"], "#ties=0")
    picture = browser.canvas()
    middle = picture.shape[1] // 2
    assert colourfulness(picture[60:, middle - 200 : middle - 20]) > 25
    assert colourfulness(picture[60:, middle + 20 : middle + 200]) < 3


def test_divider_follows_the_mouse(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["ok"], "#ties=0")
    x, y = browser.centre("canvas")
    browser.drag((x, y), (x - 160, y + 30))
    picture = browser.canvas()
    middle = picture.shape[1] // 2
    assert colourfulness(picture[60:, middle - 140 : middle - 20]) < 3
    assert float(browser.js("document.querySelector('[data-control=setting]').value")) < 30


def test_checker_alternates(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["ok"], "#ties=0&mode=checker&setting=100")
    picture = browser.canvas()
    columns = range(3, 8)  # squares well inside the picture
    grey = [colourfulness(picture[310:390, 100 * i + 10 : 100 * i + 90]) < 12 for i in columns]
    assert grey in ([True, False] * 2 + [True], [False, True] * 2 + [False])


def test_opacity_blends(browser: Browser, pages: dict[str, Path]) -> None:
    found = []
    for setting in (0, 50, 100):
        browser.open(pages["ok"], f"#ties=0&mode=opacity&setting={setting}")
        found.append(browser.canvas()[100:, 400:800].astype(float))
    assert colourfulness(found[0]) > 25
    assert colourfulness(found[2]) < 3
    np.testing.assert_allclose(found[1], (found[0] + found[2]) / 2, atol=2)


def test_flicker_alternates(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["ok"], "#ties=0&mode=flicker&setting=2.5")
    seen = set()
    end = time.monotonic() + 10
    while len(seen) < 2 and time.monotonic() < end:
        seen.add(colourfulness(browser.canvas()[100:, 400:800]) > 12)
    assert seen == {True, False}


def test_before_and_after_are_different_pictures(browser: Browser, pages: dict[str, Path]) -> None:
    pictures = {}
    for layer in ("before", "after"):
        browser.open(pages["ok"], f"#ties=0&mode=opacity&setting=100&layer={layer}")
        assert browser.checked("layer") == layer
        pictures[layer] = browser.canvas().astype(float)
    assert np.abs(pictures["before"] - pictures["after"]).mean() > 10


def test_readout_follows_the_pointer_in_pixels_and_on_the_ground(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages["ok"], "#ties=0")
    x, y = browser.centre("canvas")
    browser.mouse("mouseMoved", x, y)
    browser.settle()
    # The centre of the 1024 x 1024 reference with 10 m pixels.
    assert "x 512" in browser.readout()
    assert "505120, 5394880 (EPSG:32631)" in browser.readout()


def test_tie_point_under_the_pointer_is_described(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["refused"])
    left, top, zoom = browser.js(
        "(() => { const c = document.querySelector('canvas'); c.scrollIntoView({block: 'center'});"
        "const b = c.getBoundingClientRect(), z = Math.min(b.width, b.height) / 1024;"
        "return [b.x + (b.width - 1024 * z) / 2, b.y + (b.height - 1024 * z) / 2, z]; })()"
    )
    data = browser.js("JSON.parse(document.querySelector('.viewer script').textContent).points")
    browser.mouse("mouseMoved", left + data["x"][0] * zoom, top + data["y"][0] * zoom)
    assert f"residual {data['r'][0]:.2f} px" in browser.readout()
    assert "kept, held-out error" in browser.readout()


def test_wheel_scrolls_the_page_until_the_picture_was_clicked(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages["ok"], "#ties=0&mode=opacity")
    x, y = browser.centre("canvas")
    still = browser.canvas()
    browser.mouse("mouseWheel", x, y, deltaX=0, deltaY=-100)
    browser.wait("!document.querySelector('.hint').hidden")
    np.testing.assert_array_equal(browser.canvas(), still)
    x, y = browser.centre("canvas")
    browser.click(x, y)
    browser.mouse("mouseWheel", x, y, deltaX=0, deltaY=-100)
    browser.wait("document.querySelector('canvas').classList.contains('zoomed')")
    assert (browser.canvas() != still).any()


def test_zoom_keeps_what_is_under_the_pointer(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["ok"], "#ties=0&mode=opacity")
    x, y = browser.centre("canvas")
    browser.click(x + 120, y - 80)
    before = browser.readout().split(" px")[0]
    browser.mouse("mouseWheel", x + 120, y - 80, deltaX=0, deltaY=-400)
    browser.wait("document.querySelector('canvas').classList.contains('zoomed')")
    browser.mouse("mouseMoved", x + 120, y - 80)
    assert browser.readout().split(" px")[0] == before


def test_dragging_moves_a_zoomed_picture(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["ok"], "#ties=0&mode=opacity&zoom=4")
    x, y = browser.centre("canvas")
    browser.mouse("mouseMoved", x, y)
    before = browser.readout()
    browser.drag((x - 100, y), (x, y + 50))
    browser.mouse("mouseMoved", x, y)
    assert browser.readout() != before
    browser.mouse("mouseMoved", x + 100, y + 50)
    assert browser.readout() == before


def test_keys_move_zoom_and_choose(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["ok"], "#ties=0")
    browser.js("document.querySelector('canvas').focus()")
    for key, mode in (("3", "checker"), ("4", "opacity"), ("1", "swipe"), ("4", "opacity")):
        browser.press(key)
        assert browser.checked("mode") == mode
    browser.press("b")
    assert browser.checked("layer") == "before"
    fitted = browser.canvas()
    browser.press("+")
    zoomed = browser.canvas()
    assert (zoomed != fitted).any()
    browser.press("ArrowRight", 39)
    assert (browser.canvas() != zoomed).any()
    browser.press("0")
    np.testing.assert_array_equal(browser.canvas(), fitted)


def test_every_control_is_reached_by_the_tab_key(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["ok"])
    seen = []
    for _ in range(16):
        browser.press("Tab", 9)
        seen.append(
            browser.js(
                "(() => { const e = document.activeElement; const c = e.closest('[data-control]');"
                "return e.dataset.do || (c && c.dataset.control) || e.tagName; })()"
            )
        )
    wanted = [
        "mode",
        "layer",
        "setting",
        "CANVAS",
        "in",
        "out",
        "fit",
        "full",
        "ties",
        "rejected",
        "probability",
    ]
    assert [name for name in wanted if name not in seen] == []
    assert seen.index("mode") < seen.index("CANVAS") < seen.index("probability")


def test_two_fingers_zoom(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["ok"], "#ties=0", size=PHONE)
    x, y = browser.centre("canvas")
    browser.touch("touchStart", (x - 30, y), (x + 30, y))
    for spread in (45, 60, 90):
        browser.touch("touchMove", (x - spread, y), (x + spread, y))
    browser.touch("touchEnd")
    browser.wait("document.querySelector('canvas').classList.contains('zoomed')")


def test_one_finger_moves_the_divider(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["ok"], "#ties=0", size=PHONE)
    x, y = browser.centre("canvas")
    browser.touch("touchStart", (x, y))
    for step in (20, 40, 60, 80):
        browser.touch("touchMove", (x - step, y))
    browser.touch("touchEnd")
    assert float(browser.js("document.querySelector('[data-control=setting]').value")) < 35


def test_probability_slider_hides_tie_points(browser: Browser, pages: dict[str, Path]) -> None:
    counts = []
    for state in ("#rejected=1", "", "#probability=0.9", "#probability=1"):
        browser.open(pages["ok"], state)
        counts.append(
            int(browser.js("document.querySelector('[data-out=shown]').textContent.split(' ')[0]"))
        )
    assert counts[0] == 512
    assert counts[1] == 432
    assert 0 < counts[2] < counts[1]
    assert counts[3] == 0


def test_tie_points_are_drawn(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["ok"], "#mode=opacity&setting=100&ties=0")
    plain = browser.canvas()
    browser.open(pages["ok"], "#mode=opacity&setting=100")
    marked = browser.canvas()
    changed = (plain != marked).any(axis=2)
    assert 0.005 < changed.mean() < 0.2
    assert colourfulness(marked[changed][None]) > 40


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["ok", "weak", "refused"])
def test_text_contrasts_with_its_ground(
    browser: Browser, pages: dict[str, Path], name: str, scheme: str
) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.call("Emulation.setEmulatedMedia", features=features)
    try:
        browser.open(pages[name])
        poor = browser.js(CONTRAST)
        dark = browser.js(
            "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every((v) => v < 64)"
        )
    finally:
        browser.call("Emulation.setEmulatedMedia", features=[])
    assert poor == []
    assert dark == (scheme == "dark")


# Every element with text of its own whose contrast is below 4.5 (WCAG 2 AA).
CONTRAST = """
(() => {
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => rgb.slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = numbers(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const e of document.querySelectorAll("main *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.checkVisibility() || e.closest(".stage, script")) continue;
    const style = getComputedStyle(e);
    const colour = numbers(e.closest("svg") ? style.fill : style.color);
    const [a, b] = [light(colour), light(ground(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push(`${e.tagName} ${e.className} ${ratio.toFixed(2)}`);
  }
  return poor;
})()
"""


def test_chapter_that_is_opened_later_shows_its_pictures(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages["story"])
    browser.js("document.querySelector('details:not([open]).pairbox summary').click()")
    browser.settle()
    browser.settle()
    drawn = browser.js(
        "(() => { const c = [...document.querySelectorAll('.pairbox canvas')].at(-1);"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "return [c.width, d.filter((v) => v > 0).length / d.length]; })()"
    )
    assert drawn[0] > 300
    assert drawn[1] > 0.3


@pytest.mark.parametrize("size", [LAPTOP, PHONE], ids=["laptop", "phone"])
@pytest.mark.parametrize("run", ["detect_run", "classify_run"])
def test_pages_of_other_tasks_show_without_complaint(
    browser: Browser, run: str, size: tuple[int, int], request: pytest.FixtureRequest
) -> None:
    browser.open(build_report(request.getfixturevalue(run)), size=size)
    assert browser.complaints() == []
    assert browser.js("document.documentElement.scrollWidth <= innerWidth")
    assert colourfulness(browser.canvas()) > 5


def test_boxes_follow_the_score_and_the_classes(browser: Browser, detect_run: Path) -> None:
    browser.open(build_report(detect_run))

    def shown() -> str:
        browser.settle()
        return str(browser.js("document.querySelector('[data-out=boxes]').textContent"))

    assert shown() == "2 of 2 shown"
    browser.js(
        "(() => { const s = document.querySelector('[data-control=score]'); s.value = 0.5; "
        "s.dispatchEvent(new Event('input')); })()"
    )
    assert shown() == "1 of 2 shown"
    browser.js("document.querySelector('[data-class=\"0\"]').click()")
    assert shown() == "0 of 2 shown"


def test_a_box_under_the_pointer_is_named(browser: Browser, detect_run: Path) -> None:
    browser.open(build_report(detect_run))
    left, top, width, height = browser.js(
        "(() => { const b = document.querySelector('canvas').getBoundingClientRect(); "
        "return [b.left, b.top, b.width, b.height]; })()"
    )
    zoom = min(width / 120, height / 80)
    x = left + (width - 120 * zoom) / 2 + 20 * zoom
    y = top + (height - 80 * zoom) / 2 + 14 * zoom
    browser.mouse("mouseMoved", x, y)
    browser.settle()
    assert "ship, score 0.91" in browser.readout()


def test_layers_of_a_class_map_are_switched(browser: Browser, classify_run: Path) -> None:
    browser.open(build_report(classify_run), "#mode=opacity&setting=100")
    assert browser.checked("layer") == "after"
    names = browser.js(
        "[...document.querySelectorAll('[data-control=layer] span')].map((s) => s.textContent)"
    )
    assert names == ["Confidence", "Class map"]
