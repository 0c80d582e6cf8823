"""A published folder on this machine: its config.json read with suspicion, its files hashed before they are parsed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from timm.models._pretrained import PretrainedCfg
from torch import Tensor

from simco_zoo.hub.download import Repository, fetch, fetch_again, has_its_own_hash
from simco_zoo.hub.errors import WeightsError

MODEL_FILE, PROJECTOR_FILE, CONFIG_FILE = "model.safetensors", "projector.safetensors", "config.json"

# what config.json may say of the weights: everything but where they are and how they are loaded
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
# arguments of timm.create_model that load something instead of describing a network
LOADING_ARGUMENTS = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}


@dataclass(frozen=True)
class WeightsFolder:
    """The files of a published model on this machine; ``read`` verifies what it reads.

    Attributes:
        config: Parsed config.json; empty for a bare file.
        model_file: The backbone's safetensors.
        projector_file: The projector's safetensors, if there.
        folder: Where config.json lies; None for a bare file.
        origin: What to call the source in a message.
        repository: Its repository if it came from the Hub.
    """

    config: dict[str, Any]
    model_file: Path
    projector_file: Path | None
    folder: Path | None
    origin: str
    repository: Repository | None = None

    def timm_cfg(self) -> dict[str, Any]:
        """Returns the entries of timm's pretrained_cfg, with the path of the weights."""
        return {**timm_entries(self.config), "file": str(self.model_file), "source": "", "hf_hub_id": None}

    def expected_sha256(self, name: str) -> str | None:
        """Returns the hash that config.json gives for a file; None for a bare file, or where timm wrote config.json."""
        if not section(self.config):
            return None
        entry = section(self.config).get("files", {}).get(name)
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
        """Returns a file's bytes after comparing their hash with the published one."""
        expected = self.expected_sha256(path.name)
        if expected is None and self.config and self.repository is None:
            warnings.warn(
                f"{self.origin} gives no sha256 (simco-zoo did not write it), so it is loaded unverified.", stacklevel=2
            )
        data = read_bytes(path, self.origin)
        damage = self._damage(path, data, expected)
        if damage and self.repository is not None:
            path = fetch_again(self.repository, path, damage)
            data = read_bytes(path, self.origin)
            damage = self._damage(path, data, expected)
        if damage:
            again = " although it was fetched twice" if self.repository else ""
            raise WeightsError(f"{damage}{again}; restore the file, or load another copy with weights=PATH.")
        return data

    def _damage(self, path: Path, data: bytes, expected: str | None) -> str | None:
        """Returns None if the bytes are what was published, otherwise a clause that names the file and both hashes."""
        if expected is None and (self.repository is None or has_its_own_hash(path, data)):
            return None
        found = hashlib.sha256(data).hexdigest()
        if found == expected:
            return None
        return (
            f"{path} of {self.origin} is damaged: its sha256 is {found}, but {expected or path.resolve().name} "
            "was published"
        )


def from_path(path: Path, folder_only: bool = False) -> WeightsFolder:
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
    config = parse_config(read_bytes(_inside(path, CONFIG_FILE), str(path)), f"{path / CONFIG_FILE}")
    projector = PROJECTOR_FILE in section(config).get("files", {})
    return WeightsFolder(
        config,
        _inside(path, MODEL_FILE),
        _inside(path, PROJECTOR_FILE) if projector else None,
        path,
        str(path),
    )


def from_hub(repository: Repository, config: dict[str, Any] | None = None) -> WeightsFolder:
    """Takes a published repository's files from the client's cache, or downloads them.

    Args:
        repository: The repository; what is read belongs to one commit, whatever happens to its branch meanwhile.
        config: Its config.json where the registry has it, so that no file of the repository has to be trusted.
    """
    config_file = fetch(repository, CONFIG_FILE)
    sha = config_file.parent.name  # the cache keeps each commit in a folder of that name
    repository = dataclasses.replace(repository, revision=sha)
    if config is None:
        config_file, config = _config_of(repository, config_file)
    model_file = fetch(repository, MODEL_FILE)
    projector = fetch(repository, PROJECTOR_FILE) if PROJECTOR_FILE in section(config).get("files", {}) else None
    return WeightsFolder(config, model_file, projector, config_file.parent, str(repository), repository)


