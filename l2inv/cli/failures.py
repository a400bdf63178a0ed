"""What cron prints of a failure: that it began, each day that it lasts, and that it is over.

A failure is identified by its message without the numbers in it: a database that is down is one failure for every command.
It is over when a command that it kept from its work runs to its end. Kept in a small file of the user's own.
"""

import fcntl
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

AGAIN = timedelta(hours=23.5)  # a day, but for what cron's minutes differ by
FORGOTTEN = timedelta(days=8)  # what has not come again in more than the longest time between two runs

Failures = dict[str, dict[str, Any]]


def file() -> Path:
    """Return the file that keeps the failures that last."""
    from platformdirs import user_state_path

    return user_state_path("l2inv") / "failures.json"


def told(config: str, command: str, line: str, now: datetime) -> str | None:
    """Note that a command failed; return what is to be printed of it, None where that was printed within a day.

    Where the file cannot be kept, that is the whole line each time.
    """
    sign = re.sub(r"\d+", "#", line)
    try:
        with _kept(config) as failures:
            _ended(failures, command, but=sign)
            known = failures.setdefault(
                sign, {"line": line, "since": now.isoformat(), "told": None, "times": 0, "commands": []}
            )
            known["times"] += 1
            known["last"] = now.isoformat()
            known["commands"] = sorted({*known["commands"], command})
            if known["told"] and now - datetime.fromisoformat(known["told"]) < AGAIN:
                return None
            is_first, known["told"] = known["told"] is None, now.isoformat()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return line
    return line if is_first else f"{line} ({_how_long(known)})"


def over(config: str, command: str) -> list[str]:
    """Note that a command did its work; return a line for each failure that is over by that."""
    try:
        if not file().exists():
            return []
        with _kept(config) as failures:
            return [f"over: {known['line']} ({_how_long(known)})" for known in _ended(failures, command)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _ended(failures: Failures, command: str, but: str = "") -> list[dict[str, Any]]:
    """Take the failures out that kept a command from its work; where it failed by another one, only from what these hit."""
    ended = []
    for sign, known in list(failures.items()):
        if sign == but or command not in known["commands"]:
            continue
        if but:
            known["commands"].remove(command)
        if not but or not known["commands"]:
            ended.append(failures.pop(sign))
    return ended


def _how_long(known: dict[str, Any]) -> str:
    times = "once" if known["times"] == 1 else f"{known['times']} times"
    since = datetime.fromisoformat(known["since"]).astimezone(UTC)
    return f"since {since:%Y-%m-%d %H:%M} UTC, {times}: {', '.join(known['commands'])}"


@contextmanager
def _kept(config: str) -> Iterator[Failures]:
    """Lend the failures under a settings file, alone, and keep what becomes of them."""
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
    """What the file keeps; one that cannot be read keeps nothing: all is printed anew."""
    try:
        found = json.loads(path.read_text())
        entries = [known for some in found.values() for known in some.values()]
        is_whole = all(
            {"line", "since", "told", "times", "commands", "last"} <= set(known) for known in entries
        )
        return found if is_whole else {}
    except (FileNotFoundError, ValueError, AttributeError, TypeError):
        return {}
