"""How things look on a terminal and in a pipe. Text from outside is shown, never obeyed.

On a terminal everything is as wide as the terminal at most, but for a word that is longer than a line: what may be
copied, such as an OP's id, is never broken. In a pipe each row is one line of columns, without colour.
"""

import os
import re
import sys
from collections.abc import Iterable, Sequence, Sized
from datetime import UTC, datetime
from typing import Any, TextIO

# Control characters, and those that hide or reorder what stands beside them. None of them is printable.
_UNSAFE = r"[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
STYLE = {"error": "red", "working": "yellow", "preprocessed": "cyan", "published": "green"}  # of states
STYLE |= {"pass": "green", "fail": "red", "warn": "yellow", "unknown": "yellow"}  # of criteria
_CODES = {"bold": 1, "dim": 2, "red": 31, "green": 32, "yellow": 33, "cyan": 36}  # as ECMA-48 numbers them
GAP = "  "  # between columns
NARROWEST = 16  # a column is not folded into less


def clean(value: object) -> str:
    """Gives a value as one line of text without characters that a terminal would obey."""
    text = str(value)
    return text if text.isprintable() else re.sub(_UNSAFE, lambda found: f"\\u{ord(found[0]):04x}", text)


def as_json(document: object) -> str:
    """Gives one JSON document; times are ISO 8601 in UTC ending in Z."""
    import json

    return json.dumps(document, default=_plain, ensure_ascii=True, allow_nan=False)


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, (set, frozenset, tuple)):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no place in JSON")


def moment(value: datetime | str | None) -> str:
    """Gives a time to the minute, in UTC."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return f"{value.astimezone(UTC):%Y-%m-%d %H:%M}" if value else "-"


def day(value: datetime | str | None) -> str:
    """Gives the day alone, in UTC, of what needs no time."""
    return moment(value)[:10]


def _style(text: str) -> str:
    return STYLE.get(text, "red" if text.endswith(" overdue") else "")


def width() -> int | None:
    """Gives how many columns the terminal has that stdout is; None where it is none."""
    return max(terminal_columns(sys.stdout), 20) if _on_terminal() else None


def _on_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()  # None where it was closed: l2inv … >&-


def terminal_columns(stream: TextIO) -> int:
    """Gives how many columns the terminal has that a stream writes to, or what COLUMNS says."""
    said = os.environ.get("COLUMNS", "")
    return (
        int(said) if said.isdecimal() and int(said) else os.get_terminal_size(stream.fileno()).columns or 80
    )


def styled(text: str, *styles: str) -> str:
    """Gives a text in colour or bold, where stdout is a terminal that shows it and nobody objects (no-color.org)."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not _on_terminal()
    codes = [str(_CODES[style]) for style in styles if style]
    return text if plain or not codes or not text else f"\x1b[{';'.join(codes)}m{text}\x1b[0m"


def glyph(text: str, instead: str) -> str:
    """Gives a text, or what stands for it where stdout cannot show it."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return instead
    return text


def cells(text: str) -> int:
    """Gives how many columns a text takes on a terminal."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def folded(text: str, columns: int) -> list[str]:
    """Gives a text in lines of so many columns, broken at blanks alone."""
    if cells(text) <= columns:
        return [text]
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and cells(longer) > columns:
            lines.append(word)
        else:
            lines[-1] = longer
    return [line.rstrip() for line in lines]


def paragraph(text: str, indent: int = 0, *styles: str, hang: int = 0) -> None:
    """Prints a text in lines as long as the terminal, so far to the right, and those after the first `hang` further."""
    columns = width()
    text = clean(text).rstrip()
    for line in folded(text, columns - indent - hang) if columns else [text]:
        print(" " * indent + styled(line, *styles))  # noqa: T201 - stdout is where the result goes
        indent, hang = indent + hang, 0


def length(seconds: float) -> str:
    """Gives a length of time in one unit, which says enough of it."""
    for unit, one, least in (("days", 86_400, 2), ("h", 3600, 2), ("min", 60, 1)):
        if seconds >= least * one:
            return f"{seconds / one:.0f} {unit}"
    return f"{seconds:.0f} s"


def bar(share: float, columns: int) -> str:
    """Gives a share of 1 as a bar; what is not nothing is seen."""
    return "#" * max(round(share * columns), share > 0)


def table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = (), title: int = 0
) -> None:
    """Prints rows under headings, the numbers of the columns in `right` under each other.

    Where a terminal is too narrow for the columns even when cells fold at their blanks, each row is printed as the cell
    that is its title, and the others with their names below it.
    """
    texts = [[clean(cell).rstrip() for cell in row] for row in rows]
    natural = [max(map(cells, column)) for column in zip(columns, *texts, strict=True)]
    terminal = width()
    widths = natural if terminal is None else _fitted(columns, texts, natural, terminal)
    if widths is None:
        for row in texts:
            _card(columns, row, title)
        return
    to_the_right = [name in right for name in columns]
    _print_row(columns, widths, to_the_right, ["bold"] * len(columns))
    for row in texts:
        _print_row(row, widths, to_the_right, [_style(text) for text in row])


