"""Folders and archives of image files: which files are images, which folders are splits, which are classes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from simco_zoo.data.decoding import UNREADABLE_SUFFIXES, describe_error, open_image, readable_formats
from simco_zoo.data.labels import encode_labels
from simco_zoo.data.metadata import METADATA, read_metadata
from simco_zoo.data.rows import Rows, Source, canonical_split, is_split_name
from simco_zoo.data.subsets import shorten

HIDDEN = {"__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "lost+found", "Thumbs.db", "desktop.ini"}


def is_hidden(name: str) -> bool:
    """Whether a file or folder is left by a system or a tool and was not put there by a person."""
    return name.startswith(".") or name in HIDDEN


def suffix(name: str) -> str:
    """Returns the suffix of a file name in lower case."""
    return os.path.splitext(name)[1].lower()


@dataclass
class Listing:
    """The files below a folder, by their path relative to it with forward slashes.

    Attributes:
        images: Files that Pillow may read.
        others: Other files.
        skipped: (path, reason) of images that cannot be read, known without opening them.
        empty: Folders that hold no images.
    """

    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)

    def add(self, path: str) -> None:
        """Sorts a file in by its suffix."""
        end = suffix(path)
        if end in readable_formats()[1]:
            self.images.append(path)
        elif end in UNREADABLE_SUFFIXES:
            hint = "; install pillow-heif" if end in (".heic", ".heif") else ""
            self.skipped.append((path, f"Pillow cannot read {end} files{hint}"))
        else:
            self.others.append(path)


def list_folder(root: Path) -> Listing:
    """Lists the files below a folder; links are followed, hidden files and folders are left out."""
    listing = Listing()
    _walk(root, "", (os.path.realpath(root),), listing)
    return listing


def _walk(folder: Path, prefix: str, parents: tuple[str, ...], listing: Listing) -> None:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        listing.skipped.append((prefix or str(folder), describe_error(error)))
        return
    before = len(listing.images)
    for entry in entries:
        path = prefix + entry.name
        if is_hidden(entry.name):
            continue
        if entry.is_dir():
            real = os.path.realpath(entry.path)
            if real not in parents:  # a link to a folder above would be entered for ever
                _walk(Path(entry.path), path + "/", (*parents, real), listing)
        elif not entry.is_file():
            listing.skipped.append((path, "a link to a file that does not exist"))
        elif not suffix(entry.name) and _is_image(entry.path):
            listing.images.append(path)
        else:
            listing.add(path)
    if prefix and len(listing.images) == before:
        listing.empty.append(prefix.rstrip("/"))


def _is_image(path: str) -> bool:
    """Whether a file without a suffix is an image, by its header."""
    try:
        with open_image(path):
            return True
    except Exception:  # Pillow's plugins raise nearly anything on files that are not images
        return False


@dataclass
class OpenFile:
    """Opens the i-th file of a folder."""

    root: str
    paths: list[str]

    def __call__(self, index: int) -> Image.Image:
        return open_image(os.path.join(self.root, self.paths[index]))


Opener = Callable[[list[str]], Callable[[int], Image.Image]]


def folder_source(root: Path, listing: Listing, label_column: str | None = None) -> Source:
    """Reads a folder of images, of class folders, or of splits with either of them."""

    return tree_source(
        str(root),
        listing,
        lambda paths: OpenFile(str(root), paths),
        lambda path: (root / path).read_bytes(),
        label_column,
    )


def tree_source(
    name: str, listing: Listing, opener: Opener, read: Callable[[str], bytes], label_column: str | None = None
) -> Source:
    """Reads a tree of image files, in a folder or an archive, as splits and classes.

    Args:
        name: What the source is called.
        listing: Its files.
        opener: Makes the function that opens the i-th of some files.
        read: Reads a file, for metadata.
        label_column: Column of the metadata that holds the labels; "none": no labels.

    Raises:
        ValueError: If there are no images, or the folders can be read in more than one way.
    """
    if not listing.images:
        raise ValueError(f"{name} holds no images{_what_it_holds(listing)}.")
    parts, divided, skipped = _divide(name, listing.images)
    metadata = [path for path in listing.others if path.rsplit("/", 1)[-1] in METADATA]
    notes: list[str] = []
    labeled = read_metadata(name, metadata, set(listing.images), read, label_column, notes)
    if labeled is not None:
        values = {split: [labeled.get(path) for path in part.images] for split, part in parts.items()}
        labels, class_names = encode_labels(values, name)
    elif label_column == "none":
        labels, class_names = dict.fromkeys(parts), None
    else:
        labels, class_names = _class_folders(name, parts, notes)
    unread = [path for path in listing.others if path not in metadata]
    if unread:
        notes.append(f"{name}: files that are not images are left out: {shorten(unread)}.")
    if listing.empty and class_names:
        notes.append(f"{name}: folders without images are left out: {shorten(listing.empty)}.")
    splits = {}
    for split, part in parts.items():
        left_out = [
            (path[len(part.folder) :], reason)
            for path, reason in listing.skipped + skipped
            if path.startswith(part.folder)
        ]
        left_out += part.skipped
        splits[split] = Rows(
            [printable(path[len(part.folder) :]) for path in part.images],
            opener(part.images),
            labels[split],
            skipped=[(printable(path), reason) for path, reason in left_out],
        )
    return Source(name, splits, class_names, divided=divided, notes=notes)


def printable(name: str) -> str:
    """Returns a file name that can be written as UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _what_it_holds(listing: Listing) -> str:
    if listing.skipped:
        return f" that can be read ({shorten([f'{path}: {reason}' for path, reason in listing.skipped], 2)})"
    if listing.others:
        return f", only {shorten(listing.others, 3)}"
    return ""


