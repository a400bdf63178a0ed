"""Who may do what in the database: an owner that migrates, a writer that cron and science use, a reader of the views."""

from typing import NamedTuple

from l2inv.database.connection import Connection

VIEWS = ("op", "dataset", "published_op")  # what others read
ADDED = ("event", "dataset_version", "criteria", "run", "quarantine")
# Rows of these may change: a run ends, a record that stands aside is seen again or readable at last.
CHANGED = {
    "run": ("finished_at", "result"),
    "quarantine": ("reason", "last_seen", "resolved_at"),
    "op_state": ("seq",),  # no write gets through; locking an OP's row takes the right to one column
}


class Roles(NamedTuple):
    """The roles' names."""

    owner: str = "l2inv_owner"
    writer: str = "l2inv_writer"
    reader: str = "l2inv_reader"


def statements(connection: Connection, roles: Roles) -> list[str]:
    """Return the SQL that makes the roles and give them their rights, for the schema as it is; safe to run again."""
    quoted = connection.execute(
        """
        select quote_ident(nspname) as schema, quote_ident(current_database()) as database, quote_ident(%s) as owner, quote_ident(%s) as writer, quote_ident(%s) as reader,
               array(select rolname::text from pg_catalog.pg_roles where rolname = any(%s)) as there
        from pg_catalog.pg_namespace where oid = (select relnamespace from pg_catalog.pg_class where oid = 'l2inv.op'::regclass)
        """,
        [*roles, list(roles)],
    ).fetchone()
    assert quoted is not None
    schema, owner, writer, reader = (quoted[name] for name in ("schema", *Roles._fields))
    made = [
        f"create role {name} nologin;"
        for role, name in zip(roles, (owner, writer, reader), strict=True)
        if role not in quoted["there"]
    ]
    owned = [f"alter schema {schema} owner to {owner};"]
    owned += [f"alter {row['what']} {row['name']} owner to {owner};" for row in _objects(connection)]
    everybody = ["public", writer, reader]
    taken = [
        f"revoke all on all {what} in schema {schema} from {', '.join(everybody)};"
        for what in ("tables", "sequences", "functions")
    ]
    tables = {table: f"{schema}.{table}" for table in (*ADDED, *CHANGED)}
    given = [
        f"grant usage on schema {schema} to {writer}, {reader};",
        f"grant temporary on database {quoted['database']} to {writer};",  # scan's own bookkeeping
        f"grant select on all tables in schema {schema} to {writer};",
        f"grant execute on all functions in schema {schema} to {writer};",
        f"grant insert on {', '.join(tables[table] for table in ADDED)} to {writer};",
        *(
            f"grant update ({', '.join(columns)}) on {tables[table]} to {writer};"
            for table, columns in CHANGED.items()
        ),
        f"grant select on {', '.join(f'{schema}.{view}' for view in VIEWS)} to {reader};",
    ]
    return made + owned + taken + [f"revoke all on schema {schema} from public;"] + given


def apply(connection: Connection, roles: Roles) -> list[str]:
    """Run the statements, all or none, and return them. Raise what PostgreSQL refuses."""
    with connection.transaction():
        done = statements(connection, roles)
        for statement in done:
            connection.execute(statement)
    return done


def _objects(connection: Connection) -> list[dict[str, str]]:
    """Everything of the schema that has an owner of its own."""
    return connection.execute(
        """
        select case c.relkind when 'v' then 'view' else 'table' end as what, format('%I.%I', n.nspname, c.relname) as name
        from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        where c.relkind in ('r', 'v', 'p')
            and n.oid = (select relnamespace from pg_catalog.pg_class where oid = 'l2inv.op'::regclass)
        union all
        select 'function', format('%I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid))
        from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
        where n.oid = (select relnamespace from pg_catalog.pg_class where oid = 'l2inv.op'::regclass)
        order by 1, 2
        """
    ).fetchall()
