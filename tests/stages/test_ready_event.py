"""Science's ready event: recorded completely and once, or refused with every reason."""

import hashlib
import json
import os
import string
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import to_builtins
from msgspec.structs import fields

from l2inv.config.settings import Mount
from l2inv.config.yamlfile import MAX_BYTES
from l2inv.database.connection import Connection
from l2inv.domain.lines import LINES
from l2inv.errors import L2invError, Refused
from l2inv.record import event_log
from l2inv.sample.server import Store
from l2inv.services import outputs
from l2inv.stages.mark_inverted import ready_event
from tests.helpers.commands import AS_OF, READY_TEXT, Commands
from tests.helpers.steps import two_programs, visp


@pytest.fixture
def op(l2inv: Commands, ready: list[str]) -> str:
    l2inv("claim", ready[0])
    return ready[0]


def last(l2inv: Commands, op: str) -> dict[str, Any]:
    """The detail of the OP's newest event."""
    detail: dict[str, Any] = l2inv.json("history", op)["events"][-1]["detail"]
    return detail


def written(folder: Path, **said: Any) -> str:
    """A ready file that says so, and its name."""
    file = folder / "a ready file.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(READY_TEXT) | said))
    return str(file)


def test_the_ready_event_is_kept_whole_with_its_defaults_from_the_verdict(
    l2inv: Commands, ready: list[str]
) -> None:
    l2inv("claim", ready[0])
    l2inv(
        "mark-inverted", ready[0], "--output", "globus://a", "--output", "globus://b", "--software", "DeSIRe",
        "--software-version", "4.1", "--line", "Fe I (630.25 nm)", "--asdf-object-key", "pid/x.asdf", "--note", "fine",
    )  # fmt: skip
    detail = l2inv.json("history", ready[0])["events"][-1]["detail"]
    found = l2inv.json("show", ready[0])
    assert detail["instrument_programs"] == found["instrument_programs"]
    qualifying = {
        d["dataset_id"]: d["instrument_program_id"]
        for d in found["datasets"]
        if d["instrument_program_id"] in found["instrument_programs"] and d["instrument"] == "VISP"
    }
    assert detail["datasets"] == qualifying
    assert [o["uri"] for o in detail["outputs"]] == ["globus://a", "globus://b"]
    assert detail["software"] == {"name": "DeSIRe", "version": "4.1"}
    assert (detail["lines"], detail["asdf_object_key"], detail["note"]) == (
        ["Fe I (630.25 nm)"],
        "pid/x.asdf",
        "fine",
    )
    assert detail["inverted_by"] == "han"


def test_saying_the_same_again_is_fine_and_saying_something_else_is_refused(
    l2inv: Commands, ready: list[str]
) -> None:
    l2inv("claim", ready[0])
    l2inv("mark-inverted", ready[0], "--output", "globus://a")
    events = l2inv.json("status")["events"]
    assert "already" in l2inv("mark-inverted", ready[0], "--output", "globus://a").stdout
    l2inv("mark-inverted", ready[0], "--output", "globus://other", expect=3)
    assert l2inv.json("status")["events"] == events
    l2inv("publish")
    assert "already" in l2inv("mark-inverted", ready[0], "--output", "globus://a").stdout


@pytest.mark.parametrize(
    ("option", "named"),
    [("--dataset", "no dataset NOSUCH"), ("--instrument-program", "no instrument program NOSUCH")],
)
def test_a_ready_event_for_what_is_not_the_ops_is_refused_by_name(
    l2inv: Commands, ready: list[str], option: str, named: str
) -> None:
    l2inv("claim", ready[0])
    assert named in l2inv("mark-inverted", ready[0], option, "NOSUCH", expect=3).stderr
    assert l2inv.json("show", ready[0])["state"] == "working"


def test_the_time_given_by_science_is_kept_along_with_the_time_recorded(
    l2inv: Commands, ready: list[str], connection: Connection
) -> None:
    l2inv("claim", ready[0])
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    said = ready_event.Ready(op_id=ready[0], inverted_at=at, inverted_by="han", **SAID)
    assert ready_event.mark_inverted(connection, said, "han", datetime.now(UTC)) is True
    assert ready_event.mark_inverted(connection, said, "han", datetime.now(UTC)) is False
    detail = l2inv.json("history", ready[0])["events"][-1]["detail"]
    assert (detail["inverted_at"], detail["inverted_by"]) == ("2026-01-02T03:04:05Z", "han")


