"""Database roles and their privileges: an owner that migrates, a writer for cron and science, a reader of the views."""

from typing import NamedTuple

from l2inv.database.connection import Connection, Row
from l2inv.errors import L2invError

VIEWS = ("op", "dataset", "published_op", "history", "runs")  # for readers
# Tables, and the columns of theirs, that the writer may insert. Other columns are set by the database; for events, the
# trigger sets them, whatever an INSERT contains.
ADDED = {
    "event": "",
    "dataset_version": "(dataset_id, version, op_id, content_hash, record, run_id, withdrawn)",
    "criteria": "(criteria_version, rules)",
    "run": "(stage, actor)",
    "received": "(dataset_id, raw_hash, op_id, content_hash, updated_at, given)",
    "quarantine": "(raw_hash, dataset_id, reason, raw, is_second)",
    "lock": "(name)",
}
# Columns that the writer may update: a run ends, a dataset is received in other bytes, a quarantined record is seen again
# or becomes readable, a lock gets another holder.
CHANGED = {
    "run": "(finished_at, result)",
    "received": "(raw_hash, op_id, content_hash, updated_at, given)",
    "quarantine": "(reason, last_seen, resolved_at, is_second)",
    "lock": "(key, pid, role)",
    "op_state": "(seq)",  # a trigger refuses updates; locking an OP's row needs the privilege on one column
}
LONGEST_NAME = 63  # bytes of a role's name


class Roles(NamedTuple):
    """The roles' names."""

    owner: str
    writer: str
    reader: str


def named(connection: Connection, owner: str | None, writer: str | None, reader: str | None) -> Roles:
    """Return the roles with these names. Default names contain schema and database, since roles belong to the whole
    server.

    Raise L2invError for a name that PostgreSQL would truncate.
    """
    row = connection.execute(
        """
        select nspname as schema, current_database() as database
        from pg_catalog.pg_namespace where oid = (select relnamespace from pg_catalog.pg_class where oid = 'l2inv.op'::regclass)
        """
    ).fetchone()
    assert row is not None
    usual = [f"{row['schema']}_{row['database']}_{name}" for name in Roles._fields]
    names = Roles(*(given or default for given, default in zip((owner, writer, reader), usual, strict=True)))
    for name in names:
        if len(name.encode()) > LONGEST_NAME:
            raise L2invError(
                f"roles: {name} is too long for the name of a role", "name it: --owner, --writer, --reader"
            )
    return names


def statements(connection: Connection, roles: Roles) -> list[str]:
    """Return the SQL that creates the roles and grants their privileges on the present schema; safe to run again.

    A statement that waits for a lock blocks everybody behind it, so it does not wait long, and a second run only needs
    the locks of new objects.
    """
    quoted = connection.execute(
        """
        select quote_ident(nspname) as schema, quote_ident(current_database()) as database,
               quote_ident(%s) as owner, quote_ident(%s) as writer, quote_ident(%s) as reader,
               array(select rolname::text from pg_catalog.pg_roles where rolname = any(%s)) as there,
               pg_catalog.pg_get_userbyid(nspowner) = %s as is_owned
        from pg_catalog.pg_namespace where oid = (select relnamespace from pg_catalog.pg_class where oid = 'l2inv.op'::regclass)
        """,
        [*roles, list(roles), roles.owner],
    ).fetchone()
    assert quoted is not None
    schema, owner, writer, reader = (quoted[name] for name in ("schema", *Roles._fields))
    made = [
        f"create role {name} nologin;"
        for role, name in zip(roles, (owner, writer, reader), strict=True)
        if role not in quoted["there"]
    ]
    objects = _objects(connection)
    owned = [] if quoted["is_owned"] else [f"alter schema {schema} owner to {owner};"]
    owned += [
        f"alter {row['what']} {row['name']} owner to {owner};"
        for row in objects
        if row["owner"] != roles.owner
    ]
    everybody = ["public", writer, reader]
    taken = [
        f"revoke all on all {what} in schema {schema} from {', '.join(everybody)};"
        for what in ("tables", "sequences", "functions")
    ]
    called = [row["name"] for row in objects if row["what"] == "function" and not row["is_trigger"]]
    given = [
        f"grant usage on schema {schema} to {writer}, {reader};",
        f"grant temporary on database {quoted['database']} to {writer};",  # scan's own bookkeeping
        f"grant select on all tables in schema {schema} to {writer};",
        f"grant select on all sequences in schema {schema} to {writer};",  # for pg_dump
        f"grant execute on function {', '.join(called)} to {writer};",
        *(f"grant insert {columns} on {schema}.{table} to {writer};" for table, columns in ADDED.items()),
        *(f"grant update {columns} on {schema}.{table} to {writer};" for table, columns in CHANGED.items()),
        f"grant select on {', '.join(f'{schema}.{view}' for view in VIEWS)} to {reader};",
    ]
    limit = ["set lock_timeout = '1s';"]
    return limit + made + owned + taken + [f"revoke all on schema {schema} from public;"] + given


def apply(connection: Connection, roles: Roles) -> list[str]:
    """Run the statements in one transaction and return them. Raise psycopg's errors."""
    with connection.transaction():
        done = statements(connection, roles)
        for statement in done:
            connection.execute(statement)
    return done


def _objects(connection: Connection) -> list[Row]:
    """Return every object of the schema that has an owner of its own."""
    return connection.execute(
        """
        select case c.relkind when 'v' then 'view' else 'table' end as what,
               format('%I.%I', n.nspname, c.relname) as name, pg_get_userbyid(c.relowner) as owner, false as is_trigger
        from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        where c.relkind in ('r', 'v', 'p')
            and n.oid = (select relnamespace from pg_catalog.pg_class where oid = 'l2inv.op'::regclass)
        union all
        select 'function', format('%I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)),
               pg_get_userbyid(p.proowner), p.prorettype = 'trigger'::regtype
        from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
        where n.oid = (select relnamespace from pg_catalog.pg_class where oid = 'l2inv.op'::regclass)
        order by 1, 2
        """
    ).fetchall()
