"""report: the page agrees with the event log, text stays text, and the file is replaced atomically."""

import base64
import hashlib
import os
import re
import resource
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.json import Jsonb

from l2inv import wording
from l2inv.config.settings import Database, Qualification, Settings
from l2inv.database.access import connected
from l2inv.database.connection import Connection, in_schema
from l2inv.queries import verdicts
from l2inv.queries.report import drawing, snapshot
from l2inv.queries.report import page as webpage
from l2inv.sample.server import Fault, Store
from l2inv.wording import clean
from tests.helpers.commands import NOW, Commands
from tests.helpers.database import copy, drop, url_of
from tests.helpers.hostile import NEVER, TEXTS, one


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    text: str = ""


@dataclass
class Page(HTMLParser):
    """What a browser makes of a page: its elements in order, and each one's own text."""

    html: str
    elements: list[Element] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        if self.elements:
            self.elements[-1].text += data

    def all(self, tag: str, **having: str) -> list[Element]:
        return [
            e
            for e in self.elements
            if e.tag == tag and all(e.attributes.get(k.strip("_")) == v for k, v in having.items())
        ]

    @property
    def text(self) -> str:
        return " ".join(" ".join(e.text for e in self.elements if e.tag != "style").split())


def shown(l2inv: Commands, *options: str) -> Page:
    return Page(l2inv("report", "-", *options).stdout)


def drawn(connection: Connection, now: datetime | None = None, lines: int = 5000) -> dict[str, Any]:
    now = now or datetime.now(UTC)
    return drawing.page(snapshot.read(connection, Settings(), now, lines), Settings(), now)


KEPT = f"reported_{os.getpid()}"  # the database that the tests which only read share


@pytest.fixture(scope="module")
def lives() -> Iterator[list[str]]:
    """The OPs that could be claimed, once the shared database is made."""
    lives: list[str] = []
    yield lives
    drop(KEPT)


@pytest.fixture
def worked(
    l2inv: Commands, store: Store, url: str, lives: list[str], request: pytest.FixtureRequest
) -> list[str]:
    """The OPs that were ready: the first published, the second in error, two held, one of them overdue, one on hold.

    From here on l2inv reads the shared database.
    """
    if not lives:
        lives += life(l2inv, store, request.getfixturevalue("ready"))
        copy(KEPT, str(conninfo_to_dict(url)["dbname"]))
    l2inv.settings["database"]["url"] = url_of(KEPT)
    l2inv.save()
    return lives


@pytest.fixture
def there(worked: list[str], l2inv: Commands) -> Iterator[Connection]:
    """A connection to the shared database."""
    with connected(Settings(database=Database(url=l2inv.settings["database"]["url"]))) as connection:
        yield connection


def life(l2inv: Commands, store: Store, ready: list[str]) -> list[str]:
    for op in ready[:2]:
        l2inv("claim", op)
        l2inv("mark-inverted", op)
    refusal = Fault(body=b'{"errors": [{"message": "no <b>thanks</b>"}]}')
    store.fault = lambda operation, nth: refusal if operation == "Create" and nth == 2 else None
    l2inv("publish", expect=4)
    states = {op["op_id"]: op["state"] for op in l2inv.json("list")["ops"]}
    l2inv("claim", ready[2], "--for", "1m", actor="ann")
    l2inv("claim", ready[3], "--for", "5d")
    l2inv("hold", ready[4], "--reason", "bad flats")
    l2inv("prioritize", ready[5], "--priority", "7", "--reason", "campaign")
    return sorted(ready[:2], key=lambda op: states[op] == "error") + ready[2:]


