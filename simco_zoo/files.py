"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial-"  # begins the name of a file that is being written
_FULL = (errno.ENOSPC, errno.EDQUOT) if hasattr(errno, "EDQUOT") else (errno.ENOSPC,)


@contextmanager
def atomic_write(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Gives a temporary name in the folder of ``path``; the file written there replaces it when the block ends well.

    Args:
        path: The file.
        durable: Return only when file and folder are on the disk, so that not even a loss of power takes them away.

    Raises:
        OSError: If the file cannot be written; where the disk is full, with a sentence that says so.
    """
    partial = path.with_name(PARTIAL + path.name)  # keeps the suffix, which numpy looks at
    try:
        with named_if_full(path):
            yield partial
            if durable:
                sync(partial)
            os.replace(partial, path)
            if durable:
                sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def named_if_full(path: Path) -> Iterator[None]:
    """Turns the error of a full disk into a sentence that names the file and the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL or error.strerror is None:  # without strerror it is the sentence already
            raise
        named = OSError(f"there is no space left to write {path}; make room there and run the same command again.")
        named.errno = error.errno
        raise named from error


def sync(path: Path) -> None:
    """Waits until a file, or the list of a folder's files, is on the disk, where the system can tell."""
    if path.is_dir() and os.name != "posix":  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_partial(folder: Path) -> None:
    """Removes files that were being written to a folder when their process was killed."""
    for path in folder.glob(f"{PARTIAL}*"):
        path.unlink(missing_ok=True)


def check_disk_space(folder: Path, size: int) -> None:
    """Makes a folder and raises OSError unless files of that many bytes in all can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / "probe") as partial:
            partial.write_bytes(b"x")
        (folder / "probe").unlink()
    except OSError as error:
        raise OSError(
            f"nothing can be written to {folder} ({error.strerror or error}); choose another output."
        ) from error
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(
            f"{folder} has {free / 1e6:.0f} MB left, but {size / 1e6:.0f} MB will be written there; "
            "make room, or choose another output."
        )


def write_text(path: Path, text: str) -> None:
    """Writes a text file."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")
