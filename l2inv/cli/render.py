"""How results are laid out: plain columns in a pipe; on a terminal, `terminal` does it."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice

from l2inv import wording

AT_ONCE = 500  # rows that are laid out together while they come
NOTHING = ("", "-")  # cells that say nothing


def width() -> int | None:
    """Return how many columns the terminal has that stdout is; None where it is none."""
    if sys.stdout is None or not sys.stdout.isatty():  # None where it was closed: l2inv … >&-
        return None
    from l2inv.cli import terminal

    return terminal.console().width


def paragraph(text: str, indent: int = 0, style: str = "", hang: int = 0) -> None:
    """Print a text so far to the right; on a terminal, the lines after the first `hang` further, and in that style."""
    text = wording.clean(text).rstrip()
    if width() is None:
        print(" " * indent + text, flush=True)  # noqa: T201 - stdout is where the result goes, before a warning
        return
    from rich.text import Text

    from l2inv.cli import terminal

    terminal.paragraph(Text(text, style), indent, hang)


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    right: Sequence[str] = (),
    title: int = 0,
    short: Mapping[str, str] | None = None,
) -> None:
    """Print rows under headings, the numbers of the columns in `right` under each other; a terminal that is too narrow
    for them gets what is `short` for a first cell, then a card for each row, under the cell that is its title."""
    texts = _texts(rows)
    if width() is None:
        _print_plain([columns, *texts], [name in right for name in columns])
        return
    from l2inv.cli import terminal

    terminal.table(columns, texts, right, title, short or {})


def stream(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    right: Sequence[str],
    short_of: Callable[[list[str]], Mapping[str, str]],
) -> None:
    """Print rows as a table while they come, in bounded memory; `short_of` returns what is short for first cells.

    In a pipe, the columns are as wide as the first rows need. On a terminal, the headings come again now and then.
    """
    coming = iter(rows)
    widths: list[int] | None = None
    while (texts := _texts(islice(coming, AT_ONCE))) or widths is None:
        if width() is None:
            widths = _print_plain(
                texts if widths else [columns, *texts], [name in right for name in columns], widths
            )
        else:
            widths = []
            table(columns, texts, right, short=short_of([row[0] for row in texts]))


def listing(
    columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str], short: Mapping[str, str]
) -> None:
    """Print rows as a table in which what is the same in every row is said once, above it.

    A terminal that is too narrow for a column gets it below each row.
    """
    texts = _texts(rows)
    same = [i for i in range(1, len(columns)) if len(texts) > 1 and len({row[i] for row in texts}) == 1]
    told = [f"{columns[i]} {texts[0][i]}" for i in same if texts[0][i] not in NOTHING]
    if told:
        paragraph(f"in all: {'; '.join(told)}")
    left = [i for i in range(len(columns)) if i not in same]
    names, texts = [columns[i] for i in left], [[row[i] for i in left] for row in texts]
    if width() is None:
        _print_plain([names, *texts], [name in right for name in names])
        return
    from l2inv.cli import terminal

    terminal.listing(names, texts, right, short)


def _texts(rows: Iterable[Sequence[object]]) -> list[list[str]]:
    return [[wording.clean(cell).strip() for cell in row] for row in rows]


def _print_plain(
    rows: Sequence[Sequence[str]], to_the_right: Sequence[bool], widths: list[int] | None = None
) -> list[int]:
    """Print rows in columns of these widths, or else as wide as they need; return the widths."""
    widths = widths or [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(row, widths, to_the_right, strict=True)
        line = "  ".join(text.rjust(wide) if right else text.ljust(wide) for text, wide, right in cells)
        print(line.rstrip())  # noqa: T201
    return widths


def fields(pairs: Iterable[tuple[str, object]]) -> None:
    """Print names and values under each other."""
    texts = [(name, wording.clean(value).strip()) for name, value in pairs]
    if width() is None:
        _print_plain(texts, [False, False])
        return
    from l2inv.cli import terminal

    terminal.fields(texts)
