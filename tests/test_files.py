"""Files that several processes want at once."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import pytest

from rlcore.storage.files import FolderLock, InUse, atomic_file, keep_aside, move_without_overwriting, set_aside

HOLD = (
    "import sys, time; from pathlib import Path; from rlcore.storage.files import FolderLock\n"
    "lock = FolderLock(Path(sys.argv[1])).acquire(); print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock, until its stdin is closed or it is killed."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / ".lock")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_and_told_who_holds_it(tmp_path, holder):
    with pytest.raises(InUse, match=rf"is in use by process {holder.pid} on host \S+"):
        FolderLock(tmp_path / ".lock").acquire()


@pytest.mark.parametrize("how", [signal.SIGKILL, None])
def test_the_lock_of_a_process_that_ended_is_free(tmp_path, holder, how):
    holder.send_signal(how) if how else holder.stdin.close()
    holder.wait()
    lock = FolderLock(tmp_path / ".lock").acquire()
    assert lock.held and f"process {os.getpid()} " in (tmp_path / ".lock").read_text()
    lock.release()
    assert os.listdir(tmp_path) == [] and not lock.held


def test_a_second_holder_in_the_same_process_is_refused(tmp_path):
    with FolderLock(tmp_path / ".lock").acquire():
        (tmp_path / ".lock").read_text()  # opening and closing the file does not lose the lock
        with pytest.raises(InUse, match=f"process {os.getpid()} "):
            FolderLock(tmp_path / ".lock").acquire()
    FolderLock(tmp_path / ".lock").acquire().release()


FORK = (
    "import os, sys, time; from pathlib import Path; from rlcore.storage.files import FolderLock\n"
    "lock = FolderLock(Path(sys.argv[1])).acquire()\n"
    "if os.fork() == 0:  # a worker, which lives on and may call what it inherited\n"
    "    lock.release(); time.sleep(30); os._exit(0)\n"
    "time.sleep(0.5); print('held', flush=True); sys.stdin.read()"
)


def test_a_forked_child_neither_keeps_nor_ends_the_lock(tmp_path):
    command = [sys.executable, "-c", FORK, str(tmp_path / ".lock")]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
    with subprocess.Popen(command, **pipes) as parent:
        try:
            assert parent.stdout.readline() == "held\n"
            with pytest.raises(InUse, match=f"process {parent.pid} "):
                FolderLock(tmp_path / ".lock").acquire()
            parent.kill()
            parent.wait()
            FolderLock(tmp_path / ".lock").acquire().release()
        finally:
            os.killpg(parent.pid, signal.SIGKILL)


def test_waiting_for_the_lock(tmp_path):
    lock, taken = FolderLock(tmp_path / ".lock").acquire(), []
    thread = threading.Thread(target=lambda: taken.append(FolderLock(tmp_path / ".lock").acquire(wait=True)))
    thread.start()
    time.sleep(0.2)
    assert not taken
    lock.release()
    thread.join(5)
    assert taken[0].held
    taken[0].release()


def test_a_lock_that_was_removed_while_it_was_opened_is_not_taken_for_one(tmp_path, monkeypatch):
    """Whoever opened the file just before its holder removed it would hold a lock that nobody sees."""
    first, opened = FolderLock(tmp_path / ".lock").acquire(), []
    real = fcntl.flock

    def late(descriptor, operation):
        if not opened:
            opened.append(descriptor)
            first.release()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with FolderLock(tmp_path / ".lock").acquire(), pytest.raises(InUse):
        FolderLock(tmp_path / ".lock").acquire()


def test_a_lock_whose_file_was_removed_by_hand_removes_no_other(tmp_path):
    first = FolderLock(tmp_path / ".lock").acquire()
    (tmp_path / ".lock").unlink()
    with FolderLock(tmp_path / ".lock").acquire():
        first.release()
        with pytest.raises(InUse):
            FolderLock(tmp_path / ".lock").acquire()


def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch):
    def none_here(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none_here)
    with pytest.warns(UserWarning, match=r"cannot be locked \(No locks available\)"):
        lock = FolderLock(tmp_path / ".lock").acquire()
    assert not lock.held
    lock.release()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["link", "hard link", "long", "pipe"])
def test_what_someone_put_in_the_place_of_the_lock_is_not_written_to(tmp_path, kind):
    precious = tmp_path / "precious"
    precious.write_text("x" * 2000 if kind == "long" else "x")
    before, lock = precious.read_text(), tmp_path / ".lock"
    {
        "link": lambda: lock.symlink_to(precious),
        "hard link": lambda: lock.hardlink_to(precious),
        "long": lambda: precious.rename(lock),
        "pipe": lambda: os.mkfifo(lock),
    }[kind]()
    with pytest.raises(OSError):
        FolderLock(lock).acquire()
    assert (lock if kind == "long" else precious).read_text() == before


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), atomic_file(path) as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["x"]
    with atomic_file(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("links", [True, False])
def test_moving_overwrites_nothing(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("a")
    b.write_text("b")
    with pytest.raises(FileExistsError):
        move_without_overwriting(a, b)
    assert (a.read_text(), b.read_text()) == ("a", "b")
    assert keep_aside(a, "damaged-1").name == "a.damaged-1" and a.read_text() == "a"
    assert keep_aside(a, "damaged-1").name == "a.damaged-2"
    assert set_aside(a, "damaged").name == "a.damaged" and not a.exists()
    assert set_aside(b, "damaged").name == "b.damaged"
    b.mkdir()
    assert set_aside(b, "damaged") == tmp_path / "b.damaged-2" and (tmp_path / "b.damaged-2").is_dir()
    assert (tmp_path / "b.damaged").read_text() == "b"


def test_no_warning_where_there_are_locks(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FolderLock(tmp_path / ".lock").acquire().release()
