"""The event log: a nightly verification, and discoveries in bulk."""

import json
from collections.abc import Iterator

from l2inv.database import migrate
from l2inv.database.connection import Connection
from l2inv.record import anchor, event_log
from tests.bench import load
from tests.bench.measure import Figure, Place, l2inv, measurement, seconds

NIGHT = 1000  # OPs that have an event more than the anchor names
DISCOVERED = 100_000


@measurement(filled=True)
def verify_since_anchor(place: Place) -> Iterator[Figure]:
    """`verify --since-anchor` after a night; the anchor is written without the whole verification before."""
    file = place.folder / f"{place.schema}.heads"
    file.unlink(missing_ok=True)
    with place.connect() as connection:
        with (
            connection.transaction(),
            anchor.block(connection, anchor.load(connection, file, is_new=True)) as (block, _),
        ):
            anchor.append(file, block)
        rows = connection.execute("select op_id, seq from l2inv.op_state limit %s", [NIGHT]).fetchall()
        notes = [event_log.Event(row["op_id"], row["seq"], "noted", None, {"note": "a word"}) for row in rows]
        event_log.add(connection, notes, "han", None)
    done = l2inv(place.config(), "verify", "--anchor", str(file), "--since-anchor")
    yield Figure("verify --since-anchor", done.seconds, "s", 30)
    yield Figure("verify --since-anchor, memory", done.peak_mb, "MB")


@measurement
def discoveries(place: Place) -> Iterator[Figure]:
    """As many OPs discovered in one statement, beside COPY of the same rows into a table of the same columns and indexes."""
    lives = load.copies(load.lives(place.url, place.folder), 0, DISCOVERED)
    events = [
        event_log.Event(life.op_id, 0, "discovered", "discovered", json.loads(life.events[0][3]))
        for life in lives
    ]
    with place.connect() as connection:
        migrate.apply(connection, place.schema)
        ours = seconds(lambda: event_log.add(connection, events, "cron", 1))
        connection.execute("create table l2inv.plain (like l2inv.event including indexes)")
        floor = seconds(lambda: _copied(connection))
    yield Figure("100,000 OPs discovered at once", ours / floor, "x COPY")


def _copied(connection: Connection) -> None:
    with (
        connection.cursor() as cursor,
        cursor.copy("copy l2inv.plain from stdin") as plain,
        connection.again() as other,
        other.cursor() as source,
        source.copy(connection.cursor().renamed("copy l2inv.event to stdout")) as rows,  # type: ignore[attr-defined]
    ):
        for row in rows:
            plain.write(row)