def used(l2inv: Commands, store: Store, op: str) -> dict[str, Any]:
    """A dataset, as the store has it, of an instrument program that is invertible."""
    programs = l2inv.json("show", op)["instrument_programs"]
    return next(d for d in visp(store, op) if d["instrumentProgramExecutionId"] in programs)


def withdraw(store: Store, dataset: dict[str, Any], other: str) -> str:
    store.datasets.remove(dataset)
    return "withdrawn"


def reprocess(store: Store, dataset: dict[str, Any], other: str) -> str:
    store.datasets.remove(dataset)
    store.datasets.append(dataset | {"datasetId": "ANEW", "createDate": "2099-01-01T00:00:00"})
    return "withdrawn, superseded by ANEW"


def add_newer(store: Store, dataset: dict[str, Any], other: str) -> str:
    store.datasets.append(dataset | {"datasetId": "ANEW", "createDate": "2099-01-01T00:00:00"})
    return "superseded by ANEW"


def change(store: Store, dataset: dict[str, Any], other: str) -> str:
    dataset["aoLocked"] = 0
    return "changed since it was claimed"


def move(store: Store, dataset: dict[str, Any], other: str) -> str:
    dataset["observingProgramExecutionId"] = other
    return f"now of OP {other}"


@pytest.mark.parametrize("happens", [withdraw, reprocess, add_newer, change, move])
def test_superseded_datasets_are_refused_by_name_unless_accepted_with_a_reason(
    l2inv: Commands, op: str, ready: list[str], store: Store, tmp_path: Path, happens: Any
) -> None:
    dataset = used(l2inv, store, op)
    why = happens(store, dataset, ready[1])
    l2inv("scan")
    file = written(tmp_path, op_id=op)
    refused = l2inv("mark-inverted", "--from", file, expect=3).stderr
    assert f"OP {op}: dataset {dataset['datasetId']}: {why}; " in refused
    assert "--accept-superseded --reason WHY" in refused
    assert l2inv.json("show", op)["state"] == "working"
    l2inv("mark-inverted", "--from", file, "--accept-superseded", "--reason", "as good")
    assert last(l2inv, op)["accepted"] == {"superseded": {dataset["datasetId"]: why}, "reason": "as good"}
    assert f"; accepted {dataset['datasetId']} as superseded: as good" in l2inv("history", op).stdout
    assert "already" in l2inv("mark-inverted", "--from", file).stdout


def test_a_dataset_that_left_and_came_back_is_superseded_too(l2inv: Commands, op: str, store: Store) -> None:
    dataset = used(l2inv, store, op)
    store.datasets.remove(dataset)
    l2inv("scan")
    store.datasets.append(dataset)
    l2inv("scan")
    refused = l2inv("mark-inverted", op, expect=3).stderr
    assert f"{dataset['datasetId']}: withdrawn since it was claimed" in refused


def test_changes_of_irrelevant_fields_or_unused_datasets_supersede_nothing(
    l2inv: Commands, op: str, store: Store
) -> None:
    dataset = used(l2inv, store, op)
    dataset["browseMovieUrl"] = "https://example.org/another"
    other = next(d for d in visp(store, op) if d is not dataset)
    other["aoLocked"] = 0  # in the same scan, and so in the same event
    l2inv("scan")
    program = dataset["instrumentProgramExecutionId"]
    what = ("--instrument-program", program, "--dataset", dataset["datasetId"])
    l2inv("mark-inverted", op, *what, "--accept-superseded", "--reason", "nothing to accept")
    assert "accepted" not in last(l2inv, op)


def test_a_change_before_the_claim_supersedes_nothing(
    l2inv: Commands, ready: list[str], store: Store
) -> None:
    used(l2inv, store, ready[0])["wavelengthMax"] += 0.001
    assert l2inv.json("scan")["ops"]["changed"] == 1
    l2inv(*AS_OF)
    l2inv("preprocess")
    l2inv("claim", ready[0])
    l2inv("mark-inverted", ready[0])


