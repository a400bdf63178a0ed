"""Overlapping cron runs of every stage while people claim and release, on a store that changes."""

import json
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from l2inv.database.connection import Connection
from l2inv.domain import states
from l2inv.sample import inventory
from l2inv.sample.server import Store
from tests.helpers.commands import NOW, Commands

STAGES = {"scan": ("scan",), "qualify": ("qualify", "--as-of", NOW.isoformat()), "preprocess": ("preprocess",), "publish": ("publish",)}  # fmt: skip
CLAIMERS = 16
KINDS = {"release": "released", "hand-over": "handed_over", "note": "noted", "mark-inverted": "inverted", "reopen": "reopened"}  # fmt: skip

# Twice every stage, and claimers who claim, give back, hand over and invert: each a process that runs l2inv's
# commands one after the other until the time is over, and writes down what each said.
RACERS = """
import contextlib, io, json, os, random, sys, time
from l2inv.cli import main

config, folder, seconds, stages, claimers = sys.argv[1], sys.argv[2], float(sys.argv[3]), json.loads(sys.argv[4]), int(sys.argv[5])

def run(file, actor, *argv):
    out, err = io.StringIO(), io.StringIO()
    begun = time.time()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(["--config", config, "--actor", actor, *argv, "--json"])
        except SystemExit as end:
            code = end.code or 0
    said = {"actor": actor, "argv": argv, "code": code, "begun": begun, "ended": time.time(), "out": out.getvalue(), "err": err.getvalue()}
    file.write(json.dumps(said) + "\\n")
    file.flush()
    return code, json.loads(out.getvalue())

def stage(file, number, argv):
    run(file, f"cron-{number % 2}", *argv)

def claimer(file, number, draw=None):
    me = f"person-{number}"
    code, found = run(file, me, "next", "--claim")
    claimed = found.get("claimed")
    if code or not claimed:
        # All is done: what was published is begun again.
        found = run(file, me, "list", "--state", "published")[1]["ops"]
        if found:
            run(file, me, "reopen", draw.choice(found)["op_id"], "--reason", "again")
        return
    op = claimed["op_id"]
    what = draw.choice(["release", "hand", "invert", "invert", "note"])
    if what == "release":
        run(file, me, "release", op)
    elif what == "hand":
        other = f"person-{draw.randrange(claimers)}"
        run(file, me, "hand-over", op, "--to", other, "--force")
        run(file, other, "release", op)
    elif what == "note":
        run(file, me, "note", op, "mine")
        run(file, me, "claim", op)  # already
        run(file, me, "release", op)
    elif run(file, me, "mark-inverted", op, "--output", "globus://x", "--software", "x", "--software-version", "1")[0] == 3:
        run(file, me, "release", op)

until, children = time.monotonic() + seconds, []
for number in range(2 * len(stages) + claimers):
    pid = os.fork()
    if pid:
        children.append(pid)
        continue
    draw = random.Random(number)
    with open(os.path.join(folder, f"{number}.said"), "w") as file:
        first = True
        while first or time.monotonic() < until:
            first = False
            if number < 2 * len(stages):
                stage(file, number, stages[number // 2])
            else:
                claimer(file, number - 2 * len(stages), draw)
    os._exit(0)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children))
"""


@dataclass
class Said:
    """A command that a racer ran, and what it answered."""

    actor: str
    argv: list[str]
    code: int
    begun: float
    ended: float
    out: str
    err: str


@pytest.fixture
def store() -> Store:
    """One that is read quickly."""
    return Store(inventory.make(ops=60, now=NOW))


def change(store: Store, over: threading.Event) -> int:
    """Change what verdicts depend on, OP after OP, until it is over; return how often."""
    changes = 0
    while not over.wait(0.2):
        with store.lock:
            dataset = store.datasets[changes * 7 % len(store.datasets)]
            seconds = f"{changes % 60:02}"
            dataset["startTime"] = dataset["startTime"][:17] + seconds + dataset["startTime"][19:]
        changes += 1
    return changes


def race(
    l2inv: Commands, store: Store, connection: Connection, folder: Path, seconds: float
) -> Counter[tuple[str, int]]:
    """Races for so long and return how often each command ended with which exit code."""
    l2inv("scan")
    l2inv("qualify", "--as-of", NOW.isoformat())
    l2inv("preprocess")
    over = threading.Event()
    changer = threading.Thread(target=change, args=(store, over))
    changer.start()
    try:
        done = subprocess.run(
            [sys.executable, "-c", RACERS, str(l2inv.config), str(folder), str(seconds), json.dumps(list(STAGES.values())), str(CLAIMERS)],
            capture_output=True, text=True, timeout=seconds + 60, check=False,
        )  # fmt: skip
    finally:
        over.set()
        changer.join()
    assert (done.returncode, done.stderr) == (0, "")
    said = [
        Said(**json.loads(line)) for file in folder.glob("*.said") for line in file.read_text().splitlines()
    ]
    _each_answer_is_one_that_may_be(said)
    _no_run_of_a_stage_overlaps_another(connection)
    _each_op_has_one_holder_and_every_claim_its_event(said, connection)
    events = _histories_are_whole(connection)
    _the_store_was_told_once_of_each(store, connection)
    for argv in STAGES.values():
        l2inv(*argv, expect=None)
    assert l2inv.json("verify")["findings"] == []
    codes = Counter((s.argv[0], s.code) for s in said)
    print(f"\n{len(said)} commands in {seconds:g} s, {events} events: {dict(sorted(codes.items()))}")
    return codes


