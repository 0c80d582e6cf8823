"""Whether tensors are a model's: their values, keys, shapes and types, and the arguments they were published with."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable
from typing import Any

import torch
from timm.layers import get_act_layer
from timm.models import adapt_input_conv
from torch import Tensor

from simco_zoo.hub.config import CONFIG_FILE, MODEL_FILE, model_args, num_classes, timm_entries
from simco_zoo.hub.download import WeightsError
from simco_zoo.hub.folder import WeightsFolder

# timm's arguments that adapt a published network to another use and leave its weights what they are; all others of the
# caller's have to agree with what was published
ADAPTATIONS = {
    "dynamic_img_size",
    "exportable",
    "feature_cfg",
    "feature_cls",
    "features_only",
    "global_pool",
    "img_size",
    "in_chans",
    "no_jit",
    "num_classes",
    "out_indices",
    "output_fmt",
    "output_stride",
    "scriptable",
    "strict_img_size",
    "zero_init_last",
}
# of these, what a call asks for may differ even from what config.json states; older timm adapts from 3 channels only
_ASKED = {"in_chans", "img_size"}
_FROM_ANY_CHANNELS = "base_chans" in inspect.signature(adapt_input_conv).parameters
DEFAULTS = {"stem_padding": 1}  # an argument that config.json leaves out has this value
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class MisfitError(WeightsError):
    """Tensors that are not those of the model.

    Attributes:
        shapes: A clause with the first tensors that have another shape, or an empty text.
    """

    def __init__(self, message: str, shapes: str = "") -> None:
        super().__init__(message)
        self.shapes = shapes


def check_tensors(tensors: dict[str, Tensor], file: str) -> None:
    """Raises WeightsError for values that no network has."""
    if not tensors:
        raise WeightsError(f"{file} holds no tensors; load another copy.")
    broken = [name for name, tensor in tensors.items() if tensor.dtype in _FLOATS and not _is_finite(tensor)]
    if broken:
        raise WeightsError(f"{file} has values that are not finite numbers in {_some('', broken)}; load another copy.")
    negative = [
        n for n, t in tensors.items() if n.endswith("running_var") and t.dtype in _FLOATS and bool((t < 0).any())
    ]
    if negative:
        raise WeightsError(f"{file} has negative variances in {_some('', negative)}; load another copy.")


def _is_finite(tensor: Tensor) -> bool:
    # the sum is finite only if every value is (or, for the exact answer, has overflown), and costs a tenth
    return bool(tensor.sum(dtype=torch.float32).isfinite() or tensor.float().isfinite().all())


def check_classifier(found: WeightsFolder, tensors: dict[str, Tensor]) -> None:
    """Raises WeightsError unless the file has the classifier that config.json speaks of, and no other."""
    count, cfg = num_classes(found.config), timm_entries(found.config)
    rows = classes_in(tensors, cfg) if cfg.get("classifier") else count
    if rows != count:
        raise WeightsError(
            f"the classifier in {MODEL_FILE} of {found.origin} has {rows} classes, but its "
            f"{CONFIG_FILE} says {count}; publish the folder again with simco_zoo.save_pretrained."
        )


def classes_in(tensors: dict[str, Tensor], cfg: dict[str, Any]) -> int:
    """Returns the number of classes of a file's classifier, 0 if it has none; ``cfg`` is timm's pretrained_cfg."""
    names = cfg.get("classifier") or ()
    weights = [tensors.get(f"{name}.weight") for name in ([names] if isinstance(names, str) else names)]
    return next((len(weight) for weight in weights if weight is not None and weight.ndim), 0)


def input_channels(model: Any) -> int | None:
    """Returns the channels of the images that a timm model takes, None where that cannot be told."""
    stated = getattr(model, "in_chans", None)
    if isinstance(stated, int):
        return stated
    cfg = getattr(model, "pretrained_cfg", None) or {}
    names, modules = cfg.get("first_conv") or (), dict(model.named_modules())
    layers = [modules.get(name) for name in ([names] if isinstance(names, str) else names)]
    found = next((layer.in_channels for layer in layers if isinstance(layer, torch.nn.Conv2d)), None)
    # the stems that see several pixels as channels have at least four times as many
    return found if found is None or found < 4 * (cfg.get("input_size") or (3,))[0] else None


def check_fit(tensors: dict[str, Tensor], model: Any, origin: str) -> None:
    """Raises MisfitError unless the tensors are the whole model and nothing else.

    timm loads with strict=False where the number of classes differs, and then takes half a model without a word. Here
    only the classifier may be missing (a fresh one is made) or left over (the model has none or another), and the first
    convolution may have other input channels.

    Args:
        tensors: The tensors of the file.
        model: A timm model.
        origin: What to call the file in a message.
    """
    cfg: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    layers = {key: cfg.get(key) or () for key in ("classifier", "first_conv")}
    classifier, first = (
        {f"{n}.{p}" for n in ([names] if isinstance(names, str) else names) for p in ("weight", "bias")}
        for names in layers.values()
    )
    expected = model.state_dict()
    missing, extra = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    if not classifier & tensors.keys():
        missing -= classifier
    if not classifier & expected.keys():
        extra -= classifier
    same_classes = getattr(model, "num_classes", None) == cfg.get("num_classes")
    adapted = first | (set() if same_classes else classifier)
    channels = (cfg.get("input_size") or (3,))[0]  # of the images that the weights were trained with
    reshaped = [
        f"{name} is {_shape(tensors[name])} in the file and {_shape(tensor)} in the model"
        for name, tensor in expected.items()
        if name in tensors and tensors[name].shape != tensor.shape
        if name not in adapted or not _is_adaptable(tensors[name], tensor, channels if name in first else None)
    ]
    if missing or extra or reshaped:
        shapes = "; ".join(reshaped[:3]) + (f"; and {len(reshaped) - 3} more differ" if len(reshaped) > 3 else "")
        clauses = [_some("missing", missing), _some("left over", extra), shapes]
        raise MisfitError(
            f"the weights in {origin} do not fit {cfg.get('architecture', type(model).__name__)}: "
            f"{'; '.join(filter(None, clauses))}. Load them into the architecture that they were saved from.",
            shapes,
        )
    check_types(tensors, expected, origin)


def _is_adaptable(given: Tensor, expected: Tensor, channels: int | None) -> bool:
    """Whether timm can adapt a tensor: a classifier is left out, of a first layer only the input channels differ.

    Args:
        given: What the file has.
        expected: What the model has.
        channels: For a first layer the input channels that the weights were published for; None for a classifier.
    """
    if channels is None:
        return True
    if not given.ndim == expected.ndim == 4 or given[:, :1].shape != expected[:, :1].shape:
        return False
    per_channel, rest = divmod(given.shape[1], channels)  # some stems see several pixels as channels
    # timm sums the channels of such stems for gray images, and knows no other adaptation of them
    return rest == 0 and (per_channel == 1 or expected.shape[1] == per_channel)


def check_types(tensors: dict[str, Tensor], expected: dict[str, Tensor], origin: str) -> None:
    """Raises MisfitError for tensors of another kind (float, integer, bool) than the model's."""
    wrong = []
    for name in tensors.keys() & expected.keys():
        given, wanted = tensors[name].dtype, expected[name].dtype
        if (wanted in _FLOATS) != (given in _FLOATS) or (wanted == torch.bool) != (given == torch.bool):
            wrong.append(f"{name} as {str(given).removeprefix('torch.')}")
    if wrong:
        raise MisfitError(f"{origin} has {_some('', wrong)}, which no network has; load another copy.")


