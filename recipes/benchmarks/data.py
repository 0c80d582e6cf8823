"""Views of a batch against torchvision's pipeline, decoding in workers against its ImageFolder."""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from benchmarks.compare import Row, compare, in_turns, judge
from simco_zoo.data import PRESETS, TwoViews, load_images

BICUBIC = transforms.InterpolationMode.BICUBIC


# side in pixels, preset, share of the batch that keeps a call short, aim
VIEWS = ((32, "cifar", 1, 8.0), (96, "cifar", 4, 4.0), (224, "imagenet", 16, 2.0))


def benchmark_views(args: argparse.Namespace) -> Iterator[Row]:
    """Two views of a batch against torchvision's pipeline for each image, with the cost of an image at each side."""
    for side, name, share, aim in VIEWS:
        images = torch.randint(0, 256, (max(1, args.batch_size // share), 3, side, side), dtype=torch.uint8)
        pils = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        pipeline, views = torchvision_views(name, side), TwoViews(name, size=side)
        generator = torch.Generator().manual_seed(0)
        pairs = in_turns(
            partial(views, images, generator=generator),
            lambda pils=pils, pipeline=pipeline: [torch.stack([pipeline(pil) for pil in pils]) for _ in range(2)],
            args.runs,
        )
        cost, theirs = (1000 * statistics.median(seconds) / len(images) for seconds in zip(*pairs, strict=True))
        what = (
            f"two views of {len(images)} images of {side} px ({name}), {args.threads} thread(s), {cost:.3g} ms an "
            f"image where torchvision takes {theirs:.3g}: images/s / torchvision's"
        )
        yield judge(what, [baseline / ours for ours, baseline in pairs], aim, at_least=True)


def torchvision_views(name: str, side: int) -> Callable[[Image.Image], torch.Tensor]:
    """Returns the same random view as one image's pipeline of torchvision."""
    preset = PRESETS[name]
    mode = BICUBIC if preset.interpolation == "bicubic" else transforms.InterpolationMode.BILINEAR
    # Pillow's blur, as in MoCo's code: torchvision's own would take seven times as long on such an image
    blur = transforms.RandomApply([transforms.Lambda(partial(_blur, limits=preset.blur_sigma))], p=preset.blur)
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(side, preset.scale, interpolation=mode),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            *([blur] if preset.blur else []),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(preset.mean, preset.std),
        ]
    )


def _blur(image: Image.Image, limits: tuple[float, float]) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(random.uniform(*limits)))


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
