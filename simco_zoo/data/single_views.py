"""Views of large images on a CPU, one image at a time.

A batch of large images does not fit in a core's cache, so that operations on the whole batch wait for memory, and a
product with full resampling matrices multiplies mostly zeros. Here an image is cropped before it is resampled, and
passes through all operations while it is in the cache. The operations are those of ``augment``; the crop rounds to 8
bits as PIL does, where that of ``augment`` keeps floats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from simco_zoo.data.augment import ViewParameters
from simco_zoo.data.presets import ViewPreset

_LUMA = torch.tensor([0.299, 0.587, 0.114])
_PHASE = torch.tensor([0, 1 / 3, 2 / 3]).view(3, 1, 1)  # hue of red, green and blue, in turns


@dataclass(frozen=True)
class _Drawn:
    """The row of ``ViewParameters`` of one image, as Python numbers."""

    top: float
    left: float
    height: float
    width: float
    flip: bool
    jitter: bool
    factors: list[float]
    hue: float
    order: list[float]
    grayscale: bool
    blur: bool
    sigma: float
    solarize: bool


def make_views(
    images: Iterable[Tensor], parameters: ViewParameters, preset: ViewPreset, size: int, out: Tensor
) -> Tensor:
    """Makes one view of each image.

    Args:
        images: uint8 (3, H, W) each.
        parameters: What was drawn for them.
        preset: What the views are made by.
        size: Side of the views in pixels.
        out: Where to write the normalized views, (N, 3, size, size).

    Returns:
        ``out``.
    """
    columns = [getattr(parameters, field.name).tolist() for field in fields(_Drawn)]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preset.mean, preset.std))
    scale, shift = 1 / std, -mean / std
    for image, view, row in zip(images, out, zip(*columns, strict=True), strict=True):
        view.copy_(_make_view(image, _Drawn(*row), preset, size).mul_(scale).add_(shift))
    return out


def _make_view(image: Tensor, drawn: _Drawn, preset: ViewPreset, size: int) -> Tensor:
    """Returns one view of one image before it is normalized, float32 (3, size, size) in [0, 1]."""
    top, left, height, width = (int(value) for value in (drawn.top, drawn.left, drawn.height, drawn.width))
    crop = image[None, :, top : top + height, left : left + width]
    if crop.shape[2:] != (size, size):
        # the copy costs less than what torch would do to read the rows of a part of an image
        crop = F.interpolate(crop.contiguous(), (size, size), mode=preset.interpolation, antialias=True)
    crop = crop.flip(3) if drawn.flip else crop
    x = crop[0].float().div_(255)
    if drawn.jitter:
        strengths = (*drawn.factors, drawn.hue)
        for index in drawn.order:
            x = _JITTER[int(index)](x, strengths[int(index)])
    if drawn.grayscale:
        x = _to_gray(x).repeat(3, 1, 1)
    if drawn.blur and preset.blur > 0:
        x = _gaussian_blur(x, drawn.sigma)
    if drawn.solarize and preset.solarize > 0:
        x = torch.where(x >= 0.5, 1 - x, x)
    return x


# The operations on an image (3, H, W) change it in place


def _to_gray(x: Tensor) -> Tensor:
    """Returns the luma (1, H, W) of an RGB image."""
    return (_LUMA @ x.flatten(1)).view(1, *x.shape[1:])


def _brightness(x: Tensor, factor: float) -> Tensor:
    return x.mul_(factor).clamp_(0, 1)


def _contrast(x: Tensor, factor: float) -> Tensor:
    mean = (_LUMA @ x.flatten(1).mean(dim=1)).item()
    return x.mul_(factor).add_(mean * (1 - factor)).clamp_(0, 1)


def _saturation(x: Tensor, factor: float) -> Tensor:
    gray = _to_gray(x)
    return x.mul_(factor).add_(gray, alpha=1 - factor).clamp_(0, 1)


def _hue(x: Tensor, shift: float) -> Tensor:
    """Turns the hue by way of HSV, as in ``augment``; the shift is in turns of the color circle."""
    red, green, blue = x
    smallest = x.amin(dim=0)
    chroma = x.amax(dim=0).sub_(smallest)
    turn = (green + blue).sub_(red).sub_(smallest).div_(chroma.clamp(min=1e-12)).add_(1).div_(6)
    turn.copysign_(green - blue).add_(shift + 2.5)
    away = (turn - _PHASE).frac_().sub_(0.5).abs_().clamp_(1 / 6, 1 / 3)
    return torch.addcmul(chroma.mul(2).add_(smallest), away, chroma, value=-6, out=x).clamp_(0, 1)


_JITTER: tuple[Callable[[Tensor, float], Tensor], ...] = (_brightness, _contrast, _saturation, _hue)


def _gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    """Blurs an image as PIL does: a box filter of deviation sigma / sqrt(3), three times; edges are repeated."""
    variance = sigma**2 / 3
    whole = math.floor((math.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    box = np.clip(whole + part + 1 - np.abs(np.arange(-whole - 1, whole + 2)), 0, 1) / (2 * (whole + part) + 1)
    kernel = np.convolve(np.convolve(box, box), box)
    radius = len(kernel) // 2
    weights = kernel[radius:].tolist()  # it is symmetric
    height, width = x.shape[1:]
    padded = F.pad(x[None], (radius,) * 4, mode="replicate")[0]
    rows = padded[:, radius : radius + height] * weights[0]  # (3, H, W + 2 radius)
    for offset, weight in enumerate(weights[1:], start=1):
        rows.add_(padded[:, radius - offset : radius - offset + height], alpha=weight)
        rows.add_(padded[:, radius + offset : radius + offset + height], alpha=weight)
    blurred = rows[:, :, radius : radius + width] * weights[0]
    for offset, weight in enumerate(weights[1:], start=1):
        blurred.add_(rows[:, :, radius - offset : radius - offset + width], alpha=weight)
        blurred.add_(rows[:, :, radius + offset : radius + offset + width], alpha=weight)
    return blurred
