"""l2inv in processes that start within milliseconds, forked from one that has imported it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.helpers.commands import Commands

# Starts l2inv by forking: a cold interpreter would spend most of its life on imports, where no kill does harm.
_WARM = """
import gc, importlib, json, os, pkgutil, sys, time
import l2inv, l2inv.cli
for module in pkgutil.walk_packages(l2inv.__path__, "l2inv."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
gc.freeze()  # what a collection touches is copied in each process
for line in sys.stdin:
    what = json.loads(line)
    if isinstance(what, int):
        latest = time.monotonic() + 60
        while (found := os.waitpid(what, os.WNOHANG))[0] == 0 and time.monotonic() < latest:
            time.sleep(0.001)
        print(os.waitstatus_to_exitcode(found[1]) if found[0] else "null", flush=True)
        continue
    pid = os.fork()
    if pid == 0:
        for number, path in enumerate((os.devnull, what[0] + ".out", what[0] + ".err")):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), number)
        l2inv.cli.main(what[1:])
    print(pid, flush=True)
"""


class Warm:
    """A process that starts l2inv as processes of their own, quickly."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _WARM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.said: dict[int, str] = {}  # where each process writes what it says
        self.number = 0

    def _ask(self, what: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, l2inv: Commands, *argv: str, actor: str = "han") -> int:
        """Start a command as one of its own processes, and return its number."""
        self.number += 1
        said = str(l2inv.config.with_name(f"said.{self.number}"))
        for stream in ("out", "err"):  # it may be killed before it opens them
            Path(f"{said}.{stream}").touch()
        pid: int = self._ask([said, "--config", str(l2inv.config), "--actor", actor, *argv])
        self.said[pid] = said
        return pid

    def ended(self, pid: int) -> tuple[int, str, str]:
        """Return exit code, stdout and stderr of a process once it ended."""
        code = self._ask(pid)
        assert code is not None, "it hangs"
        said = self.said.pop(pid)
        return code, Path(f"{said}.out").read_text(), Path(f"{said}.err").read_text()

    def killed(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        assert self.ended(pid)[0] == -signal.SIGKILL

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()
