"""How results are laid out: plain columns in a pipe; on a terminal, `terminal` does it."""

import sys
from collections.abc import Iterable, Sequence

from l2inv import wording


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
    columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = (), title: int = 0
) -> None:
    """Print rows under headings, the numbers of the columns in `right` under each other; a terminal that is too narrow
    for them gets a card for each row instead, under the cell that is its title."""
    texts = [[wording.clean(cell).strip() for cell in row] for row in rows]
    if width() is None:
        _print_plain([columns, *texts], [name in right for name in columns])
        return
    from l2inv.cli import terminal

    terminal.table(columns, texts, right, title)


def _print_plain(rows: Sequence[Sequence[str]], to_the_right: Sequence[bool]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(row, widths, to_the_right, strict=True)
        line = "  ".join(text.rjust(wide) if right else text.ljust(wide) for text, wide, right in cells)
        print(line.rstrip())  # noqa: T201


def fields(pairs: Iterable[tuple[str, object]]) -> None:
    """Print names and values under each other."""
    texts = [(name, wording.clean(value).strip()) for name, value in pairs]
    if width() is None:
        _print_plain(texts, [False, False])
        return
    from l2inv.cli import terminal

    terminal.fields(texts)
