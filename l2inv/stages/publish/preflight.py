"""What would be published of an inverted OP, and what prevents it. Reads only."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from l2inv.config.settings import Settings
from l2inv.database.connection import Connection, Row
from l2inv.documents import Json
from l2inv.domain import lines
from l2inv.domain.criteria import INPUTS
from l2inv.errors import Refused
from l2inv.queries import delivered, publication
from l2inv.record import event_log, issued
from l2inv.services import outputs
from l2inv.services.outputs import Output


class Check(msgspec.Struct, frozen=True):
    """One check of what would be published."""

    name: str
    result: Literal["pass", "warn", "fail"]
    detail: str


class Inversion(msgspec.Struct, kw_only=True):
    """An inversion as it would be published: the columns of the view published_op."""

    cycle: int
    inversion_id: str | None  # the one that was issued when the work began
    proposal_id: str | None
    experiment_id: str | None
    dataset_ids: list[str]
    product_ids: list[str]
    bucket: str | None
    spectral_lines: list[str]
    is_embargoed: bool
    embargo_end_date: str | None
    instrument_program_id: str | None
    asdf_object_key: str | None
    outputs: list[Output]
    software: Json | None
    criteria_version: str | None
    inverted_by: str
    inverted_at: str
    not_judged: list[str] | UnsetType = UNSET  # datasets that no verdict covers
    reason: str | UnsetType = UNSET  # why it was adopted

    @property
    def id(self) -> str:
        """Return the id of an inversion that has one, as the check `mandatory` requires."""
        assert self.inversion_id is not None
        return self.inversion_id

    @property
    def key(self) -> Json:
        """Return what identifies it in the detail of an event."""
        return {"cycle": self.cycle, "inversion_id": self.inversion_id}

    @property
    def folder(self) -> str:
        """Return the folder of its files in the bucket."""
        assert self.proposal_id is not None
        return issued.folder(self.proposal_id, self.id)

    @property
    def as_delivered(self) -> delivered.Inversion:
        """Return it as the check of its files takes it."""
        assert self.instrument_program_id is not None
        return delivered.Inversion(
            self.id, self.instrument_program_id, self.dataset_ids, self.outputs, self.asdf_object_key
        )


class Preflight(msgspec.Struct):
    """What would be published of an OP, and what prevents it."""

    op_id: str
    seq: int
    ready: bool
    on_hold: bool
    checks: list[Check]
    inversions: list[Inversion]
    steps: list[publication.Step]

    @property
    def decided(self) -> list[Check]:
        """Return the checks that the OP's history and datasets decide, whatever is on disk or in the store."""
        return [check for check in self.checks if check.name not in ("outputs", "started")]

    @property
    def failed(self) -> list[Check]:
        """Return the checks that failed."""
        return [check for check in self.checks if check.result == "fail"]


def inverted_ops(connection: Connection) -> list[str]:
    """Return the inverted OPs in the order in which publish takes them."""
    rows = connection.execute(
        "select op_id from l2inv.op_state where state = 'inverted' order by priority desc, since, op_id"
    )
    return [row["op_id"] for row in rows]


def preflight(connection: Connection, settings: Settings, op_id: str, check_files: bool = True) -> Preflight:
    """Return what would be published of an OP, and what prevents it.

    If the store already has an inversion of this cycle, the OP is ready: it must be finished, whatever happened to its
    datasets. Raise Refused for an OP that was never inverted, and L2invError if a mount with outputs is missing.
    """
    row = connection.execute(
        """
        select e.detail, e.seq, s.seq as now, s.state, s.cycle, s.on_hold_seq is not null as on_hold
        from l2inv.op_state s
        join l2inv.history e on e.op_id = s.op_id and e.kind in ('inverted', 'amended') and e.voided_by is null
        where s.op_id = %s order by e.seq desc limit 1
        """,
        [op_id],
    ).fetchone()
    if row is None:
        raise Refused(f"OP {op_id} was never inverted", f"see: l2inv show {op_id}")
    inverted, cycle = row["detail"], row["cycle"]
    used = _datasets(connection, inverted["datasets"])
    each = {one["instrument_program_id"]: one for one in inverted.get("inversions", ())}
    ids = {one.instrument_program_id: one.inversion_id for one in issued.of_cycle(connection, op_id)}
    not_judged = _not_judged(connection, op_id, used)
    inversions: list[Inversion] = []
    missing: list[str] = []
    buckets: list[str] = []
    for program in inverted["instrument_programs"]:
        datasets = [d for d in used if inverted["datasets"][d["dataset_id"]] == program]
        inversion = _inversion(cycle, ids.get(program), program, inverted, each.get(program, {}), datasets)
        if without := [d["dataset_id"] for d in datasets if d["dataset_id"] in not_judged]:
            inversion.not_judged = without
        inversions.append(inversion)
        if program is None:
            missing.append("its datasets name no instrument program, which the store requires")
        elif program not in ids:
            missing.append(f"no inversion id was issued for {program}: l2inv reopen {op_id} --reason WHY")
        missing += _not_one(datasets, "proposal_id")
        buckets += _not_one(datasets, "bucket")
    checks = [
        _check("mandatory", missing, f"{_counted(inversions, 'inversion')} of {_counted(used, 'dataset')}"),
        _check("bucket", buckets, ", ".join(sorted({d["bucket"] or "(none)" for d in used}))),
        _embargo(inversions),
        _check(
            "verdict", [f"{d} is covered by no verdict" for d in not_judged], "covers every dataset", "warn"
        ),
        _superseded(connection, op_id, row["seq"], inverted, used),
    ]
    if check_files:
        checks.insert(4, _outputs(inverted["outputs"], settings))
    if held := _created(connection, op_id, cycle):
        words = f"the store has {', '.join(held)}: to be finished"
        checks.append(Check("started", "warn", words))
    steps = publication.steps(connection, settings.publish, op_id)
    found = Preflight(op_id, row["now"], False, row["on_hold"], checks, inversions, steps)
    found.ready = (bool(held) or not found.failed) and not row["on_hold"] and row["state"] == "inverted"
    return found


