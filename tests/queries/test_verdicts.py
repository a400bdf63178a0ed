"""What the verdicts tell: why, how nearly, by which criteria, what others would change, and how long to wait."""

import sys
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from psycopg.types.json import Jsonb

from l2inv.config.settings import Qualification
from l2inv.queries import verdicts
from l2inv.queries.what_if import what_if
from l2inv.sample.server import Store
from tests.conftest import NOW, Commands, Connection
from tests.helpers.terminals import shown_by
from tests.stages.test_qualify import AS_OF, visp

REAL = Path(__file__).parents[3] / "shared" / "real" / "inventory-2023-10.json"
PRESENT = "854543d9cf5a"  # the version of the default criteria


def on_a_terminal(l2inv: Commands, *argv: str, **env: str) -> str:
    """What a command writes to a terminal that knows colours."""
    return shown_by([sys.executable, "-m", "l2inv", "--config", str(l2inv.config), *argv], 200, **env)


def judged(l2inv: Commands) -> None:
    l2inv("scan")
    l2inv(*AS_OF)


def against(verdict: dict[str, Any], result: str) -> set[str]:
    """The names of what decides and came out so, over all instrument programs."""
    return {
        c["name"]
        for program in verdict["instrument_programs"]
        for c in program["criteria"]
        if c["result"] == result and not c.get("optional")
    }


def not_invertible(l2inv: Commands, *names: str) -> str:
    """The first OP of the sample store, one instrument program alone, that fails on exactly these criteria."""
    for op in l2inv.json("list", "--state", "not_invertible")["ops"]:
        verdict = l2inv.json("show", op["op_id"])["verdict"]
        if len(verdict["instrument_programs"]) == 1 and against(verdict, "fail") == set(names):
            return str(op["op_id"])
    raise AssertionError(names)


def rules(file: Path, **qualification: Any) -> str:
    """A settings file with other criteria."""
    file.write_text(yaml.safe_dump({"qualification": qualification}))
    return str(file)


# explain


def test_a_verdict_is_explained_with_the_margin_of_each_criterion(l2inv: Commands) -> None:
    judged(l2inv)
    op = not_invertible(l2inv, "ao")
    found = l2inv.json("explain", op)
    assert (found["op_id"], found["state"], found["invertible"]) == (op, "not_invertible", False)
    assert (found["criteria_version"], found["undetermined"]) == (PRESENT, False)
    (program,) = found["instrument_programs"]
    failed = [c for c in program["criteria"] if c["name"] == "ao" and c["result"] == "fail"]
    assert [(c["measured"], c["required"], c["margin"]) for c in failed] == [(0.74, 0.75, -0.01)]
    for criterion in program["criteria"]:
        has_one = criterion["name"] in ("health", "gos", "ao", "on_disk")
        assert (criterion.pop("margin") is not None) == has_one
    assert found["instrument_programs"] == l2inv.json("show", op)["verdict"]["instrument_programs"]
    shown = l2inv("explain", op).stdout
    assert "-0.01\n" in shown
    assert "band Ca II 849.8 (optional)" in shown


def test_an_op_that_was_never_judged_says_so(l2inv: Commands) -> None:
    l2inv("scan")
    op = l2inv.json("list")["ops"][0]["op_id"]
    found = l2inv.json("explain", op)
    assert (found["op_id"], found["state"], found["criteria_version"]) == (op, "discovered", None)
    assert (found["invertible"], found["undetermined"], found["instrument_programs"]) == (None, None, [])
    assert "not judged yet" in l2inv("explain", op).stdout
    assert "is unknown" in l2inv("explain", "nobody's", expect=3).stderr


def test_a_verdict_whose_datasets_changed_or_that_is_overruled_is_explained_as_such(
    l2inv: Commands, store: Store, ready: list[str]
) -> None:
    l2inv("overrule", ready[0], "--not-invertible", "--reason", "clouds in the movie")
    assert l2inv.json("explain", ready[0])["overruled_by"]["reason"] == "clouds in the movie"
    assert "not invertible: clouds in the movie" in l2inv("explain", ready[0]).stdout
    assert l2inv.json("explain", ready[1])["inputs_changed"] is False
    visp(store, ready[1])[0]["aoLocked"] = 1
    l2inv("scan")
    assert l2inv.json("explain", ready[1])["inputs_changed"] is True
    assert "changed since" in l2inv("explain", ready[1]).stdout


