"""Writes to people by mail or chat, through the notification library apprise.

It runs in a process of its own: one that hangs can be ended, and what the library logs, which may hold passwords, is
shown to nobody. Called as a program, this module is that process.
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

LIMIT_SECONDS = 30
INSTALL = "apprise is not installed; run: pip install 'l2inv[notify]'"


def send(addresses: Sequence[str], title: str, body: str, limit_seconds: float = LIMIT_SECONDS) -> list[str]:
    """Send plain text to each address (a URL of apprise's) and return why it could not, where it could not.

    The reasons name an address by its kind alone, since the rest may be a password. Never raises.
    """
    if importlib.util.find_spec("apprise") is None:
        return [INSTALL]
    letters = [json.dumps({"address": address, "title": title, "body": body}) for address in addresses]
    with ThreadPoolExecutor(8) as pool:
        problems = pool.map(lambda letter: _sent(letter, limit_seconds), letters)
        return [
            f"{address.partition('://')[0]}://*** {problem}"
            for address, problem in zip(addresses, problems, strict=True)
            if problem
        ]


def _sent(letter: str, limit_seconds: float) -> str | None:
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "l2inv.services.notify"],
            input=letter.encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=limit_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"took longer than {limit_seconds:g} s"
    except OSError as problem:
        return f"was not tried: {problem.strerror}"
    return None if done.returncode == 0 else "does not take it; to see why: apprise -vv -b test ADDRESS"


def _main() -> int:
    from apprise import Apprise, NotifyFormat

    letter = json.load(sys.stdin)
    people = Apprise()
    taken = people.add(letter["address"])
    return (
        0
        if taken and people.notify(body=letter["body"], title=letter["title"], body_format=NotifyFormat.TEXT)
        else 1
    )


if __name__ == "__main__":
    sys.exit(_main())
