"""The key encoder: a second copy of the encoder that follows the first by an exponential moving average."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from simco_zoo.models.contrastive import ContrastiveModel


class KeyEncoder(nn.Module):
    """A copy of a model's backbone and projector, without gradient and without the classifier.

    Its weights are buffers: an optimizer gets the query encoder's parameters alone, whether it is made before the key
    encoder or after it.

    Args:
        model: The model whose encoder is copied (the query encoder).
    """

    backbone: Any

    def __init__(self, model: ContrastiveModel) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(model.backbone)
        self.projector = copy.deepcopy(model.projector)
        _remove_classifier(self.backbone)
        _turn_into_buffers(self)
        self._average_in_fp32()

    @torch.no_grad()
    def momentum_update(self, model: ContrastiveModel, momentum: float) -> None:
        """Moves to momentum * key + (1 - momentum) * query.

        Weights and float buffers move by the average, integer buffers are copied. The running statistics of batch norm
        stay: they come from the key encoder's own training-mode forwards, whose activations they describe.
        """
        self._average_in_fp32()
        keys: list[Tensor] = []
        queries: list[Tensor] = []
        for key, query in ((self.backbone, model.backbone), (self.projector, model.projector)):
            followed = dict(query.named_parameters(remove_duplicate=False)) | dict(query.named_buffers())
            statistics = _batch_norm_statistics(key)
            for name, tensor in key.named_buffers():
                if not tensor.is_floating_point():
                    tensor.copy_(followed[name])
                elif name not in statistics:
                    keys.append(tensor)
                    queries.append(followed[name].to(tensor.dtype))
        torch._foreach_lerp_(keys, queries, 1.0 - momentum)

    def cast(self, *views: Tensor) -> tuple[Tensor, ...]:
        """Returns the views in the type of this encoder, which is wider than that of a half-precision model."""
        return tuple(view.to(self._dtype) for view in views)

    @property
    def _dtype(self) -> torch.dtype:
        return next((t.dtype for t in self.buffers() if t.is_floating_point()), torch.float32)

    def _average_in_fp32(self) -> None:
        """Widens half-precision weights: a step of 1 - momentum is smaller than their spacing and would be lost."""
        if self._dtype in (torch.bfloat16, torch.float16):
            self.float()


def _remove_classifier(backbone: Any) -> None:
    """Takes the classifier off a backbone; unlike ``reset_classifier`` this leaves the pooling as it is."""
    classifiers = backbone.get_classifier()
    classifiers = classifiers if isinstance(classifiers, tuple | list) else (classifiers,)
    for path, module in list(backbone.named_modules()):
        if path and any(module is classifier for classifier in classifiers):
            backbone.set_submodule(path, nn.Identity())


def _turn_into_buffers(module: nn.Module) -> None:
    """Turns all parameters into buffers of the same names, so that the state dict has the same keys."""
    for child in module.modules():
        for name, parameter in list(child.named_parameters(recurse=False)):
            delattr(child, name)
            child.register_buffer(name, parameter.detach())


def _batch_norm_statistics(module: nn.Module) -> set[str]:
    """Returns the names of the running means and variances."""
    norms = [(path, norm) for path, norm in module.named_modules() if isinstance(norm, _BatchNorm)]
    return {f"{path}.{name}".lstrip(".") for path, _ in norms for name in ("running_mean", "running_var")}


class MomentumModel(ContrastiveModel):
    """A contrastive model whose keys come from a key encoder (MoCo, SimMoCo).

    The key encoder is made on the first use of ``contrast``, or when a state dict that holds it is loaded: a model that
    only gives features does not pay for a second copy.

    Args:
        backbone: A timm model.
        momentum: Momentum of the key encoder's moving average, in [0, 1]; 0 copies the query encoder at each step.
        **kwargs: See ``ContrastiveModel``.

    Raises:
        ValueError: If the momentum is outside [0, 1].
    """

    unpublished: ClassVar[tuple[str, ...]] = ("key_encoder",)
    key_encoder: KeyEncoder | None

    def __init__(self, backbone: nn.Module, *, momentum: float = 0.99, **kwargs: Any) -> None:
        super().__init__(backbone, **kwargs)
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum is {momentum}, but has to lie in [0, 1].")
        self.momentum = momentum
        self.key_encoder = None

    def init_key_encoder(self) -> None:
        """Makes the key encoder as a copy of the query encoder, unless it is there already."""
        if self.key_encoder is None:
            self.key_encoder = KeyEncoder(self)
            self.key_encoder.train(self.training)

    def update_key_encoder(self, hold: bool = False) -> KeyEncoder:
        """Returns the key encoder, in training mode after one step of its moving average.

        Args:
            hold: Leave out that step. While gradients accumulate, the key encoder makes one step per optimizer step.
        """
        self.init_key_encoder()
        assert self.key_encoder is not None
        if self.training and not hold:
            self.key_encoder.momentum_update(self, self.momentum)
        return self.key_encoder

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # torch calls this before it looks for the submodules that the keys belong to
        if any(key.startswith(f"{prefix}key_encoder.") for key in state_dict):
            self.init_key_encoder()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