def test_results_are_coloured_on_a_terminal_unless_no_color_is_set(l2inv: Commands) -> None:
    judged(l2inv)
    failed = not_invertible(l2inv, "ao")
    shown = on_a_terminal(l2inv, "explain", failed)
    assert "\x1b[32mpass" in shown
    assert "\x1b[31mfail" in shown
    plain = on_a_terminal(l2inv, "explain", failed, NO_COLOR="1")
    assert "fail" in plain
    assert not {"\x1b[31m", "\x1b[32m", "\x1b[33m"} & {plain[at : at + 5] for at in range(len(plain))}
    assert "\x1b" not in l2inv("explain", failed).stdout
    ops = l2inv.json("list", "--state", "not_invertible")["ops"]
    unknown = next(op["op_id"] for op in ops if l2inv.json("explain", op["op_id"])["undetermined"])
    assert "\x1b[33munknown" in on_a_terminal(l2inv, "explain", unknown)


def test_an_optional_band_is_no_reason(l2inv: Commands) -> None:
    judged(l2inv)
    op = not_invertible(l2inv, "ao")
    lines = l2inv("history", op).stdout.splitlines()
    assert lines[-1].endswith(f"not invertible, fail: ao (criteria {PRESENT})")


# near-misses


def test_near_misses_are_the_ops_with_a_program_that_fails_on_one_criterion_alone(
    l2inv: Commands, store: Store
) -> None:
    fewer_than_the_others = next(
        d for d in store.datasets if d["aoLocked"] == d["frameCount"] * 74 // 100 > 0
    )
    fewer_than_the_others["aoLocked"] = fewer_than_the_others["frameCount"]
    judged(l2inv)
    expected: dict[str, set[str]] = {}
    for op in l2inv.json("list", "--state", "not_invertible")["ops"]:
        for program in l2inv.json("show", op["op_id"])["verdict"]["instrument_programs"]:
            alone = {"instrument_programs": [program]}
            names = against(alone, "fail")
            if len(names) == 1 and not against(alone, "unknown"):
                expected.setdefault(names.pop(), set()).add(op["op_id"])
    assert {"ao", "gos", "health", "on_disk", "stokes", "band Ca II 854.2", "band Fe I 630.2"} <= set(
        expected
    )
    found = l2inv.json("near-misses")["criteria"]
    assert {c["name"]: {op["op_id"] for op in c["ops"]} for c in found} == expected
    assert all(len(c["ops"]) == len(expected[c["name"]]) for c in found)
    assert [len(c["ops"]) for c in found] == sorted((len(c["ops"]) for c in found), reverse=True)
    by_name = {c["name"]: c["ops"][0] for c in found}
    assert by_name["ao"].keys() == {"op_id", "instrument_program_id", "measured", "required", "margin"}
    assert (by_name["ao"]["measured"], by_name["ao"]["required"], by_name["ao"]["margin"]) == (0.74, 0.75, -0.01)  # fmt: skip
    assert (by_name["stokes"]["measured"], by_name["stokes"]["margin"]) == ("I", None)
    shown = l2inv("near-misses").stdout
    assert f"ao: {len(expected['ao'])} OP" in shown
    assert all(op in shown for ops in expected.values() for op in ops)


