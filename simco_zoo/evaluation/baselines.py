"""Features that a pretrained model has to beat: raw pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from simco_zoo.data import ImageData, from_tensor


def shrink_images(images: ImageData, side: int) -> ImageData:
    """Returns images in memory whose side is at most ``side`` px, with their labels."""
    parts = []
    for batch in images.batches(torch.arange(len(images)).split(1024)):
        if batch.shape[-1] > side:
            size = {"size": (side, side), "mode": "bicubic", "antialias": True, "align_corners": False}
            batch = F.interpolate(batch.float(), **size).round().clamp(0, 255).byte()  # type: ignore[arg-type]
        parts.append(batch)
    return from_tensor(torch.cat(parts), images.labels, images.class_names)


def raw_pixels(images: ImageData, side: int = 32) -> Tensor:
    """Returns the pixels of images shrunk to a side of at most ``side`` px, in [-1, 1], (N, 3 * side * side).

    Example:
        >>> raw_pixels(from_tensor(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))).shape
        torch.Size([2, 3072])
    """
    pixels = shrink_images(images, side).images
    assert pixels is not None
    return pixels.float().div(127.5).sub(1).flatten(1)
