"""A lock on a folder: two processes never write to the same run, extraction or linear evaluation."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from simco_zoo.distributed import on_main

LOCK_FILE = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_held: set[tuple[int, Path]] = set()  # process and folder; a fork inherits the set, not the locks


class FolderInUseError(OSError):
    """Another process writes to the folder."""


class FolderLock:
    """Holds a folder for this process until ``release``; the lock of a process that has ended is taken over.

    The system's own file lock decides: it ends with its process, however that ends, and is not handed to forked
    processes. Where the file system has none, the process that the file names is looked for.

    Args:
        folder: The folder; it exists.

    Raises:
        FolderInUseError: If a process that is still there holds the folder; the message names it and its host.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._held = (os.getpid(), self.folder)
        if self._held in _held:
            raise FolderInUseError(_in_use(folder, _this_process()))
        self._descriptor = _take(folder)
        _held.add(self._held)

    def moved_to(self, folder: Path) -> None:
        """Tells the lock that its folder has got another name."""
        _held.discard(self._held)
        self.folder = folder.resolve()
        self._held = (os.getpid(), self.folder)
        _held.add(self._held)

    def release(self) -> None:
        """Sets the folder free."""
        if self._held in _held:
            _held.discard(self._held)
            (self.folder / LOCK_FILE).unlink(missing_ok=True)
            os.close(self._descriptor)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a folder, made if it is not there, for all processes of a job.

    Raises:
        OSError: On each of them, if the first one cannot make it, or a process of another job holds it.
    """

    def take() -> FolderLock | None:
        folder.mkdir(exist_ok=True)
        return FolderLock(folder)

    lock = on_main(take, lambda _: None)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _take(folder: Path) -> int:
    """Returns the open lock file, locked and with this process's name in it."""
    path = folder / LOCK_FILE
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        owner = _read(descriptor)
        if not _lock(descriptor, owner):
            os.close(descriptor)
            raise FolderInUseError(_in_use(folder, owner))
        # a holder removes the file when it ends; what was locked here may have lost its name meanwhile
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, json.dumps(_this_process()).encode())
            return descriptor
        os.close(descriptor)


def _lock(descriptor: int, owner: dict[str, Any]) -> bool:
    """Locks an open file; returns whether nobody else holds it."""
    try:
        if fcntl is not None:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            return False
    return not owner or (owner.get("host") == socket.gethostname() and not _is_running(owner.get("pid")))


def _is_running(pid: Any) -> bool:
    """Whether a process of this machine exists."""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, TypeError, ValueError):
        return False
    except OSError:  # it is another user's
        return True
    return True


def _read(descriptor: int) -> dict[str, Any]:
    """Returns what the holder wrote into the file; nothing where it has not yet."""
    try:
        owner = json.loads(os.read(descriptor, 4096))
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _this_process() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname()}


def _in_use(folder: Path, owner: dict[str, Any]) -> str:
    who = f"process {owner['pid']} on {owner['host']}" if owner.keys() >= {"pid", "host"} else "another process"
    hint = "wait until it ends, or choose another output"
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        hint = (
            "srun started several processes that do not know of each other: start one per node with "
            "srun --ntasks-per-node=1 torchrun --nproc-per-node GPUS ..., or choose an output for each"
        )
    return f"{folder} is being written to by {who}; {hint} (its lock is {folder / LOCK_FILE})."
