"""config.json of a published folder, treated as untrusted input: parsed, checked, and compared with its own hash.

``simco_zoo.config_sha256`` is the sha256 of everything else in the file. Every way to load a model starts here, so a
changed mean, temperature or file name is an error and never another model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from timm.models import PretrainedCfg

from simco_zoo.hub.download import WeightsError

# timm's, in its own words
INTERPOLATIONS = ("bicubic", "bilinear", "lanczos", "nearest", "box", "hamming", "random")
CROP_MODES = ("center", "squash", "border")
MODEL_FILE, PROJECTOR_FILE, CONFIG_FILE = "model.safetensors", "projector.safetensors", "config.json"
FORMAT = 2  # of the "simco_zoo" section; folders of format 1 have no hash of their config.json
CONFIG_HASH = "config_sha256"

# what config.json may say about the weights: everything but where they are and how they are loaded
_CFG_FIELDS = {field.name for field in dataclasses.fields(PretrainedCfg)} - {
    "url",
    "file",
    "state_dict",
    "hf_hub_id",
    "hf_hub_filename",
    "source",
    "architecture",
    "custom_load",
}
# arguments that load something, or make timm build another kind of model, instead of describing a network
LOADING_ARGUMENTS = {
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_filter_fn",
    "pretrained_model_args",
    "pretrained_strict",
    "checkpoint_path",
    "cache_dir",
    "features_only",
    "out_indices",
    "feature_cls",
    "feature_cfg",
}


def parse_config(data: bytes, origin: str) -> dict[str, Any]:
    """Parses config.json, and refuses one that is damaged, malformed, or points out of its folder.

    Args:
        data: The file's content.
        origin: What to call it in a message.

    Returns:
        The configuration. It belongs to timm alone if it has no ``simco_zoo`` section.

    Raises:
        WeightsError: A sentence that says what is wrong.
    """
    try:
        config = json.loads(data, parse_constant=_refuse_constant, parse_int=_parse_int, parse_float=_parse_float)
        if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
            raise WeightsError(f"{origin} names no architecture; it is not a config.json of timm or simco-zoo.")
        found = config_hash(config) if isinstance(config.get("simco_zoo"), dict) else None
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise WeightsError(f"{origin} is not JSON ({reason}); restore it, or publish the folder again.") from error
    own = config.get("simco_zoo")
    if any(isinstance(part, dict) and CONFIG_HASH in part for name, part in config.items() if name != "simco_zoo"):
        raise WeightsError(f"{origin} is damaged: its section simco_zoo has another name; restore it.")
    if not saved_by_transformers(config):
        stated = own.get(CONFIG_HASH) if isinstance(own, dict) else None
        if stated is not None and stated != found:
            raise WeightsError(
                f"{origin} is damaged or was edited: the sha256 of its content is {found}, but {str(stated)[:64]!r} "
                "was published; restore it, or load another copy."
            )
        if stated is None and isinstance(own, dict) and own.get("format", 1) != 1:
            raise WeightsError(f"{origin} is damaged: it has no {CONFIG_HASH}; restore it, or load another copy.")
    _check_architecture(config, origin)
    _check(config, _TOP, "", origin)
    _check(config.get("pretrained_cfg") or {}, _PRETRAINED_CFG, "pretrained_cfg.", origin)
    _check_channels(config, origin)
    if own is not None:
        _check(own, _SECTION, "simco_zoo.", origin)
        for name, entry in own.get("files", {}).items():
            _check(entry, _FILE, f"simco_zoo.files.{name}.", origin)
        if not saved_by_transformers(config):
            _check_classes(config, origin)
    return config


def sha256_of(content: bytes) -> str:
    """Returns a sha256 as config.json states it."""
    return hashlib.sha256(content).hexdigest()


def config_hash(config: dict[str, Any]) -> str:
    """Returns the sha256 of config.json's canonical content: everything but the hash itself, keys in order."""
    content = {**config, "simco_zoo": {k: v for k, v in config["simco_zoo"].items() if k != CONFIG_HASH}}
    return sha256_of(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())


