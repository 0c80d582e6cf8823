"""Images of different sizes, as a batch and as a set from which random crops are taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from simco_zoo.data.rows import Subset


@dataclass(frozen=True)
class Rectangles:
    """A batch of images of different sizes.

    Attributes:
        pixels: uint8 (N, 3, H, W); each image lies in the upper left corner, the rest is 0.
        sizes: Height and width of each image, int64 (N, 2), on the CPU.
    """

    pixels: Tensor
    sizes: Tensor

    @classmethod
    def from_images(cls, images: Sequence[Tensor]) -> Rectangles:
        """Lays out images, uint8 (3, h, w) each.

        Example:
            >>> batch = Rectangles.from_images([torch.zeros(3, 32, 48), torch.zeros(3, 64, 32)])
            >>> tuple(batch.pixels.shape), batch.sizes.tolist()
            ((2, 3, 64, 48), [[32, 48], [64, 32]])
        """
        sizes = torch.tensor([image.shape[1:] for image in images])
        height, width = sizes.amax(dim=0).tolist()
        pixels = torch.zeros(len(images), 3, height, width, dtype=torch.uint8)
        for place, image in zip(pixels, images, strict=True):
            place[:, : image.shape[1], : image.shape[2]] = image
        return cls(pixels, sizes)

    def __len__(self) -> int:
        return len(self.pixels)

    def __iter__(self) -> Iterator[Tensor]:
        """Yields the images, (3, h, w) each."""
        for image, (height, width) in zip(self.pixels, self.sizes.tolist(), strict=True):
            yield image[:, :height, :width]

    def chunk(self, parts: int) -> list[Rectangles]:
        """Divides the batch as ``Tensor.chunk`` does."""
        return [Rectangles(*part) for part in zip(self.pixels.chunk(parts), self.sizes.chunk(parts), strict=True)]

    def to(self, device: torch.device, non_blocking: bool = False) -> Rectangles:
        """Returns the batch with its pixels on a device."""
        return replace(self, pixels=self.pixels.to(device, non_blocking=non_blocking))


@dataclass(frozen=True)
class WholeImages:
    """Images that were resized and not cropped.

    Attributes:
        side: Their shorter side in pixels.
        reader: Returns the image of a row, uint8 (3, h, w), or says why it cannot be read.
        in_memory: Whether they are decoded.
    """

    side: int
    reader: Callable[[int], Tensor | str]
    in_memory: bool = False

    def subset(self, rows: Sequence[int]) -> WholeImages:
        """Returns some of the images, in the order given."""
        return replace(self, reader=Subset(self.reader, rows))


@dataclass
class InMemory:
    """Returns the i-th of some decoded images."""

    images: list[Tensor]

    def __call__(self, index: int) -> Tensor:
        return self.images[index]
