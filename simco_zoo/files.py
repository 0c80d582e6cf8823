"""Files are written whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Gives a temporary name beside ``path``; the file written there takes its place when the block ends well."""
    partial = path.with_name(f".partial-{path.name}")  # keeps the suffix, which numpy looks at
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def check_disk_space(folder: Path, size: int) -> None:
    """Makes a folder and raises OSError unless files of that many bytes in all can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / "probe") as partial:
            partial.write_bytes(b"x")
        (folder / "probe").unlink()
    except OSError as error:
        raise OSError(f"nothing can be written to {folder} ({error.strerror}); choose another output.") from error
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
