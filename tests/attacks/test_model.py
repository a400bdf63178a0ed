"""Random actions of people and cron, with random faults, in any order, compared with a small model.

A hypothesis state machine runs the real commands on a real PostgreSQL and a sample store. After each step the record
must be what it was, with what the model expects added: no more, no less, and nothing when a command refused.
"""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import psycopg
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from psycopg.rows import dict_row

from l2inv.cli import main
from l2inv.domain import states
from l2inv.sample import inventory
from l2inv.sample.server import Fault, Store, serving
from l2inv.stages.mark_working import claiming
from tests.helpers.commands import NOW, Answer, completed
from tests.helpers.database import copy, drop

PEOPLE = ("han", "ann", "eve")
PAST = datetime(2026, 1, 1, tzinfo=UTC)
AS_OF = "2099-01-01"  # every OP is quiet by then

people = st.sampled_from(PEOPLE)
numbers = st.integers(0, 5)  # of an OP, among those the machine knows
faults = st.sampled_from([None, None, "lost answer", "refused once", "store gone", "connection killed"])


@dataclass
class Op:
    """What the model knows of an OP. None is: not known, as what a failing store left undone."""

    op_id: str
    invertible: bool  # by the criteria, on data that the machine's changes leave as good as they are
    state: str
    holder: str | None = None
    overdue: bool = False
    on_hold: bool = False
    priority: int = 0
    fresh: bool = True  # the verdict is on the present datasets
    overruled: bool = False
    before_error: str | None = None
    changed: bool = False  # in the store, and not scanned yet
    stale: bool = False  # its datasets changed since it was claimed
    inverter: str | None = None  # who marked it inverted in this cycle
    withdrawable: bool = False  # its newest cycle was published, and not taken back
    named: bool = False  # the store was, or was about to be, told of this cycle


