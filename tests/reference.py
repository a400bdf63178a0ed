"""Generates docs/reference.md from the program: python -m tests.reference.

Commands come from Click, settings from their types and from the comments of config.example.yaml, exit codes and kinds
of events from the modules that hold them, views from a migrated database; what their columns mean is said in
docs/metadata-store.md.
"""

import re
from collections.abc import Iterable, Iterator, Sequence, Set
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import click
import msgspec
from msgspec import NODEFAULT, Meta, Struct

from l2inv import errors
from l2inv.cli import main as program
from l2inv.cli.sections import SECTIONS
from l2inv.config.settings import Settings
from l2inv.config.yamlfile import File, Must
from l2inv.database.connection import Connection
from l2inv.domain import states
from tests.schema import migrated

TOP = Path(__file__).parent.parent
DOCUMENT = TOP / "docs" / "reference.md"
COMMAND = "python -m tests.reference"
VIEWS = ("op", "dataset", "published_op", "history", "runs")
COMMON = {"--config", "--actor", "-v", "-q", "--json", "--help"}
UNITS = {"days": "days", "seconds": "s", "minutes": "min", "hours": "h", "nm": "nm", "mb": "MB"}
NAMES = {int: "whole number", float: "number", str: "text", bool: "true or false"}

Row = tuple[str, ...]


def text(connection: Connection) -> str:
    """Return what docs/reference.md is to say; the connection is to a migrated database."""
    return "\n".join(
        [
            "# Reference",
            "",
            f"Made from the program by `{COMMAND}`; a test fails when it is stale. What the words mean:",
            "[glossary.md](glossary.md).",
            "",
            "- [Commands](#commands)",
            "- [Settings](#settings)",
            "- [Exit codes](#exit-codes)",
            "- [Kinds of events](#kinds-of-events)",
            "- [Views](#views)",
            *_commands(),
            *_settings(),
            *_exit_codes(),
            *_kinds(),
            *_views(connection),
            "",
        ]
    )


