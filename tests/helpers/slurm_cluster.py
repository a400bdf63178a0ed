"""A real Slurm of one node for the tests: munged, slurmctld and slurmd, started by hand and stopped at the end.

Nothing of the machine's own Slurm is read or written, and no systemd is needed. Debian: slurm-wlm and munge, and
for the accounting slurmdbd and mariadb-server.
"""

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from tests.helpers.waiting import until

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch")
ACCOUNTING = ("slurmdbd", "mariadbd", "mariadb-install-db")

_MEMORY = Path("/sys/fs/cgroup/memory")

_SLURM_CONF = """
ClusterName=l2inv
SlurmctldHost=localhost
SlurmUser=root
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin={task_plugin}
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=10
JobAcctGatherType=jobacct_gather/none
MessageTimeout=2
KillWait=2
ReturnToService=1
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 CPUs=32 RealMemory=1000
PartitionName=main Nodes={node} Default=YES PriorityTier=1
PartitionName=urgent Nodes={node} PriorityTier=2
"""

# The memory limits of a container that has the first kind of cgroups only.
_CGROUP_CONF = """
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
ConstrainRAMSpace=yes
"""

_SLURMDBD_CONF = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge
DbdHost=localhost
DbdPort={accounting_port}
SlurmUser=root
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=root
StorageLoc=slurm
"""


def missing(*programs: str) -> str:
    """Why no cluster can be started here; an empty text when one can."""
    if os.getuid() != 0:
        return "starting a Slurm takes root"
    absent = [program for program in programs if _found(program) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


def _found(program: str) -> str | None:
    """Where a program is, also among the daemons, to which an ordinary PATH does not lead."""
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin:/sbin")


def cannot_limit_memory() -> str:
    """Why no job can be held to its memory here; an empty text when it can."""
    return "" if os.access(_MEMORY, os.W_OK) else f"{_MEMORY} (cgroup v1) cannot be written to"


class Cluster:
    """A running Slurm; SLURM_CONF leads to it."""

    def __init__(self, folder: Path, node: str) -> None:
        self.folder = folder
        self.node = node
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *options: object) -> None:
        """Start a daemon in the foreground; its words are in NAME.log in the folder."""
        argv = [_found(name) or name, *map(str, options)]
        with (self.folder / f"{name}.log").open("ab") as log:
            self._daemons[name] = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def stop(self, name: str) -> None:
        """Stop a daemon, if it runs."""
        if name in self._daemons:
            daemon = self._daemons.pop(name)
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:  # slurmd waits for steps of jobs that were killed
                daemon.kill()
                daemon.wait(10)

    def start_controller(self, *options: str) -> None:
        """Start slurmctld and waits until the node takes jobs; -c forgets all jobs."""
        self.start("slurmctld", "-D", *options)
        ready = ("idle", "mixed", "allocated")
        until(lambda: self.asked("sinfo", "--noheader", "--format=%T") in ready, "the node takes jobs")

    def stop_controller(self) -> None:
        """Stop slurmctld."""
        self.stop("slurmctld")

    @contextmanager
    def frozen_controller(self) -> Iterator[None]:
        """Let slurmctld listen and say nothing."""
        self._daemons["slurmctld"].send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._daemons["slurmctld"].send_signal(signal.SIGCONT)

    def cancel_all(self) -> None:
        """End every job and waits until it has."""
        for user in ("root", "nobody"):
            self.tell("scancel", "--quiet", f"--user={user}")
        until(lambda: self.tell("squeue", "--noheader") == "", "all jobs have ended")

    def tell(self, *argv: str) -> str:
        """Run a command of Slurm's, which must succeed, and return what it printed."""
        return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout.strip()

    def show_words(self, failed: type[BaseException] | None, *_: object) -> None:
        """Print what the daemons said last, when something failed."""
        for log in sorted(self.folder.glob("*.log")) if failed else []:
            print(log.name, *log.read_text(errors="replace").splitlines()[-15:], sep="\n  ")

    def asked(self, *argv: str) -> str:
        """Run a command of Slurm's, which may fail, and return what it printed."""
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False).stdout.strip()


