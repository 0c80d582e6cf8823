"""The published models that this installation knows by name, and where a name's weights are.

Sources, in order: a file or folder given by the caller; the folders that ship in ``simco_zoo/weights``; the Hugging
Face Hub at the revision pinned in ``registry.json``.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.models import parse_model_name, split_model_name_tag

from simco_zoo.hub.config import MODEL_FILE, parse_config, section, timm_entries
from simco_zoo.hub.download import Repository, WeightsError
from simco_zoo.hub.folder import WeightsFolder, from_hub, from_path

SHIPPED = Path(__file__).parents[1] / "weights"
REGISTRY = Path(__file__).with_name("registry.json")
DEFAULT_TAG = "cifar100"  # the weights that a name without a tag gets, where there are several


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
    """Returns the published models that this installation can load by name, shipped ones first.

    Of several tags of an architecture the first is the one that its bare name stands for.

    Example:
        >>> published()["simco_r18_025.cifar100"].config["architecture"]
        'simco_r18_025'
    """
    return dict(_published(SHIPPED, REGISTRY)[0])


def damaged() -> dict[str, str]:
    """Returns the entries that cannot be used, shipped folders and those of the registry, each with what is wrong."""
    return dict(_published(SHIPPED, REGISTRY)[1])


@functools.lru_cache
def _published(shipped: Path, registry: Path) -> tuple[dict[str, Published], dict[str, str]]:
    """Reads what is there. It raises nothing: a damaged entry must not keep the package from being imported."""
    found: dict[str, Published] = {}
    problems: dict[str, str] = {}
    for folder in sorted(shipped.iterdir(), key=_default_first) if shipped.is_dir() else []:
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


def _default_first(folder: Path) -> tuple[str, bool, str]:
    """Sorts folders by architecture; the first of an architecture is its default, here and in timm."""
    architecture, tag = split_model_name_tag(folder.name)
    return architecture, tag != DEFAULT_TAG, tag


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

    Example:
        >>> resolve("simco_r18_025").config["architecture"]
        'simco_r18_025'
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
    default = f"{architecture}.{DEFAULT_TAG}"
    if not tag and default in problems:  # other weights must not take the place of the damaged ones
        raise WeightsError(problems[default])
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
        other_method, _, other_size = other.partition("_")
        return other_method == method, other_size == size, difflib.SequenceMatcher(None, other, architecture).ratio()

    defaults = {split_model_name_tag(key)[0]: key for key in reversed(known)}  # the first tag of each architecture
    short = max(defaults, key=nearness)
    nearest = defaults[short]
    own = section(known[nearest].config)
    accuracy, data = own.get("metrics", {}).get("knn_top1"), own.get("data", {}).get("name")
    measured = "" if accuracy is None else f" (kNN {accuracy:.1f} %{f' on {data}' if data else ''})"
    return (
        f'{name} has no published weights yet; {short} has{measured}: create_model("{short}", pretrained=True). {ways}'
    )
