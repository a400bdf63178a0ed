"""verify finds each change that was made around the triggers."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from psycopg.conninfo import conninfo_to_dict

from l2inv.config.settings import Database, Settings
from l2inv.database.access import connected
from l2inv.database.connection import Connection
from l2inv.domain import measures, states
from l2inv.record import anchor as anchors
from l2inv.record import verify
from l2inv.record.chains import Findings
from l2inv.sample import inventory
from l2inv.sample.server import Store, serving
from tests.helpers.commands import NOW, Commands
from tests.helpers.database import copied, copy, drop

TABLES = ("event", "op_state", "dataset_version", "criteria", "run")
CONSTRAINTS = {
    "event": "event_detail_fits",
    "dataset_version": "dataset_version_record_fits",
    "criteria": "criteria_rules_check",
}
CHECKS = ("events", "state", "verdicts", "datasets", "runs", "schema")


@pytest.fixture(scope="module")
def life(ready_template: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A database in which an OP was claimed, released, put on hold, inverted and published: its name, and the OP."""
    name, folder, op = f"lived_{os.getpid()}", tmp_path_factory.mktemp("lived"), ready_template.ops[0]
    with copied(name, ready_template.name) as url, serving(Store(inventory.make(now=NOW))) as store_url:
        settings = {"database": {"url": url}, "metadata_store": {"url": store_url}}
        l2inv = Commands(folder / "config.yaml", settings)
        for command in (
            ("claim", op), ("release", op), ("hold", op, "--reason", "x"), ("unhold", op), ("note", op, "a\nword"),
            ("prioritize", op, "--priority", "4", "--reason", "y"), ("claim", op), ("mark-inverted", op), ("publish",),
        ):  # fmt: skip
            l2inv(*command)
        yield name, op


@pytest.fixture
def lived(l2inv: Commands, url: str, life: tuple[str, str]) -> str:
    """An OP with a life behind it, in a database of the test's own."""
    own = str(conninfo_to_dict(url)["dbname"])
    drop(own)
    copy(own, life[0])
    return life[1]


@pytest.fixture(scope="module")
def session(life: tuple[str, str]) -> Iterator[Connection]:
    """A connection to another such database, which the tests of single changes share."""
    with (
        copied(f"changed_{os.getpid()}", life[0]) as url,
        connected(Settings(database=Database(url=url))) as session,
    ):
        yield session


@pytest.fixture
def rows(session: Connection) -> Iterator[Connection]:
    """The shared database, in a transaction that is rolled back after the test."""
    with session.transaction(force_rollback=True):
        yield session


@pytest.fixture
def op(life: tuple[str, str]) -> str:
    """The OP that lived, in the shared database."""
    return life[1]


def around_the_triggers(connection: Connection, statement: str, values: Any = None) -> None:
    """Do what only a superuser can."""
    with connection.transaction():
        for table in TABLES:
            connection.execute(f"alter table l2inv.{table} disable trigger user")
        for table, name in CONSTRAINTS.items():
            connection.execute(f"alter table l2inv.{table} drop constraint if exists {name}")
        assert connection.execute(statement, values).rowcount > 0
        for table in TABLES:
            connection.execute(f"alter table l2inv.{table} enable trigger user")


def found_in(connection: Connection, *names: str, anchored: Path | None = None) -> list[dict[str, Any]]:
    """What verify finds, in the open transaction, by the named checks of rows, or by all of them."""
    found = Findings()
    with connection.transaction(force_rollback=True):
        against = anchors.load(connection, anchored) if anchored else None
        verify.run_checks(connection, found, list(names or verify.CHECKS), lambda done, of: None)
        if against:
            anchors.check(connection, found, against)
    document: list[dict[str, Any]] = msgspec.to_builtins(found.first)
    return document


def findings(l2inv: Commands, *argv: str) -> list[dict[str, Any]]:
    answer = l2inv("verify", *argv, "--json", expect=None)
    found: list[dict[str, Any]] = answer.json["findings"]
    assert answer.exit_code == (5 if found else 0)
    return found


def test_an_intact_record_has_no_findings_and_the_number_checked_is_printed(
    l2inv: Commands, lived: str
) -> None:
    answer = l2inv.json("verify")
    assert answer["findings"] == []
    status = l2inv.json("status")
    assert answer["checked"]["events"] == status["events"]
    assert answer["checked"]["state"] == status["ops"]
    assert answer["checked"]["verdicts"] > 0
    assert answer["checked"]["datasets"] > 0
    for what in CHECKS:
        assert list(l2inv.json("verify", what)["checked"]) == [what]
    assert l2inv("verify").stdout.startswith("verify: ")


