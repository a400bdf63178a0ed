"""Generates docs/l2inv.1, the manual page, from the program: python -m tests.manpage."""

import re
from collections.abc import Iterator
from pathlib import Path

import click

from l2inv import __version__
from l2inv.cli import main as program
from l2inv.cli.sections import SECTIONS
from l2inv.errors import EXIT_CODES
from tests.reference import COMMON, _options, named_commands

DOCUMENT = Path(__file__).parent.parent / "docs" / "l2inv.1"
COMMAND = "python -m tests.manpage"


def text() -> str:
    """Return what docs/l2inv.1 is to say."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield rf".\" Made from the program by `{COMMAND}`; a test fails when it is stale."
    yield f'.TH L2INV 1 "" "l2inv {_roff(__version__)}" "User Commands"'
    yield ".SH NAME"
    first, _, rest = (program.help or "").partition("\n\n")
    yield rf"l2inv \- {_roff(first[0].lower() + first[1:].rstrip('.'))}"
    yield ".SH SYNOPSIS"
    yield r".B l2inv"
    yield r"[\fIOPTION\fR]... \fICOMMAND\fR [\fIARGUMENT\fR]..."
    yield ".SH DESCRIPTION"
    yield _roff(rest)
    yield ".SH OPTIONS"
    yield "Every command takes these, before or after its name, and \\fB\\-\\-json\\fR, for one JSON document on stdout."
    for names, said in [*_options(program, shown=COMMON), ("`-h`, `--help`", "Explain it.")]:
        yield from _item(names, said)
    yield ".SH COMMANDS"
    for section, commands in SECTIONS.items():
        yield f".SS {_roff(section)}"
        for name, command in named_commands(program, commands):
            yield from _command(name, command)
    yield ".SH EXIT STATUS"
    for code, said in EXIT_CODES.items():
        yield from _item(str(code), said)
    yield ".SH ENVIRONMENT"
    yield from _item("L2INV_CONFIG", "The settings file, unless --config names one.")
    yield from _item("L2INV_ACTOR", "Who acts, unless --actor names somebody.")
    yield from _item("NO_COLOR", "Where it is set, nothing is colored.")
    yield ".SH FILES"
    places = "./l2inv.yaml, config.yaml in the user's configuration folder, /etc/l2inv/config.yaml"
    yield from _item(places, "The settings: the first of these that there is.")
    yield from _item("~/.local/state/l2inv/failures.json", "Which failures last, as told under -q.")


def _command(name: str, command: click.Command) -> Iterator[str]:
    pieces = command.collect_usage_pieces(click.Context(command, info_name=name))
    usage = " ".join(re.sub(r"^\[(\[.*\])\]$", r"\1", piece) for piece in pieces)  # of Click 8.4.0
    yield from (".TP", rf"\fBl2inv {_roff(name)}\fR {_roff(usage)}")
    for number, paragraph in enumerate((command.help or "").split("\n\n")):
        yield from ([".IP"] if number else [])
        yield _roff(paragraph)
    if options := _options(command, hidden=COMMON):
        yield ".RS"
        for names, said in options:
            yield from _item(names, said)
        yield ".RE"


def _item(name: str, said: str) -> Iterator[str]:
    yield from (".TP", rf"\fB{_roff(name)}\fR", _roff(said) or r"\&")


def _roff(said: str) -> str:
    """The text on one line, in which roff obeys nothing."""
    plain = " ".join(said.replace("`", "").split()).replace("\\", r"\e").replace("-", r"\-")
    return rf"\&{plain}" if plain.startswith((".", "'")) else plain


@click.command()
def main() -> None:
    """Write docs/l2inv.1 anew."""
    DOCUMENT.write_text(text())
    click.echo(f"wrote {DOCUMENT}")


if __name__ == "__main__":
    main()