def test_a_dataset_of_another_op_is_refused_and_cannot_be_accepted(
    l2inv: Commands, op: str, ready: list[str], store: Store
) -> None:
    foreign = visp(store, ready[1])[0]["datasetId"]
    accept = ("--accept-superseded", "--reason", "want it")
    for more in ((), accept):
        refused = l2inv(
            "mark-inverted", op, "--dataset", foreign, "--dataset", "NOSUCH", *more, expect=3
        ).stderr
        assert f"OP {op} has no dataset " in refused
        assert f"{foreign} (it belongs to OP {ready[1]})" in refused
        assert "NOSUCH" in refused


@pytest.mark.parametrize("what", [{"datasets": []}, {"instrument_programs": []}])
def test_a_ready_event_of_nothing_is_refused(
    l2inv: Commands, op: str, tmp_path: Path, what: dict[str, Any]
) -> None:
    assert (
        "no dataset" in l2inv("mark-inverted", "--from", written(tmp_path, op_id=op, **what), expect=3).stderr
    )


def test_datasets_outside_the_instrument_programs_named_are_refused(
    l2inv: Commands, op: str, store: Store
) -> None:
    program = used(l2inv, store, op)["instrumentProgramExecutionId"]
    stray = next(
        d
        for d in store.datasets
        if d["observingProgramExecutionId"] == op and d["instrumentProgramExecutionId"] != program
    )
    named = ("--instrument-program", program, "--dataset", stray["datasetId"])
    assert f"{stray['datasetId']} is in none of" in l2inv("mark-inverted", op, *named, expect=3).stderr


def test_datasets_that_came_to_name_no_instrument_program_are_not_taken_for_those_of_the_verdict(
    l2inv: Commands, op: str, store: Store
) -> None:
    unknown = ("--instrument-program", "NOSUCH")
    assert "no instrument program NOSUCH" in l2inv("mark-inverted", op, *unknown, expect=3).stderr
    program = visp(store, op)[0]["instrumentProgramExecutionId"]
    for dataset in visp(store, op):
        dataset["instrumentProgramExecutionId"] = None
    l2inv("scan")
    refused = l2inv("mark-inverted", op, expect=3).stderr
    assert f"no instrument program {program}" in refused
    assert l2inv.json("show", op)["state"] == "working"


def test_a_time_yet_to_come_is_refused_but_for_clocks_that_differ(op: str, connection: Connection) -> None:
    now = datetime(2026, 11, 1, 12, tzinfo=UTC)

    def say(at: datetime) -> bool:
        said = ready_event.Ready(op_id=op, inverted_at=at, **SAID)
        return ready_event.mark_inverted(connection, said, "han", now)

    with pytest.raises(Refused, match="is in the future"):
        say(now + timedelta(minutes=6))
    with pytest.raises(Refused, match="is in the future"):
        say(datetime(2026, 11, 1, 12, tzinfo=timezone(-timedelta(hours=1))))
    assert say(datetime(2026, 11, 1, 12, 4))


SAID: dict[str, Any] = {
    "software": ready_event.Software("DeSIRe", "4.1"),
    "outputs": [ready_event.Output("globus://science/l2")],
}
GOOD = b"inverted"
SHA = hashlib.sha256(GOOD).hexdigest()


@pytest.fixture
def data(l2inv: Commands, tmp_path: Path) -> Path:
    """A folder with an output, mounted as globus://l2/."""
    folder = tmp_path / "l2 data"
    (folder / "a folder").mkdir(parents=True)
    (folder / "a file").write_bytes(GOOD)
    os.mkfifo(folder / "pipe")
    l2inv.settings["publish"] = {"mounts": [{"uri": "globus://l2/", "path": str(folder)}]}
    l2inv.save()
    return folder


