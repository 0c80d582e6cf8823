"""Where weights come from, and how they get into a model.

Sources, in order: a file or folder given by the caller; the folders that ship in ``simco_zoo/weights``; the Hugging
Face Hub at the revision pinned in ``registry.json``. Every way to load a model goes through ``load``, which verifies
the description and hashes each file before it is parsed; keys and shapes are strict.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.models import (
    build_model_with_cfg,
    load_pretrained,
    parse_model_name,
    resolve_pretrained_cfg,
    split_model_name_tag,
)
from torch import Tensor, nn

from simco_zoo.hub.config import (
    CONFIG_FILE,
    MODEL_FILE,
    PROJECTOR_FILE,
    model_args,
    num_classes,
    parse_config,
    section,
    timm_entries,
)
from simco_zoo.hub.download import MismatchError, Repository, WeightsError
from simco_zoo.hub.folder import WeightsFolder, from_hub, from_path, warn_if_unverified

SHIPPED = Path(__file__).parents[1] / "weights"
REGISTRY = Path(__file__).with_name("registry.json")

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
_DEFAULTS = {"stem_padding": 1}  # an argument that config.json leaves out has this value


class MisfitError(WeightsError):
    """Tensors that are not those of the model.

    Attributes:
        shapes: A clause with the first tensors that have another shape, or an empty text.
    """

    def __init__(self, message: str, shapes: str = "") -> None:
        super().__init__(message)
        self.shapes = shapes


@dataclass(frozen=True)
class Published:
    """A published model that this installation knows by name.

    Attributes:
        name: ``NAME.TAG``.
        config: Its config.json.
        folder: The folder that ships with the package, if it does.
        repo_id: Its repository on the Hub, if it has one.
        revision: Full commit sha there.
    """

    name: str
    config: dict[str, Any]
    folder: Path | None = None
    repo_id: str | None = None
    revision: str | None = None

    def timm_cfg(self) -> dict[str, Any]:
        """Returns the entries of timm's pretrained_cfg, with the file or repository of the weights."""
        if self.folder is not None:
            return {**timm_entries(self.config), "file": str(self.folder / MODEL_FILE)}
        return {**timm_entries(self.config), "hf_hub_id": f"{self.repo_id}@{self.revision}"}


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


# What there is


def published() -> dict[str, Published]:
    """Returns the published models that this installation can load by name, shipped ones first."""
    return dict(_published(SHIPPED, REGISTRY)[0])


def damaged() -> dict[str, str]:
    """Returns the entries that cannot be used, shipped folders and those of the registry, each with what is wrong."""
    return dict(_published(SHIPPED, REGISTRY)[1])


@functools.lru_cache
def _published(shipped: Path, registry: Path) -> tuple[dict[str, Published], dict[str, str]]:
    """Reads what is there. It raises nothing: a damaged entry must not keep the package from being imported."""
    found: dict[str, Published] = {}
    problems: dict[str, str] = {}
    for folder in sorted(shipped.iterdir()) if shipped.is_dir() else []:
        if not folder.is_dir():
            continue
        try:
            found[folder.name] = Published(folder.name, from_path(folder, folder_only=True).config, folder=folder)
        except WeightsError as error:
            problems[folder.name] = str(error)
    try:
        entries = json.loads(registry.read_text(encoding="utf-8"))
        if not isinstance(entries, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        problems[registry.name] = f"{registry} cannot be read ({error}); install simco-zoo again."
        return found, problems
    for name, entry in entries.items():
        try:
            found[name] = _registered(name, entry, found.get(name), str(registry))
        except WeightsError as error:
            problems[name] = str(error)
    return found, problems


def _registered(name: str, entry: Any, shipped: Published | None, registry: str) -> Published:
    """Reads one entry of the registry.

    Raises:
        WeightsError: If it is malformed, or names a revision that can move.
    """
    keys = ("repo_id", "revision", "config")
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in keys[:2]):
        raise WeightsError(f"{registry} is malformed: {name} needs {', '.join(keys)}; install simco-zoo again.")
    if not re.fullmatch("[0-9a-f]{40}", entry["revision"]):
        raise WeightsError(
            f"{registry} pins {name} to {entry['revision']!r}, which can move; a registered revision is a full commit "
            "sha. Register the publication again."
        )
    if shipped is not None:
        return dataclasses.replace(shipped, repo_id=entry["repo_id"], revision=entry["revision"])
    config = parse_config(json.dumps(entry.get("config")).encode(), f"the config of {name} in {registry}")
    return Published(name, config, repo_id=entry["repo_id"], revision=entry["revision"])


