"""From a PIL image to what a model expects: upright, RGB, resized, cropped, normalized."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from timm.data import resolve_data_config
from timm.data.transforms_factory import transforms_imagenet_eval
from torch import Tensor, nn
from torchvision import transforms

from simco_zoo.hub.checks import input_channels

Size = int | tuple[int, int]


def make_upright(image: Image.Image) -> Image.Image:
    """Applies the EXIF orientation, with which phones mark how the camera was held."""
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1)
    except Exception:  # damaged EXIF data: Pillow's readers raise nearly anything, and the pixels may still be fine
        return image
    return ImageOps.exif_transpose(image) if turned else image


def to_rgb(image: Image.Image) -> Image.Image:
    """Turns a PIL image of any mode upright and converts it to RGB.

    16-bit and floating images are scaled to 8 bits, where PIL's own conversion cuts off: those with values of at most
    4095, as scanners and microscopes write them, from 12 bits, other 16-bit images from 16, floating ones from [0, 1],
    or from [0, 255] if larger values occur. Transparency is laid on white.
    """
    image = make_upright(image)
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or image.mode == "I":
        wide = np.asarray(image).clip(0, 65535).astype(np.uint32)
        largest = 4095 if wide.max(initial=0) <= 4095 else 65535
        image = Image.fromarray(((255 * wide + largest // 2) // largest).astype(np.uint8))
    elif image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=255.0, neginf=0.0)
        values *= 255 if values.max(initial=0) <= 1 else 1
        image = Image.fromarray(values.round(out=values).clip(0, 255, out=values).astype(np.uint8))
    elif image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(background, image)
    return image.convert("RGB")


@dataclass(frozen=True)
class EvalTransform:
    """Turns a PIL image of any mode and size into a normalized tensor, exactly as timm's evaluation transform does.

    It can be pickled, so that the workers of a DataLoader can have it wherever processes are not forked.

    Attributes:
        input_size: Channels, height and width of the result.
        mean: Subtracted per channel, of values in [0, 1].
        std: Divided by per channel.
        crop_pct: Share of the resized image that the crop keeps.
        crop_mode: "center" resizes the short side and crops, "squash" resizes both sides, "border" resizes the long
            side and pads with the mean color.
        interpolation: "bicubic", "bilinear", "lanczos" or "nearest".

    Example:
        >>> transform = EvalTransform((3, 32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> white = transform(Image.new("RGB", (640, 480), "white"))
        >>> white.shape, white.min().item()
        (torch.Size([3, 32, 32]), 1.0)
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float = 1.0
    crop_mode: str = "center"
    interpolation: str = "bicubic"

    def __call__(self, image: Image.Image) -> Tensor:
        """Returns float32 (C, H, W)."""
        if self.input_size[0] == 1:
            return normalize(self.to_uint8(image)[None], {"input_size": (1,), "mean": self.mean, "std": self.std})[0]
        return _pipeline(self, normalize=True)(to_rgb(image))

    def to_uint8(self, image: Image.Image) -> Tensor:
        """Returns what the model sees before it is normalized: uint8 (3, H, W)."""
        return _pipeline(replace(self, input_size=(3, *self.input_size[1:])), normalize=False)(to_rgb(image))


@lru_cache(maxsize=32)
def _pipeline(transform: EvalTransform, normalize: bool) -> transforms.Compose:
    mean = transform.mean if len(transform.mean) == 3 else 3 * transform.mean[:1]
    return transforms_imagenet_eval(
        transform.input_size[1:],
        crop_pct=transform.crop_pct,
        crop_mode=transform.crop_mode,
        interpolation=transform.interpolation,
        mean=mean,
        std=transform.std,
        normalize=normalize,
    )


def resolve_transform(model: nn.Module, image_size: Size | None = None) -> EvalTransform:
    """Returns the transform with which a model was evaluated.

    Args:
        model: A model from ``create_model`` or from timm; DataParallel, torch.compile and the like around it are looked
            through.
        image_size: Side in pixels, or (height, width), instead of the model's own.

    Returns:
        A function from a PIL image of any mode and size to a normalized float32 tensor (C, H, W).

    Raises:
        ValueError: If the model does not say what input it expects, or takes neither 1 nor 3 channels.

    Example:
        >>> import simco_zoo
        >>> from PIL import Image
        >>> transform = simco_zoo.data.resolve_transform(simco_zoo.create_model("simco_r18_025"))
        >>> transform(Image.new("RGB", (640, 480))).shape
        torch.Size([3, 32, 32])
    """
    config = input_config(model)
    channels, height, width = config["input_size"]
    if channels not in (1, 3):
        raise ValueError(f"the model takes {channels} channels, but an image has 3 or 1; prepare its input yourself.")
    if image_size is not None:
        height, width = pair(image_size)
        if min(height, width) < 1:
            raise ValueError(f"image_size is {image_size}, but an image has at least 1 pixel.")
    return EvalTransform(
        (channels, height, width),
        tuple(config["mean"]),
        tuple(config["std"]),
        config["crop_pct"],
        config["crop_mode"],
        config["interpolation"],
    )


def unwrap(model: nn.Module) -> nn.Module:
    """Returns the model inside DataParallel, DistributedDataParallel, torch.compile or timm's averaged model."""
    while True:
        modules = dict(model.named_children())
        inner = modules.get("_orig_mod", modules.get("module"))
        if inner is None or len(modules) > 1:
            return model
        model = inner


def input_config(model: nn.Module) -> dict[str, Any]:
    """Returns timm's data config of a model: ``input_size``, ``mean``, ``std``, ``crop_pct``, ``interpolation``...

    Raises:
        ValueError: If the model does not say what input it expects.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"the model is {model!r}, but has to be a module of PyTorch, e.g. of simco_zoo.create_model.")
    inner = unwrap(model)
    config = getattr(inner, "pretrained_cfg", None)
    while not isinstance(config, dict) and len(children := list(inner.children())) == 1:  # a wrapper of another kind
        inner = unwrap(children[0])
        config = getattr(inner, "pretrained_cfg", None)
    if not isinstance(config, dict) or not config.get("input_size"):
        raise ValueError(
            f"this {type(model).__name__} does not say what images it expects; give it a pretrained_cfg with "
            "input_size, mean and std, as timm's models have, or pass images as normalized float tensors."
        )
    config = resolve_data_config(pretrained_cfg=config)
    for key in ("input_size", "mean", "std"):  # lists where timm read a config.json
        config[key] = tuple(config[key])
    # timm's description is that of the weights; the network may have been built for another input
    network = getattr(inner, "backbone", inner)
    embedding: Any = getattr(network, "patch_embed", None)
    size = config["input_size"][1:]
    if getattr(embedding, "strict_img_size", False) and getattr(embedding, "img_size", None):
        size = tuple(embedding.img_size)
    return {**config, "input_size": (input_channels(network) or config["input_size"][0], *size)}


def pair(size: Size) -> tuple[int, int]:
    """Returns height and width of images of a size."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


def image_side(input_size: Sequence[int]) -> Size:
    """Returns the side of the images that a model takes, (height, width) unless they are square.

    Example:
        >>> image_side((3, 32, 32)), image_side((3, 32, 64))
        (32, (32, 64))
    """
    height, width = input_size[-2:]
    return height if height == width else (height, width)


def normalize(batch: Tensor, config: dict[str, Any]) -> Tensor:
    """Normalizes a uint8 batch (N, 3, H, W) with ``mean`` and ``std`` of timm's data config, on its device.

    For a model of one channel (``input_size``) it becomes gray first, (N, 1, H, W), weighted as by Pillow; mean and
    deviation are then the means of those of the three channels.

    Example:
        >>> import torch
        >>> white = torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)
        >>> normalize(white, {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.25)}).flatten().tolist()
        [1.0, 1.0, 2.0]
    """
    mean, std = (torch.tensor(config[key], device=batch.device).view(1, -1, 1, 1) for key in ("mean", "std"))
    if config.get("input_size", (3,))[0] == 1:
        mean, std = mean.mean(dim=1, keepdim=True), std.mean(dim=1, keepdim=True)
        if batch.shape[1] == 3:
            red, green, blue = batch.int().split(1, dim=1)
            batch = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
    return (batch.float().div_(255) - mean).div_(std)
