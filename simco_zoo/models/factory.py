"""create_model and list_models: a timm backbone with a contrastive method around it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import timm
from timm.layers import to_2tuple
from timm.models import parse_model_name, split_model_name_tag

from simco_zoo.hub.checks import MisfitError, check_fit
from simco_zoo.hub.config import LOADING_ARGUMENTS, section
from simco_zoo.hub.download import MismatchError, WeightsError
from simco_zoo.hub.registry import resolve
from simco_zoo.hub.weights import LoadedWeights, create_with_weights, load, load_projector
from simco_zoo.models import zoo
from simco_zoo.models.contrastive import ContrastiveModel
from simco_zoo.models.methods import METHODS, method_arguments, not_an_argument
from simco_zoo.models.request import ModelSpec, agree, parse_request


def list_models(
    filter: str | list[str] = "",
    pretrained: bool = False,
    *,
    exclude_filters: str | list[str] = "",
    include_tags: bool | None = None,
) -> list[str]:
    """Lists the registered models, as ``timm.list_models`` does.

    Args:
        filter: Wildcard or several, e.g. ``"simco*"`` or ``"*_r18"``.
        pretrained: Only what this installation can load; names then carry their tag.
        exclude_filters: Wildcards of names to leave out.
        include_tags: Whether names carry the tag of their weights; None: if ``pretrained``.

    Returns:
        Names in natural order.

    Example:
        >>> import simco_zoo
        >>> simco_zoo.list_models("simco_r18*")
        ['simco_r18', 'simco_r18_025']
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
    small_stem: bool | None = None,
    cache_dir: str | Path | None = None,
    **kwargs: Any,
) -> ContrastiveModel:
    """Creates a model: a timm backbone with the projector and loss of a contrastive method.

    A published folder, wherever it comes from, decides the network, its arguments and the method; what the call says in
    addition has to agree. Two kinds of arguments may differ: settings of a training to come (``temperature``,
    ``momentum``...) and timm's adaptations (``num_classes``, ``in_chans``, ``drop_path_rate``, ``features_only``...).

    Args:
        name: A name from ``list_models``, with or without a tag (``"simco_r18"``, ``"simco_r18.cifar100"``); a
            published model (``"hf-hub:org/name"``, ``"hf-hub:org/name@revision"``, ``"local-dir:PATH"``); or a method
            for any timm backbone (``"simco"``, ``"simmoco"``, ``"mocov1"``, ``"mocov2"``).
        pretrained: Load weights, strictly and after their sha256 was verified. For a method over a free backbone:
            start from timm's own weights of that backbone.
        weights: A file or folder to load instead of the published weights; implies ``pretrained``.
        backbone: timm's name of the backbone, where ``name`` is a method.
        backbone_kwargs: Arguments of that backbone; given with a registered name, they go to its backbone too.
        small_stem: Adapt that backbone to small images (see ``simco_zoo.models.small_stem``); None: as ``weights`` were
            published, otherwise no.
        cache_dir: Where downloads are kept instead of the Hub client's own cache.
        **kwargs: Arguments of the method (``temperature``, ``dt_m``, ``momentum``, ``queue_size``, ``symmetric``,
            ``proj_hidden_dim``, ``proj_dim``, ``joint_bn``, ``bn_splits``), and timm's arguments of the backbone
            (``num_classes``, default 0 or what was published, ``in_chans``, ``global_pool``, ``drop_path_rate``...).
            Published weights are adapted to other ``in_chans`` as timm does it: for gray images (``in_chans=1``) the
            first convolution's weights are summed over the channels. To another ``img_size`` the position embeddings
            of a ViT are interpolated. With ``features_only=True`` the result is timm's feature-map network, which has
            no method.

    Returns:
        A ``ContrastiveModel``; called on images (B, C, H, W) it gives pooled features (B, num_features).

    Raises:
        ValueError: If the name is unknown, a method is given without a backbone, or an argument does not fit.
        WeightsError: If weights are asked for that there are none of, that are damaged, or that are another model's.

    Example:
        >>> import simco_zoo, torch
        >>> model = simco_zoo.create_model("simco_r18_025", pretrained=True).eval()
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 128])
    """
    if not isinstance(pretrained, bool):
        raise ValueError(f"pretrained is {pretrained!r}, but has to be True or False; pass a path as weights=PATH.")
    features_only = kwargs.get("features_only", False)
    for argument, value, types, said in (
        ("name", name, str, "a text, e.g. 'simco_r18' or 'local-dir:PATH'"),
        ("weights", weights, (str, PathLike, NoneType), "a path"),
        ("backbone", backbone, (str, NoneType), "timm's name of a backbone"),
        ("backbone_kwargs", backbone_kwargs, (dict, NoneType), "a dict of arguments"),
        ("small_stem", small_stem, (bool, NoneType), "True or False"),
        ("features_only", features_only, bool, "True or False"),
    ):
        if not isinstance(value, types):
            raise ValueError(f"{argument} is {value!r}, but has to be {said}.")
    source, identifier = parse_model_name(name)
    if source and weights is not None:
        raise ValueError(f"{name} names its weights already; leave weights={str(weights)!r} out, or pass only that.")
    if "num_classes" in (backbone_kwargs or {}):
        raise ValueError("num_classes is an argument of create_model, not of backbone_kwargs.")
    request = parse_request(name, backbone, small_stem, {**kwargs, **(backbone_kwargs or {})})
    if weights is None and not source and (not pretrained or identifier in METHODS):
        if pretrained and small_stem:
            raise ValueError(
                f"timm's weights of {backbone} do not fit the small-image stem; leave out pretrained or small_stem."
            )
        return _build(request.spec(), timm_weights=pretrained)
    if weights is None and not pretrained:  # the folder describes the model, no more
        return _build(agree(request, resolve(name, cache_dir=cache_dir)))

    loaded = load(name, weights=weights, cache_dir=cache_dir)
    if not loaded.found.config:
        return _build(request.spec(), loaded)
    spec = agree(request, loaded.found, loaded.backbone)
    _check_method_config(loaded)
    try:
        return _build(spec, loaded)
    except WeightsError:
        raise
    except Exception as error:  # timm's networks refuse arguments in as many ways as there are networks
        if kwargs or backbone_kwargs:
            raise
        reason = (str(error).strip() or "no reason given").splitlines()[0][:200]
        raise WeightsError(
            f"{loaded.found.origin} describes a network that cannot be built ({type(error).__name__}: {reason}); "
            "restore its config.json, or publish the folder again."
        ) from error