def test_the_counts_are_those_of_status_and_the_funnel_counts_each_op_up_to_its_state(
    l2inv: Commands, worked: list[str], there: Connection
) -> None:
    status = l2inv.json("status")
    page = drawn(there)
    assert page["states"] == status["states"]
    assert page["ops"] == status["ops"]
    n = status["states"]
    steps = {step["name"]: step for step in page["funnel"]}
    assert list(steps) == [
        "discovered", "judged", "invertible", "preprocessed", "working", "inverted", "published",
    ]  # fmt: skip
    reached = [step["reached"] for step in steps.values()]
    invertible = n["invertible"] + n["preprocessed"] + n["working"] + n["inverted"] + n["published"] + 1
    assert reached[:3] == [status["ops"], status["ops"] - n["discovered"], invertible]
    assert reached == sorted(reached, reverse=True)
    assert [steps[name]["reached"] for name in ("working", "inverted", "published")] == [4, 2, 1]
    assert steps["inverted"]["error"] == 1  # that is where it failed
    assert sum(step["here"] + step["error"] for step in steps.values()) == status["ops"]
    assert steps["discovered"]["percent"] == 100.0


def test_ages_are_counted_by_state_and_overdue_ops_are_those_of_overdue(
    l2inv: Commands, worked: list[str], there: Connection
) -> None:
    for days, age in ((0, 0), (8, 1), (29, 2), (92, 3), (366, 4)):
        now = datetime.now(UTC) + timedelta(days=days)
        page = drawn(there, now)
        for row in page["ages"]:
            assert [cell["ops"] for cell in row["classes"]] == [
                row["ops"] if a == age else 0 for a in range(5)
            ]
            assert row["oldest_days"] == (days if row["ops"] else None)
        owners = l2inv.json("overdue", "--as-of", now.isoformat())["owners"]
        late = {op["op_id"] for owner in owners for op in owner["ops"]}
        assert page["overdue_in_all"] == sum(row["overdue"] for row in page["ages"]) == len(late)
        assert {op["op_id"] for op in page["overdue"]} == late
        assert {line["op_id"] for line in page["lines"] if line["overdue"]} == late
    assert len(late) > 5
    assert worked[4] not in late
    assert {row["state"]: row["on_hold"] for row in page["ages"] if row["on_hold"]} == {"preprocessed": 1}
    (line,) = (line for line in page["lines"] if line["op_id"] == worked[2])
    assert line["overdue"] == "overdue 365 d, ann"


