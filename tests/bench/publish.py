"""How many requests to the metadata store publish makes, which determine its time."""

from collections.abc import Iterator
from datetime import UTC, datetime

from click.testing import CliRunner

from l2inv.cli import main
from l2inv.sample import inventory
from l2inv.sample.server import Store, serving
from tests.bench.measure import Figure, Place, measurement


@measurement
def publish_requests(place: Place) -> Iterator[Figure]:
    store = Store(inventory.make(now=datetime.now(UTC)))
    with serving(store) as url:
        config = place.config(store_url=url)

        def l2inv(*argv: str) -> str:
            done = CliRunner().invoke(main, ["--config", str(config), "-q", *argv], catch_exceptions=False)
            assert done.exit_code == 0, f"{argv}: {done.output}"
            return done.stdout

        for stage in ("migrate", "scan", "qualify", "preprocess"):
            l2inv(stage)
        op_ids = l2inv("list", "--state", "preprocessed", "--format", "ids").split()
        for op_id in op_ids:
            l2inv("claim", op_id)
            said = ("--output", "globus://science/l2", "--software", "DeSIRe", "--software-version", "4.1")
            l2inv("mark-inverted", op_id, *said)
        before = len(store.requests)
        l2inv("publish")
    asked = len(store.requests) - before
    yield Figure("publish, of one inversion", asked / len(store.inversions), "requests", 3)
