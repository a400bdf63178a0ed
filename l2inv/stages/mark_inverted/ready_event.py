"""Science's ready event: what was inverted, with what, and where the outputs are; checked before it is recorded."""

import json
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from l2inv.config import yamlfile
from l2inv.config.settings import Publish
from l2inv.config.yamlfile import Must, like
from l2inv.database.connection import Connection
from l2inv.documents import Json
from l2inv.domain import lines
from l2inv.errors import Refused, WrongProducts
from l2inv.queries import delivered
from l2inv.record import event_log, issued
from l2inv.services import outputs
from l2inv.stages.mark_inverted import used
from l2inv.stages.mark_inverted.used import Used

MOST_MISTAKES = 20  # named of one file
CLOCKS_DIFFER = timedelta(minutes=5)

Text = Annotated[str, like(r"(?=.*\S)[^\0\ud800-\udfff]*", "text that is not blank")]
_URIS_ONCE = Must(lambda found: len({o.uri for o in found}) == len(found), "names a URI twice")
_CREDIBLE = Must(lambda time: 2000 <= time.year < 3000, "must be a time between the years 2000 and 3000")

# The beginning of a URI, or of a location as in Globus's commands: ENDPOINT:/FOLDER/.
_LOCATION = re.compile(r"(?:[a-z0-9][a-z0-9+.-]*:|/)(?=\S)", re.IGNORECASE)
_ASDF_KEY = re.compile(r"(?!(?:.*/)?\.{0,2}/).+\.asdf", re.DOTALL)


