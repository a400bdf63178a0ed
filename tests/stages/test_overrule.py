"""Verdicts that are overruled, and OPs that need not wait because L1 has finished them."""

from typing import Any

import pytest

from l2inv.database.connection import Connection
from l2inv.sample.server import Fault, Store
from tests.helpers.commands import AS_OF, NOW, Commands
from tests.helpers.steps import visp


@pytest.fixture
def refused(l2inv: Commands, ready: list[str]) -> str:
    """An OP that was judged not invertible, with a ViSP instrument program."""
    ops = l2inv.json("list", "--state", "not_invertible")["ops"]
    return next(
        str(op["op_id"]) for op in ops if l2inv.json("show", op["op_id"])["verdict"]["instrument_programs"]
    )


def test_an_overruled_op_counts_as_invertible_and_shows_by_whom_and_why(
    l2inv: Commands, refused: str
) -> None:
    verdict = l2inv.json("show", refused)["verdict"]
    found = l2inv.json("overrule", refused, "--invertible", "--reason", "the closed frame is the last one")
    assert found["state"] == "invertible"
    assert found["verdict"] == verdict
    assert found["overruled"] is True
    assert found["overruled_by"]["reason"] == "the closed frame is the last one"
    assert found["overruled_by"]["verdict"] == verdict
    programs = [p["instrument_program_id"] for p in verdict["instrument_programs"]]
    assert found["instrument_programs"] == programs
    assert "the closed frame is the last one" in l2inv("show", refused).stdout
    assert "the closed frame is the last one" in l2inv("history", refused).stdout
    l2inv("preprocess")
    l2inv("claim", refused)
    l2inv("mark-inverted", refused)
    assert l2inv.json("history", refused)["events"][-1]["detail"]["instrument_programs"] == programs
    assert l2inv.json("publish")["ops"]["done"] == 1


def test_it_outlives_changed_criteria_and_ends_when_the_datasets_change(
    l2inv: Commands, refused: str, store: Store
) -> None:
    l2inv("overrule", refused, "--invertible", "--reason", "by eye")
    l2inv.settings["qualification"] = {"min_ao_locked": 0.9}
    l2inv.save()
    l2inv(*AS_OF)
    assert l2inv.json("show", refused)["state"] == "invertible"
    visp(store, refused)[0]["aoLocked"] = 1
    l2inv("scan")
    l2inv(*AS_OF)
    found = l2inv.json("show", refused)
    assert (found["state"], found["overruled"], found["overruled_by"]) == ("not_invertible", False, None)


def test_an_invertible_op_is_taken_out_of_next_by_overruling(l2inv: Commands, ready: list[str]) -> None:
    l2inv("overrule", ready[0], "--not-invertible", "--reason", "clouds in the movie")
    assert l2inv.json("show", ready[0])["state"] == "not_invertible"
    assert ready[0] not in [op["op_id"] for op in l2inv.json("next", "-n", "100")["ops"]]
    l2inv(*AS_OF)
    assert l2inv.json("show", ready[0])["state"] == "not_invertible"


def test_an_op_without_a_verdict_or_claimed_by_science_cannot_be_overruled(
    l2inv: Commands, ready: list[str]
) -> None:
    waiting = l2inv.json("list", "--state", "discovered")["ops"][0]["op_id"]
    l2inv("claim", ready[0])
    for op in (waiting, ready[0]):
        assert (
            "no verdict on its present datasets"
            in l2inv("overrule", op, "--invertible", "--reason", "x", expect=3).stderr
        )
    l2inv("overrule", ready[1], "--reason", "x", expect=2)
    l2inv("overrule", ready[1], "--invertible", expect=2)
    unknown = l2inv(
        "overrule", ready[1], "--invertible", "--reason", "x", "--instrument-program", "id.0", expect=3
    )
    assert "no instrument program id.0" in unknown.stderr


def test_every_verdict_is_the_same_when_it_is_judged_again(
    l2inv: Commands, ready: list[str], store: Store
) -> None:
    l2inv.settings["qualification"] = {"min_ao_locked": 0.5, "band_coverage": "full"}
    l2inv.save()
    l2inv(*AS_OF)
    for dataset in visp(store, ready[0]):
        dataset["aoLocked"] = 0
    store.datasets.remove(visp(store, ready[1])[0])
    l2inv("scan")
    l2inv(*AS_OF)
    found = l2inv.json("verify", "verdicts")
    assert found["findings"] == []
    judged = [e for op in l2inv.json("list")["ops"] for e in l2inv.json("history", op["op_id"])["events"]]
    assert found["checked"] == {"verdicts": sum(e["kind"] == "judged" for e in judged)}


def test_a_verdict_on_former_datasets_is_not_overruled(
    l2inv: Commands, ready: list[str], store: Store
) -> None:
    l2inv("claim", ready[0])
    visp(store, ready[0])[0]["aoLocked"] = 1
    l2inv("scan")
    l2inv("release", ready[0])
    l2inv("overrule", ready[0], "--invertible", "--reason", "x", expect=3)
    l2inv(*AS_OF)
    assert l2inv.json("show", ready[0])["state"] == "not_invertible"


