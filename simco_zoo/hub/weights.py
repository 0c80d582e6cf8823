"""How a published model's weights get into a network.

Every way to load a model goes through ``load``, which verifies the description and hashes each file before it is
parsed; keys and shapes are strict. ``registry.py`` finds the files, ``checks.py`` compares them with the network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.models import build_model_with_cfg, load_pretrained, resolve_pretrained_cfg
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from simco_zoo.hub.checks import (
    DEFAULTS,
    MisfitError,
    check_classifier,
    check_fit,
    check_tensors,
    check_types,
    classes_in,
    differences,
    input_channels,
)
from simco_zoo.hub.config import MODEL_FILE, PROJECTOR_FILE, model_args, section, timm_entries
from simco_zoo.hub.download import MismatchError, WeightsError
from simco_zoo.hub.folder import WeightsFolder, warn_if_unverified
from simco_zoo.hub.registry import REGISTRY, SHIPPED, Published, damaged, published, resolve

__all__ = [
    "REGISTRY",
    "SHIPPED",
    "LoadedWeights",
    "MisfitError",
    "Published",
    "build_verified",
    "check_fit",
    "create_with_weights",
    "damaged",
    "differences",
    "load",
    "load_projector",
    "published",
    "resolve",
]


@dataclass(frozen=True)
class LoadedWeights:
    """A verified description and the tensors that were parsed from verified bytes.

    Attributes:
        found: The description, and where it comes from.
        backbone: The backbone's tensors.
        projector: The projector's tensors, or None where none were published or asked for.
    """

    found: WeightsFolder
    backbone: dict[str, Tensor]
    projector: dict[str, Tensor] | None = None

    @property
    def name(self) -> str:
        """What a model card calls the source: a repository, or a model's name; a local path means nothing to others."""
        if self.found.repository is not None:
            return f"hf-hub:{self.found.repository.repo_id}"
        if self.found.bare_file is not None:
            return self.found.bare_file.name
        tag = (self.found.config.get("pretrained_cfg") or {}).get("tag")
        backbone = model_args(self.found.config).get("backbone")
        architecture = self.found.config["architecture"]
        if backbone is not None or architecture.split("_")[0] != section(self.found.config).get("method"):
            architecture = f"{section(self.found.config).get('method', 'timm')}-{backbone or architecture}"
        return f"{architecture}.{tag}" if tag else architecture


def load(
    name: str,
    *,
    weights: str | Path | None = None,
    cache_dir: str | Path | None = None,
    projector: bool = True,
) -> LoadedWeights:
    """Finds a published model, verifies it and reads its tensors: the one function behind every way to load a model.

    Args:
        name: See ``resolve``.
        weights: A file or folder of the caller's, which goes before everything else.
        cache_dir: Where downloads are kept instead of the Hub client's cache.
        projector: Whether the projector is read too, where one was published.

    Returns:
        The verified description and tensors. They belong together even if the folder is replaced meanwhile.

    Raises:
        WeightsError: If the weights cannot be had, are damaged, or hold values that no network has.
    """
    for last in (False, False, True):
        found = resolve(name, weights=weights, cache_dir=cache_dir)
        try:
            backbone = found.read()
            head = found.read(PROJECTOR_FILE) if projector and found.has_projector else None
        except WeightsError:
            if last or not found.has_changed():
                raise
            continue
        break
    warn_if_unverified(found)
    check_tensors(backbone, f"{MODEL_FILE} of {found.origin}" if found.folder else found.origin)
    if head is not None:
        check_tensors(head, f"{PROJECTOR_FILE} of {found.origin}")
    if found.config:
        check_classifier(found, backbone)
    return LoadedWeights(found, backbone, head)


def create_with_weights(build: Callable[[], Any], loaded: LoadedWeights, *, on_meta: bool) -> Any:
    """Builds a backbone and puts verified weights into it.

    Args:
        build: Makes the backbone.
        loaded: Its weights. timm adapts them to other input channels, and lets another classifier stay fresh.
        on_meta: Whether the network may be built without memory. It then takes the file's own tensors, if they are the
            network's to the last shape: not filling it with random numbers first pays for the hash.

    Raises:
        MisfitError: If the tensors are not the backbone's.
    """
    tensors = loaded.backbone
    if on_meta and torch.get_default_device().type == "cpu":
        with torch.device("meta"), _WithoutRandomNumbers():
            backbone = build()
        expected = backbone.state_dict()
        if {k: v.shape for k, v in expected.items()} == {k: v.shape for k, v in tensors.items()}:
            check_fit(tensors, backbone, loaded.found.origin)
            backbone.load_state_dict({k: v.to(expected[k].dtype) for k, v in tensors.items()}, assign=True)
            return backbone
    backbone = build()
    check_fit(tensors, backbone, loaded.found.origin)
    cfg = {**backbone.pretrained_cfg, "state_dict": dict(tensors), "source": "", "file": None, "hf_hub_id": None}
    cfg["num_classes"] = classes_in(tensors, cfg)  # of a bare file no description tells
    load_pretrained(
        backbone, pretrained_cfg=cfg, num_classes=backbone.num_classes, in_chans=input_channels(backbone) or 3
    )
    return backbone