class Output(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A file or folder of the inversion, where science put it."""

    uri: Text
    size_bytes: Annotated[int, Meta(ge=0)] | None = None
    sha256: Annotated[str, like("[0-9a-fA-F]{64}", "64 hexadecimal digits")] | None = None


class Software(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The inversion code; its version may be a commit."""

    name: Text
    version: Text | None = None


class Inverted(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What was inverted of one instrument program, where there are several."""

    instrument_program_id: Text
    inversion_id: Text | None = None  # null: the one that was issued when the work began
    datasets: list[Text] | None = None  # null: its qualifying ones
    outputs: Annotated[list[Output], _URIS_ONCE] = []
    lines: list[Text] = []
    asdf_object_key: Text | None = None  # null: by the convention, from the inversion's id


class Ready(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Science's ready event: what was inverted, with what, and where the outputs are."""

    op_id: Text
    inversion_id: Text | None = None  # null: the one that was issued when the work began
    instrument_programs: list[Text] | None = None  # null: those that the verdict found invertible
    datasets: list[Text] | None = None  # null: the qualifying ones of those
    software: Software | None = None
    outputs: Annotated[list[Output], _URIS_ONCE] = []
    lines: list[Text] = []
    asdf_object_key: Text | None = None
    inversions: list[Inverted] | None = None  # in place of those above, for several instrument programs
    inverted_by: Text | None = None
    inverted_at: Annotated[datetime, _CREDIBLE] | None = None  # UTC where it names no offset
    note: Text | None = None


def read(content: bytes, name: str) -> Ready:
    """Return the ready event in the content of a ready file of that name. Raise Refused with every mistake in it."""
    if name.endswith(".json"):
        content = _ESCAPES.sub(_as_yaml, content)
    ready, mistakes = yamlfile.read(Ready, content, Path(), env=None)
    if mistakes:
        more = len(mistakes) - MOST_MISTAKES
        named = mistakes[:MOST_MISTAKES] + ([f"and {more} more"] if more > 0 else [])
        raise Refused(f"{name}: {'; '.join(named)}", "fix the file")
    return ready


_ESCAPES = re.compile(rb"\\(?:u(d[89ab][0-9a-f]{2})\\ud[c-f][0-9a-f]{2}|.)", re.IGNORECASE | re.DOTALL)


def _as_yaml(escape: re.Match[bytes]) -> bytes:
    """Decode pairs of surrogates, by which JSON escapes characters beyond the first 65,536 and YAML does not."""
    if escape[1] is None:  # any other escape stays
        return escape[0]
    character: str = json.loads(b'"%s"' % escape[0])
    return character.encode()


def mark_inverted(
    connection: Connection,
    ready: Ready,
    actor: str,
    now: datetime,
    *,
    publish: Publish | None = None,
    amends: event_log.Present | None = None,
    amended_because: str | None = None,
    accepted_because: str | None = None,
    for_holder: bool = False,
    file_sha256: str | None = None,
    run_id: int | None = None,
    progress: Callable[[int, int], None] = lambda done_mb, of_mb: None,
    warn: Callable[[str], None] = lambda text: None,
) -> bool:
    """Record science's ready event for an OP that the actor holds. Return False if the same one was recorded before.

    Outputs that are mounted (publish.mounts) are compared with the event, and products among them are checked; `warn`
    gets the reason if they are not. Each inversion gets the id that was issued when the work began, or a new one if its
    instrument program was not to be inverted then. The reason for accepting superseded datasets is recorded with them.

    With `for_holder`, the actor records on behalf of the holder: `inverted_by`, or else the OP's assignee. `amends` is the
    state of an inverted OP whose ready event this one corrects; it must not have changed since.

    A ready file is identified by its SHA-256, also in later cycles of the OP: it is not recorded again unless the OP was
    unmarked since.

    Raise Refused if somebody else holds the OP or its state does not allow the event; if the event names another
    inversion id, an instrument program or dataset that is not the OP's, a line that its datasets did not observe, a time
    before the observation, no software with a version, or no output; if a dataset was superseded and that is not
    accepted; and if a mounted output differs. Raise WrongProducts with the findings, and L2invError if a mount is missing.
    """

    kind: Literal["amended", "inverted"] = "amended" if amends else "inverted"
    state: Literal["inverted"] | None = None if amends else "inverted"

    def checked() -> tuple[event_log.Present, Json] | None:
        present = event_log.locked(connection, ready.op_id)
        if amends and present.seq != amends.seq:
            raise Refused(
                f"OP {present.op_id} changed meanwhile", f"see: l2inv history {present.op_id}; try again"
            )
        holder = (ready.inverted_by or present.assignee or actor) if for_holder or amends else actor
        if amends and ready.inverted_by not in (None, present.assignee):
            raise Refused(
                f"OP {present.op_id} was inverted by {present.assignee}, not by {ready.inverted_by}",
                "leave inverted_by out",
            )
        if present.state == "working" and ready.inverted_by not in (None, present.assignee):
            event_log.must_hold(present, ready.inverted_by or actor)
        given = _given(ready, ready.inverted_by or holder)
        if _is_recorded(connection, present, given) or _was_read(connection, present.op_id, file_sha256):
            return None
        event_log.must_hold(present, holder)
        event_log.must_allow(present, kind, state)
        return present, _detail(connection, ready, given, now, accepted_because)

    publish = publish or Publish(check_products=False)
    mounts = publish.mounts
    # Reading the outputs takes long and must not hold a lock on a row, so the event is checked before and after it.
    with connection.transaction():
        first = checked()
        if first is None:
            return False
    parts = [ready, *(ready.inversions or ())]
    plain = [output for one in parts for output in msgspec.to_builtins(one.outputs)]
    if wrong := outputs.problems(plain, mounts):
        raise Refused(
            f"OP {ready.op_id}: outputs: {'; '.join(wrong)}", "fix what is named, or the ready event"
        )
    products_checked = _check_products(connection, publish, ready.op_id, first[1], progress, warn)
    with connection.transaction():
        again = checked()
        if again is None:
            return False
        present, detail = again
        if file_sha256:
            detail["file_sha256"] = file_sha256
        if looked_at := [o["uri"] for o in plain if outputs.mounted(o["uri"], mounts)]:
            detail["outputs_checked"] = looked_at
        if products_checked:
            detail["products_checked"] = products_checked
        if amended_because:
            detail["amended_because"] = amended_because
        event_log.add_one(connection, present, kind, state, actor, detail, run_id)
    return True


def _check_products(
    connection: Connection,
    publish: Publish,
    op_id: str,
    detail: Json,
    progress: Callable[[int, int], None],
    warn: Callable[[str], None],
) -> list[str]:
    """Return the inversions whose products were checked. Raise WrongProducts if any is wrong.

    An inversion that gets its id with this event has no files under that id yet.
    """
    named = {one.inversion_id for one in issued.of_cycle(connection, op_id)}
    inversions = [
        delivered.Inversion(
            one["inversion_id"],
            one["instrument_program_id"],
            one["datasets"],
            one["outputs"],
            one["asdf_object_key"],
        )
        for one in detail["inversions"]
        if one["inversion_id"] in named and one["outputs"]
    ]
    try:
        found = delivered.check(connection, publish, op_id, inversions, progress)
    except delivered.Scattered as problem:
        warn(f"products are not checked: {problem}")
        return []
    if found.wrong:
        raise WrongProducts(
            f"OP {op_id}: {found.wrong}", f"fix the files; for all findings: l2inv check {op_id}"
        )
    if found.why_not:
        warn(found.why_not)
    return found.inversion_ids


def _given(ready: Ready, inverted_by: str) -> Json:
    """Return a ready event as it is recorded, without defaults."""
    each = ready.inversions
    if each is not None:
        _must_be_separate(ready, each)
    parts: Sequence[Ready | Inverted] = [ready] if each is None else each
    given = {
        "software": _software(ready.software),
        "outputs": [output for one in parts for output in _plain(one.outputs)],
        "lines": list(dict.fromkeys(line for one in parts for line in one.lines)),
        "asdf_object_key": ready.asdf_object_key,
        "inverted_by": inverted_by,
        "note": ready.note,
    }
    if each is not None:
        given["instrument_programs"] = sorted(one.instrument_program_id for one in each)
        given["inversions"] = [_given_of(one) for one in each]
        if all(one.datasets is not None for one in each):
            given["datasets"] = sorted({d for one in each for d in one.datasets or ()})
    if ready.instrument_programs is not None:
        given["instrument_programs"] = sorted(set(ready.instrument_programs))
    if ready.datasets is not None:
        given["datasets"] = sorted(set(ready.datasets))
    if ready.inverted_at is not None:
        at = ready.inverted_at
        in_utc = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
        given["inverted_at"] = msgspec.to_builtins(in_utc)
    return given


def _must_be_separate(ready: Ready, each: Sequence[Inverted]) -> None:
    beside = ("inversion_id", "instrument_programs", "datasets", "outputs", "lines", "asdf_object_key")
    if both := [name for name in beside if getattr(ready, name)]:
        raise Refused(
            f"OP {ready.op_id}: inversions replaces {', '.join(both)}", "name these in each of the inversions"
        )
    programs = [one.instrument_program_id for one in each]
    if not each or len(set(programs)) < len(programs):
        raise Refused(
            f"OP {ready.op_id}: inversions must name each instrument program once, not {used.named(programs) or 'none'}",
            "fix the ready event",
        )


def _given_of(one: Inverted) -> Json:
    """Return one instrument program's part of a ready event, without defaults."""
    given: Json = {
        "instrument_program_id": one.instrument_program_id,
        "outputs": _plain(one.outputs),
    }
    for name in ("inversion_id", "asdf_object_key"):
        given |= {name: value} if (value := getattr(one, name)) else {}
    given |= {"lines": list(dict.fromkeys(one.lines))}
    return given | ({"datasets": sorted(set(one.datasets))} if one.datasets is not None else {})


def _plain(given: Sequence[Output]) -> list[Json]:
    return [
        o | {"sha256": o["sha256"].lower()} if "sha256" in o else o for o in msgspec.to_builtins(list(given))
    ]


def _software(software: Software | None) -> Json | None:
    """Return the software as it is recorded; a version that looks like a Git commit is also recorded as `commit`."""
    if software is None:
        return None
    is_commit = re.fullmatch(r"(?=.*[0-9])[0-9a-f]{7,40}", software.version or "")
    found: Json = msgspec.to_builtins(software)
    return found | ({"commit": software.version} if is_commit else {})


def _is_recorded(connection: Connection, present: event_log.Present, given: Json) -> bool:
    """Return whether this cycle's ready event is the same, ignoring what is left to its default."""
    recorded = event_log.newest(connection, present.op_id, "inverted", "amended")
    if recorded is None or (present.state_before_error or present.state) not in ("inverted", "published"):
        return False
    each = {one["instrument_program_id"]: one for one in recorded.get("inversions", ())}
    for one in given.get("inversions", ()):
        was = each.get(one["instrument_program_id"], {})
        if was | one != was:
            return False
    flat = {name: value for name, value in given.items() if name != "inversions"}
    recorded = recorded | {
        name: sorted(recorded[name], key=str) for name in ("instrument_programs", "datasets")
    }
    return recorded | flat == recorded


def _was_read(connection: Connection, op_id: str, file_sha256: str | None) -> bool:
    """Return whether a ready file was recorded before. After `unmark`, it may be recorded again."""
    row = connection.execute(
        """
        select exists (select from l2inv.event where op_id = %(op)s and kind = 'inverted'
                           and detail ->> 'file_sha256' = %(file)s)
               and (select kind from l2inv.history
                    where op_id = %(op)s and kind in ('inverted', 'resumed', 'reopened') and voided_by is null
                    order by seq desc limit 1) <> 'resumed' as was_read
        """,
        {"op": op_id, "file": file_sha256},
    ).fetchone()
    return bool(row and row["was_read"])


def _detail(
    connection: Connection, ready: Ready, given: Json, now: datetime, accepted_because: str | None
) -> Json:
    """Return the event's detail: what was given, with defaults from the newest verdict."""
    op_id = ready.op_id
    judged = event_log.newest(connection, op_id, "judged") or {}
    chosen = given.get("instrument_programs", event_log.invertible_programs(connection, op_id))
    own = {
        d: one["instrument_program_id"]
        for one in given.get("inversions", ())
        for d in one.get("datasets", ())
    }
    named = set(own.values())
    qualifying = {
        criterion["dataset_id"]
        for program in judged.get("verdict", {}).get("instrument_programs", [])
        if program["instrument_program_id"] in chosen and program["instrument_program_id"] not in named
        for criterion in program["criteria"]
    }
    datasets = given.get("datasets", sorted({*qualifying, *own} - {None}))
    known = used.datasets(connection, op_id)
    program_of = {one.dataset_id: one.instrument_program_id for one in known}
    used.must_be_the_ops(connection, op_id, chosen, datasets, program_of)
    superseded = used.superseded(connection, op_id, [one for one in known if one.dataset_id in datasets])
    if superseded and accepted_because is None:
        words = "; ".join(f"dataset {dataset}: {why}" for dataset, why in superseded.items())
        raise Refused(
            f"OP {op_id}: {words}",
            "invert the new data, or name the datasets used; if it is good anyway, as the holder: "
            "l2inv mark-inverted … --accept-superseded --reason WHY",
        )
    defaults = {"inverted_at": msgspec.to_builtins(now), "criteria_version": judged.get("criteria_version")}
    named_ones = {"instrument_programs": chosen, "datasets": {d: program_of[d] for d in datasets}}
    detail = defaults | given | named_ones
    of_event = [one for one in known if one.dataset_id in datasets]
    _must_be_credible(op_id, detail, of_event, now)
    detail["inversions"] = _inversions(connection, ready, detail, of_event)
    if superseded:
        detail["accepted"] = {"superseded": superseded, "reason": accepted_because}
    return detail


def _must_be_credible(op_id: str, detail: Json, datasets: Sequence[Used], now: datetime) -> None:
    """Raise Refused with everything that is missing from a ready event or cannot be true."""
    software, at = detail["software"], datetime.fromisoformat(detail["inverted_at"])
    ends = [one.end_time or one.start_time for one in datasets]
    observed = max((end for end in ends if end), default=None)
    wrong = []
    if not software:
        wrong.append("no software is named (--software, --software-version)")
    elif not software.get("version"):
        wrong.append(f"software {software['name']} is named without its version (--software-version)")
    each = detail.get("inversions") or [detail]
    without = [one.get("instrument_program_id", "") for one in each if not one["outputs"]]
    wrong += [
        f"output {output['uri']!r} is neither a URI, such as globus://ENDPOINT/FOLDER/, nor an absolute path"
        for one in each
        for output in one["outputs"]
        if not _LOCATION.match(output["uri"])
    ]
    keys = {detail["asdf_object_key"], *(one.get("asdf_object_key") for one in each)} - {None}
    wrong += [
        f"asdf_object_key {key!r} names no *.asdf file, such as PROPOSAL/FOLDER/NAME.asdf"
        for key in sorted(keys)
        if not _ASDF_KEY.fullmatch(key)
    ]
    if without:
        wrong.append(f"no output is named{' of ' * any(without)}{used.named(without)} (--output)")
    if at > now + CLOCKS_DIFFER:
        wrong.append(f"inverted_at {detail['inverted_at']} is in the future")
    if observed and at < observed:
        wrong.append(
            f"inverted_at {detail['inverted_at']} is before the end of the observation, {observed:%Y-%m-%dT%H:%M:%SZ}"
        )
    for one in each:
        program = one.get("instrument_program_id")
        own = [d for d in datasets if program in (None, d.instrument_program_id)]
        observed_lines = {name for d in own for name in d.lines or ()}
        wrong += lines.mistakes(one["lines"], observed_lines, [d.range_nm for d in own])
    if wrong:
        raise Refused(f"OP {op_id}: {'; '.join(wrong)}", "fix the ready file or the options")


def _inversions(connection: Connection, ready: Ready, detail: Json, datasets: Sequence[Used]) -> list[Json]:
    """Return each inversion with its id, what was given for it or for all, and its defaults."""
    op_id = ready.op_id
    ids = issued.issue(connection, op_id, detail["instrument_programs"])
    if len(ids) > 1 and (both := [n for n in ("inversion_id", "asdf_object_key") if getattr(ready, n)]):
        raise Refused(
            f"OP {op_id}: {' and '.join(both)} is for one inversion, but there are {len(ids)}",
            "name each instrument program under inversions",
        )
    given = {one["instrument_program_id"]: one for one in detail.get("inversions", ())}
    folders = {one.inversion_id: re.compile(f"inv[_.]{one.inversion_id[4:]}", re.IGNORECASE) for one in ids}
    found = []
    for one in ids:
        inversion_id, program = one.inversion_id, one.instrument_program_id
        mine = given.get(program, {})
        if other := mine.get("inversion_id", ready.inversion_id):
            issued.must_be_issued(op_id, other, inversion_id)
        own = [d for d in datasets if d.instrument_program_id == program]
        ranges = [d.range_nm for d in own]
        listed = {name for d in own for name in d.lines or ()}
        proposal = next((d.proposal_id for d in own if d.proposal_id), None)
        others = [folder for other_id, folder in folders.items() if other_id != inversion_id]
        found.append(
            {
                "inversion_id": inversion_id,
                "instrument_program_id": program,
                "datasets": sorted(d.dataset_id for d in own),
                "outputs": mine.get(
                    "outputs",
                    [o for o in detail["outputs"] if not any(folder.search(o["uri"]) for folder in others)],
                ),
                "lines": mine.get(
                    "lines", [line for line in detail["lines"] if not lines.mistakes([line], listed, ranges)]
                ),
                "asdf_object_key": mine.get("asdf_object_key")
                or detail["asdf_object_key"]
                or issued.asdf_object_key(proposal, inversion_id),
            }
        )
    return found