def test_near_misses_go_by_the_worst_dataset_the_nearest_program_and_come_nearest_first(
    l2inv: Commands, store: Store
) -> None:
    judged(l2inv)
    good = [op["op_id"] for op in l2inv.json("list", "--state", "invertible")["ops"]]
    alone = [op for op in good if len({d["instrumentProgramExecutionId"] for d in visp(store, op)}) == 1]
    several = next(op for op in good if op not in alone)
    frames: dict[str, Any] = {"frameCount": 100, "health": {"good": 100}, "gosStatus": {"open": 100}}
    locked = {alone[0]: (74, 50), alone[1]: (60, 74)}
    for op, shares in locked.items():
        for dataset, share in zip(visp(store, op), shares, strict=False):
            dataset.update(frames, aoLocked=share)
    programs = sorted({d["instrumentProgramExecutionId"] for d in visp(store, several)})
    for dataset in visp(store, several):
        nearest = dataset["instrumentProgramExecutionId"] == programs[1]
        dataset.update(frames, aoLocked=70 if nearest else 40)
    store.datasets[:] = [d for op in (*locked, several) for d in visp(store, op)]
    l2inv("scan", "--allow-withdrawals")
    l2inv(*AS_OF)
    (ao,) = [c for c in l2inv.json("near-misses")["criteria"] if c["name"] == "ao"]
    nearest_first = [(several, 0.7), (alone[1], 0.6), (alone[0], 0.5)]
    assert [(op["op_id"], op["measured"]) for op in ao["ops"]] == nearest_first
    assert ao["ops"][0]["instrument_program_id"] == programs[1]


def test_no_near_miss_is_said(l2inv: Commands) -> None:
    assert l2inv.json("near-misses") == {"criteria": []}
    assert l2inv("near-misses").stdout == "no OP fails on exactly one criterion\n"


# criteria


def test_every_version_of_the_criteria_says_since_when_and_how_much_it_judged(l2inv: Commands) -> None:
    l2inv("scan")
    all_judged = l2inv.json(*AS_OF)["ops"]["judged"]
    l2inv.settings["qualification"] = {"min_ao_locked": 0.5}
    l2inv.save()
    assert "have judged nothing yet" in l2inv("criteria").stdout
    earlier = (NOW - timedelta(days=60)).isoformat()
    judged_again = l2inv.json("qualify", "--as-of", earlier)["ops"]["judged"]
    assert 0 < judged_again < all_judged
    found = l2inv.json("criteria")
    old, new = found["versions"]
    assert (old["criteria_version"], found["present"]) == (PRESENT, new["criteria_version"])
    assert datetime.fromisoformat(old["first_used_at"]) < datetime.fromisoformat(new["first_used_at"])
    assert (old["verdicts"], old["ops"]) == (all_judged, all_judged - judged_again)
    assert (new["verdicts"], new["ops"]) == (judged_again, judged_again)
    assert (old["rules"]["min_ao_locked"], new["rules"]["min_ao_locked"]) == (0.75, 0.5)
    (line,) = [x for x in l2inv("criteria").stdout.splitlines() if "the present settings" in x]
    assert line.startswith(new["criteria_version"])


def test_two_versions_are_compared_by_what_they_say(l2inv: Commands) -> None:
    judged(l2inv)
    bands = [
        {"name": "Fe I 630.2", "min_nm": 629.7, "center_nm": 630.2, "max_nm": 630.5, "required": True},
        {"name": "Ca II 854.2", "min_nm": 853.5, "center_nm": 854.2, "max_nm": 855.0, "required": False},
    ]
    l2inv.settings["qualification"] = {
        "min_ao_locked": 0.5,
        "instruments": ["VISP", "DL-NIRSP"],
        "bands": bands,
    }
    l2inv.save()
    new = l2inv.json(*AS_OF)["criteria_version"]
    found = l2inv.json("criteria", PRESENT[:7], new)
    assert (found["from"], found["to"]) == (PRESENT, new)
    gone = {"name": "Ca II 849.8", "min_nm": 849.3, "center_nm": 849.8, "max_nm": 850.2, "required": False}
    assert found["differences"] == [
        {"path": "bands.Ca II 849.8", "old": gone, "new": None},
        {"path": "bands.Ca II 854.2.required", "old": True, "new": False},
        {"path": "instruments", "old": ["VISP"], "new": ["DL-NIRSP", "VISP"]},
        {"path": "min_ao_locked", "old": 0.75, "new": 0.5},
    ]
    assert "min_ao_locked: 0.75 -> 0.5\n" in l2inv("criteria", PRESENT, new).stdout
    assert l2inv("criteria", new, new).stdout == "no difference\n"


