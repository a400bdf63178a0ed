"""OPs: lists, one OP, its history, the status of all. Reads only."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Literal, cast
from urllib.parse import quote

import msgspec
from psycopg.types.json import set_json_loads

from l2inv.config.settings import Qualification
from l2inv.database.connection import Connection, Row
from l2inv.documents import Json
from l2inv.domain import measures
from l2inv.domain.inventory import Dataset, stored
from l2inv.domain.op import HeldOp, MeasuredOp, Op, WholeOp
from l2inv.domain.states import STATES
from l2inv.queries.filters import Wanted, conditions
from l2inv.record import issued

COLUMNS = """op_id, proposal_id, experiment_id, state, since, priority, assignee, instruments, dataset_count,
              start_time, fried_parameter_med_m, bands, instrument_programs, inputs_changed,
              overruled, due_at, on_hold, is_embargoed"""
# Fields that no measure is computed from: PostgreSQL takes long to print them.
UNREAD = (
    "experimentDescription", "lightLevel", "polarimetricAccuracy", "health", "gosStatus", "asdfObjectKey", "productId",
    "updateDate", "bucket", "status", "instrumentProgramExecutionId",
)  # fmt: skip
RECORD = f"(d.record - '{{{','.join(UNREAD)}}}'::text[])::text"
PRESENT = f"""
    (select array_agg({RECORD} order by d.dataset_id)
     from l2inv.dataset d where d.op_id = o.op_id and not d.withdrawn) as present
"""  # noqa: S608 - text of our own
# The same for many OPs: each record is read once, present datasets first, and everything else is taken from it.
READ = f"""
    select o.op_id, o.state, o.since, o.priority, o.assignee, o.bands, o.instrument_programs, o.inputs_changed,
           o.overruled, o.due_at, o.on_hold, d.present, d.dataset_count
    from l2inv.op o left join lateral (
        select array_agg({RECORD} order by d.withdrawn, d.recorded_at desc, d.dataset_id) as present,
               count(*) filter (where not d.withdrawn) as dataset_count
        from l2inv.dataset d where d.op_id = o.op_id
    ) d on true
"""  # noqa: S608 - text of our own
SHOWN = "select o.op_id, o.state, o.since, o.assignee, o.on_hold, o.dataset_count from l2inv.op o"
LISTED = (
    "op_id",
    "proposal_id",
    "experiment_id",
    "state",
    "since",
    "priority",
    "assignee",
    "instruments",
    "dataset_count",
    "start_time",
    "fried_parameter_med_m",
    "bands",
    "instrument_programs",
    "inputs_changed",
    "overruled",
    "due_at",
    "on_hold",
    "is_embargoed",
    *(name for name in measures.Measures.__struct_fields__ if name != "fried_parameter_med_m"),
)
DAMAGED = "a record is damaged; see: l2inv verify datasets"
L1_COLLECTION = "d26bd00b-62dc-40d2-9179-7aece2b8c437"  # the Globus collection of the Level 1 data
AT_ONCE = 500  # OPs
MOST_INVERTED = 20  # OPs that one person inverted, in a list


def add_measures(row: Row, rules: Qualification) -> MeasuredOp:
    """Replace `present`, the texts of an OP's present datasets, by their measures; return the row.

    If a text is not a dataset, its OP is reported as damaged, so that other OPs are still shown.
    """
    texts = row.pop("present") or ()
    try:
        found = measures.measure([stored(text) for text in texts], rules)
    except msgspec.ValidationError:
        found = measures.Measures(odd=[DAMAGED])
    row |= measures.plain(found)
    return cast("MeasuredOp", row)


def list_ops(
    connection: Connection, wanted: Wanted, rules: Qualification, what: Literal["all", "table", "ids"] = "all"
) -> Iterator[Row]:
    """Yield the OPs that match, sorted by id, each as soon as it is read, in bounded memory.

    `what` selects all columns, those of a table (state, `since`, assignee, number of datasets), or the ids.
    """
    condition, values = conditions(wanted, rules)
    select = {"all": READ, "table": SHOWN, "ids": "select o.op_id from l2inv.op o"}[what]
    where = f"where {condition}" if condition else ""
    with connection.transaction(), connection.cursor("l2inv_list") as cursor:
        set_json_loads(msgspec.json.decode, cursor)
        cursor.execute(f"{select} {where} order by o.op_id", values)
        rows = _read_ahead(lambda: cursor.fetchmany(AT_ONCE))
        yield from (_in_full(row, rules) for row in rows) if what == "all" else rows


def _read_ahead(fetch: Callable[[], list[Row]]) -> Iterator[Row]:
    """Yield rows while the server reads the next ones: both take about the same time."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(fetch)
        while rows := coming.result():
            coming = reader.submit(fetch)
            yield from rows


