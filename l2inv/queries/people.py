"""Who there is: who held or did something, and who the settings name."""

from l2inv.config.settings import Settings
from l2inv.database.connection import Connection
from l2inv.errors import Refused


def known(connection: Connection, settings: Settings) -> list[str]:
    """Return the names of those who acted or held an OP, and those of the settings."""
    rows = connection.execute(
        """
        select actor as name from l2inv.history
        union select detail ->> 'assignee' from l2inv.history where detail ? 'assignee' and voided_by is null
        """
    )
    return sorted({row["name"] for row in rows} | {person.name for person in settings.notifications.people})


def must_be_among(names: list[str], name: str) -> None:
    """Raise Refused, with the nearest name that is known, where nobody of that name is."""
    from difflib import get_close_matches

    if name in names:
        return
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    offered = f", the nearest known name is {near[0]}" if near else ""
    raise Refused(f"nobody is known as {name}{offered}", "for somebody new: --force")