def _fitted(
    columns: Sequence[str], texts: list[list[str]], natural: list[int], terminal: int
) -> list[int] | None:
    """The columns' widths on a terminal: what is too wide is folded, each in proportion; None if that is not enough."""
    room = terminal - len(GAP) * (len(columns) - 1)
    if sum(natural) <= room:
        return natural
    longest = [
        max(cells(word) for text in column for word in text.split(" "))
        for column in zip(columns, *texts, strict=True)
    ]
    least = [min(wide, max(word, NARROWEST)) for wide, word in zip(natural, longest, strict=True)]
    spare, wanted = room - sum(least), sum(natural) - sum(least)
    if spare < 0:
        return None
    return [low + (wide - low) * spare // wanted for low, wide in zip(least, natural, strict=True)]


def _print_row(
    texts: Sequence[str], widths: Sequence[int], to_the_right: Sequence[bool], styles: Sequence[str]
) -> None:
    parts = [folded(text, width) for text, width in zip(texts, widths, strict=True)]
    for number in range(max(map(len, parts))):
        line, blanks = "", 0  # none are printed behind the last text
        for part, width, right, style in zip(parts, widths, to_the_right, styles, strict=True):
            text = part[number] if number < len(part) else ""
            missing = width - cells(text)
            if text:
                line += " " * (blanks + missing * right) + styled(text, style)
                blanks = missing * (not right)
            else:
                blanks += missing
            blanks += len(GAP)
        print(line)  # noqa: T201


def _card(columns: Sequence[str], texts: Sequence[str], title: int) -> None:
    print(styled(texts[title], "bold", _style(texts[title])))  # noqa: T201
    others = [pair for place, pair in enumerate(zip(columns, texts, strict=True)) if place != title]
    said = [(name, text) for name, text in others if text not in ("", "-")]
    between, room = glyph(" · ", "; "), (width() or 0) - len(GAP)
    line, taken = "", 0
    for name, text in said:
        words = f"{name} {text}".strip()
        if taken and taken + len(between) + cells(words) > room:
            print(GAP + line)  # noqa: T201
            line, taken = "", 0
        if cells(words) > room:
            paragraph(words, len(GAP), _style(text))
            continue
        line += (between if taken else "") + words.removesuffix(text) + styled(text, _style(text))
        taken += (len(between) if taken else 0) + cells(words)
    if taken:
        print(GAP + line)  # noqa: T201


def value(measured: object) -> str:
    """Gives what a criterion measured or required, numbers short enough to read."""
    if measured is None:
        return "-"
    if isinstance(measured, float):
        return f"{measured:.6g}"
    if isinstance(measured, list):
        return (
            " to ".join(map(value, measured))
            if all(isinstance(v, float) for v in measured)
            else ", ".join(map(value, measured))
        )
    return str(measured)


def fields(pairs: Iterable[tuple[str, object]]) -> None:
    """Prints names and values under each other; on a terminal a long value folds beside its name, or below it where one
    of its words needs the whole line."""
    texts = [(name, clean(value).rstrip()) for name, value in pairs]
    indent = max(len(name) for name, _ in texts) + len(GAP)
    terminal = width()
    for name, text in texts:
        lines = folded(text, terminal - indent) if terminal else [text]
        if terminal and max(map(cells, lines)) > terminal - indent:
            print(styled(name, "dim"))  # noqa: T201
            paragraph(text, 0, _style(text))
            continue
        heading = styled(name.ljust(indent), "dim")
        for line in lines:
            print(heading + styled(line, _style(text)))  # noqa: T201
            heading = " " * indent


def centimetres(metres: float | None) -> str:
    return f"{metres * 100:.1f} cm" if metres is not None else "unknown"


def summary(report: dict[str, Any]) -> str:
    """Gives a stage's report as the line that it ends with."""
    n, stage, seconds = report["ops"], report["stage"], f"{report['seconds']:.1f} s"
    match stage:
        case "scan":
            d = report["datasets"]
            return (
                f"scan: {d['seen']} records ({d['new']} new, {d['changed']} changed, {d['withdrawn']} withdrawn, "
                f"{d['quarantined']} set aside), "
                f"{n['seen']} OPs ({n['new']} new, {n['changed']} changed), {seconds}"
            )
        case "qualify":
            outstanding = len(report.get("outstanding") or ())
            more = f" ({outstanding} with recipes outstanding)" if outstanding else ""
            return (
                f"qualify: {n['judged']} OPs judged ({n['invertible']} invertible, {n['not_invertible']} not), "
                f"{n['waiting']} waiting{more}, {n['unchanged']} unchanged, {n['failed']} failed, {seconds}"
            )
    jobs = report.get("jobs")
    more = f" ({jobs['submitted']} submitted, {jobs['running']} on the cluster already)" if jobs else ""
    return f"{stage}: {_count(range(n['done']), 'OP')} done, {n['failed']} failed, {n['skipped']} skipped{more}, {seconds}"


def what_happened(event: dict[str, Any]) -> str:
    """Gives one event as a phrase."""
    detail: dict[str, Any] = event["detail"]
    match event["kind"]:
        case "discovered":
            return f"with {_count(detail.get('datasets', ()), 'dataset')}"
        case "datasets_changed":
            parts = [
                f"{_count(detail[name], 'dataset')} {name}: {_some(detail[name])}"
                for name in ("new", "changed", "left", "withdrawn")
                if detail.get(name)
            ]
            return "; ".join(parts)
        case "judged":
            return f"{verdict_line(detail['verdict'])} (criteria {detail['criteria_version']})"
        case "overruled":
            is_now = "invertible" if detail["invertible"] else "not invertible"
            return f"{is_now} all the same: {detail['reason']}"
        case "prioritized":
            return f"priority {detail['priority']}: {detail['reason']}"
        case "noted":
            return str(detail["note"])
        case "preprocess_started":
            again = f", after {detail['after']}" if detail.get("after") else ""
            return f"as job {detail['job']} ({detail['executor']}), attempt {detail['attempt']}{again}"
        case "cleaned":
            return f"{detail['files']} files, {detail['bytes']} bytes removed with {detail['folder']}"
        case "preprocessed":
            if not detail.get("needed"):
                return "nothing to run" + (f"; bundle in {detail['folder']}" if detail.get("folder") else "")
            return f"in {detail['seconds']:.1f} s, {_count(detail['files'], 'file')} in {detail['folder']}"
        case "claimed" | "extended":
            return f"for {detail['assignee']}{_due(detail)}"
        case "handed_over" | "taken_over":
            return f"from {detail['from']} to {detail['assignee']}{_due(detail)}{_reason(detail)}"
        case "put_on_hold" | "taken_off_hold":
            return str(detail.get("reason") or "")
        case "released":
            return f"by {detail['assignee']}{_reason(detail)}"
        case "inverted":
            software = detail.get("software") or {}
            with_what = " ".join(str(v) for v in (software.get("name"), software.get("version")) if v)
            note = f": {detail['note']}" if detail.get("note") else ""
            outputs = _count(detail["outputs"], "output")
            old = detail.get("accepted")
            accepted = f"; accepted {_some(old['superseded'])} as superseded: {old['reason']}" if old else ""
            return f"{outputs}{f' with {with_what}' if with_what else ''} by {detail['inverted_by']}{note}{accepted}"
        case "inversion_named" | "inversion_created":
            told = "the store is to be told of" if event["kind"] == "inversion_named" else "the store holds"
            return f"{told} {detail['inversion_id']} for {detail['instrument_program_id']}"
        case "published":
            return "as " + ", ".join(i["inversion_id"] for i in detail["inversions"])
        case "reopened":
            return f"after cycle {detail['cycle']}{_reason(detail)}"
        case "withdrawn":
            return ", ".join(detail["inversion_ids"]) + _reason(detail)
        case "failed":
            return f"{detail['stage']}, attempt {detail['attempt']}: {detail['cause']}"
        case "retried":
            return f"{detail.get('stage')}, after attempt {detail.get('attempt')}"
    import json

    return json.dumps(detail, ensure_ascii=False)


def _due(detail: dict[str, Any]) -> str:
    return f", due {day(detail['due_at'])}" if detail.get("due_at") else ""


def _reason(detail: dict[str, Any]) -> str:
    return f": {detail['reason']}" if detail.get("reason") else ""


def verdict_line(verdict: dict[str, Any]) -> str:
    """Gives a verdict in a line: which instrument programs, or which criteria stand against it."""
    programs = verdict["instrument_programs"]
    good = [str(p["instrument_program_id"]) for p in programs if p["invertible"]]
    if good:
        return f"invertible: {', '.join(good)}"
    against: dict[str, set[str]] = {"fail": set(), "unknown": set()}
    for program in programs:
        for criterion in program["criteria"]:
            if criterion["result"] in against and not criterion.get("optional"):
                against[criterion["result"]].add(criterion["name"])
    words = [f"{result}: {', '.join(sorted(names))}" for result, names in against.items() if names]
    reason = "; ".join(words) if programs else "no dataset of a qualifying instrument"
    return ("undetermined" if verdict["undetermined"] else "not invertible") + f", {reason}"


def _count(things: Sized, noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
