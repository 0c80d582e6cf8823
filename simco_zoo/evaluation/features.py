"""extract_features: images in, one feature vector for each out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from tqdm import tqdm

from simco_zoo.data import ImageData, load_images, normalize


@dataclass(frozen=True)
class Features:
    """What ``extract_features`` returns.

    Attributes:
        features: fp32 (N, D) on the CPU.
        labels: int64 (N,), or None.
        names: Name of each image, or None for tensors.
        skipped: (name, reason) of each image that could not be read.
        class_names: Names of the labels, or None.
    """

    features: Tensor
    labels: Tensor | None = None
    names: list[str] | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)
    class_names: list[str] | None = None

    def __len__(self) -> int:
        return len(self.features)


def extract_features(
    model: nn.Module,
    images: ImageData | Tensor | str | Path | Any,
    batch_size: int = 256,
    *,
    split: str = "train",
    device: str | torch.device | None = None,
    num_workers: int = 0,
    amp: torch.dtype | None = None,
    progress_bar: bool = False,
    **load: Any,
) -> Features:
    """Extracts pooled features with a model of the zoo or of timm.

    Args:
        model: Called on a normalized batch (B, C, H, W), it gives (B, D).
        images: A folder, a data set of the Hub, ``"photos"`` or an ``ImageData`` (brought to the size that the model
            wants, unless it has been loaded already); a uint8 tensor (N, 3, H, W), normalized as the model wants; or a
            float tensor (N, C, H, W), taken as ready.
        batch_size: Images per forward.
        split: Which part of a folder or data set.
        device: Where to compute; the model is moved there and stays. None: where the model is.
        num_workers: Processes that decode images which are not in memory.
        amp: Type for autocast, e.g. ``torch.bfloat16``; None: none.
        progress_bar: Show a progress bar on stderr, if that is a terminal.
        **load: Further arguments of ``load_images``.

    Returns:
        Features with labels, names and what was skipped.

    Raises:
        ValueError: If the batch size is below 1, the images cannot be read, or the model gives no vector per image.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, but has to be at least 1.")
    config = resolve_model_data_config(model)
    if not isinstance(images, Tensor | ImageData):
        load.setdefault("image_size", config["input_size"][-1])
        load.setdefault("crop_pct", config["crop_pct"])
        load.setdefault("interpolation", config["interpolation"])
        images = load_images(images, split=split, **load)
    if isinstance(images, Tensor) and (images.ndim != 4 or len(images) == 0):
        raise ValueError(f"images has shape {tuple(images.shape)}, but has to be (N, C, H, W) with N of at least 1.")

    parameter = next(model.parameters())
    target = torch.device(device) if device is not None else parameter.device
    modes = {module: module.training for module in model.modules()}
    # convolutions read channels-last images faster; weights in another format are laid out anew in every forward
    channels_last = parameter.device.type != "mps" and any(isinstance(m, nn.Conv2d) for m in model.modules())
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    model.eval().to(target).to(memory_format=memory_format)
    collected: list[Tensor] = []
    total = -(-len(images) // batch_size)
    batches = tqdm(
        _batches(images, batch_size, num_workers),
        total=total,
        desc="features",
        unit="batch",
        disable=None if progress_bar else True,
    )
    try:
        with torch.inference_mode(), torch.autocast(target.type, dtype=amp, enabled=amp is not None):
            for batch in batches:
                batch = batch.to(target)
                if batch.dtype == torch.uint8:
                    batch = normalize(batch, config)
                output = model(batch.to(memory_format=memory_format))
                if not isinstance(output, Tensor) or output.ndim != 2:
                    raise ValueError("the model gives no vector per image; build it with global_pool='avg'.")
                collected.append(output.float().cpu())
    finally:
        for module, mode in modes.items():  # each its own: parts may be frozen in evaluation mode
            module.training = mode
    features = torch.cat(collected)
    if isinstance(images, Tensor):
        return Features(features)
    return Features(features, images.labels, images.names, images.skipped, images.class_names)


def _batches(images: ImageData | Tensor, batch_size: int, num_workers: int) -> Iterator[Tensor]:
    if isinstance(images, Tensor):
        yield from images.split(batch_size)
    elif images.images is not None:
        yield from images.images.split(batch_size)
    else:
        yield from images.batches(torch.arange(len(images)).split(batch_size), num_workers=num_workers)
