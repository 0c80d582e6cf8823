"""push_to_hub: publishes a folder on the Hugging Face Hub, in one commit."""

from __future__ import annotations

import contextlib
import re
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from torch import nn

from simco_zoo.hub.config import CONFIG_FILE, parse_config, saved_by_transformers, seal, section, sha256_of
from simco_zoo.hub.download import WeightsError, read_bytes
from simco_zoo.hub.folder import from_path, inside
from simco_zoo.models import ContrastiveModel
from simco_zoo.publishing.card import CARD_FILE, CURVES_FILE, LOG_FILE, card_as_written, card_for_repository
from simco_zoo.publishing.save import (
    OWN_FILES,
    REMOTE_CODE,
    auto_map,
    config_text,
    save_pretrained,
    with_documents,
)

_TRIES = 6  # to commit, while others commit to the same branch
# weights in another format that a client might prefer to ours; those of another model once ours are there
_FOREIGN_WEIGHTS = {"pytorch_model.bin", "model.safetensors.index.json"}
_LOGIN = "log in with 'hf auth login', or set HF_TOKEN to a token that may write there"


def push_to_hub(
    model_or_folder: ContrastiveModel | str | Path,
    repo_id: str,
    *,
    revision: str | None = None,
    tag: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str = "Publish with simco-zoo",
    overwrite_card: bool = False,
    remote_code: bool = False,
    endpoint: str | None = None,
    **save_arguments: Any,
) -> str:
    """Publishes a model or a published folder on the Hugging Face Hub, in one commit.

    The commit holds the whole folder, and removes files of an older publication that the folder does not have. If
    someone else commits at the same time, it is made again on top of theirs, so no revision mixes two publications.
    Publishing twice changes nothing. A README that someone edited on the Hub is kept unless ``overwrite_card``.

    Args:
        model_or_folder: A ``ContrastiveModel``, or a folder that ``save_pretrained`` wrote.
        repo_id: ``org/name``; made if it does not exist.
        revision: Branch to commit to, made if it does not exist; default the main one.
        tag: Git tag to put on the commit, e.g. ``v1.0``; ``hf-hub:org/name@v1.0`` then loads it. A tag that is on
            another commit already is not moved.
        private: Whether a new repository is private; None: the organization's default.
        token: Access token; default the one of the login.
        commit_message: First line of the commit.
        overwrite_card: Replace a README that was edited on the Hub.
        remote_code: Add ``modeling_simco.py``, as in ``save_pretrained``.
        endpoint: Another Hub's address.
        **save_arguments: Arguments of ``save_pretrained``, for a model.

    Returns:
        The full sha of the commit that holds the files.

    Raises:
        WeightsError: If the folder is damaged, has a link that leads out of it, or the Hub refuses; the repository is
            as it was then.
        ValueError: If there is no remote code for the architecture.

    Example:
        >>> import simco_zoo
        >>> sha = simco_zoo.push_to_hub("runs/mine/best", "org/name", tag="v1.0")  # doctest: +SKIP
        >>> simco_zoo.create_model(f"hf-hub:org/name@{sha}", pretrained=True)  # doctest: +SKIP
    """
    if isinstance(model_or_folder, nn.Module):
        with tempfile.TemporaryDirectory() as temporary:
            folder = save_pretrained(model_or_folder, Path(temporary) / "model", **save_arguments)
            return push_to_hub(
                folder,
                repo_id,
                revision=revision,
                tag=tag,
                private=private,
                token=token,
                commit_message=commit_message,
                overwrite_card=overwrite_card,
                remote_code=remote_code,
                endpoint=endpoint,
            )
    _check_names(repo_id, revision, tag)
    files = read_publication(Path(model_or_folder), repo_id, remote_code)
    target = _Target(HfApi(endpoint=endpoint, token=token), repo_id, revision)
    target.create(private)
    oid = target.commit(files, commit_message, overwrite_card, tag)
    if tag is not None:
        target.put_tag(tag, oid)
    return oid


