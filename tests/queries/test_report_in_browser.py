"""The report in a real Chromium: on a phone and a desktop, in light and dark."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from l2inv.sample.server import Store
from l2inv.wording import clean
from tests.bench import load
from tests.helpers.commands import NOW, Commands
from tests.helpers.hostile import NEVER, TEXTS, one

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

CHROMIUM = Path("/usr/bin/chromium")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM}"),
]

# Where a shape is not under another.
FREE = """e => {
    const box = e.getBoundingClientRect();
    for (let x = box.left; x < box.right; x += 1)
        for (let y = box.top; y < box.bottom; y += 1)
            if (document.elementFromPoint(x, y) === e) return [x, y];
}"""
WIDTHS = (375, 1280, 1400)
LOOKS = [(width, scheme) for width in WIDTHS for scheme in ("light", "dark")]


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs: pip install -e '.[browser]'")
    quiet = ["--disable-background-networking", "--disable-component-update", "--no-first-run"]
    as_root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=str(CHROMIUM), args=[*quiet, *as_root])
        yield browser
        browser.close()


class Opened:
    """A page that was opened, and whatever the browser complained of."""

    def __init__(self, browser: "Browser", file: Path, width: int, scheme: Any, **how: Any) -> None:
        self.context: BrowserContext = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, **how
        )
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda problem: self.complaints.append(str(problem)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.goto(file.as_uri())

    def __enter__(self) -> "Page":
        return self.page

    def __exit__(self, *_: object) -> None:
        self.context.close()


@pytest.fixture
def file(l2inv: Commands, store: Store, ready: list[str], tmp_path: Path) -> Path:
    """The report on OPs in many states, some of them of hostile text."""
    template = [d for d in store.datasets if d["observingProgramExecutionId"] == ready[0]]
    store.datasets += [d for name, text in TEXTS.items() for d in one(template, name, text)]
    l2inv("scan")
    l2inv("qualify", "--as-of", NOW.isoformat())
    l2inv("claim", ready[0], "--for", "1m", actor="ann")
    l2inv("claim", ready[1])
    l2inv("mark-inverted", ready[1])
    l2inv("publish")
    l2inv("prioritize", ready[2], "--priority", "7", "--reason", "<b>campaign</b>")
    file = tmp_path / "report.html"
    l2inv("report", str(file))
    return file


def test_it_looks_whole_at_every_width_in_light_and_dark(browser: "Browser", file: Path) -> None:
    seen = set()
    for width, scheme in LOOKS:
        opened = Opened(browser, file, width, scheme)
        with opened as page:
            assert opened.asked == [file.as_uri()]
            assert page.evaluate("document.documentElement.scrollWidth") == width
            # What holds more than fits scrolls in itself, and the keyboard can reach it.
            for wide in page.query_selector_all("main *"):
                if wide.evaluate(
                    "e => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX != 'visible'"
                    " && getComputedStyle(e).clipPath == 'none'"
                ):
                    assert wide.get_attribute("tabindex") == "0"
            seen.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            disk = page.locator(".sun").bounding_box()
            assert disk is not None
            assert 300 < disk["width"] <= width
            assert abs(disk["width"] - disk["height"]) < 1
            assert (
                page.locator(".sun circle").first.evaluate("e => getComputedStyle(e).fill") != "rgb(0, 0, 0)"
            )
            assert opened.complaints == []
    assert len(seen) == 2


@pytest.mark.parametrize("width", [1280, 1400, 1920])
def test_each_op_is_one_row_under_the_headings_and_nothing_in_it_is_clipped(
    browser: "Browser", file: Path, width: int
) -> None:
    with Opened(browser, file, width, "light") as page:
        assert page.locator(".ops thead").bounding_box()["height"] > 10
        rows = page.locator(".ops tr").evaluate_all(
            "all => all.map(row => [...row.children].map(e => { const b = e.getBoundingClientRect();"
            " return [b.left, e.scrollWidth > Math.ceil(b.width) + 1, b.right] }))"
        )
        heads = [left for left, _, _ in rows[0]]
        assert len(rows) > 10
        for row in rows[1:]:
            if len(row) == len(heads):
                assert [left for left, _, _ in row] == heads
                assert [n for n, (_, is_clipped, _) in enumerate(row) if is_clipped] == []
                assert row[-1][2] <= width


def test_a_heading_sorts_its_column_by_the_keyboard_too_and_back_and_what_is_unknown_comes_last(
    browser: "Browser", file: Path
) -> None:
    with Opened(browser, file, 1280, "light") as page:
        shown = page.locator(".ops tbody tr").evaluate_all("all => all.map(row => row.cells[7].textContent)")
        heading = page.locator(".ops thead th").nth(7)
        assert heading.inner_text().strip() == "min"
        unknown = [text for text in shown if text == "-"]
        known = sorted(float(text) for text in shown if text != "-")
        assert len(set(known)) > 3
        for direction, expected in (("ascending", known), ("descending", known[::-1])):
            heading.locator("button").focus()
            page.keyboard.press("Enter")
            assert heading.get_attribute("aria-sort") == direction
            now = page.locator(".ops tbody tr").evaluate_all(
                "all => all.map(row => row.cells[7].textContent)"
            )
            assert [float(text) for text in now[: len(known)]] == expected
            assert now[len(known) :] == unknown


def test_without_a_script_every_row_can_be_read(browser: "Browser", file: Path) -> None:
    with Opened(browser, file, 1280, "light", java_script_enabled=False) as page:
        rows = page.locator(".ops tbody tr")
        assert rows.count() > 10
        assert all(text.strip() for text in rows.all_text_contents())
        assert rows.first.is_visible() and rows.last.is_visible()
        assert page.locator(".ops button").count() == 0


def test_the_policy_stops_what_it_should(browser: "Browser", file: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    more = "<script>document.title = 'ran'</script><img src='http://127.0.0.1:9/x'><p style='color:red'>x</p>"
    bad.write_text(file.read_text().replace("</main>", f"{more}</main>"))
    opened = Opened(browser, bad, 1400, "light")
    with opened as page:
        assert page.title().startswith("l2inv report")
        assert len([said for said in opened.complaints if "Content Security Policy" in said]) == 3


def test_text_stays_text(browser: "Browser", file: Path) -> None:
    opened = Opened(browser, file, 1400, "light")
    with opened as page:
        ids = page.locator(".ops tbody th").evaluate_all("all => all.map(e => e.firstChild.data.trim())")
        assert {clean(text).strip() for text in TEXTS.values()} <= set(ids)
        assert not NEVER.search(page.locator("main").text_content() or "")
        assert page.evaluate("document.querySelectorAll('img, iframe, bold, dataset').length") == 0
        assert page.evaluate("document.scripts.length") == 1, "the page's own"
        assert opened.complaints == []


def test_the_pointer_finds_an_ops_id_on_the_disk_and_its_line_behind_it(
    browser: "Browser", file: Path, l2inv: Commands
) -> None:
    (published,) = l2inv.json("list", "--state", "published")["ops"]
    with Opened(browser, file, 1400, "light") as page:
        shape = page.locator(".fields a.published")
        assert shape.locator("title").text_content() == f"{published['op_id']}: published"
        shape.scroll_into_view_if_needed()
        x, y = shape.locator("path").evaluate(FREE)
        page.mouse.move(x, y)
        assert shape.locator("path").evaluate("e => getComputedStyle(e).fillOpacity") == "0.7"
        page.mouse.click(x, y)
        target = page.locator("tr:target")
        assert target.locator("th").inner_text() == published["op_id"]
        assert target.evaluate(
            "e => { const b = e.getBoundingClientRect(); return b.top >= 0 && b.bottom <= innerHeight }"
        )
        target.locator("summary").click()
        assert "published, han: as inv." in target.locator("ol").inner_text()


def test_the_keyboard_can_skip_the_header_and_select_states(browser: "Browser", file: Path) -> None:
    with Opened(browser, file, 1400, "dark") as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        assert page.locator(".skip").bounding_box()["x"] >= 0
        page.keyboard.press("Enter")
        assert page.url.endswith("#main")
        counted = page.locator(".ops tr.not_invertible").count()
        assert counted > 5
        for name in (".ops tr.not_invertible", ".fields a.not_invertible"):
            assert page.locator(name).first.is_visible()
        page.locator("#show-not_invertible").focus()
        assert (
            page.locator("#show-not_invertible").evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
        )
        page.keyboard.press("Space")
        for name in (".ops tr.not_invertible", ".fields a.not_invertible"):
            assert not page.locator(name).first.is_visible()
        assert page.locator(".ops tr.published").first.is_visible()


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_axe_finds_nothing(browser: "Browser", file: Path, width: int, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    with Opened(browser, file, width, scheme, bypass_csp=True) as page:
        for details in page.query_selector_all("details"):
            details.evaluate("e => e.open = true")
        # Laid out as if all of it were seen, else axe passes over what is not.
        page.add_style_tag(content=".ops tbody tr { content-visibility: visible !important }")
        found = axe.run(page)
        assert found.violations_count == 0, found.generate_report()
        assert {"color-contrast", "heading-order", "svg-img-alt"} <= {
            rule["id"] for rule in found.response["passes"]
        }


def test_it_prints_every_line_on_white_whatever_the_screens_theme(
    browser: "Browser", file: Path, tmp_path: Path
) -> None:
    with Opened(browser, file, 1400, "dark") as page:
        page.emulate_media(media="print")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(253, 253, 252)"
        assert not page.locator("nav").is_visible()
        assert page.locator(".ops tbody tr").last.is_visible()
        assert len(page.pdf(format="A4")) > 10_000


def test_5000_ops_stay_small_and_open_at_once(
    browser: "Browser", l2inv: Commands, url: str, tmp_path: Path
) -> None:
    from l2inv.config.settings import Database, Settings
    from l2inv.database.connection import open_connection

    lives = load.lives(url, tmp_path)
    with open_connection(Settings(database=Database(url=url, schema="many"))) as connection:
        load.fill(connection, lives, 5000)
    l2inv.settings["database"]["schema"] = "many"
    l2inv.save()
    file = tmp_path / "many.html"
    told = l2inv.json("report", str(file))
    assert told["ops"] == 5000
    assert told["bytes"] < 5_000_000
    begun = time.monotonic()
    opened = Opened(browser, file, 1400, "light")
    with opened as page:
        page.locator("h1").wait_for()
        first_seen = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        page.locator(".fields a").nth(2500).evaluate(
            "e => e.dispatchEvent(new MouseEvent('click', {bubbles: true}))"
        )
        assert page.locator("tr:target").is_visible()
        seconds = time.monotonic() - begun
        print(f"{told['bytes']:,} bytes; seen after {first_seen:.0f} ms, at a line after {seconds:.1f} s")
        assert first_seen < 3000
        assert seconds < 15
        assert opened.complaints == []