class World(RuleBasedStateMachine):
    """The commands, and what must come of each."""

    template: ClassVar[str]
    folder: ClassVar[Path]
    databases: ClassVar[Iterator[int]] = count()
    steps: ClassVar[int] = 0
    kinds: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.name = f"model_{os.getpid()}_{next(self.databases)}"
        self.url = copy(self.name, self.template)
        self.connection = psycopg.connect(self.url, autocommit=True, row_factory=dict_row)
        self.store = sample()
        self.serving = serving(self.store)
        self.config = self.folder / "config.yaml"
        where = self.serving.__enter__()
        self.config.write_text(
            yaml.safe_dump(
                {
                    "database": {"url": self.url},
                    "metadata_store": {"url": where, "retries": 1, "max_withdrawn": 100},
                    "preprocess": {"work_dir": str(self.folder / "work")},
                }
            )
        )
        self.seen: list[dict[str, Any]] = []
        self.ops: list[Op] = []
        self.added: list[dict[str, Any]] = []
        self.look()

    def teardown(self) -> None:
        try:
            self.store.fault = None
            verified = self.l2inv("verify", "--json")
            assert verified.json["findings"] == []
            self.told_once()
            self.kinds.update(event["kind"] for event in self.seen)
        finally:
            self.connection.close()
            self.serving.__exit__(None, None, None)
            drop(self.name)

    # What is done, and what is looked at

    def l2inv(self, *argv: str, actor: str = "cron") -> Answer:
        result = CliRunner().invoke(main, ["--config", str(self.config), "--actor", actor, *argv])
        return Answer(result.exit_code, result.stdout, result.stderr)

    def does(self, *argv: str, actor: str, expect: set[int]) -> int:
        """Run a command, looks at what it added, and return its exit code. Refused, it must have added nothing."""
        type(self).steps += 1
        answer = self.l2inv(*completed(argv), actor=actor)
        assert answer.exit_code in expect, f"{argv} by {actor}: {answer}, expected {expect}"
        assert "unexpected: " not in answer.stderr, answer.stderr
        self.look()
        if answer.exit_code not in (0, 1, 4):
            assert self.added == [], (argv, self.added)
        assert {event["actor"] for event in self.added} <= {actor}
        return answer.exit_code

    def look(self) -> None:
        """Read the whole history: what was seen before must be its beginning, event for event."""
        rows = self.connection.execute("select * from l2inv.event order by event_id").fetchall()
        assert rows[: len(self.seen)] == self.seen, "the past changed"
        self.added = rows[len(self.seen) :]
        self.seen = rows

    def took(self, *expected: tuple[str, str]) -> None:
        """The last command added just these events: (OP, kind)."""
        assert sorted((event["op_id"], event["kind"]) for event in self.added) == sorted(expected)

    def op(self, number: int) -> Op:
        return self.ops[number % len(self.ops)]

    def reads(self, op: Op) -> None:
        """Take from the record what the model cannot foresee: what a stage did before the world failed."""
        row = self.connection.execute("select * from l2inv.op_state where op_id = %s", [op.op_id]).fetchone()
        assert row is not None
        op.state, op.before_error = row["state"], row["state_before_error"]
        op.fresh = row["verdict_seq"] is not None and row["verdict_seq"] > row["datasets_seq"]
        op.overruled = row["overruled_seq"] is not None

    @initialize()
    def begin(self) -> None:
        rows = self.connection.execute("select op_id, state from l2inv.op_state order by op_id").fetchall()
        good = [Op(r["op_id"], True, r["state"]) for r in rows if r["state"] == "preprocessed"]
        bad = [Op(r["op_id"], False, r["state"]) for r in rows if r["state"] == "not_invertible"]
        self.ops = good[:4] + bad[:2]
        self.others = good[4:]
        assert len(self.ops) == 6

    # The world

    @rule(number=numbers)
    def a_dataset_changes_in_the_store(self, number: int) -> None:
        op = self.op(number)
        for dataset in self.store.datasets:
            if dataset["observingProgramExecutionId"] == op.op_id and dataset["instrumentName"] == "VISP":
                second = (int(dataset["startTime"][17:19]) + 1) % 60
                dataset["startTime"] = f"{dataset['startTime'][:17]}{second:02}{dataset['startTime'][19:]}"
        op.changed = any(
            d["observingProgramExecutionId"] == op.op_id and d["instrumentName"] == "VISP"
            for d in self.store.datasets
        )

    @contextmanager
    def failing(self, fault: str | None, operations: tuple[str, ...]) -> Iterator[None]:
        """A store that answers no more, loses an answer, or whose answer finds l2inv's connection cut."""
        met = {"now": False}

        def answer(operation: str, nth: int) -> Fault | None:
            first, met["now"] = (
                not met["now"] and operation in operations,
                met["now"] or operation in operations,
            )
            if fault == "lost answer" and first:
                return Fault(drop="after")
            if fault == "refused once" and first:
                return Fault(drop="before")
            if fault == "store gone" and met["now"]:
                return Fault(drop="after" if first else "before")
            if fault == "connection killed" and first:
                with psycopg.connect(self.url, autocommit=True) as connection:
                    connection.execute(
                        "select pg_terminate_backend(pid, 5000) from pg_stat_activity where application_name = 'l2inv' "
                        "and datname = current_database()"
                    )
            return None

        self.store.fault = answer if fault else None
        yield
        self.store.fault = None

    # The stages

    @rule(fault=faults)
    def scan(self, fault: str | None) -> None:
        due = [op for op in self.ops if op.changed]
        with self.failing(fault, ("Datasets", "Count")):
            fails = fault in ("store gone", "connection killed")
            code = self.does("scan", actor="cron", expect={0, 1} if fails else {0})
        told = {event["op_id"] for event in self.added}
        assert all(event["kind"] == "datasets_changed" for event in self.added)
        if code == 0:
            assert told == {op.op_id for op in due}
        else:
            assert told <= {op.op_id for op in due}
        for op in due:
            if op.op_id in told:
                op.changed, op.fresh, op.overruled = False, False, False
                op.stale |= (op.before_error or op.state) in ("working", "inverted", "published")
                if op.state in states.JUDGED:
                    op.state = "discovered"

    @rule()
    def qualify(self) -> None:
        due = [op for op in self.ops if op.state in (*states.JUDGED, "discovered") and not op.fresh]
        self.does("qualify", "--as-of", AS_OF, actor="cron", expect={0})
        self.took(*((op.op_id, "judged") for op in due))
        for op in due:
            op.state, op.fresh, op.overruled = (
                "invertible" if op.invertible else "not_invertible",
                True,
                False,
            )

    @rule()
    def preprocess(self) -> None:
        due = [op for op in self.ops if op.state == "invertible" and op.fresh and not op.on_hold]
        self.does("preprocess", actor="cron", expect={0})
        self.took(*((op.op_id, "preprocessed") for op in due))
        for op in due:
            op.state = "preprocessed"

    @rule(fault=faults)
    def publish(self, fault: str | None) -> None:
        due = {op.op_id: op for op in self.ops if op.state == "inverted" and not op.on_hold}
        sure = [
            op for op in due.values() if not op.stale and not op.named and not op.overruled and op.invertible
        ]
        with self.failing(fault, ("Create",)):
            ends = {0, 4} | ({1} if fault in ("store gone", "connection killed") else set())
            code = self.does("publish", actor="cron", expect=ends)
        assert {event["op_id"] for event in self.added} <= set(due)
        kinds = {op_id: [e["kind"] for e in self.added if e["op_id"] == op_id] for op_id in due}
        for op in due.values():
            last = kinds[op.op_id][-1:]
            if code != 1:
                assert last in (["published"], ["failed"]), (op, kinds)
            if code == 0 or (code == 4 and op in sure and fault is None):
                assert last == ["published"], (op, kinds)
            op.named |= "inversion_named" in kinds[op.op_id]
            if last == ["published"]:
                op.state, op.withdrawable, op.holder, op.named = "published", True, op.holder, False
            elif last == ["failed"]:
                op.state, op.before_error = "error", "inverted"
        if fault is None and len(sure) == len(due):
            assert code == 0

    @rule(
        number=numbers,
        actor=people,
        asked=st.sampled_from(["Known", "Find", "Create"]),
        holds=st.booleans(),
    )
    def something_happens_while_publish_waits_for_the_store(
        self, number: int, actor: str, asked: str, holds: bool
    ) -> None:
        """The OP is put on hold, or its datasets change and are scanned, once the store was asked something."""
        op = self.op(number)
        due = {one.op_id: one for one in self.ops if one.state == "inverted" and not one.on_hold}
        if op.op_id not in due:
            return
        happened: list[int] = []

        def answer(operation: str, nth: int) -> Fault | None:
            if operation == asked and not happened:
                happened.append(-1)
                argv = ("hold", op.op_id, "--reason", "x") if holds else ("scan",)
                if not holds:
                    self.a_dataset_changes_in_the_store(number)
                happened[0] = self.l2inv(*argv, actor=actor).exit_code
            return None

        self.store.fault = answer
        result = self.l2inv("publish")
        self.store.fault = None
        type(self).steps += 1
        self.look()
        assert result.exit_code in (0, 4), result
        assert happened in ([], [0]), result
        op.on_hold = holds and bool(happened)
        for one in due.values():
            kinds = [event["kind"] for event in self.added if event["op_id"] == one.op_id]
            one.named |= "inversion_named" in kinds
            if "published" in kinds:
                assert not one.on_hold, (one, kinds)
                one.state, one.withdrawable, one.named = "published", True, False
            elif "failed" in kinds:
                one.state, one.before_error = "error", "inverted"
            else:
                assert one.on_hold, (one, kinds)
            if "datasets_changed" in kinds:
                one.changed, one.fresh, one.overruled, one.stale = False, False, False, True
        for one in self.ops:  # the scan reads all that had changed before
            if one.op_id not in due and any(
                event["kind"] == "datasets_changed" and event["op_id"] == one.op_id for event in self.added
            ):
                one.changed, one.fresh, one.overruled = False, False, False
                one.stale |= (one.before_error or one.state) in ("working", "inverted", "published")
                if one.state in states.JUDGED:
                    one.state = "discovered"

    # Science

    @rule(number=numbers, actor=people, extend=st.booleans())
    def claim(self, number: int, actor: str, extend: bool) -> None:
        op = self.op(number)
        is_mine = op.state == "working" and op.holder == actor
        is_free = op.state == "preprocessed" and not op.on_hold and op.fresh
        more = ("--for", "9d") if extend else ()
        self.does("claim", op.op_id, *more, actor=actor, expect={0} if is_mine or is_free else {3})
        self.took(
            *([(op.op_id, "claimed")] if is_free else [(op.op_id, "extended")] if is_mine and extend else [])
        )
        if is_free:
            op.state, op.holder, op.overdue, op.stale = "working", actor, False, False
        elif is_mine and extend:
            op.overdue = False

    @rule(actor=people)
    def next_claim(self, actor: str) -> None:
        offered = [
            op for op in self.ops + self.others if op.state == "preprocessed" and not op.on_hold and op.fresh
        ]
        self.does("next", "--claim", actor=actor, expect={0})
        if not offered:
            self.took()
            return
        (event,) = self.added
        op = next(op for op in offered if op.op_id == event["op_id"])
        assert event["kind"] == "claimed"
        assert op.priority == max(op.priority for op in offered)
        op.state, op.holder, op.overdue, op.stale = "working", actor, False, False

    @rule(number=numbers, actor=people)
    def time_passes_over_a_claim(self, number: int, actor: str) -> None:
        """A claim whose due date is past by now."""
        op = self.op(number)
        if op.state == "preprocessed" and not op.on_hold and op.fresh:
            claiming.claim(self.connection, op.op_id, actor, PAST)  # type: ignore[arg-type]
            self.look()
            op.state, op.holder, op.overdue, op.stale = "working", actor, True, False

    @rule(number=numbers, actor=people)
    def release(self, number: int, actor: str) -> None:
        op = self.op(number)
        may = op.state == "working" and op.holder == actor
        self.does("release", op.op_id, actor=actor, expect={0} if may else {3})
        if may:
            self.took((op.op_id, "released"))
            op.state, op.holder, op.overdue = "preprocessed", None, False

    @rule(number=numbers, actor=people, to=people)
    def hand_over(self, number: int, actor: str, to: str) -> None:
        op = self.op(number)
        may = op.state == "working" and op.holder == actor and to != actor
        self.does("hand-over", op.op_id, "--to", to, "--force", actor=actor, expect={0} if may else {3})
        if may:
            self.took((op.op_id, "handed_over"))
            op.holder = to

    @rule(number=numbers, actor=people)
    def take_over(self, number: int, actor: str) -> None:
        op = self.op(number)
        may = op.state == "working" and op.holder != actor and op.overdue
        self.does("take-over", op.op_id, "--reason", "overdue", actor=actor, expect={0} if may else {3})
        if may:
            self.took((op.op_id, "taken_over"))
            op.holder, op.overdue = actor, False

    @rule(number=numbers, actor=people, puts=st.booleans())
    def hold_or_unhold(self, number: int, actor: str, puts: bool) -> None:
        op = self.op(number)
        may = op.on_hold is not puts
        command = "hold" if puts else "unhold"
        self.does(command, op.op_id, "--reason", "x", actor=actor, expect={0} if may else {3})
        if may:
            self.took((op.op_id, "put_on_hold" if puts else "taken_off_hold"))
            op.on_hold = puts

    @rule(number=numbers, actor=people, priority=st.integers(-2, 2))
    def prioritize(self, number: int, actor: str, priority: int) -> None:
        op = self.op(number)
        self.does("prioritize", op.op_id, f"--priority={priority}", "--reason", "x", actor=actor, expect={0})
        self.took((op.op_id, "prioritized"))
        op.priority = priority

    @rule(number=numbers, actor=people)
    def note(self, number: int, actor: str) -> None:
        op = self.op(number)
        self.does("note", op.op_id, "a word", actor=actor, expect={0})
        self.took((op.op_id, "noted"))

    @rule(number=numbers, actor=people)
    def mark_inverted(self, number: int, actor: str) -> None:
        op = self.op(number)
        may = op.state == "working" and op.holder == actor
        said = (op.before_error or op.state) in ("inverted", "published") and op.inverter == actor
        expect = {0} if said or (may and not op.stale) else {3}
        if may and (op.overruled or not op.invertible):
            expect = {0, 3}  # what was overruled may have nothing that qualifies
        code = self.does("mark-inverted", op.op_id, actor=actor, expect=expect)
        self.took(*([(op.op_id, "inverted")] if may and code == 0 else []))
        if may and code == 0:
            op.state, op.inverter, op.overdue, op.stale, op.named = "inverted", actor, False, False, False

    @rule(number=numbers, actor=people)
    def reopen(self, number: int, actor: str) -> None:
        op = self.op(number)
        inverted = "inverted" in (op.state, op.before_error)
        expect = {0} if inverted or op.state == "published" else {3}
        if inverted and op.named:
            expect = {0, 3}  # refused where the store was told already
        if self.does("reopen", op.op_id, "--reason", "x", actor=actor, expect=expect) == 0:
            assert self.added[-1]["kind"] == "reopened"
            assert {event["kind"] for event in self.added} <= {"retried", "reopened"}
            op.state, op.before_error, op.holder, op.inverter = "discovered", None, None, None
            op.fresh, op.overruled, op.stale, op.named = False, False, False, False

    @rule(number=numbers, actor=people)
    def withdraw(self, number: int, actor: str) -> None:
        op = self.op(number)
        self.does(
            "withdraw", op.op_id, "--reason", "bad", actor=actor, expect={0} if op.withdrawable else {3}
        )
        if op.withdrawable:
            self.took((op.op_id, "withdrawn"))
            op.withdrawable = False

    @rule(number=numbers, actor=people)
    def retry(self, number: int, actor: str) -> None:
        op = self.op(number)
        may = op.state == "error"
        self.does("retry", op.op_id, actor=actor, expect={0} if may else {3})
        if may:
            self.took((op.op_id, "retried"))
            assert op.before_error is not None
            op.state, op.before_error = op.before_error, None

    @rule(number=numbers, actor=people, invertible=st.booleans())
    def overrule(self, number: int, actor: str, invertible: bool) -> None:
        op = self.op(number)
        may = op.state in states.JUDGED and op.fresh
        word = "--invertible" if invertible else "--not-invertible"
        expect = {0} if may else {3}
        if may and invertible and not op.invertible:
            expect = {0, 3}  # there may be no instrument program to be inverted
        before = op.state
        if self.does("overrule", op.op_id, word, "--reason", "x", actor=actor, expect=expect) == 0:
            self.took((op.op_id, "overruled"))
            self.reads(op)
            assert op.state in ({"invertible", before} if invertible else {"not_invertible"})

    @rule(number=numbers, actor=people, steps=st.integers(1, 6), fault=faults)
    def an_op_goes_its_way(self, number: int, actor: str, steps: int, fault: str | None) -> None:
        """The usual steps one after the other, as chance alone would seldom take them."""
        op = self.op(number)
        for _ in range(steps):
            match op.state:
                case "preprocessed":
                    self.claim(number, actor, False)
                case "working":
                    self.mark_inverted(number, op.holder or actor)
                case "inverted":
                    self.publish(fault)
                case "published":
                    self.reopen(number, actor)
                case "error":
                    self.retry(number, actor)
                case "invertible":
                    self.preprocess()
                case _:
                    self.scan(None)
                    self.qualify()
            self.each_op_is_where_the_model_says()

    # What must hold after each step

    @invariant()
    def each_op_is_where_the_model_says(self) -> None:
        if not self.ops:
            return
        rows = {r["op_id"]: r for r in self.connection.execute("select * from l2inv.op_state").fetchall()}
        for op in self.ops + self.others:
            row = rows[op.op_id]
            assert row["state"] == op.state, (op, row)
            assert row["state_before_error"] == op.before_error, (op, row)
            assert (row["on_hold_seq"] is not None, row["priority"]) == (op.on_hold, op.priority), (op, row)
            if op.state == "working":
                assert row["assignee"] == op.holder is not None, (op, row)
                assert (row["due_at"] <= datetime.now(UTC)) == op.overdue, (op, row)
            elif op.state in ("preprocessed", "invertible", "not_invertible", "discovered"):
                assert row["assignee"] is None, (op, row)

    @invariant()
    def the_history_is_numbered_and_every_event_was_allowed(self) -> None:
        present: dict[str, tuple[int, Any, Any]] = {}
        for event in self.seen:
            seq, state, before_error = present.get(event["op_id"], (0, None, None))
            assert event["seq"] == seq + 1, event
            assert states.is_allowed(event["kind"], state, event["state"], before_error), (state, event)
            if event["state"] == "error":
                before_error = state
            present[event["op_id"]] = (event["seq"], event["state"] or state, before_error)

    @invariant()
    def told_once(self) -> None:
        """The store holds one inversion at most of each cycle and instrument program, and all that is published."""
        ids: dict[tuple[Any, ...], set[str]] = {}
        published = set()
        for event in self.seen:
            said = event["detail"]
            if event["kind"] == "inversion_named":
                key = (event["op_id"], said["cycle"], said["instrument_program_id"])
                ids.setdefault(key, set()).add(said["inversion_id"])
            elif event["kind"] == "published":
                published |= {inversion["inversion_id"] for inversion in said["inversions"]}
        held = set(self.store.inversions)
        assert all(len(held & of_one) <= 1 for of_one in ids.values()), ids
        assert held <= set().union(*ids.values())
        assert published <= held


