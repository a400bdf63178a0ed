"""What people ask of the record: what is next, what there is, what happened. Reads only."""

from datetime import UTC, datetime
from typing import Any

from l2inv.database.connection import Connection
from l2inv.domain.states import STATES

COLUMNS = """op_id, proposal_id, experiment_id, state, since, priority, assignee, instruments, dataset_count as datasets,
              start_time, fried_parameter_med_m as fried_parameter_med, bands, instrument_programs, inputs_changed,
              overruled, due_at, on_hold, is_embargoed"""


def list_ops(connection: Connection, state: str | None) -> list[dict[str, Any]]:
    """Return every OP, or those in one state, in the order of their ids."""
    return connection.execute(
        f"select {COLUMNS} from l2inv.op where %s::text is null or state = %s order by op_id",  # noqa: S608
        [state, state],
    ).fetchall()


def show(connection: Connection, op_id: str) -> dict[str, Any]:
    """Return all that is known of one OP: its line of the list, its datasets in full and its newest verdict."""
    from l2inv.domain.inventory import Dataset

    row = connection.execute(
        f"""
        select {COLUMNS},
               (select e.detail -> 'verdict' from l2inv.op_state s join l2inv.event e using (op_id)
                where s.op_id = o.op_id and e.seq = s.verdict_seq) as verdict,
               (select to_jsonb(f) - 'op_id' - 'since' from l2inv.failure f where f.op_id = o.op_id) as error,
               (select e.detail from l2inv.op_state s join l2inv.event e using (op_id)
                where s.op_id = o.op_id and e.seq = s.overruled_seq) as overruled_by,
               (select e.detail ->> 'reason' from l2inv.op_state s join l2inv.event e using (op_id)
                where s.op_id = o.op_id and e.seq = s.on_hold_seq) as hold_reason
        from l2inv.op o where op_id = %s
        """,  # noqa: S608
        [op_id],
    ).fetchone()
    assert row is not None
    row["dataset_count"] = row["datasets"]
    row["datasets"] = connection.execute(
        """
        select dataset_id, version, product_id, instrument_program_id, instrument, bucket, create_date, start_time,
               wavelength_min_nm, wavelength_max_nm, fried_parameter_med_m, withdrawn, record
        from l2inv.dataset where op_id = %s order by instrument, dataset_id
        """,
        [op_id],
    ).fetchall()
    snake = dict(zip(Dataset.__struct_encode_fields__, Dataset.__struct_fields__, strict=True))
    for dataset in row["datasets"]:
        dataset["record"] = {snake.get(name, name): value for name, value in dataset["record"].items()}
    return row


def held_by(connection: Connection, actor: str) -> list[dict[str, Any]]:
    """Return the OPs that somebody holds, the one that is due first at the top; one in error comes back to him."""
    return connection.execute(
        f"""
        select {COLUMNS} from l2inv.op o
        where assignee = %s and (state = 'working' or state = 'error' and exists (
            select from l2inv.op_state s where s.op_id = o.op_id and s.state_before_error = 'working'))
        order by due_at nulls last, op_id
        """,  # noqa: S608
        [actor],
    ).fetchall()


def held_with_changed_inputs(connection: Connection, actor: str | None) -> list[dict[str, Any]]:
    """Return the OPs in science's hands, or one person's, whose datasets changed since the verdict they go by."""
    return connection.execute(
        """
        select op_id, state, assignee from l2inv.op_state
        where state in ('working', 'inverted', 'published') and datasets_seq > verdict_seq
            and (%s::text is null or assignee = %s)
        order by op_id
        """,
        [actor, actor],
    ).fetchall()


def history(connection: Connection, op_id: str) -> dict[str, Any]:
    """Return every event of one OP, oldest first; hash and detail_text are what canonical.digest goes by."""
    events = connection.execute(
        """
        select seq, kind, state, actor, recorded_at, run_id, detail, event_id, recorded_by, voided_by, hash,
               detail::text as detail_text
        from l2inv.history where op_id = %s order by seq
        """,
        [op_id],
    ).fetchall()
    return {"op_id": op_id, "events": events}


def status(connection: Connection) -> dict[str, Any]:
    """Return how many OPs are in each state, and when each stage last ran and how it ended."""
    rows = connection.execute(
        "select state, count(*) as ops, count(on_hold_seq) as on_hold from l2inv.op_state group by state"
    ).fetchall()
    counted = {row["state"]: row["ops"] for row in rows}
    row = connection.execute(
        """
        select coalesce((select sum(seq) from l2inv.op_state), 0)::bigint as events,
               (select count(*) from l2inv.unresolved) as quarantined,
               (select max(started_at) from l2inv.run
                where stage = 'scan' and result -> 'complete' = 'true' and result -> 'read_again' is null)
                    as last_complete_scan
        """
    ).fetchone()
    assert row is not None
    runs = connection.execute(
        """
        select distinct on (stage) stage, run_id, actor, started_at, finished_at, result
        from l2inv.run order by stage, run_id desc
        """
    ).fetchall()
    return {
        "states": {state: counted.get(state, 0) for state in STATES},
        "ops": sum(counted.values()),
        "on_hold": sum(row["on_hold"] for row in rows),
        **row,
        "inputs_changed": held_with_changed_inputs(connection, None),
        "runs": runs,
        "as_of": datetime.now(UTC),
    }
