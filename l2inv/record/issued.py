"""The id of each inversion, issued once, when work on it begins, and the names that follow from it."""

import secrets
import string
from collections.abc import Iterable, Sequence
from typing import Any

from psycopg.types.json import Jsonb

from l2inv.database.connection import Connection
from l2inv.errors import Refused

_ALPHABET = string.ascii_uppercase + string.digits


def new_inversion_id() -> str:
    """Return a random id in the store's convention: `inv.` and six of A-Z and 0-9."""
    return "inv." + "".join(secrets.choice(_ALPHABET) for _ in range(6))


def issue(connection: Connection, op_id: str, programs: Iterable[str | None]) -> list[dict[str, str]]:
    """Return an id for each instrument program: the one that it has in this cycle, or a new one.

    Each is to be recorded in the transaction of the call, which keeps others from drawing the same until it ends. The
    OP must be locked before: no other lock is taken after this one. One without an id gets none.
    """
    present = {one["instrument_program_id"]: one["inversion_id"] for one in of_cycle(connection, op_id)}
    wanted = [program for program in programs if program]
    if not set(wanted) <= present.keys():
        connection.execute("select from l2inv.lock where name = 'issue' for update")
    drawn: set[str] = set()
    for program in wanted:
        if program not in present:
            present[program] = _unused(connection, drawn)
            drawn.add(present[program])
    return [{"inversion_id": present[p], "instrument_program_id": p} for p in dict.fromkeys(wanted)]


def _unused(connection: Connection, drawn: set[str]) -> str:
    while True:
        inversion_id = new_inversion_id()
        if inversion_id not in drawn and owner(connection, inversion_id) is None:
            return inversion_id


def of_cycle(connection: Connection, op_id: str) -> list[dict[str, str]]:
    """Return the ids issued in an OP's present cycle: `inversion_id` and `instrument_program_id`, in order of these.

    A release keeps them; what was told under another id, which `adopt` recorded, has that one.
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
    ).fetchall()
    return [dict(row) for row in rows]


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
    """Return the key of an inversion's ASDF by the convention, None without a proposal."""
    return proposal_id and f"{folder(proposal_id, inversion_id)}/{stem(inversion_id)}_L2_metadata.asdf"


def folder(proposal_id: str, inversion_id: str) -> str:
    """Return the folder of an inversion's files below the bucket: PROPOSAL/inv_XXXXXX."""
    return f"{proposal_id}/{inversion_id.replace('.', '_')}"


def stem(inversion_id: str) -> str:
    """Return what every file's name begins with: INV_XXXXXX."""
    return inversion_id.upper().replace(".", "_")


def with_names(inversions: Sequence[dict[str, str]], proposal_id: str | None) -> list[dict[str, Any]]:
    """Return the inversions with the folder, the names of their files and the asdfObjectKey that follow."""
    return [
        {
            **one,
            "folder": proposal_id and folder(proposal_id, one["inversion_id"]),
            "frame_files": f"{stem(one['inversion_id'])}_YYYY_MM_DDThh_mm_ss_ff_L2.fits",
            "asdf_file": f"{stem(one['inversion_id'])}_L2_metadata.asdf",
            "asdf_object_key": asdf_object_key(proposal_id, one["inversion_id"]),
        }
        for one in inversions
    ]


def must_be_issued(op_id: str, said: str, issued: str) -> None:
    """Raise Refused where somebody names another id than the one that was issued."""
    if said != issued:
        raise Refused(
            f"OP {op_id}: inversion_id {said} is not the one that was issued, {issued}",
            "leave it out, and name the files after the id that was issued (see: l2inv show OP)",
        )
