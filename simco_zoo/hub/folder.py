"""A published folder, on this machine or on the Hub: a verified description, and files that are hashed, then parsed."""

from __future__ import annotations

import dataclasses
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from simco_zoo.hub.config import (
    CONFIG_FILE,
    MODEL_FILE,
    PROJECTOR_FILE,
    is_sealed,
    parse_config,
    saved_by_transformers,
    section,
    sha256_of,
    timm_entries,
)
from simco_zoo.hub.download import Repository, WeightsError, fetch, fetch_verified, has_its_own_hash, read_bytes


@dataclass(frozen=True)
class WeightsFolder:
    """A published model whose config.json was read and verified; ``read`` verifies the files that it reads.

    Attributes:
        config: Parsed config.json; empty for a bare file.
        origin: What to call the source in a message.
        folder: Where its files lie; None for a bare file.
        bare_file: A safetensors file without a config.json.
        repository: Its repository if it comes from the Hub.

    Example:
        >>> from simco_zoo.hub import resolve
        >>> found = resolve("simco_r18_025")
        >>> found.has_projector, found.read()["conv1.weight"].shape
        (True, torch.Size([16, 3, 3, 3]))
    """

    config: dict[str, Any]
    origin: str
    folder: Path | None = None
    bare_file: Path | None = None
    repository: Repository | None = None

    @property
    def has_projector(self) -> bool:
        """Whether the model was published with its projector."""
        return PROJECTOR_FILE in section(self.config).get("files", {}) and not saved_by_transformers(self.config)

    @property
    def file_names(self) -> tuple[str, ...]:
        """Names of the files that hold tensors."""
        return (MODEL_FILE, PROJECTOR_FILE) if self.has_projector else (MODEL_FILE,)

    def timm_cfg(self) -> dict[str, Any]:
        """Returns timm's pretrained_cfg without a source: what is loaded is handed over as tensors."""
        return {**timm_entries(self.config), "source": "", "file": None, "url": "", "hf_hub_id": None}

    def expected_sha256(self, name: str) -> str | None:
        """Returns the published hash of a file; None for a bare file, and where timm or transformers wrote the folder.

        Raises:
            WeightsError: If config.json should have the hash and has not.
        """
        if not section(self.config) or saved_by_transformers(self.config):
            return None
        entry = section(self.config).get("files", {}).get(name, {})
        if "sha256" not in entry:
            raise WeightsError(
                f"{self.origin}: {CONFIG_FILE} gives no sha256 for {name}, so it cannot be verified; "
                "publish the folder again with simco_zoo.save_pretrained."
            )
        return str(entry["sha256"])

    def read(self, name: str = MODEL_FILE) -> dict[str, Tensor]:
        """Reads a safetensors file of this folder: the very bytes that were hashed are parsed.

        Raises:
            WeightsError: If the file is damaged; one from the Hub's cache is fetched once more before that.
        """
        data = self.verified_bytes(name)
        try:
            tensors = safetensors.torch.load(data)
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
            # KeyError: a data type that this version does not know
            raise WeightsError(
                f"{name} of {self.origin} is not a readable safetensors file ({error}); restore it, or fetch it again."
            ) from error
        if saved_by_transformers(self.config):
            return {key.removeprefix("timm_model."): tensor for key, tensor in tensors.items()}
        return tensors

    def verified_bytes(self, name: str = MODEL_FILE) -> bytes:
        """Returns a file's bytes after comparing their hash with the published one."""
        expected = self.expected_sha256(name)
        if self.repository is not None:
            return fetch_verified(self.repository, name, lambda path, data: self._damage(path, data, expected))[1]
        path = self._locate(name)
        data = read_bytes(path, self.origin)
        damage = self._damage(path, data, expected)
        if damage is not None:
            raise WeightsError(f"{damage}; restore the file, or load another copy with weights=PATH.")
        return data

    def document(self, name: str) -> bytes:
        """Returns a file that people read, such as README.md.

        Raises:
            WeightsError: If there is none.
        """
        if self.folder is None:
            raise WeightsError(f"{self.origin} is a bare file, without {name}.")
        path = inside(self.folder, name) if self.repository is None else fetch(self.repository, name)
        return read_bytes(path, self.origin)

    def has_changed(self) -> bool:
        """Tells whether another config.json took the place of the one that was read, as when a run publishes again."""
        if self.folder is None or self.repository is not None:
            return False
        try:
            path = self.folder / CONFIG_FILE
            return parse_config(read_bytes(path, self.origin), str(path)) != self.config
        except WeightsError:
            return False

    def _locate(self, name: str) -> Path:
        if self.bare_file is not None:
            return self.bare_file
        assert self.folder is not None
        return inside(self.folder, name)

    def _damage(self, path: Path, data: bytes, expected: str | None) -> str | None:
        """Returns None if the bytes are what was published, otherwise a clause that names the file and both hashes."""
        if expected is None and (self.repository is None or has_its_own_hash(path, data)):
            return None
        found = sha256_of(data)
        if found == expected:
            return None
        return (
            f"{path} of {self.origin} is damaged: its sha256 is {found}, but {expected or path.resolve().name} "
            "was published"
        )


