"""renew_folder: gives a folder of an earlier version the hashes that folders have now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simco_zoo.files import write_text
from simco_zoo.hub.config import CONFIG_FILE, model_args, num_classes, section
from simco_zoo.hub.download import WeightsError, read_bytes
from simco_zoo.hub.folder import from_path
from simco_zoo.publishing.card import CARD_FILE, CURVES_FILE, LOG_FILE, model_card
from simco_zoo.publishing.save import config_text, label_entries, with_documents
from simco_zoo.publishing.verify import verify


def renew_folder(folder: str | Path, *, new_card: bool = False) -> Path:
    """Rewrites a published folder's config.json as this version writes it; the weights stay as they are.

    Do this to a folder that you trust: from then on every change of its config.json is noticed.

    Args:
        folder: A published folder, written by an earlier version or edited by hand on purpose.
        new_card: Replace README.md by a new card made from config.json.

    Returns:
        The folder.

    Raises:
        WeightsError: If the folder does not verify; nothing is changed then.

    Example:
        >>> import tempfile
        >>> from simco_zoo.publishing import copy_published
        >>> folder = copy_published("simco_r18_025", Path(tempfile.mkdtemp()) / "copy")
        >>> renew_folder(folder) == folder
        True
    """
    folder = Path(folder).expanduser()
    problems = [f"{check.name}: {check.problem}" for check in verify(folder) if check.problem]
    if problems:
        raise WeightsError(f"{folder} cannot be renewed, because it does not verify: {'; '.join(problems)}.")
    old = from_path(folder, folder_only=True).config
    cfg = {**old["pretrained_cfg"], "num_classes": num_classes(old)}
    config: dict[str, Any] = {
        **{key: old[key] for key in ("architecture",)},
        "dtype": "float32",
        **{key: value for key, value in old.items() if key not in ("architecture", "dtype", "simco_zoo")},
        "pretrained_cfg": cfg,
        "model_args": model_args(old),
        **label_entries(cfg.get("label_names"), num_classes(old)),
        "simco_zoo": section(old),
    }
    if new_card:
        write_text(folder / CARD_FILE, model_card(config))
    there = [name for name in (CARD_FILE, LOG_FILE, CURVES_FILE) if (folder / name).is_file()]
    documents = {name: read_bytes(folder / name, str(folder)) for name in there}
    write_text(folder / CONFIG_FILE, config_text(with_documents(config, documents)))
    return folder
