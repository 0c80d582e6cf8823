"""Files of the Hugging Face Hub: fetched by its own client and verified here, every failure named in one sentence.

The client trusts its cache and compares no hash, so ``fetch_verified`` does, and replaces a damaged cache entry.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class WeightsError(RuntimeError):
    """The exception raised for every weight-loading failure; the message says which file, and what to do.

    Example:
        >>> import simco_zoo
        >>> try:
        ...     simco_zoo.create_model("local-dir:nowhere", pretrained=True)
        ... except WeightsError:
        ...     print("train it first")
        train it first
    """


class MismatchError(WeightsError, ValueError):
    """Sound weights that are not what the caller asked for."""


@dataclass(frozen=True)
class Repository:
    """A repository of the Hub at one of its revisions.

    Attributes:
        repo_id: ``org/name``.
        revision: Branch, tag or sha; None for the main branch.
        cache_dir: Where its files are kept instead of the client's own cache.
        model: The name that was asked for, for messages.
    """

    repo_id: str
    revision: str | None = None
    cache_dir: str | Path | None = None
    model: str = ""

    def __str__(self) -> str:
        return f"{self.repo_id}@{self.revision}" if self.revision else self.repo_id


def fetch(repository: Repository, name: str) -> Path:
    """Returns the path of a repository's file in the cache, after a download if it is not there.

    Raises:
        WeightsError: If it cannot be had.
    """
    what = f"{name} of {repository}"
    if repository.model not in ("", f"hf-hub:{repository}"):
        what += f" (for {repository.model})"
    login = "log in with 'hf auth login' or set HF_TOKEN"
    try:
        cached = hf_hub_download(repository.repo_id, name, revision=repository.revision, cache_dir=repository.cache_dir)
        return Path(cached)
    except GatedRepoError as error:
        raise WeightsError(f"{what} is gated: ask for access on its page, then {login}.") from error
    except RevisionNotFoundError as error:
        raise WeightsError(
            f"{repository.repo_id} has no revision {repository.revision!r}; leave it out, or name a branch, tag or sha."
        ) from error
    except RepositoryNotFoundError as error:
        raise WeightsError(
            f"the Hub shows no repository {repository.repo_id!r}: check the name, or, if it is private, {login}."
        ) from error
    except RemoteEntryNotFoundError as error:
        raise WeightsError(
            f"{repository} has no file {name}, so it was not published by simco-zoo; "
            f"try timm.create_model('hf-hub:{repository}', pretrained=True)."
        ) from error
    except HFValidationError as error:
        raise WeightsError(f"{repository.repo_id!r} is not the name of a repository; write hf-hub:org/name.") from error
    except (OSError, HTTPError) as error:
        raise WeightsError(_failure(repository, what, login, error)) from error


def fetch_verified(
    repository: Repository, name: str, find_damage: Callable[[Path, bytes], str | None]
) -> tuple[Path, bytes]:
    """Returns a repository's file; a damaged one is removed from the cache and fetched once more.

    Args:
        repository: Where it comes from.
        name: Name of the file.
        find_damage: Called with the file's path and content; returns None, or a clause that says what is wrong.

    Returns:
        The path in the cache and the bytes that were verified.

    Raises:
        WeightsError: If the file cannot be had, or is still damaged when it was fetched again.
    """
    path = fetch(repository, name)
    data = read_bytes(path, str(repository))
    damage = find_damage(path, data)
    if damage is None:
        return path, data
    _remove(path, damage)
    try:
        path = fetch(repository, name)
    except WeightsError as error:
        raise WeightsError(f"{damage}; it was removed from the cache, but {error}") from error
    data = read_bytes(path, str(repository))
    damage = find_damage(path, data)
    if damage is not None:
        raise WeightsError(
            f"{damage} although it was fetched twice; try again later, or load another copy with weights=FOLDER."
        )
    return path, data


def read_bytes(path: Path, origin: str) -> bytes:
    """Reads a file; a failure is named in one sentence."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path} of {origin} cannot be read: {os.strerror(error.errno or 0)}.") from error


def _remove(path: Path, damage: str) -> None:
    try:
        path.resolve().unlink(missing_ok=True)
    except OSError as error:
        raise WeightsError(
            f"{damage}, and it cannot be removed ({error.strerror}); remove it, and load again."
        ) from error


def has_its_own_hash(path: Path, data: bytes) -> bool:
    """Tells whether a cached file's bytes have the hash that is its name in the cache: the one the Hub gave for it.

    That is the sha256 of a large file and git's sha1 of a small one. A name that is not a hash says nothing and passes.
    """
    name = path.resolve().name
    if len(name) == 64:
        return hashlib.sha256(data).hexdigest() == name
    if len(name) == 40:
        sha1s = (hashlib.sha1(b"blob %d\0" % len(data) + data), hashlib.sha1(data))  # some mirrors give the plain one
        return name in [sha1.hexdigest() for sha1 in sha1s]
    return True


def _failure(repository: Repository, what: str, login: str, error: Exception) -> str:
    """Says in a sentence why the client failed, and what to do."""
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        return f"the Hub refuses {what} ({error.response.status_code}): the token is not valid for it; {login}."
    local = isinstance(error, OSError) and not isinstance(error, (HTTPError, LocalEntryNotFoundError, ConnectionError))
    if local and isinstance(error, OSError) and error.errno is not None:
        cache = repository.cache_dir or constants.HF_HUB_CACHE
        remedy = "free some space" if error.errno in _FULL_DISK else "make it writable"
        return (
            f"{what} cannot be kept in the cache {cache} ({os.strerror(error.errno)}): {remedy}, or keep the cache "
            "elsewhere with cache_dir=FOLDER or HF_HOME."
        )
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return (
        f"{what} could not be fetched and is not in the cache ({reason}). "
        f"Either connect (and unset HF_HUB_OFFLINE), or copy the repository {repository.repo_id} from another machine "
        "and pass weights=FOLDER, or fill that machine's Hub cache and copy it here (HF_HOME)."
    )
