"""A warning if the actor and the database role of the session belong to different people in the settings."""

import pytest

from l2inv.database.connection import Connection
from tests.helpers.commands import Commands


@pytest.fixture
def role(l2inv: Commands, connection: Connection) -> str:
    """Return the role of the sessions that l2inv opens here."""
    l2inv("scan")
    found = connection.execute("select session_user as role").fetchone()
    assert found is not None
    return str(found["role"])


def people(l2inv: Commands, **roles: str | None) -> None:
    l2inv.settings["notifications"] = {
        "people": [{"name": name, "addresses": [], "role": role} for name, role in roles.items()]
    }
    l2inv.save()


def test_a_command_that_writes_warns_once_where_the_role_is_another_persons(
    l2inv: Commands, role: str
) -> None:
    people(l2inv, ann=role, bob="bobs_role", carl=None)
    op = l2inv.json("list")["ops"][0]["op_id"]
    warned = l2inv("note", op, "seen", actor="carl").stderr
    assert warned == f"l2inv: notifications.people: role {role} is that of ann, and the actor is carl\n"
    assert l2inv("note", op, "seen", actor="ann").stderr == ""
    assert l2inv("status", actor="carl").stderr == ""


def test_a_command_that_writes_warns_where_the_actor_has_another_role(l2inv: Commands, role: str) -> None:
    people(l2inv, bob="bobs_role", carl=None)
    op = l2inv.json("list")["ops"][0]["op_id"]
    warned = l2inv("note", op, "seen", actor="bob").stderr
    assert (
        warned == f"l2inv: notifications.people: bob has role bobs_role, and this session has role {role}\n"
    )
    assert l2inv("note", op, "seen", actor="carl").stderr == ""
