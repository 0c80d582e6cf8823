"""For transformers without simco-zoo: ``AutoModel.from_pretrained(REPOSITORY, trust_remote_code=True)``.

This file travels in a published folder, so it needs timm and transformers alone; it registers the zoo's names with timm
unless simco-zoo did already, and the model is transformers' own wrapper of timm.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn
from transformers import TimmWrapperModel

__all__: list[str] = []  # register_model adds the names

_WIDTHS = {"": (64, 128, 256, 512), "_025": (16, 32, 64, 128)}
_STAGES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "r18": (BasicBlock, (2, 2, 2, 2)),
    "r34": (BasicBlock, (3, 4, 6, 3)),
    "r50": (Bottleneck, (3, 4, 6, 3)),
}
_NAMES = [
    f"{method}_{size}{width}"
    for method in ("simco", "simmoco", "mocov1", "mocov2", "simclr", "dcl", "simsiam")
    for size in _STAGES
    for width in _WIDTHS
]

default_cfgs = generate_default_cfgs(
    {name: {"num_classes": 0, "input_size": (3, 32, 32), "first_conv": "conv1", "classifier": "fc"} for name in _NAMES}
)


class SmallStemResNet(ResNet):
    """timm's ResNet with one 3x3 convolution of stride 1 as stem and no max-pooling."""

    def __init__(
        self, block: Any, layers: tuple[int, ...], channels: tuple[int, ...], stem_padding: int = 1, **kwargs: Any
    ) -> None:
        super().__init__(block, layers, channels=channels, stem_type="deep", stem_width=channels[0] // 2, **kwargs)
        model: Any = self  # timm declares other types than it allows
        inputs = model.conv1[0].in_channels
        model.conv1 = nn.Conv2d(inputs, channels[0], 3, stride=1, padding=stem_padding, bias=False)
        model.maxpool = nn.Identity()
        for info in model.feature_info:
            info["reduction"] = max(info["reduction"] // 4, 1)


def _register(name: str) -> None:
    size, _, width = name.split("_", 1)[1].partition("_")
    block, layers = _STAGES[size]

    def entry_point(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        channels = _WIDTHS[f"_{width}" if width else ""]
        return build_model_with_cfg(
            SmallStemResNet, name, pretrained, block=block, layers=layers, channels=channels, **kwargs
        )

    entry_point.__name__ = entry_point.__qualname__ = name
    register_model(entry_point)


for _name in _NAMES:
    if not is_model(_name):
        _register(_name)


class SimcoModel(TimmWrapperModel):
    """transformers' wrapper of timm, which now knows the zoo's names."""
