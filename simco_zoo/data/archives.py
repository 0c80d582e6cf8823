"""Zip and tar files of images, read in place; tar files may be shards of a WebDataset."""

from __future__ import annotations

import json
import os
import tarfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from simco_zoo.data.decoding import open_image
from simco_zoo.data.folders import Listing, is_hidden, printable, tree_source
from simco_zoo.data.labels import encode_labels
from simco_zoo.data.rows import Rows, Source

ARCHIVES = {".zip", ".tar"}


def _list_members(names: list[str]) -> Listing:
    listing = Listing()
    for name in sorted(names):
        if not any(is_hidden(part) for part in PurePosixPath(name).parts):
            listing.add(name)
    return listing


@dataclass
class OpenZipped:
    """Opens the i-th of some members of a zip file; each process opens the file anew."""

    path: str
    members: list[str]
    _opened: tuple[int, zipfile.ZipFile] | None = field(default=None, repr=False)

    def __call__(self, index: int) -> Image.Image:
        return open_image(self.read(self.members[index]))

    def read(self, member: str) -> bytes:
        """Returns the bytes of a member."""
        if self._opened is None or self._opened[0] != os.getpid():  # a forked process would share the file's position
            self._opened = os.getpid(), zipfile.ZipFile(self.path)
        return self._opened[1].read(member)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "members": self.members, "_opened": None}


def zip_source(path: Path, label_column: str | None = None) -> Source:
    """Reads a zip file as a folder is read."""
    try:
        with zipfile.ZipFile(path) as file:
            names = [entry.filename for entry in file.infolist() if not entry.is_dir()]
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"{path} cannot be read as a zip file ({error}).") from error

    return tree_source(
        str(path),
        _list_members(names),
        lambda members: OpenZipped(str(path), members),
        OpenZipped(str(path), []).read,
        label_column,
    )


Place = tuple[str, int, int]  # a member's file, first byte and length


@dataclass
class OpenTarred:
    """Opens the i-th of some members of tar files."""

    places: list[Place]

    def __call__(self, index: int) -> Image.Image:
        return open_image(read_place(self.places[index]))


def read_place(place: Place) -> bytes:
    """Returns the bytes of a member of a tar file."""
    path, start, length = place
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(length)


def tar_source(name: str, splits: dict[str, list[Path]], label_column: str | None = None) -> Source:
    """Reads tar files: shards of a WebDataset, or folders of images that were packed.

    Args:
        name: What the source is called.
        splits: The files of each split.
        label_column: Key of the label in a WebDataset's .json members; "none": no labels.
    """
    indexes = {split: _index(files) for split, files in splits.items()}
    members = {member for index in indexes.values() for member in index}
    stems = {os.path.splitext(member)[0] for member in members if member.endswith((".cls", ".json"))}
    if len(splits) == 1 and not any(
        os.path.splitext(member)[0] in stems for member in members if not member.endswith((".cls", ".json"))
    ):
        index = next(iter(indexes.values()))
        return tree_source(
            name,
            _list_members(list(index)),
            lambda paths: OpenTarred([index[path] for path in paths]),
            lambda path: read_place(index[path]),
            label_column,
        )
    rows: dict[str, Rows] = {}
    values: dict[str, list[Any] | None] = {}
    for split, index in indexes.items():
        listing = _list_members(list(index))
        rows[split] = Rows(
            [printable(path) for path in listing.images],
            OpenTarred([index[path] for path in listing.images]),
            skipped=listing.skipped,
        )
        values[split] = (
            None if label_column == "none" else [_label(index, path, label_column) for path in listing.images]
        )
    labels, class_names = encode_labels(values, name)
    rows = {split: Rows(r.names, r.open_image, labels[split], skipped=r.skipped) for split, r in rows.items()}
    return Source(name, rows, class_names, divided=len(rows) > 1)


def _index(files: list[Path]) -> dict[str, Place]:
    """Returns where each member of some tar files lies; the names of several files start with the file's."""
    index: dict[str, Place] = {}
    for path in files:
        try:
            with tarfile.open(path, "r:") as file:
                prefix = f"{path.name}/" if len(files) > 1 else ""
                for member in file:
                    if member.isfile():
                        name = PurePosixPath(member.name).as_posix().lstrip("/")
                        index[prefix + name] = (str(path), member.offset_data, member.size)
        except (tarfile.TarError, OSError) as error:
            raise ValueError(
                f"{path} cannot be read as a tar file ({error}); a compressed one has to be unpacked."
            ) from error
    return index


def _label(index: dict[str, Place], path: str, label_column: str | None) -> Any:
    """Returns the label that a WebDataset's sample carries along with its image: KEY.cls, or a key of KEY.json."""
    folder, _, base = path.rpartition("/")
    for key in (base.rpartition(".")[0], base.partition(".")[0]):  # a sample's key ends at its first dot, mostly
        stem = f"{folder}/{key}" if folder else key
        if label_column is None and f"{stem}.cls" in index:
            text = read_place(index[f"{stem}.cls"]).decode().strip()
            return int(text) if text.lstrip("-").isdecimal() else text or None
        if f"{stem}.json" in index:
            return json.loads(read_place(index[f"{stem}.json"])).get(label_column or "label")
    return None
