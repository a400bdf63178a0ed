"""The whole pipeline on sample data: a sample metadata store, a database of its own, the real stages."""

import fcntl
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event

import msgspec

from l2inv import wording
from l2inv.config.settings import Database, MetadataStore, Preprocess, Settings
from l2inv.database import embedded
from l2inv.database.access import connected
from l2inv.database.connection import Connection, open_connection, server_folder, translated
from l2inv.documents import Json
from l2inv.domain.op import OfferedOp
from l2inv.errors import Busy, DatabaseError, Refused
from l2inv.queries import observing_programs, publication
from l2inv.queries.filters import Wanted
from l2inv.record import event_log
from l2inv.sample import inventory
from l2inv.sample.server import Store, serving
from l2inv.stages import qualify
from l2inv.stages.mark_inverted import ready_event
from l2inv.stages.mark_working import claiming, offers
from l2inv.stages.preprocess import preprocess as preprocessing
from l2inv.stages.publish import publish
from l2inv.stages.scan import scan

HAN, CRON = "han", "cron"
FRAME_TIME = "2022_06_03T18_03_43_89"  # in the name of the one frame that is delivered
NOT_CONFIGURED = {  # the settings that would enable these steps of publish
    "transfer": "(publish.transfer.command: the files would be copied to their bucket)",
    "catalog": "(publish.catalog.url, a RabbitMQ: the catalogers would get a message about each file)",
    "available": "(with the catalog: the OP would be published only once the store serves every file)",
}
LOCK = "demo.lock"  # this file marks a folder as the demo's

# A substitute for the science team's command: it fails for the OP that the file `trouble` names.
COMMAND = """
import json, pathlib, sys
folder, trouble = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
op = json.loads((folder / "op.json").read_text(encoding="utf-8"))
if trouble.exists() and trouble.read_text(encoding="utf-8") == op["op_id"]:
    sys.exit("disk quota exceeded")
(folder / "input.txt").write_text("\\n".join(d["datasetId"] for d in op["datasets"]), encoding="utf-8")
"""


def run(
    say: Callable[[str], None], port: int = 0, folder: Path | None = None, now: datetime | None = None
) -> Json:
    """Run every stage once on a sample inventory, with a new database in the demo's folder, and print what each did.

    The database is kept, for the commands printed at the end. Raise Refused for a folder with other content, Busy while
    another demo runs in it, and L2invError.
    """
    if folder is None:
        folder = demo_folder()
    elif folder.exists() and not (folder / LOCK).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Refused(f"{folder} is not the demo's: it has other content", "name an empty or a new folder")
    folder = folder.absolute()
    own = 0o700 if os.geteuid() else 0o711  # root's server runs as another user, who needs access
    folder.mkdir(mode=own, parents=True, exist_ok=True)
    folder.chmod(own)
    now = now or datetime.now(UTC)
    store = Store(inventory.make(now=now))
    with _alone(folder), serving(store, port) as url:
        say(f"A sample metadata store runs at {url}; everything is kept in {folder}")
        trouble = folder / "trouble"
        command = [sys.executable, "-c", COMMAND, "{folder}", str(trouble)]
        settings = Settings(
            database=Database(embedded_folder=str(folder / "server")),
            metadata_store=MetadataStore(url=url),
            preprocess=Preprocess(command=command, work_dir=str(folder / "work"), parallel=1),
        )
        _empty(settings)
        with connected(settings) as connection:
            shown = _pipeline(connection, settings, trouble, now, say)
        config = _saved_settings(folder, settings, store)
    _print_what_next(say, config, shown.pop("short"))
    return shown | {"config": str(config)}


def run_store(port: int, say: Callable[[str], None]) -> None:
    """Serve only the sample metadata store, until Ctrl-C."""
    store = Store(inventory.make(now=datetime.now(UTC)))
    with suppress(KeyboardInterrupt), serving(store, port) as url:
        say(f"sample metadata store at {url} with {len(store.datasets)} datasets; Ctrl-C ends it")
        Event().wait()


def demo_folder() -> Path:
    """Return the demo's own folder, beside that of the embedded server."""
    return embedded.default_folder().parent / "demo"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            raise Busy(f"another demo runs in {folder}", "wait for it to end") from problem
        yield


def _saved_settings(folder: Path, settings: Settings, store: Store) -> Path:
    """Write settings for commands after the demo, with a saved response of the store, which is gone by then."""
    import yaml

    answer = folder / "inventory.json"
    answer.write_text(json.dumps({"data": {"datasetInventories": store.datasets}}), encoding="utf-8")
    plain = {
        "database": {"embedded_folder": settings.database.embedded_folder},
        "metadata_store": {"url": str(answer)},
        "preprocess": {"work_dir": settings.preprocess.work_dir},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(plain), encoding="utf-8")
    return path


