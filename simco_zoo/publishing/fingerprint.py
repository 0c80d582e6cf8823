"""A model's fingerprint: its features and class scores for an image that is made by a formula.

The image passes through the model's own transform, so a wrong stem, normalization or interpolation shows.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from simco_zoo.data.transforms import resolve_transform

TOLERANCE = 1e-3  # relative; features differ by less between machines


def pseudo_image(side: int) -> Image.Image:
    """Makes an RGB image (side x side) of waves, the same everywhere: a formula, no generator."""
    y, x = np.mgrid[0:side, 0:side] / side
    waves = [np.sin(7 * x + 3 * y * (c + 1)) * np.cos(11 * y - 5 * x * (c + 1)) for c in range(3)]
    return Image.fromarray(np.round(127.5 + 127.5 * np.stack(waves, axis=-1)).astype(np.uint8))


def fingerprint(model: Any) -> dict[str, Any]:
    """Computes a model's fingerprint on the CPU in fp32.

    Args:
        model: A model from ``create_model`` or from timm; not changed.

    Returns:
        ``mean``, ``norm`` and the ``first`` eight of the pooled features, the ``side`` of the image and, where the
        model has a classifier, the ``logits`` of the first eight classes.
    """
    size = model.pretrained_cfg["input_size"][-1]
    side = size * 3 // 2  # larger than the input, so that the resize takes part
    channels = model.pretrained_cfg["input_size"][0]
    described: Any = model
    if channels not in (1, 3):  # its channels are red, green and blue in turn
        cfg = model.pretrained_cfg
        described = nn.Module()
        described.pretrained_cfg = {**cfg, "input_size": (3, *cfg["input_size"][1:])}
    image = resolve_transform(described)(pseudo_image(side))
    image = image[torch.arange(channels) % len(image)]
    backbone = copy.deepcopy(getattr(model, "backbone", model)).cpu().float().eval()
    with torch.no_grad():
        maps = backbone.forward_features(image[None])
        values = backbone.forward_head(maps, pre_logits=True)[0].double()
        logits = backbone.forward_head(maps)[0].double() if backbone.num_classes else None
    return {
        "side": side,
        "mean": values.mean().item(),
        "norm": values.norm().item(),
        "first": values[:8].tolist(),
        **({} if logits is None else {"logits": logits[:8].tolist()}),
    }


def compare_fingerprints(expected: dict[str, Any], found: dict[str, Any]) -> str | None:
    """Returns None if two fingerprints agree to 1e-3 of their size, or a sentence that says where not."""
    scale = max(abs(expected["norm"]), 1e-12)
    # folders of earlier versions have no logits
    for name in ("mean", "norm", "first", *(["logits"] if "logits" in expected else [])):
        if name not in found:
            return f"{name} are published, but the model has no classifier"
        if name == "logits":
            scale = max(*map(abs, expected["logits"]), 1e-12)
        pairs = zip(np.atleast_1d(expected[name]), np.atleast_1d(found[name]), strict=True)
        off = max(abs(a - b) for a, b in pairs) / scale
        if not off <= TOLERANCE:
            return (
                f"{name} of the features is off by {off:.2g} of their norm ({found[name]}, published {expected[name]})"
                if name != "logits"
                else f"the logits are off by {off:.2g} of their size ({found[name]}, published {expected[name]})"
            )
    return None
