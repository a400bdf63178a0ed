"""How values, times and events read in text: one line each, and nothing in it that a terminal would obey."""

import re
from collections.abc import Iterable, Sized
from datetime import UTC, datetime
from typing import Any

# Control characters, and those that hide or reorder what stands beside them. None of them is printable.
_UNSAFE = r"[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"


def clean(value: object) -> str:
    """Return a value as one line of text without characters that a terminal would obey."""
    text = str(value)
    return text if text.isprintable() else re.sub(_UNSAFE, lambda found: f"\\u{ord(found[0]):04x}", text)


# Some descriptions hold a backslash and n where a paragraph ends; these are no such ends, but commands of TeX.
_PARAGRAPH_END = re.compile(r"\\n(?!(?:u|abla|eq?|ot)\b)|[\r\n]")


def paragraphs(text: str | None) -> list[str]:
    """Return the paragraphs of a text from outside, each in a line, none empty."""
    return [words for part in _PARAGRAPH_END.split(text or "") if (words := " ".join(part.split()))]


def as_json(document: object) -> str:
    """Return one JSON document; times are ISO 8601 in UTC ending in Z."""
    import json

    return json.dumps(document, default=_plain, ensure_ascii=True, allow_nan=False)


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, (set, frozenset, tuple)):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no place in JSON")


