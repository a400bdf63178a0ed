"""The schema's structure, read from PostgreSQL's catalogs and compared with what this version's migrations create.

The expected structure is in structure.json, the same for every major version of PostgreSQL: NOT NULL constraints, which
are in pg_constraint since 18, are compared as columns. Views are not in it, since each version stores their queries
differently: each view is created again under a temporary name, from the text of the migrations, and the server's two
copies are compared. No function of the schema is called.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

from l2inv.database.connection import Connection, Row, in_schema
from l2inv.database.schema import migrations_folder
from l2inv.record.chains import Findings

SHIPPED = Path(__file__).with_name("structure.json")

# The objects of the schema: name and relevant attributes. yoyo's own tables differ between versions of yoyo and are left
# out; their triggers and privileges are compared anyway.
_QUERIES = {
    "relation": """
        select c.relname as name, c.relkind::text, c.relpersistence::text, c.relrowsecurity, c.relforcerowsecurity,
               c.relispartition, c.reloptions
        from pg_class c where c.relnamespace = %(schema)s and c.relkind <> 'i' and (c.relname !~ '^_?yoyo' or c.relkind <> 'r')
    """,
    "column": """
        select c.relname || '.' || a.attname as name, format_type(a.atttypid, a.atttypmod) as type, a.attnotnull,
               pg_get_expr(d.adbin, d.adrelid) as default, a.attidentity::text, a.attgenerated::text,
               case when a.attcollation <> t.typcollation then a.attcollation::regcollation::text end as collation
        from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
        join pg_type t on t.oid = a.atttypid
        left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
        where c.relnamespace = %(schema)s and c.relkind in ('r', 'p') and c.relname !~ '^_?yoyo'
    """,
    "sequence": """
        select c.relname as name, s.seqtypid::regtype::text as type, s.seqstart, s.seqincrement, s.seqmax, s.seqmin,
               s.seqcache, s.seqcycle,
               (select o.relname || '.' || d.refobjsubid from pg_depend d join pg_class o on o.oid = d.refobjid
                where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype in ('a', 'i')
                    and d.refclassid = 'pg_class'::regclass) as owned_by
        from pg_sequence s join pg_class c on c.oid = s.seqrelid where c.relnamespace = %(schema)s
    """,
    "constraint": """
        select coalesce(r.relname, '') || '.' || c.conname as name, pg_get_constraintdef(c.oid) as definition,
               c.convalidated, c.condeferrable, c.condeferred, c.connoinherit,
               coalesce(to_jsonb(c) ->> 'conenforced', 'true') as enforced
        from pg_constraint c left join pg_class r on r.oid = c.conrelid
        where c.connamespace = %(schema)s and c.contype <> 'n' and coalesce(r.relname, '') !~ '^_?yoyo'
    """,
    "index": """
        select c.relname as name, pg_get_indexdef(i.indexrelid) as definition, i.indisvalid, i.indisready, i.indislive,
               i.indisunique, i.indimmediate
        from pg_index i join pg_class c on c.oid = i.indexrelid
        where c.relnamespace = %(schema)s and c.relname !~ '^_?yoyo'
    """,
    "trigger": """
        select r.relname || '.' || t.tgname as name, pg_get_triggerdef(t.oid) as definition, t.tgenabled::text,
               n.nspname as function_schema, p.proname as function, t.tgisinternal
        from pg_trigger t join pg_class r on r.oid = t.tgrelid join pg_proc p on p.oid = t.tgfoid
        join pg_namespace n on n.oid = p.pronamespace where r.relnamespace = %(schema)s
    """,
    "rule": """
        select r.relname || '.' || w.rulename as name, pg_get_ruledef(w.oid) as definition, w.ev_enabled::text
        from pg_rewrite w join pg_class r on r.oid = w.ev_class
        where r.relnamespace = %(schema)s and not (r.relkind = 'v' and w.rulename = '_RETURN' and w.ev_enabled = 'O')
    """,
    "policy": """
        select r.relname || '.' || p.polname as name, p.polpermissive, p.polcmd::text,
               pg_get_expr(p.polqual, p.polrelid) as using
        from pg_policy p join pg_class r on r.oid = p.polrelid where r.relnamespace = %(schema)s
    """,
    "inheritance": """
        select format('%%s of %%s', i.inhrelid::regclass, i.inhparent::regclass) as name
        from pg_inherits i where exists (
            select from pg_class c where c.oid in (i.inhrelid, i.inhparent) and c.relnamespace = %(schema)s
                and c.relkind <> 'i')
    """,
    "function": """
        select p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')' as name, p.prosrc as body,
               l.lanname as language, p.prokind::text, p.provolatile::text, p.proparallel::text, p.prosecdef,
               p.proleakproof, p.proisstrict, p.proretset, format_type(p.prorettype, null) as returns, p.proconfig,
               pg_get_function_arguments(p.oid) as arguments, p.probin, to_jsonb(p) ->> 'prosqlbody' as sql_body,
               p.prosupport::oid::text as support
        from pg_proc p join pg_language l on l.oid = p.prolang where p.pronamespace = %(schema)s
    """,
    "type": """
        select t.typname as name, t.typtype::text from pg_type t left join pg_class c on c.oid = t.typrelid
        where t.typnamespace = %(schema)s and coalesce(c.relkind not in ('r', 'v', 'p', 'S'), true) and t.typelem = 0
    """,
    "operator": "select oprname as name from pg_operator where oprnamespace = %(schema)s",
    "statistics": "select stxname as name from pg_statistic_ext where stxnamespace = %(schema)s",
    "default privileges": """
        select coalesce(defaclrole::regrole::text, '') || ' ' || defaclobjtype::text as name, defaclacl::text
        from pg_default_acl where defaclnamespace = %(schema)s
    """,
    "event trigger": """
        select e.evtname as name, e.evtevent, e.evtfoid::regproc::text as function from pg_event_trigger e
        where e.evtenabled <> 'D'
    """,
    # A cast between PostgreSQL's own types changes what statements mean, whatever their search path.
    "cast": """
        select format('%%s as %%s', castsource::regtype, casttarget::regtype) as name from pg_cast
        where oid >= 16384 and castsource < 16384 and casttarget < 16384
    """,
    # The functions that the schema and verify call by name must be PostgreSQL's own.
    "function of PostgreSQL's": """
        select p.oid::regprocedure::text as name, l.lanname as language
        from pg_proc p join pg_language l on l.oid = p.prolang
        where p.pronamespace = 'pg_catalog'::regnamespace and p.proname = any(%(called)s)
            and (l.lanname <> 'internal' or p.oid >= 16384)
    """,
}
# Owners and privileges.
_OWNERS = """
    select 'schema' as name, nspowner::regrole::text as owner from pg_namespace where oid = %(schema)s
    union all
    select c.relname, c.relowner::regrole::text from pg_class c where c.relnamespace = %(schema)s and c.relkind <> 'i'
    union all
    select p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')', p.proowner::regrole::text
    from pg_proc p where p.pronamespace = %(schema)s
    order by 1