@pytest.mark.parametrize("where", ["globus://l2", "file://{data}", "file://localhost{data}", "{data}"])
@pytest.mark.parametrize(
    ("name", "said", "wrong"),
    [
        ("a file", {}, None),
        ("a file", {"size_bytes": 8, "sha256": SHA.upper()}, None),
        ("a file", {"size_bytes": 9, "sha256": SHA}, "has 8 bytes, not 9"),
        ("a file", {"size_bytes": 8, "sha256": "0" * 64}, "has another sha256"),
        ("a folder", {}, None),
        ("a folder", {"size_bytes": 8}, "is a folder"),
        ("a file/below", {}, "is missing"),
        ("gone", {}, "is missing"),
        ("pipe", {"sha256": SHA}, "is neither a file nor a folder"),
        ("../l2 data/a file", {}, "must not contain .."),
        ("x" * 300, {}, "cannot be read: File name too long"),
    ],
)
def test_an_output_is_looked_at_where_it_is_mounted(
    data: Path, where: str, name: str, said: dict[str, Any], wrong: str | None
) -> None:
    uri = f"{where.format(data=data)}/{name}"
    uri = uri.replace(" ", "%20") if "://" in uri else uri
    output: outputs.Output = {"uri": uri, **said}  # type: ignore[typeddict-item]
    found = outputs.problems([output], [Mount("globus://l2/", str(data))])
    assert [line.startswith(f"{uri}: {wrong}") for line in found] == ([True] if wrong else [])


def test_outputs_outside_every_mount_are_not_checked(data: Path) -> None:
    mounts = [Mount("globus://l2/", str(data)), Mount("globus://l2/gone/", str(data / "a folder"))]
    elsewhere = ["globus://l2other/x", "globus://l", "s3://l2/x", "file://elsewhere/x", "a file"]
    assert outputs.problems([{"uri": uri} for uri in elsewhere], mounts) == []
    assert outputs.mounted("globus://l2/a%20file", mounts) == data / "a file"
    assert outputs.mounted("globus://l2", mounts) == data
    assert outputs.mounted("globus://l2/gone/x", mounts) == data / "a folder" / "x"
    for uri in ("globus://l2/%2e%2e/x", "globus://l2/a/../../x"):
        assert outputs.mounted(uri, mounts) is None
    assert outputs.problems([{"uri": "globus://l2/a%00b"}], mounts) == ["globus://l2/a%00b: is missing"]
    with pytest.raises(L2invError, match=r"publish\.mounts: /no/such is not a readable folder"):
        outputs.problems([{"uri": "l2:x/y"}], [Mount("l2:x", "/no/such")])


def test_every_wrong_output_is_named_and_the_good_ones_are_noted_as_looked_at(
    l2inv: Commands, op: str, data: Path
) -> None:
    good, elsewhere = "globus://l2/a%20file", "globus://elsewhere/x"
    wrong = ["globus://l2/one", f"file://{data}/two"]
    argv = [arg for uri in (good, elsewhere, *wrong) for arg in ("--output", uri)]
    refused = l2inv("mark-inverted", op, *argv, expect=3).stderr
    assert f"outputs: {wrong[0]}: is missing; {wrong[1]}: is missing; " in refused
    assert l2inv.json("show", op)["state"] == "working"
    taken = l2inv("mark-inverted", op, "--output", good, "--output", elsewhere)
    assert "products are not checked" in taken.stderr and "its outputs are in 2 folders" in taken.stderr
    assert last(l2inv, op)["outputs_checked"] == [good]


def test_a_repeated_ready_event_is_the_same_after_outputs_moved_or_datasets_were_superseded_or_published(
    l2inv: Commands, op: str, data: Path, store: Store, tmp_path: Path
) -> None:
    output = {"uri": "globus://l2/a%20file", "size_bytes": 8, "sha256": SHA.upper()}
    programs = l2inv.json("show", op)["instrument_programs"]
    file = written(tmp_path, op_id=op, outputs=[output], instrument_programs=programs[::-1])
    say = ("mark-inverted", "--from", file)
    l2inv(*say)
    l2inv("publish")
    (data / "a file").unlink()
    store.datasets.remove(used(l2inv, store, op))
    l2inv("scan")
    assert "already" in l2inv(*say).stdout
    written(tmp_path, op_id=op, outputs=[output])
    assert "already" in l2inv(*say).stdout
    written(tmp_path, op_id=op, outputs=[output], note="another")
    l2inv(*say, expect=3)
    assert [e["kind"] for e in l2inv.json("history", op)["events"]].count("inverted") == 1


