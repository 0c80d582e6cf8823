"""register_publication: writes what was published on the Hub into the package's registry."""

from __future__ import annotations

import json
import re
from pathlib import Path

from simco_zoo.files import write_text
from simco_zoo.hub.config import CONFIG_FILE
from simco_zoo.hub.registry import REGISTRY
from simco_zoo.publishing.push import read_publication


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
        ValueError: If the folder has no tag, the revision is not a full sha, or the name belongs to another model.

    Example:
        >>> sha = push_to_hub("runs/mine/best", "org/name")  # doctest: +SKIP
        >>> register_publication("runs/mine/best", "org/name", sha)  # doctest: +SKIP
        'simco_r18_025.mine'
    """
    config = json.loads(read_publication(Path(folder), repo_id)[CONFIG_FILE])
    tag = config["pretrained_cfg"].get("tag")
    if not tag:
        raise ValueError(f"{folder} has no tag to be registered under; train with --tag, or save it with tag=NAME.")
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ValueError(
            f"the revision {revision!r} is not a full sha, and any other name can move; register the commit."
        )
    name = f"{config['architecture']}.{tag}"
    entries = json.loads(registry.read_text(encoding="utf-8"))
    entries[name] = {"repo_id": repo_id, "revision": revision, "config": config}
    write_text(registry, json.dumps(dict(sorted(entries.items())), indent=2) + "\n")
    return name
