"""What scripts rely on: exit codes, one JSON document, errors of one line, and a fast start."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from l2inv import wording
from l2inv.cli import app, main, process, sections
from l2inv.sample.server import Store
from tests.helpers.commands import Commands, all_commands, subcommands

READS = [
    ["status"], ["next"], ["list"], ["list", "--state", "preprocessed"], ["quarantine"], ["config", "check"],
    ["migrate"], ["migrate", "--dry-run"], ["retry"], ["scan"], ["qualify"], ["preprocess"], ["publish"],
    ["server", "status"], ["near-misses"], ["criteria"], ["completeness"],
    ["overdue"], ["digest"], ["mine"], ["verify"], ["export"], ["log"], ["runs"], ["publish", "--dry-run"], ["clean", "--older-than", "1d"],
]  # fmt: skip
ABOUT_AN_OP = ["files", "show", "explain", "history", "claim", "mark-working", "release"]


def test_help_shows_every_command_in_one_line_and_the_table_names_its_module(
    l2inv: Commands,
) -> None:
    for path in Path(app.__file__).parent.glob("*.py"):
        importlib.import_module(f"l2inv.cli.{path.stem}")
    assert {name: c.callback and c.callback.__module__ for name, c in main.commands.items()} == {
        name: f"l2inv.cli.{module}" for name, (module, _) in sections.COMMANDS.items()
    }, "put the command into a section of l2inv/cli/sections.py"
    lines = l2inv("--help").stdout.splitlines()
    longest = max(map(len, main.commands))
    for name, (_, phrase) in sections.COMMANDS.items():
        assert lines.count(f"  {name:{longest}}  {phrase}") == 1
        assert (main.commands[name].help or "").split("\n\n")[0].replace("\n", " ") == phrase


def test_a_process_imports_the_module_of_its_command_alone() -> None:
    code = """
import sys
from l2inv.cli import main
try:
    main(["status", "--no-such-option"])
except SystemExit:
    print(sorted(name for name in sys.modules if name.startswith("l2inv.cli.")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (
        done.stdout.strip()
        == "['l2inv.cli.app', 'l2inv.cli.arguments', 'l2inv.cli.context', 'l2inv.cli.options', 'l2inv.cli.process', "
        "'l2inv.cli.sections', 'l2inv.cli.streams', 'l2inv.cli.views']"
    )


@pytest.mark.parametrize("argv", READS, ids=" ".join)
def test_json_is_one_document_on_stdout(l2inv: Commands, ready: list[str], argv: list[str]) -> None:
    answer = l2inv(*argv, "--json")
    assert isinstance(json.loads(answer.stdout), dict)
    assert answer.stdout.count("\n") == 1


def test_json_of_what_is_about_one_op(l2inv: Commands, ready: list[str]) -> None:
    for command in ABOUT_AN_OP:
        document = l2inv.json(command, ready[0])
        assert document["op_id"] == ready[0]
    l2inv("claim", ready[1])
    assert l2inv.json("mark-inverted", ready[1])["state"] == "inverted"


def test_every_command_that_reports_takes_json() -> None:
    for path in all_commands():
        command: click.Command = main
        for name in path:
            assert isinstance(command, click.Group)
            command = subcommands(command)[name]
        assert "--json" in {option for p in command.params for option in p.opts}, path
        assert {"--config", "--actor", "-v", "-q"} <= {option for p in command.params for option in p.opts}, (
            path
        )


def test_status_always_names_all_eight_states(l2inv: Commands) -> None:
    states = l2inv.json("status")["states"]
    assert list(states) == [
        "discovered", "invertible", "not_invertible", "preprocessed", "working", "inverted", "published", "error",
    ]  # fmt: skip
    assert set(states.values()) == {0}


@pytest.mark.parametrize(
    "argv",
    [
        ["no-such-command"], ["scan", "--no-such-option"], ["claim"], ["next", "-n", "0"], ["next", "-n", "many"],
        ["list", "--state", "lost"], ["qualify", "--as-of", "yesterday"], ["--actor", "a\nb", "status"],
        ["mark-inverted", "op", "--output", " "],
        ["mark-inverted"],
        ["mark-inverted", "--from", "ready.yaml", "--note", "fine"],
        ["mark-inverted", "op", "--from", "ready.yaml", "--output", "globus://a"],
        ["mark-inverted", "op", "--reason", "as good"],
        ["mark-inverted", "op", "--accept-superseded"],
        ["show", "\udcff"],
    ],
)  # fmt: skip
def test_wrong_usage_is_exit_code_2(l2inv: Commands, argv: list[str]) -> None:
    assert l2inv(*argv, expect=2).stdout == ""


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["lst"], "no such command 'lst', the nearest is list; see: l2inv --help"),
        (["relase", "x"], "no such command 'relase', the nearest is release; see: l2inv --help"),
        (["config", "chek"], "no such command 'chek', the nearest is check; see: l2inv config --help"),
        (["xyzzyq"], "no such command 'xyzzyq'; see: l2inv --help"),
        (
            ["scan", "--since-lst"],
            "no such option '--since-lst', the nearest is --since-last; see: l2inv scan --help",
        ),
        (["log", "--kind", "claimd"], ", the nearest is claimed; see: l2inv log --help"),
        (["status", "--max-age", "scn=26h"], ", the nearest is scan; see: l2inv status --help"),
        (["claim"], "missing argument 'OP'; see: l2inv claim --help"),
        (["show", "a\x1b[31mb", "c"], "got unexpected extra argument (c); see: l2inv show --help"),
    ],
    ids=str,
)
def test_wrong_usage_is_one_line_that_names_the_nearest(l2inv: Commands, argv: list[str], line: str) -> None:
    answer = l2inv(*argv, expect=2)
    assert answer.stdout == ""
    assert answer.stderr.startswith("l2inv: ")
    assert re.sub(r"such option: ?(\S+?)(,|;|$)", r"such option '\1'\2", answer.stderr).endswith(f"{line}\n")
    assert answer.stderr.count("\n") == 1
    error = l2inv(*argv, "--json", expect=2).json["error"]
    assert answer.stderr == f"l2inv: {error['message']}; {error['hint']}\n"