def test_a_ready_file_describes_the_inversion_in_yaml_or_json(
    l2inv: Commands, ready: list[str], store: Store, tmp_path: Path
) -> None:
    for name, op in zip(("ready.yaml", "ready.json"), ready, strict=False):
        l2inv("claim", op)
        dataset = used(l2inv, store, op)
        said = {
            "op_id": op,
            "instrument_programs": [dataset["instrumentProgramExecutionId"]],
            "datasets": [dataset["datasetId"]],
            "software": {"name": "DeSIRe", "version": "4.1"},
            "outputs": [{"uri": "globus://a", "size_bytes": 5, "sha256": SHA}, {"uri": "globus://b"}],
            "lines": (dataset["spectralLines"] or [])[:1],
            "asdf_object_key": "pid/x.asdf",
            "inverted_by": "han",
            "inverted_at": "2026-01-02T04:04:05+01:00",
            "note": "fine \U0001f600 \\ud83d\\ude00",
        }
        file = tmp_path / name
        file.write_text(json.dumps(said) if name.endswith("json") else yaml.safe_dump(said))
        assert l2inv.json("mark-inverted", "--from", str(file))["state"] == "inverted"
        detail = last(l2inv, op)
        del said["op_id"]
        said |= {
            "inverted_at": "2026-01-02T03:04:05Z",
            "datasets": {dataset["datasetId"]: dataset["instrumentProgramExecutionId"]},
        }
        assert {name: detail[name] for name in said} == said


def test_a_ready_file_of_another_op_than_the_one_named_is_refused(
    l2inv: Commands, op: str, ready: list[str], tmp_path: Path
) -> None:
    file = written(tmp_path, op_id=op)
    refused = l2inv("mark-inverted", ready[1], "--from", file, expect=3).stderr
    assert f"{file} is of OP {op}, not of {ready[1]}" in refused
    assert l2inv.json("mark-inverted", op, "--from", file)["state"] == "inverted"


def test_a_ready_file_that_cannot_be_read_is_a_line_and_not_a_refusal(
    l2inv: Commands, tmp_path: Path
) -> None:
    for where, why in ((tmp_path / "gone.yaml", "No such file"), (tmp_path, "Is a directory")):
        said = l2inv("mark-inverted", "--from", str(where), expect=1).stderr
        assert (f"{where}: cannot be read: {why}" in said, said.count("\n")) == (True, 1)


def test_every_mistake_of_a_ready_file_is_named_at_once(l2inv: Commands, op: str, tmp_path: Path) -> None:
    outputs = [
        {"uri": "a", "size_bytes": -1},
        {"uri": "a", "sha256": "beef"},
        {"url": "a"},
    ]
    file = written(
        tmp_path, linse=["Fe I (630.25 nm)"], outputs=outputs, software="DeSIRe", note=" ",
        inverted_at="1999-01-01T00:00:00Z", datasets=[1],
    )  # fmt: skip
    said = l2inv("mark-inverted", "--from", file, expect=3).stderr
    for named in (
        "op_id: missing", "linse: unknown key, the nearest known one is lines", "outputs[0].size_bytes: ",
        "outputs[1].sha256: must be 64 hexadecimal digits", "outputs[2].url: unknown key, the nearest known one is uri",
        "outputs[2].uri: missing", "software: ", "note: must be text that is not blank",
        "inverted_at: must be a time between", "datasets[0]: ",
    ):  # fmt: skip
        assert named in said, named
    assert said.count("\n") == 1


