"""Makes the picture in docs/pictures anew, of the demo's database: python -m tests.pictures (needs the extra browser)."""

import os
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import click

from l2inv.config import settings as all_settings
from l2inv.database import embedded
from l2inv.database.access import connected
from l2inv.queries.report import snapshot
from l2inv.sample import demo

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"
CHROMIUM = "/usr/bin/chromium"
WIDTH, SCALE = 1300, 0.8


@click.command()
def main() -> None:
    """Run the demo in a folder of its own, report, and photograph the page from its head to the disk."""
    folder = Path(tempfile.mkdtemp(prefix="l2inv-pictures-"))
    embedded.default_folder = lambda: folder / "server"  # beside which the demo keeps what is its own
    try:
        config = Path(demo.run(lambda line: None)["config"])
        settings = all_settings.load(config).settings
        page = folder / "report.html"
        with connected(settings) as connection:
            snapshot.written(connection, settings, datetime.now(UTC), 5000, page)
        PICTURES.mkdir(exist_ok=True)
        photograph(page, PICTURES / "report.png")
    finally:
        for server in (folder / "server", demo.demo_folder() / "server"):
            embedded.stop(server)
        shutil.rmtree(folder)


def photograph(page: Path, picture: Path) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = started.chromium.launch(executable_path=CHROMIUM, args=flags)
        seen = browser.new_page(
            viewport={"width": WIDTH, "height": 900},
            device_scale_factor=SCALE,
            color_scheme="light",
            bypass_csp=True,
        )
        seen.goto(page.as_uri())
        seen.add_style_tag(content=".surface { fill: var(--sun2) }")  # a gradient doubles the picture's size
        bottom = seen.locator(".beside").evaluate("e => e.getBoundingClientRect().bottom + scrollY")
        seen.screenshot(
            path=picture, full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": bottom + 20}
        )
        browser.close()
    click.echo(f"{picture}: {picture.stat().st_size} bytes")


if __name__ == "__main__":
    main()
