"""Random views of a batch of images, made at once on the batch's own device.

Every image gets parameters of its own, drawn from an explicit generator; the distribution is that of torchvision's
transforms. The crop is a product with two resampling matrices, one per axis, so that a batch costs two matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from simco_zoo.data.presets import PRESETS, ViewPreset

_TRIES = 10  # of a crop that fits, as in torchvision


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


class TwoViews:
    """Makes random views of a batch: two, unless ``count`` asks for more.

    Args:
        preset: A name in ``PRESETS`` ("cifar", "imagenet") or a ``ViewPreset``.
        size: Side of the views in pixels; None: the preset's, or else that of the images.
        count: Number of views of each image, at least 2.
        interpolation: "bicubic" or "bilinear" instead of the preset's.
        dtype: Type of the views.
        channels_last: Whether the views are in that memory format.
        compile_mode: Mode of torch.compile for the operations on the images, e.g. "default"; None: not compiled.

    Raises:
        ValueError: If the preset, the interpolation or the size is unknown or out of range.
    """

    def __init__(
        self,
        preset: str | ViewPreset = "cifar",
        size: int | None = None,
        *,
        count: int = 2,
        interpolation: str | None = None,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        compile_mode: str | None = None,
    ) -> None:
        if isinstance(preset, str):
            if preset not in PRESETS:
                raise ValueError(f"there is no preset {preset!r}; there are {', '.join(PRESETS)}.")
            preset = PRESETS[preset]
        if interpolation is not None:
            preset = replace(preset, interpolation=interpolation)
        if preset.interpolation not in _KERNELS:
            raise ValueError(f"interpolation is {preset.interpolation!r}, but has to be one of {', '.join(_KERNELS)}.")
        self.size = size if size is not None else preset.size
        if self.size is not None and self.size < 1:
            raise ValueError(f"size is {self.size}, but a view has at least 1 pixel.")
        if count < 2:
            raise ValueError(f"count is {count}, but contrastive methods compare at least 2 views of an image.")
        self.count = count
        self.preset = preset
        self.dtype = dtype
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (preset.mean, preset.std))
        self._scale, self._shift = 1 / std, -mean / std
        self._make = self._views if compile_mode is None else torch.compile(self._views, mode=compile_mode)

    def __call__(
        self, batch: Tensor, generator: torch.Generator | None = None, *, share: tuple[int, int] = (0, 1)
    ) -> tuple[Tensor, ...]:
        """Makes the views.

        Args:
            batch: Images, uint8 (N, 3, H, W), on any device.
            generator: Source of the randomness, on the CPU or the batch's device; None: torch's default one.
            share: (i, n): the batch is the i-th of n equal shares of a larger one, whose views are drawn together, so
                that they depend on an image's place in the larger batch and not on how it is shared out.

        Returns:
            ``count`` tensors (N, 3, size, size), normalized with the preset's mean and std.

        Raises:
            ValueError: If the batch is not uint8 of that shape.
        """
        n, height, width = self._check(batch)
        own = slice(share[0] * n, (share[0] + 1) * n)
        drawn = [self.draw(share[1] * n, height, width, generator)[own] for _ in range(self.count)]
        return tuple(self._make(self._pixels(batch), *(parameters.to(batch.device) for parameters in drawn)))

    def draw(self, n: int, height: int, width: int, generator: torch.Generator | None = None) -> ViewParameters:
        """Draws the parameters of one view of n images (height x width), on the generator's device.

        The images' content plays no part, so a process can draw for a global batch and take its own rows.
        """
        preset, device = self.preset, generator.device if generator is not None else torch.device("cpu")

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return torch.rand(n, *shape, generator=generator, device=device) * (high - low) + low

        # torchvision's RandomResizedCrop: up to ten tries of area and aspect ratio, the first that fits is taken ...
        area = height * width * uniform(*preset.scale, _TRIES)
        ratio = torch.exp(uniform(math.log(preset.ratio[0]), math.log(preset.ratio[1]), _TRIES))
        widths, heights = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
        # ... and if none does, the largest central crop of an allowed ratio
        limited = min(max(width / height, preset.ratio[0]), preset.ratio[1])
        whole_width = min(width, round(height * limited))
        whole_height = min(height, round(width / limited))
        first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
        any_fits = fits.any(dim=1)
        crop_width = torch.where(any_fits, widths.gather(1, first).squeeze(1), whole_width)
        crop_height = torch.where(any_fits, heights.gather(1, first).squeeze(1), whole_height)
        top = (uniform(0, 1) * (height - crop_height + 1)).floor()
        left = (uniform(0, 1) * (width - crop_width + 1)).floor()
        flip, jitter, spread = uniform(0, 1) < preset.flip, uniform(0, 1) < preset.jitter, uniform(-1, 1, 3)
        strengths = (preset.brightness, preset.contrast, preset.saturation)
        return ViewParameters(
            top=torch.where(any_fits, top, (height - whole_height) // 2),
            left=torch.where(any_fits, left, (width - whole_width) // 2),
            height=crop_height,
            width=crop_width,
            flip=flip,
            jitter=jitter,
            factors=torch.stack([1 + strength * spread[:, i] for i, strength in enumerate(strengths)], dim=1),
            hue=uniform(-preset.hue, preset.hue),
            order=uniform(0, 1, 4).argsort(dim=1),
            grayscale=uniform(0, 1) < preset.grayscale,
            blur=uniform(0, 1) < preset.blur,
            sigma=uniform(*preset.blur_sigma),
            solarize=uniform(0, 1) < preset.solarize,
        )

    def apply(self, batch: Tensor, parameters: ViewParameters) -> Tensor:
        """Makes the view that the parameters describe.

        Args:
            batch: Images, uint8 (N, 3, H, W).
            parameters: What was drawn for them.

        Returns:
            The normalized view (N, 3, size, size).
        """
        if len(parameters) != self._check(batch)[0]:
            raise ValueError(f"there are {len(batch)} images, but parameters of {len(parameters)}.")
        return self._view(self._pixels(batch), parameters.to(batch.device))

    def _pixels(self, batch: Tensor) -> Tensor:
        """Returns the images as floats from 0 to 255, when the constants are on their device, too."""
        if self._scale.device != batch.device:
            self._scale, self._shift = self._scale.to(batch.device), self._shift.to(batch.device)
        return batch.float()

    def _views(self, pixels: Tensor, *parameters: ViewParameters) -> list[Tensor]:
        return [self._view(pixels, drawn) for drawn in parameters]

    def _view(self, pixels: Tensor, p: ViewParameters) -> Tensor:
        """Makes one view of what ``_pixels`` returned, with parameters on the same device."""
        preset = self.preset
        with torch.autocast(pixels.device.type, enabled=False):  # the views are as exact in a run of half precision
            x = crop_resize(pixels, p, self.size or pixels.shape[2], preset.interpolation).div_(255)
            x = color_jitter(x, p)
            x = _on_rows(p.grayscale, x, lambda rows: to_gray(rows).expand(-1, 3, -1, -1))
            if preset.blur > 0:
                x = _on_rows(p.blur, x, partial(gaussian_blur, largest=preset.blur_sigma[1]), p.sigma)
            if preset.solarize > 0:
                x = _on_rows(p.solarize, x, lambda rows: torch.where(rows >= 0.5, 1 - rows, rows))
            return x.mul_(self._scale).add_(self._shift).to(self.dtype, memory_format=self.memory_format)

    @staticmethod
    def _check(batch: Tensor) -> tuple[int, int, int]:
        if batch.dtype != torch.uint8 or batch.ndim != 4 or batch.shape[1] != 3 or len(batch) == 0:
            raise ValueError(
                f"the batch is {batch.dtype} of shape {tuple(batch.shape)}, but views are made of uint8 (N, 3, H, W); "
                "simco_zoo.data.load_images gives such images."
            )
        return len(batch), batch.shape[2], batch.shape[3]


def _on_rows(chosen: Tensor, x: Tensor, operation: Callable[..., Tensor], *parameters: Tensor) -> Tensor:
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


_KERNELS: dict[str, Callable[[Tensor], Tensor]] = {"bicubic": _cubic, "bilinear": _triangle}


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
    weights = _KERNELS[interpolation](distance).mul_(inside.unsqueeze(1))
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
            x = _on_rows(p.jitter & (p.order[:, position] == index), x, operation, strengths[index])
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
    largest, smallest = x.amax(dim=1), x.amin(dim=1)
    chroma = largest - smallest
    sixth = 1 / (6 * torch.where(chroma == 0, 1.0, chroma))
    hue = torch.where(
        largest == red,
        (green - blue) * sixth,
        torch.where(largest == green, (blue - red) * sixth + 1 / 3, (red - green) * sixth + 2 / 3),
    )
    hue += shift.view(-1, 1, 1) + 2  # turns, positive whatever the shift
    # a channel is largest within a sixth of a turn of its own hue and smallest beyond a third; between, it is linear
    phase = torch.arange(3, device=x.device).view(1, 3, 1, 1) / -3 + 0.5
    away = (hue.unsqueeze(1) + phase).frac_().sub_(0.5).abs_().clamp_(1 / 6, 1 / 3)
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
