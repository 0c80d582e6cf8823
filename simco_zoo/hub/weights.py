"""Where weights come from, and how they get into a model.

Sources, in order: a file or folder given by the caller; the folders that ship in ``simco_zoo/weights``; the Hugging
Face Hub at the revision pinned in ``registry.json``. Every file is hashed before it is loaded, and keys are strict.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.models import load_pretrained, parse_model_name, resolve_pretrained_cfg, split_model_name_tag
from torch import Tensor, nn

from simco_zoo.hub.download import Repository
from simco_zoo.hub.errors import WeightsError
from simco_zoo.hub.folder import (
    CONFIG_FILE,
    MODEL_FILE,
    WeightsFolder,
    from_hub,
    from_path,
    parse_config,
    read_bytes,
    timm_entries,
)

SHIPPED = Path(__file__).parents[1] / "weights"
REGISTRY = Path(__file__).with_name("registry.json")


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


def published() -> dict[str, Published]:
    """Returns the published models that this installation can load by name, shipped ones first."""
    return dict(_published(SHIPPED, REGISTRY))


@functools.lru_cache
def _published(shipped: Path, registry: Path) -> dict[str, Published]:
    found: dict[str, Published] = {}
    for folder in sorted(shipped.iterdir()) if shipped.is_dir() else []:
        if (folder / CONFIG_FILE).is_file():
            config = parse_config(read_bytes(folder / CONFIG_FILE, folder.name), f"{CONFIG_FILE} of {folder.name}")
            found[folder.name] = Published(folder.name, config, folder=folder)
    for name, entry in json.loads(registry.read_text(encoding="utf-8")).items():
        if name in found:
            found[name] = dataclasses.replace(found[name], repo_id=entry["repo_id"], revision=entry["revision"])
        else:
            found[name] = Published(name, entry["config"], repo_id=entry["repo_id"], revision=entry["revision"])
    return found


def resolve(name: str, *, weights: str | Path | None = None, cache_dir: str | Path | None = None) -> WeightsFolder:
    """Finds the files of a model; they are verified when they are read.

    Args:
        name: ``NAME``, ``NAME.TAG``, ``hf-hub:org/name[@revision]`` or ``local-dir:PATH``.
        weights: A file or folder of the caller's, which goes before everything else.
        cache_dir: Where downloads are kept instead of the Hub client's cache.

    Returns:
        The files.

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
    known = published()
    candidates = [key for key in known if split_model_name_tag(key)[0] == architecture]
    chosen = name if tag else (candidates[0] if candidates else "")
    if chosen not in known:
        there = f"there are {', '.join(candidates)}" if candidates else "none are published yet"
        raise WeightsError(
            f"no weights {name!r} are published ({there}); names with weights: {', '.join(known) or 'none'}. "
            "Train it with recipes/pretrain.py, or load your own with weights=PATH."
        )
    entry = known[chosen]
    if entry.folder is not None:
        return from_path(entry.folder)
    assert entry.repo_id is not None
    return from_hub(Repository(entry.repo_id, entry.revision, cache_dir, chosen), entry.config)


# Loading


def create_with_weights(build: Callable[[], Any], found: WeightsFolder, *, on_meta: bool) -> Any:
    """Builds a backbone and loads verified weights into it.

    Args:
        build: Makes the backbone.
        found: Its weights. timm adapts them to other input channels, and lets another classifier stay fresh.
        on_meta: Whether the network may be built without memory. It then takes the file's own tensors, if they are the
            network's to the last shape: not filling it with random numbers first pays for the hash.

    Raises:
        WeightsError: If the file is damaged or its keys are not the backbone's.
    """
    state_dict = found.read(found.model_file)
    if on_meta and torch.get_default_device().type == "cpu":
        with torch.device("meta"):
            backbone = build()
        expected = backbone.state_dict()
        if {k: v.shape for k, v in expected.items()} == {k: v.shape for k, v in state_dict.items()}:
            strict_filter(state_dict, backbone)
            backbone.load_state_dict({k: v.to(expected[k].dtype) for k, v in state_dict.items()}, assign=True)
            return backbone
    backbone = build()
    load_backbone(backbone, found, state_dict)
    return backbone