def _build(spec: ModelSpec, loaded: LoadedWeights | None = None, *, timm_weights: bool = False) -> ContrastiveModel:
    """Builds the backbone with timm, puts verified weights into it, and puts the method around it.

    Args:
        spec: The model.
        loaded: Its weights, or None.
        timm_weights: Whether the backbone starts from timm's own weights.
    """
    ours, build = spec.split()
    _check_types(METHODS[spec.method].cls, ours)
    # a bare file says nothing of the input, so the network's own description stays
    described = loaded is not None and bool(loaded.found.config)
    cfg: dict[str, Any] = {"pretrained_cfg": loaded.found.timm_cfg()} if loaded is not None and described else {}
    if build.get("features_only"):  # the one case of another type, as in timm
        try:
            return _feature_maps(spec, loaded, timm_weights)
        except IndexError as error:
            raise ValueError(f"{spec.architecture} has no feature maps {build.get('out_indices')}.") from error

    def build_backbone(**changed: Any) -> Any:
        try:
            return timm.create_model(spec.architecture, pretrained=timm_weights, **{**build, **changed}, **cfg)
        except TypeError as error:
            raise not_an_argument(error, METHODS[spec.method].cls, spec.arguments) or error from None

    if loaded is None:
        backbone = build_backbone()
    else:
        on_meta = spec.architecture in zoo.__all__  # not every network of timm can be built without memory
        try:
            backbone = create_with_weights(build_backbone, loaded, on_meta=on_meta)
        except MisfitError as error:
            resized = _resized_backbone(build_backbone, spec, loaded) if described else None
            if resized is None:
                raise MismatchError(f"{error}{_fitting_names(spec, loaded)}") from error
            backbone = resized
    model = METHODS[spec.method].cls(backbone, **ours)
    if loaded is not None and loaded.projector is not None:
        load_projector(model.head, loaded)
    elif loaded is not None:
        model.set_missing_projector(f"{loaded.found.origin} has no projector")
    cfg = dict(backbone.pretrained_cfg)
    tag = cfg.get("tag")
    if loaded is not None:
        model.set_loaded_from(loaded.name)
    elif timm_weights:
        named = f"{spec.architecture}.{tag}" if tag else spec.architecture
        model.set_loaded_from(f"hf-hub:{cfg['hf_hub_id']}" if cfg.get("hf_hub_id") else named)
    if not described:
        cfg.pop("tag", None)  # it is the tag of other weights than this model's
    cfg["input_size"] = _input_size(cfg["input_size"], build)
    model.set_pretrained_cfg(cfg)
    kept = {key: value for key, value in build.items() if key not in ("num_classes", *LOADING_ARGUMENTS)}
    model.set_architecture(spec.architecture, kept)
    return model


