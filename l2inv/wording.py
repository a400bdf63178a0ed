"""Format values, times and events as one line of text each, without terminal control characters."""

import re
from collections.abc import Iterable, Mapping, Sized
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from l2inv.documents import Json

if TYPE_CHECKING:
    from l2inv.domain.op import MeasuredOp

# Control characters, and characters that hide or reorder their neighbors. None of them is printable.
_UNSAFE = r"[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"


def clean(value: object) -> str:
    """Return a value as one line of text, control characters escaped."""
    text = str(value)
    return text if text.isprintable() else re.sub(_UNSAFE, lambda found: f"\\u{ord(found[0]):04x}", text)


# Some descriptions have a literal backslash and n where a paragraph ends. \nu, \nabla, \ne and \not are TeX instead.
_PARAGRAPH_END = re.compile(r"\\n(?!(?:u|abla|eq?|ot)\b)|[\r\n]")


def paragraphs(text: str | None) -> list[str]:
    """Return the nonempty paragraphs of a text, each as one line."""
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
    if hasattr(value, "__struct_fields__"):
        from msgspec import to_builtins

        return to_builtins(value, builtin_types=(datetime,))
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def moment(value: datetime | str | None) -> str:
    """Return a time to the minute, in UTC."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return value.astimezone(UTC).isoformat(" ", "minutes")[:16] if value else "-"


def day(value: datetime | str | None) -> str:
    """Return the date of a time, in UTC."""
    return moment(value)[:10]


def due(value: datetime | str | None, now: datetime | None = None) -> str:
    """Return a due date; with its time where it is less than a day from now."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if value is None:
        return "-"
    is_near = abs((value - (now or datetime.now(UTC))).total_seconds()) < 86_400
    return f"{moment(value)} UTC" if is_near else day(value)


def length(seconds: float) -> str:
    """Return a duration rounded to one unit."""
    for unit, one, least in (("days", 86_400, 2), ("h", 3600, 2), ("min", 60, 1)):
        if seconds >= least * one:
            return f"{seconds / one:.0f} {unit}"
    return f"{seconds:.0f} s"


def bar(fraction: float, columns: int) -> str:
    """Return a fraction as a bar; any fraction above 0 has at least one character."""
    return "#" * max(round(fraction * columns), fraction > 0)


def value(measured: object) -> str:
    """Return a criterion's measured or required value, numbers with at most 6 digits."""
    if measured is None:
        return "-"
    if isinstance(measured, float):
        return f"{measured:.6g}"
    if isinstance(measured, list):
        return (
            " to ".join(map(value, measured))
            if len(measured) == 2 and all(isinstance(v, float) for v in measured)
            else ", ".join(map(value, measured))
        )
    return str(measured)


COMPARISONS = {">=": "≥", "contains": "contains"}
UNITS = {"fraction of frames": "of frames"}


def measured(criterion: Mapping[str, Any]) -> str:
    """Return a criterion's measured value; with its unit, except for fractions."""
    from l2inv.domain.criteria import comparison

    _, unit = comparison(criterion["name"])
    found = criterion["measured"]
    is_plain = unit is None or unit in UNITS or found is None or isinstance(found, str)
    return value(found) if is_plain else f"{value(found)} {unit}"


def required(criterion: Mapping[str, Any]) -> str:
    """Return a criterion's requirement: comparison, value and unit."""
    from l2inv.domain.criteria import comparison

    sign, unit = comparison(criterion["name"])
    if criterion["required"] is None:
        return "-"
    words = (COMPARISONS.get(sign, sign), value(criterion["required"]), UNITS.get(unit or "", unit))
    return " ".join(word for word in words if word)


def margin(name: str, by: float | None) -> str:
    """Return by how much a criterion passes (+) or fails (-); with its unit, except for fractions."""
    from l2inv.domain.criteria import comparison

    _, unit = comparison(name)
    if by is None:
        return "-"
    if unit == "nm" and by < 0:
        return f"{-by:.4g} nm missing"
    return f"{by:+.6g}" + (f" {unit}" if unit not in UNITS else "")


def warning(found: Json) -> str:
    """Return a warning of verdicts.warnings as a sentence."""
    if found["warning"] == "narrow":
        return (
            f"{found['dataset_id']} is narrow in band {found['band']}: {found['below_nm']:.3g} nm below and "
            f"{found['above_nm']:.3g} nm above its center, less than {found['narrow_nm']:g} nm on a side"
        )
    return (
        f"createDate of {found['dataset_id']} is in the future: {moment(found['create_date'])} UTC; "
        f"it counts as arrived when it was first seen, {moment(found['first_seen'])} UTC"
    )


