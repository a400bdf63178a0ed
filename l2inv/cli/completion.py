"""Shell completion: the ids of the OPs that a command could act on."""

import os
import re
from pathlib import Path

from l2inv.cli.context import App
from l2inv.domain.states import JUDGED, State

MOST = 50
GIVE_UP_SECONDS = 2.0
# Characters that no shell interprets or takes for the end of a word.
_PLAIN = re.compile(r"[A-Za-z0-9_.+/][A-Za-z0-9_.+/-]*")
# The states on which a command acts; those not listed act on any.
ACTS_ON: dict[str, tuple[State, ...]] = {
    "claim": ("preprocessed",),
    "mark-working": ("preprocessed",),
    "release": ("working",),
    "hand-over": ("working",),
    "take-over": ("working",),
    "mark-inverted": ("working",),
    "overrule": JUDGED,
    "unmark": ("inverted",),
    "amend": ("inverted",),
    "reopen": ("inverted", "published"),
    "adopt": ("inverted",),
    "retry": ("error",),
}
HOLDERS = ("release", "hand-over", "mark-inverted")  # commands for the OP's holder


def ops(app: App, command_name: str | None, beginning: str) -> list[str]:
    """Return the OPs with that beginning on which the command can act; none if the database does not answer in time.

    Errors are dropped and no server is started, because a person has pressed Tab and waits.
    """
    from threading import Timer

    # Ends the process: a lookup of a host name heeds neither a time limit nor a signal.
    watch = Timer(GIVE_UP_SECONDS, os._exit, [0])
    watch.daemon = True
    watch.start()
    try:
        return _ops(app, command_name or "", beginning)
    except (Exception, KeyboardInterrupt):
        return []
    finally:
        watch.cancel()


def _ops(app: App, command_name: str, beginning: str) -> list[str]:
    from l2inv.config import settings
    from l2inv.database import embedded
    from l2inv.database.connection import open_connection, server_folder
    from l2inv.record import event_log

    read = settings.load(Path(app.config) if app.config else None).settings
    url = read.database.read_url or read.database.url
    if url == "embedded" and embedded.address(server_folder(read)) is None:
        return []
    holder = app.actor if command_name in HOLDERS else None
    with open_connection(read, url) as connection:
        found = event_log.beginning_with(connection, beginning, ACTS_ON.get(command_name), holder, MOST)
    return [op_id for op_id in found if _PLAIN.fullmatch(op_id)]
