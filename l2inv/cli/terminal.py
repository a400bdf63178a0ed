"""Layout on a terminal, with rich: at most as wide as the terminal, in color unless NO_COLOR is set.

Words that a reader may copy, such as an OP's id, are never broken: one longer than the line gets a line of its own.
"""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Literal, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.measure import measure_renderables
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

STYLE = {"error": "red", "working": "yellow", "preprocessed": "cyan", "published": "green"}  # of states
STYLE |= {"pass": "green", "fail": "red", "warn": "yellow", "unknown": "yellow"}  # of criteria
GAP = 2  # between columns
NARROWEST = 14  # columns; none is folded to less


def console() -> Console:
    """Return rich's console for stdout, with markup, highlighting and emoji off."""
    return _console(sys.stdout, bool(os.environ.get("NO_COLOR")))


@lru_cache(maxsize=1)
def _console(stream: TextIO, plain: bool) -> Console:
    # By itself, rich would drop the colors, but keep bold and dim.
    system: Literal["auto"] | None = None if plain else "auto"
    return Console(file=stream, color_system=system, markup=False, highlight=False, emoji=False)


def paragraph(text: Text, indent: int = 0, hang: int = 0) -> None:
    """Print a text indented by so many columns, and its lines after the first by `hang` more."""
    first, *others = folded(text, console().width - indent - hang)
    _print([first], indent)
    _print(others, indent + hang)


def folded(text: Text, columns: int) -> list[Text]:
    """Return a text wrapped to so many columns, at spaces only."""
    text.overflow = "ignore"  # keeps a word whole that is too long
    return list(text.wrap(console(), columns))


def _print(lines: Iterable[Text], indent: int = 0) -> None:
    out = console()
    for line in lines:
        indented = Text.assemble(" " * indent, line)
        indented.rstrip()  # else the spaces would be copied with the text
        out.print(indented, soft_wrap=True)


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Sequence[str],
    title: int,
    short: Mapping[str, str],
) -> None:
    """Print rows under headings. If the terminal is too narrow, replace first cells by their `short` form; if it still
    is, print each row as its title with the other cells below."""
    if short and sum(_widths([columns, *rows])) + GAP * (len(columns) - 1) > console().width:
        rows = [[short.get(first, first), *others] for first, *others in rows]
    headings = [Text(name, "bold") for name in columns]
    lines = _columns(
        [headings, *([_styled(text) for text in row] for row in rows)], [name in right for name in columns]
    )
    if lines:
        _print(lines)
        return
    for row in rows:
        named = list(zip(columns, row, strict=True))
        _, heading = named.pop(title)
        paragraph(Text(heading, f"bold {_style(heading)}"))
        others = [
            Text.assemble(f"{name} " if name else "", _styled(text))
            for name, text in named
            if text not in ("", "-")
        ]
        if others:
            paragraph(Text("; ").join(others), GAP)


def listing(
    columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str], short: Mapping[str, str]
) -> None:
    """Print rows under headings, as many columns as fit the terminal, and below each row its other cells.

    Where not every column fits, the first cells are replaced by their `short` form.
    """
    width = console().width
    if sum(_widths([columns, *rows])) + GAP * (len(columns) - 1) > width:
        rows = [[short.get(first, first), *others] for first, *others in rows]
    widths = _widths([columns, *rows])
    beside, taken = [0], widths[0]
    for i in range(1, len(columns)):
        if taken + GAP + widths[i] <= width:
            beside.append(i)
            taken += GAP + widths[i]

    def line(cells: Sequence[str]) -> str:
        padded = (
            " " * (widths[i] - cell_len(cells[i])) + cells[i]
            if columns[i] in right
            else cells[i] + " " * (widths[i] - cell_len(cells[i]))
            for i in beside
        )
        return (" " * GAP).join(padded).rstrip()

    paragraph(Text(line(columns), "bold"))
    for row in rows:
        paragraph(Text(line(row)))
        below = [
            f"{columns[i]} {row[i]}"
            for i in range(len(columns))
            if i not in beside and row[i] not in ("", "-")
        ]
        if below:
            paragraph(Text("; ".join(below), "dim"), GAP, GAP)


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(cell_len, column)) for column in zip(*rows, strict=True)]


def fields(pairs: Sequence[tuple[str, str]]) -> None:
    """Print names and values, each value beside its name, or below it if one of its words needs the whole line."""
    longest = max(len(name) for name, _ in pairs)
    for name, text in pairs:
        lines = _columns([[Text(name.ljust(longest), "dim"), _styled(text)]], [False, False])
        _print(lines or [Text(name, "dim"), *folded(_styled(text), console().width)])


def _columns(rows: Sequence[Sequence[Text]], to_the_right: Sequence[bool]) -> list[Text]:
    """Return rows as lines of aligned columns, wrapped at spaces; no lines if the terminal is too narrow for that.

    The widths are computed here, because rich would narrow the widest column and break its words.
    """
    out = console()
    measured = [measure_renderables(out, out.options, cells) for cells in zip(*rows, strict=True)]
    least = [min(max(word, NARROWEST), whole) for word, whole in measured]
    wanted = sum(whole for _, whole in measured) - sum(least)
    spare = min(out.width - GAP * (len(least) - 1) - sum(least), wanted)
    if spare < 0:
        return []
    grid = Table.grid(padding=(0, GAP, 0, 0), pad_edge=True)
    for low, (_, whole), right in zip(least, measured, to_the_right, strict=True):
        more = (whole - low) * spare // max(wanted, 1)
        grid.add_column(width=low + more, justify="right" if right else "default", overflow="fold")
    for row in rows:
        grid.add_row(*row)
    options = out.options.update_width(out.width + GAP)  # the gap after the last column included
    lines = Segment.split_lines(out.render(grid, options))
    return [Text.assemble(*((part.text, part.style or "") for part in line)) for line in lines]


def _styled(text: str) -> Text:
    return Text(text, _style(text))


def _style(text: str) -> str:
    return STYLE.get(text, "red" if text.endswith(" overdue") else "")
