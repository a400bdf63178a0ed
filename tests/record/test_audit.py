"""The canonical form of an event: the database hashes what docs/audit.md describes, in any language."""

import json
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from l2inv import wording
from l2inv.database.connection import Connection
from l2inv.queries import observing_programs
from l2inv.record import canonical
from tests.helpers.commands import Commands
from tests.helpers.events import clock_at

DOCUMENT = Path(__file__).parents[2] / "docs" / "audit.md"
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
# As texts of JSON: among them such as no float is, and spellings that the database writes in another way.
NUMBERS = st.one_of(
    st.integers(-(10**30), 10**30).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.from_regex(r"-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,25})?([eE][-+]?[0-9]{1,2})?", fullmatch=True),
    st.sampled_from(
        ["-0", "-0.0", "1.10", "1e2", "1E+2", "0e10", "1.5e-7", "0.30000000000000004441", "1e308", "1e-400"]
    ),
)


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


VALUES = st.recursive(
    st.one_of(st.sampled_from(["null", "true", "false"]), NUMBERS, TEXT.map(quoted)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda items: f"[{','.join(items)}]"),
        st.dictionaries(TEXT, inner, max_size=4).map(
            lambda items: "{" + ",".join(f"{quoted(k)}:{v}" for k, v in items.items()) + "}"
        ),
    ),
    max_leaves=12,
)


def by_the_document(value: Any) -> str:
    """What the document says of the text of a detail, of which every number was read without loss."""
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: (len(key.encode()), key.encode()))
        return "{" + ", ".join(f"{quoted(key)}: {by_the_document(value[key])}" for key in keys) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(by_the_document, value)) + "]"
    if isinstance(value, Decimal):
        return format(abs(value) if value == 0 else value, "f")
    return json.dumps(value, ensure_ascii=False)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    op_id=TEXT.filter(bool),
    actor=TEXT.filter(bool),
    run_id=st.none() | st.integers(1, 2**63 - 1),
    more=st.lists(VALUES, max_size=2),
)
@example(
    op_id='a"\\\b\t\n\f\r\x1f\x7f\u2028😀',
    actor="\u0301",
    run_id=None,
    more=["1.10", '{"aa": 1, "b": 2, "é": 3, "a": 0}'],
)
def test_the_hash_of_any_event_is_that_of_its_canonical_form(
    connection: Connection, op_id: str, actor: str, run_id: int | None, more: list[str]
) -> None:
    with connection.transaction(force_rollback=True):
        for seq, (kind, state, detail) in enumerate(
            [
                ("discovered", "discovered", "{}"),
                *(("noted", None, f'{{"note": "", "more": {m}}}') for m in more),
            ],
            1,
        ):
            connection.execute(
                "insert into l2inv.event (op_id, seq, kind, state, actor, run_id, detail) values (%s, %s, %s, %s, %s, %s, %s)",
                [op_id, seq, kind, state, actor, run_id, detail],
            )
        printed = json.loads(wording.as_json(observing_programs.history(connection, op_id)))
        before = None
        for event in printed["events"]:
            before = canonical.digest(before, event | {"op_id": op_id})
            assert before == event["hash"]
            exact = json.loads(event["detail_text"], parse_float=Decimal, parse_int=Decimal)
            assert by_the_document(exact) == event["detail_text"]


@pytest.mark.parametrize(
    "moment", ["2026-11-23 20:09:50+00", "2026-11-23 20:09:50.5+00", "2026-11-23 20:09:50.000001+00"]
)
def test_a_time_with_few_digits_has_six_or_none(l2inv: Commands, connection: Connection, moment: str) -> None:
    with clock_at(connection, moment):
        connection.execute(
            "insert into l2inv.event (op_id, seq, kind, state, actor) values ('op', 1, 'discovered', 'discovered', 'x')"
        )
    (event,) = l2inv.json("history", "op")["events"]
    assert re.fullmatch(r"2026-11-23T20:09:50(\.\d{6})?Z", event["recorded_at"])
    assert canonical.digest(None, event | {"op_id": "op"}) == event["hash"]
    assert l2inv.json("verify")["findings"] == []


def test_the_program_of_the_document_finds_what_was_changed(
    l2inv: Commands, ready: list[str], connection: Connection, tmp_path: Path
) -> None:
    program = re.search(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert program is not None
    (tmp_path / "audit.py").write_text(program[1])

    def said() -> list[str]:
        history = l2inv("history", ready[0], "--json").stdout
        command = [sys.executable, str(tmp_path / "audit.py")]
        return subprocess.run(
            command, input=history, capture_output=True, text=True, check=True
        ).stdout.splitlines()

    l2inv("note", ready[0], 'a\nword \U0001f600 "quoted" \\ é')
    assert said() == [f"{seq} as recorded" for seq in range(1, 5)]
    connection.execute("alter table l2inv.event disable trigger user")
    connection.execute(
        "update l2inv.event set recorded_by = 'somebody' where op_id = %s and seq = 2", [ready[0]]
    )
    assert said() == ["1 as recorded", "2 CHANGED", "3 CHANGED", "4 CHANGED"]


@pytest.mark.parametrize("setting", ["timezone = 'Asia/Tokyo'", "datestyle = 'German'", "standard_conforming_strings = off",
                                     "bytea_output = 'escape'", "extra_float_digits = -15", "lc_time = 'C'"])  # fmt: skip
def test_no_setting_of_a_session_changes_a_hash(
    l2inv: Commands, ready: list[str], connection: Connection, setting: str
) -> None:
    connection.execute(f"set {setting}")
    connection.execute(
        "insert into l2inv.event (op_id, seq, kind, actor, detail) select op_id, seq + 1, 'noted', 'x', "
        """'{"note": "x", "number": 0.1, "text": "a\\\\b"}' from l2inv.op_state where op_id = %s""",
        [ready[0]],
    )
    assert l2inv.json("verify", "events")["findings"] == []
