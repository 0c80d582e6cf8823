"""From a PIL image to what a model expects: RGB, resized, cropped, normalized."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torchvision import transforms


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts a PIL image of any mode to RGB.

    16-bit and floating images are scaled to 8 bits by their type's range (floating: [0, 1], or [0, 255] if larger
    values occur), where PIL's own conversion cuts off; transparency is laid on white.
    """
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.clip(np.round(values / 257), 0, 255).astype(np.uint8))
    elif image.mode == "F":
        values = np.asarray(image).astype(np.float64)
        values = values * 255 if np.nanmax(values, initial=0) <= 1 else values
        image = Image.fromarray(np.clip(np.round(np.nan_to_num(values)), 0, 255).astype(np.uint8))
    elif image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(background, image)
    return image.convert("RGB")


def fit(image: Image.Image, size: int, crop_pct: float = 1.0, interpolation: str = "bicubic") -> Image.Image:
    """Resizes an image's short side to size / crop_pct, then crops the central size x size pixels."""
    scale = int(size / crop_pct)
    if image.size == (size, size) and scale == size:
        return image
    resize = transforms.Resize(scale, interpolation=transforms.InterpolationMode(interpolation))
    return transforms.functional.center_crop(resize(image), [size, size])


def resolve_transform(model: nn.Module) -> Callable[[Image.Image], Tensor]:
    """Returns the transform with which a model was evaluated.

    Args:
        model: A model of the zoo, or any timm model.

    Returns:
        A function from a PIL image of any mode and size to a normalized tensor (3, H, W).
    """
    config = resolve_model_data_config(model)
    size = config["input_size"][-1]

    def prepare(image: Image.Image) -> Image.Image:
        return fit(to_rgb(image), size, config["crop_pct"], config["interpolation"])

    return transforms.Compose(
        [
            transforms.Lambda(prepare),
            transforms.ToTensor(),
            transforms.Normalize(config["mean"], config["std"]),
        ]
    )


def normalize(batch: Tensor, config: dict[str, Any]) -> Tensor:
    """Normalizes a uint8 batch (N, 3, H, W) with ``mean`` and ``std`` of timm's data config, on its device."""
    mean, std = (torch.tensor(config[key], device=batch.device).view(1, -1, 1, 1) for key in ("mean", "std"))
    return (batch.float().div_(255) - mean).div_(std)