@pytest.mark.parametrize(
    "change",
    [
        "actor = 'somebody else'", "kind = 'retried'", "state = 'working'", "recorded_at = recorded_at + interval '1 microsecond'",
        "run_id = 4711", "detail = detail || '{\"note\": \"never said\"}'", "hash = sha256('')", "seq = seq + 1000",
        "op_id = 'another'", "event_id = 4711",
        "recorded_by = 'somebody'", "recorded_at = 'infinity'", "recorded_at = '99999-01-01'",
    ],
)  # fmt: skip
@pytest.mark.parametrize("which", ["first", "middle", "last"])
def test_one_change_to_one_event_is_found_with_its_op(
    rows: Connection, op: str, change: str, which: str
) -> None:
    events = rows.execute("select event_id from l2inv.event where op_id = %s order by seq", [op]).fetchall()
    event = {"first": events[0], "middle": events[len(events) // 2], "last": events[-1]}[which]
    around_the_triggers(rows, f"update l2inv.event set {change} where event_id = %s", [event["event_id"]])
    assert op in {finding["op_id"] for finding in found_in(rows, "events", "state")}


@pytest.mark.parametrize("which", [0, 4, -1])
def test_a_removed_event_is_found(l2inv: Commands, lived: str, connection: Connection, which: int) -> None:
    event = l2inv.json("history", lived)["events"][which]
    around_the_triggers(connection, "delete from l2inv.event where event_id = %s", [event["event_id"]])
    assert lived in {finding["op_id"] for finding in findings(l2inv)}


def test_an_inserted_event_is_found_whatever_its_hash(
    l2inv: Commands, lived: str, connection: Connection
) -> None:
    around_the_triggers(
        connection,
        """
        insert into l2inv.event (event_id, op_id, seq, kind, actor, detail, recorded_at, recorded_by, hash)
        select 4711, op_id, seq + 1, 'noted', 'han', '{"note": "x"}', now(), recorded_by, sha256(hash)
        from l2inv.event where op_id = %s order by seq desc limit 1
        """,
        [lived],
    )
    assert {finding["what"] for finding in findings(l2inv)} == {"event", "state", "schema"}


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("judged", "'{}'"), ("judged", "detail || '{\"verdict\": null}'"), ("judged", "detail || '{\"verdict\": {}}'"),
        ("judged", "detail || '{\"datasets\": {\"x\": \"y\"}}'"), ("judged", "detail || '{\"datasets\": {\"x\": 99999999999}}'"),
        ("judged", "detail - 'criteria_version'"), ("discovered", "detail || '{\"versions\": 7}'"),
        ("discovered", "detail || '{\"versions\": {\"x\": \"y:z\"}}'"), ("claimed", "detail || '{\"due_at\": \"never\"}'"),
        ("prioritized", "detail || '{\"priority\": 1e99}'"), ("published", "'{}'"),
    ],
)  # fmt: skip
def test_an_event_whose_detail_no_longer_makes_sense_is_a_finding_and_no_failure(
    rows: Connection, op: str, kind: str, change: str
) -> None:
    around_the_triggers(
        rows, f"update l2inv.event set detail = {change} where op_id = %s and kind = %s", [op, kind]
    )
    assert "event" in {finding["what"] for finding in found_in(rows) if finding["op_id"] == op}
    for name in verify.CHECKS:
        assert not [finding for finding in found_in(rows, name) if "None" in finding["detail"]]


def test_an_invalid_detail_is_a_finding_of_each_check_on_the_command_line(
    l2inv: Commands, lived: str, connection: Connection
) -> None:
    around_the_triggers(connection, "update l2inv.event set detail = '{}' where op_id = %s", [lived])
    for what in CHECKS:
        said = l2inv("verify", what, expect=None)
        assert said.exit_code in (0, 5), said
        assert "unexpected" not in said.stderr
        assert "None" not in said.stderr


def test_the_hash_that_an_insert_names_is_not_the_one_that_is_kept(
    l2inv: Commands, ready: list[str], connection: Connection
) -> None:
    connection.execute(
        """
        insert into l2inv.event (op_id, seq, kind, actor, detail, hash)
        select op_id, seq + 1, 'noted', 'han', '{"note": "x"}', sha256('forged') from l2inv.op_state where op_id = %s
        """,
        [ready[0]],
    )
    assert findings(l2inv) == []


