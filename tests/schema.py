"""Makes docs/schema.sql, the schema as it is after all migrations, and what `verify schema` compares with:
python -m tests.schema.

Tables, with their indexes and triggers, are read from a migrated database. Functions and views stand in the words of
the migration that made them last, since each version of PostgreSQL prints them in words of its own.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from l2inv.config.settings import Database, Settings
from l2inv.database import embedded, migrate, roles
from l2inv.database.connection import Connection, open_connection
from l2inv.database.schema import migrations_folder
from l2inv.record import structure

DOCUMENT = Path(__file__).parent.parent / "docs" / "schema.sql"
COMMAND = "python -m tests.schema"
HEAD = f"""\
-- The schema of l2inv's database after all migrations, to be read. What makes it are the files of migrations/.
-- Written by `{COMMAND}`; a test fails when it is stale.

set check_function_bodies = off;  -- functions name tables that come after them
"""
# A function ends behind its body's quotes, a view with the first semicolon that ends a line.
FUNCTION = re.compile(
    r"^((?:--.*\n)*)create (?:or replace )?(function l2inv\.(\w+)\((?:.|\n)*?\$\$;)$", re.MULTILINE
)
VIEW = re.compile(r"^((?:--.*\n)*)create (?:or replace )?(view l2inv\.(\w+) (?:.|\n)*?;)$", re.MULTILINE)
TABLE = re.compile(r"^create table l2inv\.(\w+) \(\n((?:.|\n)*?)^\)", re.MULTILINE)
COMMENT = re.compile(r"^    (\w+) .*?-- +(.+)$", re.MULTILINE)


def text(connection: Connection) -> str:
    """Return what docs/schema.sql is to hold. The connection is to a migrated database."""
    migrations = "\n".join(path.read_text() for path in sorted(migrations_folder().glob("*.sql")))
    parts = [HEAD, "-- Functions\n", *_functions(connection, migrations), "-- Tables\n"]
    for name, body in TABLE.findall(migrations):
        parts += _table(connection, name, dict(COMMENT.findall(body)))
    return "\n".join([*parts, "-- Views\n", *_views(connection, migrations)])


def expected(connection: Connection) -> str:
    """Return what l2inv/record/structure.json is to hold. The connection is to a migrated database."""
    with connection.transaction(force_rollback=True):
        names = roles.Roles("schema_owner", "schema_writer", "schema_reader")
        roles.apply(connection, names)
        rights = structure.privileges(connection)
        both = {"writer": rights[names.writer], "reader": rights[names.reader]}
        document = {
            "called": _called(connection),
            "objects": structure.found(connection),
            "privileges": both,
        }
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def _called(connection: Connection) -> list[str]:
    """Return the names of PostgreSQL's functions that the schema and verify call, except the one that is in SQL itself."""
    sources = [*migrations_folder().glob("*.sql"), *Path(structure.__file__).parent.glob("*.py")]
    called = {name for path in sources for name in re.findall(r"(\w+)\(", path.read_text())} - {"round"}
    rows = _rows(
        connection,
        "select distinct proname::text as name from pg_proc where pronamespace = 'pg_catalog'::regnamespace",
    )
    return sorted(called & {row["name"] for row in rows})


def _functions(connection: Connection, migrations: str) -> Iterator[str]:
    rows = _rows(
        connection,
        """
        select p.proname as name, p.oid::regprocedure::text as signature, acl.grantee is not null as public
        from pg_proc p left join aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) acl on acl.grantee = 0
        where p.pronamespace = 'l2inv'::regnamespace
        """,
    )
    there = {row["name"]: row for row in rows}
    for name, source in _last(FUNCTION, migrations).items():
        if name in there:
            yield source
            if not there[name]["public"]:
                yield f"revoke all on function {there[name]['signature']} from public;\n"


def _views(connection: Connection, migrations: str) -> Iterator[str]:
    rows = _rows(connection, "select viewname as name from pg_views where schemaname = 'l2inv'")
    there = {row["name"] for row in rows}
    yield from (source for name, source in _last(VIEW, migrations).items() if name in there)


def _last(statement: re.Pattern[str], migrations: str) -> dict[str, str]:
    """Each object's last definition by its name, in the order of the first ones."""
    return {name: f"{comment}create {source}\n" for comment, source, name in statement.findall(migrations)}


