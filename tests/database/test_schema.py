"""docs/schema.sql: the schema after all migrations."""

from typing import Any

from l2inv.database.connection import Connection
from l2inv.record import structure
from tests import schema


def test_the_document_is_what_the_migrations_make(connection: Connection) -> None:
    assert schema.DOCUMENT.read_text() == schema.text(connection), f"stale; run: {schema.COMMAND}"


def test_verify_compares_with_what_the_migrations_create(connection: Connection) -> None:
    assert structure.SHIPPED.read_text() == schema.expected(connection), f"stale; run: {schema.COMMAND}"


def functions_and_views(connection: Connection) -> list[Any]:
    return connection.execute(
        """
        select oid::regprocedure::text as name, pg_get_functiondef(oid) as definition,
               exists (select from aclexplode(coalesce(proacl, acldefault('f', proowner))) where grantee = 0) as public
        from pg_proc where pronamespace = 'l2inv'::regnamespace
        union all
        select viewname, definition, null from pg_views where schemaname = 'l2inv' order by 1
        """
    ).fetchall()


def test_the_document_run_unchanged_creates_the_same_schema(connection: Connection) -> None:
    before, text = functions_and_views(connection), schema.DOCUMENT.read_text()
    assert before
    connection.execute("drop schema l2inv cascade; create schema l2inv")
    connection.execute(text.encode())
    assert functions_and_views(connection) == before
    assert schema.text(connection) == text