def test_rules_for_one_instrument_are_compared_by_its_name(l2inv: Commands, connection: Connection) -> None:
    judged(l2inv)
    before_it_could_be_set = connection.execute("select rules - 'per_instrument' as rules from l2inv.criteria").fetchone()  # fmt: skip
    assert before_it_could_be_set is not None
    connection.execute(
        "insert into l2inv.criteria (criteria_version, rules) values ('older', %s)",
        [Jsonb(before_it_could_be_set["rules"])],
    )
    assert l2inv.json("criteria", "older", PRESENT)["differences"] == []
    versions = [PRESENT]
    for stokes in ("I", "IQ"):
        own = {"instrument": "CRYO-NIRSP", "stokes": stokes}
        l2inv.settings["qualification"] = {"per_instrument": [own]}
        l2inv.save()
        versions.append(l2inv.json(*AS_OF)["criteria_version"])
    path = "per_instrument.CRYO-NIRSP"
    added, changed = (l2inv.json("criteria", *pair)["differences"] for pair in pairwise(versions))
    assert added == [{"path": path, "old": None, "new": {"instrument": "CRYO-NIRSP", "stokes": "I"}}]
    assert changed == [{"path": f"{path}.stokes", "old": "I", "new": "IQ"}]


def test_the_order_of_bands_and_instruments_is_no_difference() -> None:
    one = {"bands": [{"name": "a", "x": 1}, {"name": "b", "x": 2}], "instruments": ["P", "Q"]}
    other = {"bands": one["bands"][::-1], "instruments": ["Q", "P"]}
    assert verdicts.differences(one, other) == []
    assert verdicts.differences({"bands": []}, {"bands": []}) == []


def test_a_version_that_is_unknown_or_fits_several_is_refused(
    l2inv: Commands, connection: Connection
) -> None:
    judged(l2inv)
    connection.execute(
        "insert into l2inv.criteria (criteria_version, rules) values (%s, %s)", [PRESENT[:6] + "000000", Jsonb({})]
    )  # fmt: skip
    assert "unknown" in l2inv("criteria", PRESENT, "fff", expect=3).stderr
    assert PRESENT in l2inv("criteria", PRESENT[:6], PRESENT, expect=3).stderr
    error = l2inv("criteria", "%", PRESENT, "--json", expect=3).json["error"]
    assert error["code"] == 3
    assert "unknown" in error["message"]
    l2inv("criteria", PRESENT, expect=2)


# completeness


def arrivals(store: Store, *ops: tuple[str, dict[str, list[float]]]) -> None:
    """Make the store hold OPs with datasets of these instruments, so many days after the first day."""
    one = store.datasets[0]
    store.datasets[:] = [
        one
        | {
            "datasetId": f"{op}{instrument}{number}",
            "observingProgramExecutionId": op,
            "instrumentName": instrument,
            "createDate": (datetime(2026, 1, 1) + timedelta(days=day)).isoformat(),
        }
        for op, instruments in ops
        for instrument, days in instruments.items()
        for number, day in enumerate(days)
    ]


def late(found: dict[str, Any], name: str) -> dict[float, int]:
    (group,) = [group for group in found["instruments"] if group["name"] == name]
    for share in group["shares"]:
        assert share["share"] == round(1 - share["late"] / group["ops"], 4)
    return {share["quiet_days"]: share["late"] for share in group["shares"]}


