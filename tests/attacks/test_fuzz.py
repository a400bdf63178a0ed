"""Bad input in numbers: mutated answers of the metadata store and mutated settings, from fixed seeds.

Whatever comes: no traceback, the right exit code, and no case that takes longer than LIMIT_SECONDS.
"""

import copy
import json
import random
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from click.testing import CliRunner

from l2inv import wording
from l2inv.cli import main
from l2inv.config.settings import Qualification, load, redact, to_plain
from l2inv.domain import criteria, drift, inventory
from l2inv.domain.inventory import Dataset, Record
from l2inv.errors import ConfigError, StoreError
from l2inv.sample.inventory import make
from l2inv.sample.server import Fault, Store
from l2inv.services import graphql, metadata_store
from tests.helpers.commands import NOW, Commands

LIMIT_SECONDS = 30
EXAMPLE = Path(__file__).parents[2] / "config.example.yaml"


class Hanging(BaseException):
    """No Exception, which a command would take for a failure of its own and end well with."""


@contextmanager
def limited(case: object) -> Iterator[None]:
    """End a case that hangs, and names it beside whatever goes wrong in it."""

    def hangs(*_: object) -> None:
        raise Hanging(f"{case} takes longer than {LIMIT_SECONDS} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_SECONDS)
    try:
        yield
    except BaseException as problem:
        problem.add_note(f"case {case}")
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# Mutations of a tree, and of the text that it is written as

RAW = [  # no value of Python's: they stand in the text as they are
    "1e400", "-1e400", "1e-400", "-0", "0.0000001e-300", "9" * 25, "-" + "9" * 5000, "1" * 400 + ".5", "01", "+1", "nul", "NaN",
    "Infinity", "-Infinity", "[" * 2000 + "]" * 2000, "[" * 20_000, '{"a":' * 3000 + "1" + "}" * 3000, '"\\ud800"',
    '"\\udfff\\ud800x"', '"\\u0000"', '"a\\', '"\xff\xfe"', '"\x1b[31m"', '"\\x41"', "'x'", "tru", ",", "", '{"a":1,"a":2,}', "/**/",
    '"' + "x" * 20_000 + '"',
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**53 - 1, 2**53, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**30, 0.5, -1e308, 1.7e308,
    5e-324, float("nan"), float("inf"), float("-inf"), "", " ", "\0", "x" * 5000, "é\u202e\x1b", "VISP", "IQUV", "NaN", "12",
    [], [None], [[]], {}, {"": None}, {"a": {"b": {}}}, {"min": 1, "med": "x"}, {"good": -1}, {"good": 2**60}, ["a", 1, None],
    "2026-11-01", "2026-11-01T00:00:00", "2026-11-01T00:00:00Z", "2026-03-29T02:30:00+02:00", "9999-12-31T23:59:59.999999",
    "9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00", "0001-01-01T00:00:00+14:00", "2026-06-30T23:59:60", "2026-02-30T00:00:00",
    "10000-01-01T00:00:00", "2026-11-01T24:00:00", "2026-11-01T00:00:00.1234567891", "-0001-01-01T00:00:00", "2026-11-01 00:00:00",
    "(1e999,1),(1,1)", "(NaN,NaN),(NaN,NaN)", "(1,1),(1,1)" * 99, "(" + "9" * 400 + ",0),(0,0)", "(-1e308,1e308),(1e308,1e308)",
]  # fmt: skip


class Raw(str):
    """Text that is written as it is."""


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every container of a tree with each of its keys."""
    found: list[tuple[Any, Any]] = []
    for key in tree if isinstance(tree, dict) else range(len(tree)):
        found.append((tree, key))
        if isinstance(tree[key], (dict, list)) and tree[key]:
            found += places(tree[key])
    return found


def mutate(draw: random.Random, tree: Any, values: list[Any], raw: list[str]) -> None:
    """Change one thing somewhere in a tree."""
    if not tree:
        return
    container, key = draw.choice(places(tree))
    match draw.randrange(10):
        case 0 | 1 | 2 | 3:
            container[key] = copy.deepcopy(draw.choice(values))
        case 4:
            container[key] = Raw(draw.choice(raw))
        case 5:
            del container[key]
        case 6:
            other, place = draw.choice(places(tree))
            container[key] = copy.deepcopy(other[place])
        case 7 if isinstance(container, dict):
            container[draw.choice(["", "\0", "x" * 300, "datasetId", "__class__", str(key).upper()])] = (
                container.pop(key)
            )
        case 7 | 8 if isinstance(container, list):
            container += copy.deepcopy(container[key : key + 1]) * draw.choice([1, 3])
        case 8 if isinstance(container[key], (int, float)):
            container[key] = container[key] * draw.choice([-1, 10, 1e9, 10**12])
        case _:
            for _ in range(draw.choice([1, 5, 20])):
                container[key] = [container[key]] if draw.random() < 0.5 else {"a": container[key]}


def written(draw: random.Random, tree: Any) -> str:
    """JSON of a tree; now and then an object gives a key twice."""
    if isinstance(tree, Raw):
        return str(tree)
    if isinstance(tree, list):
        return f"[{','.join(written(draw, item) for item in tree)}]"
    if isinstance(tree, dict):
        items = [f"{json.dumps(key)}:{written(draw, value)}" for key, value in tree.items()]
        if items and draw.random() < 0.004:
            items.append(draw.choice(items))
            items.append(f"{json.dumps(draw.choice(list(tree)))}:null")
        return f"{{{','.join(items)}}}"
    return json.dumps(tree, ensure_ascii=draw.random() < 0.5)


def broken(draw: random.Random, content: bytes) -> bytes:
    """The bytes, in one case of eight cut, flipped, doubled or put in another encoding."""
    at = draw.randrange(len(content) + 1)
    match draw.randrange(64):
        case 0:
            return content[:at]
        case 1:
            return content[:at] + bytes([draw.randrange(256)]) + content[at + 1 :]
        case 2:
            return (
                content[:at]
                + draw.choice([b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\0", b"\x1b"])
                + content[at:]
            )
        case 3:
            return content[at:] + content[:at]
        case 4:
            return b"\xef\xbb\xbf" + content
        case 5:
            return content.decode("utf-8", "replace").encode(draw.choice(["utf-16", "utf-32", "utf-7"]))
        case 6:
            return content * 2
        case 7:
            return content[:at] + content[draw.randrange(len(content) + 1) :]
    return content


def answers(seed: int, number: int, base: Any) -> Iterator[tuple[str, bytes]]:
    """Mutated answers, each under a name that tells how to make it again."""
    for nth in range(number):
        draw = random.Random(f"{seed}/{nth}")
        tree = copy.deepcopy(base)
        for _ in range(draw.choice([1, 1, 1, 2, 3, 8])):
            mutate(draw, tree, VALUES, RAW)
        yield (
            f"{seed}/{nth}",
            broken(draw, written(draw, tree).encode("utf-8", "surrogatepass").replace(b"\xc3\xbf", b"\xff")),
        )


ASKED = set(Dataset.__struct_encode_fields__)
DATASETS = [{k: v for k, v in d.items() if k in ASKED} for d in make(now=NOW, ops=5)]
ANSWER = {
    "data": {"datasetInventories": [d for d in DATASETS if d["instrumentName"] == "VISP"][:2] + DATASETS[:1]}
}


def test_a_mutated_answer_is_read_record_by_record_or_refused_in_a_line() -> None:
    tried = read_in_numbers(300)
    assert min(tried.values()) > 10, tried  # the mutations reach every outcome


@pytest.mark.slow
def test_20_000_mutated_answers_are_read_record_by_record_or_refused_in_a_line() -> None:
    tried = read_in_numbers(20_000)
    print(tried)


def read_in_numbers(number: int) -> dict[str, int]:
    outcomes = {"refused": 0, "records": 0, "set aside": 0}
    rules, before = Qualification(), None
    for case, content in answers(1, number, ANSWER):
        with limited(case):
            try:
                page = graphql.read(content, metadata_store.DATASETS, "store")
            except StoreError as problem:
                assert len(wording.clean(problem.message)) < 120_000
                outcomes["refused"] += 1
                continue
            found = [inventory.read(raw) for raw in page]
            records = [one for one in found if isinstance(one, Record)]
            outcomes["records"] += len(records)
            outcomes["set aside"] += len(found) - len(records)
            profile = drift.Profile()
            for one in records:
                assert inventory.stored(one.text) == one.dataset
                assert inventory.read(one.text) == msgspec.structs.replace(one, unreadable=())
                profile.count(inventory.given(one.dataset))
                profile.examine(one)
                for _ in range(drift.ENOUGH):
                    profile.measure(one.dataset)
            for line in drift.warnings(profile, before, whole=True):
                assert wording.clean(line).isprintable()
            before = json.loads(json.dumps(profile.plain(before, whole=True), allow_nan=False))
            verdict = criteria.judge([one.dataset for one in records], rules)
            json.dumps(verdict, allow_nan=False)
            wording.verdict_line(dict(verdict))
            for program in verdict["instrument_programs"]:
                for criterion in program["criteria"]:
                    criteria.margin(criterion)
                    wording.value(criterion["measured"])
    return outcomes


@pytest.mark.parametrize(
    "query",
    [metadata_store.COUNT, metadata_store.CREATE, metadata_store.FIND, metadata_store.CANDIDATES],
    ids=lambda query: query.field,
)
def test_a_mutated_answer_to_any_other_question_is_read_or_refused(query: graphql.Query) -> None:
    inversion = {
        "inversionId": "inv.A",
        "datasetIds": ["A"],
        "spectralLines": None,
        "createDate": "2026-01-01T00:00:00",
    }
    told = {
        "datasetInventoriesRecordCount": {"recordCount": 7},
        "createL2InversionInventory": inversion,
        "l2Inversions": [inversion],
        "processingCandidates": [
            {"observingProgramExecutionId": "o", "plannedRecipeCount": 3, "completeRecipeInstanceCount": None}
        ],
    }
    base = {"data": {query.field: told[query.field]}, "errors": None}
    refused = 0
    for case, content in answers(2, 300, base):
        with limited(case):
            try:
                graphql.read(content, query, "store")
            except StoreError:
                refused += 1
    assert 20 < refused < 300


@pytest.fixture
def saved(l2inv: Commands, tmp_path: Path) -> Path:
    path = tmp_path / "saved.json"
    l2inv.settings["metadata_store"] = {"url": str(path), "max_answer_mb": 8}
    l2inv.save()
    return path


def test_a_mutated_answer_goes_through_every_stage(l2inv: Commands, saved: Path) -> None:
    stages_in_numbers(l2inv, saved, 12)


@pytest.mark.slow
def test_400_mutated_answers_go_through_every_stage(l2inv: Commands, saved: Path) -> None:
    print(stages_in_numbers(l2inv, saved, 400))


def stages_in_numbers(l2inv: Commands, saved: Path, number: int) -> dict[int, int]:
    codes = {0: 0, 1: 0}
    for case, content in answers(3, number, ANSWER):
        saved.write_bytes(content)
        with limited(case):
            try:
                graphql.read(content, metadata_store.DATASETS, "store")
                expected = 0
            except StoreError:
                expected = 1
            for argv in (["scan", "--allow-withdrawals"], ["qualify", "--as-of", NOW.isoformat()]):
                answer = l2inv(*argv, "--json", expect=None)
                assert "unexpected: " not in answer.stdout + answer.stderr, answer
                assert answer.exit_code == (expected if argv[0] == "scan" else 0), answer
                assert isinstance(answer.json, dict)
            codes[expected] += 1
    for argv in (["list"], ["quarantine"], ["next"], ["near-misses"], ["completeness"], ["preprocess"]):
        l2inv(*argv)
    for op in l2inv.json("list")["ops"]:
        for command in ("show", "explain", "history"):
            l2inv(command, "--", op["op_id"])
            l2inv(command, "--json", "--", op["op_id"])
    for record in l2inv.json("quarantine")["records"][:50]:
        l2inv("quarantine", record["key"])
    l2inv("verify")
    return codes


def test_a_mutated_answer_to_publish_never_ends_in_a_traceback(
    l2inv: Commands, ready: list[str], store: Store
) -> None:
    publish_in_numbers(l2inv, ready[0], store, 10)


@pytest.mark.slow
def test_200_mutated_answers_to_publish_never_end_in_a_traceback(
    l2inv: Commands, ready: list[str], store: Store
) -> None:
    publish_in_numbers(l2inv, ready[0], store, 200)


def publish_in_numbers(l2inv: Commands, op: str, store: Store, number: int) -> None:
    l2inv("claim", op)
    l2inv("mark-inverted", op, "--output", "globus://x")
    inversion = {
        "inversionId": "inv.AAAAAA", "primaryProposalId": "p", "instrumentProgramExecutionId": "i", "bucket": "b",
        "asdfObjectKey": None, "datasetIds": ["A"], "spectralLines": None, "createDate": "2026-01-01T00:00:00",
    }  # fmt: skip
    base = {"data": {"createL2InversionInventory": inversion, "l2Inversions": [inversion]}}
    for case, content in answers(4, number, base):
        store.fault = lambda name, nth, content=content: Fault(body=content or b" ")
        with limited(case):
            answer = l2inv("publish", "--json", expect=None)
            assert answer.exit_code in (0, 1, 4), answer
            assert "unexpected: " not in answer.stdout + answer.stderr, answer
            if l2inv.json("show", op)["state"] == "error":
                l2inv("retry", op)
            if l2inv.json("show", op)["state"] == "published":  # as if its answer had been the store's own
                break
    store.fault = None
    l2inv("publish", expect=None)
    l2inv("verify")


# Settings

SETTINGS_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 7, 2**63, 10**25, 0.5, -0.5, 1e308, float("nan"), float("inf"), "", " ", "~", "~/x", "${", "${A}",
    "$${A}", "${NOPE}", "${B}", "\0", "\x1b[31m", "x" * 3000, "x/" * 600, "a\nb", "embedded", "service=x", "host=h password=s3cr3t",
    "postgresql://u:s3cr3t@h/d", "http://u:s3cr3t@h/p", "http://h:99999/", "file:///x", "mailto://u:s3cr3t@h", "VISP", "QU",
    "IQUVI", "full", "slurm", "local", "2026-01-01", [], [None], {}, {"": 1}, ["true"], ["/bin/true", "{op_id}"], [[[]]], {"name": "x"},
    [{"name": "x", "addresses": ["json://h"]}] * 2, [{"uri": "x", "path": "y"}], [{"instrument": "VISP", "stokes": "II"}],
]  # fmt: skip
SETTINGS_RAW = [
    "!!python/object/apply:os.system [id]", "!x 1", "&a [*a]", "*a", "<<: {a: 1}", "{", "]", "'", '"', "|", ">-\n  x", "- x", "? x", "%YAML 1.1",
    "---", "...", "@x", "`x`", "\tx", "0x10", "010", "1_000", "1:30", "yes", "~", "\x00", "\x85", "\u2028", "é" * 99, "[" * 9000, "{a: " * 5000,
]  # fmt: skip


def settings_files(number: int) -> Iterator[tuple[int, bytes]]:
    tree, lines = yaml.safe_load(EXAMPLE.read_text()), EXAMPLE.read_text().splitlines()
    del tree["preprocess"]["work_dir"], tree["database"]["embedded_folder"]
    for nth in range(number):
        draw = random.Random(f"settings/{nth}")
        if nth % 2:
            changed: Any = copy.deepcopy(tree)
            for _ in range(draw.choice([1, 1, 2, 5])):
                mutate(draw, changed, SETTINGS_VALUES, ["x"])
            text = yaml.safe_dump(json.loads(json.dumps(changed)), allow_unicode=draw.random() < 0.5)
        else:
            text_lines = lines.copy()
            for _ in range(draw.choice([1, 1, 2, 5])):
                at = draw.randrange(len(text_lines))
                line = text_lines[at]
                where = draw.randrange(len(line) + 1)
                text_lines[at] = draw.choice([
                    line[:where] + draw.choice(SETTINGS_RAW) + line[where:], re.sub(r":.*", f": {draw.choice(SETTINGS_RAW)}", line),
                    f"  {line}", line[1:], f"{line}\n{line}", "", line.replace(":", ""), line[:where],
                ])  # fmt: skip
            text = "\n".join(text_lines)
        yield nth, broken(draw, text.encode("utf-8", "surrogatepass"))


def test_mutated_settings_are_read_or_each_mistake_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = settings_in_numbers(tmp_path, monkeypatch, 120)
    assert min(outcomes.values()) > 5, outcomes


@pytest.mark.slow
def test_2_000_mutated_settings_are_read_or_each_mistake_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    print(settings_in_numbers(tmp_path, monkeypatch, 2000))


def settings_in_numbers(folder: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> dict[int, int]:
    monkeypatch.setenv("A", "5")
    monkeypatch.setenv("XDG_DATA_HOME", str(folder / "data"))
    monkeypatch.chdir(folder)
    path, outcomes = folder / "config.yaml", {0: 0, 10: 0}
    for nth, content in settings_files(number):
        path.write_bytes(content)
        with limited(nth):
            for more in ((), ("--json",)):
                done = CliRunner().invoke(
                    main, ["--config", str(path), "config", "check", "--offline", *more]
                )
                assert done.exit_code in outcomes, (done.stdout, done.stderr)
                assert "Traceback" not in done.output
                assert "unexpected: " not in done.stderr
                assert done.exit_code == 0 or "s3cr3t" not in done.output
                assert all(line.isprintable() for line in done.output.splitlines())
            assert isinstance(json.loads(done.stdout), dict)
            try:
                settings = load(path, {"A": "5", "B": "\udcff"}).settings
            except ConfigError as problem:
                assert problem.mistakes
            else:
                json.dumps(to_plain(settings), allow_nan=False)
                redact("words", settings, {})
                criteria.version(settings.qualification)
        outcomes[done.exit_code] += 1
    return outcomes
