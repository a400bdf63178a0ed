"""Prints what a claim's time goes to, its parts taken away one after the other: python -m tests.bench.parts.

On a private server whose data lie in a temporary folder; Linux alone tells a process's CPU time so.
"""

import shutil
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from l2inv.config.settings import Qualification
from l2inv.database import embedded
from l2inv.queries.filters import Wanted
from l2inv.stages.mark_working import claiming
from tests.bench import load
from tests.bench.measure import Place

TIMES = 300
PARTS = {
    "the constraints": "select format('alter table l2inv.event drop constraint %I', conname) as gone from pg_constraint"
    " where conrelid = 'l2inv.event'::regclass and contype = 'c'",
    "the partial indexes": "select format('drop index l2inv.%I', relname) as gone from pg_class where oid in"
    " (select indexrelid from pg_index where indrelid = 'l2inv.event'::regclass and indpred is not null)",
}


def claiming_ms(place: Place) -> float:
    """The server's CPU for each claim."""
    due_at = datetime.now(UTC) + timedelta(days=14)
    with place.connect(prepares=True) as connection:
        row = connection.execute("select pg_backend_pid() as pid").fetchone()
        assert row
        before = cpu_ms(row["pid"])
        for _ in range(TIMES):
            assert claiming.claim_first(connection, "age", Qualification(), Wanted(), "han", due_at)
        return (cpu_ms(row["pid"]) - before) / TIMES


def cpu_ms(pid: int) -> int:
    user, system = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return 10 * (int(user) + int(system))


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="l2inv-bench-"))
    try:
        url = embedded.start(folder / "server")
        place = Place(url, "parts", 0, folder)
        with place.connect() as connection:
            connection.execute("alter database l2inv set synchronous_commit = off")
            load.fill(connection, load.lives(url, folder), 10_000)
        claiming_ms(place)
        print(f"a claim                      {claiming_ms(place):.2f} ms of CPU")
        for name, statement in PARTS.items():
            with place.connect() as connection:
                for row in connection.execute(statement).fetchall():
                    connection.execute(row["gone"])
            print(f"without {name:20} {claiming_ms(place):.2f} ms")
    finally:
        embedded.stop(folder / "server")
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