def resolve(name: str, *, weights: str | Path | None = None, cache_dir: str | Path | None = None) -> WeightsFolder:
    """Finds a published model and verifies its description; its files are verified when they are read.

    Args:
        name: ``NAME``, ``NAME.TAG``, ``hf-hub:org/name[@revision]`` or ``local-dir:PATH``.
        weights: A file or folder of the caller's, which goes before everything else.
        cache_dir: Where downloads are kept instead of the Hub client's cache.

    Returns:
        The description, and where the files are.

    Raises:
        WeightsError: If there are none, or they cannot be had.
    """
    if weights is not None:
        return from_path(Path(weights))
    source, identifier = parse_model_name(name)
    if source == "local-dir":
        return from_path(Path(identifier), folder_only=True)
    if source == "hf-hub":
        repo_id, _, revision = identifier.partition("@")
        return from_hub(Repository(repo_id, revision or None, cache_dir, name))

    architecture, tag = split_model_name_tag(name)
    known, problems = published(), damaged()
    candidates = [key for key in known if split_model_name_tag(key)[0] == architecture]
    chosen = name if tag else (candidates[0] if candidates else "")
    if chosen not in known:
        hit = [text for key, text in problems.items() if key == name or key.split(".")[0] in (architecture, "registry")]
        raise WeightsError(hit[0] if hit else _not_published(name, candidates))
    entry = known[chosen]
    if entry.folder is not None:
        return from_path(entry.folder)
    assert entry.repo_id is not None
    return from_hub(Repository(entry.repo_id, entry.revision, cache_dir, chosen), entry.config)


def _not_published(name: str, candidates: list[str]) -> str:
    """Says that a name has no weights, and which name has: another tag, size or method."""
    known = published()
    ways = "Or train it with recipes/pretrain.py, or load your own with weights=PATH."
    if candidates:
        return f"no weights {name!r} are published; there are {', '.join(candidates)}. {ways}"
    architecture = split_model_name_tag(name)[0]
    method, _, size = architecture.partition("_")
    if not known:
        return f"no weights {name!r} are published, nor any others. {ways}"

    def nearness(other: str) -> tuple[bool, bool, float]:
        other_method, _, other_size = split_model_name_tag(other)[0].partition("_")
        return other_method == method, other_size == size, difflib.SequenceMatcher(None, other, architecture).ratio()

    nearest = max(known, key=nearness)
    short = split_model_name_tag(nearest)[0]
    own = section(known[nearest].config)
    accuracy, data = own.get("metrics", {}).get("knn_top1"), own.get("data", {}).get("name")
    measured = "" if accuracy is None else f" (kNN {accuracy:.1f} %{f' on {data}' if data else ''})"
    return (
        f"{name} has no published weights yet (no weights {name!r} are published); {short} has{measured}: "
        f'create_model("{short}", pretrained=True). {ways}'
    )


# Loading


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
    _check_tensors(backbone, f"{MODEL_FILE} of {found.origin}" if found.folder else found.origin)
    if head is not None:
        _check_tensors(head, f"{PROJECTOR_FILE} of {found.origin}")
    if found.config:
        _check_classifier(found, backbone)
    return LoadedWeights(found, backbone, head)


_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def _check_tensors(tensors: dict[str, Tensor], file: str) -> None:
    """Raises WeightsError for values that no network has."""
    if not tensors:
        raise WeightsError(f"{file} holds no tensors; load another copy.")
    broken = [name for name, tensor in tensors.items() if tensor.dtype in _FLOATS and not _is_finite(tensor)]
    if broken:
        raise WeightsError(f"{file} has values that are no numbers in {_some('', broken)}; load another copy.")
    negative = [
        n for n, t in tensors.items() if n.endswith("running_var") and t.dtype in _FLOATS and bool((t < 0).any())
    ]
    if negative:
        raise WeightsError(f"{file} has negative variances in {_some('', negative)}; load another copy.")


def _is_finite(tensor: Tensor) -> bool:
    # the sum is finite only if every value is (or, for the exact answer, has overflown), and costs a tenth
    return bool(tensor.sum(dtype=torch.float32).isfinite() or tensor.isfinite().all())


