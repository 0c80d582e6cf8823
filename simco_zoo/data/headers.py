"""Sizes of images from their headers, remembered from one start to the next."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from simco_zoo.data.decoding import describe_error, image_size
from simco_zoo.data.folders import OpenFile
from simco_zoo.data.rows import Rows, Subset
from simco_zoo.files import atomic_write

Header = tuple[int, int] | str  # width and height, or the reason why an image cannot be read
REMEMBERED_FROM = 1000  # images; of fewer the headers are read in no time
_log = logging.getLogger("simco_zoo.data")


def read_headers(rows: Rows, progress: Callable[[Iterable[Header]], Iterable[Header]]) -> list[Header]:
    """Returns width and height of every image as a viewer shows it; nothing is decoded.

    Of files the result is kept in ``~/.cache/simco_zoo`` and holds as long as no file changes. The environment variable
    ``SIMCO_ZOO_CACHE`` names another folder; if it is empty, nothing is kept.

    Args:
        rows: The images.
        progress: Shows how far an iteration is.
    """
    place = _place(rows) if len(rows) >= REMEMBERED_FROM else None
    if place is not None and place.is_file():
        known = json.loads(place.read_text(encoding="utf-8"))
        return [entry if isinstance(entry, str) else (entry[0], entry[1]) for entry in known]
    with ThreadPoolExecutor() as pool:
        headers = list(progress(pool.map(lambda i: _read_header(rows, i), range(len(rows)))))
    if place is not None:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(place) as partial:
                partial.write_text(json.dumps(headers), encoding="utf-8")
        except OSError as error:
            _log.info("the sizes of the images are not remembered (%s).", error)
    return headers


def _read_header(rows: Rows, index: int) -> Header:
    try:
        return image_size(rows.open_image(index))
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
        return describe_error(error)


def _place(rows: Rows) -> Path | None:
    """Returns where the headers of files are kept: a name made from all paths, lengths and times; None for others."""
    chosen: Iterable[int] = range(len(rows))
    opened = rows.open_image
    while isinstance(opened, Subset):
        chosen, opened = [opened.rows[i] for i in chosen], opened.open_row
    folder = os.environ.get("SIMCO_ZOO_CACHE", "~/.cache/simco_zoo")
    if not isinstance(opened, OpenFile) or not folder:
        return None
    hashed = hashlib.sha256()
    for index in chosen:
        path = os.path.join(opened.root, opened.paths[index])
        try:
            found = os.stat(path)
        except OSError:
            return None
        entry = f"{os.path.abspath(path)}\0{found.st_size}\0{found.st_mtime_ns}\0"
        hashed.update(entry.encode(errors="surrogateescape"))
    return Path(folder).expanduser() / f"headers-{hashed.hexdigest()[:32]}.json"
