"""create_model and list_models: a backbone of timm with a method of the zoo around it."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import timm
from timm.models import parse_model_name, split_model_name_tag

from simco_zoo.hub.folder import LOADING_ARGUMENTS, WeightsFolder
from simco_zoo.hub.weights import create_with_weights, load_projector, resolve
from simco_zoo.models import zoo
from simco_zoo.models.contrastive import ContrastiveModel
from simco_zoo.models.methods import METHODS, method_of, split_arguments


def list_models(
    filter: str | list[str] = "",
    pretrained: bool = False,
    *,
    exclude_filters: str | list[str] = "",
    include_tags: bool | None = None,
) -> list[str]:
    """Lists the zoo's models, with timm's semantics.

    Args:
        filter: Wildcard or several, e.g. ``"simco*"`` or ``"*_r18"``.
        pretrained: Only what this installation can load; names then carry their tag.
        exclude_filters: Wildcards of names to leave out.
        include_tags: Whether names carry the tag of their weights; None: if ``pretrained``.

    Returns:
        Names in natural order.
    """
    names = timm.list_models(
        filter, module="zoo", pretrained=pretrained, exclude_filters=exclude_filters, include_tags=include_tags
    )
    return [name for name in names if split_model_name_tag(name)[0] in zoo.__all__]


def create_model(
    name: str,
    pretrained: bool = False,
    *,
    weights: str | Path | None = None,
    backbone: str | None = None,
    backbone_kwargs: dict[str, Any] | None = None,
    small_stem: bool = False,
    cache_dir: str | Path | None = None,
    **kwargs: Any,
) -> ContrastiveModel:
    """Creates a model of the zoo: a timm backbone with the head and loss of its method.

    Args:
        name: A name from ``list_models``, with or without a tag (``"simco_r18"``, ``"simco_r18.cifar100"``); a
            published model (``"hf-hub:org/name"``, ``"hf-hub:org/name@revision"``, ``"local-dir:PATH"``); or a method
            for any timm backbone (``"simco"``, ``"simmoco"``, ``"mocov1"``, ``"mocov2"``).
        pretrained: Load weights, strictly and after their sha256 was verified. For a method over a free backbone:
            start from timm's own weights of that backbone.
        weights: A file or folder to load instead of the published weights; implies ``pretrained``.
        backbone: timm's name of the backbone, where ``name`` is a method.
        backbone_kwargs: Arguments of that backbone; given with a registered name, they go to its backbone too.
        small_stem: Adapt that backbone to small images (see ``simco_zoo.models.small_stem``).
        cache_dir: Where downloads are kept instead of the Hub client's own cache.
        **kwargs: Arguments of the method (``temperature``, ``dt_m``, ``momentum``, ``queue_size``, ``symmetric``,
            ``proj_hidden_dim``, ``proj_dim``, ``joint_bn``, ``bn_splits``), and timm's arguments of the backbone
            (``num_classes``, default 0 or what was published, ``in_chans``, ``global_pool``, ``drop_path_rate``...).
            With ``features_only=True`` the result is timm's feature-map network, which has no method.

    Returns:
        A ``ContrastiveModel``; called on images (B, C, H, W) it gives pooled features (B, num_features).

    Raises:
        ValueError: If the name is unknown, a method is given without a backbone, or an argument does not fit.
        RuntimeError: If weights are asked for that there are none of, or that are damaged.
    """
    source, identifier = parse_model_name(name)
    if source:
        return _create_published(name, pretrained, weights, backbone_kwargs, cache_dir, kwargs)
    if identifier in METHODS:
        if backbone is None:
            raise ValueError(
                f"{identifier!r} is a method and needs a backbone: create_model({identifier!r}, backbone='resnet18') "
                f"with any name of timm, or one of {', '.join(list_models(identifier + '_*'))}."
            )
        return _create_free(METHODS[identifier].cls, backbone, backbone_kwargs, small_stem, pretrained, weights, kwargs)

    architecture = split_model_name_tag(identifier)[0]
    if architecture not in zoo.__all__:
        raise ValueError(
            f"there is no model {architecture!r} in the zoo; names: {', '.join(list_models())}; "
            f"or a method over any timm backbone: create_model('simco', backbone={architecture!r})."
        )
    if backbone is not None or small_stem:
        raise ValueError(
            f"{architecture} has its backbone already; backbone and small_stem go with a method's name, "
            "e.g. create_model('simco', backbone='resnet18', small_stem=True)."
        )
    found = resolve(identifier, weights=weights, cache_dir=cache_dir) if pretrained or weights is not None else None
    return _assemble(method_of(architecture).cls, architecture, {}, {**kwargs, **(backbone_kwargs or {})}, found)


def _create_published(
    name: str,
    pretrained: bool,
    weights: str | Path | None,
    backbone_kwargs: dict[str, Any] | None,
    cache_dir: str | Path | None,
    kwargs: dict[str, Any],
) -> ContrastiveModel:
    """Creates the model that a published folder or repository describes."""
    if weights is not None:
        raise ValueError(f"{name} names its weights already; leave weights={str(weights)!r} out, or pass only that.")
    found = resolve(name, cache_dir=cache_dir)
    section = found.config.get("simco_zoo")
    if section and section.get("method") not in METHODS:
        raise ValueError(
            f"{found.origin} was published with the method {section.get('method')!r}, which is not known here; import "
            "the module that registers it (simco_zoo.register_method), or load the bare backbone with "
            f"timm.create_model({name!r}, pretrained=True)."
        )
    if not section:
        raise ValueError(
            f"{found.origin} was not published by simco-zoo (its config.json names no method); "
            f"load it with timm.create_model({name!r}, pretrained=True)."
        )
    classes = {"num_classes": found.config.get("num_classes", 0)}  # a fine-tuned model comes with its classifier
    arguments = {**classes, **section.get("method_config", {}), **kwargs, **(backbone_kwargs or {})}
    model_args = found.config.get("model_args") or {}
    return _assemble(
        METHODS[section["method"]].cls, found.config["architecture"], model_args, arguments, found, load=pretrained
    )


def _create_free(
    method: type[ContrastiveModel],
    backbone: str,
    backbone_kwargs: dict[str, Any] | None,
    small_stem: bool,
    pretrained: bool,
    weights: str | Path | None,
    kwargs: dict[str, Any],
) -> ContrastiveModel:
    """Puts a method around any timm backbone."""
    if not timm.is_model(backbone):
        near = difflib.get_close_matches(backbone, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() names those there are."
        raise ValueError(f"timm has no backbone {backbone!r}; {hint}")
    found = resolve("small_stem" if small_stem else backbone, weights=weights) if weights is not None else None
    model_args = dict(backbone_kwargs or {})
    if "num_classes" in model_args:
        raise ValueError("num_classes is an argument of create_model, not of backbone_kwargs.")
    if small_stem:
        if pretrained:
            raise ValueError(
                f"timm's weights of {backbone} do not fit the small-image stem; leave out pretrained or small_stem."
            )
        return _assemble(method, "small_stem", {"backbone": backbone, **model_args}, kwargs, found)
    return _assemble(method, backbone, model_args, kwargs, found, timm_weights=pretrained and found is None)


def _assemble(
    method: type[ContrastiveModel],
    architecture: str,
    model_args: dict[str, Any],
    arguments: dict[str, Any],
    found: WeightsFolder | None,
    *,
    load: bool = True,
    timm_weights: bool = False,
) -> ContrastiveModel:
    """Builds the backbone with timm, loads what was found, and puts the method around it.

    Args:
        method: The model's class.
        architecture: timm's name of the backbone.
        model_args: What config.json keeps of the backbone's arguments.
        arguments: Arguments of the method and, for all other names, of the backbone.
        found: Verified weights, or None.
        load: Whether to load them; otherwise they only describe the model.
        timm_weights: Whether the backbone starts from timm's own weights.
    """
    method_arguments, backbone_arguments = split_arguments(method, arguments)
    build = {"num_classes": 0, **{k: v for k, v in model_args.items() if k != "num_classes"}}
    build.update(backbone_arguments)
    if found is not None:
        build["pretrained_cfg"] = found.timm_cfg()

    if build.get("features_only"):  # the one case of another type, as in timm
        maps: Any = timm.create_model(architecture, pretrained=timm_weights or (found is not None and load), **build)
        return maps

    def build_backbone() -> Any:
        return timm.create_model(architecture, pretrained=timm_weights, **build)

    loading = found if load else None
    on_meta = architecture in zoo.__all__  # not every network of timm can be built without memory
    backbone = build_backbone() if loading is None else create_with_weights(build_backbone, loading, on_meta=on_meta)
    model = method(backbone, **method_arguments)
    if loading is not None and loading.projector_file is not None:
        load_projector(model.projector, loading)
    if "in_chans" in build:
        size = backbone.pretrained_cfg["input_size"][1:]
        backbone.pretrained_cfg = backbone.default_cfg = {
            **backbone.pretrained_cfg,
            "input_size": (build["in_chans"], *size),
        }
    model.architecture = architecture
    model.model_args = {k: v for k, v in build.items() if k not in ("num_classes", *LOADING_ARGUMENTS)}
    return model
