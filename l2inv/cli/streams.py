"""The standard streams: what is closed is opened, what takes nothing more is muted."""

import os
import sys
from typing import TextIO

import click


def print_on_stderr(line: str) -> None:
    """What stderr does not take, as on a full disk, nobody can be told; the exit code still says how it ended."""
    try:
        click.echo(line, err=True)
    except OSError:
        mute(sys.stderr)


def mute(*streams: TextIO) -> None:
    """Let streams that take nothing more take all: tried again at exit, it would end in a traceback and in 120."""
    for stream in streams:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def open_what_is_closed() -> None:
    """Where l2inv was started with a standard stream closed, a connection would get its number, and what is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w"))
