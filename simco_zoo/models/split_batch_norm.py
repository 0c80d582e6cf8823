"""Batch norm over parts of the batch: what several devices would do, on one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SplitBatchNorm2d(nn.BatchNorm2d):
    """``BatchNorm2d`` that normalizes ``splits`` parts of a training batch each by its own statistics.

    Row i belongs to part i mod splits. The running statistics are the mean of the parts' ones, and in evaluation mode
    it is ordinary batch norm, with the same state dict. As in MoCo's CIFAR-10 demonstration.
    """

    splits: int = 1

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        n, c, h, w = input.shape
        if n % self.splits:
            raise ValueError(f"a batch of {n} does not divide into bn_splits={self.splits} parts.")
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        mean, var = self.running_mean.repeat(self.splits), self.running_var.repeat(self.splits)
        output = F.batch_norm(
            input.reshape(-1, c * self.splits, h, w),
            mean,
            var,
            self.weight.repeat(self.splits),
            self.bias.repeat(self.splits),
            True,
            momentum,
            self.eps,
        )
        with torch.no_grad():
            self.running_mean.copy_(mean.view(self.splits, c).mean(dim=0))
            self.running_var.copy_(var.view(self.splits, c).mean(dim=0))
        return output.view(n, c, h, w)


def split_batch_norm(model: nn.Module, splits: int) -> None:
    """Turns every ``BatchNorm2d`` of a model into ``SplitBatchNorm2d``, in place, parameters and buffers kept.

    Args:
        model: The model to change.
        splits: Number of parts, >= 1.

    Raises:
        ValueError: If ``splits`` is below 1 or the model has no plain ``BatchNorm2d``.
    """
    if splits < 1:
        raise ValueError(f"bn_splits is {splits}, but has to be at least 1.")
    norms = [module for module in model.modules() if type(module) is nn.BatchNorm2d]
    if not norms:
        raise ValueError(f"bn_splits={splits} needs a backbone with BatchNorm2d layers, which this one lacks.")
    for norm in norms:
        # the layer keeps its tensors, so its class is all that has to change
        norm.__class__ = SplitBatchNorm2d
        setattr(norm, "splits", splits)  # noqa: B010 (the type checker still sees the old class)
