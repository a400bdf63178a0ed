"""The example crontab, run by a real cron for two minutes as an ordinary user, and the mail that it sends.

cron sees a machine of its own (a mount namespace): its spool, its pid file, and a sendmail that keeps each mail in a
file. Nothing of it touches the machine's own cron, mail or crontabs.
"""

import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email import message_from_string
from pathlib import Path
from typing import Any

import pytest

from l2inv.database import embedded
from l2inv.sample import inventory
from l2inv.sample.server import Fault, Store, serving
from tests.helpers.commands import Commands
from tests.helpers.listeners import Listener
from tests.helpers.waiting import until

CRONTAB = Path(__file__).parents[2] / "crontab.example"
CRON = Path("/usr/sbin/cron")
USER = "nobody"
OPERATORS = "operators@example.org"
WEEKLY = (
    "sleep 15; l2inv -q scan --decode-all"  # not at the same moment as the nightly scan, as in the example
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a cron daemon"),
    pytest.mark.skipif(not CRON.exists(), reason="there is no /usr/sbin/cron"),
]

# $1 is the test's folder; the folders named after it are closed to the user, and l2inv's Python lies below them.
MACHINE = """
here=$1; shift
for closed; do
    mount -t overlay -o "lowerdir=$closed,upperdir=$here/open,workdir=$here/work" l2inv-test "$closed"
done
mount --bind "$here/sbin" /usr/sbin
mount --bind "$here/spool" /var/spool/cron/crontabs
mount --bind "$here/none" /etc/cron.d
mount --bind /dev/null /etc/crontab
mount -t tmpfs none /run
echo made
crontab -u nobody "$here/crontab"
exec /usr/sbin/cron -f
"""

SENDMAIL = """#!/bin/sh
file=$(mktemp {folder}/mail/.XXXXXX)
cat > "$file"
mv "$file" "$file.eml"
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the user owns, its path open to the user."""
    folder = Path(tempfile.mkdtemp(prefix="l2inv-cron-"))
    user = pwd.getpwnam(USER)
    for name in (
        "mail",
        "sbin",
        "spool",
        "none",
        "open",
        "work",
        "inbox",
        "www",
        "anchor",
        "server",
        "ops",
        "backup",
    ):
        (folder / name).mkdir()
    (folder / "open").chmod(0o711)
    for path in (
        folder,
        *(folder / name for name in ("mail", "inbox", "www", "server", "ops", "backup", "anchor")),
    ):
        os.chown(path, user.pw_uid, user.pw_gid)
    yield folder
    embedded.stop(folder / "server")
    shutil.rmtree(folder)


def closed_folders() -> list[str]:
    """What keeps the user from the Python that runs the tests."""
    parents = {p for prefix in (sys.prefix, sys.base_prefix) for p in Path(prefix).resolve().parents}
    return [str(p) for p in sorted(parents) if not p.stat().st_mode & 0o001]


def crontab_for(folder: Path) -> str:
    """The example with what it says to change changed, and every line run every minute."""
    text = CRONTAB.read_text()
    for name in ("inbox", "www", "backup", "anchor"):
        text = text.replace(f"/srv/l2inv/{name}", str(folder / name))
    for name, value in {
        "MAILTO": OPERATORS,
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "L2INV_CONFIG": str(folder / "config.yaml"),
    }.items():
        text, changed = re.subn(rf"^{name}=.*$", f"{name}={value}", text, flags=re.MULTILINE)
        assert changed == 1
    text = re.sub(r"^[\d*]\S*(?: +\S+){4} +", "* * * * * ", text, flags=re.MULTILINE)
    text = text.replace("l2inv -q scan --decode-all", WEEKLY)
    return f"HOME={folder}\n{text}"


def mails(folder: Path) -> dict[str, set[tuple[str, ...]]]:
    """What was mailed, the lines of each mail by the command that it is about."""
    found: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for path in (folder / "mail").glob("*.eml"):
        mail = message_from_string(path.read_text())
        assert mail["To"] == OPERATORS
        body = mail.get_payload()
        assert isinstance(body, str)
        found[mail["Subject"].split("> ", 1)[1]].add(tuple(body.splitlines()))
    return found


