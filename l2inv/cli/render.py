"""Layout of results: plain columns in a pipe; on a terminal, by the module `terminal`."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice

from l2inv import wording

AT_ONCE = 500  # rows of a stream laid out together
NOTHING = ("", "-")  # cells without a value


def width() -> int | None:
    """Return the terminal's width in columns; None where stdout is not a terminal."""
    if sys.stdout is None or not sys.stdout.isatty():  # None where it was closed: l2inv … >&-
        return None
    from l2inv.cli import terminal

    return terminal.width()


def paragraph(text: str, indent: int = 0, style: str = "", hang: int = 0) -> None:
    """Print a text indented by so many columns; on a terminal, in a style, its lines after the first by `hang` more."""
    text = wording.clean(text).rstrip()
    if width() is None:
        print(" " * indent + text, flush=True)  # noqa: T201 - stdout is where the result goes, before a warning
        return
    from l2inv.cli import terminal

    terminal.paragraph(text, style, indent, hang)


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    right: Sequence[str] = (),
    title: int = 0,
    short: Mapping[str, str] | None = None,
) -> None:
    """Print rows under headings, the columns in `right` aligned to the right. On a terminal that is too narrow, first
    cells are replaced by their `short` form, then each row becomes a card under its cell number `title`."""
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
    """Print rows as a table as they arrive, in bounded memory; `short_of` returns the short forms of first cells.

    In a pipe, the columns are as wide as the first rows need. On a terminal, the headings are repeated.
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
    """Print rows as a table; a column with one value in every row is printed once, above it.

    On a narrow terminal, the columns that do not fit are printed below each row.
    """
    texts = _texts(rows)
    same = [i for i in range(1, len(columns)) if len(texts) > 1 and len({row[i] for row in texts}) == 1]
    common = [f"{columns[i]} {texts[0][i]}" for i in same if texts[0][i] not in NOTHING]
    if common:
        paragraph(f"in all: {'; '.join(common)}")
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
    """Print rows in columns of these widths, or else as wide as needed; return the widths."""
    widths = widths or [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(row, widths, to_the_right, strict=True)
        line = "  ".join(text.rjust(wide) if right else text.ljust(wide) for text, wide, right in cells)
        print(line.rstrip())  # noqa: T201
    return widths


def fields(pairs: Iterable[tuple[str, object]]) -> None:
    """Print names and values in two columns."""
    texts = [(name, wording.clean(value).strip()) for name, value in pairs]
    if width() is None:
        _print_plain(texts, [False, False])
        return
    from l2inv.cli import terminal

    terminal.fields(texts)
