"""What each command costs with many OPs, for the tables of docs/scale.md."""

from collections.abc import Iterator

from tests.bench.measure import Figure, Place, l2inv, measurement


@measurement(filled=True)
def commands(place: Place) -> Iterator[Figure]:
    """Each command as a process of its own: its time and its peak memory."""
    config = place.config()
    with place.connect() as connection:
        row = connection.execute("select op_id from l2inv.op_state order by op_id limit 1").fetchone()
    assert row
    copy = place.folder / f"{place.schema}.dump"
    for argv in (
        ["next"],
        ["show", row["op_id"]],
        ["history", row["op_id"]],
        ["status"],
        ["list", "--json"],
        ["export"],
        ["qualify"],
        ["verify"],
        ["backup", "--no-verify", str(copy)],
    ):
        copy.unlink(missing_ok=True)
        done = l2inv(config, *argv)
        name = " ".join(word for word in argv if not word.startswith("/") and word != row["op_id"])
        yield Figure(name, done.seconds, "s")
        yield Figure(f"{name}, memory", done.peak_mb, "MB")
    copy.unlink()


@measurement(filled=True)
def disk(place: Place) -> Iterator[Figure]:
    with place.connect() as connection:
        rows = connection.execute(
            "select c.relname, pg_total_relation_size(c.oid) as bytes, greatest(c.reltuples, 1) as rows from pg_class c "
            "where c.oid in ('l2inv.event'::regclass, 'l2inv.dataset_version'::regclass, 'l2inv.op_state'::regclass)"
        ).fetchall()
    for row in rows:
        yield Figure(f"disk of {row['relname']}", row["bytes"] / 1e9, "GB")
        yield Figure(f"disk of one {row['relname']}", row["bytes"] / row["rows"], "bytes")
