"""Views of a batch against torchvision's pipeline, decoding in workers against its ImageFolder."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from benchmarks.compare import Row, compare
from simco_zoo.data import PRESETS, TwoViews, load_images

BICUBIC = transforms.InterpolationMode.BICUBIC


def benchmark_views(args: argparse.Namespace) -> Iterator[Row]:
    preset = PRESETS["cifar"]
    images = torch.randint(0, 256, (args.batch_size, 3, 32, 32), dtype=torch.uint8)
    pils = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    pipeline = transforms.Compose(
        [
            transforms.RandomResizedCrop(32, preset.scale, interpolation=BICUBIC),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(preset.mean, preset.std),
        ]
    )
    views, generator = TwoViews("cifar"), torch.Generator().manual_seed(0)
    what = f"two views of {args.batch_size} images of 32 px, {args.threads} thread(s): images/s / torchvision's"
    yield compare(
        what,
        lambda: views(images, generator=generator),
        lambda: [torch.stack([pipeline(pil) for pil in pils]) for _ in range(2)],
        args.runs,
        4.0,
        inverse=True,
    )


def benchmark_loader(args: argparse.Namespace) -> Iterator[Row]:
    """Photographs of 320 x 240 px to uint8 batches of 64 px: decoded, resized, cropped in worker processes."""
    count = 4 * args.batch_size
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_photographs(folder / "class", count)
        images = load_images(folder, image_size=64, in_memory=False)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))

        def ours() -> None:
            for _ in images.batches(order.split(args.batch_size), num_workers=args.workers):
                pass

        steps = [transforms.Resize(64, BICUBIC), transforms.CenterCrop(64), transforms.PILToTensor()]
        plain = ImageFolder(str(folder), transforms.Compose(steps))
        batches = [batch.tolist() for batch in order.split(args.batch_size)]

        def torchvisions() -> None:
            for _ in DataLoader(plain, batch_sampler=batches, num_workers=args.workers):
                pass

        what = f"{count} JPEGs to batches of 64 px, {args.workers} worker(s): images/s / ImageFolder + DataLoader's"
        yield compare(what, ours, torchvisions, args.runs, 0.95, inverse=True)


def write_photographs(folder: Path, count: int) -> None:
    """Writes JPEGs as smooth as photographs are: noise costs a decoder more."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for index in range(count):
        small = Image.fromarray(generator.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        small.resize((320, 240), Image.Resampling.BICUBIC).save(folder / f"{index:05}.jpg", quality=90)