"""
_PRIVILEGES = """
    select case a.grantee when 0 then 'public' else a.grantee::regrole::text end as role,
           o.name, a.privilege_type as privilege, a.is_grantable
    from (
        select 'schema' as name, nspowner as owner, coalesce(nspacl, acldefault('n', nspowner)) as acl
        from pg_namespace where oid = %(schema)s
        union all
        select c.relname, c.relowner, c.relacl from pg_class c where c.relnamespace = %(schema)s
        union all
        select c.relname || '.' || t.attname, c.relowner, t.attacl
        from pg_class c join pg_attribute t on t.attrelid = c.oid where c.relnamespace = %(schema)s
        union all
        select p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')', p.proowner,
               coalesce(p.proacl, acldefault('f', p.proowner))
        from pg_proc p where p.pronamespace = %(schema)s
    ) o, aclexplode(o.acl) a
    where a.grantee <> o.owner
    order by 1, 2, 3
"""


def check(connection: Connection, findings: Findings) -> dict[str, Row]:
    """Compare the schema with what the migrations create, and add a finding for each difference. Return what was found.

    Creates views under temporary names, in a transaction that is rolled back.
    """
    should = json.loads(SHIPPED.read_text())
    with connection.transaction(force_rollback=True):
        structure = found(connection)
        for difference in _differences(should["objects"], structure):
            findings.add("schema", {}, difference)
        for role, difference in _unexpected(connection, should["privileges"]):
            findings.add("schema", {}, f"{role} {difference}")
        # An event trigger could interfere with what is created here.
        if not any(name.startswith("event trigger ") for name in structure):
            for difference in _views(connection):
                findings.add("schema", {}, difference)
    return structure


def found(connection: Connection) -> dict[str, Row]:
    """Return the attributes of each object of the schema, by its kind and name, as if the schema were named l2inv."""
    connection.execute("set local search_path = pg_catalog")
    values = _values(connection)
    return {
        f"{kind} {facts['name']}": {key: value for key, value in facts.items() if key != "name"}
        for kind, query in _QUERIES.items()
        for row in connection.execute(query, values).fetchall()
        for facts in [_named_l2inv(row, schema_of(connection))]
    }


def privileges(connection: Connection) -> dict[str, list[str]]:
    """Return the privileges of each role except the owner, by its name, each as `PRIVILEGE on OBJECT`."""
    connection.execute("set local search_path = pg_catalog")
    found: dict[str, list[str]] = {}
    for row in connection.execute(_PRIVILEGES, _values(connection)).fetchall():
        option = " with grant option" if row["is_grantable"] else ""
        name = _named_l2inv(row, schema_of(connection))["name"]
        found.setdefault(row["role"], []).append(f"{row['privilege'].lower()}{option} on {name}")
    return {role: sorted(rights) for role, rights in found.items()}


def digest_of(structure: dict[str, Row]) -> str:
    """Return the SHA-256 of a structure that was found, as hexadecimal digits."""
    import hashlib

    return hashlib.sha256(json.dumps(structure, sort_keys=True).encode()).hexdigest()


def schema_of(connection: Connection) -> str:
    """Return the name of the schema that `l2inv.` refers to on the connection."""
    return str(getattr(connection.cursor_factory, "schema", "l2inv"))


def _values(connection: Connection) -> dict[str, Any]:
    row = connection.execute(
        "select oid from pg_catalog.pg_namespace where nspname = %s", [schema_of(connection)]
    ).fetchone()
    assert row is not None
    return {"schema": row["oid"], "called": json.loads(SHIPPED.read_text())["called"]}


def _named_l2inv(row: Row, schema: str) -> Row:
    if schema == "l2inv":
        return row
    pattern = re.compile(rf'(?<![\w"])(?:"{re.escape(schema)}"|{re.escape(schema)})(?=\.|$)')

    def renamed(value: Any) -> Any:
        if isinstance(value, list):
            return [renamed(one) for one in value]
        return pattern.sub("l2inv", value) if isinstance(value, str) else value

    return {key: renamed(value) for key, value in row.items()}


def _differences(should: dict[str, Row], structure: dict[str, Row]) -> Iterator[str]:
    for name in sorted(should.keys() | structure.keys()):
        if name not in structure:
            yield f"{name} is missing"
        elif name not in should:
            yield f"{name} is not part of l2inv"
        else:
            parts = sorted(p for p in structure[name] if structure[name][p] != should[name].get(p))
            if parts:
                words = f"{', '.join(parts)} {'differs' if len(parts) == 1 else 'differ'}"
                yield f"{name} is not what the migrations create: {words}"


def _unexpected(connection: Connection, expected: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    """Yield role and problem for each privilege that `l2inv roles` does not grant, and each object with another owner.

    One role may have the writer's privileges, and one the reader's: of several, the one with that name.
    """
    owners = connection.execute(_OWNERS, _values(connection)).fetchall()
    owner = next(row["owner"] for row in owners if row["name"] == "schema")
    for row in owners:
        if row["owner"] != owner:
            yield row["owner"], f"owns {row['name']}, the schema's owner is {owner}"
    left = privileges(connection)
    allowed: dict[str, set[str]] = {}
    for kind in ("writer", "reader"):
        full = set(expected[kind])
        have_all = [role for role, rights in left.items() if full.issubset(rights) and role not in allowed]
        have_all.sort(key=lambda role: (not role.strip('"').endswith(f"_{kind}"), len(left[role])))
        allowed |= dict.fromkeys(have_all[:1], full)
    for role, rights in left.items():
        for right in rights:
            if right not in allowed.get(role, ()):
                yield role, f"has the privilege {right}, which l2inv roles does not grant"


_VIEW = re.compile(r"^create (?:or replace )?view l2inv\.(\w+)( as\n(?:.|\n)*?;)$", re.MULTILINE)
# Positions in the statement's text, in what the server stores of a view.
_PLACES = re.compile(r" :(?:\w*location|stmt_len|list_start|list_end) -?\d+")


def _views(connection: Connection) -> Iterator[str]:
    schema = schema_of(connection)
    source = "\n".join(path.read_text() for path in sorted(migrations_folder().glob("*.sql")))
    for name, query in dict(_VIEW.findall(source)).items():  # as in the last migration that creates it
        kept = _kept_view(connection, f'"{schema}"."{name}"')
        if kept is None:
            continue  # reported as missing already
        try:
            if not _is_made(connection, name, in_schema(query, schema), kept):
                yield f"view {name} is not what the migrations create"
        except psycopg.errors.InsufficientPrivilege:
            raise
        except psycopg.ProgrammingError as problem:
            yield f"view {name} cannot be created as in the migrations: {' '.join(str(problem).split())}"


def _is_made(connection: Connection, name: str, query: str, kept: str) -> bool:
    """Return whether the server stores the same of a view created by the migrations, or by pg_restore from pg_dump's output."""
    with connection.transaction(force_rollback=True):
        connection.execute(f'create temporary view "{name}"{query}')
        if _kept_view(connection, f'pg_temp."{name}"') == kept:
            return True
        row = connection.execute(
            "select pg_get_viewdef(pg_catalog.to_regclass(%s)) as query", [f'pg_temp."{name}"']
        ).fetchone()
        assert row is not None
        connection.execute(f'drop view pg_temp."{name}"')
        connection.execute(f'create temporary view "{name}" as {row["query"]}')
        return _kept_view(connection, f'pg_temp."{name}"') == kept


def _kept_view(connection: Connection, view: str) -> str | None:
    row = connection.execute(
        """
        select w.ev_class::bigint as oid, w.ev_action::text as action,
               array(select attname::text from pg_catalog.pg_attribute
                     where attrelid = w.ev_class and attnum > 0 order by attnum) as columns
        from pg_catalog.pg_rewrite w
        where w.ev_class = pg_catalog.to_regclass(%s) and w.rulename = '_RETURN'
        """,
        [view],
    ).fetchone()
    if row is None:
        return None
    action = _PLACES.sub("", row["action"]).replace(f":relid {row['oid']} ", ":relid self ")
    return f"{row['columns']} {action}"  # a column that was renamed has its old name in the action
