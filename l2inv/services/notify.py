"""Sends notifications by mail or chat, with the library apprise.

It runs in a process of its own, which can be killed if it hangs, and whose logs, which may contain passwords, are
discarded. Run as a program, this module is that process.
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
    """Send plain text to each address (a URL of apprise's) and return a reason for each that failed.

    A reason contains only the URL's scheme, since the rest may be a password. Never raises.
    """
    if importlib.util.find_spec("apprise") is None:
        return [INSTALL]
    messages = [json.dumps({"address": address, "title": title, "body": body}) for address in addresses]
    with ThreadPoolExecutor(8) as pool:
        problems = pool.map(lambda message: _sent(message, limit_seconds), messages)
        return [
            f"{address.partition('://')[0]}://*** {problem}"
            for address, problem in zip(addresses, problems, strict=True)
            if problem
        ]


def _sent(message: str, limit_seconds: float) -> str | None:
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "l2inv.services.notify"],
            input=message.encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=limit_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"took longer than {limit_seconds:g} s"
    except OSError as problem:
        return f"could not be started: {problem.strerror}"
    return None if done.returncode == 0 else "did not accept it; to see why: apprise -vv -b test ADDRESS"


def _main() -> int:
    from apprise import Apprise, NotifyFormat

    message = json.load(sys.stdin)
    people = Apprise()
    taken = people.add(message["address"])
    return (
        0
        if taken
        and people.notify(body=message["body"], title=message["title"], body_format=NotifyFormat.TEXT)
        else 1
    )


if __name__ == "__main__":
    sys.exit(_main())
