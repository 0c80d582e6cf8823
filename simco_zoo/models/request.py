"""What a call of create_model asks for, and whether the weights that were found agree with it."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from timm.models import parse_model_name, split_model_name_tag
from torch import Tensor

from simco_zoo.hub.checks import MisfitError, check_fit, differences
from simco_zoo.hub.config import CONFIG_FILE, model_args, num_classes, section
from simco_zoo.hub.download import MismatchError
from simco_zoo.hub.folder import WeightsFolder
from simco_zoo.models import zoo
from simco_zoo.models.methods import METHODS, method_of, split_arguments

__all__ = ["ModelRequest", "ModelSpec", "agree", "parse_request"]


@dataclass(frozen=True)
class ModelSpec:
    """A model, as config.json describes it: all that is needed to build it.

    Attributes:
        method: Name of the method.
        architecture: timm's name of the backbone.
        model_args: Arguments of the backbone that belong to it.
        arguments: Further arguments of the method or of the backbone; they go before those above.
    """

    method: str
    architecture: str
    model_args: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)

    def split(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the arguments of the method, and all those of the backbone."""
        ours, others = split_arguments(METHODS[self.method].cls, self.arguments)
        return ours, {"num_classes": 0, **self.model_args, **others}


@dataclass(frozen=True)
class ModelRequest:
    """What a call names; None is what it leaves to the weights.

    Attributes:
        name: The name as it was given.
        method: Name of the method.
        architecture: A registered name.
        backbone: timm's name of a free backbone.
        small_stem: Whether that backbone gets the small-image stem.
        arguments: Arguments of the method and of the backbone.
    """

    name: str
    method: str | None = None
    architecture: str | None = None
    backbone: str | None = None
    small_stem: bool | None = None
    arguments: dict[str, Any] = field(default_factory=dict)

    def spec(self) -> ModelSpec:
        """Returns the model that the call names by itself, without published weights to describe it."""
        assert self.method is not None
        if self.architecture is not None:
            return ModelSpec(self.method, self.architecture, {}, self.arguments)
        if self.backbone is None:
            raise ValueError(
                f"{self.method!r} is a method and needs a backbone: create_model({self.method!r}, backbone='resnet18') "
                "with any name of timm, or one of the registered names (simco_zoo.list_models())."
            )
        if self.small_stem:
            return ModelSpec(self.method, "small_stem", {"backbone": self.backbone}, self.arguments)
        return ModelSpec(self.method, self.backbone, {}, self.arguments)