@pytest.mark.parametrize(
    "change",
    ["state = 'invertible'", "assignee = 'eve'", "priority = 1000", "since = since - interval '1 day'", "seq = seq - 1",
     "on_hold_seq = 1", "due_at = now()", "verdict_seq = null", "datasets_seq = 99",
     "hash = sha256('')", "criteria_version = 'x'", "overruled_seq = 2", "cycle = 2", "due_at = 'infinity'"],
)  # fmt: skip
def test_a_present_state_that_is_not_what_the_events_say_is_found(
    rows: Connection, op: str, change: str
) -> None:
    around_the_triggers(rows, f"update l2inv.op_state set {change} where op_id = %s", [op])
    (finding,) = found_in(rows, "state")
    assert (finding["what"], finding["op_id"]) == ("state", op)
    assert change.split(" = ", maxsplit=1)[0] in finding["detail"]


@pytest.mark.parametrize("change", ["r0_class = 5 - r0_class", "r0_class = null"])
def test_a_rank_that_is_not_what_the_datasets_say_is_found(rows: Connection, change: str) -> None:
    row = rows.execute("select op_id from l2inv.op_state where state = 'preprocessed'").fetchone()
    assert row
    around_the_triggers(rows, f"update l2inv.op_state set {change} where op_id = %s", [row["op_id"]])
    (finding,) = found_in(rows, "datasets")
    assert (finding["what"], finding["op_id"]) == ("state", row["op_id"])
    assert "r0_class" in finding["detail"]


@pytest.mark.parametrize(
    ("check", "change"),
    [
        ("datasets", "arrived = arrived - interval '1 day'"),
        ("datasets", "observed = null"),
        ("verdicts", "reasons = reasons || '{\"programs\": 7}'"),
        ("verdicts", "reasons = null"),
    ],
)
def test_what_the_report_reads_beside_the_state_is_compared_with_the_datasets_and_the_verdict(
    rows: Connection, op: str, check: str, change: str
) -> None:
    around_the_triggers(rows, f"update l2inv.op_state set {change} where op_id = %s", [op])
    (finding,) = found_in(rows, check)
    assert (finding["what"], finding["op_id"]) == ("state", op)
    assert change.split(" = ", maxsplit=1)[0] in finding["detail"]


def test_a_present_state_that_is_gone_or_invented_is_found(
    l2inv: Commands, lived: str, connection: Connection
) -> None:
    around_the_triggers(connection, "update l2inv.op_state set op_id = 'invented' where op_id = %s", [lived])
    assert {finding["op_id"] for finding in findings(l2inv, "state")} == {"invented", lived}


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("update l2inv.dataset_version set record = record || '{\"bucket\": \"other\"}'", "is not what was read"),
        ("update l2inv.dataset_version set content_hash = sha256('')", "is not what"),
        ("delete from l2inv.dataset_version", "is missing"),
        ("update l2inv.dataset_version set version = 2", "is missing"),
        ("insert into l2inv.dataset_version select dataset_id, version + 1, op_id, content_hash, record, run_id, now(), true "
         "from l2inv.dataset_version", "is named by no event"),
        ("insert into l2inv.dataset_version select 'invented', 1, op_id, content_hash, record, run_id, now(), false "
         "from l2inv.dataset_version", "is named by no event"),
        ("update l2inv.dataset_version set op_id = 'another'", "is not what its event names"),
        ("update l2inv.dataset_version set withdrawn = true", "is not what its event names"),
        ("update l2inv.dataset_version set run_id = 2", "is not what its event names"),
        ("update l2inv.dataset_version set record = record || '{\"more\": 1}'", "is not what was read"),
        ("update l2inv.dataset_version set record = '{}'", "is not what was read"),
    ],
)  # fmt: skip
def test_one_change_to_a_dataset_version_is_found(
    rows: Connection, op: str, statement: str, said: str
) -> None:
    dataset = rows.execute(
        "select min(dataset_id) as id from l2inv.dataset where op_id = %s", [op]
    ).fetchone()
    assert dataset
    around_the_triggers(rows, f"{statement} where dataset_id = %s", [dataset["id"]])
    told = {f["op_id"] for f in found_in(rows) if said in f["detail"] and f["what"] == "dataset"}
    assert op in told
    assert told <= {op, "another"}