def test_claims_are_listed_with_holder_and_due_date_the_first_due_at_the_top(
    l2inv: Commands, worked: list[str], there: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.now(UTC) + timedelta(days=1)
    page = drawn(there, now)
    assert [(op["op_id"], op["assignee"], op["overdue"]) for op in page["held"]] == [
        (worked[2], "ann", True),
        (worked[3], "han", False),
    ]
    assert [(h["name"], h["ops"], h["overdue"]) for h in page["holders"]] == [("ann", 1, 1), ("han", 1, 0)]
    assert {op["op_id"]: op["until"] for op in page["held"]} == {
        op["op_id"]: datetime.fromisoformat(op["due_at"])
        for op in l2inv.json("list", "--state", "working")["ops"]
    }
    (failed,) = page["failed"]
    assert (failed["op_id"], failed["stage"]) == (worked[1], "publish")
    said = shown(l2inv).text
    assert "no <b>thanks</b>" in said
    assert "ann 1" in said
    monkeypatch.setattr(snapshot, "MOST", 1)
    page = drawn(there, now)
    assert [len(page[name]) for name in ("holders", "held", "overdue")] == [1, 1, 1]
    assert (page["held_in_all"], page["overdue_in_all"]) == (2, 2)
    assert shown(l2inv).text.count("The first 1 of 2.") == 1


def test_arrivals_are_of_each_ops_first_dataset_and_publications_of_each_event(
    l2inv: Commands, worked: list[str], store: Store, there: Connection
) -> None:
    first: dict[str, str] = {}
    for dataset in store.datasets:
        op, created = dataset["observingProgramExecutionId"], dataset["createDate"]
        first[op] = min(created, first.get(op, created))
    known = {op["op_id"] for op in l2inv.json("list")["ops"]}
    expected = Counter(created[:7] for op, created in first.items() if op in known)
    arrived, published = drawn(there, NOW)["months"]
    assert {bar["month"]: bar["ops"] for bar in arrived["bars"] if bar["ops"]} == expected
    assert (arrived["in_all"], arrived["earlier"], arrived["later"]) == (len(known), 0, 0)
    assert len(arrived["bars"]) == drawing.MONTHS
    assert arrived["bars"][-1]["month"] == "2026-11"
    assert max(bar["percent"] for bar in arrived["bars"]) == 100
    month = f"{datetime.now(UTC):%Y-%m}"
    _, published = drawn(there)["months"]
    assert (published["bars"][-1]["month"], published["bars"][-1]["ops"]) == (month, 1)


def test_months_outside_the_picture_are_counted() -> None:
    found = drawing.months({"0001-01": 2, "2026-10": 3, "9999-12": 4}, NOW)
    assert (found["in_all"], found["earlier"], found["later"]) == (9, 2, 4)
    assert [bar["ops"] for bar in found["bars"][-3:]] == [0, 3, 0]
    assert drawing.months({}, NOW)["highest"] == 0


def test_near_misses_are_those_that_the_command_finds_and_the_others_are_counted(
    l2inv: Commands, worked: list[str], there: Connection
) -> None:
    shows = [l2inv.json("show", op["op_id"]) for op in l2inv.json("list", "--state", "not_invertible")["ops"]]
    fail: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    for op in shows:
        criteria = [
            c for p in op["verdict"]["instrument_programs"] for c in p["criteria"] if not c.get("optional")
        ]
        failed = {c["name"] for c in criteria if c["result"] == "fail"}
        fail.update(failed)
        unknown.update({c["name"] for c in criteria if c["result"] == "unknown"} - failed)
    page = drawn(there)
    assert {row["name"]: row["fail"] for row in page["against"] if row["fail"]} == fail
    assert {row["name"]: row["unknown"] for row in page["against"] if row["unknown"]} == unknown
    assert page["verdicts"]["ops"] == len(shows)
    assert page["verdicts"]["undetermined"] == sum(op["verdict"]["undetermined"] for op in shows) > 0
    assert (
        page["verdicts"]["without_program"]
        == sum(not op["verdict"]["instrument_programs"] for op in shows)
        > 0
    )

    nearest = verdicts.near_misses(there)
    assert {row["name"]: row["alone"] for row in page["against"] if row["alone"]} == {
        criterion["name"]: len(criterion["ops"]) for criterion in nearest
    }
    read = snapshot.read(there, Settings(), NOW, 0)["against"]
    for criterion in nearest:
        found = [row for row in read if row["name"] == criterion["name"]]
        assert [(r["op_id"], r["measured"], r["required"], r["margin"]) for r in found] == [
            (op["op_id"], op["measured"], op["required"], op["margin"])
            for op in criterion["ops"][: snapshot.NEAREST]
        ]


def test_the_nearer_of_two_programs_is_the_near_miss_as_in_the_command(
    connection: Connection, url: str
) -> None:
    def failed(name: str, measured: float, required: float = 0.75) -> dict[str, Any]:
        return {"name": name, "result": "fail", "dataset_id": "D", "measured": measured, "required": required}

    for number, programs in enumerate(
        [
            [[failed("ao", 0.1), failed("ao", 0.5)], [failed("ao", 0.3)]],
            [[failed("ao", 0.7)], [failed("on_disk", 980.5, 950.25)], [failed("on_disk", 960.0, 950.0)]],
            [[failed("ao", 0.7), failed("gos", 0.1)]],
            [[failed("ao", 0.7), failed("ao", 0.7) | {"result": "unknown", "measured": None}]],
            [[failed("stokes", 1) | {"measured": "I", "required": "IQUV"}]],
        ]
    ):
        verdict = {
            "invertible": False,
            "undetermined": False,
            "instrument_programs": [
                {"instrument_program_id": f"p{place}", "invertible": False, "criteria": criteria}
                for place, criteria in enumerate(programs)
            ],
        }
        connection.execute(
            "insert into l2inv.event (op_id, seq, kind, state, actor, detail) values "
            "(%(op)s, 1, 'discovered', 'discovered', 'x', '{}'), (%(op)s, 2, 'judged', 'not_invertible', 'x', %(detail)s)",
            {
                "op": f"op{number}",
                "detail": Jsonb({"verdict": verdict, "criteria_version": "v", "datasets": {}}),
            },
        )
    told = {
        (criterion["name"], op["op_id"]): (op["measured"], op["margin"])
        for criterion in verdicts.near_misses(connection)
        for op in criterion["ops"]
    }
    read = snapshot.read(connection, Settings(), NOW, 0)["against"]
    assert {(r["name"], r["op_id"]): (r["measured"], r["margin"]) for r in read if r["op_id"]} == told
    assert told["ao", "op0"] == (0.3, -0.45)
    assert told["on_disk", "op1"] == (960.0, -10.0)
    assert {r["name"]: (r["fail"], r["unknown"]) for r in read}["ao"] == (4, 0)


def test_each_op_has_a_line_with_its_dates_seeing_bands_movie_holder_and_history(
    l2inv: Commands, worked: list[str], store: Store, there: Connection
) -> None:
    lines = {line["op_id"]: line for line in drawn(there)["lines"]}
    ops = {op["op_id"]: op for op in l2inv.json("list")["ops"]}
    assert lines.keys() == ops.keys()
    for op_id, line in lines.items():
        op = ops[op_id]
        assert line["state"] == op["state"]
        assert line["observed"] == op["start_time"][:10]
        assert line["since"] == op["since"][:10]
        assert line["priority"] == op["priority"]
        assert line["holder"] == (op["assignee"] or "")
        named = {name.removesuffix(" (narrow)") for name in line["bands"] if not name.endswith(" nm")}
        assert op["state"] == "discovered" or named == set(op["bands"])
        if op["fried_parameter_med_m"] is None:
            assert line["r0"] is None
        else:
            assert line["r0"]["median"] == f"{op['fried_parameter_med_m'] * 100:.1f}"
        history = l2inv.json("history", op_id)["events"]
        assert line["events_in_all"] == len(history)
        assert sum(len(day["events"]) for day in line["days"]) + line["not_shown"] == len(history)
        assert sum(segment["width"] for segment in line["segments"]) == 100
        assert line["segments"][-1]["state"] == op["state"]
    assert lines[worked[3]]["until"] == ops[worked[3]]["due_at"][:10]
    assert lines[worked[4]]["on_hold"]
    observed = [line["observed"] for line in lines.values()]
    assert observed == sorted(observed, reverse=True)

    page = shown(l2inv)
    assert [e.text.strip() for e in page.all("th", scope="row") if e.text.startswith("eid_")] == list(lines)
    for shape in page.all("a", tabindex="-1"):
        row = page.elements[
            [e.attributes.get("id") for e in page.elements].index((shape.attributes["href"] or "")[1:]) + 1
        ]
        title = page.elements[page.elements.index(shape) + 2]
        assert title.text.split(": ")[0] == row.text.strip()
    movies = {d["browseMovieUrl"] for d in store.datasets}
    links = [e for e in page.all("a") if str(e.attributes["href"]).startswith("http")]
    assert len(links) > 20
    for link in links:
        assert link.attributes["href"] in movies
        assert link.attributes["rel"] == "noreferrer noopener"


def test_a_history_that_is_too_long_is_cut_in_the_middle_with_a_note(
    l2inv: Commands, ready: list[str], connection: Connection
) -> None:
    connection.execute(
        "insert into l2inv.event (op_id, seq, kind, actor, detail) "
        "select %s, 3 + n, 'noted', 'han', jsonb_build_object('note', 'note ' || n) from generate_series(1, 20) n",
        [ready[0]],
    )
    (line,) = (line for line in drawn(connection)["lines"] if line["op_id"] == ready[0])
    assert line["not_shown"] == 23 - 14
    told = [event for day in line["days"] for event in day["events"]]
    assert [event.split(",")[0] for event in told[:2]] == ["discovered", "judged"]
    assert told[-1] == "noted, han: note 20"
    assert "… 9 not shown" in shown(l2inv).text


FIVE = {"min": 0.02, "p25": 0.05, "med": 0.07, "p75": 0.1, "max": 0.3}


def test_seeing_is_drawn_from_its_five_numbers_and_described_in_words() -> None:
    found = drawing.seeing([FIVE])
    assert found == {
        "median": "7.0",
        "word": "good",
        "cm": ["2", "5", "7", "10", "30"],
        "box": "M8 6H20V2H40v8H20V6M40 6H80M28 1v10m1-10v10",
    }
    both = drawing.seeing([FIVE, {name: metres / 10 for name, metres in FIVE.items()}])
    assert both is not None
    assert both["cm"] == ["0.2", "2.75", "3.85", "5.5", "30"]
    assert both["word"] == "poor"
    for metres, word in ((0.0696, "good"), (0.0694, "fair"), (0.0496, "fair"), (0.0494, "poor")):
        assert (drawing.seeing([{"med": metres}]) or {})["word"] == word


@pytest.mark.parametrize(
    "distribution",
    [
        {"med": 0.06}, FIVE | {"p25": 0.2}, FIVE | {"max": None}, {"med": 1e308}, {"med": -1e300, "min": 0},
        {"min": 0.1}, {}, {"med": "7 cm"}, {"med": None},
    ],
)  # fmt: skip
def test_seeing_that_is_incomplete_or_out_of_order_is_never_drawn(distribution: dict[str, Any]) -> None:
    found = drawing.seeing([distribution])
    assert (found is None) == (not isinstance(distribution.get("med"), float) or distribution["med"] == 1e308)
    assert found is None or found["box"] is None


def op(number: int, *boxes: str | None, **more: Any) -> dict[str, Any]:
    datasets = [{"bounding_box": box} for box in boxes]
    return {"op_id": f"op{number}", "state": "published", "datasets": datasets} | more


def test_fields_of_view_are_drawn_north_up_and_what_has_none_is_counted() -> None:
    found = drawing.disk(
        [
            op(1, "(-560.16,-347.7),(-677.17,-467.21)", "(-560.2,-347.8),(-677.1,-467.2)"),
            op(2, "(NaN,NaN),(NaN,NaN)", None, ""),
            op(3, "(20,30),(10,10)", "(NaN,NaN),(NaN,NaN)", state="discovered"),
            op(4, "(99999,1),(0,0)"),
            op(5, "(1e999,1),(0,0)"),
            op(6),
        ],
        NOW,
    )
    assert found["shapes"] == [
        {"number": 1, "op_id": "op1", "state": "published", "path": "M-677 348h117v119h-117z"},
        {"number": 3, "op_id": "op3", "state": "discovered", "path": "M10 -30h10v20h-10z"},
    ]
    assert (found["nowhere"], found["outside"]) == (3, 1)
    assert found["smallest"] < found["radius"] < found["largest"]
    assert (round(found["smallest"]), round(found["largest"])) == (944, 976)


def test_an_op_without_datasets_dates_and_verdict_has_a_line_all_the_same(
    connection: Connection, l2inv: Commands
) -> None:
    connection.execute(
        "insert into l2inv.event (op_id, seq, kind, state, actor) values ('bare', 1, 'discovered', 'discovered', 'x')"
    )
    (line,) = drawn(connection)["lines"]
    assert (line["observed"], line["arrived"], line["r0"], line["bands"], line["movie"]) == (
        "-",
        "-",
        None,
        [],
        None,
    )
    assert "bare" in shown(l2inv).text


def test_bands_are_judged_by_the_rules_of_their_instrument() -> None:
    rules = Qualification()
    datasets = [
        {"instrument": "VISP", "wavelength_min_nm": low, "wavelength_max_nm": high}
        for low, high in ((853.0, 856.0), (629.81, 630.9), (516.7, 517.7), (None, 1.0))
    ]
    assert drawing._bands(datasets, rules) == ["517.2 nm", "Ca II 854.2", "Fe I 630.3 (narrow)"]


@pytest.mark.parametrize(
    ("url", "is_link"),
    [
        ("https://api.example/movie?a=1&b=%20", True), ("HTTP://x/", True), ("javascript:alert(1)", False),
        ("data:text/html,x", False), (" https://x/", False), ("https://x/\n", False), ("https://x/\u202e", False),
        ("https:///" + "x" * 600, False), ("//x/", False), ("", None), (None, None),
    ],
)  # fmt: skip
def test_only_an_address_of_the_web_becomes_a_link(url: str | None, is_link: bool | None) -> None:
    found = drawing._movie([{"movie_url": url, "dataset_id": "D"}])
    assert (found and found["url"] is not None) == is_link


@pytest.fixture
def evil(l2inv: Commands, store: Store, ready: list[str]) -> list[str]:
    """OPs whose every text is hostile, judged, prepared, held and in error."""
    template = [d for d in store.datasets if d["observingProgramExecutionId"] == ready[0]]
    store.datasets = [d for name, text in TEXTS.items() for d in one(template, name, text)] + store.datasets[
        :20
    ]
    store.datasets[0]["browseMovieUrl"] = "javascript:alert('movie')"
    l2inv("scan", "--allow-withdrawals")
    l2inv("qualify", "--as-of", NOW.isoformat())
    l2inv("preprocess")
    for text in TEXTS.values():
        l2inv("prioritize", "--priority", "1", f"--reason={text}", "--", text)
        l2inv("note", "--", text, text)
    l2inv("claim", "--", TEXTS["html"], actor="<script>ann</script>")
    return list(TEXTS.values())


def test_the_page_has_the_numbers_of_next(l2inv: Commands, ready: list[str]) -> None:
    """Of each OP: the Fried parameter and its word, the fraction of frames with the AO locked, the minutes."""
    page = shown(l2inv)
    for op in l2inv.json("next", "-n", "100")["ops"]:
        (row,) = [
            r for r in re.findall(r"<tr id=.*?(?=<tr|</tbody)", page.html, re.DOTALL) if op["op_id"] in r
        ]
        cells = [re.sub(r"<svg.*?</svg>|<[^>]+>", " ", cell).split() for cell in row.split("<td>")]
        assert cells[5][:2] == wording.seeing(op).split()
        assert (cells[6], cells[7]) == ([wording.percent(op["ao_fraction"])], [wording.number(op["minutes"])])


def test_hostile_text_stays_text(l2inv: Commands, evil: list[str]) -> None:
    html = l2inv("report", "-").stdout
    assert not NEVER.search(html)
    page = Page(html)
    tags = {element.tag for element in page.elements}
    assert len(page.all("script")) == 1  # our own
    assert not tags & {
        "link",
        "img",
        "iframe",
        "object",
        "base",
        "form",
        "font",
        "dataset",
        "bold",
        "foreignobject",
    }
    told = {e.text.strip() for e in page.all("th", scope="row")}
    assert {clean(op).strip() for op in evil} <= told
    assert clean("<script>ann</script>") in page.text
    for element in page.elements:
        assert not [name for name in element.attributes if name.startswith("on") or name == "style"]
        if (href := element.attributes.get("href")) is not None:
            assert urlsplit(href).scheme in ("http", "https") or re.fullmatch(r"#[\w-]+", href), href
    assert "javascript:alert('movie')" in page.text


def test_the_page_runs_its_own_script_alone_and_asks_for_nothing(l2inv: Commands, worked: list[str]) -> None:
    page = shown(l2inv)
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    (style,) = page.all("style")
    (css,) = re.findall(r"<style>(.*?)</style>", page.html, re.DOTALL)
    (script,) = re.findall(r"<script>(.*?)</script>", page.html, re.DOTALL)
    assert script == (webpage.FOLDER / "report.js").read_text()
    of_css, of_script = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (css, script)
    )
    assert policy.attributes["content"] == (
        f"default-src 'none'; style-src 'sha256-{of_css}'; script-src 'sha256-{of_script}'; base-uri 'none'; form-action 'none'"
    )
    assert page.elements.index(policy) < page.elements.index(style)
    assert not page.all("link") + page.all("img")
    assert not re.search(r"@import|url\((?!#)|expression", css)
    ids = [e.attributes["id"] for e in page.elements if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    for element in page.elements:
        href = element.attributes.get("href") or ""
        assert not href.startswith("#") or href[1:] in ids
        for name in ("aria-labelledby", "aria-label", "for"):
            assert name not in element.attributes or element.attributes[name]
        for name in (element.attributes.get("aria-labelledby") or "").split():
            assert name in ids


def test_the_newest_ops_experiments_are_described_each_once_in_paragraphs(
    l2inv: Commands, worked: list[str], there: Connection
) -> None:
    experiments = drawn(there)["experiments"]
    names = [experiment["name"] for experiment in experiments]
    assert len(names) == len(set(names)) > 3
    assert set(names) <= {op["experiment_id"] for op in l2inv.json("list")["ops"]}
    page = shown(l2inv)
    said = [e.text.strip() for e in page.all("p")]
    assert "A short one." in said
    assert "Its second paragraph begins after a backslash and n, as real ones do." in said
    assert "\\n" not in page.html
    assert drawn(there, lines=0)["experiments"] == []


def test_an_empty_database_gives_a_page_that_says_so(l2inv: Commands, connection: Connection) -> None:
    said = shown(l2inv).text
    for words in (
        "0 found",
        "Nothing is overdue",
        "Nobody holds an OP",
        "No OP is recorded yet",
        "0 OPs drawn",
    ):
        assert words in said


def test_lines_are_limited_and_those_left_out_are_counted(
    l2inv: Commands, worked: list[str], there: Connection
) -> None:
    whole = drawn(there)
    few = drawn(there, lines=3)
    assert [line["op_id"] for line in few["lines"]] == [line["op_id"] for line in whole["lines"][:3]]
    for name in ("ops", "states", "funnel", "overdue_in_all", "verdicts", "months"):
        assert few[name] == whole[name]
    assert len(few["disk"]["shapes"]) <= 3
    page = shown(l2inv, "--ops", "3")
    assert f"The 3 newest lines of {whole['ops']}; {whole['ops'] - 3} are left out here" in page.text
    assert "left out here" not in shown(l2inv).text
    assert len([e for e in page.all("tr") if "id" in e.attributes]) == 3
    l2inv("report", "-", "--ops", "0")
    l2inv("report", "-", "--ops", "-1", expect=2)


def test_the_number_of_statements_does_not_grow_with_the_ops_and_none_may_write(
    worked: list[str], there: Connection
) -> None:
    seen: list[str] = []

    class Seen(psycopg.Cursor[Any]):
        def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append(str(query))
            return super().execute(query, *args, **kwargs)

    class SeenOnServer(psycopg.ServerCursor[Any]):
        def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append(str(query))
            return super().execute(query, *args, **kwargs)

    there.cursor_factory, there.server_cursor_factory = Seen, SeenOnServer
    numbers = []
    for lines in (1, 5000):
        seen.clear()
        snapshot.read(there, Settings(), NOW, lines)
        numbers.append(len(seen))
        assert seen[0] == "set transaction isolation level repeatable read, read only"
    assert numbers[0] == numbers[1] < 20


@pytest.mark.parametrize(
    ("argv", "mode"), [((), 0o600), (("--mode", "644"), 0o644), (("--mode", "640"), 0o640)]
)
def test_the_file_has_the_mode_that_is_asked_for_and_takes_the_place_of_the_last(
    l2inv: Commands, tmp_path: Path, argv: tuple[str, ...], mode: int
) -> None:
    file = tmp_path / "web" / "l2.html"
    file.parent.mkdir()
    file.write_text("the last one")
    file.chmod(0o666)
    before = os.umask(0o077 if argv else 0)
    try:
        told = l2inv.json("report", *argv, str(file))
    finally:
        os.umask(before)
    html = file.read_bytes()
    assert told == {"file": str(file), "ops": l2inv.json("status")["ops"], "bytes": len(html)}
    assert html.startswith(b"<!DOCTYPE html>")
    assert html.rstrip().endswith(b"</html>")
    assert stat.S_IMODE(file.stat().st_mode) == mode
    for wrong in ("666", "755", "-1", "rw"):
        l2inv("report", "--mode", wrong, str(file), expect=2)
    assert list(file.parent.iterdir()) == [file]
    assert str(file) in l2inv("report", str(file)).stdout
    assert l2inv("-q", "report", str(file)).stdout == ""
    link = tmp_path / "link.html"
    link.symlink_to(file)
    l2inv("report", str(link))
    assert link.is_symlink()


def test_a_write_that_fails_is_one_line_and_leaves_the_last_page(l2inv: Commands, tmp_path: Path) -> None:
    file = tmp_path / "web" / "l2.html"
    file.parent.mkdir()
    file.write_text("the last one")
    argv = [sys.executable, "-m", "l2inv", "--config", str(l2inv.config), "report", str(file)]
    done = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)),
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"l2inv: {file}: File too large; fix that and run it again\n"
    assert (file.read_text(), list(file.parent.iterdir())) == ("the last one", [file])
    for wrong, why in (
        (tmp_path / "no" / "l2.html", "No such file"),
        (Path("/dev/full"), "not a regular file"),
    ):
        answer = l2inv("report", str(wrong), expect=1)
        assert why in answer.stderr
        assert answer.stderr.count("\n") == 1
    assert l2inv("report", str(tmp_path), expect=2).stdout == ""
    assert l2inv("report", "/dev/full", "--json", expect=1).json["error"]["code"] == 1


