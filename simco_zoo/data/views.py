"""Random views of a batch of images, made at once on the batch's own device.

Every image gets parameters of its own, drawn from an explicit generator; the distribution is that of torchvision's
transforms.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from simco_zoo.data.augment import (
    KERNELS,
    ViewParameters,
    color_jitter,
    crop_resize,
    gaussian_blur,
    on_chosen_rows,
    to_gray,
)
from simco_zoo.data.presets import PRESETS, ViewPreset
from simco_zoo.data.rectangles import Rectangles
from simco_zoo.data.single_views import make_views

_TRIES = 10  # of a crop that fits, as in torchvision
_LARGE = 64  # px; from this side on a CPU makes views faster one image at a time


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

    Example:
        >>> batch = torch.zeros(4, 3, 40, 32, dtype=torch.uint8)  # on any device
        >>> view1, view2 = TwoViews("cifar", size=32)(batch, generator=torch.Generator().manual_seed(0))
        >>> view1.shape, view1.dtype
        (torch.Size([4, 3, 32, 32]), torch.float32)
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
        if preset.interpolation not in KERNELS:
            raise ValueError(f"interpolation is {preset.interpolation!r}, but has to be one of {', '.join(KERNELS)}.")
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
        self._compiled = compile_mode is not None
        self._make = self._views if compile_mode is None else torch.compile(self._views, mode=compile_mode)

    def __call__(
        self, batch: Tensor | Rectangles, generator: torch.Generator | None = None, *, share: tuple[int, int] = (0, 1)
    ) -> tuple[Tensor, ...]:
        """Makes the views.

        Args:
            batch: Images, uint8 (N, 3, H, W), on any device; or images of different sizes.
                The crop is taken from all of an image.
            generator: Source of the randomness, on the CPU or the batch's device; None: torch's default one.
            share: (i, n): the batch is the i-th of n equal shares of a larger one, whose views are drawn together, so
                that they depend on an image's place in the larger batch and not on how it is shared out.

        Returns:
            ``count`` tensors (N, 3, size, size), normalized with the preset's mean and std.

        Raises:
            ValueError: If the batch is not uint8 of that shape.
        """
        pixels = self._check(batch)
        n = len(pixels)
        height: int | Tensor = pixels.shape[2]
        width: int | Tensor = pixels.shape[3]
        if isinstance(batch, Rectangles):  # what is drawn for the other shares is not looked at
            height, width = batch.sizes.repeat(share[1], 1).unbind(dim=1)
        own = slice(share[0] * n, (share[0] + 1) * n)
        drawn = [self.draw(share[1] * n, height, width, generator)[own] for _ in range(self.count)]
        if self._one_at_a_time(pixels):
            return tuple(self._single_views(batch, parameters) for parameters in drawn)
        return tuple(self._make(self._pixels(pixels), *(parameters.to(pixels.device) for parameters in drawn)))

    def draw(
        self, n: int, height: int | Tensor, width: int | Tensor, generator: torch.Generator | None = None
    ) -> ViewParameters:
        """Draws the parameters of one view of n images (height x width), on the generator's device.

        Height and width may be tensors (n,), a value for each image.

        The images' content plays no part, so a process can draw for a global batch and take its own rows.
        """
        preset, device = self.preset, generator.device if generator is not None else torch.device("cpu")

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return torch.rand(n, *shape, generator=generator, device=device) * (high - low) + low

        # torchvision's RandomResizedCrop: of ten tries of area and ratio the first that fits, and if none does ...
        limits = [torch.as_tensor(side, dtype=torch.float64).view(-1, 1).expand(n, 1) for side in (height, width)]
        # ... the largest central crop of an allowed ratio, in exact numbers
        limited = (limits[1] / limits[0]).clamp(*preset.ratio)
        whole_width = torch.minimum(limits[1], (limits[0] * limited).round()).squeeze(1).float().to(device)
        whole_height = torch.minimum(limits[0], (limits[1] / limited).round()).squeeze(1).float().to(device)
        tall, wide = (side.float().to(device) for side in limits)  # (n, 1)
        area = tall * wide * uniform(*preset.scale, _TRIES)
        ratio = torch.exp(uniform(math.log(preset.ratio[0]), math.log(preset.ratio[1]), _TRIES))
        widths, heights = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (widths >= 1) & (widths <= wide) & (heights >= 1) & (heights <= tall)
        first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
        any_fits = fits.any(dim=1)
        crop_width = torch.where(any_fits, widths.gather(1, first).squeeze(1), whole_width)
        crop_height = torch.where(any_fits, heights.gather(1, first).squeeze(1), whole_height)
        tall, wide = tall.squeeze(1), wide.squeeze(1)
        top = (uniform(0, 1) * (tall - crop_height + 1)).floor()
        left = (uniform(0, 1) * (wide - crop_width + 1)).floor()
        flip, jitter, spread = uniform(0, 1) < preset.flip, uniform(0, 1) < preset.jitter, uniform(-1, 1, 3)
        strengths = (preset.brightness, preset.contrast, preset.saturation)
        return ViewParameters(
            top=torch.where(any_fits, top, ((tall - whole_height) / 2).floor()),
            left=torch.where(any_fits, left, ((wide - whole_width) / 2).floor()),
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

    def apply(self, batch: Tensor | Rectangles, parameters: ViewParameters) -> Tensor:
        """Makes the view that the parameters describe.

        Args:
            batch: Images, uint8 (N, 3, H, W), or images of different sizes.
            parameters: What was drawn for them.

        Returns:
            The normalized view (N, 3, size, size).
        """
        pixels = self._check(batch)
        if len(parameters) != len(pixels):
            raise ValueError(f"there are {len(pixels)} images, but parameters of {len(parameters)}.")
        if self._one_at_a_time(pixels):
            return self._single_views(batch, parameters)
        return self._view(self._pixels(pixels), parameters.to(pixels.device))

    def _one_at_a_time(self, pixels: Tensor) -> bool:
        return pixels.device.type == "cpu" and (self.size or pixels.shape[2]) >= _LARGE and not self._compiled

    def _single_views(self, batch: Tensor | Rectangles, parameters: ViewParameters) -> Tensor:
        """Makes a view of each image, one after the other, on the CPU."""
        size = self.size or (batch.pixels if isinstance(batch, Rectangles) else batch).shape[2]
        out = torch.empty(len(batch), 3, size, size, dtype=self.dtype, memory_format=self.memory_format)
        return make_views(batch, parameters.to(out.device), self.preset, size, out)

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
            x = on_chosen_rows(p.grayscale, x, lambda rows: to_gray(rows).expand(-1, 3, -1, -1))
            if preset.blur > 0:
                x = on_chosen_rows(p.blur, x, partial(gaussian_blur, largest=preset.blur_sigma[1]), p.sigma)
            if preset.solarize > 0:
                x = on_chosen_rows(p.solarize, x, lambda rows: torch.where(rows >= 0.5, 1 - rows, rows))
            return x.mul_(self._scale).add_(self._shift).to(self.dtype, memory_format=self.memory_format)

    @staticmethod
    def _check(batch: Tensor | Rectangles) -> Tensor:
        """Returns the pixels of a batch, uint8 (N, 3, H, W)."""
        batch = batch.pixels if isinstance(batch, Rectangles) else batch
        if batch.dtype != torch.uint8 or batch.ndim != 4 or batch.shape[1] != 3 or batch.numel() == 0:
            raise ValueError(
                f"the batch is {batch.dtype} of shape {tuple(batch.shape)}, but views are made of uint8 (N, 3, H, W); "
                "simco_zoo.data.load_images gives such images."
            )
        return batch
