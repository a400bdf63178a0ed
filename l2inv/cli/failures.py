"""What cron prints of a failure: that it began, once a day while it lasts, and that it is over.

A failure is identified by its key (L2invError.key): a database that is down is one failure for every command. It is over
when a command that failed by it runs to its end. Failures are kept in a small file of the user's.
"""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypedDict

AGAIN = timedelta(hours=23.5)  # a day, less what the minutes of cron jobs differ by
FORGOTTEN = timedelta(days=8)  # longer than the longest time between two runs of a cron job


class Failure(TypedDict):
    """A lasting failure: its line, the commands that it stops, and when it was first, last and printed."""

    line: str
    since: str
    printed: str | None
    times: int
    commands: list[str]
    last: str


Failures = dict[str, Failure]  # by key


def file() -> Path:
    """Return the file of lasting failures."""
    from platformdirs import user_state_path

    return user_state_path("l2inv") / "failures.json"


def to_print(config: str, command: str, key: str, line: str, now: datetime) -> str | None:
    """Record that a command failed; return what to print, None if the failure was printed within a day.

    If the file cannot be written, return the line each time.
    """
    try:
        with _kept(config) as failures:
            _ended(failures, command, other=key)
            known = failures.setdefault(
                key,
                {
                    "line": line,
                    "since": now.isoformat(),
                    "printed": None,
                    "times": 0,
                    "commands": [],
                    "last": now.isoformat(),
                },
            )
            known["times"] += 1
            known["last"] = now.isoformat()
            known["commands"] = sorted({*known["commands"], command})
            if known["printed"] and now - datetime.fromisoformat(known["printed"]) < AGAIN:
                return None
            is_first, known["printed"] = known["printed"] is None, now.isoformat()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return line
    return line if is_first else f"{line} ({_how_long(known)})"


def over(config: str, command: str) -> list[str]:
    """Record that a command ran to its end; return a line for each failure that is over by that."""
    try:
        if not file().exists():
            return []
        with _kept(config) as failures:
            return [f"over: {known['line']} ({_how_long(known)})" for known in _ended(failures, command)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _ended(failures: Failures, command: str, other: str = "") -> list[Failure]:
    """Remove and return the failures of a command; if it now failed by `other`, only those that no other command has."""
    ended = []
    for key, known in list(failures.items()):
        if key == other or command not in known["commands"]:
            continue
        if other:
            known["commands"].remove(command)
        if not other or not known["commands"]:
            ended.append(failures.pop(key))
    return ended


def _how_long(known: Failure) -> str:
    times = "once" if known["times"] == 1 else f"{known['times']} times"
    since = datetime.fromisoformat(known["since"]).astimezone(UTC)
    return f"since {since:%Y-%m-%d %H:%M} UTC, {times}: {', '.join(known['commands'])}"


@contextmanager
def _kept(config: str) -> Iterator[Failures]:
    """Yield the failures under a settings file, locked; write them back if they changed."""
    from l2inv.files import replacing

    path = file()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with path.with_name("failures.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        whole: dict[str, Failures] = _read(path)
        mine = whole.setdefault(config, {})
        before = json.dumps(whole)
        yield mine
        if json.dumps(whole) != before:
            recent = (datetime.now(UTC) - FORGOTTEN).isoformat()
            left = {
                name: {s: k for s, k in some.items() if k["last"] > recent} for name, some in whole.items()
            }
            with replacing(path) as new:
                new.write(json.dumps({name: some for name, some in left.items() if some}).encode())


def _read(path: Path) -> dict[str, Failures]:
    """Return the file's content; empty if it cannot be read, so that every failure is printed again."""
    try:
        found = json.loads(path.read_text())
        entries = [known for some in found.values() for known in some.values()]
        is_whole = all(Failure.__required_keys__ <= set(known) for known in entries)
        return found if is_whole else {}
    except (FileNotFoundError, ValueError, AttributeError, TypeError):
        return {}