def table(head: Row, rows: Iterable[Row]) -> list[str]:
    lines = ["", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return lines + [f"| {' | '.join(map(_shown, row))} |" for row in rows]


def _shown(said: str) -> str:
    """Markdown that shows the text as it is; what stands between backticks already does."""
    parts = said.replace("|", r"\|").split("`")
    return "`".join(
        re.sub(r"(?=[*<])(?!<br>)", r"\\", part) if n % 2 == 0 else part for n, part in enumerate(parts)
    )


# Commands


def _commands() -> Iterator[str]:
    yield from ("", "## Commands", "", "Every command takes these, before or after its name:")
    yield from table(("option", ""), [*_options(program, shown=COMMON), ("`-h`, `--help`", "Explain it.")])
    yield from (
        "",
        "Every command that reports takes `--json`: one JSON document on stdout. `l2inv --version`",
    )
    yield "shows the version. An OP is named by its id, or by any part of it that fits one OP alone."
    for section, names in SECTIONS.items():
        yield from ("", f"### {section}")
        for name, command in named_commands(program, names):
            yield from _command(name, command)


def named_commands(program: click.Group, names: Iterable[str]) -> Iterator[tuple[str, click.Command]]:
    """Return the commands of these names, and in place of a group those in it, each with its full name."""
    for name in names:
        command = program.get_command(click.Context(program), name)
        assert command is not None, name
        if isinstance(command, click.Group):
            for sub, subcommand in command.commands.items():
                yield f"{name} {sub}", subcommand
        else:
            yield name, command


def _command(name: str, command: click.Command) -> Iterator[str]:
    ctx = click.Context(command, info_name=name)
    pieces = [
        re.sub(r"^\[(\[.*\])\]$", r"\1", piece) for piece in command.collect_usage_pieces(ctx)
    ]  # of Click 8.4.0
    usage = " ".join(["l2inv", name, *pieces])
    yield from ("", f"#### {name}", "", f"`{usage}`")
    for paragraph in (command.help or "").split("\n\n"):
        yield from ("", _shown(" ".join(paragraph.split())))
    if options := _options(command, hidden=COMMON):
        yield from table(("option", ""), options)


def _options(
    command: click.Command, shown: Set[str] = frozenset(), hidden: Set[str] = frozenset()
) -> list[Row]:
    ctx = click.Context(command)
    rows: list[Row] = []
    for option in command.params:
        names = set(option.opts)
        if (
            isinstance(option, click.Option)
            and (option.expose_value or not names & hidden)
            and (not shown or names & shown)
        ):
            told = option.get_help_record(ctx)
            assert told is not None, option
            rows.append((f"`{told[0]}`", " ".join(told[1].split())))
    return rows


# Settings


def _settings() -> Iterator[str]:
    comments = _comments((TOP / "config.example.yaml").read_text())
    yield from ("", "## Settings", "")
    yield "One YAML file, of which every setting may be left out. Where it is looked for, and the whole file with its"
    yield "defaults: [config.example.yaml](../config.example.yaml). `l2inv config check` names every mistake at once."
    for section in msgspec.structs.fields(Settings):
        kind = get_type_hints(Settings, include_extras=True)[section.name]
        doc = " ".join((kind.__doc__ or "").split())
        yield from ("", f"### {section.name}", "", comments.get(section.name) or doc)
        yield from table(("setting", "type", "default", ""), list(_fields(section.name, kind, comments)))


def _fields(path: str, kind: type[Struct], comments: dict[str, str]) -> Iterator[Row]:
    hints = get_type_hints(kind, include_extras=True)
    for field in msgspec.structs.fields(kind):
        here, hint = f"{path}.{field.encode_name}", hints[field.name]
        below = _struct(hint)
        if below and not _is_list(hint):
            yield from _fields(here, below, comments)
            continue
        default = field.default
        if field.default_factory is not NODEFAULT:
            default = field.default_factory()
        shown = "required" if default is NODEFAULT else f"`{_plain(default)}`"
        if below and default:
            shown = f"{len(default)}, see the example"
        said = comments.get(here) or ""
        yield f"`{here}`", _type(hint, field.name), shown, said
        if below:
            yield from _fields(f"{here}[]", below, comments)


def _plain(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return value if isinstance(value, str) else re.sub(r"(\d)\.0\b", r"\1", text).replace('"', "")


def _struct(hint: Any) -> type[Struct] | None:
    """The Struct that a type is, or is a list of."""
    if get_origin(hint) is Annotated or get_origin(hint) is list:
        return _struct(get_args(hint)[0])
    return hint if isinstance(hint, type) and issubclass(hint, Struct) else None


def _is_list(hint: Any) -> bool:
    return get_origin(hint) is list or (get_origin(hint) is Annotated and _is_list(get_args(hint)[0]))


def _type(hint: Any, name: str) -> str:
    """What may stand there, in words, with its bounds and its unit."""
    unit = next((UNITS[word] for word in reversed(name.split("_")) if word in UNITS), None)
    kind, bounds = _described(hint)
    return "; ".join([kind + (f", in {unit}" if unit else ""), *bounds])


def _described(hint: Any) -> tuple[str, list[str]]:
    if hint == File:
        return "path", []
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        kind, bounds = _described(inner[0])
        for said in inner[1:]:
            bounds += _bounds(said)
        return kind, bounds
    if origin in (Union, UnionType):
        kind, bounds = _described(next(one for one in inner if one is not NoneType))
        return f"{kind}, or null", bounds
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner), []
    if origin is list:
        kind, bounds = _described(inner[0])
        return f"list of {kind}", bounds
    return NAMES.get(hint, "entries as below"), []


def _bounds(said: Any) -> list[str]:
    if isinstance(said, Must):
        words = said.words.removeprefix("must be ").removeprefix("must ").removesuffix(" does not hold")
        return [words if words != said.words else f"refused: {words}"]
    if not isinstance(said, Meta):
        return []
    lowest = (
        f"from {said.ge:g}" if said.ge is not None else f"above {said.gt:g}" if said.gt is not None else ""
    )
    highest = f"to {said.le:,}" if said.le is not None else ""
    return [f"{lowest} {highest}".strip()] if lowest or highest else []


def _comments(example: str) -> dict[str, str]:
    """What config.example.yaml says of each section and setting: beside it and above it, examples as code."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    above: list[str] = []
    for line in example.splitlines():
        indent = len(line) - len(line.lstrip())
        if not line.strip():
            above = []
        elif line.lstrip().startswith("#"):
            text = line.lstrip()[1:]
            if above and above[-1].endswith(","):  # an example that goes on
                text = f"{above.pop()} {text.strip()}"
            above.append(text)
        elif setting := re.match(r"( *)(- )?(\w+):", line):
            indent = len(setting[1]) + len(setting[2] or "")
            path = [(depth, name) for depth, name in path if depth < indent]
            names = [name for _, name in path]
            path.append((indent, setting[3]))
            beside = re.search(r"  # (.*)", line)
            said = _prose(above, setting[3], beside[1] if beside else "")
            found.setdefault(".".join([*names, setting[3]]), said)
            above = []
    return found


def _prose(above: list[str], name: str, beside: str) -> str:
    """The comment of a setting: what is indented in it is an example."""
    prose = " ".join(line.strip() for line in above if not line.startswith("   "))
    examples = [line.strip() for line in above if line.startswith("   ")]
    whole = [f"`{line}`" for line in examples if line.startswith(name) and line != f"{name}:"]
    such = f"Such as {' or '.join(whole)}" if whole else "The file shows an example" if examples else ""
    return ". ".join(part.rstrip(".:") for part in (prose, beside, such) if part)


# Exit codes, kinds of events


def _exit_codes() -> Iterator[str]:
    yield from ("", "## Exit codes")
    yield from table(("code", "meaning"), [(str(code), said) for code, said in errors.EXIT_CODES.items()])


def _kinds() -> Iterator[str]:
    yield from ("", "## Kinds of events", "")
    yield "Each event takes an OP from a state to a state, or leaves the state as it is. No other event is possible:"
    yield "PostgreSQL refuses it. The picture of the states is in the [README](../README.md#the-states)."
    rows = [(f"`{kind}`", _edges(kind), said) for kind, said in states.MEANINGS.items()]
    yield from table(("kind", "from → to", "says"), rows)


def _edges(kind: str) -> str:
    if kind == "retried":
        return "`error` → the state before it"
    edges = states.EDGES[kind]
    to: dict[str | None, Sequence[str | None]] = {}
    for after in (*states.STATES, None):
        before = [state for state in (None, *states.STATES) if (state, after) in edges]
        if before:
            to[after] = before
    return "<br>".join(
        f"{_before(before)} → {f'`{after}`' if after else 'the same'}" for after, before in to.items()
    )


def _before(before: Sequence[str | None]) -> str:
    if len(before) == len(states.STATES):
        return "any state"
    missing = [state for state in states.STATES if state not in before]
    if len(missing) <= 2:
        return f"any but {' and '.join(f'`{state}`' for state in missing)}"
    return ", ".join(f"`{state}`" if state else "(new)" for state in before)


# Views


def _views(connection: Connection) -> Iterator[str]:
    yield from ("", "## Views", "")
    yield "What others may read; columns may be added at the end, never renamed or removed. How to read on from where one"
    yield "was, and an example of each column: [metadata-store.md](metadata-store.md#what-is-offered-the-views)."
    meanings = _meanings()
    for view in VIEWS:
        yield from ("", f"### l2inv.{view}")
        rows = connection.execute(
            """
            select attname as name, format_type(atttypid, atttypmod) as type from pg_attribute
            where attrelid = %s::regclass and attnum > 0 order by attnum
            """,
            [f"l2inv.{view}"],
        ).fetchall()
        known = meanings[view]
        said = [(f"`{row['name']}`", row["type"].replace("timestamp with time zone", "timestamptz"), known.get(row["name"], "")) for row in rows]  # fmt: skip
        lacking = [name for name, _, meaning in said if not meaning]
        assert not lacking, f"docs/metadata-store.md says nothing of {', '.join(lacking)} of the view {view}"
        yield from table(("column", "type", "meaning"), said)


def _meanings() -> dict[str, dict[str, str]]:
    """What docs/metadata-store.md says of each column of each view."""
    parts = re.split(
        r"^### `l2inv\.(\w+)`.*$", (TOP / "docs" / "metadata-store.md").read_text(), flags=re.MULTILINE
    )
    found = {}
    for view, part in zip(parts[1::2], parts[2::2], strict=True):
        cells = re.findall(
            r"^\| (`[^|]+`) \| ([^|]+) \| ([^|]+) \|",
            re.split(r"^##", part, flags=re.MULTILINE)[0],
            re.MULTILINE,
        )
        found[view] = {name: said for names, _, said in cells for name in re.findall(r"`(\w+)`", names)}
    return found


@click.command()
def main() -> None:
    """Write docs/reference.md anew."""
    with migrated() as connection:
        DOCUMENT.write_text(text(connection))
    click.echo(f"wrote {DOCUMENT}")


if __name__ == "__main__":
    main()
