"""Inversion ids, issued when work on an inversion begins, and the names derived from them."""

import secrets
import string
from collections.abc import Iterable, Sequence

import msgspec
from psycopg.types.json import Jsonb

from l2inv.database.connection import Connection
from l2inv.errors import Refused

_ALPHABET = string.ascii_uppercase + string.digits


class Issued(msgspec.Struct, frozen=True):
    """The id that was issued for the inversion of an instrument program."""

    instrument_program_id: str
    inversion_id: str


class Named(Issued, frozen=True):
    """An issued id, and the names derived from it: null without a proposal."""

    folder: str | None
    frame_files: str
    asdf_file: str
    asdf_object_key: str | None


def new_inversion_id() -> str:
    """Return a random id in the store's convention: `inv.` and six of A-Z and 0-9."""
    return "inv." + "".join(secrets.choice(_ALPHABET) for _ in range(6))


def issue(connection: Connection, op_id: str, programs: Iterable[str | None]) -> list[Issued]:
    """Return an inversion id for each instrument program: its id in this cycle, or a new one.

    Record them in the same transaction: until it ends, nobody else can draw the same id. The OP must be locked
    before: no other lock may be taken after this one. A program without an id of its own gets none.
    """
    present = {one.instrument_program_id: one.inversion_id for one in of_cycle(connection, op_id)}
    wanted = [program for program in programs if program]
    if not set(wanted) <= present.keys():
        connection.execute("select from l2inv.lock where name = 'issue' for update")
    drawn: set[str] = set()
    for program in wanted:
        if program not in present:
            present[program] = _unused(connection, drawn)
            drawn.add(present[program])
    return [Issued(program, present[program]) for program in dict.fromkeys(wanted)]


def _unused(connection: Connection, drawn: set[str]) -> str:
    while True:
        inversion_id = new_inversion_id()
        if inversion_id not in drawn and owner(connection, inversion_id) is None:
            return inversion_id


def of_cycle(connection: Connection, op_id: str) -> list[Issued]:
    """Return the ids issued in an OP's present cycle, sorted by instrument program.

    A release keeps them. An inversion that `adopt` recorded under another id has that id.
    """
    rows = connection.execute(
        """
        with of_cycle as (
            select seq, kind, detail from l2inv.history
            where op_id = %(op)s and voided_by is null and kind in ('claimed', 'inverted', 'amended', 'inversion_named')
                and seq > coalesce((select max(seq) from l2inv.history
                                    where op_id = %(op)s and kind = 'reopened' and voided_by is null), 0)
        )
        select distinct on (program) program as instrument_program_id, inversion_id
        from (
            select seq, i ->> 'instrument_program_id' as program, i ->> 'inversion_id' as inversion_id
            from of_cycle, jsonb_array_elements(detail -> 'inversions') i where kind <> 'inversion_named'
            union all
            select seq, detail ->> 'instrument_program_id', detail ->> 'inversion_id'
            from of_cycle where kind = 'inversion_named'
        ) issued
        order by program, seq desc
        """,
        {"op": op_id},
    )
    return [Issued(**row) for row in rows]


def owner(connection: Connection, inversion_id: str) -> str | None:
    """Return the OP for which an id was issued or named, in any cycle, or None."""
    row = connection.execute(
        """
        select op_id from l2inv.event
        where kind in ('claimed', 'inverted', 'amended') and detail -> 'inversions' @> %s
        union all
        select op_id from l2inv.event where kind = 'inversion_named' and detail ->> 'inversion_id' = %s
        limit 1
        """,
        [Jsonb([{"inversion_id": inversion_id}]), inversion_id],
    ).fetchone()
    return row["op_id"] if row else None


def asdf_object_key(proposal_id: str | None, inversion_id: str) -> str | None:
    """Return the conventional object key of an inversion's ASDF file; None without a proposal."""
    return proposal_id and f"{folder(proposal_id, inversion_id)}/{stem(inversion_id)}_L2_metadata.asdf"


def folder(proposal_id: str, inversion_id: str) -> str:
    """Return the folder of an inversion's files in its bucket: PROPOSAL/inv_XXXXXX."""
    return f"{proposal_id}/{inversion_id.replace('.', '_')}"


def stem(inversion_id: str) -> str:
    """Return the beginning of the names of an inversion's files: INV_XXXXXX."""
    return inversion_id.upper().replace(".", "_")


def with_names(inversions: Sequence[Issued], proposal_id: str | None) -> list[Named]:
    """Return the inversions with the names of their folder and files."""
    return [
        Named(
            one.instrument_program_id,
            one.inversion_id,
            proposal_id and folder(proposal_id, one.inversion_id),
            f"{stem(one.inversion_id)}_YYYY_MM_DDThh_mm_ss_ff_L2.fits",
            f"{stem(one.inversion_id)}_L2_metadata.asdf",
            asdf_object_key(proposal_id, one.inversion_id),
        )
        for one in inversions
    ]


def must_be_issued(op_id: str, given: str, issued: str) -> None:
    """Raise Refused if the given id is not the one that was issued."""
    if given != issued:
        raise Refused(
            f"OP {op_id}: inversion_id {given} is not the one that was issued, {issued}",
            "leave it out, and name the files after the id that was issued (see: l2inv show OP)",
        )