def test_common_options_stand_last_in_each_help() -> None:
    for path in all_commands():
        shown = CliRunner().invoke(main, [*path, "--help"], terminal_width=100).stdout
        names = re.findall(r"^  +(?:-\w, )?(--?[\w-]+)", shown.partition("Options:")[2], re.MULTILINE)
        common = ["--json", "--config", "--actor", "-v", "-q", "--help"]
        own_actor = path == ("log",)
        assert names[-5 if own_actor else -6 :] == [n for n in common if n != "--actor" or not own_actor], (
            path
        )


def test_every_mistake_of_the_settings_is_named_at_once_with_exit_code_10(l2inv: Commands) -> None:
    l2inv.config.write_text("databse: {}\nmetadata_store: {page_size: many, retires: 1}\n")
    for argv in (["config", "check"], ["scan"], ["status"]):
        answer = l2inv(*argv, expect=10)
        assert answer.stderr.count("\n") == 1
        for said in ("databse", "database", "metadata_store.page_size", "metadata_store.retires", "retries"):
            assert said in answer.stderr
    assert l2inv("scan", "--json", expect=10).json["error"]["code"] == 10


def test_settings_that_are_good_say_where_they_are_from(l2inv: Commands) -> None:
    assert l2inv.json("config", "check")["path"] == str(l2inv.config)
    assert l2inv("config", "check").stdout.splitlines()[0] == f"config: {l2inv.config}: valid"


def test_common_options_stand_before_or_after_the_command(l2inv: Commands, ready: list[str]) -> None:
    assert l2inv("claim", ready[0], "--actor", "ann").exit_code == 0
    assert l2inv.json("show", ready[0])["assignee"] == "ann"
    assert l2inv("qualify", "-q").stdout == ""
    assert l2inv("-q", "qualify").stdout == ""
    assert l2inv("qualify").stdout.count("\n") == 1