def _empty(settings: Settings) -> None:
    """Empty the demo's database, after checking that the server is the demo's: it must read the demo's own file.

    Raise DatabaseError if it is another.
    """
    with translated(settings), open_connection(settings) as connection:
        row = connection.execute("select pg_read_file('postmaster.pid') as its_own").fetchone()
        folder = server_folder(settings)
        if row is None or row["its_own"] != embedded.pid_file(folder):
            raise DatabaseError(
                f"the demo reached another server than its own in {folder}, and changed nothing there",
                "run: l2inv demo --folder FOLDER",
            )
        connection.execute("drop schema if exists l2inv cascade")


def _pipeline(
    connection: Connection,
    settings: Settings,
    trouble: Path,
    now: datetime,
    say: Callable[[str], None],
) -> Json:
    def did(command: str, line: str, who: str = CRON) -> None:
        say(f"\n{who}$ l2inv {command}\n  {line}")

    def stage(found: object) -> Json:
        report: Json = msgspec.to_builtins(found)
        did(report["stage"], wording.summary(report))
        return report

    stages = [stage(scan.scan(connection, settings, CRON))]
    stages.append(stage(qualify.qualify(connection, settings, CRON, now)))
    invertible = list(
        observing_programs.list_ops(connection, Wanted(state="invertible"), settings.qualification)
    )
    unlucky = invertible[0]["op_id"]
    trouble.write_text(unlucky, encoding="utf-8")
    stages.append(stage(preprocessing.preprocess(connection, settings, CRON)))
    trouble.unlink()
    failed = event_log.newest(connection, unlucky, "failed") or {}
    event_log.retry(connection, [unlucky], CRON)
    did(f"retry {unlucky}", f"invertible again, after: {failed['cause']}")
    stages.append(stage(preprocessing.preprocess(connection, settings, CRON)))

    offered, _ = offers.offered(connection, settings.next.rank_by, 3, settings.qualification)
    decided = offers.decided(offered, settings.next.rank_by)
    lines = [_offer(op, why) for op, why in zip(offered, decided, strict=True)]
    did("next -n 3", "\n  ".join(lines), HAN)
    chosen = offered[0]["op_id"]
    short = event_log.tails(connection, [chosen])[chosen]
    claiming.claim(connection, chosen, HAN, now + timedelta(days=settings.deadlines.working_days))
    shown = observing_programs.show(connection, chosen, settings.qualification)
    claimed = f"claimed {chosen} for {HAN}, due {wording.due(shown['due_at'])}"
    did(f"claim {short}", "\n  ".join([claimed, *wording.names(shown["inversions"])]), HAN)
    ready = ready_event.Ready(
        op_id=chosen,
        software=ready_event.Software("DeSIRe", "4.1"),
        outputs=[
            ready_event.Output(f"globus://science/{one['folder']}/{name}")
            for one in shown["inversions"]
            for name in (one["frame_files"].replace("YYYY_MM_DDThh_mm_ss_ff", FRAME_TIME), one["asdf_file"])
        ],
        note="sample inversion",
    )
    ready_event.mark_inverted(connection, ready, HAN, datetime.now(UTC))
    options = "--software DeSIRe --software-version 4.1 --output …"
    did(f"mark-inverted {short} {options}", f"marked {chosen} inverted", HAN)
    stages.append(stage(publish.publish(connection, settings, CRON)))
    for step in publication.steps(connection, settings.publish, chosen):
        detail = step.detail if step.standing != "not configured" else NOT_CONFIGURED[step.step]
        say(f"  {step.inversion_id} {step.step}: {step.standing} {detail}".rstrip())

    states = observing_programs.status(connection)["states"]
    did("status", ", ".join(f"{count} {state}" for state, count in states.items() if count))
    return {"stages": stages, "states": states, "published": chosen, "short": short}


def _offer(op: OfferedOp, ranked_by: str) -> str:
    """Return in a line what next shows of an OP in a row."""
    shown = (
        f"r0 {wording.seeing(op)}",
        f"AO {wording.percent(op['ao_fraction'])}",
        f"{wording.number(op['minutes'])} min",
        f"mu {wording.number(op['mu'], 2)}",
        *op["odd"],
        f"ranked by {ranked_by}",
    )
    return f"{op['op_id']}  {', '.join(shown)}"


def _print_what_next(say: Callable[[str], None], config: Path, published: str) -> None:
    say("\nThe database stays. Try next:")
    say(f"  export L2INV_CONFIG={shlex.quote(str(config))}")
    say(f"  export L2INV_ACTOR={HAN}")
    program = "l2inv" if shutil.which("l2inv") else shlex.quote(sys.argv[0])
    for command, why in (
        ("next", "what is ready, a good one on top"),
        ("next --claim", "the first of them is yours"),
        ("mine", "what you hold, and until when"),
        (f"history {published}", "what happened to the OP that was published"),
        ("list --state not_invertible", "what cannot be inverted; why: l2inv explain OP"),
        ("server stop", "at the end"),
    ):
        say(f"  {program} {command:<27}  # {why}")