@pytest.mark.parametrize("kept", [0, 1])
def test_an_op_that_is_gone_with_all_its_events_and_datasets_is_missed_by_its_runs(
    l2inv: Commands, lived: str, connection: Connection, kept: int
) -> None:
    around_the_triggers(connection, "delete from l2inv.event where op_id = %s", [lived])
    around_the_triggers(connection, "delete from l2inv.op_state where op_id = %s", [lived])
    if not kept:
        around_the_triggers(connection, "delete from l2inv.dataset_version where op_id = %s", [lived])
    said = {finding["detail"] for finding in findings(l2inv, "runs")}
    ops = l2inv.json("status")["ops"]
    assert f"run 1 recorded {ops + 1} events discovered, {ops} are there" in said
    assert len(said) >= 4  # those that judged, prepared and published it too
    assert bool([f for f in findings(l2inv, "datasets") if "named by no event" in f["detail"]]) == bool(kept)


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("delete from l2inv.run where run_id = 2", "run 2, which recorded it, is missing"),
        ("update l2inv.run set actor = 'eve' where run_id = 2", "run 2 is of qualify by eve, which records no event judged by han"),
        ("update l2inv.run set stage = 'scan' where run_id = 2", "run 2 is of scan by han"),
        ("update l2inv.run set result = jsonb_set(result, '{ops,judged}', '99') where run_id = 2", "run 2 recorded 99 events judged"),
        ("update l2inv.run set result = jsonb_set(result, '{datasets,new}', '999') where run_id = 1", "run 1 read 999 dataset versions"),
        ("update l2inv.criteria set rules = rules || '{\"min_ao_locked\": 0.5}'", "are not those that were kept"),
        ("update l2inv.criteria set rules = '{\"nonsense\": 0.5}'", "are not those that were kept"),
        ("update l2inv.criteria set rules = '7'", "are not those that were kept"),
        ("delete from l2inv.criteria", "are not kept"),
        ("insert into l2inv.criteria (criteria_version, rules) values ('more', '{}')", "criteria more are not those that were kept"),
        ("update l2inv.quarantine set raw = 'x'", "is not what was received"),
        ("update l2inv.quarantine set raw_hash = sha256('x') where raw_hash = (select min(raw_hash) from l2inv.quarantine)", "is not what was received"),
    ],
)  # fmt: skip
def test_one_change_to_a_run_the_criteria_or_what_was_set_aside_is_found(
    rows: Connection, statement: str, said: str
) -> None:
    around_the_triggers(rows, statement)
    assert [finding for finding in found_in(rows) if said in finding["detail"]]


@pytest.fixture
def anchor(l2inv: Commands, lived: str, tmp_path: Path) -> Path:
    """A file that names what the lived database holds."""
    anchor = tmp_path / "heads"
    made = l2inv.json("verify", "--anchor", str(anchor), "--new-anchor")
    assert made["anchored"] == l2inv.json("status")["ops"]
    return anchor


def cut(connection: Connection, op_id: str, after: int) -> None:
    """Remove an OP's events after one, and make its state that of before, as whoever can would do it."""
    with connection.transaction():
        for table in ("event", "op_state"):
            connection.execute(f"alter table l2inv.{table} disable trigger user")
        connection.execute("delete from l2inv.event where op_id = %s and seq > %s", [op_id, after])
        op = states.Op(op_id)
        for e in connection.execute("select * from l2inv.event where op_id = %s order by seq", [op_id]):
            detail = msgspec.convert(e["detail"], states.Detail)
            states.follow(op, e["seq"], e["kind"], e["state"], e["recorded_at"], e["hash"], detail)
        columns = msgspec.structs.asdict(op)
        if op.state == "preprocessed":
            row = connection.execute(
                "select fried_parameter_med_m from l2inv.op where op_id = %s", [op_id]
            ).fetchone()
            assert row
            columns["r0_class"] = 1 + measures.R0_CLASSES.index(
                measures.r0_class(row["fried_parameter_med_m"])
            )
        changes = ", ".join(f"{name} = %({name})s" for name in columns)
        connection.execute(f"update l2inv.op_state set {changes} where op_id = %(op_id)s", columns)
        for table, trigger in (
            ("event", "append_only"),
            ("event", "record_event"),
            ("op_state", "derived_only"),
        ):
            connection.execute(f"alter table l2inv.{table} enable always trigger {trigger}")


