"""The key encoder: a second copy of the encoder that follows the first by an exponential moving average."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from simco_zoo.models.contrastive import ContrastiveModel


class KeyEncoder(nn.Module):
    """A copy of a model's backbone and projector without gradient.

    Args:
        model: The model whose encoder is copied (the query encoder).
    """

    backbone: Any

    def __init__(self, model: ContrastiveModel) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(model.backbone)
        self.projector = copy.deepcopy(model.projector)
        self.requires_grad_(False)
        # deepcopy brings the query's accumulated gradients along
        for parameter in self.parameters():
            parameter.grad = None

    @torch.no_grad()
    def momentum_update(self, model: ContrastiveModel, momentum: float) -> None:
        """Moves to momentum * key + (1 - momentum) * query.

        Parameters and float buffers move by the average, integer buffers are copied. The running statistics of batch
        norm stay: they come from the key encoder's own training-mode forwards, whose activations they describe.
        """
        for key, query in ((self.backbone, model.backbone), (self.projector, model.projector)):
            keys, queries = list[Tensor](key.parameters()), list[Tensor](query.parameters())
            for key_buffer, query_buffer in _followed_buffers(key, query):
                if key_buffer.is_floating_point():
                    keys.append(key_buffer)
                    queries.append(query_buffer)
                else:
                    key_buffer.copy_(query_buffer)
            torch._foreach_lerp_(keys, queries, 1.0 - momentum)


def _followed_buffers(key: nn.Module, query: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Pairs up all buffers except those of batch norm."""
    query_modules = dict(query.named_modules())
    pairs = []
    for path, module in key.named_modules():
        if isinstance(module, _BatchNorm):
            continue
        for name, buffer in module.named_buffers(recurse=False):
            pairs.append((buffer, query_modules[path].get_buffer(name)))
    return pairs


class MomentumModel(ContrastiveModel):
    """A contrastive model whose keys come from a key encoder (MoCo, SimMoCo).

    The key encoder is made on the first use of ``contrast``, or by ``init_key_encoder`` before a checkpoint that holds
    it is loaded: a model that only gives features costs no second copy.

    Args:
        backbone: A timm model.
        momentum: Momentum of the key encoder's moving average, in [0, 1]; 0 copies the query encoder at each step.
        **kwargs: See ``ContrastiveModel``.

    Raises:
        ValueError: If the momentum is outside [0, 1].
    """

    key_encoder: KeyEncoder | None

    def __init__(self, backbone: nn.Module, *, momentum: float = 0.99, **kwargs: Any) -> None:
        super().__init__(backbone, **kwargs)
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum is {momentum}, but has to lie in [0, 1].")
        self.momentum = momentum
        self.key_encoder = None
        # set while gradients accumulate: the key encoder makes one step per step of the optimizer
        self.hold_key_encoder = False

    def init_key_encoder(self) -> None:
        """Makes the key encoder as a copy of the query encoder, unless it is there already."""
        if self.key_encoder is None:
            self.key_encoder = KeyEncoder(self)
            self.key_encoder.train(self.training)

    def update_key_encoder(self) -> KeyEncoder:
        """Returns the key encoder, in training mode after one step of its moving average, unless it is held."""
        self.init_key_encoder()
        assert self.key_encoder is not None
        if self.training and not self.hold_key_encoder:
            self.key_encoder.momentum_update(self, self.momentum)
        return self.key_encoder