def _check_names(repo_id: str, revision: str | None, tag: str | None) -> None:
    """Raises WeightsError for names that the Hub or git would not take, or would take for something else."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise WeightsError(f"{repo_id!r} is not the name of a repository; write ORG/NAME.") from error
    if "/" not in repo_id:  # the Hub would make it in the user's own space, and not find it there
        raise WeightsError(f"{repo_id!r} does not say whose repository it is; write ORG/NAME.")
    for what, name, pattern in (("branch", revision, r"\w[\w.+/-]*"), ("tag", tag, r"\w[\w.+-]*")):
        if name is not None and (not re.fullmatch(pattern, name, re.ASCII) or ".." in name):
            raise WeightsError(f"{name!r} is not the name of a {what}; write letters, digits and any of . + - _ only.")
    if tag is not None and tag in (revision, "main"):  # it would name the branch, which moves
        raise WeightsError(f"the tag {tag!r} has the name of a branch; choose another, e.g. v1.0.")


def read_publication(folder: Path, repo_id: str, remote_code: bool = False) -> dict[str, bytes]:
    """Reads all files of a folder as they are published: unchanged, but the card's examples name the repository.

    Args:
        folder: A folder that ``save_pretrained`` wrote.
        repo_id: Where it will be published.
        remote_code: Add ``modeling_simco.py``.

    Returns:
        Name -> content, everything verified.

    Raises:
        WeightsError: If a file is damaged or missing, or is a link that leads out of the folder.
    """
    found = from_path(folder, folder_only=True)
    assert found.folder is not None
    own = section(found.config)
    if not own or saved_by_transformers(found.config):
        raise WeightsError(f"{folder} was not written by simco-zoo; publish it with the library that wrote it.")
    files = {name: found.verified_bytes(name) for name in found.file_names}
    stated = own.get("documents")
    there = (CARD_FILE, LOG_FILE, CURVES_FILE) if stated is None else stated  # earlier versions kept no hashes of them
    documents: dict[str, bytes] = {}
    for name in there:
        if stated is not None or (found.folder / name).is_file():
            documents[name] = read_bytes(inside(found.folder, name), found.origin)
        if stated is not None and name != CARD_FILE and sha256_of(documents[name]) != stated[name]:
            raise WeightsError(
                f"{folder / name} is not the file that was written with the model; restore it, or accept it with "
                f"simco_zoo.publishing.renew_folder({str(folder)!r})."
            )
    config = found.config
    if stated is None:
        config = with_documents(config, documents)
    if remote_code:
        config = seal({**config, "auto_map": auto_map(config["architecture"])})
    if "auto_map" in config:
        files[REMOTE_CODE.name] = REMOTE_CODE.read_bytes()
    if CARD_FILE in documents:
        try:
            documents[CARD_FILE].decode()
        except UnicodeDecodeError as error:
            raise WeightsError(f"{folder / CARD_FILE} is not UTF-8 text; save it as UTF-8.") from error
        documents[CARD_FILE] = card_for_repository(documents[CARD_FILE], repo_id)
    files |= documents
    files[CONFIG_FILE] = config_text(config).encode()
    return files


@dataclass(frozen=True)
class _State:
    """A branch as it was read: its commit, its files, and what the next commit has to know about them."""

    sha: str
    names: set[str]
    config: bytes | None
    card_was_edited: bool


@dataclass(frozen=True)
class _Target:
    """A branch of a repository on the Hub, to which one publication goes."""

    api: HfApi
    repo_id: str
    revision: str | None

    def create(self, private: bool | None) -> None:
        """Makes repository and branch, unless they are there."""
        with self._named("create it"):
            self.api.create_repo(self.repo_id, private=private, exist_ok=True)
        if self.revision is not None:
            with self._named(f"make the branch {self.revision}"):
                self.api.create_branch(self.repo_id, branch=self.revision, exist_ok=True)

    def commit(self, files: dict[str, bytes], message: str, overwrite_card: bool, tag: str | None) -> str:
        """Makes the branch hold exactly this publication; returns the sha of the commit that does.

        Raises:
            WeightsError: If the Hub refuses, the tag is taken, or others keep committing.
        """
        for attempt in range(_TRIES):
            state = self.read()
            kept = {CARD_FILE} if state.card_was_edited and not overwrite_card else set()
            stale = (OWN_FILES | _FOREIGN_WEIGHTS) & state.names - files.keys() - {CARD_FILE}
            if tag is not None and (stale or state.config != files[CONFIG_FILE]):
                self.check_tag_is_free(tag)
            operations: list[CommitOperationAdd | CommitOperationDelete] = [
                CommitOperationAdd(name, content) for name, content in sorted(files.items()) if name not in kept
            ]
            operations += [CommitOperationDelete(name) for name in sorted(stale)]
            try:
                oid = self._create_commit(operations, message, state.sha)
            except _ConflictError:
                time.sleep(0.2 * 2**attempt)
                continue
            if kept:
                warnings.warn(
                    f"the README of {self.repo_id} was edited there and is kept; pass overwrite_card=True to replace "
                    "it.",
                    stacklevel=3,
                )
            return oid
        raise WeightsError(
            f"others kept committing to {self.repo_id} while this was published ({_TRIES} tries); try again later."
        )

    def _create_commit(
        self, operations: list[CommitOperationAdd | CommitOperationDelete], message: str, parent: str
    ) -> str:
        with self._named("commit to it"):
            try:
                commit = self.api.create_commit(
                    self.repo_id,
                    operations,
                    commit_message=message,
                    revision=self.revision,
                    parent_commit=parent,  # the Hub refuses the commit if the branch has moved on
                )
            except HfHubHTTPError as error:
                if error.response.status_code in (409, 412):
                    raise _ConflictError from error
                raise
        return str(commit.oid)

    def read(self) -> _State:
        """Reads the branch; everything belongs to one commit."""
        with self._named("read it"):
            info = self.api.model_info(self.repo_id, revision=self.revision)
            sha, names = str(info.sha), {file.rfilename for file in info.siblings or []}
        config = self._file(CONFIG_FILE, sha) if CONFIG_FILE in names else None
        edited = CARD_FILE in names and not self._is_own_card(self._file(CARD_FILE, sha), config)
        return _State(sha, names, config, edited)

    def _file(self, name: str, sha: str) -> bytes:
        with self._named(f"read its {name}"):
            path = self.api.hf_hub_download(self.repo_id, name, revision=sha)
        return read_bytes(Path(path), self.repo_id)

    def _is_own_card(self, card: bytes, config: bytes | None) -> bool:
        """Tells by the hash in config.json whether the card is still the one that was made for it."""
        if config is None:
            return False
        try:
            parsed = parse_config(config, f"{CONFIG_FILE} of {self.repo_id}")
        except WeightsError:  # another library's, or damaged; this publication takes its place
            return False
        return section(parsed).get("documents", {}).get(CARD_FILE) == sha256_of(card_as_written(card))

    def tagged_commit(self, tag: str) -> str | None:
        """Returns the sha of the commit that a tag is on, or None."""
        try:
            with self._named("read its tags"):
                return str(self.api.model_info(self.repo_id, revision=tag).sha)
        except _NoRevisionError:
            return None

    def check_tag_is_free(self, tag: str) -> None:
        """Raises WeightsError if a tag is on a commit already; this is said before anything is sent."""
        there = self.tagged_commit(tag)
        if there is not None:
            raise WeightsError(
                f"the tag {tag} of {self.repo_id} is on {there[:12]} already, which holds something else, and whoever "
                "loads it relies on that; choose another tag, or delete it on the Hub."
            )

    def put_tag(self, tag: str, oid: str) -> None:
        """Puts a tag on a commit, unless it is there."""
        there = self.tagged_commit(tag)
        if there is None:
            with self._named("tag it"):
                self.api.create_tag(self.repo_id, tag=tag, revision=oid, exist_ok=True)
            there = self.tagged_commit(tag)
        if there != oid:
            raise WeightsError(
                f"{self.repo_id} was published as {oid}, but meanwhile the tag {tag} was put on {str(there)[:12]}; "
                "choose another tag and publish again, which changes nothing else."
            )

    @contextlib.contextmanager
    def _named(self, what: str) -> Iterator[None]:
        """Turns every failure of the Hub's client into one sentence with the way out."""
        try:
            yield
        except (WeightsError, _ConflictError):
            raise
        except RevisionNotFoundError as error:
            raise _NoRevisionError(f"{self.repo_id} has no such revision; name a branch or leave it out.") from error
        except RepositoryNotFoundError as error:
            raise WeightsError(
                f"cannot {what}: the Hub shows this login no repository {self.repo_id!r}; check the name, or {_LOGIN}."
            ) from error
        # ValueError, KeyError, TypeError: an answer that is not the Hub's, such as the login page of a network
        except (OSError, HTTPError, ValueError, KeyError, TypeError, RuntimeError) as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
                reason = f"the Hub refuses {self.repo_id} ({error.response.status_code}); {_LOGIN}"
                raise WeightsError(f"cannot {what}: {reason}.") from error
            first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:200]
            raise WeightsError(
                f"cannot {what}: the Hub did not answer as expected for {self.repo_id} ({type(error).__name__}: "
                f"{first}). Check the connection (and unset HF_HUB_OFFLINE) and publish again; a commit is made whole "
                "or not at all."
            ) from error


class _ConflictError(Exception):
    """Someone else has committed to the branch meanwhile."""


class _NoRevisionError(WeightsError):
    """The branch, tag or commit does not exist."""