def _table(connection: Connection, name: str, comments: dict[str, str]) -> Iterator[str]:
    table = f"l2inv.{name}"
    columns = _rows(
        connection,
        """
        select attname as name, format_type(atttypid, atttypmod) as type, attnotnull as is_required,
               case when attcollation <> typcollation then collname end as collation,
               attidentity = 'a' as is_identity, pg_get_expr(adbin, adrelid) as default
        from pg_attribute a join pg_type t on t.oid = atttypid left join pg_collation c on c.oid = attcollation
        left join pg_attrdef on adrelid = attrelid and adnum = attnum
        where attrelid = to_regclass(%s) and attnum > 0 and not attisdropped order by attnum
        """,
        table,
    )
    if not columns:
        return
    width = max(len(column["name"]) for column in columns)
    lines = [(_column(column, width), comments.get(column["name"])) for column in columns]
    constraints = _rows(
        connection,
        """
        select conname as name, pg_get_constraintdef(oid) as definition from pg_constraint
        where conrelid = to_regclass(%s) and contype in ('p', 'u', 'f', 'c')
        order by array_position(array['p', 'u', 'f', 'c'], contype::text), conname
        """,
        table,
    )
    lines += [(f"constraint {row['name']} {_plain(row['definition'])}", None) for row in constraints]
    yield f"create table {table} ("
    for number, (line, comment) in enumerate(lines, 1):
        yield f"    {line}{',' * (number < len(lines))}{f'  -- {comment}' if comment else ''}"
    yield f"){_options(connection, table)};"
    rest = _rows(
        connection,
        """
        select format('comment on table %%s is %%L', table_name, obj_description(table_name, 'pg_class')) as line
        from to_regclass(%s) table_name where obj_description(table_name, 'pg_class') is not null
        union all
        (select pg_get_indexdef(indexrelid) from pg_index
         where indrelid = to_regclass(%s) and not exists (select from pg_constraint where conindid = indexrelid)
         order by indexrelid::regclass::text)
        union all
        (select line from pg_trigger,
                lateral (values (1, pg_get_triggerdef(oid)),
                                (2, format('alter table %%s enable always trigger %%I', tgrelid::regclass, tgname)))
                        as said (place, line)
         where tgrelid = to_regclass(%s) and not tgisinternal and (place = 1 or tgenabled = 'A')
         order by tgname, place)
        """,
        table, table, table,
    )  # fmt: skip
    yield from (f"{_plain(row['line'])};" for row in rest)
    yield ""


def _column(column: dict[str, Any], width: int) -> str:
    parts = [column["name"].ljust(width), column["type"].replace("timestamp with time zone", "timestamptz")]
    if column["collation"]:
        parts.append(f'collate "{column["collation"]}"')
    if column["is_identity"]:
        parts.append("generated always as identity")
    elif column["is_required"]:
        parts.append("not null")
    if column["default"]:
        parts.append(f"default {_plain(column['default'])}")
    return " ".join(parts)


def _plain(definition: str) -> str:
    """PostgreSQL's words with keywords in lower case, as elsewhere, and no cast that goes without saying."""
    return re.sub(
        r"('(?:[^']|'')*')(?:::text|::jsonb)?|[A-Z]+", lambda found: found[1] or found[0].lower(), definition
    )


def _options(connection: Connection, table: str) -> str:
    (row,) = _rows(connection, "select reloptions from pg_class where oid = to_regclass(%s)", table)
    return f" with ({', '.join(sorted(row['reloptions']))})" if row["reloptions"] else ""


def _rows(connection: Connection, query: str, *values: str) -> list[dict[str, Any]]:
    return connection.execute(query, values or None).fetchall()


@contextmanager
def migrated() -> Iterator[Connection]:
    """Connect to a new, migrated database of its own server."""
    folder = Path(tempfile.mkdtemp(prefix="l2inv-documents-"))
    try:
        settings = Settings(database=Database(url=embedded.start(folder)))
        with open_connection(settings) as connection:
            migrate.apply(connection, settings.database.schema)
            yield connection
    finally:
        embedded.stop(folder)
        shutil.rmtree(folder)


@click.command()
def main() -> None:
    """Write docs/schema.sql and l2inv/record/structure.json anew."""
    with migrated() as connection:
        DOCUMENT.write_text(text(connection))
        structure.SHIPPED.write_text(expected(connection))
    click.echo(f"wrote {DOCUMENT} and {structure.SHIPPED}")


if __name__ == "__main__":
    main()