@pytest.mark.parametrize("since", [(), ("--since-anchor",)], ids=["whole", "since"])
def test_an_anchor_finds_a_tail_that_was_rewritten_with_all_that_follows_from_it(
    l2inv: Commands, lived: str, connection: Connection, anchor: Path, since: tuple[str, ...]
) -> None:
    before = anchor.read_text()
    l2inv("note", lived, "later")
    answer = l2inv.json("verify", "--anchor", str(anchor), *since)
    assert answer["findings"] == []
    assert answer["anchored"] == 1  # what is new
    kept = anchor.read_text()
    assert kept.startswith(before)
    cut(connection, lived, 9)
    found = findings(l2inv, "--anchor", str(anchor), *since)
    assert ("anchor", lived) in [(f["what"], f["op_id"]) for f in found if f["what"] != "run"]
    assert {f["what"] for f in found} <= {"anchor", "run"}
    assert [f for f in found if "events were anchored" in f["detail"]]
    assert anchor.read_text() == kept


def test_since_an_anchor_what_came_after_is_checked_from_the_anchored_event_on(
    l2inv: Commands, lived: str, connection: Connection, anchor: Path
) -> None:
    l2inv("note", lived, "one")
    l2inv("note", lived, "two")
    answer = l2inv.json("verify", "--anchor", str(anchor), "--since-anchor")
    assert answer["findings"] == []
    assert (answer["checked"]["events"], answer["checked"]["state"]) == (2, 1)
    assert l2inv.json("verify", "--anchor", str(anchor), "--since-anchor")["checked"]["events"] == 0
    l2inv("note", lived, "three")
    l2inv("note", lived, "four")
    newest = l2inv.json("history", lived)["events"][-2]
    around_the_triggers(
        connection, "update l2inv.event set actor = 'eve' where event_id = %s", [newest["event_id"]]
    )
    found = findings(l2inv, "--anchor", str(anchor), "--since-anchor")
    assert ("event", newest["event_id"]) in [(f["what"], f["event_id"]) for f in found]


@pytest.mark.parametrize("since", [True, False])
def test_an_event_whose_number_readers_by_cursor_have_passed_is_found(
    l2inv: Commands, lived: str, connection: Connection, anchor: Path, since: bool
) -> None:
    """Numbers leap at a restore; an owner who sets the sequence back has the trigger itself record events in the gap."""
    options = ("--anchor", str(anchor), *(["--since-anchor"] if since else []))
    low = connection.execute("select max(event_id) as number from l2inv.event").fetchone()
    assert low
    set_to = "select setval('l2inv.event_event_id_seq', %s)"
    connection.execute(set_to, [low["number"] + 1000])
    l2inv("note", lived, "high")
    assert findings(l2inv, *options) == []
    connection.execute(set_to, [low["number"]])
    assert ["which is no higher" in f["detail"] for f in findings(l2inv, *options)] == [True]
    l2inv("note", lived, "low")
    connection.execute(set_to, [low["number"] + 2000])
    (finding,) = findings(l2inv, *options)
    assert (finding["op_id"], finding["event_id"]) == (lived, low["number"] + 1)
    assert "lower number than the one before it" in finding["detail"]


def test_since_an_anchor_new_ops_and_verdicts_are_checked(
    l2inv: Commands, ready: list[str], connection: Connection, tmp_path: Path
) -> None:
    anchor = str(tmp_path / "heads")
    l2inv.json("verify", "--anchor", anchor, "--new-anchor")
    (tmp_path / "heads").write_text(
        (tmp_path / "heads").read_text().splitlines()[0] + "\n"
    )  # as of before all
    answer = l2inv.json("verify", "--anchor", anchor, "--since-anchor")
    whole = l2inv.json("verify")["checked"]
    assert answer["findings"] == []
    assert {name: answer["checked"][name] for name in ("events", "state", "verdicts")} == {
        name: whole[name] for name in ("events", "state", "verdicts")
    }
    assert answer["anchored"] == whole["state"]


def test_since_an_anchor_a_new_verdict_is_judged_again(
    l2inv: Commands, lived: str, connection: Connection, anchor: Path
) -> None:
    anchor.write_text(anchor.read_text().splitlines()[0] + "\n")  # as of before all
    around_the_triggers(connection, "update l2inv.op_state set reasons = '{}' where op_id = %s", [lived])
    found = findings(l2inv, "--anchor", str(anchor), "--since-anchor")
    assert (lived, "reasons differ from those of its verdict") in [(f["op_id"], f["detail"]) for f in found]


