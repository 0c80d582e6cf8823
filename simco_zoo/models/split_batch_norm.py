"""Batch norm over parts of the batch, as several devices compute it, and the shuffle of MoCo's keys among the parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from simco_zoo.distributed import broadcast, gather_rows, rank, world_size


class SplitBatchNorm2d(nn.BatchNorm2d):
    """``BatchNorm2d`` that normalizes ``splits`` parts of a training batch each by its own statistics.

    Row i belongs to part i mod splits. The running statistics are the mean of the parts' ones, and in evaluation mode
    it is ordinary batch norm, with the same state dict. As in MoCo's CIFAR-10 demonstration.
    """

    splits: int = 1

    def forward(self, input: Tensor) -> Tensor:
        return _normalize_parts(self, input, self.splits) if self.training else super().forward(input)


class SplitBatchNormAct2d(BatchNormAct2d):
    """timm's ``BatchNormAct2d`` (batch norm, then an activation) with the parts of ``SplitBatchNorm2d``."""

    splits: int = 1

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return self.act(self.drop(_normalize_parts(self, x, self.splits)))


_SPLIT_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm2d: SplitBatchNorm2d,
    BatchNormAct2d: SplitBatchNormAct2d,
}


def _normalize_parts(norm: nn.BatchNorm2d, x: Tensor, splits: int) -> Tensor:
    """Normalizes (N, C, H, W) in training mode, rows i, i + splits, ... by statistics of their own."""
    n, c, h, w = x.shape
    if n % splits:
        raise ValueError(f"a batch of {n} does not divide into bn_splits={splits} parts.")
    mean = var = None
    momentum = norm.momentum or 0.0
    if norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            momentum = 1.0 / float(norm.num_batches_tracked)
        mean, var = norm.running_mean.repeat(splits), norm.running_var.repeat(splits)
    weight, bias = (None if p is None else p.repeat(splits) for p in (norm.weight, norm.bias))
    # the channels of the parts side by side: (N / splits, splits * C, H, W)
    y = F.batch_norm(x.reshape(-1, c * splits, h, w), mean, var, weight, bias, True, momentum, norm.eps)
    if mean is not None and var is not None:
        with torch.no_grad():
            norm.running_mean.copy_(mean.view(splits, c).mean(dim=0))  # type: ignore[union-attr]
            norm.running_var.copy_(var.view(splits, c).mean(dim=0))  # type: ignore[union-attr]
    return y.view(n, c, h, w)


def split_batch_norm(model: nn.Module, splits: int) -> None:
    """Turns every batch norm of a model into one over parts of the batch, in place; parameters and buffers are kept.

    Args:
        model: The model to change.
        splits: Number of parts, >= 1.

    Raises:
        ValueError: If ``splits`` is below 1, or the model has no batch norm or one that cannot be split: then images of
            different parts would still share statistics.
    """
    if splits < 1:
        raise ValueError(f"bn_splits is {splits}, but has to be at least 1.")
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        raise ValueError(f"bn_splits={splits} needs a backbone with BatchNorm2d layers, which this one lacks.")
    others = sorted({type(norm).__name__ for norm in norms} - {cls.__name__ for cls in _SPLIT_CLASSES})
    if others:
        raise ValueError(
            f"bn_splits={splits} cannot split the backbone's {', '.join(others)}; it knows "
            f"{' and '.join(cls.__name__ for cls in _SPLIT_CLASSES)}. Use bn_splits=1, or another backbone."
        )
    for norm in norms:
        # the layer keeps its tensors, so its class is all that has to change
        layer: Any = norm
        layer.__class__ = _SPLIT_CLASSES[type(norm)]
        layer.splits = splits


def normalizes_apart(module: nn.Module) -> bool:
    """Whether the module has batch norm that sees the images of one process only."""
    return any(isinstance(m, _BatchNorm) and not isinstance(m, nn.SyncBatchNorm) for m in module.modules())


def embed_shuffled(
    embed: Callable[..., tuple[Tensor, ...]],
    *views: Tensor,
    generator: torch.Generator | None = None,
    across_processes: bool = False,
) -> tuple[Tensor, ...]:
    """Embeds views in a random order of their images, and returns the rows in the images' own order.

    An image's key is then normalized with other images than its query, so that batch norm cannot tell the two from
    statistics that they share (MoCo, section 3.3).

    Args:
        embed: Maps V views (N, C, H, W) to V tensors (N, D).
        *views: The views; each has an order of its own.
        generator: Source of the orders.
        across_processes: Shuffle among the images of all processes.

    Returns:
        (N, D) per view.
    """
    processes = world_size() if across_processes else 1
    n, device = len(views[0]), views[0].device
    drawn_on = generator.device if generator is not None else device
    share = slice(rank() * n, (rank() + 1) * n) if processes > 1 else slice(None)
    orders, shuffled = [], []
    for view in views:
        order = torch.randperm(n * processes, generator=generator, device=drawn_on).to(device)
        images = view
        if processes > 1:
            order, images = broadcast(order), gather_rows(view)
        orders.append(order)
        # indexing lays the images out anew
        shuffled.append(torch.empty_like(view).copy_(images[order[share]]))
    rows = embed(*shuffled)
    if processes > 1:
        rows = tuple(gather_rows(r) for r in rows)
    return tuple(r[torch.argsort(order)[share]] for r, order in zip(rows, orders, strict=True))
