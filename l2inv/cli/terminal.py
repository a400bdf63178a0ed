"""Layout on a terminal: at most as wide as the terminal, in color unless NO_COLOR is set or the terminal has none.

Words that a reader may copy, such as an OP's id, are never broken: one longer than the line gets a line of its own.
"""

import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest

STYLE = {"error": "red", "working": "yellow", "preprocessed": "cyan", "published": "green"}  # of states
STYLE |= {"pass": "green", "fail": "red", "warn": "yellow", "unknown": "yellow"}  # of criteria
CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}  # of ECMA-48
GAP = 2  # between columns
NARROWEST = 14  # columns; none is folded to less


def width() -> int:
    """Return the terminal's width in columns."""
    return shutil.get_terminal_size().columns


def painted(text: str, style: str) -> str:
    """Return a text in a style such as "bold red"."""
    codes = ";".join(CODES[name] for name in style.split())
    if not (text and codes) or os.environ.get("NO_COLOR") or os.environ.get("TERM") in ("dumb", "unknown"):
        return text
    return f"\x1b[{codes}m{text}\x1b[0m"


def _cells(text: str) -> int:
    """Return how many columns a text takes, painted or not."""
    bare = re.sub(r"\x1b\[[\d;]*m", "", text)
    if bare.isascii():
        return len(bare)
    from rich.cells import cell_len

    return cell_len(bare)


def folded(text: str, columns: int) -> list[str]:
    """Return a text wrapped to so many columns, at spaces only."""
    lines = [""]
    for word in re.findall(r"\s*\S+\s*", text):
        if lines[-1] and _cells(lines[-1] + word.rstrip()) > columns:
            lines.append("")
        lines[-1] += word
    return [line.rstrip() for line in lines]


def paragraph(text: str, style: str = "", indent: int = 0, hang: int = 0) -> None:
    """Print a text in a style, indented by so many columns, and its lines after the first by `hang` more."""
    first, *others = (painted(line, style) for line in folded(text, width() - indent - hang))
    _print([first], indent)
    _print(others, indent + hang)


def _print(lines: Iterable[str], indent: int = 0) -> None:
    for line in lines:
        print((" " * indent + line).rstrip())  # noqa: T201 - else the spaces would be copied with the text


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Sequence[str],
    title: int,
    short: Mapping[str, str],
) -> None:
    """Print rows under headings. If the terminal is too narrow, replace first cells by their `short` form; if it still
    is, print each row as its title with the other cells below."""
    if short and sum(_widths([columns, *rows])) + GAP * (len(columns) - 1) > width():
        rows = [[short.get(first, first), *others] for first, *others in rows]
    styles = [["bold"] * len(columns), *([_style(text) for text in row] for row in rows)]
    lines = _columns([columns, *rows], styles, [name in right for name in columns])
    if lines:
        _print(lines)
        return
    for row in rows:
        named = list(zip(columns, row, strict=True))
        _, heading = named.pop(title)
        paragraph(heading, f"bold {_style(heading)}")
        others = [
            f"{name} {painted(text, _style(text))}".lstrip() for name, text in named if text not in ("", "-")
        ]
        if others:
            paragraph("; ".join(others), indent=GAP)


def listing(
    columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str], short: Mapping[str, str]
) -> None:
    """Print rows under headings, as many columns as fit the terminal, and below each row its other cells.

    Where not every column fits, the first cells are replaced by their `short` form.
    """
    available = width()
    if sum(_widths([columns, *rows])) + GAP * (len(columns) - 1) > available:
        rows = [[short.get(first, first), *others] for first, *others in rows]
    widths = _widths([columns, *rows])
    beside, taken = [0], widths[0]
    for i in range(1, len(columns)):
        if taken + GAP + widths[i] <= available:
            beside.append(i)
            taken += GAP + widths[i]

    def line(cells: Sequence[str]) -> str:
        padded = (_padded(cells[i], widths[i], columns[i] in right) for i in beside)
        return (" " * GAP).join(padded).rstrip()

    paragraph(line(columns), "bold")
    for row in rows:
        paragraph(line(row))
        below = [
            f"{columns[i]} {row[i]}"
            for i in range(len(columns))
            if i not in beside and row[i] not in ("", "-")
        ]
        if below:
            paragraph("; ".join(below), "dim", GAP, GAP)


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(_cells, column)) for column in zip(*rows, strict=True)]


def fields(pairs: Sequence[tuple[str, str]]) -> None:
    """Print names and values, each value beside its name, or below it if one of its words needs the whole line."""
    longest = max(len(name) for name, _ in pairs)
    for name, text in pairs:
        style = _style(text)
        lines = _columns([[name.ljust(longest), text]], [["dim", style]], [False, False])
        _print(lines or [painted(name, "dim"), *(painted(line, style) for line in folded(text, width()))])


def _columns(
    rows: Sequence[Sequence[str]], styles: Sequence[Sequence[str]], to_the_right: Sequence[bool]
) -> list[str]:
    """Return rows as lines of aligned columns, wrapped at spaces; no lines if the terminal is too narrow for that."""
    whole = _widths(rows)
    words = _widths([[max(cell.split(), key=_cells, default="") for cell in row] for row in rows])
    least = [min(max(word, NARROWEST), most) for word, most in zip(words, whole, strict=True)]
    wanted = sum(whole) - sum(least)
    spare = min(width() - GAP * (len(least) - 1) - sum(least), wanted)
    if spare < 0:
        return []
    widths = [low + (most - low) * spare // max(wanted, 1) for low, most in zip(least, whole, strict=True)]
    lines = []
    for row, its_styles in zip(rows, styles, strict=True):
        for parts in zip_longest(*map(folded, row, widths), fillvalue=""):
            cells = map(_padded, map(painted, parts, its_styles), widths, to_the_right)
            lines.append((" " * GAP).join(cells))
    return lines


def _padded(text: str, columns: int, to_the_right: bool) -> str:
    gap = " " * (columns - _cells(text))
    return gap + text if to_the_right else text + gap


def _style(text: str) -> str:
    return STYLE.get(text, "red" if text.endswith(" overdue") else "")
