"""A model in evaluation mode as a function from images to features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from simco_zoo.data import normalize
from simco_zoo.data.transforms import unwrap


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


def build_forward(
    model: nn.Module,
    config: dict[str, Any],
    *,
    device: str | torch.device | None = None,
    classify: bool = False,
    flip: bool = False,
    amp: torch.dtype | None = None,
) -> Callable[[Tensor], Tensor]:
    """Returns a function from a batch of images (B, C, H, W), uint8 or normalized, to features, fp32 (B, D).

    It is meant for use within ``evaluating(model)``. The arguments are those of ``iterate_features``.
    """
    parameter = next(model.parameters(), torch.empty(0))
    target = torch.device(device) if device is not None else parameter.device
    model.to(target)
    inner = unwrap(model)
    classifies = not classify and bool(getattr(inner, "num_classes", 0)) and hasattr(inner, "forward_head")
    pooled = _before_classifier(inner) if classifies else model

    @torch.inference_mode()
    def forward(batch: Tensor) -> Tensor:
        batch = batch.to(target)
        if batch.dtype == torch.uint8:
            batch = normalize(batch, config)
        batch = batch.to(parameter.dtype, memory_format=torch.channels_last)
        with torch.autocast(target.type, dtype=amp, enabled=amp is not None):
            output = pooled(batch)
            if not isinstance(output, Tensor) or output.ndim != 2:
                raise ValueError("the model gives no vector per image; build it with global_pool='avg'.")
            if flip:
                output = (output.float() + pooled(batch.flip(-1)).float()) / 2
        return output.float()

    return forward


def _before_classifier(model: Any) -> Callable[[Tensor], Any]:
    return lambda batch: model.forward_head(model.forward_features(batch), pre_logits=True)
