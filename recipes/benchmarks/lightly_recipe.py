"""lightly's CIFAR-10 recipe for SimCLR, rebuilt from its own parts.

The settings are those of its ``docs/source/getting_started/benchmarks/cifar10_benchmark.py``: its transform without
blur, its ResNet-18, head and loss, SGD, fp32, one forward per view. What is faster here than there: the images are in
memory and need no decoding, the workers stay, and Lightning takes no part.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


class _Images(Dataset):
    """What a ``LightlyDataset`` gives: the views, the target, the file's name."""

    def __init__(self, images: Tensor, transform: Any) -> None:
        self.arrays = np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
        self.transform = transform

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, index: int) -> tuple[list[Tensor], int, str]:
        return self.transform(Image.fromarray(self.arrays[index])), 0, ""


def cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


WORKERS = 8  # of its script
PREFETCHED = 2  # batches per worker that torch's DataLoader makes ahead


def lightly_steps(
    images: Tensor, batch_size: int, device: torch.device, width: float, workers: int
) -> Iterator[Tensor]:
    """Trains on uint8 images (N, 3, S, S); one step for each loss that is asked for.

    Args:
        images: uint8 images (N, 3, S, S).
        batch_size: Images per step.
        device: Device to train on.
        width: Width of the ResNet-18; 1 in lightly's recipe.
        workers: Processes that make the views.

    Raises:
        ImportError: If lightly is not installed.
    """
    from lightly.loss import NTXentLoss
    from lightly.models import ResNetGenerator
    from lightly.models.modules.heads import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    transform = SimCLRTransform(input_size=images.shape[-1], cj_strength=0.5, gaussian_blur=0.0)
    loader = DataLoader(
        _Images(images, transform),
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=True,
        prefetch_factor=PREFETCHED,
    )
    resnet = ResNetGenerator("resnet-18", width=width)
    backbone = nn.Sequential(*list(resnet.children())[:-1], nn.AdaptiveAvgPool2d(1))
    features = resnet.linear.in_features
    model = nn.Sequential(backbone, nn.Flatten(), SimCLRProjectionHead(features, features, 128)).to(device).train()
    criterion = NTXentLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=6e-2 * batch_size / 128, momentum=0.9, weight_decay=5e-4)
    while True:
        for (view0, view1), _, _ in loader:
            loss = criterion(model(view0.to(device)), model(view1.to(device)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield loss.detach()