def test_a_database_that_fails_leaves_the_last_page(l2inv: Commands, tmp_path: Path) -> None:
    file = tmp_path / "l2.html"
    file.write_text("the last one")
    l2inv.settings["database"]["read_url"] = f"host={tmp_path} dbname=x"  # the standby is what report reads
    l2inv.save()
    assert l2inv("report", str(file), expect=1).stderr.startswith("l2inv: database: ")
    assert file.read_text() == "the last one"


def test_json_and_the_page_cannot_both_go_to_stdout(l2inv: Commands) -> None:
    assert l2inv("report", "-", "--json", expect=2).json["error"]["code"] == 2


def test_a_reader_that_goes_away_is_no_error(l2inv: Commands) -> None:
    with l2inv.start("report", "-") as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_the_page_is_given_what_it_shows_and_nothing_else(connection: Connection) -> None:
    from jinja2 import meta

    source = (webpage.FOLDER / "report.html").read_text()
    used = meta.find_undeclared_variables(webpage.templates().parse(source))
    assert used == drawn(connection).keys() | {"style", "style_hash", "script", "script_hash"}


def test_another_schema_is_read_as_well(l2inv: Commands, connection: Connection) -> None:
    l2inv.settings["database"]["schema"] = "other"
    l2inv.save()
    l2inv("migrate")
    connection.execute("drop schema l2inv cascade")
    assert "0 found" in shown(l2inv).text
    assert in_schema("l2inv.op", "other") == '"other".op'