@pytest.mark.parametrize("column", ["op_id", "seq"])
def test_since_an_anchor_a_new_event_of_no_op_or_number_is_found(
    l2inv: Commands, lived: str, connection: Connection, anchor: Path, column: str
) -> None:
    l2inv("note", lived, "one more")
    connection.execute(f"alter table l2inv.event alter {column} drop not null".encode())
    change = (
        f"update l2inv.event set {column} = null where event_id = (select max(event_id) from l2inv.event)"
    )
    around_the_triggers(connection, change)
    found = findings(l2inv, "--anchor", str(anchor), "--since-anchor")
    assert "the event is of no OP, or has no number there" in [f["detail"] for f in found]


@pytest.mark.parametrize(
    "change", ["result = null", "finished_at = null", "actor = 'eve'", "started_at = now()", "result = result - 'seconds'"]
)  # fmt: skip
def test_an_anchor_finds_a_run_that_was_changed(rows: Connection, tmp_path: Path, change: str) -> None:
    anchored = tmp_path / "heads"
    with (
        rows.transaction(force_rollback=True),
        anchors.block(rows, anchors.load(rows, anchored, is_new=True)) as (block, _),
    ):
        anchors.append(anchored, block)
    assert found_in(rows, anchored=anchored) == []
    around_the_triggers(rows, f"update l2inv.run set {change} where run_id = 3")
    assert [f for f in found_in(rows, anchored=anchored) if "run 3 is" in f["detail"]]


def test_an_anchor_finds_runs_that_nothing_refers_to_removed(
    l2inv: Commands, lived: str, connection: Connection, anchor: Path
) -> None:
    l2inv("qualify")
    l2inv("verify", "--anchor", str(anchor))
    around_the_triggers(
        connection, "delete from l2inv.run where run_id = (select max(run_id) from l2inv.run)"
    )
    words = [f["detail"] for f in findings(l2inv, "--anchor", str(anchor)) if f["what"] == "anchor"]
    assert any("is missing" in word for word in words)
    assert any("runs were anchored" in word for word in words)


def test_a_missing_or_empty_anchor_is_refused_and_a_new_one_overwrites_none(
    l2inv: Commands, ready: list[str], tmp_path: Path
) -> None:
    anchor = tmp_path / "heads"
    assert "is missing" in l2inv("verify", "--anchor", str(anchor), expect=1).stderr
    assert not anchor.exists()
    anchor.touch()
    assert "is empty" in l2inv("verify", "--anchor", str(anchor), expect=1).stderr
    l2inv("verify", "--anchor", str(anchor), "--new-anchor")
    content = anchor.read_bytes()
    assert "exists already" in l2inv("verify", "--anchor", str(anchor), "--new-anchor", expect=1).stderr
    assert anchor.read_bytes() == content
    l2inv("verify", "--new-anchor", expect=2)
    l2inv("verify", "--since-anchor", expect=2)


def test_an_anchor_left_by_a_killed_writer_can_be_continued(
    l2inv: Commands, ready: list[str], tmp_path: Path
) -> None:
    anchor = tmp_path / "heads"
    l2inv("verify", "--anchor", str(anchor), "--new-anchor")
    content = anchor.read_bytes()
    anchor.write_bytes(content[: len(content) // 2])
    for _ in range(2):
        assert l2inv.json("verify", "--anchor", str(anchor))["findings"] == []
    assert anchor.read_bytes().startswith(content[: len(content) // 2])


def test_only_what_was_checked_whole_is_anchored(l2inv: Commands, lived: str, anchor: Path) -> None:
    content = anchor.read_bytes()
    l2inv("note", lived, "later")
    assert "anchored" not in l2inv.json("verify", "state", "--anchor", str(anchor))
    assert anchor.read_bytes() == content


@pytest.mark.parametrize(
    "content", ["nonsense\n", '["op", "1", "ff"]\n', '["op", 1, "ff"]\n', "\udcff", '{"anchor": 9}\n']
)
def test_a_file_that_is_no_anchor_is_named(
    l2inv: Commands, ready: list[str], tmp_path: Path, content: str
) -> None:
    anchor = tmp_path / "heads"
    anchor.write_bytes(content.encode("utf-8", "surrogateescape"))
    before = anchor.read_bytes()
    assert str(anchor) in l2inv("verify", "--anchor", str(anchor), expect=1).stderr
    assert anchor.read_bytes() == before


def test_a_pipe_is_no_anchor_and_nobody_waits_for_it(
    l2inv: Commands, ready: list[str], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "heads")
    for more in ((), ("--new-anchor",)):
        assert "heads" in l2inv("verify", "--anchor", str(tmp_path / "heads"), *more, expect=1).stderr
