"""push_to_hub and register_publication: a published folder goes to the Hugging Face Hub, and into the registry."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from torch import nn

from simco_zoo.files import write_text
from simco_zoo.hub.folder import CONFIG_FILE, MODEL_FILE, PROJECTOR_FILE, from_path, parse_config, read_bytes
from simco_zoo.hub.weights import REGISTRY
from simco_zoo.models import ContrastiveModel
from simco_zoo.publishing.card import model_card
from simco_zoo.publishing.save import CARD_FILE, CURVES_FILE, LOG_FILE, REMOTE_CODE, auto_map, save_pretrained


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

    Files that are there unchanged are not sent again. A README that someone edited on the Hub is kept unless
    ``overwrite_card``.

    Args:
        model_or_folder: A model of the zoo, or a folder that ``save_pretrained`` wrote.
        repo_id: ``org/name``; made if it does not exist.
        revision: Branch to commit to, made if it does not exist; default the main one.
        tag: Git tag to put on the commit, e.g. ``v1.0``; ``hf-hub:org/name@v1.0`` then loads it.
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
        WeightsError: If the folder is damaged; nothing is sent then.
        ValueError: If there is no remote code for the architecture.
    """
    if isinstance(model_or_folder, nn.Module):
        with tempfile.TemporaryDirectory() as temporary:
            folder = save_pretrained(
                model_or_folder, Path(temporary) / "model", remote_code=remote_code, **save_arguments
            )
            return push_to_hub(
                folder,
                repo_id,
                revision=revision,
                tag=tag,
                private=private,
                token=token,
                commit_message=commit_message,
                overwrite_card=overwrite_card,
                endpoint=endpoint,
            )
    folder = Path(model_or_folder)
    found = from_path(folder, folder_only=True)
    for file in filter(None, (found.model_file, found.projector_file)):
        found.verified_bytes(file)
    config = dict(found.config)
    if remote_code:
        config["auto_map"] = auto_map(config["architecture"])
    api = HfApi(endpoint=endpoint, token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    keep_card = not overwrite_card and _card_was_edited(api, repo_id, revision)
    names = [MODEL_FILE, PROJECTOR_FILE, LOG_FILE, CURVES_FILE] + ([] if keep_card else [CARD_FILE])
    files: dict[str, str | bytes] = {name: str(folder / name) for name in names if (folder / name).is_file()}
    files[CONFIG_FILE] = (json.dumps(config, indent=2) + "\n").encode() if remote_code else str(folder / CONFIG_FILE)
    if "auto_map" in config:
        files[REMOTE_CODE.name] = str(REMOTE_CODE)
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    commit = api.create_commit(repo_id, operations, commit_message=commit_message, revision=revision)
    if tag is not None:
        api.create_tag(repo_id, tag=tag, revision=commit.oid)
    return commit.oid


def register_publication(folder: str | Path, repo_id: str, revision: str, registry: Path = REGISTRY) -> str:
    """Writes a publication into the package's registry, so that its name loads it at that commit from then on.

    Args:
        folder: The published folder; its config.json, with the sha256 of each file, goes into the registry.
        repo_id: Where it was published.
        revision: Full sha of the commit there.
        registry: The JSON file.

    Returns:
        The name, ``ARCHITECTURE.TAG``.

    Raises:
        ValueError: If the folder has no tag, or the revision is no full sha.
    """
    config = json.loads((Path(folder) / CONFIG_FILE).read_bytes())
    tag = config["pretrained_cfg"].get("tag")
    if not tag:
        raise ValueError(f"{folder} has no tag to be registered under; train with --tag, or save it with tag=NAME.")
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ValueError(f"the revision {revision!r} is no full sha, and anything else can move; register the commit.")
    name = f"{config['architecture']}.{tag}"
    entries = json.loads(registry.read_text(encoding="utf-8"))
    entries[name] = {"repo_id": repo_id, "revision": revision, "config": config}
    write_text(registry, json.dumps(dict(sorted(entries.items())), indent=2) + "\n")
    return name


def _card_was_edited(api: HfApi, repo_id: str, revision: str | None) -> bool:
    """Tells whether the repository's README is another than the one made from the config that lies beside it."""
    names = api.list_repo_files(repo_id, revision=revision)
    if "README.md" not in names:
        return False
    if CONFIG_FILE not in names:
        return True
    card, config = (api.hf_hub_download(repo_id, n, revision=revision) for n in ("README.md", CONFIG_FILE))
    return Path(card).read_text(encoding="utf-8") != model_card(
        parse_config(read_bytes(Path(config), repo_id), repo_id)
    )
