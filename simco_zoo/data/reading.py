"""Reads the rows of a source into images of one size, all at once or batch by batch."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from simco_zoo.data.decoding import ImageReader, read_image
from simco_zoo.data.headers import Header, read_headers
from simco_zoo.data.images import ImageData
from simco_zoo.data.presets import IMAGENET_MEAN, IMAGENET_STD
from simco_zoo.data.rectangles import InMemory, WholeImages
from simco_zoo.data.rows import Rows, Source, Subset
from simco_zoo.data.subsets import shorten
from simco_zoo.data.transforms import EvalTransform, Size, image_side, pair
from simco_zoo.distributed import is_main
from simco_zoo.hub.config import CROP_MODES, INTERPOLATIONS

IN_MEMORY_BYTES = 2 * 1024**3
_log = logging.getLogger("simco_zoo.data")


@dataclass(frozen=True)
class ImageSpec:
    """How images are loaded, whatever they come from."""

    image_size: Size | None = None
    crop_pct: float = 1.0
    interpolation: str = "bicubic"
    crop_mode: str = "center"
    mean: tuple[float, ...] | None = None
    limit: int | None = None
    in_memory: bool | None = None
    val_fraction: float | None = None
    seed: int = 0
    whole: bool | int = False
    default_size: int | None = None

    def __post_init__(self) -> None:
        if self.image_size is not None and min(pair(self.image_size)) < 1:
            raise ValueError(
                f"image_size is {self.image_size}, but has to be at least 1 (or None for the images' own)."
            )
        if self.image_size is not None and not isinstance(image_side(pair(self.image_size)), int) and self.whole:
            raise ValueError(f"image_size is {self.image_size}, but random crops of whole images are square.")
        if not 0 < self.crop_pct < math.inf:
            raise ValueError(f"crop_pct is {self.crop_pct}, but has to be positive.")
        for name, known in (("interpolation", INTERPOLATIONS), ("crop_mode", CROP_MODES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, but has to be one of {', '.join(known)}.")

    def reader(self, size: Size) -> ImageReader:
        mean = self.mean or IMAGENET_MEAN
        geometry = (self.crop_pct, self.crop_mode, self.interpolation)
        if self.whole is not True and self.whole < 0:
            raise ValueError(f"whole is {self.whole}, but the shorter side of an image has at least 1 pixel.")
        side = max(pair(size)) if self.whole is True else int(self.whole) or None
        return ImageReader(EvalTransform((3, *pair(size)), mean, IMAGENET_STD, *geometry), side)


@dataclass
class _RowReader:
    """Opens row i of a source and brings it to size."""

    open_image: Callable[[int], Any]
    fit: ImageReader

    def __call__(self, index: int) -> Tensor | str:
        return read_image(self.fit, lambda: self.open_image(index))

    def both(self, index: int) -> tuple[Tensor, Tensor | None] | str:
        """Reads it at once brought to size and, if that is wanted, whole."""
        if self.fit.whole_side is None:
            image = self(index)
            return image if isinstance(image, str) else (image, None)
        return read_image(self.fit.both, lambda: self.open_image(index))


@dataclass
class _WholeReader(_RowReader):
    """Opens row i of a source and resizes it."""

    def __call__(self, index: int) -> Tensor | str:
        return read_image(self.fit.whole, lambda: self.open_image(index))


def log_notes(notes: list[str]) -> None:
    """Logs the notes of a data set once, by the main process."""
    if is_main():
        for note in notes:
            _log.warning(note)


def load_split(opened: Source, split: str, spec: ImageSpec) -> ImageData:
    """Reads one split of an open source, into memory or with a reader of single images.

    Raises:
        ValueError: If the split is unknown or empty, the images differ in size and no size is given, or none can be
            read.
    """
    rows = opened.rows(split, spec.val_fraction, spec.seed)
    if spec.limit is not None:
        rows = rows.spaced(spec.limit)
    if not len(rows):
        raise ValueError(f"{opened.name} has no images in its split {split!r}.")
    skipped = list(rows.skipped)
    images = rows.images
    reader = whole = None
    size: Size
    if images is not None and images.shape[2:] == pair(spec.image_size or images.shape[2]):
        size = image_side(images.shape)
    else:
        size = image_side(pair(spec.image_size or _common_size(opened, rows, spec.default_size)))
        read = _RowReader(rows.open_image, spec.reader(size))
        side = read.fit.whole_side
        pixels = math.prod(pair(size)) + (4 * side**2 // 3 if side else 0)
        if 3 * len(rows) * pixels <= IN_MEMORY_BYTES if spec.in_memory is None else spec.in_memory:
            images, kept, failed, rectangles = _read_all(rows, read)
            if side is not None and any(image.shape[1:] != pair(size) for image in rectangles):
                whole = WholeImages(side, InMemory(rectangles), in_memory=True)
        else:
            images, (kept, failed, square) = None, _look_at_headers(rows)
            reader = Subset(read, kept)
            if side is not None and (side != size or not square):
                whole = WholeImages(side, Subset(_WholeReader(rows.open_image, read.fit), kept))
        if not kept:
            reason = ": ".join(failed[0])
            raise ValueError(f"none of the {len(rows)} images in {opened.name} can be read, e.g. {reason}.")
        skipped += failed
        rows = rows.select(kept) if failed else rows
    return ImageData(
        images,
        rows.labels,
        rows.names,
        opened.class_names,
        skipped,
        opened.name,
        split,
        size,
        reader,
        rows.splits,
        opened.notes + _describe_left_out(opened, split, rows, skipped),
        whole,
    )


def _describe_left_out(opened: Source, split: str, rows: Rows, skipped: list[tuple[str, str]]) -> list[str]:
    """Says which images and labels a split lacks."""
    notes = []
    if skipped:
        named = shorten([f"{name} ({reason})" for name, reason in skipped])
        notes.append(f"{opened.name}: {len(skipped)} image{'s are' if len(skipped) > 1 else ' is'} left out: {named}.")
    if rows.labels is not None and (rows.labels < 0).any():
        without = [name for name, label in zip(rows.names, rows.labels.tolist(), strict=True) if label < 0]
        notes.append(f"{opened.name}: {len(without)} of {len(rows)} images have no label: {shorten(without)}.")
    if rows.labels is None and any(other.labels is not None for other in opened.splits.values()):
        notes.append(f"{opened.name}: the split {split!r} has no labels, or all of them are hidden (-1).")
    return notes


def _progress(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
    """Shows a progress bar on stderr if that is a terminal and it takes more than two seconds."""
    return tqdm(items, total=total, desc=what, unit="image", delay=2, leave=False, disable=None if is_main() else True)


def _read_all(rows: Rows, read: _RowReader) -> tuple[Tensor, list[int], list[tuple[str, str]], list[Tensor]]:
    """Decodes every image once.

    Returns:
        Those that can be read, their rows, (name, reason) of the others, and the uncropped images if they are wanted.
    """
    kept: list[int] = []
    failed: list[tuple[str, str]] = []
    images = torch.empty(len(rows), 3, *read.fit.size, dtype=torch.uint8)
    rectangles: list[Tensor] = []
    with ThreadPoolExecutor() as pool:  # PIL decodes outside the interpreter's lock
        for index, result in enumerate(_progress(pool.map(read.both, range(len(rows))), len(rows), "reading images")):
            if isinstance(result, str):
                failed.append((rows.names[index], result))
            else:
                images[len(kept)], rectangle = result
                kept.append(index)
                rectangles += [] if rectangle is None else [rectangle]
    return images[: len(kept)], kept, failed, rectangles


def _headers(rows: Rows) -> list[Header]:
    return read_headers(rows, lambda headers: _progress(headers, len(rows), "looking at images"))


def _look_at_headers(rows: Rows) -> tuple[list[int], list[tuple[str, str]], bool]:
    """Returns the rows whose header can be read, (name, reason) of the others, and whether all are square."""
    headers = _headers(rows)
    failed = [(rows.names[i], header) for i, header in enumerate(headers) if isinstance(header, str)]
    kept = [i for i, header in enumerate(headers) if not isinstance(header, str)]
    return kept, failed, all(headers[i][0] == headers[i][1] for i in kept)


def _common_size(opened: Source, rows: Rows, default: int | None) -> int:
    """Returns the side of the images if all are square and alike, or the default, and says so."""
    sizes: set[tuple[int, int]] = set()
    for header in _headers(rows):
        if isinstance(header, str):
            continue  # listed as skipped when the images are read
        sizes.add(header)
        if len(sizes) > 1 or header[0] != header[1]:
            if default is not None:
                opened.notes.append(f"{opened.name}: the images are of several sizes; they are seen at {default} px.")
                return default
            shapes = ", ".join(f"{width}x{height}" for width, height in sorted(sizes)[:3])
            raise ValueError(
                f"the images of {opened.name} are not all square and alike ({shapes}...); "
                "pass image_size (on the command line --image-size), to which they are resized and cropped."
            )
    return sizes.pop()[0] if sizes else 32
