"""Where weights come from, and whether they are what they claim to be.

Sources, in order: a file or folder given by the caller; the folders that ship in ``simco_zoo/weights``; the Hugging
Face Hub at the revision pinned in ``registry.json``. Every file is hashed before it is loaded, and keys are strict.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from timm.models import load_pretrained, parse_model_name, resolve_pretrained_cfg, split_model_name_tag
from timm.models._pretrained import PretrainedCfg
from torch import Tensor, nn

SHIPPED = Path(__file__).parents[1] / "weights"
REGISTRY = Path(__file__).with_name("registry.json")
MODEL_FILE, PROJECTOR_FILE, CONFIG_FILE = "model.safetensors", "projector.safetensors", "config.json"

_CFG_FIELDS = {field.name for field in dataclasses.fields(PretrainedCfg)}


class WeightsError(RuntimeError):
    """Weights are missing, damaged, or do not fit; the message says which file and what to do."""


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
            return {**_timm_entries(self.config), "file": str(self.folder / MODEL_FILE)}
        return {**_timm_entries(self.config), "hf_hub_id": f"{self.repo_id}@{self.revision}"}


@dataclass(frozen=True)
class WeightsFolder:
    """The files of a published model on this machine; ``read`` verifies what it reads.

    Attributes:
        config: Parsed config.json; empty for a bare file.
        model_file: The backbone's safetensors.
        projector_file: The projector's safetensors, if there.
        folder: Where config.json lies; None for a bare file.
        origin: What to call the source in a message.
        repository: (repo_id, revision, cache_dir) if it came from the Hub.
    """

    config: dict[str, Any]
    model_file: Path
    projector_file: Path | None
    folder: Path | None
    origin: str
    repository: tuple[str, str | None, str | Path | None] | None = None

    def timm_cfg(self) -> dict[str, Any]:
        """Returns the entries of timm's pretrained_cfg, with the path of the weights."""
        return {**_timm_entries(self.config), "file": str(self.model_file), "source": "", "hf_hub_id": None}

    def expected_sha256(self, name: str) -> str | None:
        """Returns the hash that config.json gives for a file, or None for a bare file."""
        if not self.config:
            return None
        entry = _section(self.config).get("files", {}).get(name)
        if not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str):
            raise WeightsError(
                f"{self.origin}: {CONFIG_FILE} gives no sha256 for {name}, so it cannot be verified; "
                "publish the folder again with simco_zoo.save_pretrained."
            )
        return entry["sha256"]

    def read(self, path: Path) -> dict[str, Tensor]:
        """Reads a safetensors file of this folder: the very bytes that were hashed are parsed.

        Raises:
            WeightsError: If the file is damaged; one from the Hub's cache is fetched once more before that.
        """
        data = self.verified_bytes(path)
        try:
            return safetensors.torch.load(data)
        except SafetensorError as error:
            raise WeightsError(
                f"{path} of {self.origin} is no readable safetensors file ({error}); restore it, or fetch it again."
            ) from error

    def verified_bytes(self, path: Path) -> bytes:
        """Returns a file's bytes after comparing their sha256 with the expected one."""
        expected = self.expected_sha256(path.name)
        data = _read_bytes(path, self.origin)
        found = hashlib.sha256(data).hexdigest()
        if expected is None or found == expected:
            return data
        if self.repository is not None:
            repo_id, revision, cache_dir = self.repository
            # the client trusts what its cache holds; a damaged entry would stay for ever
            path.resolve().unlink()
            data = _read_bytes(_download(repo_id, path.name, revision, cache_dir, force=True), self.origin)
            found = hashlib.sha256(data).hexdigest()
            if found == expected:
                return data
        raise WeightsError(
            f"{path} of {self.origin} is damaged: its sha256 is {found}, but {expected} was published; "
            "restore the file, or load another copy with weights=PATH."
        )


def published() -> dict[str, Published]:
    """Returns the published models that this installation can load by name, shipped ones first."""
    return dict(_published(SHIPPED, REGISTRY))


@functools.lru_cache
def _published(shipped: Path, registry: Path) -> dict[str, Published]:
    found: dict[str, Published] = {}
    for folder in sorted(shipped.iterdir()) if shipped.is_dir() else []:
        if (folder / CONFIG_FILE).is_file():
            found[folder.name] = Published(folder.name, _parse_config(folder / CONFIG_FILE, folder.name), folder=folder)
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
        return _from_path(Path(weights))
    source, identifier = parse_model_name(name)
    if source == "local-dir":
        return _from_path(Path(identifier), folder_only=True)
    if source == "hf-hub":
        repo_id, _, revision = identifier.partition("@")
        return _from_hub(repo_id, revision or None, cache_dir, name)

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
        return _from_path(entry.folder)
    assert entry.repo_id is not None
    return _from_hub(entry.repo_id, entry.revision, cache_dir, chosen, config=entry.config)


def _from_path(path: Path, folder_only: bool = False) -> WeightsFolder:
    """Takes a published folder, a file in one, or a bare safetensors file."""
    if not path.exists():
        raise WeightsError(f"there is no file or folder {path}; pass the path of a published folder.")
    if path.is_file():
        if folder_only:
            raise WeightsError(f"{path} is a file; local-dir: takes the folder that holds it and its {CONFIG_FILE}.")
        if path.suffix != ".safetensors":
            raise WeightsError(
                f"{path} is no .safetensors file, and nothing else is loaded (a pickle can run code); "
                "convert it with recipes/convert.py."
            )
        if path.name != MODEL_FILE or not (path.parent / CONFIG_FILE).is_file():
            return WeightsFolder({}, path, None, None, str(path))
        path = path.parent
    if not (path / CONFIG_FILE).is_file():
        raise WeightsError(f"{path} has no {CONFIG_FILE}; a published folder has one beside its {MODEL_FILE}.")
    config = _parse_config(_inside(path, CONFIG_FILE), str(path))
    projector = PROJECTOR_FILE in _section(config).get("files", {})
    return WeightsFolder(
        config,
        _inside(path, MODEL_FILE),
        _inside(path, PROJECTOR_FILE) if projector else None,
        path,
        str(path),
    )


