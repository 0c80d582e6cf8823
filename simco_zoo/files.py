"""Files are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary name beside ``path``; the file written there takes its place when the block ends well."""
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")  # keeps the suffix, which numpy looks at
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
