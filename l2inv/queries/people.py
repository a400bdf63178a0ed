"""Known people: actors, holders, and those in the settings."""

from l2inv.config.settings import Settings
from l2inv.database.connection import Connection
from l2inv.errors import Refused


def known(connection: Connection, settings: Settings) -> list[str]:
    """Return the names of everyone who acted or held an OP, and of the people in the settings."""
    rows = connection.execute(
        """
        select actor as name from l2inv.history
        union select detail ->> 'assignee' from l2inv.history where detail ? 'assignee' and voided_by is null
        """
    )
    return sorted({row["name"] for row in rows} | {person.name for person in settings.notifications.people})


def must_be_among(names: list[str], name: str) -> None:
    """Raise Refused if the name is unknown, with the nearest known name."""
    if name not in names:
        raise Refused(_unknown(names, name), "for a new person add --force")


def unknown(connection: Connection, settings: Settings, name: str) -> str | None:
    """Return that the name is unknown, with the nearest known name; None if it is known."""
    names = known(connection, settings)
    return None if name in names else _unknown(names, name)


def _unknown(names: list[str], name: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, names, n=1, cutoff=0.5)
    return f"nobody named {name!r} is known" + (f", the nearest known name is {near[0]}" if near else "")
