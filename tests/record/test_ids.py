"""What identifies an OP: its id, a unique part of it, or the id of something that belongs to it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from l2inv.database.connection import Connection
from l2inv.errors import Refused
from l2inv.record import event_log
from l2inv.sample.server import Store
from tests.helpers.commands import Commands


@contextmanager
def known(connection: Connection, op_ids: Iterable[str]) -> Iterator[None]:
    """OPs with these ids, for a while."""
    with connection.transaction() as transaction:
        events = [event_log.Event(op_id, 0, "discovered", "discovered", {"datasets": []}) for op_id in op_ids]
        event_log.add(connection, events, "test", None)
        yield
        raise psycopg.Rollback(transaction)


ids = st.sets(st.text("ab.-_%\\é1", min_size=1, max_size=14), min_size=1, max_size=30)


@given(ids)
@example({"eid_op.abcdef", "abcdef.eid_op"})
@example({"x.abcdef1", "y.abcdef1.z"})
@example({"abcdef", "b.abcdef", "c.b.abcdef"})
@example({"x.-abcdef", "y.-abcdef"})
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_tail_that_is_shown_names_its_op_and_no_shorter_one_of_its_kind_does(
    connection: Connection, op_ids: set[str]
) -> None:
    with known(connection, op_ids):
        for op_id, tail in event_log.tails(connection, op_ids).items():
            assert op_id.endswith(tail)
            assert event_log.resolve(connection, tail) == op_id
            if tail != op_id and len(tail) > 8 and tail[-len(tail) + 1].isalnum():
                assert sum(other.endswith(tail[1:]) for other in op_ids) > 1


def test_tails_of_real_ids_are_their_last_number(connection: Connection) -> None:
    op_ids = ["eid_1_118_opAvoqBr_R001.82591.13964206", "eid_1_118_opAvoqBr_R001.82591.13964207"]
    with known(connection, [*op_ids, "eid_1_118_opAvoqBr_R001.82592.13964207"]):
        assert event_log.tails(connection, op_ids) == {op_ids[0]: "13964206", op_ids[1]: "1.13964207"}


@pytest.mark.parametrize(
    ("text", "which"),
    [("eid_1_118_opA", 0), ("13964206", 0), ("opBvoq", 1), ("eid_1_118_opAvoq.13964206", 0), ("_1_118", None), ("eid_", None)],
)  # fmt: skip
def test_a_part_that_fits_one_op_alone_names_it(connection: Connection, text: str, which: int | None) -> None:
    op_ids = ["eid_1_118_opAvoq.13964206", "eid_1_118_opBvoq.13964207"]
    with known(connection, op_ids):
        if which is None:
            with pytest.raises(Refused, match=f"matches several OPs: {op_ids[0]}, {op_ids[1]}"):
                event_log.resolve(connection, text)
        else:
            assert event_log.resolve(connection, text) == op_ids[which]


def test_an_op_can_be_named_by_what_it_contains(l2inv: Commands, ready: list[str], store: Store) -> None:
    op = ready[0]
    (dataset, *_) = [d for d in store.datasets if d["observingProgramExecutionId"] == op]
    for name in ("datasetId", "productId", "instrumentProgramExecutionId"):
        assert l2inv.json("show", dataset[name])["op_id"] == op, name
    l2inv("claim", op)
    l2inv(
        "mark-inverted", op, "--software", "DeSIRe", "--software-version", "4.1", "--output", "globus://l2/x"
    )
    l2inv("publish")
    (inversion,) = l2inv.json("history", op)["events"][-1]["detail"]["inversions"]
    name = inversion["inversion_id"]
    for form in (name, name.replace(".", "_").upper(), name.removeprefix("inv.")):
        assert l2inv.json("show", form)["op_id"] == op, form


def test_a_name_shared_by_several_ops_is_refused_with_the_candidates(
    l2inv: Commands, ready: list[str], store: Store
) -> None:
    for dataset in store.datasets:
        if dataset["observingProgramExecutionId"] in ready[:2]:
            dataset["productId"] = "L1-SHARED"
    l2inv("scan")
    said = l2inv("claim", "L1-SHARED", expect=3).stderr
    assert "matches several OPs" in said
    assert all(op in said for op in ready[:2])


@pytest.mark.parametrize(
    ("typed", "near"),
    [("18999772", "18999727"), ("eid_1_118_opAvoqBr_R001.82591.18999728", "18999727"), ("999123", None), ("x" * 5000, None), ("a", None)],
)  # fmt: skip
def test_the_nearest_id_is_named_where_one_was_mistyped(
    connection: Connection, typed: str, near: str | None
) -> None:
    beginning = "eid_1_118_opAvoqBr_R001.82591."
    with (
        known(connection, [beginning + number for number in ("18999727", "13964206", "55512345")]),
        pytest.raises(Refused) as refused,
    ):
        event_log.resolve(connection, typed)
    named = f", the nearest is {beginning}{near}" if near else ""
    shown = typed if len(typed) <= 60 else typed[:59] + "…"
    assert refused.value.message == f"OP {shown!r} is unknown{named}"
