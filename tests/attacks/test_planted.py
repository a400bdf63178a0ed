"""Links, pipes and files planted in folders that others may write to: not followed, not waited for."""

import fcntl
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from l2inv.files import appending, private_folder, reading
from l2inv.services import jobs
from tests.helpers.commands import Commands


@pytest.fixture(params=[0, 0o077], ids=["umask 000", "umask 077"])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_jobs_script_and_its_folder_are_for_their_user_alone(tmp_path: Path, umask: None) -> None:
    script = jobs.prepare(jobs.Job("l2inv-1", tmp_path, ["true"]))
    assert (mode(script), mode(script.parent)) == (0o700, 0o700)
    with jobs.start(jobs.Job("l2inv-2", tmp_path, ["true"])) as process:
        assert process.wait(10) in (0, -9)
    ended = jobs.ended(tmp_path, "l2inv-2")
    assert ended is not None
    assert ended.exit_code == 0


def test_a_folder_that_is_ones_own_is_closed_and_a_link_for_it_refused(tmp_path: Path, umask: None) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    private_folder(open_to_all)
    assert mode(open_to_all) == 0o700
    (tmp_path / "link").symlink_to("elsewhere")
    with pytest.raises(OSError):
        private_folder(tmp_path / "link")
    (tmp_path / "elsewhere").mkdir(mode=0o755)
    (tmp_path / "elsewhere").chmod(0o755)
    with pytest.raises(OSError):
        private_folder(tmp_path / "link")
    assert mode(tmp_path / "elsewhere") == 0o755


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's folder")
def test_another_users_folder_and_link_are_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 65534, 65534)
    with pytest.raises(PermissionError, match="another user's"):
        private_folder(tmp_path / "theirs")
    (tmp_path / "link").symlink_to("victim")
    os.lchown(tmp_path / "link", 65534, 65534)
    with pytest.raises(Exception, match="another user made"), appending(tmp_path / "link"):
        pass
    assert not (tmp_path / "victim").exists()
    (tmp_path / "heads").touch()
    os.chown(tmp_path / "heads", 65534, 65534)
    with pytest.raises(Exception, match="another user's file"), appending(tmp_path / "heads"):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's files")
def test_a_process_that_another_users_files_call_a_job_is_not_killed(tmp_path: Path) -> None:
    """A forged event may name any folder as that of a job."""
    own = jobs.prepare(jobs.Job("forged", tmp_path, ["true"])).parent
    with (
        (own / "forged.lock").open("wb") as lock,
        subprocess.Popen(["sleep", "60"], start_new_session=True) as victim,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        (own / "forged.pid").write_text(f"{victim.pid} {os.uname().nodename}\n")
        os.chown(own / "forged.lock", 65534, 65534)
        assert not jobs.kill(tmp_path, "forged", patience_seconds=0.05)
        assert victim.poll() is None
        os.chown(own / "forged.lock", 0, 0)
        assert not jobs.kill(tmp_path, "forged", patience_seconds=0.05)
        assert victim.wait(20) == -signal.SIGKILL


def test_nobody_waits_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Exception, match="not a regular file"), reading(tmp_path / "pipe"):
        pass
    with pytest.raises(Exception, match=r"not a regular file|No such device"), appending(tmp_path / "pipe"):
        pass


def test_a_link_planted_where_a_new_file_is_written_is_not_followed(
    l2inv: Commands, ready: list[str], tmp_path: Path, umask: None
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    for name in ("page.new", ".page.new", "heads.new", "b.new"):
        (tmp_path / name).symlink_to(victim)
    l2inv("report", str(tmp_path / "page"))
    l2inv("verify", "--anchor", str(tmp_path / "heads"), "--new-anchor")
    l2inv("backup", "--no-verify", str(tmp_path / "b"))
    assert {name: mode(tmp_path / name) for name in ("page", "heads", "b")} == dict.fromkeys(
        ("page", "heads", "b"), 0o600
    )
    assert victim.read_text() == "untouched"


def test_a_reason_is_not_written_through_a_link(
    l2inv: Commands, ready: list[str], tmp_path: Path, umask: None
) -> None:
    inbox = tmp_path / "inbox"
    (inbox / "rejected").mkdir(parents=True)
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (inbox / "wrong.yaml").write_text("op_id: no-such-op\n")
    (inbox / "rejected" / "wrong.yaml.reason.txt").symlink_to(victim)
    l2inv("inbox", str(inbox), expect=4)
    reason = inbox / "rejected" / "wrong.yaml.reason.txt"
    assert "no-such-op is unknown" in reason.read_text()
    assert not reason.is_symlink()
    assert mode(reason) == 0o644
    assert mode(inbox / "done") & 0o022 == 0
    assert victim.read_text() == "untouched"
