"""The small-image stem: timm backbones that keep the resolution of 32 px images.

A ResNet's own stem shrinks an image by four before its first block, which leaves 8x8 of a CIFAR image. The small-image
stem is one 3x3 convolution with stride 1 and no max-pooling.
"""

from __future__ import annotations

from typing import Any

from timm.models import (
    generate_default_cfgs,
    get_pretrained_cfg,
    model_entrypoint,
    register_model,
)
from timm.models.resnet import ResNet
from torch import nn

from simco_zoo.hub.weights import build_verified

__all__ = ["SmallStemResNet", "small_cfg", "small_stem"]


class SmallStemResNet(ResNet):
    """timm's ResNet with one 3x3 convolution of stride 1 as stem and no max-pooling.

    Args:
        block: timm's class ``BasicBlock`` or ``Bottleneck``.
        layers: Number of blocks in each of the four stages.
        channels: Base width of each stage; the stem has the width of the first.
        stem_padding: Padding of the stem's convolution; 1 keeps the image's size, the paper's official code has 2.
        **kwargs: timm's arguments of ``ResNet``.
    """

    def __init__(
        self,
        block: Any,
        layers: tuple[int, ...],
        channels: tuple[int, ...] = (64, 128, 256, 512),
        stem_padding: int = 1,
        **kwargs: Any,
    ) -> None:
        # timm's plain stem has 64 channels whatever the stages have; its deep stem ends with twice stem_width, and one
        # convolution takes its place
        super().__init__(block, layers, channels=channels, stem_type="deep", stem_width=channels[0] // 2, **kwargs)
        first, last = self.conv1[0], self.conv1[-1]
        setattr(self, "conv1", _stem_conv(first, last, stem_padding))  # noqa: B010 (timm declares a Sequential)
        _drop_pooling(self)


def _shrink_resnet_stem(model: Any, padding: int) -> None:
    """Gives a freshly built ResNet the small-image stem: a plain stem becomes a 3x3, a deep one loses its stride."""
    if isinstance(model.conv1, nn.Sequential):
        first: Any = model.conv1[0]
        first.stride, first.padding = (1, 1), (padding, padding)
    else:
        model.conv1 = _stem_conv(model.conv1, model.conv1, padding)
    _drop_pooling(model)


def _stem_conv(first: Any, last: Any, padding: int) -> nn.Conv2d:
    """Makes one 3x3 convolution of stride 1 from the input of one convolution to the output of another."""
    conv = nn.Conv2d(first.in_channels, last.out_channels, 3, stride=1, padding=padding, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")  # as timm initializes the rest
    return conv.to(last.weight.device, last.weight.dtype)


def _drop_pooling(model: Any) -> None:
    model.maxpool = nn.Identity()
    for info in model.feature_info:  # a quarter of the stride is gone
        info["reduction"] = max(info["reduction"] // 4, 1)


# timm modules whose models are of its ResNet class, and those that need no other stem, only other arguments: a patch of
# a quarter of ImageNet's (16 -> 4) gives a 32 px image 64 tokens; Swin halves the size three times after it, ConvNeXt
# too, where a patch of 2 would bring a fourth halving
_RESNET_FAMILIES = ("resnet", "res2net", "resnest", "sknet")
_SMALL_ARGUMENTS: dict[str, dict[str, Any]] = {
    "convnext": {"patch_size": 1},
    "deit": {"patch_size": 4},
    "swin_transformer": {"patch_size": 2, "window_size": 4},
    "vision_transformer": {"patch_size": 4},
}


def small_cfg(**entries: Any) -> dict[str, Any]:
    """Returns timm's description (pretrained_cfg) of a model for 32 px images, with CIFAR's mean and deviation."""
    return {
        "num_classes": 0,
        "input_size": (3, 32, 32),
        "pool_size": (4, 4),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.247, 0.243, 0.261),
        "first_conv": "conv1",
        "classifier": "fc",
        "license": "apache-2.0",
        **entries,
    }


default_cfgs = generate_default_cfgs({"small_stem": small_cfg()})


@register_model
def small_stem(pretrained: bool = False, backbone: str = "resnet18", **kwargs: Any) -> nn.Module:
    """Any timm backbone adapted to small images, under a name of its own so that no file can be taken for timm's.

    ResNets and their relatives lose stride and max-pooling of their stem, and a plain stem's 7x7 convolution becomes a
    3x3; ConvNeXt, DeiT, Swin and ViT get a smaller patch, and an ``img_size`` of 32 px unless given.

    Args:
        pretrained: Load weights; they have to come from a folder or repository of this architecture.
        backbone: timm's name of the backbone.
        **kwargs: The backbone's arguments; ``stem_padding`` (default 1) for the ResNets' stem.

    Raises:
        ValueError: If no small-image stem is known for the backbone.

    Example:
        >>> import timm, torch, simco_zoo
        >>> network = timm.create_model("small_stem", backbone="resnet18", num_classes=10)
        >>> network(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    asked = {"backbone": backbone, **kwargs}
    family = model_entrypoint(backbone).__module__.rsplit(".", 1)[-1]
    stem_padding = kwargs.pop("stem_padding", 1)
    if family in _RESNET_FAMILIES:
        kwargs.setdefault("zero_init_last", False)  # these networks are trained from scratch, as the paper's are
        feature_cfg: dict[str, Any] = {}
    elif family in _SMALL_ARGUMENTS:
        kwargs = {**_SMALL_ARGUMENTS[family], **kwargs}
        # forward_intermediates knows these families' shapes; the number of stages differs
        feature_cfg = {"out_indices": 4 if family in ("convnext", "swin_transformer") else 3, "feature_cls": "getter"}
    else:
        known = ", ".join(sorted([*_RESNET_FAMILIES, *_SMALL_ARGUMENTS]))
        raise ValueError(
            f"no small-image stem is known for {backbone} (family {family}; known are {known}); "
            "use small_stem=False and pass what small images need as backbone_kwargs."
        )

    def build(**arguments: Any) -> nn.Module:
        model = model_entrypoint(backbone)(pretrained=False, **arguments)
        if family in _RESNET_FAMILIES:
            _shrink_resnet_stem(model, stem_padding)
        return model

    base = get_pretrained_cfg(backbone)
    assert base is not None  # each of timm's entry points has one
    own = {"first_conv": base.first_conv, "classifier": base.classifier, "fixed_input_size": base.fixed_input_size}
    kwargs["pretrained_cfg_overlay"] = {**own, **(kwargs.pop("pretrained_cfg_overlay", None) or {})}
    return build_verified(build, "small_stem", pretrained, asked, feature_cfg=feature_cfg, **kwargs)