def run_cron(folder: Path, done: Any) -> None:
    """Run cron until `done`, and then until what it started has ended."""
    (folder / "crontab").write_text(crontab_for(folder))
    (folder / "sbin/sendmail").write_text(SENDMAIL.format(folder=folder))
    (folder / "sbin/sendmail").chmod(0o755)
    shutil.copy(CRON, folder / "sbin/cron")
    argv = ["unshare", "--mount", "sh", "-euc", MACHINE, "sh", str(folder), *closed_folders()]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as cron:
        assert cron.stdout is not None
        assert cron.stderr is not None
        if cron.stdout.readline() != "made\n":
            pytest.skip(f"no mount namespace to be had: {cron.stderr.read().strip()}")
        try:
            until(lambda: cron.poll() is not None or done(), seconds=200)
            assert cron.poll() is None, cron.stderr.read()
            until(
                lambda: not Path(f"/proc/{cron.pid}/task/{cron.pid}/children").read_text().strip(), seconds=50
            )
        finally:
            with suppress(ProcessLookupError):
                cron.terminate()


def test_the_example_crontab_does_the_work_and_mails_only_what_somebody_must_look_at(
    folder: Path, listener: Listener, ready: list[str]
) -> None:
    whole = inventory.make(now=datetime.now(UTC))
    late = ready[:2]
    store = Store([d for d in whole if d.get("observingProgramExecutionId") not in late])
    with serving(store) as store_url:
        everybody = [
            {"name": name, "addresses": [f"json://{listener.where}/{name}"]}
            for name in ("operator", "science", "han")
        ]
        l2inv = Commands(
            folder / "config.yaml",
            {
                "database": {"url": "embedded", "embedded_folder": str(folder / "server")},
                "metadata_store": {"url": store_url, "retries": 1},
                "preprocess": {"work_dir": str(folder / "ops")},
                "deadlines": {"error_days": 0.000001},
                "notifications": {"people": everybody},
            },
        )
        for stage in ("scan", "qualify", "preprocess"):
            l2inv(stage)
        good, bad = (op["op_id"] for op in l2inv.json("next", "-n", "2")["ops"])
        for op in (good, bad):
            l2inv("claim", op)
            l2inv("mark-inverted", op)
        (folder / "inbox/wrong.yaml").write_text("op_id: no-such-op\n")
        l2inv("verify", "--anchor", str(folder / "anchor/heads"), "--new-anchor")
        user = pwd.getpwnam(USER)
        os.chown(folder / "anchor/heads", user.pw_uid, user.pw_gid)
        before = l2inv.json("status")
        store.datasets = whole
        refusal = Fault(body=b'{"errors": [{"message": "no"}], "data": null}')
        store.fault = lambda operation, nth: refusal if operation == "Create" and nth == 2 else None

        def runs(stage: str) -> list[dict[str, Any]]:
            return [
                run for run in l2inv.json("status")["runs"] if run["stage"] == stage and run["finished_at"]
            ]

        started = datetime.now(UTC)
        second_minute = (started + timedelta(minutes=2)).replace(second=0, microsecond=0).isoformat()

        def both_minutes_done() -> bool:
            stages = ("scan", "qualify", "preprocess", "publish", "digest")
            return all(any(run["started_at"] >= second_minute for run in runs(stage)) for stage in stages)

        run_cron(folder, both_minutes_done)
        after = l2inv.json("status")

    assert {run["actor"] for run in after["runs"]} == {"cron"}
    assert after["ops"] == before["ops"] + len(late)
    assert after["states"]["preprocessed"] == before["states"]["preprocessed"] + len(late)
    assert (after["states"]["published"], after["states"]["error"]) == (1, 1)

    assert (folder / "anchor/heads").read_text().count('{"anchor"') > 1

    assert f"<b>{after['ops']}</b> found" in (folder / "www/index.html").read_text()
    told = mails(folder)
    nightly, publish, overdue = "l2inv -q scan && l2inv -q qualify", "l2inv -q publish", "l2inv -q overdue"
    inbox = f"l2inv -q inbox {folder / 'inbox'}"
    assert set(told) == {nightly, WEEKLY, publish, overdue, inbox}
    assert told[inbox] == {("l2inv: inbox: wrong.yaml rejected: OP no-such-op is unknown; see: l2inv list",)}
    for scan in (nightly, WEEKLY):
        (lines,) = told[scan]
        assert len(lines) == 1
        assert "are quarantined; see: l2inv quarantine" in lines[0]
    (lines,) = told[publish]
    assert lines == (
        "l2inv: publish: 1 OP failed; see: l2inv list --state error, l2inv history OP, l2inv retry OP",
    )
    for lines in told[overdue]:
        assert lines[0] == "operator:"
        assert re.match("  eid_.*  error  due ", lines[1])
        assert len(lines) == 2
    assert {path for _, path, _ in listener.heard} == {"/operator", "/science"}
