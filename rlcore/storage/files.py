"""Files and folders that several processes may want at once: written whole or not at all, and locked while in use."""

import contextlib
import errno
import os
import secrets
import shutil
import socket
import stat
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Self

from filelock import FileLock, Timeout

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)  # file systems without them
LARGEST_LOCK_FILE = 1000  # bytes
SECONDS_BETWEEN_TRIES, TRIES_TO_READ = 0.05, 20
SECONDS_TO_TRY = 0.2  # more than once, since a holder that is just leaving removes its file


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write `data` beside `path`, flush it to the disk, and rename it into place."""
    with atomic_file(path) as file:
        file.write(data)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of `path` when all is written; where that fails, nothing has changed."""
    # With a random part: process numbers are not unique where containers share a folder.
    if not path.name:
        raise IsADirectoryError(errno.EISDIR, "it has no name")
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
    if hasattr(os, "O_DIRECTORY"):  # so that the rename survives a power cut, where the platform can
        folder = os.open(path.parent, os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def move_without_overwriting(source: Path, target: Path) -> None:
    """Give a file another name in the same folder, or a FileExistsError where something has it already."""
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
    count = int(number or 1)
    while True:
        target = path.with_name(f"{path.name}.{suffix}")
        try:
            action(path, target)
            return target
        except FileExistsError:
            count += 1
            suffix = f"{word}-{count}"


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


class FolderLock(contextlib.AbstractContextManager):
    """An exclusive lock, held until it is released or its process ends, however that ends.

    Processes that this one forks do not hold it. Its own file, whose folder must exist, says who does.
    """

    def __init__(self, file: Path):
        self.file = Path(file)
        self._own: os.stat_result | None = None  # which file it is, whatever its name
        self._lock = FileLock(self.file, thread_local=False, fallback_to_soft=False, on_acquired=self._tell_holder)

    @property
    def held(self) -> bool:
        """Whether it is held; False also where the file system has no locks, of which a warning tells."""
        return self._lock.is_locked

    def acquire(self, wait: bool = False) -> Self:
        """Take the lock. Where it is held, `wait` for it or raise InUse; an OSError where its file cannot be made."""
        os.stat(self.file.parent)  # which the library would make
        _refuse_foreign(self.file)
        try:
            self._lock.acquire(timeout=-1 if wait else SECONDS_TO_TRY)
        except Timeout:
            if not os.path.lexists(self.file):  # the library goes on trying where no file can be
                os.close(os.open(self.file, os.O_CREAT | os.O_WRONLY))
            raise InUse(f"is in use by {self._holder()}") from None
        except (OSError, NotImplementedError) as error:
            if getattr(error, "errno", errno.ENOSYS) not in NO_LOCKS:
                raise
            self._warn(error)
        return self

    def _tell_holder(self, descriptor: int) -> None:
        self._own = os.fstat(descriptor)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on host {socket.gethostname()}\n".encode())

    def _warn(self, error: Exception) -> None:
        with contextlib.suppress(OSError):
            self.file.unlink()
        warnings.warn(
            f"{self.file.parent} cannot be locked ({getattr(error, 'strerror', None) or error}), so nothing keeps a "
            "second process from writing there at the same time",
            stacklevel=3,
        )

    def _holder(self) -> str:
        with contextlib.suppress(OSError):
            for _ in range(TRIES_TO_READ):
                text = self.file.read_bytes()[:LARGEST_LOCK_FILE].decode(errors="replace")
                if text:
                    return "".join(filter(str.isprintable, text)) or "another process"
                time.sleep(SECONDS_BETWEEN_TRIES)  # whoever has just taken it has not written yet
        return "another process"

    def release(self) -> None:
        """Give the lock up, where it is held; its file goes with it."""
        if self.held:
            with contextlib.suppress(OSError):  # Windows removes no open file; it is left there
                if os.path.samestat(self._own, self.file.stat()):
                    self.file.unlink()
            self._lock.release()

    def __exit__(self, *exc: object) -> None:
        self.release()


def _refuse_foreign(path: Path) -> None:
    """What others put there under the lock's name, such as a link to another file, is not to be written to."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_LOCK_FILE or status.st_nlink > 1:
        raise OSError(errno.EEXIST, f"{path} is no lock file of rlcore", str(path))


def cache_folder() -> Path:
    """Where built programs are kept: RLCORE_CACHE, or rlcore in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("RLCORE_CACHE") or Path(base) / "rlcore")