def load_backbone(backbone: Any, found: WeightsFolder, state_dict: dict[str, Tensor] | None = None) -> None:
    """Loads verified weights into a backbone: strict keys, timm's adaptation of input channels and classifier.

    Args:
        backbone: A timm model.
        found: Its weights.
        state_dict: What ``found.read`` gave, if it was called already.

    Raises:
        WeightsError: If the file is damaged or its keys are not the backbone's.
    """
    state_dict = found.read(found.model_file) if state_dict is None else state_dict
    cfg = {**backbone.pretrained_cfg, "state_dict": state_dict, "source": "", "file": None, "hf_hub_id": None}
    load_pretrained(
        backbone,
        pretrained_cfg=cfg,
        num_classes=backbone.num_classes,
        in_chans=_input_channels(backbone),
        filter_fn=strict_filter,
    )


def load_projector(projector: nn.Module, found: WeightsFolder) -> None:
    """Loads verified weights into a projector.

    Raises:
        WeightsError: If the file is damaged or describes another projector.
    """
    assert found.projector_file is not None
    state_dict = found.read(found.projector_file)
    expected = {name: tuple(tensor.shape) for name, tensor in projector.state_dict().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    if shapes != expected:
        raise WeightsError(
            f"the projector of {found.origin} has the layers {shapes}, but the model's has {expected}; "
            "leave proj_hidden_dim and proj_dim as they were published."
        )
    projector.load_state_dict(state_dict)


def strict_filter(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """timm's pretrained_filter_fn: lets a state dict pass only if it is the whole backbone and nothing else.

    timm loads with strict=False where the number of classes differs, and then takes half a model in silence. Here only
    the classifier may be missing (a fresh one is made) or left over (the model has none).

    Raises:
        WeightsError: Naming what is missing or left over.
    """
    cfg: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    names = cfg.get("classifier") or ()
    classifier = {f"{n}.{p}" for n in ([names] if isinstance(names, str) else names) for p in ("weight", "bias")}
    expected, given = set(model.state_dict()), set(state_dict)
    missing, extra = expected - given, given - expected
    if not classifier & given:
        missing -= classifier
    if not classifier & expected:
        extra -= classifier
    if missing or extra:
        raise WeightsError(
            f"the weights do not fit {cfg.get('architecture', type(model).__name__)}: "
            f"{_some('missing', missing)}{'; ' if missing and extra else ''}{_some('left over', extra)}. "
            "Load them into the architecture that their config.json names."
        )
    rows = {len(state_dict[name]) for name in classifier & given}
    if rows and rows != {cfg.get("num_classes")}:
        raise WeightsError(
            f"the classifier in the file has {rows.pop()} classes, but its config says {cfg.get('num_classes')}; "
            "publish the folder again with simco_zoo.save_pretrained."
        )
    broken = [name for name, tensor in state_dict.items() if not _is_finite(tensor)]
    if broken:
        raise WeightsError(f"the weights have values that are no numbers in {_some('', broken)}; load another copy.")
    return state_dict


def _is_finite(tensor: Tensor) -> bool:
    # the sum is finite only if every value is (or, for the exact answer, has overflown), and costs a tenth
    return not tensor.is_floating_point() or bool(tensor.sum(dtype=torch.float32).isfinite() or tensor.isfinite().all())


def with_verified_weights(variant: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """For a registered function that timm asks for pretrained weights: finds and verifies the file first.

    Args:
        variant: Registered name.
        kwargs: What timm passed on; ``pretrained_cfg``, ``pretrained_cfg_overlay`` and ``cache_dir`` are looked at.

    Returns:
        The arguments with an overlay that makes timm read exactly the verified file.

    Raises:
        WeightsError: If there are no weights, or they are damaged.
    """
    overlay = kwargs.get("pretrained_cfg_overlay") or {}
    cfg = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), overlay)
    cache_dir = kwargs.get("cache_dir")
    if cfg.state_dict:
        return kwargs
    if cfg.source == "hf-hub":
        found = resolve(f"hf-hub:{cfg.hf_hub_id}", cache_dir=cache_dir)
    elif cfg.source == "local-dir":
        found = resolve(f"local-dir:{cfg.file}")
    elif cfg.file:
        found = resolve(variant, weights=cfg.file)
    else:
        found = resolve(f"{variant}.{cfg.tag}" if cfg.tag else variant, cache_dir=cache_dir)
    found.read(found.model_file)
    verified = {"source": "", "file": str(found.model_file), "hf_hub_id": None, "url": "", "custom_load": False}
    return {**kwargs, "pretrained_cfg_overlay": {**overlay, **verified}}


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