def _in_full(row: Row, rules: Qualification) -> Row:
    """Return a row of READ as an OP of the list; a damaged record only shows in its `odd`."""
    known, damaged = [], False
    for place, text in enumerate(row["present"] or ()):
        try:
            known.append((place < row["dataset_count"], stored(text)))
        except msgspec.ValidationError:
            damaged = damaged or place < row["dataset_count"]
    datasets = sorted((d for is_present, d in known if is_present), key=lambda d: d.dataset_id)
    found = measures.Measures(odd=[DAMAGED]) if damaged else measures.measure(datasets, rules)
    row["proposal_id"] = next((d.primary_proposal_id for _, d in known if d.primary_proposal_id), None)
    row["experiment_id"] = next((d.primary_experiment_id for _, d in known if d.primary_experiment_id), None)
    row["instruments"] = sorted({d.instrument_name for d in datasets if d.instrument_name})
    row["start_time"] = min((d.start_time for d in datasets if d.start_time), default=None)
    row["is_embargoed"] = any(d.is_embargoed for d in datasets)
    row |= measures.plain(found)
    return {name: row[name] for name in LISTED}


def show(connection: Connection, op_id: str, rules: Qualification) -> WholeOp:
    """Return one OP: what the list has of it, its datasets in full, its newest verdict, its inversions."""
    row = connection.execute(
        f"""
        select {COLUMNS}, {PRESENT},
               (select e.detail -> 'verdict' from l2inv.op_state s join l2inv.event e using (op_id)
                where s.op_id = o.op_id and e.seq = s.verdict_seq) as verdict,
               (select to_jsonb(f) - 'op_id' - 'since' from l2inv.failure f where f.op_id = o.op_id) as error,
               (select e.detail from l2inv.op_state s join l2inv.event e using (op_id)
                where s.op_id = o.op_id and e.seq = s.overruled_seq) as overruled_by,
               (select e.detail -> 'outputs' from l2inv.event e
                where e.op_id = o.op_id and e.kind in ('inverted', 'amended') and o.state in ('inverted', 'published', 'error')
                order by e.seq desc limit 1) as outputs,
               (select e.detail ->> 'reason' from l2inv.op_state s join l2inv.event e using (op_id)
                where s.op_id = o.op_id and e.seq = s.on_hold_seq) as hold_reason
        from l2inv.op o where op_id = %s
        """,  # noqa: S608
        [op_id],
    ).fetchone()
    assert row is not None
    add_measures(row, rules)
    row["inversions"] = connection.execute(
        """
        select inversion_id, cycle, instrument_program_id, asdf_object_key, outputs, spectral_lines, published_at,
               superseded_by, withdrawn_at
        from l2inv.published_op where op_id = %s order by cycle, inversion_id
        """,
        [op_id],
    ).fetchall()
    row["datasets"] = connection.execute(
        """
        select dataset_id, version, product_id, instrument_program_id, instrument, bucket, create_date, start_time,
               wavelength_min_nm, wavelength_max_nm, fried_parameter_med_m, withdrawn, proposal_id, record
        from l2inv.dataset where op_id = %s order by instrument, dataset_id
        """,
        [op_id],
    ).fetchall()
    snake = dict(zip(Dataset.__struct_encode_fields__, Dataset.__struct_fields__, strict=True))
    for dataset in row["datasets"]:
        dataset["record"] = {snake.get(name, name): value for name, value in dataset["record"].items()}
        dataset["files_url"] = files_url(dataset["bucket"], dataset.pop("proposal_id"), dataset["dataset_id"])
    created = {one["inversion_id"]: one for one in row["inversions"]}
    named = inversions(connection, op_id, row["proposal_id"])
    row["inversions"] = [one | created.pop(one["inversion_id"], {}) for one in named] + list(created.values())
    return cast("WholeOp", row)


def present(connection: Connection, op_id: str) -> list[Dataset]:
    """Return an OP's present datasets, sorted by id."""
    rows = connection.execute(
        "select record::text as text from l2inv.dataset where op_id = %s and not withdrawn order by dataset_id",
        [op_id],
    )
    return [stored(row["text"]) for row in rows]