def _from_hub(
    repo_id: str,
    revision: str | None,
    cache_dir: str | Path | None,
    name: str,
    config: dict[str, Any] | None = None,
) -> WeightsFolder:
    """Downloads a published repository's files, or takes them from the client's cache."""
    config_file = _download(repo_id, CONFIG_FILE, revision, cache_dir, model=name)
    config = config or _parse_config(config_file, repo_id)
    model_file = _download(repo_id, MODEL_FILE, revision, cache_dir, model=name)
    projector = None
    if PROJECTOR_FILE in _section(config).get("files", {}):
        projector = _download(repo_id, PROJECTOR_FILE, revision, cache_dir, model=name)
    origin = f"{repo_id}@{revision}" if revision else repo_id
    return WeightsFolder(config, model_file, projector, config_file.parent, origin, (repo_id, revision, cache_dir))


def _download(
    repo_id: str,
    filename: str,
    revision: str | None,
    cache_dir: str | Path | None,
    *,
    model: str = "",
    force: bool = False,
) -> Path:
    what = f"{filename} of {repo_id}" + (f" at {revision}" if revision else "")
    try:
        return Path(hf_hub_download(repo_id, filename, revision=revision, cache_dir=cache_dir, force_download=force))
    except GatedRepoError as error:
        raise WeightsError(
            f"{what} is gated: ask for access on its page, then log in with 'hf auth login' or set HF_TOKEN."
        ) from error
    except RevisionNotFoundError as error:
        raise WeightsError(
            f"{repo_id} has no revision {revision!r}; leave it out, or name a branch, tag or sha."
        ) from error
    except RepositoryNotFoundError as error:
        raise WeightsError(
            f"the Hub shows no repository {repo_id!r}: check the name, or, if it is private, log in with "
            "'hf auth login' or set HF_TOKEN."
        ) from error
    except EntryNotFoundError as error:
        # the client's word for "neither reachable nor cached" is of this family, too
        if not (Path(filename).name == filename and isinstance(error, HfHubHTTPError)):
            raise _unreachable(what, repo_id, model, error) from error
        raise WeightsError(
            f"{repo_id} has no file {filename}, so it was not published by simco-zoo; "
            f"try timm.create_model('hf-hub:{repo_id}', pretrained=True)."
        ) from error
    except (OSError, HTTPError) as error:  # the client's own name of its HTTP library's errors: resets, time-outs
        raise _unreachable(what, repo_id, model, error) from error


def _unreachable(what: str, repo_id: str, model: str, error: Exception) -> WeightsError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return WeightsError(
        f"{what}{f' (for {model})' if model else ''} could not be fetched and is not in the cache ({reason}). "
        f"Either connect (and unset HF_HUB_OFFLINE), or copy the repository {repo_id} from another machine and pass "
        "weights=FOLDER, or fill that machine's Hub cache and copy it here (HF_HOME)."
    )


# Loading


def load_backbone(backbone: Any, found: WeightsFolder) -> None:
    """Loads verified weights into a backbone: strict keys, timm's adaptation of input channels and classifier.

    Raises:
        WeightsError: If the file is damaged or its keys are not the backbone's.
    """
    state_dict = found.read(found.model_file)
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
    return state_dict


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
    found.verified_bytes(found.model_file)
    verified = {"source": "", "file": str(found.model_file), "hf_hub_id": None, "url": ""}
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
    return f"{label} {', '.join(listed[:limit])}" + (f" and {len(listed) - limit} more" if len(listed) > limit else "")


# Reading


def _timm_entries(config: dict[str, Any]) -> dict[str, Any]:
    entries = {key: value for key, value in config.get("pretrained_cfg", {}).items() if key in _CFG_FIELDS}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entries.items()}


def _section(config: dict[str, Any]) -> dict[str, Any]:
    return config.get("simco_zoo") or {}


def _parse_config(path: Path, origin: str) -> dict[str, Any]:
    """Reads a config.json and refuses one that is damaged or names files outside its folder."""
    try:
        config = json.loads(_read_bytes(path, origin))
    except ValueError as error:
        raise WeightsError(
            f"{path} of {origin} is no JSON ({error}); restore it, or publish the folder again."
        ) from error
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        raise WeightsError(f"{path} of {origin} names no architecture; it is no config.json of timm or simco-zoo.")
    for name in _section(config).get("files", {}):
        if Path(name).name != name:
            raise WeightsError(f"{path} of {origin} points to {name!r} outside its folder; do not trust this folder.")
    return config


def _inside(folder: Path, name: str) -> Path:
    """Returns a file of a folder; a link must not lead out of it (the Hub's cache links to its own blobs)."""
    path, home = folder / name, folder.resolve()
    if not path.is_file():
        raise WeightsError(f"{folder} has no {name}; it is not a complete published folder.")
    target = path.resolve()
    if target.is_relative_to(home) or target.parent == home.parents[1] / "blobs":
        return path
    raise WeightsError(f"{path} is a link that leads out of its folder, to {target}; copy the file there instead.")


def _read_bytes(path: Path, origin: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path} of {origin} cannot be read: {os.strerror(error.errno or 0)}.") from error
