"""The zoo's names, registered with timm: the backbones of all methods with the small-image stem.

timm builds the bare backbone from these; ``simco_zoo.create_model`` puts method and head around the same backbone. All
methods share one architecture for a size: their names differ in the weights that they load.
"""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from simco_zoo.hub.registry import DEFAULT_TAG, damaged, published
from simco_zoo.hub.weights import build_verified
from simco_zoo.models.small_stem import SmallStemResNet, small_cfg

__all__: list[str] = []  # register_model adds the names

_SIZES = {
    **dict.fromkeys(("simco", "simmoco", "mocov1", "mocov2"), ("r18_025", "r18", "r34", "r50")),
    **dict.fromkeys(("simclr", "dcl", "simsiam"), ("r18_025", "r18")),
}
_ARCHITECTURES = [f"{method}_{size}" for method, sizes in _SIZES.items() for size in sizes]


def _published_cfgs() -> dict[str, dict[str, Any]]:
    """Returns a cfg for each published model, then one without weights for each name that has none.

    Damaged default weights have one, too: their error is raised, and timm does not take other weights instead.
    """
    cfgs = {name: small_cfg(**entry.timm_cfg()) for name, entry in published().items()}
    for architecture in _ARCHITECTURES:
        if not any(name.split(".")[0] == architecture for name in cfgs):
            cfgs[architecture] = small_cfg()
        if (default := f"{architecture}.{DEFAULT_TAG}") in damaged():
            cfgs[f"{default}*"] = small_cfg()  # the star makes it timm's default
    return cfgs


default_cfgs = generate_default_cfgs({**_published_cfgs()})


def _resnet(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """Builds a ResNet with the small-image stem; weights are found and verified before timm reads them."""
    asked = {key: value for key, value in kwargs.items() if key not in ("block", "layers", "channels")}
    kwargs.setdefault("zero_init_last", False)  # these networks are trained from scratch, as the paper's are
    return build_verified(SmallStemResNet, variant, pretrained, asked, **kwargs)


def _resnet18(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    return _resnet(variant, pretrained, block=BasicBlock, layers=(2, 2, 2, 2), **kwargs)


def _resnet18_quarter(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    return _resnet18(variant, pretrained, channels=(16, 32, 64, 128), **kwargs)


def _resnet34(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    return _resnet(variant, pretrained, block=BasicBlock, layers=(3, 4, 6, 3), **kwargs)


def _resnet50(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    return _resnet(variant, pretrained, block=Bottleneck, layers=(3, 4, 6, 3), **kwargs)


@register_model
def simco_r18_025(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 at a quarter of its width (0.70 M parameters), for SimCo: trains on a CPU."""
    return _resnet18_quarter("simco_r18_025", pretrained, **kwargs)


@register_model
def simco_r18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 with the small-image stem (11.2 M parameters), for SimCo."""
    return _resnet18("simco_r18", pretrained, **kwargs)


@register_model
def simco_r34(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-34 with the small-image stem (21.3 M parameters), for SimCo."""
    return _resnet34("simco_r34", pretrained, **kwargs)


@register_model
def simco_r50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50 with the small-image stem (23.5 M parameters), for SimCo."""
    return _resnet50("simco_r50", pretrained, **kwargs)


@register_model
def simmoco_r18_025(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 at a quarter of its width (0.70 M parameters), for SimMoCo: trains on a CPU."""
    return _resnet18_quarter("simmoco_r18_025", pretrained, **kwargs)


@register_model
def simmoco_r18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 with the small-image stem (11.2 M parameters), for SimMoCo."""
    return _resnet18("simmoco_r18", pretrained, **kwargs)


@register_model
def simmoco_r34(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-34 with the small-image stem (21.3 M parameters), for SimMoCo."""
    return _resnet34("simmoco_r34", pretrained, **kwargs)


@register_model
def simmoco_r50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50 with the small-image stem (23.5 M parameters), for SimMoCo."""
    return _resnet50("simmoco_r50", pretrained, **kwargs)


@register_model
def mocov1_r18_025(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 at a quarter of its width (0.70 M parameters), for MoCo v1: trains on a CPU."""
    return _resnet18_quarter("mocov1_r18_025", pretrained, **kwargs)


@register_model
def mocov1_r18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 with the small-image stem (11.2 M parameters), for MoCo v1."""
    return _resnet18("mocov1_r18", pretrained, **kwargs)


@register_model
def mocov1_r34(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-34 with the small-image stem (21.3 M parameters), for MoCo v1."""
    return _resnet34("mocov1_r34", pretrained, **kwargs)


@register_model
def mocov1_r50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50 with the small-image stem (23.5 M parameters), for MoCo v1."""
    return _resnet50("mocov1_r50", pretrained, **kwargs)


@register_model
def mocov2_r18_025(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 at a quarter of its width (0.70 M parameters), for MoCo v2: trains on a CPU."""
    return _resnet18_quarter("mocov2_r18_025", pretrained, **kwargs)


@register_model
def mocov2_r18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 with the small-image stem (11.2 M parameters), for MoCo v2."""
    return _resnet18("mocov2_r18", pretrained, **kwargs)


@register_model
def mocov2_r34(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-34 with the small-image stem (21.3 M parameters), for MoCo v2."""
    return _resnet34("mocov2_r34", pretrained, **kwargs)


@register_model
def mocov2_r50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50 with the small-image stem (23.5 M parameters), for MoCo v2."""
    return _resnet50("mocov2_r50", pretrained, **kwargs)


@register_model
def simclr_r18_025(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 at a quarter of its width (0.70 M parameters), for SimCLR: trains on a CPU."""
    return _resnet18_quarter("simclr_r18_025", pretrained, **kwargs)


@register_model
def simclr_r18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 with the small-image stem (11.2 M parameters), for SimCLR."""
    return _resnet18("simclr_r18", pretrained, **kwargs)


@register_model
def dcl_r18_025(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 at a quarter of its width (0.70 M parameters), for DCL: trains on a CPU."""
    return _resnet18_quarter("dcl_r18_025", pretrained, **kwargs)


@register_model
def dcl_r18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 with the small-image stem (11.2 M parameters), for DCL."""
    return _resnet18("dcl_r18", pretrained, **kwargs)


@register_model
def simsiam_r18_025(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 at a quarter of its width (0.70 M parameters), for SimSiam: trains on a CPU."""
    return _resnet18_quarter("simsiam_r18_025", pretrained, **kwargs)


@register_model
def simsiam_r18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 with the small-image stem (11.2 M parameters), for SimSiam."""
    return _resnet18("simsiam_r18", pretrained, **kwargs)
