"""Files and folders that several processes may want at once: written whole or not at all, and locked while in use."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
import shutil
import socket
import stat
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

HELD_BY_ANOTHER = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
LARGEST_LOCK_FILE = 1000  # bytes
WINDOWS_OFFSET = 2**30  # locked bytes cannot be read there, and who holds the lock is to be read
SECONDS_BETWEEN_TRIES, TRIES_TO_READ = 0.05, 20


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write `data` beside `path`, flush it to the disk, and rename it into place."""
    with atomic_file(path) as file:
        file.write(data)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of `path` when all is written; where that fails, nothing has changed."""
    # With a random part: process numbers are not unique where containers share a folder.
    temporary = path.with_name(f".{path.name[:48]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the platform can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move_without_overwriting(source: Path, target: Path) -> None:
    """Give a file another name in the same folder.

    Raises:
        FileExistsError: where something has that name already; it is left as it is.
    """
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):  # a folder, or a file system without hard links: not at one stroke then
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        os.rename(source, target)
    else:
        os.unlink(source)


def set_aside(path: Path, suffix: str) -> Path:
    """Rename what cannot be used to `<name>.<suffix>`, or the next number where that is taken; returns the new path."""
    return _first_free(path, suffix, move_without_overwriting)


def keep_aside(path: Path, suffix: str) -> Path:
    """As `set_aside`, but `path` stays: what has been set aside is the same file under another name, or a copy."""
    return _first_free(path, suffix, _link_or_copy)


def _first_free(path: Path, suffix: str, action: Callable[[Path, Path], None]) -> Path:
    word, _, number = suffix.partition("-")
    for count in itertools.count(int(number or 1) + 1):
        target = path.with_name(f"{path.name}.{suffix}")
        try:
            action(path, target)
            return target
        except FileExistsError:
            suffix = f"{word}-{count}"
    raise AssertionError  # never: the numbers do not end


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):  # no hard links here
        with open(source, "rb") as original, open(target, "xb") as copy:
            shutil.copyfileobj(original, copy)


class InUse(Exception):
    """Another process, or another part of this one, holds a lock; the text says who, as in "is in use by ..."."""


class FolderLock:
    """An exclusive lock, held until it is released or its process ends, however that ends.

    Processes that this one forks do not hold it, and it says in its file who does. The file is gone when the lock is.

    Args:
        file: the lock's own file; its folder must exist.

    Attributes:
        held: whether it is held; False also where the file system has no locks, of which a warning tells.
    """

    def __init__(self, file: Path):
        self.file, self.held = Path(file), False
        self._descriptor: int | None = None

    def acquire(self, wait: bool = False) -> FolderLock:
        """Take the lock; `wait` until whoever has it is done.

        Raises:
            InUse: where it is held and not to be waited for.
            OSError: where its file cannot be made.
        """
        while not self._try():
            if not wait:
                raise InUse(f"is in use by {self._holder()}")
            time.sleep(SECONDS_BETWEEN_TRIES)
        return self

    def _try(self) -> bool:
        descriptor = _open_lock_file(self.file)
        try:
            _lock(descriptor)
        except OSError as error:
            os.close(descriptor)
            if error.errno in HELD_BY_ANOTHER:
                return False
            self._warn(error)
            return True
        if not _is_at(descriptor, self.file):  # its last holder removed it after we opened it
            os.close(descriptor)
            return self._try()
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on host {socket.gethostname()}\n".encode())
        self._descriptor, self.held = descriptor, True
        _HELD.add(self)
        return True

    def _warn(self, error: OSError) -> None:
        with contextlib.suppress(OSError):
            self.file.unlink()
        warnings.warn(
            f"{self.file.parent} cannot be locked ({error.strerror or error}), so nothing keeps a second process from "
            "writing there at the same time",
            stacklevel=4,
        )

    def _holder(self) -> str:
        text = ""
        with contextlib.suppress(OSError):
            for _ in range(TRIES_TO_READ):
                text = self.file.read_bytes()[:LARGEST_LOCK_FILE].decode(errors="replace")
                if text:
                    break
                time.sleep(SECONDS_BETWEEN_TRIES)  # whoever has just taken it has not written yet
        return "".join(filter(str.isprintable, text)) or "another process"

    def release(self) -> None:
        """Give the lock up, where it is held."""
        descriptor, self._descriptor, self.held = self._descriptor, None, False
        if descriptor is None:
            return
        with contextlib.suppress(OSError):  # Windows removes no open file; it is left there
            if _is_at(descriptor, self.file):
                self.file.unlink()
        os.close(descriptor)

    def _forget(self) -> None:
        """In a child: close what was inherited, so that the lock is the parent's alone."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor, self.held = None, False

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # at the very end of a process little is left to call
            self.release()


_HELD: weakref.WeakSet[FolderLock] = weakref.WeakSet()


def _forget_in_child() -> None:
    for lock in list(_HELD):
        lock._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


def _open_lock_file(path: Path) -> int:
    """Open or make it; what others put there under its name, such as a link to another file, is not written to."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(path, flags, 0o666)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_LOCK_FILE or status.st_nlink > 1:
        os.close(descriptor)
        raise OSError(errno.EEXIST, f"{path} is no lock file of rlcore", str(path))
    return descriptor


def _lock(descriptor: int) -> None:
    # No record lock: that would be lost as soon as anything in this process opened and closed the file.
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    os.lseek(descriptor, WINDOWS_OFFSET, os.SEEK_SET)
    msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    os.lseek(descriptor, 0, os.SEEK_SET)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one that has this name now."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