def seal(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a config with the hash of its own content, as ``parse_config`` expects it."""
    own = {**config["simco_zoo"], "format": FORMAT}
    own.pop(CONFIG_HASH, None)
    config = json.loads(json.dumps({**config, "simco_zoo": own}))  # as a reader will see it
    return {**config, "simco_zoo": {**config["simco_zoo"], CONFIG_HASH: config_hash(config)}}


def section(config: dict[str, Any]) -> dict[str, Any]:
    """Returns simco-zoo's own part of config.json, empty where timm wrote it."""
    return config.get("simco_zoo") or {}


def is_sealed(config: dict[str, Any]) -> bool:
    """Tells whether a config carries its own hash; folders of earlier versions do not."""
    return CONFIG_HASH in section(config) and not saved_by_transformers(config)


def saved_by_transformers(config: dict[str, Any]) -> bool:
    """Tells whether transformers wrote a folder: it keeps our section, but the weights and classes are new ones."""
    return config.get("model_type") == "timm_wrapper" and "transformers_version" in config


def num_classes(config: dict[str, Any]) -> int:
    """Returns the number of classes of the published classifier, 0 for a feature extractor."""
    count = config.get("num_classes")
    return (config.get("pretrained_cfg") or {}).get("num_classes", 0) if count is None else count


def model_args(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments with which timm builds the published backbone."""
    return {k: v for k, v in (config.get("model_args") or {}).items() if k != "num_classes"}


def timm_entries(config: dict[str, Any]) -> dict[str, Any]:
    """Returns what config.json says in timm's terms about the input that the weights expect."""
    entries = {key: value for key, value in (config.get("pretrained_cfg") or {}).items() if key in _CFG_FIELDS}
    if saved_by_transformers(config):  # it moves these two to the top
        entries["num_classes"] = num_classes(config)
        entries["label_names"] = config.get("label_names")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entries.items()}


# What each value has to be


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _parse_int(digits: str) -> int:
    if len(digits) > 19:  # beyond 64 bits, and perhaps beyond the largest float
        raise ValueError(f"the integer {digits[:20]}... is too large")
    return int(digits)


def _parse_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _list_of(check: Callable[[Any], bool], length: int | None = None) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(check, value)) and (length is None or len(value) == length)


