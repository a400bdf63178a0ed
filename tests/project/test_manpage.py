"""docs/l2inv.1: generated from the program, and accepted by man."""

import shutil
import subprocess

import pytest

from tests import manpage
from tests.helpers.commands import all_commands


def test_the_manual_page_agrees_with_the_program() -> None:
    assert manpage.DOCUMENT.read_text() == manpage.text(), f"stale; run: {manpage.COMMAND}"


def test_the_manual_page_names_every_command() -> None:
    page = manpage.text().replace(r"\-", "-")
    assert [path for path in all_commands() if rf"\fBl2inv {' '.join(path)}\fR" not in page] == []


def test_no_text_in_it_is_obeyed() -> None:
    assert manpage._roff(".so /etc/passwd\n'x \\fB") == r"\&.so /etc/passwd 'x \efB"


def test_man_takes_it() -> None:
    program = shutil.which("mandoc") or shutil.which("groff")
    if not program:
        pytest.skip("there is neither mandoc nor groff")
    checks = ["-T", "lint", "-W", "error"] if program.endswith("mandoc") else ["-man", "-ww", "-z"]
    done = subprocess.run([program, *checks, manpage.DOCUMENT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