def number(value: float | None, decimals: int = 0) -> str:
    """Return a number with that many decimals; with three digits where it is small."""
    if value is None:
        return "-"
    return f"{value:.{decimals}f}" if decimals or abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def percent(fraction: float | None) -> str:
    """Return a fraction in percent, rounded down: 100% means all."""
    return "-" if fraction is None else f"{int(fraction * 100)}%"


def interval(low: float | None, high: float | None) -> str:
    """Return a range of numbers; one number where both are formatted alike."""
    ends = dict.fromkeys(number(end) for end in (low, high) if end is not None)
    return "-".join(ends) or "-"


def spectral_line(name: str) -> str:
    """Return a spectral line's short name, with the wavelength only where the ion has no other name for the line."""
    words, _, wavelength = name.partition(" (")
    named = len(words.split()) != 2 or not wavelength  # such as "Na I D1", "H alpha"
    return (
        words if (named and words != name) or not wavelength else f"{words} {wavelength.removesuffix(' nm)')}"
    )


def plural(number: int, noun: str) -> str:
    """Return a number of things: 1 OP, 2 OPs."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def seeing(op: "MeasuredOp") -> str:
    """Return the median Fried parameter of an OP in cm, and its class."""
    median_m = op["fried_parameter_med_m"]
    return "unknown" if median_m is None else f"{median_m * 100:.1f} {op['r0_class']}"


def quartiles(op: "MeasuredOp") -> str:
    """Return the quartiles of an OP's Fried parameter in cm."""
    low, high = op["fried_parameter_p25_m"], op["fried_parameter_p75_m"]
    return "-" if low is None or high is None else f"{low * 100:.1f}-{high * 100:.1f}"


def field(op: "MeasuredOp") -> str:
    """Return the size of an OP's field in arcsec; sides below 10 arcsec with one decimal."""
    x, y = op["field_x_arcsec"], op["field_y_arcsec"]
    return "-" if x is None or y is None else "x".join(f"{side:.{1 if side < 10 else 0}f}" for side in (x, y))


def centimeters(length_m: float | None) -> str:
    return f"{length_m * 100:.1f} cm" if length_m is not None else "unknown"


def summary(report: Json) -> str:
    """Return a stage's closing line."""
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
    more = f" ({jobs['submitted']} submitted, {jobs['running']} already on the cluster)" if jobs else ""
    return f"{stage}: {plural(n['done'], 'OP')} done, {n['failed']} failed, {n['skipped']} skipped{more}, {seconds}"


def run_ended(run: Json) -> str:
    """Return how a run of a stage ended: why it failed, or its duration and counts."""
    result = run["result"] or {}
    if run["finished_at"] is None:
        return "running, or killed"
    if result.get("failed"):
        return f"failed: {result['failed']}"
    seconds = (run["finished_at"] - run["started_at"]).total_seconds()
    took = length(seconds) if seconds >= 10 else f"{seconds:.1f} s"
    counts = [
        f"{'OPs' if what == 'ops' else what}: "
        + ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in counted.items() if number)
        for what, counted in result.items()
        if isinstance(counted, dict)
        and any(isinstance(number, int) and number for number in counted.values())
        and what in COUNTED
    ]
    return "; ".join([f"took {took}", *counts])


COUNTED = ("datasets", "ops", "jobs", "files")  # in a stage's report, each with its counts


def what_happened(event: Json) -> str:
    """Return one event as a phrase."""
    detail: Json = event["detail"]
    if event.get("voided_by"):  # its detail may be anything
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
            return f"{is_now}, by decision: {detail['reason']}"
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
            first, *more = [str(output["uri"]) for output in detail["outputs"]] or ["no output"]
            outputs = first + (f" and {count(more, 'more output')}" if more else "")
            old = detail.get("accepted")
            accepted = f"; accepted {some(old['superseded'])} as superseded: {old['reason']}" if old else ""
            why = f"; corrected: {detail['amended_because']}" if detail.get("amended_because") else ""
            return f"{outputs}{f' with {with_what}' if with_what else ''} by {detail['inverted_by']}{note}{accepted}{why}"
        case "inversion_named":
            return f"{detail['inversion_id']} of {detail['instrument_program_id']}: to be created in the metadata store next{_reason(detail)}"
        case "inversion_created":
            late = f", of cycle {detail['cycle']}, which had ended" if detail.get("abandoned") else ""
            since = (
                f" since {moment(str(detail['create_date']))}" if _is_time(detail.get("create_date")) else ""
            )
            return f"{detail['inversion_id']} of {detail['instrument_program_id']}: in the metadata store{since}{late}"
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