def moment(value: datetime | str | None) -> str:
    """Return a time to the minute, in UTC."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return f"{value.astimezone(UTC):%Y-%m-%d %H:%M}" if value else "-"


def day(value: datetime | str | None) -> str:
    """Return the day alone, in UTC, of what needs no time."""
    return moment(value)[:10]


def due(value: datetime | str | None, now: datetime | None = None) -> str:
    """Return when something is due: the day, and within a day of now (default: the clock's) the hour, too."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if value is None:
        return "-"
    is_near = abs((value - (now or datetime.now(UTC))).total_seconds()) < 86_400
    return f"{moment(value)} UTC" if is_near else day(value)


def length(seconds: float) -> str:
    """Return a length of time in one unit, which says enough of it."""
    for unit, one, least in (("days", 86_400, 2), ("h", 3600, 2), ("min", 60, 1)):
        if seconds >= least * one:
            return f"{seconds / one:.0f} {unit}"
    return f"{seconds:.0f} s"


def bar(share: float, columns: int) -> str:
    """Return a share of 1 as a bar; what is not nothing is seen."""
    return "#" * max(round(share * columns), share > 0)


def value(measured: object) -> str:
    """Return what a criterion measured or required, numbers short enough to read."""
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


COMPARISONS = {">=": "≥", "contains": "contains"}
UNITS = {"fraction of frames": "of frames"}


def measured(criterion: dict[str, Any]) -> str:
    """Return what a criterion measured, with its unit unless that is a fraction's."""
    from l2inv.domain.criteria import comparison

    _, unit = comparison(criterion["name"])
    found = criterion["measured"]
    is_plain = unit is None or unit in UNITS or found is None or isinstance(found, str)
    return value(found) if is_plain else f"{value(found)} {unit}"


def required(criterion: dict[str, Any]) -> str:
    """Return what a criterion requires: how the measured value must compare, with which value, in which unit."""
    from l2inv.domain.criteria import comparison

    sign, unit = comparison(criterion["name"])
    if criterion["required"] is None:
        return "-"
    words = (COMPARISONS.get(sign, sign), value(criterion["required"]), UNITS.get(unit or "", unit))
    return " ".join(word for word in words if word)


def margin(name: str, by: float | None) -> str:
    """Return by how much a criterion of that name passes (+) or fails (-), with its unit unless that is a fraction's."""
    from l2inv.domain.criteria import comparison

    _, unit = comparison(name)
    if by is None:
        return "-"
    if unit == "nm" and by < 0:
        return f"{-by:.4g} nm missing"
    return f"{by:+.6g}" + (f" {unit}" if unit not in UNITS else "")


def warning(found: dict[str, Any]) -> str:
    """Return a warning of verdicts.warnings as a sentence."""
    if found["warning"] == "narrow":
        return (
            f"{found['dataset_id']} is narrow in band {found['band']}: {found['below_nm']:.3g} nm below and "
            f"{found['above_nm']:.3g} nm above its center, less than {found['narrow_nm']:g} nm on a side"
        )
    return (
        f"createDate of {found['dataset_id']} lies in the future: {moment(found['create_date'])} UTC; "
        f"it counts as arrived when it was first seen, {moment(found['first_seen'])} UTC"
    )


def bands(op: dict[str, Any]) -> str:
    """Return the bands observed by an OP, the narrow ones marked so."""
    narrow = {found["band"] for found in op["warnings"] if found["warning"] == "narrow"}
    return ", ".join(f"{name} (narrow)" if name in narrow else name for name in op["bands"]) or "-"


def number(value: float | None, decimals: int = 0) -> str:
    """Return a number of so many decimals, or of three digits where it is small."""
    if value is None:
        return "-"
    return f"{value:.{decimals}f}" if decimals or abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def percent(fraction: float | None) -> str:
    """Return a fraction in percent, rounded down, so that only all is 100 %."""
    return "-" if fraction is None else f"{int(fraction * 100)}%"


def interval(low: float | None, high: float | None) -> str:
    """Return a range of numbers, one number where both read the same."""
    ends = dict.fromkeys(number(end) for end in (low, high) if end is not None)
    return "-".join(ends) or "-"


def spectral_line(name: str) -> str:
    """Return a spectral line's name in short: its wavelength only where nothing else tells it from others of its ion."""
    words, _, wavelength = name.partition(" (")
    named = len(words.split()) != 2 or not wavelength  # such as "Na I D1", "H alpha"
    return (
        words if (named and words != name) or not wavelength else f"{words} {wavelength.removesuffix(' nm)')}"
    )


def plural(number: int, noun: str) -> str:
    """Return a number of things: 1 OP, 2 OPs."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def seeing(op: dict[str, Any]) -> str:
    """Return the median Fried parameter of an OP in cm, and its word."""
    metres = op["fried_parameter_med_m"]
    return "unknown" if metres is None else f"{metres * 100:.1f} {op['r0_class']}"


def quartiles(op: dict[str, Any]) -> str:
    """Return the quartiles of an OP's Fried parameter in cm."""
    low, high = op["fried_parameter_p25_m"], op["fried_parameter_p75_m"]
    return "-" if low is None or high is None else f"{low * 100:.1f}-{high * 100:.1f}"


def field(op: dict[str, Any]) -> str:
    """Return the size of an OP's field in arcsec, to a decimal where it is thin."""
    x, y = op["field_x_arcsec"], op["field_y_arcsec"]
    return "-" if x is None or y is None else "x".join(f"{side:.{1 if side < 10 else 0}f}" for side in (x, y))


def centimetres(metres: float | None) -> str:
    return f"{metres * 100:.1f} cm" if metres is not None else "unknown"


def summary(report: dict[str, Any]) -> str:
    """Return a stage's report as the line that it ends with."""
    n, stage, seconds = report["ops"], report["stage"], f"{report['seconds']:.1f} s"
    match stage:
        case "scan":
            d = report["datasets"]
            return (
                f"scan: {d['seen']} records ({d['new']} new, {d['changed']} changed, {d['withdrawn']} withdrawn, "
                f"{d['quarantined']} quarantined), "
                f"{plural(n['seen'], 'OP')} ({n['new']} new, {n['changed']} changed), {seconds}"
            )
        case "qualify":
            outstanding = len(report.get("outstanding") or ())
            more = f" ({outstanding} with recipes outstanding)" if outstanding else ""
            return (
                f"qualify: {plural(n['judged'], 'OP')} judged ({n['invertible']} invertible, {n['not_invertible']} not), "
                f"{n['waiting']} waiting{more}, {n['unchanged']} unchanged, {n['failed']} failed, {seconds}"
            )
    jobs = report.get("jobs")
    more = f" ({jobs['submitted']} submitted, {jobs['running']} on the cluster already)" if jobs else ""
    return f"{stage}: {plural(n['done'], 'OP')} done, {n['failed']} failed, {n['skipped']} skipped{more}, {seconds}"


def run_ended(run: dict[str, Any]) -> str:
    """Return how a run of a stage ended: why it failed, or how long it took and what it counted."""
    result = run["result"] or {}
    if run["finished_at"] is None:
        return "runs, or was killed"
    if result.get("failed"):
        return f"failed: {result['failed']}"
    took = length((run["finished_at"] - run["started_at"]).total_seconds())
    counts = [
        f"{what} "
        + ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in counted.items() if number)
        for what, counted in result.items()
        if isinstance(counted, dict)
        and any(isinstance(number, int) and number for number in counted.values())
        and what in COUNTED
    ]
    return "; ".join([f"took {took}", *counts])


COUNTED = ("datasets", "ops", "jobs", "files")  # in a stage's report, each with its counts