def _optional(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_int(value) and value >= 0


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _is_metrics(value: Any) -> bool:
    return isinstance(value, dict) and all(v is None or _is_number(v) for v in value.values())


_Rules = dict[str, tuple[Callable[[Any], bool], str]]
_POSITIVE = (lambda v: _is_number(v) and v > 0, "a positive number")
_SIZE = (_list_of(lambda v: _is_int(v) and 0 < v <= 2**16, 3), "three positive integers")
_TEXT, _OBJECT, _BOOL = (_is_text, "a text"), (_is_object, "a JSON object"), (_is_bool, "true or false")
_LAYERS = (_optional(lambda v: _is_text(v) or _list_of(_is_text)(v)), "the name of a layer, or a list of names")
_NAMES = (_optional(_list_of(_is_text)), "a list of texts")

_TOP: _Rules = {
    "num_classes": (_optional(_is_count), "an integer of at least 0"),
    "num_features": (lambda v: _is_int(v) and v > 0, "a positive integer"),
    "global_pool": _TEXT,
    "model_args": (_optional(_is_object), "a JSON object"),
    "pretrained_cfg": (_optional(_is_object), "a JSON object"),
    "simco_zoo": _OBJECT,
    "dtype": _TEXT,
    "label_names": _NAMES,
    "id2label": _OBJECT,
    "auto_map": _OBJECT,
}
_PRETRAINED_CFG: _Rules = {
    "input_size": _SIZE,
    "test_input_size": (_optional(_SIZE[0]), _SIZE[1]),
    "min_input_size": (_optional(_SIZE[0]), _SIZE[1]),
    "fixed_input_size": _BOOL,
    "interpolation": (lambda v: v in INTERPOLATIONS, "one of timm's interpolation modes"),
    "crop_pct": _POSITIVE,
    "test_crop_pct": (_optional(_POSITIVE[0]), _POSITIVE[1]),
    "crop_mode": (lambda v: v in CROP_MODES, "center, squash or border"),
    "mean": (_list_of(_is_number), "a list of numbers"),
    "std": (_list_of(_POSITIVE[0]), "a list of positive numbers"),
    "num_classes": (_optional(_is_count), "an integer of at least 0"),
    "label_offset": (_optional(_is_count), "an integer of at least 0"),
    "label_names": _NAMES,
    "pool_size": (_optional(_list_of(_is_count)), "a list of integers"),
    "test_pool_size": (_optional(_list_of(_is_count)), "a list of integers"),
    "first_conv": _LAYERS,
    "classifier": _LAYERS,
    "license": (_optional(_is_text), "a text"),
    "tag": (_optional(_is_text), "a text"),
}  # fmt: skip
_SECTION: _Rules = {
    "format": (lambda v: _is_int(v) and 1 <= v <= FORMAT, f"an integer of at most {FORMAT} (a higher one needs a newer "
               "simco-zoo)"),
    "method": _TEXT,
    "method_config": _OBJECT,
    "loss": _OBJECT,
    "recipe": _OBJECT,
    "data": _OBJECT,
    "metrics": (_is_metrics, "a JSON object of numbers"),
    "hardware": (_optional(_is_text), "a text"),
    "curves": _BOOL,
    "versions": _OBJECT,
    "files": (lambda v: _is_object(v) and all(map(_is_object, v.values())), "a JSON object of JSON objects"),
    "documents": (lambda v: _is_object(v) and all(map(_is_sha256, v.values())), "a JSON object of sha256s"),
    "fingerprint": _OBJECT,
}  # fmt: skip
_FILE: _Rules = {"sha256": (_is_sha256, "64 hexadecimal digits"), "size": (_is_count, "a number of bytes")}


def _check(part: dict[str, Any], rules: _Rules, prefix: str, origin: str) -> None:
    for name, (is_right, description) in rules.items():
        if name in part and not is_right(part[name]):
            shown = json.dumps(part[name])
            raise WeightsError(
                f"{origin} is malformed: {prefix}{name} is {shown if len(shown) <= 60 else shown[:60] + '...'}, but "
                f"has to be {description}; restore it, or publish the folder again."
            )


def _check_architecture(config: dict[str, Any], origin: str) -> None:
    """Refuses names and arguments that reach out of the folder."""
    own, arguments = config.get("simco_zoo"), config.get("model_args")
    parts: dict[str, Any] = {
        "simco_zoo.files": own.get("files") if isinstance(own, dict) else {},
        "simco_zoo.documents": own.get("documents") if isinstance(own, dict) else {},
        "model_args": arguments,
        "simco_zoo.method_config": own.get("method_config") if isinstance(own, dict) else {},
    }
    objects = {name: part if isinstance(part, dict) else {} for name, part in parts.items()}
    outside = [
        name for part in ("simco_zoo.files", "simco_zoo.documents") for name in objects[part] if Path(name).name != name
    ]
    if not re.fullmatch(r"\w[\w-]*", config["architecture"]):
        outside.append(config["architecture"])
    if outside:
        raise WeightsError(f"{origin} points to {outside[0]!r} outside its folder; do not trust this folder.")
    for part in ("model_args", "simco_zoo.method_config"):
        loading = sorted(LOADING_ARGUMENTS & objects[part].keys())
        if loading:
            raise WeightsError(
                f"{origin} is malformed: {part} has {loading[0]!r}, which does not describe a network; do not trust "
                "this folder."
            )


def _check_channels(config: dict[str, Any], origin: str) -> None:
    cfg = config.get("pretrained_cfg") or {}
    lengths = {len(cfg[key]) for key in ("mean", "std") if key in cfg}
    if len(lengths) > 1 or not lengths <= {1, 3, cfg.get("input_size", [3])[0]}:
        raise WeightsError(
            f"{origin} is malformed: mean and std need a number for each of the input's channels; restore it, or "
            "publish the folder again."
        )


def _check_classes(config: dict[str, Any], origin: str) -> None:
    """Refuses a config whose parts disagree about the classes."""
    count, cfg = num_classes(config), config.get("pretrained_cfg") or {}
    stated = {"pretrained_cfg.num_classes": cfg.get("num_classes")}
    names = cfg.get("label_names")
    for key, value in (("pretrained_cfg.label_names", names), ("label_names", config.get("label_names"))):
        stated[key] = None if value is None else len(value)
    wrong = [f"{key} has {value}" for key, value in stated.items() if value not in (None, count)]
    if "id2label" in config and list(config["id2label"].items()) != [(str(i), n) for i, n in enumerate(names or [])]:
        wrong.append("id2label has other names")
    if config.get("label_names") not in (None, names):
        wrong.append("label_names has other names than pretrained_cfg.label_names")
    if wrong:
        raise WeightsError(
            f"{origin} contradicts itself about its classes: num_classes is {count}, but {' and '.join(wrong)}; "
            "publish the folder again."
        )
