"""The page in a real browser: sorted, filtered and switched by keyboard, on a phone, in the dark, printed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import comparisons
from kdlab.report.page import render
from kdlab.runs import Record

CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("needs Chromium: apt-get install chromium", allow_module_level=True)
sync = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'kdlab[dev]'")

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison with all sections: seven methods on two tasks, and a run of each other family."""
    folder = tmp_path_factory.mktemp("page")
    outputs = folder / "outputs"
    folders = [
        comparisons.run(outputs, method, task, seed, score=0.5 + number / 50 + seed / 100)
        for number, method in enumerate(("ft", "kd", "pkd", "cr_ild"))
        for task in ("glue/rte", "glue/cola")
        for seed in (1, 2)
    ]
    folders += [
        comparisons.run(outputs, "musc", "demo/sentiment_xx", 1, family="crosslingual", score=0.75),
        comparisons.run(outputs, "ft_cot", "demo/arithmetic", 1, family="reasoning", score=0.4),
        comparisons.run(outputs, "a_method_with_a_very_long_name_indeed", "glue/rte", 3, failure="x" * 500),
    ]
    comparisons.write(folders[0].parent / "sweep.json", {"name": "sweep", "commands": ["kdlab train -m " + "x" * 300]})
    told = {"source": "A paper", "protocol": "", "group": None, "seeds": 1, "state": "run", "paper": 0.5, "ours": 0.6}
    expected = [{**told, "axes": {"method": "kd", "task": f"task{number}"}} for number in range(12)]
    warnings = ["a warning with averylongwordthatcannotbebrokenanywhere" * 3]
    comparison, records = comparisons.compared(
        [Record.open(one) for one in folders], baseline="ft", expected=expected, warnings=warnings
    )
    file = folder / "page.html"
    file.write_text(render(comparison, records), encoding="utf-8")
    return file


@pytest.fixture
def opened(browser: Any, file: Path) -> Iterator[Any]:
    """Opens the page in a window of its own; nothing may be asked for, or go wrong."""
    wrong: list[str] = []
    windows = []

    def open_(**how: Any) -> Any:
        window = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, "color_scheme": "light", **how})
        windows.append(window)
        page = window.new_page()
        page.on("console", lambda message: wrong.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: wrong.append(request.url) if request.url != file.as_uri() else None)
        page.goto(file.as_uri())
        return page

    yield open_
    for window in windows:
        window.close()
    assert [one for one in wrong if one != "data:,"] == []  # the empty icon


def column(page: Any, number: int) -> list[str]:
    rows = page.locator("table[data-filter=groups] tbody tr:visible")
    return [text.strip() for text in rows.locator(f"> :nth-child({number})").all_inner_texts()]


def test_sorted_and_filtered_by_keyboard(opened: Any) -> None:
    page = opened()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator(".skip").bounding_box()["y"] >= 0  # seen when it has the focus
    button = page.get_by_role("button", name="score").first
    button.focus()
    for order, best in (("descending", max), ("ascending", min)):
        page.keyboard.press("Enter")
        assert page.locator("table[data-filter=groups] th[aria-sort]:not([aria-sort=none])").count() == 1
        head = page.locator("table[data-filter=groups] thead th", has=button)
        assert head.get_attribute("aria-sort") == order
        scores = [float(text.split()[0]) for text in column(page, 4)]
        assert scores == sorted(scores, reverse=order == "descending") and scores[0] == best(scores)
        assert page.locator("#status").inner_text() == f"sorted by score, {order}"
    page.get_by_role("button", name="Δ").first.press("Space")
    deltas = column(page, 8)
    assert deltas[0] == "+6.0" and deltas[-4:] == [""] * 4  # baselines and other families have none: last
    page.get_by_role("button", name="p corr.").first.press("Enter")
    assert column(page, 9)[-4:] == [""] * 4
    field = page.get_by_label("Filter groups")
    field.press_sequentially("cola KD")
    assert [text for text in column(page, 2)] == ["glue/cola", "glue/cola"]  # kd and pkd
    assert "2 of 10" in page.locator("label.filter").first.inner_text()
    field.fill("")
    assert len(column(page, 1)) == 10