def test_an_op_is_late_when_a_dataset_came_after_so_many_quiet_days(l2inv: Commands, store: Store) -> None:
    arrivals(
        store,
        ("one", {"VISP": [0, 3], "VBI": [40]}),
        ("two", {"VISP": [100, 0, 2.5]}),
        ("three", {"VBI": [0, 200]}),
        ("four", {"VISP": [5]}),
    )
    l2inv.settings["completeness"] = {"quiet_days": 2.75}
    l2inv.save()
    l2inv("scan")
    found = l2inv.json("completeness")
    assert found["ops"] == 4
    named = [(group["name"], group["ops"]) for group in found["instruments"]]
    assert named == [("all instruments", 4), ("qualifying instruments", 3), ("VBI", 2), ("VISP", 3)]
    days = [1, 2.75, 3, 7, 14, 30, 60, 90, 180]
    assert late(found, "all instruments") == dict(zip(days, [3, 3, 3, 3, 3, 3, 2, 2, 1], strict=True))
    assert late(found, "qualifying instruments") == dict(zip(days, [2, 2, 1, 1, 1, 1, 1, 1, 0], strict=True))
    assert late(found, "VISP") == late(found, "qualifying instruments")
    assert late(found, "VBI") == dict.fromkeys(days, 1)
    lines = l2inv("completeness").stdout.splitlines()
    (marked, _) = [line for line in lines if line.endswith("<- quiet_days")]
    assert marked.split() == ["2.75", "##########", "25.0%", "<-", "quiet_days"]


def test_what_a_dataset_became_later_makes_no_arrival_and_what_was_withdrawn_arrived(
    l2inv: Commands, store: Store
) -> None:
    arrivals(store, ("one", {"VISP": [0, 10]}), ("two", {"VISP": [0]}))
    l2inv("scan")
    before = l2inv.json("completeness")
    store.datasets[0]["createDate"] = "2026-09-01T00:00:00"
    del store.datasets[1]
    l2inv("scan", "--allow-withdrawals")
    assert l2inv.json("completeness") == before


def test_completeness_of_nothing_is_said(l2inv: Commands) -> None:
    assert l2inv.json("completeness") == {"ops": 0, "instruments": []}
    assert "no dataset is recorded yet" in l2inv("completeness").stdout


@pytest.mark.skipif(not REAL.exists(), reason="the real inventory is not at hand")
def test_completeness_of_a_real_inventory(l2inv: Commands) -> None:
    l2inv.settings["metadata_store"] = {"url": str(REAL)}
    l2inv.save()
    l2inv("scan")
    found = l2inv.json("completeness")
    assert (found["ops"], late(found, "all instruments")[14]) == (126, 75)
    assert found["instruments"][1]["ops"] == 120
    assert late(found, "qualifying instruments")[14] == 7


# qualify --what-if


def snapshot(connection: Connection) -> dict[str, list[Any]]:
    """Every row of every table of l2inv's."""
    names = [r["name"] for r in connection.execute("select tablename as name from pg_tables where schemaname = 'l2inv'")]  # fmt: skip
    return {
        name: connection.execute(f"select t::text as row from l2inv.{name} t order by 1").fetchall() for name in names
    }  # fmt: skip


def test_what_if_gives_what_qualify_would_change_and_writes_nothing(
    l2inv: Commands, connection: Connection, tmp_path: Path
) -> None:
    judged(l2inv)
    fe = {"name": "Fe I 630.2", "min_nm": 629.7, "center_nm": 630.2, "max_nm": 630.5, "required": True}
    other = {"min_good_health": 0.76, "bands": [fe]}
    before = snapshot(connection)
    connection.execute("select pg_advisory_lock(hashtext('l2inv run'), hashtext('l2inv.qualify'))")
    l2inv(*AS_OF, expect=75)
    found = l2inv.json("qualify", "--what-if", rules(tmp_path / "other.yaml", **other))
    assert snapshot(connection) == before
    connection.execute("select pg_advisory_unlock_all()")

    invertible = []
    for qualification in ({}, other):
        l2inv.settings["qualification"] = qualification
        l2inv.save()
        report = l2inv.json("qualify", "--as-of", (NOW + timedelta(days=30)).isoformat())
        assert report["ops"]["waiting"] == 0
        invertible.append({op["op_id"] for op in l2inv.json("list", "--state", "invertible")["ops"]})
    now, then = invertible
    assert set(found["gained"]) == then - now != set()
    assert set(found["lost"]) == now - then != set()
    assert found["unchanged"] == l2inv.json("status")["ops"] - len(then ^ now)
    assert found["criteria_version"] == report["criteria_version"]


