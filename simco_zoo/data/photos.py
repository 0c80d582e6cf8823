"""The built-in data set: patches of the public-domain photographs that come with scikit-image.

Sixteen photographs, those that scikit-image carries in its package with stated terms (CC0, public domain, or no known
copyright restrictions; its stereo pair, moon and page state none and are left out). The label of a patch is the
photograph that it was cut from. Training patches come from the left 60 % of each photograph and test patches from the
right 40 %, so that no pixel is in both. Nothing is downloaded or copied: the patches are cut when asked for.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# name in skimage.data: terms as scikit-image states them
PHOTOGRAPHS = {
    "astronaut": "public domain (NASA)",
    "brick": "CC0",
    "camera": "CC0",
    "cell": "CC0",
    "chelsea": "CC0",
    "clock": "public domain",
    "coffee": "CC0",
    "coins": "no known copyright restrictions",
    "grass": "CC0",
    "gravel": "CC0",
    "hubble_deep_field": "public domain (NASA)",
    "immunohistochemistry": "no known copyright restrictions",
    "microaneurysms": "CC0",
    "retina": "CC0",
    "rocket": "public domain (SpaceX)",
    "text": "public domain",
}
PATCH = 32  # pixels
PATCHES = {"train": 250, "test": 100}  # per photograph
TRAIN_SHARE = 0.6  # of a photograph's width


def photos(split: str, seed: int = 0) -> tuple[Tensor, Tensor, list[str]]:
    """Cuts the patches of one split.

    Args:
        split: "train" (4,000 patches) or "test" (1,600).
        seed: Seed of the places where the patches are cut.

    Returns:
        uint8 images (N, 3, 32, 32), int64 labels (N,), and the photographs' names.

    Raises:
        ValueError: If the split is another.
        ImportError: If scikit-image is not installed.
    """
    if split not in PATCHES:
        raise ValueError(f"photos has no split {split!r}; it has {', '.join(PATCHES)}.")
    try:
        import skimage.data
    except ImportError as error:
        raise ImportError(
            'the built-in photographs come with scikit-image, which is not installed: pip install "simco-zoo[demo]".'
        ) from error

    generator = torch.Generator().manual_seed(2 * seed + (split == "test"))
    patches = []
    for name in PHOTOGRAPHS:
        pixels = np.asarray(getattr(skimage.data, name)())
        if pixels.ndim == 2:
            pixels = np.repeat(pixels[:, :, None], 3, axis=2)
        photograph = torch.from_numpy(np.ascontiguousarray(pixels[:, :, :3])).permute(2, 0, 1)
        edge = int(photograph.shape[2] * TRAIN_SHARE)
        half = photograph[:, :, :edge] if split == "train" else photograph[:, :, edge:]
        tops = torch.randint(half.shape[1] - PATCH + 1, (PATCHES[split],), generator=generator)
        lefts = torch.randint(half.shape[2] - PATCH + 1, (PATCHES[split],), generator=generator)
        for top, left in zip(tops.tolist(), lefts.tolist(), strict=True):
            patches.append(half[:, top : top + PATCH, left : left + PATCH])
    labels = torch.arange(len(PHOTOGRAPHS)).repeat_interleave(PATCHES[split])
    return torch.stack(patches).contiguous(), labels, list(PHOTOGRAPHS)