def parse_request(name: str, backbone: str | None, small_stem: bool | None, arguments: dict[str, Any]) -> ModelRequest:
    """Reads the arguments of ``create_model``.

    Raises:
        ValueError: If the model, method or backbone does not exist; the message suggests a similar name.
    """
    source, identifier = parse_model_name(name)
    if backbone is not None and not timm.is_model(backbone):
        near = difflib.get_close_matches(backbone, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists those it has."
        raise ValueError(f"timm has no backbone {backbone!r}; {hint}")
    for key, least in (("num_classes", 0), ("in_chans", 1)):
        value = arguments.get(key, least)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{key} is {value!r}, but has to be an integer of at least {least}.")
    if source:
        return ModelRequest(name, None, None, backbone, small_stem, arguments)
    if identifier in METHODS:
        return ModelRequest(name, identifier, None, backbone, small_stem, arguments)
    architecture = split_model_name_tag(identifier)[0]
    if architecture not in zoo.__all__:
        raise ValueError(_unknown_name(identifier, architecture))
    if backbone is not None or small_stem:
        raise ValueError(
            f"{architecture} has its backbone already; backbone and small_stem go with a method's name, "
            "e.g. create_model('simco', backbone='resnet18', small_stem=True)."
        )
    return ModelRequest(name, method_of(architecture).name, architecture, None, None, arguments)


def agree(request: ModelRequest, found: WeightsFolder, tensors: dict[str, Tensor] | None = None) -> ModelSpec:
    """Returns the model that a published folder describes, if the call does not contradict it.

    Settings of a training to come (``temperature``) and timm's adaptations (``num_classes``) may differ.

    Args:
        request: What the call names.
        found: The published folder.
        tensors: Its backbone's, if they were read; a message then names those that differ.

    Raises:
        MismatchError: A sentence that lists the differences, or says that the folder is not ours.
    """
    own = section(found.config)
    method = own.get("method", request.method)
    if method is None:
        raise MismatchError(
            f"{found.origin} was not published by simco-zoo (its {CONFIG_FILE} names no method); "
            f"load it with timm.create_model({request.name!r}, pretrained=True)."
        )
    if method not in METHODS:
        raise MismatchError(
            f"{found.origin} was published with the method {method!r}, which is not known here; import the module "
            "that registers it (simco_zoo.register_method), or load the bare backbone with "
            f"timm.create_model({request.name!r}, pretrained=True)."
        )
    wrong = [] if request.method in (None, method) else [f"the method is {method}, not {request.method}"]
    wrong += _contradictions(request, found, method)
    if tensors is not None and request.architecture not in (None, found.config["architecture"]):
        try:
            check_fit(tensors, timm.create_model(request.architecture), found.origin)
        except MisfitError as error:
            wrong += [error.shapes] if error.shapes else []
    if wrong:
        source = f"hf-hub:{found.repository}" if found.repository is not None else f"local-dir:{found.folder}"
        raise MismatchError(
            f"{found.origin} holds another model than the one asked for: {'; '.join(wrong)}. "
            f"simco_zoo.create_model({source!r}, pretrained=True) loads it as it was published."
        )
    stated = {"num_classes": num_classes(found.config), **own.get("method_config", {})}
    return ModelSpec(method, found.config["architecture"], model_args(found.config), {**stated, **request.arguments})


def _contradictions(request: ModelRequest, found: WeightsFolder, method: str) -> list[str]:
    """Lists where a call contradicts a published model, its method aside."""
    ours, others = split_arguments(METHODS[method].cls, request.arguments)
    architecture, arguments = found.config["architecture"], model_args(found.config)
    wrong = differences(found, request.architecture, others)
    if request.backbone is not None:
        small = architecture == "small_stem"
        backbone = arguments.get("backbone") if small else architecture
        if backbone != request.backbone:
            wrong.append(f"the backbone is {backbone}, not {request.backbone}")
        if request.small_stem not in (None, small):
            wrong.append(f"it was published {'with' if small else 'without'} the small-image stem")
    tag, known = split_model_name_tag(request.name)[1], (found.config.get("pretrained_cfg") or {}).get("tag")
    if request.architecture is not None and tag and tag != known:
        wrong.append(f"the tag is {known}, not {tag}")
    stated = section(found.config).get("method_config", {})
    for key in ("proj_hidden_dim", "proj_dim"):  # of the method's arguments, those that the projector's weights have
        if key in ours and key in stated and (ours[key] or None) != (stated[key] or None):
            wrong.append(f"{key} is {stated[key]}, not {ours[key]}; leave proj_hidden_dim and proj_dim as published")
    return wrong


def _unknown_name(identifier: str, architecture: str) -> str:
    """Returns the message for a name that is neither a model nor a method, with what was probably meant."""
    if (Path(identifier).expanduser() / CONFIG_FILE).is_file():
        return (
            f"there is no model {identifier!r} in the zoo, but there is a folder: "
            f"create_model('local-dir:{identifier}', pretrained=True)."
        )
    hints = []
    near = difflib.get_close_matches(architecture, [*zoo.__all__, *METHODS], n=3, cutoff=0.75)
    if near:
        hints.append(f"did you mean {', '.join(near)}?")
    if timm.is_model(architecture):
        hints.append(f"As a backbone of timm: create_model('simco', backbone={architecture!r}).")
    hints.append("simco_zoo.list_models() lists the names, and a method takes any backbone of timm.")
    return f"there is no model {architecture!r} in the zoo; {' '.join(hints)}"