def _config_of(repository: Repository, path: Path) -> tuple[Path, dict[str, Any]]:
    """Reads a repository's config.json, and fetches it once more if the cached one is damaged."""
    origin = f"{CONFIG_FILE} of {repository}"
    data = read_bytes(path, origin)
    if not has_its_own_hash(path, data):
        path = fetch_again(
            repository, path, f"{path} of {repository} is damaged: it is not the file {path.resolve().name}"
        )
        data = read_bytes(path, origin)
        if not has_its_own_hash(path, data):
            raise WeightsError(
                f"{origin} is damaged although it was fetched twice: its hash is not {path.resolve().name}, as "
                "published; try again later, or load another copy with weights=FOLDER."
            )
    return path, parse_config(data, origin)


def parse_config(data: bytes, origin: str) -> dict[str, Any]:
    """Parses config.json and refuses one that is damaged, or that reaches out of its folder.

    Args:
        data: The file's content.
        origin: What to call it in a message.

    Raises:
        WeightsError: Saying what is wrong with it.
    """
    try:
        config = json.loads(data)
    except ValueError as error:
        raise WeightsError(f"{origin} is no JSON ({error}); restore it, or publish the folder again.") from error
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        raise WeightsError(f"{origin} names no architecture; it is no config.json of timm or simco-zoo.")
    own = section(config)
    parts = {
        "simco_zoo": own,
        "model_args": config.get("model_args") or {},
        "pretrained_cfg": config.get("pretrained_cfg") or {},
        "simco_zoo.files": isinstance(own, dict) and own.get("files", {}),
        "simco_zoo.method_config": isinstance(own, dict) and own.get("method_config", {}),
    }
    for name, part in parts.items():
        if not isinstance(part, dict):
            raise WeightsError(f"{origin} is malformed: {name} is no JSON object; publish the folder again.")
    outside = [name for name in parts["simco_zoo.files"] if Path(name).name != name]
    loading = [
        *LOADING_ARGUMENTS & parts["model_args"].keys(),
        *LOADING_ARGUMENTS & parts["simco_zoo.method_config"].keys(),
    ]
    if not re.fullmatch(r"[\w.-]+", config["architecture"]):
        outside.append(config["architecture"])
    if outside or loading:
        raise WeightsError(
            f"{origin} points to {(outside or loading)[0]!r} outside its folder; do not trust this folder."
        )
    return config


def section(config: dict[str, Any]) -> dict[str, Any]:
    """Returns simco-zoo's own part of config.json, empty where timm wrote it."""
    return config.get("simco_zoo") or {}


def timm_entries(config: dict[str, Any]) -> dict[str, Any]:
    """Returns what config.json says in timm's terms about the input that the weights expect."""
    entries = {key: value for key, value in (config.get("pretrained_cfg") or {}).items() if key in _CFG_FIELDS}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entries.items()}


def read_bytes(path: Path, origin: str) -> bytes:
    """Reads a file; a failure is named in a sentence."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path} of {origin} cannot be read: {os.strerror(error.errno or 0)}.") from error


def _inside(folder: Path, name: str) -> Path:
    """Returns a file of a folder; a link must not lead out of it (the Hub's cache links to its own blobs)."""
    path, home = folder / name, folder.resolve()
    if not path.is_file():
        raise WeightsError(f"{folder} has no {name}; it is not a complete published folder.")
    target = path.resolve()
    if target.is_relative_to(home) or target.parent == home.parent.parent / "blobs":
        return path
    raise WeightsError(f"{path} is a link that leads out of its folder, to {target}; copy the file there instead.")
