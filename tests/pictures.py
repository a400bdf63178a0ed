"""Generates the pictures in docs/pictures from the demo's database: python -m tests.pictures.

The terminal's are SVG by rich, 80 columns wide; the report's is a PNG, where chromium is. The demo's sample is that of one
day, and what its run adds of its own (times, ids, folders) is written as on that day: a further run changes nothing.
"""

import io
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from l2inv.cli import main as l2inv
from l2inv.config import settings as all_settings
from l2inv.database import embedded
from l2inv.database.access import connected
from l2inv.queries.report import page, snapshot
from l2inv.sample import demo
from tests.helpers.terminals import in_this_process

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"
COMMAND = "python -m tests.pictures"
CHROMIUM = "chromium"
NOW = datetime(2026, 11, 24, 6, tzinfo=UTC)  # of the sample
COLUMNS = 80
WIDTH, HEIGHT = 1280, 2000  # of the page, in pixels
# rich's own format fetches its font from elsewhere.
FORMAT = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: {char_height}px;
  line-height: {line_height}px; }}
.{unique_id}-title {{ font-family: sans-serif; font-size: 18px; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g></g>
</svg>
"""


@click.command()
def main() -> None:
    """Run the demo in a folder of its own and draw what its commands and its report show."""
    with demonstrated() as (config, published):
        PICTURES.mkdir(exist_ok=True)
        for name, svg in terminals(config, published).items():
            (PICTURES / name).write_text(svg, encoding="utf-8")
        if shutil.which(CHROMIUM):
            photograph(config, PICTURES / "report.png")
        else:
            click.echo(f"{CHROMIUM} is not installed: report.png stays as it is")


@contextmanager
def demonstrated() -> Iterator[tuple[Path, str]]:
    """Lend the settings of a demo in a folder of its own, and the OP that it published."""
    folder = Path(tempfile.mkdtemp(prefix="l2inv-pictures-"))
    try:
        told = demo.run(lambda line: None, folder=folder / "demo", now=NOW)
        yield Path(told["config"]), told["published"]
    finally:
        embedded.stop(folder / "demo" / "server")
        shutil.rmtree(folder)


def terminals(config: Path, published: str) -> dict[str, str]:
    """Return the SVG of what each command shows, by the name of its file."""
    short = published[-8:]
    commands = {
        "next": ["next"],
        "show": ["show", short],
        "history": ["history", short],
        "status": ["status"],
    }
    return {f"{name}.svg": drawn(config, argv) for name, argv in commands.items()}


def drawn(config: Path, argv: list[str]) -> str:
    """Return the SVG of what a command shows on a terminal."""
    shown = in_this_process(l2inv, ["--config", str(config), "--actor", "han", *argv], COLUMNS)
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(as_on_the_day(shown)), soft_wrap=True)
    title = " ".join(["l2inv", *argv])
    svg = console.export_svg(title=title, code_format=FORMAT, unique_id=argv[0])
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def as_on_the_day(text: str) -> str:
    """Return a text in which what differs from run to run is as it would be on the sample's day."""
    today = datetime.now(UTC).date().isoformat()
    text = re.sub(rf"{today}([T\s]\s*)\d\d:\d\d", rf"{NOW:%Y-%m-%d}\g<1>{NOW:%H:%M}", text)
    text = text.replace(today, f"{NOW:%Y-%m-%d}")
    text = re.sub(r"in \d+\.\d s", "in 0.1 s", text)
    text = re.sub(r"((?i:inv)[._])[A-Z0-9]{6}(?![A-Z0-9])", r"\g<1>7QK2ZD", text)
    text = re.sub(r"\b[0-9]+ (seconds?|minutes?|s|min) ago", "1 min ago", text)
    text = re.sub(r"\bl2inv-[0-9a-f]{12}\b", "l2inv-5c1e0b7d9a42", text)
    return re.sub(r"/\S*/(demo/)", r"/home/han/.local/share/l2inv/\1", text)


def photograph(config: Path, picture: Path) -> None:
    """Have chromium show the report and keep what it shows."""
    html = config.parent / "report.html"
    settings = all_settings.load(config).settings
    with connected(settings) as connection:
        text, _ = snapshot.report(connection, settings, datetime.now(UTC), 5000)
    page.write(html, as_on_the_day(text), 0o600)
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    subprocess.run(
        [CHROMIUM, "--headless", *flags, "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={config.parent / 'browser'}",
         f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={picture}", html.as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip


if __name__ == "__main__":
    main()