def sample() -> Store:
    return Store(inventory.make(ops=20, now=NOW))


def attacked(url: str, folder: Path, examples: int, steps: int) -> None:
    """Let the machine run that many histories of so many steps, each from a database in which OPs are ready."""
    store = sample()
    with serving(store) as where:
        config = folder / "config.yaml"
        config.write_text(
            yaml.safe_dump({"database": {"url": url}, "metadata_store": {"url": where}, "preprocess": {"work_dir": str(folder / "work")}})
        )  # fmt: skip
        for argv in (["scan"], ["qualify", "--as-of", AS_OF], ["preprocess"]):
            assert (
                CliRunner().invoke(main, ["--config", str(config), "--actor", "cron", *argv]).exit_code == 0
            )
    World.template = str(psycopg.conninfo.conninfo_to_dict(url)["dbname"])
    World.folder, World.steps = folder, 0
    World.kinds = Counter()
    how = settings(
        max_examples=examples, stateful_step_count=steps, derandomize=True, deadline=None, database=None,
        suppress_health_check=list(HealthCheck), print_blob=False,
    )  # fmt: skip
    run_state_machine_as_test(World, settings=how)
    print(f"\n{World.steps} commands in {examples} histories: {dict(World.kinds)}")


def test_after_any_actions_in_any_order_the_record_agrees_with_the_model(url: str, tmp_path: Path) -> None:
    attacked(url, tmp_path, examples=6, steps=25)


@pytest.mark.slow
def test_after_thousands_of_commands_in_any_order_the_record_agrees_with_the_model(
    url: str, tmp_path: Path
) -> None:
    attacked(url, tmp_path, examples=60, steps=50)
