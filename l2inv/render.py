"""How things look on a terminal and in a pipe. Text from outside is shown, never obeyed."""

import json
import re
import sys
from collections.abc import Iterable, Sequence, Sized
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table

# Control characters, and those that hide or reorder what stands beside them.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
STYLE = {"error": "red", "working": "yellow", "preprocessed": "cyan", "published": "green"}  # of states
STYLE |= {"pass": "green", "fail": "red", "warn": "yellow", "unknown": "yellow"}  # of criteria


def clean(value: object) -> str:
    """Gives a value as one line of text without characters that a terminal would obey."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", str(value))


def as_json(document: object) -> str:
    """Gives one JSON document; times are ISO 8601 in UTC ending in Z."""
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
    return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M") if value else "-"


def day(value: datetime | date | None) -> str:
    return value.strftime("%Y-%m-%d") if value else "-"


def console() -> "Console":
    """Gives the console of stdout: as wide as the terminal, or as wide as it takes where a pipe reads it."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 10_000
    return Console(width=width, markup=False, highlight=False, emoji=False, soft_wrap=not sys.stdout.isatty())


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = ()) -> None:
    """Prints rows under headings; on a terminal long cells fold, in a pipe each row is one line."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True)
    for name in columns:
        whole = name == "OP"  # an id that is broken over two lines cannot be copied
        justify: Literal["right", "left"] = "right" if name in right else "left"
        grid.add_column(name, justify=justify, overflow="fold", no_wrap=whole)
    for row in rows:
        grid.add_row(*(Text(clean(cell), style=STYLE.get(str(cell), "")) for cell in row))
    _print(grid)


def cards(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints rows that are too wide for a terminal as a heading and a line below it; in a pipe as a table."""
    from rich.text import Text

    if not sys.stdout.isatty():
        table(columns, rows)
        return
    for number, row in enumerate(rows, 1):
        about = " · ".join(f"{name} {clean(cell)}" for name, cell in zip(columns[1:], row[1:], strict=True))
        console().print(Text(f"{number:>3}  {clean(row[0])}", style="bold"))
        console().print(_indented(about))


def _indented(text: str) -> "Padding":
    from rich.padding import Padding
    from rich.text import Text

    return Padding(Text(text), (0, 0, 0, 5))


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
    """Prints names and values under each other."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs:
        grid.add_row(name, Text(clean(value), style=STYLE.get(str(value), "")))
    _print(grid)


def _print(grid: "Table") -> None:
    if sys.stdout.isatty():
        console().print(grid)
        return
    with (out := console()).capture() as captured:
        out.print(grid)
    for line in captured.get().splitlines():
        print(line.rstrip())  # noqa: T201 - stdout is where the result goes


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
    return json.dumps(detail, ensure_ascii=False)


def _due(detail: dict[str, Any]) -> str:
    return f", due {moment(detail['due_at'])[:10]}" if detail.get("due_at") else ""


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