def what_happened(event: dict[str, Any]) -> str:
    """Return one event as a phrase."""
    detail: dict[str, Any] = event["detail"]
    if event.get("voided_by"):  # it may say anything
        return f"void by event {event['voided_by']}"
    match event["kind"]:
        case "discovered":
            return f"with {count(detail.get('datasets', ()), 'dataset')}"
        case "datasets_changed":
            parts = [
                f"{count(detail[name], 'dataset')} {name}: {some(detail[name])}"
                for name in ("new", "changed", "left", "withdrawn")
                if detail.get(name)
            ]
            return "; ".join([*parts, *_changes(detail)])
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
            if "seconds" not in detail:
                return "nothing to run" + (f"; bundle in {detail['folder']}" if detail.get("folder") else "")
            return f"in {detail['seconds']:.1f} s, {count(detail.get('files', ()), 'file')} in {detail.get('folder')}"
        case "claimed" | "extended" | "resumed":
            named = ", ".join(one["inversion_id"] for one in detail.get("inversions", ()))
            return f"for {detail['assignee']}{_due(event)}{f', as {named}' if named else ''}{_reason(detail)}"
        case "handed_over" | "taken_over":
            return f"from {detail['from']} to {detail['assignee']}{_due(event)}{_reason(detail)}"
        case "put_on_hold" | "taken_off_hold":
            return str(detail.get("reason") or "")
        case "released":
            return f"by {detail['assignee']}{_reason(detail)}"
        case "inverted" | "amended":
            software = detail.get("software") or {}
            with_what = " ".join(str(v) for v in (software.get("name"), software.get("version")) if v)
            note = f": {detail['note']}" if detail.get("note") else ""
            outputs = count(detail["outputs"], "output")
            old = detail.get("accepted")
            accepted = f"; accepted {some(old['superseded'])} as superseded: {old['reason']}" if old else ""
            why = f"; corrected: {detail['amended_because']}" if detail.get("amended_because") else ""
            return f"{outputs}{f' with {with_what}' if with_what else ''} by {detail['inverted_by']}{note}{accepted}{why}"
        case "inversion_named":
            return f"{detail['inversion_id']} of {detail['instrument_program_id']}: the metadata store is told next{_reason(detail)}"
        case "inversion_created":
            late = f", of cycle {detail['cycle']}, which had ended" if detail.get("abandoned") else ""
            since = (
                f" since {moment(str(detail['create_date']))}" if _is_time(detail.get("create_date")) else ""
            )
            return f"{detail['inversion_id']} of {detail['instrument_program_id']}: the metadata store holds it{since}{late}"
        case "published":
            return "as " + ", ".join(i["inversion_id"] for i in detail["inversions"])
        case "reopened":
            return f"after cycle {detail['cycle']}{_reason(detail)}"
        case "withdrawn" | "reinstated":
            remaining = detail.get("remains")
            remaining = remaining if isinstance(remaining, list) else []
            left = [one for one in remaining if isinstance(one, dict) and one.get("record")]
            stays = "; the metadata store still holds " + ("it" if len(left) == 1 else "them") if left else ""
            return ", ".join(detail["inversion_ids"]) + _reason(detail) + stays
        case "transfer_started":
            return _transfer_started(detail)
        case "transferred":
            return _transferred(detail)
        case "cataloged":
            return _cataloged(detail)
        case "restored":
            return f"from {detail['file']}"
        case "voided":
            return f"event {detail['seq']}{_reason(detail)}"
        case "failed":
            return f"{detail['stage']}, attempt {detail['attempt']}: {detail['cause']}"
        case "retried":
            return f"{detail.get('stage')}, after attempt {detail.get('attempt')}"
    import json

    return json.dumps(detail, ensure_ascii=False)


def remains(one: dict[str, Any]) -> str:
    """Return what nobody takes back of an inversion that was withdrawn: where its record, its catalog entries and files are."""
    where = [
        "the metadata store still holds its record" if one["record"] else "",
        f"the catalog {plural(one['files'], 'file')} of it" if one["files"] else "",
        f"its files stay in {one['destination']}" if one["destination"] else "",
    ]
    said = ", ".join(filter(None, where))
    if not said:
        return f"{one['inversion_id']}: nothing of it was brought anywhere"
    return f"{one['inversion_id']}: {said}; l2inv cannot remove them"


def names(inversions: Iterable[dict[str, Any]]) -> list[str]:
    """Return a line for each inversion of the present cycle: its id, its instrument program, the folder for its files."""
    return [
        f"{one['inversion_id']} for {one['instrument_program_id']}: {one['folder'] or '(no proposal)'}/, "
        f"{one['asdf_file']}"
        for one in inversions
        if "asdf_file" in one
    ]


