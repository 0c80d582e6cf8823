"""Helpers for tests that change published folders: with the hashes brought up to date (honest), or not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import simco_zoo
from simco_zoo.hub.config import CONFIG_HASH, seal

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def shaken(name: str = "simco_r18_025", seed: int = 0, **kwargs: Any) -> simco_zoo.models.ContrastiveModel:
    """A model whose every tensor matters: batch norm with uneven weights and statistics."""
    torch.manual_seed(seed)
    model = simco_zoo.create_model(name, **kwargs)
    for module in model.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data.uniform_(0.5, 1.5)
            module.num_batches_tracked.fill_(17)
    return model.eval()


def describe(content: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}


def read_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def edit(folder: Path, change: Callable[[dict[str, Any]], object], honest: bool = True) -> None:
    """Changes config.json; ``honest`` brings its own hash up to date."""
    config = read_config(folder)
    change(config)
    (folder / "config.json").write_text(json.dumps(seal(config) if honest else config))


def make_old(folder: Path) -> None:
    """Makes a folder one of format 1, without the hash of its config.json."""

    def strip(config: dict[str, Any]) -> None:
        own = config["simco_zoo"]
        for key in (CONFIG_HASH, "documents"):
            del own[key]
        own["format"] = 1
        del config["dtype"]

    edit(folder, strip, honest=False)


def rewrite(
    folder: Path, change: Callable[[dict[str, Any]], object], file: str = "model.safetensors", honest: bool = True
) -> None:
    """Changes a file's tensors; ``honest`` brings its hash in config.json up to date."""
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file, metadata={"format": "pt"})
    if honest:
        rehash(folder, file)


def rehash(folder: Path, file: str = "model.safetensors") -> None:
    content = (folder / file).read_bytes()
    edit(folder, lambda c: c["simco_zoo"]["files"].update({file: describe(content)}))
