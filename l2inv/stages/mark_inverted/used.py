"""The datasets that a ready event names: whether they are the OP's, and what happened to them since it was claimed."""

from collections.abc import Iterable, Sequence
from datetime import datetime

import msgspec

from l2inv.database.connection import Connection
from l2inv.domain.criteria import INPUTS
from l2inv.domain.lines import Range
from l2inv.errors import Refused


class Used(msgspec.Struct, frozen=True):
    """A dataset that is or was the OP's, in its last version there."""

    dataset_id: str
    present_op: str  # the OP that it belongs to now
    withdrawn: bool
    instrument_program_id: str | None
    heir: str | None  # the dataset that supersedes it
    proposal_id: str | None
    lines: list[str] | None
    start_time: datetime | None
    end_time: datetime | None
    wavelength_min_nm: float | None
    wavelength_max_nm: float | None

    @property
    def range_nm(self) -> Range:
        return self.wavelength_min_nm, self.wavelength_max_nm


def datasets(connection: Connection, op_id: str) -> list[Used]:
    """Return every dataset that is or was the OP's."""
    rows = connection.execute(
        """
        select distinct on (v.dataset_id) v.dataset_id, d.op_id as present_op, d.withdrawn,
               v.record ->> 'instrumentProgramExecutionId' as instrument_program_id, h.heir,
               v.record ->> 'primaryProposalId' as proposal_id, v.record -> 'spectralLines' as lines,
               (v.record ->> 'startTime')::timestamptz as start_time,
               (v.record ->> 'endTime')::timestamptz as end_time,
               (v.record ->> 'wavelengthMin')::double precision as wavelength_min_nm,
               (v.record ->> 'wavelengthMax')::double precision as wavelength_max_nm
        from l2inv.dataset_version v join l2inv.dataset d using (dataset_id)
        left join l2inv.heir h using (dataset_id)
        where v.op_id = %s order by v.dataset_id, v.version desc
        """,
        [op_id],
    )
    return [Used(**row) for row in rows]


def must_be_the_ops(
    connection: Connection,
    op_id: str,
    chosen: list[str],
    datasets: list[str],
    program_of: dict[str, str | None],
) -> None:
    hint = f"see: l2inv show {op_id}"
    if unknown := set(chosen) - set(program_of.values()):
        raise Refused(f"OP {op_id} has no instrument program {named(unknown)}", hint)
    if unknown := set(datasets) - set(program_of):
        rows = connection.execute(
            "select dataset_id, op_id from l2inv.dataset where dataset_id = any(%s)", [list(unknown)]
        )
        others = {row["dataset_id"]: f" (it belongs to OP {row['op_id']})" for row in rows}
        raise Refused(f"OP {op_id} has no dataset {named(d + others.get(d, '') for d in unknown)}", hint)
    if stray := [d for d in datasets if program_of[d] not in chosen]:
        raise Refused(
            f"OP {op_id}: {named(stray)} is in none of the instrument programs {named(chosen)}",
            "name its instrument program too",
        )
    without = set(chosen) - {program_of[d] for d in datasets}
    if without or not chosen:
        raise Refused(
            f"OP {op_id}: no dataset of an instrument program is named: {named(without) or 'nor a program'}",
            "name the instrument programs and the datasets used",
        )


def named(things: Iterable[str | None]) -> str:
    return ", ".join(sorted(map(str, things)))


def superseded(connection: Connection, op_id: str, used: Sequence[Used]) -> dict[str, str]:
    """Return by dataset why an inversion of it is outdated; only for datasets that changed."""
    since_claim: dict[str, str] = {}
    for row in connection.execute(
        """
        select detail from l2inv.event
        where op_id = %s and kind = 'datasets_changed' and detail -> 'affects_verdict' = 'true'
            and seq > (select max(seq) from l2inv.event where op_id = %s and kind = 'claimed')
        order by seq
        """,
        [op_id, op_id],
    ):
        detail = row["detail"]
        changed = [d for d, fields in detail.get("changed", {}).items() if INPUTS.intersection(fields)]
        since_claim |= dict.fromkeys(changed, "changed since it was claimed")
        # Also for one that came back: it may have changed.
        for what in ("left", "withdrawn"):
            since_claim |= dict.fromkeys(detail.get(what, ()), f"{what} since it was claimed")
    found = {}
    for dataset in used:
        why = since_claim.get(dataset.dataset_id)
        if dataset.present_op != op_id:
            why = f"now of OP {dataset.present_op}"
        elif dataset.withdrawn:
            why = "withdrawn"
        if dataset.heir:
            why = ", ".join(filter(None, (why, f"superseded by {dataset.heir}")))
        if why:
            found[dataset.dataset_id] = why
    return found
