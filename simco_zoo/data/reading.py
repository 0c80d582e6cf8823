"""Reads the rows of a source into images of one size, all at once or batch by batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from simco_zoo.data.decoding import ImageReader, describe_error, image_size, read_image
from simco_zoo.data.images import ImageData
from simco_zoo.data.presets import IMAGENET_MEAN, IMAGENET_STD
from simco_zoo.data.rows import Rows, Source, Subset
from simco_zoo.data.subsets import shorten
from simco_zoo.data.transforms import EvalTransform
from simco_zoo.distributed import is_main

IN_MEMORY_BYTES = 2 * 1024**3
_log = logging.getLogger("simco_zoo.data")


@dataclass(frozen=True)
class ImageSpec:
    """How images are loaded, whatever they come from."""

    image_size: int | None = None
    crop_pct: float = 1.0
    interpolation: str = "bicubic"
    crop_mode: str = "center"
    mean: tuple[float, ...] | None = None
    limit: int | None = None
    in_memory: bool | None = None
    val_fraction: float | None = None
    seed: int = 0

    def reader(self, size: int) -> ImageReader:
        mean = self.mean or IMAGENET_MEAN
        geometry = (self.crop_pct, self.crop_mode, self.interpolation)
        return ImageReader(EvalTransform((3, size, size), mean, IMAGENET_STD, *geometry))


@dataclass
class _RowReader:
    """Opens row i of a source and brings it to size."""

    open_image: Callable[[int], Any]
    fit: ImageReader

    def __call__(self, index: int) -> Tensor | str:
        return read_image(self.fit, lambda: self.open_image(index))


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
    reader = None
    if images is not None and (spec.image_size or images.shape[2]) == images.shape[2] == images.shape[3]:
        size = images.shape[3]
    else:
        size = spec.image_size or _common_size(opened.name, rows)
        read = _RowReader(rows.open_image, spec.reader(size))
        fits_memory = len(rows) * 3 * size * size <= IN_MEMORY_BYTES
        if fits_memory if spec.in_memory is None else spec.in_memory:
            images, kept, failed = _read_all(rows, read)
        else:
            images, (kept, failed) = None, _look_at_headers(rows)
            reader = Subset(read, kept)
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


def _read_all(rows: Rows, read: _RowReader) -> tuple[Tensor, list[int], list[tuple[str, str]]]:
    """Decodes every image once; returns those that can be read, their rows, and (name, reason) of the others."""
    kept: list[int] = []
    failed: list[tuple[str, str]] = []
    images = torch.empty(len(rows), 3, *read.fit.size, dtype=torch.uint8)
    with ThreadPoolExecutor() as pool:  # PIL decodes outside the interpreter's lock
        for index, result in enumerate(_progress(pool.map(read, range(len(rows))), len(rows), "reading images")):
            if isinstance(result, str):
                failed.append((rows.names[index], result))
            else:
                images[len(kept)] = result
                kept.append(index)
    return images[: len(kept)], kept, failed


def _header(rows: Rows, index: int) -> tuple[int, int] | str:
    """Returns width and height of an image, or the reason why it cannot be read; nothing is decoded."""
    try:
        return image_size(rows.open_image(index))
    except Exception as error:  # as in read_image
        return describe_error(error)


def _headers(rows: Rows) -> Iterable[tuple[int, int] | str]:
    with ThreadPoolExecutor() as pool:
        yield from _progress(pool.map(lambda i: _header(rows, i), range(len(rows))), len(rows), "looking at images")


def _look_at_headers(rows: Rows) -> tuple[list[int], list[tuple[str, str]]]:
    """Returns the rows whose header can be read, and (name, reason) of the others."""
    headers = list(_headers(rows))
    failed = [(rows.names[i], header) for i, header in enumerate(headers) if isinstance(header, str)]
    return [i for i, header in enumerate(headers) if not isinstance(header, str)], failed


def _common_size(name: str, rows: Rows) -> int:
    """Returns the side of the images if all are square and alike."""
    sizes: set[tuple[int, int]] = set()
    for header in _headers(rows):
        if isinstance(header, str):
            continue  # listed as skipped when the images are read
        sizes.add(header)
        if len(sizes) > 1 or header[0] != header[1]:
            shapes = ", ".join(f"{width}x{height}" for width, height in sorted(sizes)[:3])
            raise ValueError(
                f"the images of {name} are not all square and alike ({shapes}...); "
                "pass image_size (on the command line --image-size), to which they are resized and cropped."
            )
    return sizes.pop()[0] if sizes else 32