def check_products(
    connection: Connection,
    settings: Settings,
    found: Preflight,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> None:
    """Add the check of the files' content to a preflight, as publish makes it before the first step, if they are mounted.

    Raise L2invError if a folder cannot be read.
    """
    if not found.ready or any(check.name == "started" for check in found.checks):
        return
    each = [one.as_delivered for one in found.inversions]
    try:
        checked = delivered.check(connection, settings.publish, found.op_id, each, progress)
    except delivered.Scattered as problem:
        checked = delivered.Checked(wrong=str(problem))
    if checked.wrong:
        found.ready = False
        found.checks.append(Check("products", "fail", checked.wrong.removeprefix("products: ")))
    elif checked.lacking:
        found.checks.append(Check("products", "warn", checked.why_not))
    elif checked.inversion_ids:
        found.checks.append(
            Check("products", "pass", f"{_counted(checked.inversion_ids, 'inversion')} checked")
        )


def _not_judged(connection: Connection, op_id: str, used: list[Row]) -> list[str]:
    """Return the datasets used that the newest verdict does not cover: they arrived after it."""
    covered = (event_log.newest(connection, op_id, "judged") or {}).get("datasets", {})
    return [d["dataset_id"] for d in used if d["dataset_id"] not in covered]


def named(connection: Connection, op_id: str, cycle: int, program: str | None) -> Inversion | None:
    """Return the inversion of an instrument program and cycle as it was recorded before the request to create it."""
    row = connection.execute(
        """
        select detail from l2inv.history
        where op_id = %s and kind = 'inversion_named' and detail -> 'cycle' = to_jsonb(%s::integer)
            and detail ->> 'instrument_program_id' = %s and voided_by is null
        order by seq desc limit 1
        """,
        [op_id, cycle, program],
    ).fetchone()
    if row is None:
        return None
    return Inversion(
        **{name: row["detail"][name] for name in Inversion.__struct_fields__ if name in row["detail"]}
    )


def _created(connection: Connection, op_id: str, cycle: int) -> list[str]:
    rows = connection.execute(
        """
        select detail ->> 'inversion_id' as inversion_id from l2inv.history
        where op_id = %s and kind = 'inversion_created' and detail -> 'cycle' = to_jsonb(%s::integer)
            and voided_by is null
        order by seq
        """,
        [op_id, cycle],
    )
    return [row["inversion_id"] for row in rows]


def _datasets(connection: Connection, dataset_ids: Json) -> list[Row]:
    """Return the datasets used, in their present versions, each with the dataset that supersedes it."""
    return connection.execute(
        """
        select dataset_id, op_id, product_id, bucket, proposal_id, withdrawn, record, heir
        from l2inv.dataset left join l2inv.heir using (dataset_id)
        where dataset_id = any(%s) order by dataset_id
        """,
        [list(dataset_ids)],
    ).fetchall()


def _inversion(
    cycle: int, inversion_id: str | None, program: str | None, inverted: Json, own: Json, datasets: list[Row]
) -> Inversion:
    """Return an inversion from the ready event, from the instrument program's `own` part of that, and from its L1
    datasets: of what they must share, the first value."""
    records = [d["record"] for d in datasets]
    ends = [r["embargoEndDate"] for r in records if r.get("isEmbargoed") and r.get("embargoEndDate")]
    experiments = [r["primaryExperimentId"] for r in records if r.get("primaryExperimentId")]
    return Inversion(
        cycle=cycle,
        inversion_id=inversion_id,
        proposal_id=next((d["proposal_id"] for d in datasets), None),
        experiment_id=next(iter(experiments), None),
        dataset_ids=[d["dataset_id"] for d in datasets],
        product_ids=sorted({d["product_id"] for d in datasets if d["product_id"]}),
        bucket=next((d["bucket"] for d in datasets), None),
        spectral_lines=own.get("lines", inverted["lines"])
        or sorted({line for r in records for line in _lines(r)}),
        is_embargoed=any(r.get("isEmbargoed") for r in records),
        embargo_end_date=max(ends, default=None),
        instrument_program_id=program,
        asdf_object_key=own.get("asdf_object_key", inverted["asdf_object_key"]),
        outputs=own["outputs"] if "outputs" in own else inverted["outputs"],
        software=inverted["software"],
        criteria_version=inverted["criteria_version"],
        inverted_by=inverted["inverted_by"],
        inverted_at=inverted["inverted_at"],
    )


def _lines(record: Json) -> list[str]:
    """Return the lines of a dataset as the store has them, or presumed ones if they are null."""
    named: list[str] | None = record.get("spectralLines")
    if named is not None:
        return named
    return lines.presumed((record.get("wavelengthMin"), record.get("wavelengthMax")))


def _not_one(datasets: list[Row], name: str) -> list[str]:
    values = sorted({d[name] or "(none)" for d in datasets})
    if len(values) == 1 and values != ["(none)"]:
        return []
    return [f"the datasets of an inversion must share one {name}, not {', '.join(values) or 'none'}"]


def _check(name: str, problems: list[str], good: str, result: Literal["fail", "warn"] = "fail") -> Check:
    return Check(name, result if problems else "pass", "; ".join(problems) or good)


def _embargo(inversions: list[Inversion]) -> Check:
    """Data under embargo belong in `data`, others in `public`; the store itself has exceptions, so this only warns."""
    problems, good = [], set()
    for inversion in inversions:
        bucket, end = inversion.bucket, inversion.embargo_end_date
        words = "under embargo" if inversion.is_embargoed else "not under embargo"
        if inversion.is_embargoed:
            words += f" until {end}" if end else " without an end"
        past = end is not None and datetime.fromisoformat(end) < datetime.now(UTC)
        good.add(f"{words}, in bucket {bucket}")
        if bucket != ("data" if inversion.is_embargoed else "public"):
            problems.append(f"{words}, but in bucket {bucket}")
        elif past:
            problems.append(f"{words}, which is past")
    return _check("embargo", list(dict.fromkeys(problems)), "; ".join(sorted(good)), "warn")


def _outputs(named: list[Output], settings: Settings) -> Check:
    if not named:
        return _check("outputs", ["science named none"], "", "warn")
    seen = [o for o in named if outputs.mounted(o["uri"], settings.publish.mounts)]
    good = f"{_counted(named, 'output')}, {len(seen)} of them mounted and compared"
    return _check("outputs", outputs.problems(named, settings.publish.mounts), good)


def _superseded(connection: Connection, op_id: str, seq: int, inverted: Json, used: list[Row]) -> Check:
    """Fail for datasets that changed since they were inverted, unless the ready event accepted that."""
    accepted = (inverted.get("accepted") or {}).get("superseded") or {}
    changed = {
        dataset_id
        for event in connection.execute(
            "select detail -> 'changed' as datasets from l2inv.event "
            "where op_id = %s and kind = 'datasets_changed' and seq > %s and detail ? 'changed'",
            [op_id, seq],
        )
        for dataset_id, fields in event["datasets"].items()
        if INPUTS.intersection(fields)
    }
    problems = []
    for dataset in used:
        dataset_id, words = dataset["dataset_id"], []
        if dataset_id not in accepted:
            words += ["is withdrawn"] if dataset["withdrawn"] else []
            words += [f"is now of OP {dataset['op_id']}"] if dataset["op_id"] != op_id else []
            words += [f"is superseded by {dataset['heir']}"] if dataset["heir"] else []
        words += ["changed since it was inverted"] if dataset_id in changed else []
        problems += [f"{dataset_id} {' and '.join(words)}"] if words else []
    good = f"accepted: {', '.join(sorted(accepted))}" if accepted else "none"
    return _check("superseded", problems, good)


def _counted(things: list[Any], noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"