class _WithoutRandomNumbers(TorchFunctionMode):
    """Leaves out what initializes tensors without memory: PyTorch spends half of a network's building time on it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_) and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


def load_projector(projector: nn.Module, loaded: LoadedWeights) -> None:
    """Puts verified weights into a projector.

    Raises:
        WeightsError: If the file describes another projector.
    """
    assert loaded.projector is not None
    expected = {name: tuple(tensor.shape) for name, tensor in projector.state_dict().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in loaded.projector.items()}
    if shapes != expected:
        raise WeightsError(
            f"the projector of {loaded.found.origin} has the layers {shapes}, but the model's has {expected}; "
            "leave proj_hidden_dim and proj_dim as they were published."
        )
    check_types(loaded.projector, projector.state_dict(), f"{PROJECTOR_FILE} of {loaded.found.origin}")
    projector.load_state_dict(loaded.projector)


def build_verified(
    model_cls: Callable[..., Any], variant: str, pretrained: bool, asked: dict[str, Any], **kwargs: Any
) -> Any:
    """timm's ``build_model_with_cfg`` for a registered function, with weights that are verified first.

    timm is handed the parsed tensors and no path, so the bytes that were hashed are the bytes that it loads.

    Args:
        model_cls: Makes the model.
        variant: Registered name.
        pretrained: Whether weights are loaded.
        asked: The caller's arguments of the network, which have to agree with what was published.
        **kwargs: Arguments of timm's function.

    Raises:
        WeightsError: If there are no weights, they are damaged, do not fit, or the caller asked for another network.
    """
    origin = "the state_dict that was passed"
    if pretrained:
        kwargs, origin = _with_verified_weights(variant, asked, kwargs)

    def strict_filter(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        check_fit(state_dict, model, origin)
        return state_dict

    model: Any = build_model_with_cfg(model_cls, variant, pretrained, pretrained_filter_fn=strict_filter, **kwargs)
    model.pretrained_cfg.pop("state_dict", None)  # the model holds these tensors now
    return model


def _with_verified_weights(variant: str, asked: dict[str, Any], kwargs: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Replaces the source that timm was given by verified tensors; returns what to call that source, too."""
    overlay = kwargs.get("pretrained_cfg_overlay") or {}
    cfg = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), overlay)
    if cfg.state_dict:
        return kwargs, "the state_dict that was passed"
    name, weights = f"{variant}.{cfg.tag}" if cfg.tag else variant, None
    if cfg.source == "hf-hub":
        name = f"hf-hub:{cfg.hf_hub_id}"
    elif cfg.source == "local-dir":
        name = f"local-dir:{cfg.file}"
    elif cfg.file:
        weights = cfg.file
    loaded = load(name, weights=weights, cache_dir=kwargs.get("cache_dir"), projector=False)
    found = loaded.found
    if found.config:
        timms_own = ("cache_dir", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_model_args")
        asked = {key: value for key, value in asked.items() if key not in timms_own}
        wrong = differences(found, variant, {**DEFAULTS, **dict.fromkeys(model_args(found.config)), **asked})
        if wrong:
            raise MismatchError(
                f"the weights in {found.origin} belong to another network: {'; '.join(wrong)}. Load them as they were "
                "published, by timm.create_model('local-dir:PATH', pretrained=True)."
            )
    verified = {"source": "", "file": None, "hf_hub_id": None, "url": "", "custom_load": False}
    overlay = {**overlay, **verified, "state_dict": loaded.backbone}
    if found.config.get("pretrained_cfg"):  # instead of what timm read from a file that may have changed since
        kwargs = {**kwargs, "pretrained_cfg": {"architecture": variant, **timm_entries(found.config)}}
    elif not found.config:
        overlay["num_classes"] = classes_in(loaded.backbone, cfg.to_dict())
    return {**kwargs, "pretrained_cfg_overlay": overlay}, found.origin
