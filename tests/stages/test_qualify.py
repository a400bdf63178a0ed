"""qualify: waits for quiet, judges in full, again when data or criteria changed, and never what science holds."""

from datetime import timedelta
from typing import Any

from l2inv.sample.server import Store
from tests.conftest import NOW, Commands

AS_OF = ("qualify", "--as-of", NOW.isoformat())


def kinds(l2inv: Commands, op: str) -> list[str]:
    return [e["kind"] for e in l2inv.json("history", op)["events"]]


def visp(store: Store, op: str) -> list[dict[str, Any]]:
    return [
        d for d in store.datasets if d["observingProgramExecutionId"] == op and d["instrumentName"] == "VISP"
    ]


def test_every_quiet_op_is_judged_and_the_others_wait(l2inv: Commands) -> None:
    ops = l2inv.json("scan")["ops"]["new"]
    report = l2inv.json(*AS_OF)
    n = report["ops"]
    assert n["judged"] == n["invertible"] + n["not_invertible"]
    assert n["judged"] + n["waiting"] == ops
    assert min(n["invertible"], n["not_invertible"], n["waiting"]) > 0
    later = (NOW + timedelta(days=30)).isoformat()
    second = l2inv.json("qualify", "--as-of", later)["ops"]
    assert (second["waiting"], second["judged"], second["unchanged"]) == (0, n["waiting"], n["judged"])


def test_the_quiet_days_count_from_the_newest_qualifying_dataset_to_the_second(
    l2inv: Commands, store: Store
) -> None:
    store.datasets[:] = visp(store, next(d for d in store.datasets if d["instrumentName"] == "VISP")["observingProgramExecutionId"])  # fmt: skip
    late_vbi = store.datasets[0] | {
        "datasetId": "LATEVB",
        "instrumentName": "VBI",
        "createDate": "2026-10-31T00:00:00",
    }
    for dataset in store.datasets:
        dataset["createDate"] = "2026-10-01T00:00:00.500"
    store.datasets.append(late_vbi)
    l2inv("scan")
    assert l2inv.json("qualify", "--as-of", "2026-10-15T00:00:00.4Z")["ops"]["waiting"] == 1
    assert l2inv.json("qualify", "--as-of", "2026-10-15T00:00:00.5Z")["ops"]["judged"] == 1


def test_the_verdict_on_the_event_is_the_one_that_show_gives(l2inv: Commands, ready: list[str]) -> None:
    judged = next(e for e in l2inv.json("history", ready[0])["events"] if e["kind"] == "judged")
    found = l2inv.json("show", ready[0])
    assert found["verdict"] == judged["detail"]["verdict"]
    assert found["verdict"]["criteria_version"] == judged["detail"]["criteria_version"]
    assert set(judged["detail"]["datasets"]) == {d["dataset_id"] for d in found["datasets"]}
    assert found["instrument_programs"] == [
        p["instrument_program_id"] for p in found["verdict"]["instrument_programs"] if p["invertible"]
    ]


def test_changed_datasets_are_judged_again(l2inv: Commands, store: Store, ready: list[str]) -> None:
    for dataset in visp(store, ready[0]):
        dataset["gosStatus"] = dataset["gosStatus"] | {"open": dataset["frameCount"] - 1, "closed": 1}
    l2inv("scan")
    assert l2inv.json(*AS_OF)["ops"] == {
        "judged": 1, "invertible": 0, "not_invertible": 1, "waiting": 0, "failed": 0,
        "unchanged": l2inv.json("status")["ops"] - 1 - l2inv.json("status")["states"]["discovered"],
    } | {"waiting": l2inv.json("status")["states"]["discovered"]}  # fmt: skip
    found = l2inv.json("show", ready[0])
    assert found["state"] == "not_invertible"
    failed = {
        c["name"]
        for p in found["verdict"]["instrument_programs"]
        for c in p["criteria"]
        if c["result"] == "fail"
    }
    assert "gos" in failed


def test_a_late_dataset_reopens_the_verdict_and_waits_again(
    l2inv: Commands, store: Store, ready: list[str]
) -> None:
    late = visp(store, ready[0])[0] | {"datasetId": "LATEVI", "createDate": NOW.isoformat()}
    store.datasets.append(late)
    l2inv("scan")
    assert l2inv.json("show", ready[0])["state"] == "discovered"
    l2inv(*AS_OF)
    assert l2inv.json("show", ready[0])["state"] == "discovered"
    l2inv("qualify", "--as-of", (NOW + timedelta(days=14)).isoformat())
    assert kinds(l2inv, ready[0])[-2:] == ["datasets_changed", "judged"]


def test_changed_criteria_judge_again_and_keep_what_was_preprocessed_for_the_same_programs(
    l2inv: Commands, ready: list[str]
) -> None:
    events = l2inv.json("status")["events"]
    assert l2inv.json(*AS_OF)["ops"]["judged"] == 0
    assert l2inv.json("status")["events"] == events
    l2inv.settings["qualification"] = {"min_ao_locked": 0.5}
    l2inv.save()
    report = l2inv.json(*AS_OF)
    assert report["ops"]["unchanged"] == 0
    last = l2inv.json("history", ready[0])["events"][-1]
    assert (last["kind"], last["state"]) == ("judged", None)
    assert last["detail"]["criteria_version"] == report["criteria_version"]
    assert l2inv.json("show", ready[0])["state"] == "preprocessed"
    l2inv.settings["qualification"] = {"min_good_health": 1.0, "min_ao_locked": 1.0, "bands": [
        {"name": "nowhere", "min_nm": 1.0, "center_nm": 1.0, "max_nm": 1.0, "required": True}]}  # fmt: skip
    l2inv.save()
    assert l2inv.json(*AS_OF)["ops"]["invertible"] == 0
    assert l2inv.json("show", ready[0])["state"] == "not_invertible"
    assert l2inv.json("next")["ops"] == []


def test_what_science_holds_or_is_beyond_is_never_judged(
    l2inv: Commands, store: Store, ready: list[str]
) -> None:
    l2inv("claim", ready[0])
    l2inv("claim", ready[1])
    l2inv("mark-inverted", ready[1])
    for op in ready[:2]:
        for dataset in visp(store, op):
            dataset["aoLocked"] = 0
    l2inv("scan")
    l2inv.settings["qualification"] = {"min_ao_locked": 0.9}
    l2inv.save()
    l2inv(*AS_OF)
    assert l2inv.json("show", ready[0])["state"] == "working"
    assert l2inv.json("show", ready[1])["state"] == "inverted"
    assert kinds(l2inv, ready[0])[-1] == kinds(l2inv, ready[1])[-1] == "datasets_changed"


def test_an_op_without_a_qualifying_dataset_is_not_invertible_and_says_why(
    l2inv: Commands, store: Store
) -> None:
    store.datasets[:] = [d for d in store.datasets if d["instrumentName"] == "VBI"]
    l2inv("scan")
    n = l2inv.json(*AS_OF)["ops"]
    assert n["judged"] == n["not_invertible"] > 0
    op = l2inv.json("list")["ops"][0]["op_id"]
    assert l2inv.json("show", op)["verdict"]["instrument_programs"] == []
    assert "no dataset of a qualifying instrument" in l2inv("history", op).stdout
