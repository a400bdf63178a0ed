"""What would be published of an inverted OP, and what prevents it. Reads only."""

from datetime import UTC, datetime
from typing import Any, Literal

from l2inv.config.settings import Settings
from l2inv.database.connection import Connection
from l2inv.domain import lines
from l2inv.domain.criteria import INPUTS
from l2inv.errors import Refused
from l2inv.queries import publication
from l2inv.record import event_log, issued
from l2inv.services import outputs

Check = dict[str, str]  # name, result (pass, warn or fail) and detail
TAKEN = ("asdf_object_key", "outputs", "software", "criteria_version", "inverted_by", "inverted_at")


def inverted_ops(connection: Connection) -> list[str]:
    """Return the inverted OPs in the order in which publish takes them."""
    rows = connection.execute(
        "select op_id from l2inv.op_state where state = 'inverted' order by priority desc, since, op_id"
    )
    return [row["op_id"] for row in rows]


def preflight(connection: Connection, settings: Settings, op_id: str, look: bool = True) -> dict[str, Any]:
    """Return `op_id`, `seq`, `ready`, `on_hold`, the `checks`, the `inversions` as they would be published, and the `steps`.

    An inversion has the columns of the view published_op, and the id that was issued when the work began. If the store
    already has one of this cycle, the OP is ready: it must be finished, whatever happened to its datasets. The files
    are checked unless `look` is false. Raise Refused for an OP that was never inverted, and L2invError if a mount with
    outputs is missing.
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
    ids = {one["instrument_program_id"]: one["inversion_id"] for one in issued.of_cycle(connection, op_id)}
    not_judged = _not_judged(connection, op_id, used)
    inversions, missing, buckets = [], [], []
    for program in inverted["instrument_programs"]:
        datasets = [d for d in used if inverted["datasets"][d["dataset_id"]] == program]
        inversion = {"cycle": cycle, "inversion_id": ids.get(program), **_of_datasets(datasets)}
        own = {
            name: value
            for name, value in each.get(program, {}).items()
            if name in ("outputs", "asdf_object_key")
        }
        inversion |= {"instrument_program_id": program} | {name: inverted[name] for name in TAKEN} | own
        given = each.get(program, {}).get("lines", inverted["lines"])
        inversion["spectral_lines"] = given or inversion["spectral_lines"]
        if without := [d["dataset_id"] for d in datasets if d["dataset_id"] in not_judged]:
            inversion["not_judged"] = without
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
    decided = list(checks)
    if look:
        checks.insert(4, _outputs(inverted["outputs"], settings))
    if held := _created(connection, op_id, cycle):
        words = f"the store has {', '.join(held)}: to be finished"
        checks.append({"name": "started", "result": "warn", "detail": words})
    fit = bool(held) or not failed(checks)
    return {
        "op_id": op_id,
        "seq": row["now"],
        "ready": fit and not row["on_hold"] and row["state"] == "inverted",
        "on_hold": row["on_hold"],
        "checks": checks,
        "inversions": inversions,
        "steps": publication.steps(connection, settings.publish, op_id),
        "decided": decided,
    }


def _not_judged(connection: Connection, op_id: str, used: list[dict[str, Any]]) -> list[str]:
    """Return the datasets used that the newest verdict does not cover: they arrived after it."""
    covered = (event_log.newest(connection, op_id, "judged") or {}).get("datasets", {})
    return [d["dataset_id"] for d in used if d["dataset_id"] not in covered]


def failed(checks: list[Check]) -> list[Check]:
    return [check for check in checks if check["result"] == "fail"]


def named(connection: Connection, op_id: str, cycle: int, program: str | None) -> dict[str, Any] | None:
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
    return row["detail"] if row else None


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


def _datasets(connection: Connection, dataset_ids: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the datasets used, in their present versions, each with the dataset that supersedes it."""
    return connection.execute(
        """
        select dataset_id, op_id, product_id, bucket, proposal_id, withdrawn, record, heir
        from l2inv.dataset left join l2inv.heir using (dataset_id)
        where dataset_id = any(%s) order by dataset_id
        """,
        [list(dataset_ids)],
    ).fetchall()


def _of_datasets(datasets: list[dict[str, Any]]) -> dict[str, Any]:
    """Return an inversion's fields that come from its L1 datasets; of those that they must share, the first value."""
    records = [d["record"] for d in datasets]
    ends = [r["embargoEndDate"] for r in records if r.get("isEmbargoed") and r.get("embargoEndDate")]
    experiments = [r["primaryExperimentId"] for r in records if r.get("primaryExperimentId")]
    return {
        "proposal_id": next((d["proposal_id"] for d in datasets), None),
        "experiment_id": next(iter(experiments), None),
        "dataset_ids": [d["dataset_id"] for d in datasets],
        "product_ids": sorted({d["product_id"] for d in datasets if d["product_id"]}),
        "bucket": next((d["bucket"] for d in datasets), None),
        "spectral_lines": sorted({line for r in records for line in _lines(r)}),
        "is_embargoed": any(r.get("isEmbargoed") for r in records),
        "embargo_end_date": max(ends, default=None),
    }


def _lines(record: dict[str, Any]) -> list[str]:
    """Return the lines of a dataset as the store has them, or presumed ones if they are null."""
    named: list[str] | None = record.get("spectralLines")
    if named is not None:
        return named
    return lines.presumed((record.get("wavelengthMin"), record.get("wavelengthMax")))


def _not_one(datasets: list[dict[str, Any]], name: str) -> list[str]:
    values = sorted({d[name] or "(none)" for d in datasets})
    if len(values) == 1 and values != ["(none)"]:
        return []
    return [f"the datasets of an inversion must share one {name}, not {', '.join(values) or 'none'}"]


def _check(name: str, problems: list[str], good: str, result: Literal["fail", "warn"] = "fail") -> Check:
    return {"name": name, "result": result if problems else "pass", "detail": "; ".join(problems) or good}


def _embargo(inversions: list[dict[str, Any]]) -> Check:
    """Data under embargo belong in `data`, others in `public`; the store itself has exceptions, so this only warns."""
    problems, good = [], set()
    for inversion in inversions:
        bucket, end = inversion["bucket"], inversion["embargo_end_date"]
        words = "under embargo" if inversion["is_embargoed"] else "not under embargo"
        if inversion["is_embargoed"]:
            words += f" until {end}" if end else " without an end"
        past = end is not None and datetime.fromisoformat(end) < datetime.now(UTC)
        good.add(f"{words}, in bucket {bucket}")
        if bucket != ("data" if inversion["is_embargoed"] else "public"):
            problems.append(f"{words}, but in bucket {bucket}")
        elif past:
            problems.append(f"{words}, which is past")
    return _check("embargo", list(dict.fromkeys(problems)), "; ".join(sorted(good)), "warn")


def _outputs(named: list[dict[str, Any]], settings: Settings) -> Check:
    if not named:
        return _check("outputs", ["science named none"], "", "warn")
    seen = [o for o in named if outputs.mounted(o["uri"], settings.publish.mounts)]
    good = f"{_counted(named, 'output')}, {len(seen)} of them mounted and compared"
    return _check("outputs", outputs.problems(named, settings.publish.mounts), good)


def _superseded(
    connection: Connection, op_id: str, seq: int, inverted: dict[str, Any], used: list[dict[str, Any]]
) -> Check:
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