def _each_answer_is_one_that_may_be(said: list[Said]) -> None:
    # 4: publish and preprocess say so of an OP that went to error, as one whose datasets changed since it was inverted
    may_be = {
        "scan": {0, 75},
        "qualify": {0, 75},
        "preprocess": {0, 75},
        "publish": {0, 4, 75},
        "reopen": {0, 3, 75},
    }
    for one in said:
        assert one.code in may_be.get(one.argv[0], {0, 3}), one
        assert "deadlock" not in one.out + one.err
        assert "unexpected" not in one.out + one.err
        if one.code == 75:
            assert "another run holds the lock" in one.out


def _no_run_of_a_stage_overlaps_another(connection: Connection) -> None:
    together = connection.execute(
        """
        select a.run_id from l2inv.run a join l2inv.run b on a.stage = b.stage and a.run_id < b.run_id
        where tstzrange(a.started_at, a.finished_at) && tstzrange(b.started_at, b.finished_at)
            or a.finished_at is null or b.finished_at is null
        """
    ).fetchall()
    assert together == []


def _each_op_has_one_holder_and_every_claim_its_event(said: list[Said], connection: Connection) -> None:
    told: Counter[tuple[Any, ...]] = Counter()
    for one in said:
        if one.code:
            continue
        found = json.loads(one.out)
        name = one.argv[0]
        if name == "next" and found["claimed"]:
            told["claimed", found["claimed"]["op_id"], one.actor] += 1
        elif name in KINDS:
            told[KINDS[name], found["op_id"], one.actor] += 1
    kinds = ["claimed", *KINDS.values()]
    rows = connection.execute("select kind, op_id, actor from l2inv.event where kind = any(%s)", [kinds])
    assert Counter((row["kind"], row["op_id"], row["actor"]) for row in rows) == told


def _histories_are_whole(connection: Connection) -> int:
    """Each OP's events are numbered without a hole, each was allowed, and only who held it did what holders do."""
    rows = connection.execute("select op_id, seq, kind, state, actor, detail from l2inv.event order by op_id, seq").fetchall()  # fmt: skip
    op, seq, state, before_error, holder = None, 0, None, None, None
    for row in rows:
        if row["op_id"] != op:
            op, seq, state, before_error, holder = row["op_id"], 0, None, None, None
        assert row["seq"] == seq + 1, row
        assert states.is_allowed(row["kind"], state, row["state"], before_error), (state, row)
        if row["kind"] == "claimed":
            assert holder is None, row
            holder = row["detail"]["assignee"]
        elif row["kind"] in ("released", "handed_over", "inverted"):
            assert holder == row["actor"], row
            holder = row["detail"]["assignee"] if row["kind"] == "handed_over" else None
        if row["state"] == "error":
            before_error = state
        seq, state = row["seq"], row["state"] or state
    return len(rows)


def _the_store_was_told_once_of_each(store: Store, connection: Connection) -> None:
    rows = connection.execute(
        "select op_id, detail ->> 'cycle' as cycle, detail ->> 'instrument_program_id' as program, "
        "array_agg(distinct detail ->> 'inversion_id') as ids from l2inv.event where kind = 'inversion_named' group by 1, 2, 3"
    ).fetchall()
    named = [i for row in rows for i in row["ids"]]
    assert all(len(row["ids"]) == 1 for row in rows), rows
    assert set(store.inversions) <= set(named)
    published = [
        row["inversion_id"] for row in connection.execute("select inversion_id from l2inv.published_op")
    ]
    assert len(published) == len(set(published))
    assert set(published) <= set(store.inversions)


def test_all_stages_twice_and_sixteen_claimers_at_once_lose_and_double_nothing(
    l2inv: Commands, store: Store, connection: Connection, tmp_path: Path
) -> None:
    codes = race(l2inv, store, connection, tmp_path, 1.5)
    assert codes["next", 0] >= CLAIMERS


@pytest.mark.slow
def test_all_stages_twice_and_sixteen_claimers_race_for_a_minute(
    l2inv: Commands, store: Store, connection: Connection, tmp_path: Path
) -> None:
    codes = race(l2inv, store, connection, tmp_path, 60)
    assert codes["mark-inverted", 0] >= CLAIMERS
    assert {name for name, code in codes if code == 75} >= set(STAGES)