def test_series_are_switched_and_hidden_parts_are_opened_by_keyboard(opened: Any) -> None:
    page = opened()
    box = page.locator("section[aria-labelledby=curves] .series-box").first
    tick = box.get_by_label("kd", exact=True)
    number = tick.get_attribute("data-series")
    lines = box.locator(f"[data-of='{number}']")
    assert lines.count() > 3 and lines.first.is_visible()
    tick.focus()
    page.keyboard.press("Space")
    assert not any(lines.nth(place).is_visible() for place in range(lines.count()))
    box.get_by_role("button", name="all").press("Enter")
    assert lines.first.is_visible() and tick.is_checked()
    box.get_by_role("button", name="none").press("Enter")
    assert box.locator("g.s:visible:not(.cx)").count() == 0
    details = page.locator("section[aria-labelledby=settings] details").first
    assert details.get_attribute("open") is None
    details.locator("summary").press("Enter")
    assert page.get_by_text("method.name").is_visible()


def test_a_command_is_copied(opened: Any) -> None:
    page = opened(permissions=["clipboard-read", "clipboard-write"])
    button = page.get_by_role("button", name="copy the command").first
    button.press("Enter")
    page.locator("#status", has_text="copied").wait_for(state="attached")
    assert page.evaluate("navigator.clipboard.readText()") == "kdlab train -m " + "x" * 300


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_the_page_is_never_wider_than_the_window(opened: Any, width: int) -> None:
    page = opened(viewport={"width": width, "height": 700})
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    if width == 360:
        table = page.locator(".scroll", has=page.locator("table[data-filter=groups]"))
        assert table.evaluate("one => one.scrollWidth > one.clientWidth")
        table.evaluate("one => { one.scrollLeft = 300 }")
        first = table.locator("tbody th").first.bounding_box()
        assert first is not None and 0 <= first["x"] < 40  # the method stays in sight


CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const linear = (c) => c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const ratio = (one, other) => {
    const [low, high] = [light(one), light(other)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };
  const behind = (one) => {
    for (; one; one = one.parentElement) {
      const colour = rgba(getComputedStyle(one).backgroundColor);
      if (colour[3] === 255) return colour;
    }
  };
  const around = (one) => one instanceof SVGElement ? one.closest("svg").parentElement : one;
  const low = [];
  const check = (one, colour, least) => {
    const found = ratio(rgba(colour), behind(around(one)));
    if (found < least) low.push(`${one.tagName} ${found.toFixed(2)} ${one.textContent.slice(0, 30)}`);
  };
  for (const one of document.querySelectorAll("body *")) {
    const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !one.checkVisibility() || ["script", "style", "title"].includes(one.tagName.toLowerCase())) continue;
    const style = getComputedStyle(one);
    check(one, one instanceof SVGElement ? style.fill : style.color, 4.5);
  }
  for (const one of document.querySelectorAll(".line")) check(one, getComputedStyle(one).stroke, 3);
  for (const one of document.querySelectorAll(".swatch use")) check(one, getComputedStyle(one).fill, 3);
  return low;
}"""


def test_light_and_dark_by_system_and_by_button_with_enough_contrast(opened: Any) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    page = opened(color_scheme="dark")
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    dark = page.evaluate(background)
    assert dark == "rgb(20, 23, 27)" and page.evaluate(CONTRAST) == []
    page.get_by_role("button", name="Light colours").press("Enter")
    assert page.evaluate(background) == "rgb(255, 255, 255)" and page.evaluate(CONTRAST) == []
    page.get_by_role("button", name="Dark colours").press("Enter")
    assert page.evaluate(background) == dark
    page.reload()
    page.get_by_role("button", name="Light colours").wait_for()
    assert page.evaluate("localStorage.length") == 0  # remembers nothing


def test_print_shows_everything_on_white(opened: Any) -> None:
    page = opened(color_scheme="dark")
    closed = page.get_by_text("settings that all have in common")
    hidden = page.locator("section[aria-labelledby=settings] tbody tr").first
    assert not hidden.is_visible()
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.get_by_role("button", name="score").first.is_visible()  # a head is a head
    assert not page.locator("#theme").is_visible() and not page.locator("label.filter").first.is_visible()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert hidden.is_visible() and page.locator("details:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() > 0 and closed.count() == 1
    pdf = page.pdf(prefer_css_page_size=True)
    assert pdf.startswith(b"%PDF") and pdf.count(b"/Type /Page\n") > 3


def test_all_is_readable_without_scripts(opened: Any) -> None:
    page = opened(java_script_enabled=False)
    assert page.get_by_role("button").count() == 0 and page.locator("input:visible").count() == 0
    assert page.locator("table[data-filter=groups] tbody tr").count() == 10
    assert page.locator("section[aria-labelledby=curves] figure").first.is_visible()
    page.locator("section[aria-labelledby=settings] summary").first.click()
    assert page.locator("section[aria-labelledby=settings] td").first.is_visible()