def differences(found: WeightsFolder, architecture: str | None, asked: dict[str, Any]) -> list[str]:
    """Lists where a caller's arguments contradict a published network; adaptations do not.

    Args:
        found: The published model.
        architecture: timm's name of the network that the caller named, if any.
        asked: Arguments of the backbone that the caller named.

    Returns:
        Clauses such as ``"stem_padding is 2 as published, 1 as asked"``.
    """
    stated, listed = model_args(found.config), []
    if architecture not in (None, found.config["architecture"]):
        listed.append(f"architecture is {found.config['architecture']} as published, {architecture} as asked")
    for key, value in asked.items():
        value = plain(value)
        as_published = stated.get(key, DEFAULTS.get(key))
        if value == as_published or "drop" in key or (key in ADAPTATIONS and key not in stated):
            continue
        adaptable = key != "in_chans" or _FROM_ANY_CHANNELS or as_published == 3
        if key in _ASKED and value is not None and adaptable:
            continue
        listed.append(f"{key} is {as_published!r} as published, {value!r} as asked")
    return listed


def plain(value: Any) -> Any:
    """Returns an argument as config.json would hold it: timm's name of an activation, and of other classes their own.

    Example:
        >>> plain(torch.nn.GELU), plain((2, 2))
        ('gelu', [2, 2])
    """
    return json.loads(json.dumps(value, default=_name_of))


def _name_of(value: Any) -> str:
    return activation_name(value) or str(getattr(value, "__name__", value))


def activation_name(value: Any) -> str | None:
    """Returns timm's name of an activation's class, None for anything else."""
    if not isinstance(value, type) or value.__module__.split(".")[0] not in ("torch", "timm"):
        return None
    name = value.__name__.lower()
    try:
        return name if get_act_layer(name).__name__ == value.__name__ else None
    except KeyError:
        return None


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _some(label: str, names: Iterable[str], limit: int = 4) -> str:
    listed = sorted(names)
    if not listed:
        return ""
    return f"{label} {', '.join(listed[:limit])}".lstrip() + (
        f" and {len(listed) - limit} more" if len(listed) > limit else ""
    )