def test_a_uri_named_twice_and_too_many_mistakes_are_reported() -> None:
    twice = yaml.safe_dump({"op_id": "x", "outputs": [{"uri": "a"}, {"uri": "a"}]}).encode()
    with pytest.raises(Refused, match="outputs: names a URI twice"):
        ready_event.read(twice, "a.yaml")
    many = yaml.safe_dump({"op_id": "x", "lines": [1] * 25}).encode()
    with pytest.raises(Refused, match=r"lines\[19\]: .*; and 5 more$"):
        ready_event.read(many, "a.yaml")
    with pytest.raises(Refused, match="larger than"):
        ready_event.read(b"#" * (MAX_BYTES + 1), "a.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["a.yaml", "a.json"])
KEYS = st.sampled_from([one.name for kind in (ready_event.Ready, ready_event.Output) for one in fields(kind)])


def ready_or_refused(content: bytes, name: str) -> ready_event.Ready | None:
    try:
        return ready_event.read(content, name)
    except Refused as refusal:
        assert refusal.message.startswith(f"{name}: ")
        return None


@given(content=st.binary() | st.text(string.printable).map(str.encode), name=NAMES)
def test_any_bytes_are_a_ready_event_or_refused(content: bytes, name: str) -> None:
    ready_or_refused(content, name)


@given(document=JSON | st.dictionaries(KEYS, JSON), name=NAMES, ascii_only=st.booleans())
def test_any_json_document_is_a_ready_event_or_refused(document: Any, name: str, ascii_only: bool) -> None:
    ready_or_refused(json.dumps(document, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass"), name)


@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip))
def test_any_text_in_json_is_read_unchanged(text: str) -> None:
    said = ready_or_refused(json.dumps({"op_id": "x", "note": text}).encode(), "a.json")
    assert said is None if "\0" in text else said is not None and said.note == text


WORD = st.text() | st.sampled_from(["han", "NOSUCH"])
EVENTS = st.fixed_dictionaries(
    {},
    optional={
        "instrument_programs": st.lists(WORD, max_size=2),
        "datasets": st.lists(WORD, max_size=2),
        "software": st.fixed_dictionaries({"name": WORD}, optional={"version": WORD}),
        "outputs": st.lists(st.fixed_dictionaries({"uri": WORD | WORD.map("file:///{}".format)}), max_size=2),
        "lines": st.lists(WORD, max_size=2),
        "inverted_by": WORD,
        "inverted_at": st.datetimes(timezones=st.timezones() | st.none()).map(to_builtins),
        "note": WORD,
    },
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(event=EVENTS)
def test_any_ready_event_is_recorded_once_or_refused(
    op: str, connection: Connection, event: dict[str, Any]
) -> None:
    said = ready_or_refused(json.dumps({"op_id": op} | event).encode(), "a.json")
    if said is None:
        return
    now = datetime.now(UTC)
    with connection.transaction(force_rollback=True):
        try:
            assert ready_event.mark_inverted(connection, said, "han", now) is True
        except Refused:
            assert event_log.locked(connection, op).state == "working"
        else:
            assert ready_event.mark_inverted(connection, said, "han", now) is False


def test_the_id_that_was_issued_is_taken_by_default_and_another_is_refused(
    l2inv: Commands, op: str, tmp_path: Path
) -> None:
    (issued,) = l2inv.json("show", op)["inversions"]
    file = written(tmp_path, op_id=op, inversion_id="inv.OTHER1")
    refused = l2inv("mark-inverted", "--from", file, expect=3).stderr
    assert f"inversion_id inv.OTHER1 is not the one that was issued, {issued['inversion_id']}" in refused
    l2inv("mark-inverted", "--from", written(tmp_path, op_id=op))
    (one,) = last(l2inv, op)["inversions"]
    assert one["inversion_id"] == issued["inversion_id"]
    assert one["asdf_object_key"] == issued["asdf_object_key"]
    assert one["outputs"] == [{"uri": "globus://science/l2"}]


def test_each_of_several_programs_has_its_own_datasets_and_outputs(
    l2inv: Commands, ready: list[str], connection: Connection, tmp_path: Path
) -> None:
    op, programs = two_programs(connection)
    l2inv("claim", op)
    issued = {i["instrument_program_id"]: i for i in l2inv.json("show", op)["inversions"]}
    said: list[dict[str, Any]] = [
        {"instrument_program_id": program, "outputs": [{"uri": f"globus://science/{number}/"}]}
        for number, program in enumerate(programs)
    ]
    alone = {"op_id": op, "software": {"name": "DeSIRe", "version": "4.1"}}
    file = tmp_path / "several.yaml"

    def refused(inversions: Any, **more: Any) -> str:
        file.write_text(json.dumps(alone | {"inversions": inversions} | more))
        return l2inv("mark-inverted", "--from", str(file), expect=3).stderr

    other = [one | {"inversion_id": "inv.OTHER1"} for one in said]
    assert "inv.OTHER1 is not the one that was issued" in refused(other)
    assert "inversions replaces outputs" in refused(said, outputs=[{"uri": "globus://x"}])
    assert "must name each instrument program once" in refused([said[0], dict(said[0], outputs=[])])
    without = [{"instrument_program_id": program} for program in programs]
    assert f"no output is named of {programs[0]}, {programs[1]}" in refused(without)
    file.write_text(yaml.safe_dump(alone | {"inversions": said}))
    l2inv("mark-inverted", "--from", str(file))
    found = last(l2inv, op)["inversions"]
    assert [one["outputs"] for one in found] == [one["outputs"] for one in said]
    assert "already" in l2inv("mark-inverted", "--from", str(file)).stdout
    named = {one["instrument_program_id"]: one["inversion_id"] for one in found}
    assert {named[program] for program in issued} == {i["inversion_id"] for i in issued.values()}
    assert len(set(named.values())) == 2
    assert {one["asdf_object_key"] for one in found} == {
        i["asdf_object_key"] for i in l2inv.json("show", op)["inversions"]
    }


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ({"software": None}, "no software is named"),
        ({"software": {"name": "DeSIRe"}}, "software DeSIRe is named without its version"),
        ({"outputs": []}, "no output is named"),
        ({"outputs": [{"uri": "nonsense"}]}, "output 'nonsense' is neither a URI"),
        ({"outputs": [{"uri": "globus://a"}, {"uri": "see: my notes"}]}, "output 'see: my notes' is neither a URI"),
        ({"asdf_object_key": "pid_1/inv_AAAAAA/"}, "asdf_object_key 'pid_1/inv_AAAAAA/' names no *.asdf file"),
        ({"asdf_object_key": "../x.asdf"}, "asdf_object_key '../x.asdf' names no *.asdf file"),
        ({"asdf_object_key": "/pid/x.asdf"}, "asdf_object_key '/pid/x.asdf' names no *.asdf file"),
        ({"asdf_object_key": "pid//x.asdf"}, "asdf_object_key 'pid//x.asdf' names no *.asdf file"),
        ({"lines": ["Fe I 630.2"]}, "line 'Fe I 630.2' is unknown, the nearest known one is 'Fe I (630."),
        ({"lines": ["Si IX (3934.0 nm)"]}, "line 'Si IX (3934.0 nm)' is outside the range of the datasets used"),
        ({"inverted_at": "2001-01-01T00:00:00Z"}, "2001-01-01T00:00:00Z is before the end of the observation"),
        ({"inverted_by": "ann"}, "is held by han"),
    ],
)  # fmt: skip
def test_an_impossible_or_missing_value_is_refused_by_name(
    l2inv: Commands, op: str, tmp_path: Path, said: dict[str, Any], wrong: str
) -> None:
    assert wrong in l2inv("mark-inverted", "--from", written(tmp_path, op_id=op, **said), expect=3).stderr
    assert l2inv.json("show", op)["state"] == "working"