def remains(one: Json) -> str:
    """Return what remains of a withdrawn inversion: its record, its catalog entries and its files."""
    where = [
        "the metadata store still holds its record" if one["record"] else "",
        f"the catalog still lists {plural(one['files'], 'file')}" if one["files"] else "",
        f"its files stay in {one['destination']}" if one["destination"] else "",
    ]
    remaining = ", ".join(filter(None, where))
    if not remaining:
        return f"{one['inversion_id']}: nothing remains elsewhere"
    return f"{one['inversion_id']}: {remaining}; l2inv cannot remove that"


def names(inversions: Iterable[Json]) -> list[str]:
    """Return a line for each inversion of the present cycle: its id, its instrument program, the names for its files."""
    return [
        f"{one['inversion_id']} for {one['instrument_program_id']}: files in {one['folder'] or '(no proposal)'}/, "
        f"metadata in {one['asdf_file']}"
        for one in inversions
        if "asdf_file" in one
    ]


def _due(event: Json) -> str:
    """Return when a claim is due; with the time where that is less than a day from the event."""
    due_at = event["detail"].get("due_at")
    return f", due {due(due_at, event.get('recorded_at'))}" if due_at else ""


MOST_CHANGES = 6  # printed in the line of one event
LONGEST = 60  # characters of a value in a line


def _changes(detail: Json) -> list[str]:
    """Return the changes of fields that matter to a decision; datasets with the same change share a phrase."""
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
    changes = [f"{name} {old} -> {new} in {some(ids)}" for (name, old, new), ids in alike.items()]
    more = len(changes) - MOST_CHANGES
    return changes[:MOST_CHANGES] + ([f"{more} more fields"] if more > 0 else [])


def _items(found: object) -> Iterable[tuple[str, Any]]:
    """Return the items of an object, none if it is something else: the database does not check what a detail holds."""
    return found.items() if isinstance(found, dict) else ()


def changed_value(found: object) -> str:
    """Return a field's value before or after a change, short enough for a line."""
    if isinstance(found, dict):
        return " ".join(f"{name} {value(part)}" for name, part in found.items() if part is not None) or "-"
    return short(value(found))


def short(text: str) -> str:
    """Return a text, cut if it is too long to be repeated in a line."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def quoted(text: str) -> str:
    """Return what somebody typed, in quotes, cut if it is too long to be repeated in a line."""
    return repr(short(text))


def _is_time(text: object) -> bool:
    try:
        return datetime.fromisoformat(str(text)) is not None
    except ValueError:
        return False


# The database does not check the shape of these details, so their types are checked here.


def _transfer_started(detail: Json) -> str:
    move, attempt = detail.get("move"), detail.get("attempt")
    to = ""
    if isinstance(move, dict):
        to = f" to {move.get('bucket')}/{move.get('destination')}, from {move.get('source')}"
    by = f", as job {detail['job']} ({detail.get('executor')})" if detail.get("job") else ""
    again = f", attempt {attempt}" if attempt not in (None, 1) else ""
    return f"{detail['inversion_id']}{to}{by}{again}"


def _transferred(detail: Json) -> str:
    number, size_bytes = detail.get("files"), detail.get("size_bytes")
    files = f": {plural(number, 'file')}" if isinstance(number, int) else ""
    files += f", {size(size_bytes)}" if files and isinstance(size_bytes, int) else ""
    to = f" in {detail['destination']}" if detail.get("destination") else ""
    compared = (
        ", compared there" if detail.get("compared") else ", not compared: the destination is not mounted"
    )
    return f"{detail['inversion_id']}{files}{to}{compared if 'compared' in detail else ''}"


def _cataloged(detail: Json) -> str:
    files = detail.get("files")
    count_ = f": the catalog confirmed {plural(len(files), 'file')}" if isinstance(files, list) else ""
    of = f" of {detail['of']}" if detail.get("of") else ""
    last = ", the last of them" if detail.get("whole") else ""
    by = f" (conversation {detail['conversation_id']})" if detail.get("conversation_id") else ""
    return f"{detail['inversion_id']}{count_}{of}{last}{by}"


def size(size_bytes: int) -> str:
    """Return a size in decimal units."""
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= one:
            return f"{size_bytes / one:.3g} {unit}"
    return f"{size_bytes} bytes"


def _reason(detail: Json) -> str:
    return f": {detail['reason']}" if detail.get("reason") else ""


def verdict_line(verdict: Mapping[str, Any]) -> str:
    """Return a verdict as a line: the invertible instrument programs, or the criteria that did not pass."""
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
