"""What the documents say is what the program does."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_cli import all_commands

from l2inv import states
from l2inv.cli import main

TOP = Path(__file__).parent.parent
DOCUMENTS = sorted([*TOP.glob("*.md"), *TOP.glob("docs/*.md")])


def test_the_readmes_test_command_is_the_one_that_ci_runs() -> None:
    readme = (TOP / "README.md").read_text()
    (line,) = re.findall(r"^python3 -m venv .*python -m pytest$", readme, re.MULTILINE)
    assert "grep -m1 'python -m pytest$' README.md" in (TOP / ".ci" / "run").read_text()
    assert "[test]" in line


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


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_every_link_between_documents_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


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
    lines = [x for x in (TOP / "crontab.example").read_text().splitlines() if x and not x.startswith("#")]
    names = {line.split("=", 1)[0] for line in lines if re.match(r"[A-Z0-9_]+=", line)}
    assert {"MAILTO", "PATH"} <= names
    jobs = [line.split(None, 5) for line in lines if re.match(r"[\d*]", line)]
    assert all(len(job) == 6 for job in jobs)
    assert "l2inv -q scan && l2inv -q qualify" in [job[5] for job in jobs]


@pytest.mark.parametrize("path", all_commands(), ids=" ".join)
def test_every_command_explains_itself_within_100_columns(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, [*path, "--help"], terminal_width=100)
    assert result.exit_code == 0
    assert all(len(line) <= 100 for line in result.stdout.splitlines())
    for line in result.stdout.splitlines():
        assert not re.fullmatch(r"  --?[\w-]+(, --?[\w-]+)*( [A-Z]+)?", line.rstrip()) or len(line) > 20, line
