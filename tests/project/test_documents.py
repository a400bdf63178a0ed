"""The documents agree with the program."""

import re
import shutil
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from l2inv import __version__, errors
from l2inv.cli import main
from l2inv.cli.sections import SECTIONS
from l2inv.database.connection import Connection
from l2inv.domain import states
from tests import reference
from tests.helpers.commands import all_commands

TOP = Path(__file__).parents[2]
STAGES = next(iter(SECTIONS.values()))
DOCUMENTS = sorted([*TOP.glob("*.md"), *TOP.glob("docs/*.md")])


def test_the_readmes_test_command_is_the_one_that_ci_runs() -> None:
    readme = (TOP / "README.md").read_text()
    (line,) = re.findall(r"^python3 -m venv .*python -m pytest$", readme, re.MULTILINE)
    if not (TOP / ".ci").exists():
        pytest.skip("a source distribution has no CI")
    ci = (TOP / ".ci" / "run").read_text()
    assert "grep -m1 'python -m pytest$' README.md" in ci
    assert "[test]" in line
    tests = [line for line in ci.splitlines() if "pytest" in line and not line.startswith(("#", "tests="))]
    assert all("bare " in line for line in tests), "with nothing of the caller's environment"


def test_ci_and_commits_are_checked_by_the_same_commands_and_fetch_nothing() -> None:
    config = TOP / ".pre-commit-config.yaml"
    if not config.exists():
        pytest.skip("a source distribution is no repository")
    assert {repo["repo"] for repo in yaml.safe_load(config.read_text())["repos"]} == {"local"}
    assert "pre-commit run --all-files" in (TOP / ".ci" / "run").read_text()


def test_the_readmes_picture_of_the_states_shows_every_edge_and_no_other() -> None:
    readme = (TOP / "README.md").read_text()
    picture = readme[readme.index("stateDiagram-v2") : readme.index("```", readme.index("stateDiagram-v2"))]
    drawn = set(re.findall(r"^ +(\S+) --> (\S+): (\w+)", picture, re.MULTILINE))
    edges = {
        (before or "[*]", after, kind)
        for kind, pairs in states.EDGES.items()
        for before, after in pairs
        if after is not None and kind != "failed"
    }
    assert drawn == edges | {("any", "error", "failed"), ("error", "any", "retried")}


# Words of the glossary that name one thing each: what the program knows by them.
KNOWN = {"kind": {*states.EDGES, "retried"}, "stage": {*STAGES} - {"inbox"}}