def files_url(bucket: str | None, proposal_id: str | None, dataset_id: str) -> str | None:
    """Return the URL of a dataset's files in the Globus file manager; None if bucket or proposal is unknown."""
    if bucket is None or proposal_id is None:
        return None
    path = quote(f"/{bucket}/{proposal_id}/{dataset_id}/")
    return f"https://app.globus.org/file-manager?origin_id={L1_COLLECTION}&origin_path={path}"


def inversions(connection: Connection, op_id: str, proposal_id: str | None) -> list[Json]:
    """Return the inversions of an OP's present cycle, with the names derived from their ids: issued.Named as JSON."""
    named: list[Json] = msgspec.to_builtins(
        issued.with_names(issued.of_cycle(connection, op_id), proposal_id)
    )
    return named


def held_by(connection: Connection, actor: str) -> list[HeldOp]:
    """Return the OPs that somebody holds, the first due first; those in error included, since a retry returns them."""
    rows = connection.execute(
        f"""
        select {COLUMNS} from l2inv.op o
        where assignee = %s and (state = 'working' or state = 'error' and exists (
            select from l2inv.op_state s where s.op_id = o.op_id and s.state_before_error = 'working'))
        order by due_at nulls last, op_id
        """,  # noqa: S608
        [actor],
    ).fetchall()
    for row in rows:
        row["inversions"] = inversions(connection, row["op_id"], row["proposal_id"])
    return cast("list[HeldOp]", rows)


def inverted_by(connection: Connection, actor: str) -> list[Op]:
    """Return the OPs that somebody inverted, published or not, newest first; at most MOST_INVERTED."""
    rows = connection.execute(
        f"""
        select {COLUMNS} from l2inv.op o
        where op_id in (
            select op_id from l2inv.op_state
            where assignee = %s and state in ('inverted', 'published') order by since desc, op_id limit %s)
        order by since desc, op_id
        """,  # noqa: S608
        [actor, MOST_INVERTED],
    ).fetchall()
    return cast("list[Op]", rows)


def failed_of(connection: Connection, actor: str) -> list[Row]:
    """Return the OPs in error that somebody holds or inverted, with the stage that failed and the cause."""
    return connection.execute(
        """
        select s.op_id, s.since, s.state_before_error, e.detail ->> 'stage' as stage, e.detail ->> 'cause' as cause
        from l2inv.op_state s cross join lateral (
            select detail from l2inv.event f where f.op_id = s.op_id and f.kind = 'failed' order by seq desc limit 1) e
        where s.assignee = %s and s.state = 'error' and s.state_before_error in ('working', 'inverted')
        order by s.since desc, s.op_id
        """,
        [actor],
    ).fetchall()


def held_with_changed_inputs(connection: Connection, actor: str | None) -> list[Row]:
    """Return the OPs that science, or one person, works on or inverted and whose datasets changed since the verdict."""
    return connection.execute(
        """
        select op_id, state, assignee from l2inv.op_state
        where state in ('working', 'inverted', 'published') and datasets_seq > verdict_seq
            and (%s::text is null or assignee = %s)
        order by op_id
        """,
        [actor, actor],
    ).fetchall()


def history(connection: Connection, op_id: str) -> Json:
    """Return every event of one OP, oldest first, with hash and detail_text as canonical.digest needs them."""
    events = connection.execute(
        """
        select seq, kind, state, actor, recorded_at, run_id, detail, event_id, recorded_by, voided_by, hash,
               detail::text as detail_text
        from l2inv.history where op_id = %s order by seq
        """,
        [op_id],
    ).fetchall()
    return {"op_id": op_id, "events": events}


def status(connection: Connection) -> Json:
    """Return how many OPs are in each state, and when each stage last ran and how it ended."""
    rows = connection.execute(
        """
        select state, count(*) as ops, count(on_hold_seq) as on_hold, sum(seq)::bigint as events
        from l2inv.op_state group by state
        """
    ).fetchall()
    counted = {row["state"]: row["ops"] for row in rows}
    row = connection.execute(
        """
        select (select count(*) from l2inv.unresolved) as quarantined,
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
        "events": sum(row["events"] for row in rows),
        **row,
        "inputs_changed": held_with_changed_inputs(connection, None),
        "runs": runs,
        "as_of": datetime.now(UTC),
    }