def from_path(path: Path, folder_only: bool = False) -> WeightsFolder:
    """Takes a published folder, a file in one, or a bare safetensors file.

    Raises:
        WeightsError: If it is none of these, or its config.json is damaged.
    """
    path = path.expanduser()
    mode = _mode(path)
    if mode is None:
        raise WeightsError(f"there is no file or folder {path}; pass the path of a published folder.")
    if not stat.S_ISDIR(mode):
        if folder_only:
            raise WeightsError(f"{path} is a file; local-dir: takes the folder that holds it and its {CONFIG_FILE}.")
        if path.suffix != ".safetensors" or not stat.S_ISREG(mode):
            raise WeightsError(
                f"{path} is not a .safetensors file, and nothing else is loaded (a pickle can run code); convert it "
                "with recipes/convert.py, or, if a run of simco-zoo wrote it, load the run's folder last/."
            )
        if path.name != MODEL_FILE or _mode(path.parent / CONFIG_FILE) is None:
            return WeightsFolder({}, str(path), bare_file=path)
        path = path.parent
    if _mode(path / CONFIG_FILE) is None:
        raise WeightsError(f"{path} has no {CONFIG_FILE}; a published folder has one next to its {MODEL_FILE}.")
    config = parse_config(read_bytes(inside(path, CONFIG_FILE), str(path)), f"{path / CONFIG_FILE}")
    found = WeightsFolder(config, str(path), path)
    if section(config) and not saved_by_transformers(config):
        there = _mode(path / PROJECTOR_FILE) is not None
        if there != found.has_projector:
            raise WeightsError(
                f"{path} has no {PROJECTOR_FILE}, but its {CONFIG_FILE} names one; restore the file."
                if found.has_projector
                else f"{path} has a {PROJECTOR_FILE} that its {CONFIG_FILE} does not name; remove the file, or "
                "publish the folder again."
            )
    return found


def from_hub(repository: Repository, config: dict[str, Any] | None = None) -> WeightsFolder:
    """Takes a published repository from the client's cache, or from the Hub; only config.json is fetched yet.

    Args:
        repository: The repository; what is read belongs to one commit, whatever happens to its branch meanwhile.
        config: Its config.json where the registry has it, so that no file of the repository has to be trusted.
    """
    path = fetch(repository, CONFIG_FILE)
    sha = path.parent.name  # the cache keeps each commit in a folder of that name
    repository = dataclasses.replace(repository, revision=sha)
    origin = f"{CONFIG_FILE} of {repository}"

    def find_damage(path: Path, data: bytes) -> str | None:
        if has_its_own_hash(path, data):
            return None
        return f"{path} of {repository} is damaged: its hash is not {path.resolve().name}, as published"

    if config is None:
        path, data = fetch_verified(repository, CONFIG_FILE, find_damage)
        config = parse_config(data, origin)
    return WeightsFolder(config, str(repository), path.parent, repository=repository)


def warn_if_unverified(found: WeightsFolder) -> None:
    """Warns where a change of the files would go unnoticed, and says what to do about it."""
    if not found.config or is_sealed(found.config):
        return
    if found.repository is not None and (saved_by_transformers(found.config) or not section(found.config)):
        return  # the hash that the Hub gives for each file was compared
    if saved_by_transformers(found.config):
        message = f"{found.origin} was saved by transformers, which writes no sha256, so it is loaded unverified."
    elif not section(found.config):
        message = f"{found.origin} gives no sha256 (simco-zoo did not write it), so it is loaded unverified."
    else:
        how = (
            "publish the repository again"
            if found.repository is not None
            else f"renew it with simco_zoo.publishing.renew_folder({found.origin!r})"
        )
        message = (
            f"{found.origin} was written by an earlier version of simco-zoo: its {CONFIG_FILE} has no hash of its own "
            f"content, so changes to it go unnoticed. To end this warning, {how}."
        )
    warnings.warn(message, stacklevel=4)  # where create_model is called


def _mode(path: Path) -> int | None:
    """Returns a path's type and permissions, or None where there is nothing."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # ValueError: a null character
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise WeightsError(f"{path} cannot be read ({reason}); check its path and permissions.") from error


def inside(folder: Path, name: str) -> Path:
    """Returns a file of a folder; a link must not lead out of it (the Hub's cache links to its own blobs)."""
    path, home = folder / name, folder.resolve()
    mode = _mode(path)
    if mode is None or not stat.S_ISREG(mode):
        raise WeightsError(f"{folder} has no {name}; it is not a complete published folder.")
    target = path.resolve()
    in_cache = home.parent.name == "snapshots" and home.parent.parent.name.startswith("models--")
    if target.is_relative_to(home) or (in_cache and target.parent == home.parent.parent / "blobs"):
        return path
    raise WeightsError(f"{path} is a link that leads out of its folder, to {target}; copy the file there instead.")
