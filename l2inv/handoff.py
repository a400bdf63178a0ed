"""Science's ready event: what was inverted, with what, and where it lies; checked before it is recorded."""

from datetime import datetime
from typing import Any

import msgspec

from l2inv import record
from l2inv.database import Connection
from l2inv.errors import Refused
from l2inv.science import must_hold


class Output(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A file or folder of the inversion, where science put it."""

    uri: str
    size_bytes: int | None = None
    sha256: str | None = None


class Software(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The inversion code."""

    name: str
    version: str | None = None


class Ready(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Science's ready event: what was inverted, with what, and where it lies."""

    op_id: str
    instrument_programs: list[str] | None = None  # null: those that the verdict found invertible
    datasets: list[str] | None = None  # null: the qualifying ones of those
    software: Software | None = None
    outputs: list[Output] = []
    lines: list[str] = []
    asdf_object_key: str | None = None
    inverted_by: str | None = None
    inverted_at: datetime | None = None
    note: str | None = None


def mark_inverted(connection: Connection, ready: Ready, actor: str, now: datetime) -> bool:
    """Takes science's ready event for an OP that the actor holds. False if just this was said before.

    Raises Refused when another holds the OP, its state does not allow it, or the event names an instrument program
    or dataset that is not the OP's.
    """
    with connection.transaction():
        present = record.locked(connection, ready.op_id)
        detail = _inverted(connection, present, ready, actor, now)
        if present.state in ("inverted", "published") and _same(
            record.newest(connection, present.op_id, "inverted"), detail, ready
        ):
            return False
        must_hold(present, actor)
        record.add_one(connection, present, "inverted", "inverted", actor, detail)
    return True


def _inverted(
    connection: Connection, present: record.Present, ready: Ready, actor: str, now: datetime
) -> dict[str, Any]:
    """The event's detail: the ready event with its defaults filled in from the newest verdict."""
    judged = record.newest(connection, present.op_id, "judged") or {}
    programs = judged.get("verdict", {}).get("instrument_programs", [])
    invertible = record.invertible_programs(connection, present.op_id)
    rows = connection.execute(
        "select dataset_id, instrument_program_id from l2inv.dataset where op_id = %s "
        "and not withdrawn order by dataset_id",
        [present.op_id],
    ).fetchall()
    program_of = {row["dataset_id"]: row["instrument_program_id"] for row in rows}
    chosen = ready.instrument_programs if ready.instrument_programs is not None else invertible
    _must_be_known("instrument program", chosen, set(program_of.values()), present.op_id)
    qualifying = {c["dataset_id"] for p in programs for c in p["criteria"]} & {
        d for d, program in program_of.items() if program in chosen
    }
    datasets = ready.datasets if ready.datasets is not None else sorted(qualifying)
    _must_be_known("dataset", datasets, set(program_of), present.op_id)
    stray = sorted(d for d in datasets if program_of[d] not in chosen)
    if stray:
        raise Refused(
            f"OP {present.op_id}: {', '.join(stray)} is in none of the instrument programs {', '.join(chosen)}",
            "name its instrument program too: --instrument-program",
        )
    without = (
        sorted(set(chosen) - {program_of[d] for d in datasets})
        if chosen
        else ["it has none that is invertible"]
    )
    if without:
        raise Refused(
            f"OP {present.op_id}: no dataset of an instrument program is named: {', '.join(without)}",
            "name them: --instrument-program and --dataset",
        )
    at = ready.inverted_at or now
    return {
        "instrument_programs": chosen,
        "datasets": {d: program_of[d] for d in datasets},
        "software": msgspec.to_builtins(ready.software),
        "outputs": msgspec.to_builtins(ready.outputs),
        "lines": ready.lines,
        "asdf_object_key": ready.asdf_object_key,
        "inverted_by": ready.inverted_by or actor,
        "inverted_at": msgspec.to_builtins(at),
        "note": ready.note,
        "criteria_version": judged.get("criteria_version"),
    }


def _must_be_known(what: str, named: list[str], known: set[str], op_id: str) -> None:
    unknown = sorted(set(named) - known)
    if unknown:
        raise Refused(f"OP {op_id} has no {what} {', '.join(unknown)}", f"see: l2inv show {op_id}")


def _same(said: dict[str, Any] | None, detail: dict[str, Any], ready: Ready) -> bool:
    """Whether an earlier ready event said the same; the time counts only where science gave one."""
    if said is None:
        return False
    given = detail if ready.inverted_at else detail | {"inverted_at": said["inverted_at"]}
    return said == given
