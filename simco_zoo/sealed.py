"""Files of ``torch.save`` with a checksum, so that damage is noticed when they are read.

Such a file holds tensors and plain values only and is read with ``weights_only=True``. It is the zip archive that
``torch.save`` writes, with a SHA-256 of its content as the archive's comment, so that ``torch.load`` reads it, too.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from simco_zoo.files import atomic_write

_COMMENT = b"simco-zoo sha256:"
_COMMENT_SIZE = len(_COMMENT) + 64


class _HashedFile:
    """Passes on what is written, and hashes it on the way.

    Attributes:
        error: Why something could not be written; torch's writer puts an error of its own in its place.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.hash = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        self.hash.update(content)
        try:
            return self.file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def save_sealed(path: Path, state: Any) -> None:
    """Writes tensors and plain values to a file with a checksum; it is on the disk when this returns.

    Raises:
        OSError: If the file cannot be written; an older file of that name is left as it is.
    """
    with atomic_write(path, durable=True) as partial, partial.open("wb") as file:
        hashed = _HashedFile(file)
        try:
            torch.save(state, hashed)  # type: ignore[arg-type]  # it needs no more than write
        except RuntimeError as error:
            if hashed.error is None:
                raise
            raise hashed.error from error
        # the archive ends with the length of its comment, 0 so far
        file.seek(-2, io.SEEK_END)
        file.write(struct.pack("<H", _COMMENT_SIZE) + _COMMENT + hashed.hash.hexdigest().encode())


def load_sealed(path: Path, kind: str) -> tuple[Any, bool]:
    """Reads a file of ``save_sealed`` to the CPU.

    Args:
        path: The file.
        kind: What it should be, for the message.

    Returns:
        What it holds, and whether a checksum vouches for it.

    Raises:
        ValueError: If it cannot be read, or its checksum differs.
    """
    try:
        content = path.read_bytes()
        verified = _is_whole(content)
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True), verified
    except Exception as error:  # an altered archive can fail anywhere within torch's reader
        raise ValueError(f"{path} cannot be read as {kind} ({_reason(error, path)}).") from error


def _reason(error: Exception, path: Path) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if path.stat().st_size == 0:
        return "it is empty"
    if not isinstance(error, _DamagedError) and not zipfile.is_zipfile(path):
        return "it is cut, or torch.save did not write it"
    if isinstance(error, pickle.UnpicklingError):  # torch's message tells how to read it all the same
        return "it holds more than tensors and plain values"
    return (str(error).splitlines() or [type(error).__name__])[0]


class _DamagedError(ValueError):
    """The checksum differs."""


def _is_whole(content: bytes) -> bool:
    """Compares a file with the checksum at its end; False if it has none.

    Raises:
        _DamagedError: If the two do not agree.
    """
    comment = content[-_COMMENT_SIZE:]
    if not comment.startswith(_COMMENT):
        return False
    found = hashlib.sha256(memoryview(content)[: -_COMMENT_SIZE - 2])
    found.update(b"\0\0")
    if found.hexdigest().encode() != comment[len(_COMMENT) :]:
        raise _DamagedError("it is damaged: its checksum differs")
    return True