def _due(event: dict[str, Any]) -> str:
    """When a claim is due, with the hour where that is within a day of the event."""
    due_at = event["detail"].get("due_at")
    return f", due {due(due_at, event.get('recorded_at'))}" if due_at else ""


MOST_CHANGES = 6  # of one event, that are told in its line


def _changes(detail: dict[str, Any]) -> list[str]:
    """What became of the fields that somebody decides by, once for the datasets in which it is the same."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for dataset_id, fields in _items(detail.get("values")):
        for name, pair in _items(fields):
            if not isinstance(pair, list) or len(pair) != 2 or pair[0] == pair[1]:
                continue
            old, new = map(changed_value, pair)
            frames = fields.get("frame_count")
            of = (
                f" of {value(frames[-1])} frames"
                if name == "ao_locked" and isinstance(frames, list) and frames
                else ""
            )
            alike.setdefault((name, old, new + of), []).append(dataset_id)
    told = [f"{name} {old} -> {new} in {some(ids)}" for (name, old, new), ids in alike.items()]
    return told[:MOST_CHANGES] + (
        [f"{len(told) - MOST_CHANGES} more fields"] if len(told) > MOST_CHANGES else []
    )


def _items(found: object) -> Iterable[tuple[str, Any]]:
    """The items of what should be an object: the database does not look at what is in it."""
    return found.items() if isinstance(found, dict) else ()


def changed_value(found: object) -> str:
    """Return a field's value before or after a change, short enough for a line."""
    if isinstance(found, dict):
        return " ".join(f"{name} {value(part)}" for name, part in found.items() if part is not None) or "-"
    text = value(found)
    return text if len(text) <= 60 else text[:59] + "…"


def _is_time(text: object) -> bool:
    try:
        return datetime.fromisoformat(str(text)) is not None
    except ValueError:
        return False


# What the database does not hold to a shape may be anything: so the types of it are looked at below.


def _transfer_started(detail: dict[str, Any]) -> str:
    move, attempt = detail.get("move"), detail.get("attempt")
    to = ""
    if isinstance(move, dict):
        to = f" to {move.get('bucket')}/{move.get('destination')}, from {move.get('source')}"
    by = f", as job {detail['job']} ({detail.get('executor')})" if detail.get("job") else ""
    again = f", attempt {attempt}" if attempt not in (None, 1) else ""
    return f"{detail['inversion_id']}{to}{by}{again}"


def _transferred(detail: dict[str, Any]) -> str:
    number, size_bytes = detail.get("files"), detail.get("size_bytes")
    files = f": {plural(number, 'file')}" if isinstance(number, int) else ""
    files += f", {size(size_bytes)}" if files and isinstance(size_bytes, int) else ""
    to = f" in {detail['destination']}" if detail.get("destination") else ""
    compared = (
        ", compared there" if detail.get("compared") else ", not compared: the destination is not mounted"
    )
    return f"{detail['inversion_id']}{files}{to}{compared if 'compared' in detail else ''}"


def _cataloged(detail: dict[str, Any]) -> str:
    files = detail.get("files")
    count_ = f": the catalog confirmed {plural(len(files), 'file')}" if isinstance(files, list) else ""
    of = f" of {detail['of']}" if detail.get("of") else ""
    last = ", the last of them" if detail.get("whole") else ""
    by = f" (conversation {detail['conversation_id']})" if detail.get("conversation_id") else ""
    return f"{detail['inversion_id']}{count_}{of}{last}{by}"


def size(size_bytes: int) -> str:
    """Return a number of bytes in the unit that says enough of it, decimal as disks are sold."""
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= one:
            return f"{size_bytes / one:.3g} {unit}"
    return f"{size_bytes} bytes"


def _reason(detail: dict[str, Any]) -> str:
    return f": {detail['reason']}" if detail.get("reason") else ""


def verdict_line(verdict: dict[str, Any]) -> str:
    """Return a verdict in a line: which instrument programs, or which criteria stand against it."""
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
    if any(p["instrument_program_id"] is None for p in programs):
        words.append("datasets without an instrument program id")
    reason = "; ".join(words) if programs else "no dataset of a qualifying instrument"
    return ("undetermined" if verdict["undetermined"] else "not invertible") + f", {reason}"


def count(things: Sized, noun: str) -> str:
    return plural(len(things), noun)


def some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