def test_what_if_judges_what_science_holds_and_what_was_published(
    l2inv: Commands, ready: list[str], tmp_path: Path
) -> None:
    l2inv("claim", ready[0])
    l2inv("claim", ready[1])
    l2inv("mark-inverted", ready[1])
    l2inv("publish")
    nothing = rules(tmp_path / "other.yaml", instruments=["VTF"])
    found = l2inv.json("qualify", "--what-if", nothing)
    assert set(ready) <= set(found["lost"])
    assert found["gained"] == []
    shown = l2inv("qualify", "--what-if", nothing).stdout
    assert f"lost   {ready[1]}\n" in shown
    assert f"{len(found['lost'])} lost" in shown.splitlines()[-1]


def test_what_if_goes_by_the_present_datasets(
    l2inv: Commands, store: Store, ready: list[str], tmp_path: Path
) -> None:
    other = rules(tmp_path / "other.yaml", min_good_health=0.5, min_ao_locked=0.9)
    before = l2inv.json("qualify", "--what-if", other)
    assert ready[0] not in before["lost"]
    for dataset in visp(store, ready[0]):
        dataset["aoLocked"] = dataset["frameCount"] * 8 // 10
    gone = [d for d in store.datasets if d["observingProgramExecutionId"] == ready[1]]
    gone += [d for d in visp(store, before["lost"][0]) if d["wavelengthMin"] > 850]
    store.datasets[:] = [d for d in store.datasets if d not in gone]
    l2inv("scan", "--allow-withdrawals")
    after = l2inv.json("qualify", "--what-if", other)
    assert set(after["lost"]) == {ready[0], *before["lost"][1:]}
    counted = [found["unchanged"] + len(found["gained"]) + len(found["lost"]) for found in (before, after)]
    assert counted[1] == counted[0] - 1


def test_what_if_another_instrument_qualified(l2inv: Commands, tmp_path: Path) -> None:
    l2inv("scan")
    found = l2inv.json(
        "qualify", "--what-if", rules(tmp_path / "other.yaml", instruments=["CRYO-NIRSP"], bands=[])
    )
    cryo = {op["op_id"] for op in l2inv.json("list")["ops"] if "CRYO-NIRSP" in op["instruments"]}
    assert set(found["gained"]) == cryo != set()


def test_what_if_passes_over_an_op_that_cannot_be_judged_and_names_it(
    l2inv: Commands, connection: Connection, ready: list[str], tmp_path: Path
) -> None:
    connection.execute(
        """
        insert into l2inv.dataset_version (dataset_id, version, op_id, content_hash, record, run_id)
        values ('BROKEN', 1, %s, '', '{"instrumentName": "VISP", "createDate": "2026-01-01T00:00:00Z"}', 1)
        """,
        [ready[0]],
    )
    answer = l2inv("qualify", "--what-if", rules(tmp_path / "other.yaml", instruments=["VTF"]), "--json")
    assert answer.json["failed"] == [ready[0]]
    assert set(ready[1:]) <= set(answer.json["lost"])
    assert ready[0] in answer.stderr


def test_what_if_names_every_mistake_of_its_file(l2inv: Commands, tmp_path: Path) -> None:
    wrong = tmp_path / "other.yaml"
    wrong.write_text("qualification: {min_ao_locked: 2}\npublihs: {}\n")
    said = l2inv("qualify", "--what-if", str(wrong), expect=10).stderr
    assert "qualification.min_ao_locked" in said
    assert "publihs" in said
    assert "no such file" in l2inv("qualify", "--what-if", str(tmp_path / "none.yaml"), expect=10).stderr
    l2inv(*AS_OF, "--what-if", rules(tmp_path / "other.yaml"), expect=2)


def test_what_if_could_not_write_if_it_tried(l2inv: Commands, connection: Connection) -> None:
    l2inv("scan")
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        what_if(
            connection,
            Qualification(),
            Qualification(),
            progress=lambda done, of: connection.execute("delete from l2inv.quarantine") and None,
        )
