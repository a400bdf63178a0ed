"""Processes on a terminal of a given size, and their output."""

import codecs
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any

import pytest

PATIENCE_SECONDS = 30
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """The side of a terminal on which a person sits."""

    def __init__(self, side: int) -> None:
        self.side = side
        self.shown = ""
        # A read may end within a character.
        self.decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def type(self, text: str) -> None:
        os.write(self.side, text.encode())

    def read_until(self, seen: Callable[[str], object]) -> str:
        """Return all that was shown, once `seen` finds in it what is waited for, or nobody writes there any more."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not seen(self.shown):
            if not select.select([self.side], [], [], deadline - time.monotonic())[0]:
                raise AssertionError(f"in vain: {self.shown!r}")
            try:
                more = self.decode(os.read(self.side, 65536))
            except OSError:  # how Linux says that nobody writes there any more
                break
            self.shown = (self.shown + more).replace("\r\n", "\n")
        return self.shown


@contextmanager
def on_terminal(
    argv: Sequence[str], columns: int = 80, env: dict[str, str] | None = None, **streams: int
) -> Iterator[tuple[Terminal, subprocess.Popen[bytes]]]:
    """Lend a process whose streams are a terminal with so many columns, but for those that are given."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
    every: dict[str, Any] = {"stdin": theirs, "stdout": theirs, "stderr": theirs} | streams
    process = subprocess.Popen(
        argv, env=kept | {"TERM": "xterm-256color"} | (env or {}), start_new_session=True, **every
    )
    os.close(theirs)
    try:
        yield Terminal(ours), process
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def in_this_process(main: Callable[[list[str]], object], argv: list[str], columns: int = 80) -> str:
    """What a command line writes to a terminal that is this process's stdout meanwhile."""
    ours, theirs = pty.openpty()
    terminal = Terminal(ours)
    reader = threading.Thread(target=terminal.read_until, args=[lambda text: False])
    reader.start()
    try:
        with (
            pytest.MonkeyPatch.context() as patch,
            os.fdopen(theirs, "w", encoding="utf-8") as stdout,
            redirect_stdout(stdout),
            suppress(SystemExit),
        ):
            patch.setenv("COLUMNS", str(columns))  # else the size of the terminal of this process counts
            main(argv)
    finally:
        reader.join()
        os.close(ours)
    return terminal.shown


def shown_by(argv: Sequence[str], columns: int = 80, **env: str) -> str:
    """What a process shows on a terminal until it ends, which must be well."""
    with on_terminal(argv, columns, env) as (terminal, process):
        shown = terminal.read_until(lambda text: False)
        assert process.wait() == 0, shown
    return shown