def test_an_op_that_changed_while_on_hold_is_preprocessed_again(
    l2inv: Commands, ready: list[str], store: Store
) -> None:
    l2inv("claim", ready[0])
    visp(store, ready[0])[0]["wavelengthMax"] += 0.001
    l2inv("scan")
    l2inv("release", ready[0])
    l2inv(*AS_OF)
    assert l2inv.json("show", ready[0])["state"] == "invertible"
    assert l2inv.json("preprocess")["ops"]["done"] == 1


def test_numbers_too_large_for_a_sun_do_not_make_a_verdict_differ(l2inv: Commands, store: Store) -> None:
    next(d for d in store.datasets if d["instrumentName"] == "VISP")["boundingBox"] = (
        "(1e308,1e308),(1e308,1e308)"
    )
    l2inv("scan")
    l2inv(*AS_OF)
    assert l2inv.json("verify")["findings"] == []


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        ("update l2inv.event set detail = jsonb_set(detail, '{verdict,invertible}', 'false') where event_id = %s",
         "invertible differ"),
        ("update l2inv.dataset_version set record = record || '{\"aoLocked\": 0}' where dataset_id in "
         "(select jsonb_object_keys(detail -> 'datasets') from l2inv.event where event_id = %s)", "instrument_programs"),
        ("delete from l2inv.dataset_version where dataset_id in "
         "(select jsonb_object_keys(detail -> 'datasets') from l2inv.event where event_id = %s)", "is not kept"),
        ("update l2inv.criteria set rules = rules || '{\"min_ao_locked\": 0.1}' where %s > 0", "not those that were kept"),
    ],
)  # fmt: skip
def test_a_verdict_that_differs_is_found_and_named(
    l2inv: Commands, ready: list[str], connection: Connection, tamper: str, said: str
) -> None:
    judged = next(e for e in l2inv.json("history", ready[0])["events"] if e["kind"] == "judged")
    with connection.transaction():
        for table in ("event", "dataset_version", "criteria"):
            connection.execute(f"alter table l2inv.{table} disable trigger user")
        connection.execute(tamper, [judged["event_id"]])
    answer = l2inv("verify", "--json", expect=5)
    finding = next(f for f in answer.json["findings"] if (f["op_id"], f["what"]) == (ready[0], "verdict"))
    assert finding["event_id"] == judged["event_id"]
    assert said in finding["detail"]
    assert said in l2inv("verify", expect=5).stderr


def finished(store: Store, complete: int) -> Any:
    """Make the store say of every OP that so many of its three planned recipes are complete."""
    ops = sorted(
        {d["observingProgramExecutionId"] for d in store.datasets if d["observingProgramExecutionId"]}
    )
    rows = ",".join(
        f'{{"observingProgramExecutionId": "{op}", "plannedRecipeCount": 3, "completeRecipeInstanceCount": {complete}}}'
        for op in ops
        if len(op) < 200
    )
    body = f'{{"data": {{"processingCandidates": [{rows}]}}}}'.encode()
    return lambda operation, nth: Fault(body=body) if operation == "Candidates" else None


def test_an_op_whose_recipes_are_all_complete_need_not_wait_where_the_settings_say_so(
    l2inv: Commands, store: Store
) -> None:
    l2inv("scan")
    store.fault = finished(store, 3)
    waiting = l2inv.json(*AS_OF)["ops"]["waiting"]
    assert waiting > 0
    l2inv.settings["completeness"] = {"processing_candidates": True}
    l2inv.save()
    report = l2inv.json(*AS_OF)
    assert (report["ops"]["waiting"], report["ops"]["judged"], report["recipes"]) == (0, waiting, "known")


def test_an_op_with_recipes_outstanding_waits_and_is_shown_as_such(l2inv: Commands, store: Store) -> None:
    l2inv("scan")
    l2inv.settings["completeness"] = {"processing_candidates": True}
    l2inv.save()
    store.fault = finished(store, 1)
    answer = l2inv(*AS_OF)
    report = l2inv.json(*AS_OF)
    assert set(report["outstanding"].values()) == {2}
    assert len(report["outstanding"]) == report["ops"]["waiting"] > 0
    assert "with recipes outstanding" in answer.stdout
    judged = l2inv.json("list", "--state", "invertible")["ops"][0]["op_id"]
    assert l2inv.json("history", judged)["events"][-1]["detail"]["recipes"] == {"planned": 3, "complete": 1}


def test_a_store_that_denies_its_recipes_is_survived(l2inv: Commands, store: Store) -> None:
    l2inv("scan")
    l2inv.settings["completeness"] = {"processing_candidates": True}
    l2inv.save()
    store.fault = lambda operation, nth: (
        Fault(body=b'{"errors": [{"message": "forbidden"}]}') if operation == "Candidates" else None
    )
    answer = l2inv(*AS_OF, "--json")
    assert answer.json["ops"]["waiting"] > 0
    assert "forbidden" in answer.json["recipes"]
    assert "forbidden" in answer.stderr
    assert NOW.isoformat() == AS_OF[2]