def _check_classifier(found: WeightsFolder, tensors: dict[str, Tensor]) -> None:
    """Raises WeightsError unless the file has the classifier that config.json speaks of, and no other."""
    names = timm_entries(found.config).get("classifier") or ()
    present = [n for n in ([names] if isinstance(names, str) else names) if f"{n}.weight" in tensors]
    count = num_classes(found.config)
    rows = {len(tensors[f"{n}.weight"]) for n in present} if names else {count}
    if (rows or {0}) != {count}:
        raise WeightsError(
            f"the classifier in {MODEL_FILE} of {found.origin} has {rows.pop() if rows else 0} classes, but its "
            f"{CONFIG_FILE} says {count}; publish the folder again with simco_zoo.save_pretrained."
        )


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
        with torch.device("meta"):
            backbone = build()
        expected = backbone.state_dict()
        if {k: v.shape for k, v in expected.items()} == {k: v.shape for k, v in tensors.items()}:
            check_fit(tensors, backbone, loaded.found.origin)
            backbone.load_state_dict({k: v.to(expected[k].dtype) for k, v in tensors.items()}, assign=True)
            return backbone
    backbone = build()
    check_fit(tensors, backbone, loaded.found.origin)
    cfg = {**backbone.pretrained_cfg, "state_dict": dict(tensors), "source": "", "file": None, "hf_hub_id": None}
    load_pretrained(backbone, pretrained_cfg=cfg, num_classes=backbone.num_classes, in_chans=_input_channels(backbone))
    return backbone


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
    _check_types(loaded.projector, projector.state_dict(), f"{PROJECTOR_FILE} of {loaded.found.origin}")
    projector.load_state_dict(loaded.projector)


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
    reshaped = [
        f"{name} is {_shape(tensors[name])} in the file and {_shape(tensor)} in the model"
        for name, tensor in expected.items()
        if name in tensors and tensors[name].shape != tensor.shape
        if name not in adapted or not _is_adaptable(tensors[name], tensor, name in first)
    ]
    if missing or extra or reshaped:
        shapes = "; ".join(reshaped[:3]) + (f"; and {len(reshaped) - 3} more differ" if len(reshaped) > 3 else "")
        clauses = [_some("missing", missing), _some("left over", extra), shapes]
        raise MisfitError(
            f"the weights in {origin} do not fit {cfg.get('architecture', type(model).__name__)}: "
            f"{'; '.join(filter(None, clauses))}. Load them into the architecture that they were saved from.",
            shapes,
        )
    _check_types(tensors, expected, origin)


def _is_adaptable(given: Tensor, expected: Tensor, is_first: bool) -> bool:
    """Whether timm can adapt a tensor: a classifier is left out, of a first layer only the input channels differ."""
    return not is_first or (given.ndim == expected.ndim == 4 and given[:, :1].shape == expected[:, :1].shape)


def _check_types(tensors: dict[str, Tensor], expected: dict[str, Tensor], origin: str) -> None:
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
        value = _plain(value)
        as_published = stated.get(key, _DEFAULTS.get(key))
        if value == as_published or "drop" in key or (key in ADAPTATIONS and key not in stated):
            continue
        listed.append(f"{key} is {as_published!r} as published, {value!r} as asked")
    return listed


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
        wrong = differences(found, variant, {**_DEFAULTS, **dict.fromkeys(model_args(found.config)), **asked})
        if wrong:
            raise MismatchError(
                f"the weights in {found.origin} belong to another network: {'; '.join(wrong)}. Load them as they were "
                "published, by timm.create_model('local-dir:PATH', pretrained=True)."
            )
    verified = {"source": "", "file": None, "hf_hub_id": None, "url": "", "custom_load": False}
    overlay = {**overlay, **verified, "state_dict": loaded.backbone}
    if found.config.get("pretrained_cfg"):  # instead of what timm read from a file that may have changed since
        kwargs = {**kwargs, "pretrained_cfg": {"architecture": variant, **timm_entries(found.config)}}
    return {**kwargs, "pretrained_cfg_overlay": overlay}, found.origin


def _plain(value: Any) -> Any:
    """Returns an argument as config.json would hold it."""
    return json.loads(json.dumps(value, default=lambda v: getattr(v, "__name__", str(v))))


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _input_channels(backbone: Any) -> int:
    first = backbone.pretrained_cfg.get("first_conv")
    if not first:
        return 3
    conv = backbone.get_submodule(first if isinstance(first, str) else first[0])
    return getattr(conv, "in_channels", 3)


def _some(label: str, names: Iterable[str], limit: int = 4) -> str:
    listed = sorted(names)
    if not listed:
        return ""
    return f"{label} {', '.join(listed[:limit])}".lstrip() + (
        f" and {len(listed) - limit} more" if len(listed) > limit else ""
    )
