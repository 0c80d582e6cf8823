"""Small pictures and folders for the tests of data."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image


def picture(seed: int = 0, size: tuple[int, int] = (32, 32)) -> Image.Image:
    """An image of noise, of (width, height) pixels."""
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def pixels(image: Image.Image) -> torch.Tensor:
    """The pixels as load_images gives them."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def write(root: Path, names: Iterable[str], size: tuple[int, int] = (8, 8)) -> Path:
    """Writes a picture under each name, each with another seed."""
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(seed, size).save(path, format=None if path.suffix else "PNG")
    return root


def classes(root: Path, **counts: int) -> Path:
    """Writes class folders with as many pictures each."""
    return write(root, [f"{name}/{i}.png" for name, count in counts.items() for i in range(count)])


def bright_and_dark(root: Path, train: int, test: int, size: tuple[int, int]) -> Path:
    """Writes train/ and test/ with two classes that a network can tell apart, as many pictures of each class."""
    for split, count in (("train", train), ("test", test)):
        for label, name in enumerate(("bright", "dark")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                generator = np.random.default_rng(1000 * label + i + (500 if split == "test" else 0))
                values = generator.integers(0, 128, (size[1], size[0], 3)) + 127 * (1 - label)
                Image.fromarray(values.astype(np.uint8)).save(root / split / name / f"{i}.png")
    return root