@contextmanager
def running(accounting: bool = False, memory_limits: bool = False) -> Iterator[Cluster]:
    """Start a cluster, with slurmdbd and a MariaDB when it is to keep accounts, and stops it at the end."""
    # Slurm takes no spaces in a path, and a socket's path must be short.
    folder = Path(tempfile.mkdtemp(prefix="l2inv-slurm-", dir="/tmp"))
    ports = _free_ports("controller_port", "node_port", "accounting_port", "database_port")
    cluster = Cluster(folder, f"l2inv{ports['node_port']}")  # the node's name is also its cgroup's
    with ExitStack() as at_the_end:
        at_the_end.callback(shutil.rmtree, folder, ignore_errors=True)
        at_the_end.push(cluster.show_words)
        folder.chmod(0o755)
        for name in ("state", "spool"):
            (folder / name).mkdir()
        values = {"folder": folder, "host": socket.gethostname().partition(".")[0], **ports}
        values["node"] = cluster.node
        values["task_plugin"] = "task/cgroup" if memory_limits else "task/none"
        if memory_limits:
            (folder / "cgroup.conf").write_text(_CGROUP_CONF)
            at_the_end.callback(_remove_cgroup, _MEMORY / f"slurm_{cluster.node}")
        accounts = f"AccountingStorageType=accounting_storage/{'slurmdbd' if accounting else 'none'}\n"
        accounts += f"AccountingStorageHost=localhost\nAccountingStoragePort={ports['accounting_port']}\n"
        accounts += f"AccountingStoragePass={folder}/munge\n"
        (folder / "slurm.conf").write_text(_SLURM_CONF.format(**values) + accounts)
        before = os.environ.get("SLURM_CONF")
        os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
        at_the_end.callback(_set_back, before)
        _start_munged(cluster, at_the_end)
        if accounting:
            _start_accounting(cluster, at_the_end, values)
        at_the_end.callback(cluster.stop, "slurmd")
        cluster.start("slurmd", "-D", "-N", cluster.node)
        at_the_end.callback(cluster.stop_controller)
        cluster.start_controller()
        at_the_end.callback(cluster.cancel_all)
        yield cluster


def _start_munged(cluster: Cluster, at_the_end: ExitStack) -> None:
    folder = cluster.folder
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    files = {"key-file": key, "socket": folder / "munge", "seed-file": folder / "munge.seed"}
    files |= {"pid-file": folder / "munged.pid", "log-file": folder / "munge.words"}
    at_the_end.callback(cluster.stop, "munged")
    cluster.start("munged", "--foreground", *[f"--{name}={path}" for name, path in files.items()])
    until((folder / "munge").exists, "munged listens")


def _start_accounting(cluster: Cluster, at_the_end: ExitStack, values: dict[str, object]) -> None:
    folder, data = cluster.folder, cluster.folder / "mariadb"
    data.mkdir()
    mysql = pwd.getpwnam("mysql")
    os.chown(data, mysql.pw_uid, mysql.pw_gid)
    where = ["--no-defaults", "--user=mysql", f"--datadir={data}"]
    cluster.tell("mariadb-install-db", *where, "--auth-root-authentication-method=normal", "--skip-test-db")
    network = [f"--port={values['database_port']}", "--bind-address=127.0.0.1"]
    network += [f"--socket={data}/socket", f"--pid-file={data}/pid"]
    at_the_end.callback(cluster.stop, "mariadbd")
    cluster.start("mariadbd", *where, *network)
    configuration = folder / "slurmdbd.conf"  # slurmdbd looks beside SLURM_CONF
    configuration.touch(mode=0o600)
    configuration.write_text(_SLURMDBD_CONF.format(**values))
    until((data / "socket").exists, "MariaDB listens", 60)
    at_the_end.callback(cluster.stop, "slurmdbd")
    cluster.start("slurmdbd", "-D")
    until(
        lambda: bool(cluster.asked("sacctmgr", "--noheader", "--parsable2", "list", "user")),
        "slurmdbd answers",
    )
    cluster.tell("sacctmgr", "--immediate", "add", "cluster", "l2inv")


def _free_ports(*names: str) -> dict[str, int]:
    with ExitStack() as open_ones:
        sockets = [open_ones.enter_context(closing(socket.socket())) for _ in names]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return {name: one.getsockname()[1] for name, one in zip(names, sockets, strict=True)}


def _remove_cgroup(folder: Path) -> None:
    for one in sorted(folder.rglob("*/"), reverse=True):
        one.rmdir()
    folder.rmdir()


def _set_back(before: str | None) -> None:
    os.environ.pop("SLURM_CONF", None)
    if before is not None:
        os.environ["SLURM_CONF"] = before