@dataclass
class _Part:
    """A split while its classes are looked for: its folder ("" or "train/"), its images, and what is left out."""

    folder: str
    images: list[str]
    skipped: list[tuple[str, str]] = field(default_factory=list)


def _tops(paths: Iterable[str], prefix: str) -> Counter[str]:
    """Counts the images in each folder directly below a prefix; "" stands for those that lie in none."""
    return Counter(path[len(prefix) :].partition("/")[0] if "/" in path[len(prefix) :] else "" for path in paths)


def _divide(name: str, images: list[str]) -> tuple[dict[str, _Part], bool, list[tuple[str, str]]]:
    """Finds the split folders: parts by name, whether there are splits, and images that belong to none."""
    prefix = ""
    tops = _tops(images, prefix)
    while len(tops) == 1 and not is_split_name(top := next(iter(tops))) and top:  # all in one folder: look inside
        prefix += top + "/"
        tops = _tops(images, prefix)
    named = [top for top in tops if is_split_name(top)]
    others = [top for top in tops if top and top not in named]
    whole = {"train": _Part("", images)}
    if not named:
        return whole, False, []
    if others:
        inside = [path[len(prefix) :] for path in images]
        if len(named) == 1 and all(path.count("/") <= 1 for path in inside):
            return whole, False, []  # a class that is called "train", say, among others
        raise ValueError(
            f"{name} has the folder{'s' * (len(named) > 1)} {', '.join(named)} next to {shorten(others)}: splits and "
            f"classes cannot be told apart. For the splits alone move the other folders away or pass one of them, e.g. "
            f"{name}/{prefix}{named[0]}; if all are classes, rename {named[0]}."
        )
    canonical: dict[str, str] = {}
    for top in named:
        other = canonical.setdefault(canonical_split(top), top)
        if other != top:
            raise ValueError(f"{name} has the folders {other} and {top}, which mean the same split; keep one of them.")
    parts = {top: _Part(f"{prefix}{top}/", []) for top in sorted(named)}
    stray = []
    for path in images:
        top = path[len(prefix) :].partition("/")[0]
        if top in parts:
            parts[top].images.append(path)
        else:
            stray.append((path, f"lies next to the folders {', '.join(sorted(named))}"))
    first = next(iter(parts.values()))
    first.skipped += stray
    return parts, True, []


def _class_folders(name: str, parts: dict[str, _Part], notes: list[str]) -> tuple[dict[str, Any], list[str] | None]:
    """Takes the folders of each split as classes; images next to them are left out of the parts."""
    depth = {split: part.folder for split, part in parts.items()}
    while True:
        tops = {split: _tops(part.images, depth[split]) for split, part in parts.items()}
        classes = {top for counts in tops.values() for top in counts}
        if len(classes) != 1 or classes == {""}:
            break
        depth = {split: f"{folder}{next(iter(classes))}/" for split, folder in depth.items()}
    class_names = sorted(classes - {""})
    labels: dict[str, Any] = dict.fromkeys(parts)
    if len(class_names) < 2:
        return labels, None
    numbers = {class_name: number for number, class_name in enumerate(class_names)}
    for split, part in parts.items():
        outside, inside = tops[split][""], sum(tops[split].values()) - tops[split][""]
        if not inside:
            continue
        if outside >= inside:
            notes.append(
                f"{name}: {outside} images lie next to the folders and {inside} in them, so the folders are not taken "
                "for classes."
            )
            continue
        folder = depth[split]
        found = [(path, path[len(folder) :].partition("/")) for path in part.images]
        part.skipped += [(path[len(part.folder) :], "lies next to the class folders") for path, f in found if not f[1]]
        part.images = [path for path, f in found if f[1]]
        labels[split] = torch.tensor([numbers[f[0]] for _, f in found if f[1]], dtype=torch.long)
    return labels, class_names if any(value is not None for value in labels.values()) else None
