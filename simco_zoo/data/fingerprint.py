"""What tells one data set from another, without reading all of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simco_zoo.data.images import ImageData
from simco_zoo.data.streaming import StreamedImages

SAMPLE = 16  # images whose pixels are compared where they are not in memory


def describe_images(part: str, images: ImageData | StreamedImages | None) -> dict[str, Any]:
    """Returns number, size, classes, and hashes of names, labels and pixels; not where the images lie.

    The pixels are all of those that are in memory, else those of a few images, with the sizes of the files.

    Args:
        part: Begins the names, "data" or "test".
        images: Images, or None.
    """
    if images is None:
        return {f"{part}.images": 0}
    described: dict[str, Any] = {
        f"{part}.images": len(images),
        f"{part}.split": images.split,
        f"{part}.image_size": images.image_size,
        f"{part}.pixels": _hash_pixels(images),
    }
    if isinstance(images, ImageData):
        if images.whole is not None:
            described[f"{part}.whole_side"] = images.whole.side
        labels = [] if images.labels is None else [images.labels]
        described[f"{part}.names"] = _hash_texts(images.names)
        described[f"{part}.labels"] = hash_tensors(labels)
        described[f"{part}.classes"] = images.class_names
        if images.images is not None:
            described[f"{part}.all_pixels"] = hash_tensors([images.images])
        sizes = _file_sizes(images)
        if sizes is not None:
            described[f"{part}.file_sizes"] = _hash_texts(map(str, sizes))
    return described


def hash_tensors(tensors: Iterable[Tensor]) -> str:
    """Returns a hash of the bytes of tensors, whatever their device and memory format."""
    hashed = hashlib.sha256()
    for tensor in tensors:
        content = tensor.detach().cpu().contiguous()
        hashed.update(str((content.dtype, tuple(content.shape))).encode())
        hashed.update(content.reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()[:16]


def _hash_texts(texts: Iterable[str]) -> str:
    hashed = hashlib.sha256()
    for text in texts:
        hashed.update(text.encode(errors="surrogateescape") + b"\0")
    return hashed.hexdigest()[:16]


def _hash_pixels(images: ImageData | StreamedImages) -> str:
    """Returns a hash of some images, evenly spaced, of a stream the first."""
    with torch.random.fork_rng(devices=[]):  # a loader draws
        if isinstance(images, StreamedImages):
            return hash_tensors([images.sample(min(SAMPLE, len(images)))])
        rows = torch.linspace(0, len(images) - 1, min(SAMPLE, len(images))).round().long()
        return hash_tensors(images.batches([rows]))


def _file_sizes(images: ImageData) -> list[int] | None:
    """Returns the size in bytes of each image's file; None if the images are no files of their own."""
    root = Path(images.source)
    for folder in (root, root / images.split):
        try:
            if folder.is_dir():
                return [(folder / name).stat().st_size for name in images.names]
        except OSError:  # the names are none of files in there
            continue
    return None
