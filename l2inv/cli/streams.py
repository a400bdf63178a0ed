"""The standard streams: open those that are closed, mute those that cannot be written."""

import os
import sys
from typing import TextIO

import click


def print_on_stderr(line: str) -> None:
    """Print a line on stderr; if that fails, as on a full disk, only the exit code remains."""
    try:
        click.echo(line, err=True)
    except OSError:
        mute(sys.stderr)


def mute(*streams: TextIO) -> None:
    """Redirect streams that cannot be written to /dev/null: Python's flush at exit would end in a traceback and 120."""
    for stream in streams:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def open_what_is_closed() -> None:
    """Open closed standard streams on /dev/null: else a connection would get the number, and the output."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w"))
