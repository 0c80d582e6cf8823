"""extract_features: images in, one feature vector for each out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from simco_zoo.data import ImageData, load_images, normalize
from simco_zoo.data.transforms import input_config, unwrap
from simco_zoo.distributed import gather_objects, gather_rows, is_main, rank, world_size


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
    across_processes: bool = False,
    **load: Any,
) -> Features:
    """Extracts pooled features with a model of the zoo or of timm, in evaluation mode and without gradients.

    The model's modes and weights are afterwards as they were before, bit by bit.

    Args:
        model: Called on a normalized batch (B, C, H, W), it gives (B, D). If it is timm's or the zoo's and has a
            classifier, the features are what enters that.
        images: A folder, a data set of the Hub, ``"photos"`` or an ``ImageData`` (brought to the size that the model
            wants, unless it has been loaded already); a ``datasets.Dataset`` or a torch data set of PIL images; a
            uint8 tensor (N, 3, H, W), normalized as the model wants; or a float tensor (N, C, H, W), taken as ready.
        batch_size: Images per forward.
        split: Which part of a folder or data set.
        device: Where to compute; the model is moved there and stays. None: where the model is.
        num_workers: Processes that decode images which are not in memory.
        amp: Type for autocast, e.g. ``torch.bfloat16``; None: none.
        progress_bar: Show a progress bar on stderr, if that is a terminal.
        across_processes: Share the images among the processes of torch.distributed, all of which have to call this with
            the same arguments; each gets all features.
        **load: Further arguments of ``load_images``.

    Returns:
        Features with labels, names and what was skipped.

    Raises:
        ValueError: If the batch size is below 1, the images cannot be read or are a tensor of another shape or type,
            or the model gives no vector per image.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, but has to be at least 1.")
    # floats are taken as ready, so a model that does not say what it expects can take them
    config = {} if isinstance(images, Tensor) and images.is_floating_point() else input_config(model)
    if not isinstance(images, Tensor | ImageData):
        load.setdefault("image_size", config["input_size"][-1])
        for name in ("crop_pct", "crop_mode", "interpolation", "mean"):
            load.setdefault(name, config[name])
        images = load_images(images, split=split, **load)
    if isinstance(images, Tensor):
        _check_tensor(images)
    if config and (found := images.shape[1] if isinstance(images, Tensor) else 3) != config["input_size"][0]:
        raise ValueError(
            f"the images have {found} channels (N, C, H, W), but the model takes "
            f"{config['input_size'][0]}; convert them to a tensor of that many channels."
        )
    share = images
    if across_processes and world_size() > 1:
        size = -(-len(images) // world_size())
        own = torch.arange(rank() * size, (rank() + 1) * size) % len(images)  # every share has the same length
        share = images[own] if isinstance(images, Tensor) else images.subset(own)

    parameter = next(model.parameters(), torch.empty(0))
    target = torch.device(device) if device is not None else parameter.device
    model.to(target)
    inner = unwrap(model)
    classifies = getattr(inner, "num_classes", 0) and hasattr(inner, "forward_head")
    pooled = _before_classifier(inner) if classifies else model
    batches = tqdm(
        _batches(share, batch_size, num_workers),
        total=-(-len(share) // batch_size),
        desc="features",
        unit="batch",
        disable=None if progress_bar and is_main() else True,
    )
    collected: list[Tensor] = []
    with evaluating(model), torch.inference_mode(), torch.autocast(target.type, dtype=amp, enabled=amp is not None):
        for batch in batches:
            batch = batch.to(target)
            if batch.dtype == torch.uint8:
                batch = normalize(batch, config)
            output = pooled(batch.to(parameter.dtype, memory_format=torch.channels_last))
            if not isinstance(output, Tensor) or output.ndim != 2:
                raise ValueError("the model gives no vector per image; build it with global_pool='avg'.")
            collected.append(output.float())
            if len(collected) > 1:  # one batch late, so that the device has the next one to work on meanwhile
                collected[-2] = collected[-2].cpu()
    collected[-1] = collected[-1].cpu()
    features = torch.cat(collected)
    if share is not images:
        features = gather_rows(features)[: len(images)]
    if isinstance(images, Tensor):
        return Features(features)
    features, images = _without_damaged(features, images)
    return Features(features, images.labels, images.names, images.skipped, images.class_names)


def _without_damaged(features: Tensor, images: ImageData) -> tuple[Tensor, ImageData]:
    """Leaves out the images that could not be read when they were decoded, on whichever process."""
    if images.images is not None:
        return features, images
    skipped = dict(entry for part in gather_objects(images.skipped) for entry in part)
    images.skipped[:] = skipped.items()
    kept = [row for row, name in enumerate(images.names) if name not in skipped]
    return (features, images) if len(kept) == len(images) else (features[kept], images.subset(kept))


def _before_classifier(model: Any) -> Callable[[Tensor], Any]:
    return lambda batch: model.forward_head(model.forward_features(batch), pre_logits=True)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and convolutions laid out as they run fastest; then everything is put back as it was."""
    modes = [(module, module.training) for module in model.modules()]
    weights = [(module.weight, module.weight.data) for module, _ in modes if isinstance(module, nn.Conv2d)]
    try:
        model.eval()
        for weight, data in weights:
            weight.data = data.contiguous(memory_format=torch.channels_last)
        yield
    finally:
        for weight, data in weights:
            weight.data = data
        for module, mode in modes:  # each its own: parts may be frozen in evaluation mode
            module.training = mode


def _check_tensor(images: Tensor) -> None:
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(f"images has shape {tuple(images.shape)}, but has to be (N, C, H, W) with N of at least 1.")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"images is {images.dtype}; pass uint8 (0-255), or floats that are normalized already.")


def _batches(images: ImageData | Tensor, batch_size: int, num_workers: int) -> Iterator[Tensor]:
    if isinstance(images, Tensor):
        yield from images.split(batch_size)
    elif images.images is not None:
        yield from images.images.split(batch_size)
    else:
        yield from images.batches(torch.arange(len(images)).split(batch_size), num_workers=num_workers)