@pytest.mark.parametrize("uri", ["globus://x/y/", "d26bd00b-62dc-40d2-9179-7aece2b8c437:/l2/", "{folder}"])
def test_an_output_is_where_globus_or_a_file_system_has_it(
    l2inv: Commands, op: str, tmp_path: Path, uri: str
) -> None:
    uri = uri.format(folder=tmp_path)
    refusal = l2inv("mark-inverted", op, "--output", "nonsense", expect=3).stderr
    assert (
        "output 'nonsense' is neither a URI, such as globus://ENDPOINT/FOLDER/, nor an absolute path"
        in refusal
    )
    l2inv("mark-inverted", op, "--output", uri)
    assert [output["uri"] for output in last(l2inv, op)["outputs"]] == [uri]


def test_a_version_that_looks_like_a_commit_is_recorded_as_one(l2inv: Commands, op: str) -> None:
    l2inv("mark-inverted", op, "--software", "DeSIRe", "--software-version", "3f9c1e2")
    software = last(l2inv, op)["software"]
    assert software == {"name": "DeSIRe", "version": "3f9c1e2", "commit": "3f9c1e2"}


def test_the_documented_ready_file_is_read_and_names_lines_that_are_known() -> None:
    document = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    example = "op_id: " + document.partition("```yaml\nop_id: ")[2].partition("```")[0]
    said = ready_event.read(example.replace("9f86d081…", "9f" * 32).encode(), "ready.yaml")
    assert said.lines and {*said.lines} <= {*LINES}
