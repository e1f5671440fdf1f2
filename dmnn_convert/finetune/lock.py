"""One run per folder: a lock that is released when its process ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from ..errors import ArgumentError, CheckpointError

try:
    import fcntl
except ImportError:  # Windows has none: there, only a folder that is gone is noticed
    fcntl = None  # type: ignore[assignment]


LOCK = "run.lock"


_UNABLE = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
"""Errors of file systems without locks, where only a deleted folder is noticed."""


_open: set[int] = set()


def _leave_to_parent() -> None:
    """Close what a forked process inherits, or it would hold a run's lock after the run."""
    for descriptor in _open:
        os.close(descriptor)
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


class Lock:
    """A folder that this process alone writes a run to, until `release`.

    The system drops the lock with its process, so no stale lock stays behind.

    Raises:
        ArgumentError: if another run writes there.
        CheckpointError: if no file can be made there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / LOCK
        self._descriptor = -1
        self.take()

    def take(self) -> None:
        """Lock the folder again if it was replaced since then; raises as the class does."""
        while not self.holds():  # a run that just ended may remove the file in between
            self._close()
            self._descriptor = self._opened()
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def holds(self) -> bool:
        """Return whether the folder still is the one that was locked, not deleted or replaced."""
        try:
            there, mine = os.stat(self.file), os.fstat(self._descriptor)
        except OSError:
            return False
        return os.path.samestat(there, mine)

    def release(self) -> None:
        """Let another run have the folder; a second call does nothing."""
        if self.holds():
            with contextlib.suppress(OSError):
                self.file.unlink()
        self._close()

    def _opened(self) -> int:
        try:
            descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise self._unwritable(error) from error
        _open.add(descriptor)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            _open.discard(descriptor)
            raise ArgumentError(
                f"{self.folder}: another run writes there ({holder}). Wait until it ends, or give "
                "another --output."
            ) from error
        except OSError as error:
            if error.errno not in _UNABLE:
                os.close(descriptor)
                _open.discard(descriptor)
                raise self._unwritable(error) from error
        return descriptor

    def _unwritable(self, error: OSError) -> CheckpointError:
        return CheckpointError(
            f"{self.file}: cannot be written or locked ({error.strerror}); give another --output."
        )

    def _close(self) -> None:
        if self._descriptor in _open:
            _open.discard(self._descriptor)
            os.close(self._descriptor)
        self._descriptor = -1


@contextlib.contextmanager
def locked(folder: Path, *, wanted: bool = True) -> Iterator[Lock | None]:
    """Hold a folder's lock; yields None in a process that writes nothing.

    Raises:
        ArgumentError: if another run writes there.
        CheckpointError: if no file can be made there.
    """
    lock = Lock(folder) if wanted else None
    try:
        yield lock
    finally:
        if lock is not None:
            lock.release()