def _resized_backbone(build: Callable[..., Any], spec: ModelSpec, loaded: LoadedWeights) -> Any | None:
    """Builds the network as it was published and lets timm interpolate its position embeddings for another input.

    Returns:
        The backbone; None if no other ``img_size`` was asked for, or this network depends on it in other ways.
    """
    asked, published = spec.arguments.get("img_size"), spec.model_args.get("img_size")
    if asked is None or (published is not None and to_2tuple(asked) == to_2tuple(published)):
        return None
    size = published or loaded.found.timm_cfg()["input_size"][1:]
    backbone = create_with_weights(lambda: build(img_size=size), loaded, on_meta=False)
    resize = getattr(backbone, "set_input_size", None)
    # windows would become others, with other weights
    if resize is None or "window_size" in inspect.signature(resize).parameters:
        return None
    resize(img_size=to_2tuple(asked))
    return backbone


def _input_size(described: Sequence[int], build: dict[str, Any]) -> tuple[int, ...]:
    """Returns channels, height and width of a network's input, which its arguments may change."""
    channels, *size = described
    return (build.get("in_chans") or channels, *to_2tuple(build.get("img_size") or size))


def _feature_maps(spec: ModelSpec, loaded: LoadedWeights | None, timm_weights: bool) -> Any:
    """Builds timm's feature-map network; its verified tensors have to be the whole backbone, as everywhere."""
    build = spec.split()[1]
    if loaded is None:
        return timm.create_model(spec.architecture, pretrained=timm_weights, **build)
    maps_only = ("features_only", "out_indices", "feature_cls", "feature_cfg", "output_fmt")
    whole = {key: value for key, value in build.items() if key not in maps_only}
    network = timm.create_model(spec.architecture, **whole, pretrained_cfg=loaded.found.timm_cfg())
    check_fit(loaded.backbone, network, loaded.found.origin)
    cfg = {**loaded.found.timm_cfg(), "state_dict": loaded.backbone}
    maps: Any = timm.create_model(spec.architecture, pretrained=True, **build, pretrained_cfg=cfg)
    for kept in (maps.pretrained_cfg, maps.default_cfg):
        kept.pop("state_dict", None)
    return maps


def _check_method_config(loaded: LoadedWeights) -> None:
    """Raises WeightsError if a published argument of the method is unknown or of another type than the method's."""
    own = section(loaded.found.config)
    known = method_arguments(METHODS[own["method"]].cls) if "method" in own else {}
    for name, value in own.get("method_config", {}).items():
        problem = "is unknown" if name not in known else None
        if name in known and not _has_type(value, known[name].annotation):
            problem = f"is {value!r}, which is of another type"
        if problem is not None:
            raise WeightsError(
                f"{loaded.found.origin} is malformed: {name} of the method {own['method']} {problem}; restore its "
                "config.json, or publish the folder again."
            )


def _check_types(cls: type[ContrastiveModel], arguments: dict[str, Any]) -> None:
    """Raises ValueError for an argument of a method that is not of its type: ``symmetric="no"`` would be true."""
    for name, parameter in method_arguments(cls).items():
        expected = parameter.annotation
        if name not in arguments:
            continue
        if isinstance(arguments[name], (tuple, list)) and "tuple[" in str(expected):
            continue  # the method checks the parts of a tuple, and says what they mean
        if expected is not type(None) and not _has_type(arguments[name], expected):
            said = expected.__name__ if isinstance(expected, type) else str(expected).replace("typing.", "")
            said = f"of the type {said}"
            if get_origin(expected) is Literal:
                said = f"one of {', '.join(map(str, get_args(expected)))}"
            raise ValueError(f"{name} is {arguments[name]!r}, but has to be {said}.")


def _has_type(value: Any, annotation: Any) -> bool:
    """Whether a value is of an argument's type: plain, a Literal, a tuple (a list in JSON), or a union."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return any(_has_type(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if origin is tuple:
        fits = isinstance(value, list | tuple) and len(value) == len(parts)
        return fits and all(_has_type(v, part) for v, part in zip(value, parts, strict=True))
    if isinstance(value, bool) or not isinstance(annotation, type):
        return annotation in (bool, Any)
    return isinstance(value, Real if annotation is float else Integral if annotation is int else annotation)


def _fitting_names(spec: ModelSpec, loaded: LoadedWeights) -> str:
    """Returns a sentence with the registered names of the same method that the tensors do fit."""
    fitting = []
    for name in zoo.__all__:
        if name.split("_")[0] == spec.method:
            try:
                check_fit(loaded.backbone, timm.create_model(name), "")
            except MisfitError:
                continue
            fitting.append(name)
    return f" They fit {' and '.join(fitting)}." if fitting else ""