def test_the_actor_is_the_environments_or_the_users_of_the_system(
    l2inv: Commands, ready: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import pwd

    config = ["--config", str(l2inv.config)]
    assert CliRunner().invoke(main, [*config, "claim", ready[0]]).exit_code == 0
    assert l2inv.json("show", ready[0])["assignee"] == pwd.getpwuid(os.geteuid()).pw_name
    monkeypatch.setenv("L2INV_ACTOR", "from-env")
    assert CliRunner().invoke(main, [*config, "claim", ready[1]]).exit_code == 0
    assert l2inv.json("show", ready[1])["assignee"] == "from-env"


def test_options_override_the_environment_before_and_after_the_command(
    l2inv: Commands, ready: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("L2INV_ACTOR", "cron")
    monkeypatch.setenv("L2INV_CONFIG", "/nowhere/config.yaml")
    l2inv("claim", ready[0], actor="han")
    assert l2inv.json("show", ready[0])["assignee"] == "han"
    assert l2inv.json("claim", ready[1], "--actor", "ann")["assignee"] == "ann"


@pytest.mark.parametrize(
    "argv", [["claim"], ["list", "--state", "lost"], ["list", "--format", "csv"], ["nonsense"]], ids=" ".join
)
def test_wrong_usage_under_json_is_a_document_too(l2inv: Commands, argv: list[str]) -> None:
    answer = l2inv(*argv, "--json", expect=2)
    assert answer.json["error"]["code"] == 2


def test_a_full_disk_under_the_output_is_one_line(l2inv: Commands, ready: list[str]) -> None:
    command = [sys.executable, "-m", "l2inv", "--config", str(l2inv.config), "list", "--json"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "l2inv: No space left on device; fix that and run it again\n"


STREAMS = {
    "list >&-": (0, ""), "next >&-": (0, ""), "status <&- >&-": (0, ""), "export >&-": (0, ""), "show nope >&-": (3, "unknown"),
    "list >&- 2>&-": (0, ""), "show nope 2>&-": (3, ""), "show nope -vv 2>/dev/full": (3, ""),
    "show nope --json >/dev/full": (3, "unknown"), "lst 2>/dev/full": (2, ""), "lst --json >/dev/full": (2, ""),
    "--help >/dev/full": (1, "No space left"), "--version >/dev/full": (1, "No space left"), "list >/dev/full 2>/dev/full": (1, ""),
}  # fmt: skip


def test_closed_and_full_standard_streams_change_no_exit_code_and_end_in_no_traceback(
    l2inv: Commands, ready: list[str]
) -> None:
    for line, (code, said) in STREAMS.items():
        shell = [
            "sh",
            "-c",
            f'L2INV_CONFIG="$1" exec "$0" -m l2inv {line}',
            sys.executable,
            str(l2inv.config),
        ]
        done = subprocess.run(shell, capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stdout) == (code, ""), (line, done)
        assert said in done.stderr, line
        assert done.stderr.count("\n") == bool(said), (line, done)


@pytest.mark.parametrize(
    ("group", "heading"),
    [([], "Operators: keeping it running"), (["server"], "Commands"), (["config"], "Commands")],
)
def test_a_group_without_a_command_shows_its_help_as_it_is(
    l2inv: Commands, group: list[str], heading: str
) -> None:
    from click.testing import CliRunner

    from l2inv.cli import main

    result = CliRunner().invoke(main, group)
    assert f"\n{heading}:\n" in result.output
    assert "\\u000a" not in result.output


def test_an_unexpected_failure_is_one_line_and_a_traceback_only_with_vv(
    l2inv: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    from l2inv.queries import observing_programs

    def broken(*_: object) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr(observing_programs, "status", broken)
    answer = l2inv("status", expect=1)
    assert answer.stderr == (
        "l2inv: unexpected: ZeroDivisionError: two lines; run again with -vv and report what it prints\n"
    )
    assert "Traceback" in l2inv("-vv", "status", expect=1).stderr


def test_ctrl_c_before_a_command_was_found_is_one_line_too(
    l2inv: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(process.Group, "parse_args", interrupted)
    stopped = "\nl2inv: stopped; run it again: nothing was left half-written\n"
    assert l2inv("status", expect=1).stderr == stopped  # after the "^C" of a terminal


HEAVY = {"psycopg", "rich", "requests", "yaml", "yoyo", "msgspec", "graphql", "jinja2"}


@pytest.mark.parametrize(
    "argv", [["--help"], ["--version"], ["scan", "--help"], ["no-such-command"]], ids=" ".join
)
def test_a_process_that_only_prints_help_imports_nothing_heavy(argv: list[str]) -> None:
    code = f"""
import sys
from l2inv.cli import main
try:
    main({argv!r})
except SystemExit:
    print(sorted({HEAVY!r} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_history_reads_on_a_terminal_and_in_a_pipe(l2inv: Commands, ready: list[str]) -> None:
    l2inv("claim", ready[0])
    lines = l2inv("history", ready[0]).stdout.splitlines()
    assert len(lines) == 5
    assert "for han, due 20" in lines[-1]
    assert ready[1] in l2inv("next", "-n", "100").stdout
    assert ready[0] in l2inv("list").stdout


def test_text_from_outside_is_shown_and_never_obeyed(l2inv: Commands, ready: list[str]) -> None:
    evil = "[bold red]x[/] \x1b[31mred\x1b[0m \u202egnp.exe\r\nsecond \x07"
    l2inv("claim", ready[0])
    l2inv("mark-inverted", ready[0], "--note", evil, "--output", f"globus://{evil}")
    shown = l2inv("history", ready[0]).stdout
    assert "[bold red]x[/]" in shown
    assert not set(shown) & set("\x1b\x07\r\u202e")
    assert l2inv.json("history", ready[0])["events"][-1]["detail"]["note"] == evil


@given(st.text())
def test_clean_text_is_one_printable_line(text: str) -> None:
    shown = wording.clean(text)
    assert len(shown.splitlines()) <= 1
    assert "\x1b" not in shown


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("One.\\nTwo.", ["One.", "Two."]),
        ("One.\r\n\r\n  Two,\tand\nthree. \\n \\n", ["One.", "Two, and", "three."]),
        (
            r"The lines \nu and \nabla of 5 \neq 6.\nnu is new",
            [r"The lines \nu and \nabla of 5 \neq 6.", "nu is new"],
        ),
        (None, []),
    ],
)
def test_paragraphs_end_where_a_line_does_or_a_backslash_and_n_stand(
    text: str | None, read: list[str]
) -> None:
    assert wording.paragraphs(text) == read


def test_show_ends_with_the_first_paragraph_of_what_the_experiment_is_described_as(
    l2inv: Commands, store: Store
) -> None:
    op = store.datasets[0]["observingProgramExecutionId"]
    for row in store.datasets:
        if row["observingProgramExecutionId"] == op:
            row["experimentDescription"] = "First \x1b[31mwe look.\\n\\nThen we look\nagain."
    l2inv("scan")
    assert l2inv("show", op).stdout.endswith("\n\nFirst \\u001b[31mwe look. (… 2 more paragraphs: --json)\n")
    assert {d["record"]["experiment_description"] for d in l2inv.json("show", op)["datasets"]} == {
        "First \x1b[31mwe look.\\n\\nThen we look\nagain."
    }


@pytest.mark.parametrize(
    ("argv", "code"),
    [("list --json", 0), ("list", 0), ("next", 0), ("show {op}", 0), ("log --json", 0), ("near-misses", 0), ("preprocess --json", 4)],
)  # fmt: skip
def test_a_reader_that_goes_away_is_no_error_and_changes_no_exit_code(
    l2inv: Commands, ready: list[str], argv: str, code: int
) -> None:
    if code == 4:
        l2inv("overrule", ready[0], "--not-invertible", "--reason", "x")
        l2inv("overrule", ready[0], "--invertible", "--reason", "x")
        l2inv.settings["preprocess"]["command"] = ["false"]
        l2inv.save()
    with l2inv.start(*argv.format(op=ready[0]).split()) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read().count("\n") == (code == 4)
    assert process.returncode == code


def test_the_help_lists_each_command_once_by_user_with_its_full_summary() -> None:
    from l2inv.cli.sections import SECTIONS

    shown = [name for names in SECTIONS.values() for name in names]
    assert shown == list(subcommands(main))
    told = CliRunner().invoke(main, ["--help"], terminal_width=80).stdout
    assert "..." not in told.split("Stages:", 1)[1], "the first sentence of a command's docstring is too long"
    assert re.findall(r"^  ([a-z-]+) {2,}\S", told.split("Stages:", 1)[1], re.MULTILINE) == shown
