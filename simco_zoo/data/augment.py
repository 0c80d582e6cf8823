"""The operations of a random view, on batches: crop, color, blur; each image with parameters of its own.

The crop is a product with two resampling matrices, one per axis, so that a batch costs two matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class ViewParameters:
    """What was drawn for one view of N images; all tensors have N rows.

    Attributes:
        top: Row of the crop's upper edge.
        left: Column of its left edge.
        height: Height of the crop in pixels.
        width: Width of the crop in pixels.
        flip: Whether the view is mirrored.
        jitter: Whether the colors are jittered.
        factors: Brightness, contrast and saturation factors, (N, 3).
        hue: Hue shift in turns.
        order: Order of the four color operations, a permutation of 0-3 per row, (N, 4).
        grayscale: Whether the view becomes gray.
        blur: Whether it is blurred.
        sigma: Deviation of the blur in pixels.
        solarize: Whether it is solarized.
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor
    jitter: Tensor
    factors: Tensor
    hue: Tensor
    order: Tensor
    grayscale: Tensor
    blur: Tensor
    sigma: Tensor
    solarize: Tensor

    def __len__(self) -> int:
        return len(self.top)

    def __getitem__(self, rows: slice | Tensor) -> ViewParameters:
        """Returns the parameters of some images, e.g. of one process's share of a global batch."""
        return replace(self, **{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def to(self, device: torch.device) -> ViewParameters:
        """Returns the parameters on another device, in one copy for which nobody waits."""
        if device == self.top.device:
            return self
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        columns = [value.float().reshape(len(self), -1) for value in values.values()]
        packed = torch.cat(columns, dim=1)
        packed = (packed.pin_memory() if device.type == "cuda" else packed).to(device, non_blocking=True)
        moved = packed.split([column.shape[1] for column in columns], dim=1)
        return ViewParameters(
            **{
                name: x.reshape(value.shape).to(value.dtype)
                for (name, value), x in zip(values.items(), moved, strict=True)
            }
        )


def on_chosen_rows(chosen: Tensor, x: Tensor, operation: Callable[..., Tensor], *parameters: Tensor) -> Tensor:
    """Applies an operation to the chosen images, with their rows of its parameters.

    On a CPU only they are computed. On an accelerator all are: to know which were chosen would wait for the device.
    """
    if x.device.type == "cpu":
        rows = torch.nonzero(chosen).squeeze(1)
        if len(rows):
            x.index_copy_(0, rows, operation(x.index_select(0, rows), *(parameter[rows] for parameter in parameters)))
        return x
    return torch.where(chosen.view(-1, 1, 1, 1), operation(x, *parameters), x)


# The crop


def _cubic(x: Tensor) -> Tensor:
    """The bicubic kernel with a = -0.5, as PIL has it; x >= 0.

    On [1, 2] it is (1 - x) (2 - x)^2 / 2; on [0, 1] that polynomial plus (1 - x)^2 (2x - 1); beyond, 0.
    """
    outer = (2 - x).clamp_(min=0)
    inner = (1 - x).clamp_(min=0)
    return (1 - outer).mul_(outer).mul_(outer).mul_(-0.5).add_(inner * inner * (1 - 2 * inner))


def _triangle(x: Tensor) -> Tensor:
    return (1 - x).clamp_(min=0)


KERNELS: dict[str, Callable[[Tensor], Tensor]] = {"bicubic": _cubic, "bilinear": _triangle}


def resampling_matrix(
    start: Tensor, length: Tensor, size: int, pixels: int, interpolation: str, flip: Tensor | None = None
) -> Tensor:
    """Returns the matrices that resample crops of one axis to a common size, as PIL does.

    The kernel widens where the crop shrinks (antialiasing), and its weights are cut at the crop's edges.

    Args:
        start: First pixel of each crop (N,).
        length: Its length in pixels (N,).
        size: Pixels of the result.
        pixels: Pixels of the whole axis.
        interpolation: "bicubic" or "bilinear".
        flip: Whether the result is mirrored (N,), or None.

    Returns:
        Matrices (N, size, pixels) whose rows sum to 1.
    """
    scale = (length / size).unsqueeze(1)
    position = torch.arange(size, device=start.device, dtype=torch.float32).expand(len(start), size)
    if flip is not None:
        position = torch.where(flip.unsqueeze(1), size - 1 - position, position)
    center = (position + 0.5) * scale
    pixel = torch.arange(pixels, device=start.device, dtype=torch.float32) - start.unsqueeze(1)
    distance = (pixel.unsqueeze(1) + 0.5 - center.unsqueeze(2)).div_(scale.clamp(min=1).unsqueeze(2)).abs_()
    inside = (pixel >= 0) & (pixel < length.unsqueeze(1))
    weights = KERNELS[interpolation](distance).mul_(inside.unsqueeze(1))
    return weights.div_(weights.sum(dim=2, keepdim=True))


def crop_resize(x: Tensor, parameters: ViewParameters, size: int, interpolation: str) -> Tensor:
    """Crops, flips and resizes images (N, 3, H, W) with values from 0 to 255 to (N, 3, size, size)."""
    p = parameters
    rows = resampling_matrix(p.top, p.height, size, x.shape[2], interpolation)
    columns = resampling_matrix(p.left, p.width, size, x.shape[3], interpolation, p.flip)
    # PIL keeps 8 bits between the two passes, so what overshoots is cut there, too
    x = torch.bmm(x.flatten(1, 2), columns.transpose(1, 2)).clamp_(0, 255)
    return torch.matmul(rows.unsqueeze(1), x.unflatten(1, (3, -1))).clamp_(0, 255)


# Colors


def to_gray(x: Tensor) -> Tensor:
    """Returns the luma (N, 1, H, W) of RGB images, with PIL's weights."""
    red, green, blue = x.unbind(dim=1)
    return (0.299 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114).unsqueeze(1)


def color_jitter(x: Tensor, parameters: ViewParameters) -> Tensor:
    """Jitters brightness, contrast, saturation and hue of the chosen images, each in its own random order."""
    p = parameters
    strengths = (*p.factors.unbind(dim=1), p.hue)
    for position in range(4):
        for index, operation in enumerate((_brightness, _contrast, _saturation, _hue)):
            x = on_chosen_rows(p.jitter & (p.order[:, position] == index), x, operation, strengths[index])
    return x


def _brightness(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    mean = to_gray(x).mean(dim=(2, 3), keepdim=True)
    return torch.lerp(mean, x, factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def _saturation(x: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(to_gray(x), x, factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def _hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turns the hue of RGB images by way of HSV; the shift is in turns of the color circle."""
    red, green, blue = x.unbind(dim=1)
    smallest = x.amin(dim=1)
    chroma = x.amax(dim=1) - smallest
    # With channels scaled to [0, 1] the hue is 1 - red + green + blue sixths of a turn away from red: the middle
    # channel rises by 1 in the first sixth, red falls by 1 in the second, and the lowest rises by 1 in the third.
    # A gray pixel has chroma 0, so that its hue does not matter.
    turn = (green + blue).sub_(red).sub_(smallest).div_(chroma.clamp(min=1e-12)).add_(1).div_(6)
    turn.copysign_(green - blue).add_(shift.view(-1, 1, 1) + 2)  # positive whatever the shift
    # a channel is largest within a sixth of a turn of its own hue and smallest beyond a third; between, it is linear
    phase = torch.arange(3, device=x.device).view(1, 3, 1, 1) / -3 + 0.5
    away = (turn.unsqueeze(1) + phase).frac_().sub_(0.5).abs_().clamp_(1 / 6, 1 / 3)
    return torch.addcmul((smallest + 2 * chroma).unsqueeze(1), away, chroma.unsqueeze(1), value=-6).clamp_(0, 1)


def gaussian_blur(x: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Blurs images (N, 3, H, W) as PIL does, each with its own deviation sigma (N,) in pixels; edges are repeated.

    PIL's Gaussian is a box filter of that deviation, applied three times; ``largest`` bounds sigma.
    """
    variance = sigma.unsqueeze(1) ** 2 / 3  # of each box, which has `whole` pixels to each side and a part of one more
    whole = (((12 * variance + 1).sqrt() - 1) / 2).floor()
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    radius = 3 * math.floor((math.sqrt(4 * largest**2 + 1) + 1) / 2)
    offsets = torch.arange(-radius, radius + 1, device=x.device).abs()
    box = (whole + part + 1 - offsets).clamp_(0, 1).div_(2 * (whole + part) + 1)
    kernel = box.unsqueeze(0)
    for _ in range(2):
        kernel = F.conv1d(kernel, box.unsqueeze(1), padding=radius, groups=len(x))
    n, c, h, w = x.shape
    weights = kernel.squeeze(0).repeat_interleave(c, dim=0)
    padded = F.pad(x, (radius,) * 4, mode="replicate").reshape(1, n * c, h + 2 * radius, w + 2 * radius)
    blurred = F.conv2d(padded, weights.view(n * c, 1, -1, 1), groups=n * c)
    return F.conv2d(blurred, weights.view(n * c, 1, 1, -1), groups=n * c).view(n, c, h, w)