def prose(path: Path) -> str:
    """A document without its code, in which nothing is a link or a heading."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]+`", lambda code: re.sub(r"[^\w\s-]", "", code[0]), text)


def anchors(path: Path) -> set[str]:
    """The names that code hosts give to a document's headings."""
    found: list[str] = []
    for heading in re.findall(r"^#+ +(.+?) *$", prose(path), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        found.append(f"{name}-{found.count(name)}" if name in found else name)
    return set(found)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_every_link_leads_to_a_file_of_the_project_or_to_a_heading_in_one(path: Path) -> None:
    for image, text, target in re.findall(r"(!?)\[([^\]]*)\]\(([^)]*)\)", prose(path)):
        where, _, anchor = target.partition("#")
        assert text.strip(), f"{target}: a link that says nothing"
        if re.match(r"https?://", target):
            continue
        file = (path.parent / where).resolve() if where else path
        assert file.is_relative_to(TOP), f"{target} leads out of the project"
        assert file.exists(), f"{target}: no such file"
        assert not image or file.suffix in (".png", ".svg", ".jpg", ".gif"), f"{target} is no image"
        assert not anchor or anchor in anchors(file), f"{target}: {file.name} has no such heading"
    assert not re.search(r"\[[^\]]+\]\[|^\[[^\]]+\]:", prose(path), re.MULTILINE), "write links in place"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_every_file_that_a_document_names_is_there(path: Path) -> None:
    named = re.findall(r"`((?:l2inv|tests|migrations|docs)/[\w./-]*)", path.read_text())
    lacking = {name for name in named if "NNNN" not in name and not (TOP / name).exists()}
    assert not lacking


def test_each_document_is_linked_from_the_readme() -> None:
    linked = set(re.findall(r"\]\(([^)#]+)", (TOP / "README.md").read_text()))
    assert {str(path.relative_to(TOP)) for path in DOCUMENTS} - {"README.md"} <= linked


def test_the_reference_agrees_with_the_program(connection: Connection) -> None:
    assert reference.DOCUMENT.read_text() == reference.text(connection), f"stale; run: {reference.COMMAND}"


def test_every_kind_of_event_has_a_meaning() -> None:
    assert set(states.MEANINGS) == {*states.EDGES, "retried"}


def test_every_exit_code_of_an_error_has_a_meaning_and_is_documented_for_operators() -> None:
    raised = {
        one.exit_code
        for one in vars(errors).values()
        if isinstance(one, type) and issubclass(one, errors.L2invError)
    }
    assert raised <= set(errors.EXIT_CODES)
    operations = (TOP / "docs" / "operations.md").read_text()
    told = operations[operations.index("| exit code |") :].split("\n\n")[0]
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", told, re.MULTILINE)] == [*errors.EXIT_CODES]


def test_the_glossary_knows_every_state_stage_and_kind_of_event() -> None:
    rows = dict(
        re.findall(r"^\| ([^|]+?) +\| (.+?) +\|$", (TOP / "docs/glossary.md").read_text(), re.MULTILINE)
    )
    assert set(states.STATES) <= set(rows)
    for word, known in KNOWN.items():
        assert set(re.split(r"[:,] ", rows[word])[1:]) == known, word


@pytest.mark.parametrize("path", [*DOCUMENTS, TOP / "crontab.example"], ids=lambda p: p.name)
def test_every_command_that_a_document_shows_exists(path: Path) -> None:
    known = {" ".join(command) for command in all_commands()}
    groups = {command[0] for command in all_commands() if len(command) == 2}
    for words in re.findall(
        r"(?:^|`|&& |\$ )l2inv +((?:-[qv]+ +)*[a-z][a-z-]*(?: [a-z]+)?)", path.read_text(), re.MULTILINE
    ):
        first, *rest = [word for word in words.split() if not word.startswith("-")]
        assert (f"{first} {rest[0]}" if first in groups and rest else first) in known | groups, words


def test_the_crontab_runs_the_nightly_line_and_sets_what_cron_needs() -> None:
    names = re.findall(r"^([A-Z0-9_]+)=", (TOP / "crontab.example").read_text(), re.MULTILINE)
    assert {"MAILTO", "PATH"} <= set(names)
    assert "l2inv -q scan && l2inv -q qualify" in crontab_jobs()


def crontab_jobs() -> dict[str, str]:
    """The crontab's commands, and the five fields of when each is run."""
    lines = (TOP / "crontab.example").read_text().splitlines()
    jobs = [line.split(None, 5) for line in lines if re.match(r"[\d*]", line)]
    return {job[5]: " ".join(job[:5]) for job in jobs}


def units() -> dict[str, str]:
    """The unit files that docs/operations.md shows, and those that its table says to derive, by their paths."""
    text = (TOP / "docs" / "operations.md").read_text()
    blocks = re.findall(r"^```ini\n# /etc/systemd/system/(\S+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    found = dict(blocks)
    shown = found["l2inv@preprocess.timer"]
    rows = re.findall(r"^\| `(l2inv@\w+)\.timer` \| `([^`]+)` \|(?: `([^`]+)`)? \|$", text, re.MULTILINE)
    for name, when, environment in rows:
        found[f"{name}.timer"] = re.sub("OnCalendar=.*", f"OnCalendar={when}", shown)
        if environment:
            found[f"{name}.service.d/command.conf"] = f"[Service]\n{environment}\n"
    assert found["l2inv@preprocess.timer"] == shown
    return found


def options_of(unit: str) -> dict[str, list[str]]:
    """A unit's options, each with all its values."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", unit, re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


def as_calendar(fields: str) -> str:
    """What systemd's OnCalendar says for the five fields of a crontab line."""
    minute, hour, _, _, weekday = fields.split()
    minute = f"00/{minute.removeprefix('*/')}" if minute.startswith("*/") else minute.zfill(2)
    days = {"*": "", "0": "Sun ", "1-5": "Mon..Fri "}[weekday]
    return f"{days}*-*-* {hour if hour == '*' else hour.zfill(2)}:{minute}"


def test_the_systemd_timers_run_what_the_crontab_runs_when_it_does() -> None:
    found = units()
    program = "/opt/l2inv/bin/l2inv"
    runs = {}
    for path, unit in found.items():
        name, _, kind = path.rpartition(".")
        if kind != "timer":
            continue
        (when,) = options_of(unit)["OnCalendar"]
        instance = name.partition("@")[2]
        service = found["l2inv@.service" if instance else f"{name}.service"]
        own = found.get(f"{name}.service.d/command.conf", "")
        told = re.findall(r'COMMAND=([^"\n]+)"', own) or [instance]
        lines = [line.replace("$COMMAND", told[0]) for line in options_of(service)["ExecStart"]]
        assert all(line.startswith(program) for line in lines)
        runs[" && ".join(line.replace(program, "l2inv") for line in lines)] = when
    assert runs == {command: as_calendar(fields) for command, fields in crontab_jobs().items()}


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("there is no systemd-analyze")
    for path, unit in units().items():
        file = tmp_path / path
        file.parent.mkdir(exist_ok=True)
        file.write_text(unit.replace("/opt/l2inv/bin/l2inv", "/bin/true"))
    timers = sorted(tmp_path.glob("*.timer"))
    services = [tmp_path / "l2inv-nightly.service", tmp_path / "l2inv-mail@x.service"]
    command = ["systemd-analyze", "verify", "--man=no", *map(str, [*timers, *services])]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert [line for line in done.stderr.splitlines() if "l2inv" in line or str(tmp_path) in line] == []
    assert done.returncode == 0, done.stderr


def test_each_mail_that_the_table_explains_is_one_that_l2inv_writes() -> None:
    text = (TOP / "docs" / "operations.md").read_text()
    table = text[text.index("### What each mail means") : text.index("## Monitoring")]
    code = "\n".join(path.read_text() for path in (TOP / "l2inv").rglob("*.py"))
    # Put into a line, not written in it.
    theirs = {"Connection refused", "Cannot query field", "3 days over"}
    unknown = []
    for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE):
        for message in re.findall(r"`([^`]+)`", row):
            parts = [part for part in re.split(r"…|: |; |[A-Z]{5,}", message) if part.strip()]
            unknown += [
                (message, part)
                for part in parts
                if part.strip(" ,") not in theirs and part.strip(" ,") not in code
            ]
    assert unknown == []


@pytest.mark.parametrize("path", all_commands(), ids=" ".join)
def test_every_command_explains_itself_within_100_columns(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, [*path, "--help"], terminal_width=100)
    assert result.exit_code == 0
    assert all(len(line) <= 100 for line in result.stdout.splitlines())
    for line in result.stdout.splitlines():
        assert not re.fullmatch(r"  --?[\w-]+(, --?[\w-]+)*( [A-Z]+)?", line.rstrip()) or len(line) > 20, line


def test_the_changelog_has_the_present_version_and_each_kind_of_change_once() -> None:
    changelog = (TOP / "CHANGELOG.md").read_text()
    sections = re.split(r"^## ", changelog, flags=re.MULTILINE)[1:]
    assert sections[0].startswith("Unreleased\n")
    assert __version__ in changelog
    for section in sections:
        assert re.match(r"Unreleased\n|\d+\.\d+\.\d+ - \d{4}-\d\d-\d\d\n", section), section[:40]
        kinds = re.findall(r"^### (.*)$", section, re.MULTILINE)
        assert len(set(kinds)) == len(kinds)
        assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def defined(path: Path) -> set[str]:
    """The functions, classes and constants of a module, or what a migration creates."""
    if path.suffix == ".sql":
        return set(re.findall(r"^create \w+ (?:l2inv\.)?(\w+)", path.read_text(), re.MULTILINE))
    return set(re.findall(r"^(?:def |class )?(\w+)\b(?=[(:]| =)", path.read_text(), re.MULTILINE))


def test_the_walk_through_names_what_is_there() -> None:
    text = (TOP / "DEVELOPMENT.md").read_text()
    walk = text[text.index("## Where to look") : text.index("## Tests, lint, types")]
    rows = re.findall(r"^\| (.+?) \| `([^`]+)` \| (.+?) \|$", walk, re.MULTILINE)
    assert len(rows) > 9
    for question, file, answer in rows:
        names = re.findall(r"`(\w+)`", answer)
        assert names, question
        assert set(names) <= defined(TOP / file), question


GLOSSARY = TOP / "docs" / "glossary.md"
TEXTS = [*DOCUMENTS, *TOP.glob("*.example*"), TOP / "Makefile"]


def avoided() -> re.Pattern[str]:
    """What finds the words that the glossary lists as to be avoided."""
    table = GLOSSARY.read_text().split("## Words to avoid")[1]
    cells = re.findall(r"^\| (?!avoid|---)([^|]+?) +\|", table, re.MULTILINE)
    words = [re.escape(word.strip()) for cell in cells for word in cell.split(",")]
    return re.compile(rf"\b(?:{'|'.join(words)})\b", re.IGNORECASE)


def written(path: Path) -> str:
    """What a person reads in a document: its prose, not its code, nor the table of what to avoid."""
    if path.suffix != ".md":
        return path.read_text()
    text = re.sub(
        r"`[^`\n]+`", "", re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    )
    return text.split("## Words to avoid")[0] if path == GLOSSARY else text


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.name)
def test_no_document_uses_a_word_that_the_glossary_says_to_avoid(path: Path) -> None:
    found = [
        f"{word}: {line.strip()[:100]}"
        for line in written(path).splitlines()
        for word in avoided().findall(line)
    ]
    assert found == []


def worded(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the comments, docstrings and other strings of a Python module, or the lines of any other file."""
    if path.suffix != ".py":
        yield from enumerate(path.read_text().splitlines(), 1)
        return
    with path.open("rb") as source:
        for token in tokenize.tokenize(source.readline):
            if token.type in PROSE:
                yield from enumerate(token.string.splitlines(), token.start[0])


# Since Python 3.12, the text of an f-string is a token of its own.
PROSE = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
CODE = sorted(
    [*(TOP / "l2inv").rglob("*.py"), *(TOP / "l2inv").rglob("*.html"), *(TOP / "migrations").glob("*.sql")]
)


def test_no_module_or_migration_uses_a_word_that_the_glossary_says_to_avoid() -> None:
    pattern = avoided()
    found = [
        f"{path.relative_to(TOP)}:{number}: {word}: {line.strip()[:100]}"
        for path in CODE
        for number, line in worded(path)
        for word in pattern.findall(line)
    ]
    assert len(CODE) > 100
    assert found == []
