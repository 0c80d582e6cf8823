"""copy_published: a published model becomes a folder on this machine."""

from __future__ import annotations

import contextlib
from pathlib import Path

from simco_zoo.hub.config import CONFIG_FILE, section
from simco_zoo.hub.download import WeightsError
from simco_zoo.hub.registry import resolve
from simco_zoo.publishing.card import CARD_FILE, CURVES_FILE, LOG_FILE
from simco_zoo.publishing.save import REMOTE_CODE, check_target, config_text, new_folder


def copy_published(name: str, folder: str | Path) -> Path:
    """Copies a published model into a folder of its own, each file verified, all of them or none.

    Args:
        name: A published name, ``hf-hub:org/name[@revision]`` or ``local-dir:PATH``.
        folder: Where to write; it has to be new or empty, or hold an older copy, which is replaced.

    Returns:
        The folder's absolute path.

    Raises:
        ValueError: If the folder holds something else.
        WeightsError: If the model cannot be had, or is damaged.

    Example:
        >>> import tempfile
        >>> folder = copy_published("simco_r18_025", Path(tempfile.mkdtemp()) / "copy")
        >>> (folder / "model.safetensors").is_file()
        True
    """
    folder = Path(folder).expanduser().absolute()
    check_target(folder)
    found = resolve(name)
    if found.folder is None:
        raise WeightsError(f"{name} is a bare file without a description; copy it yourself.")
    files = {file: found.verified_bytes(file) for file in found.file_names}
    files[CONFIG_FILE] = config_text(found.config).encode()
    documents = section(found.config).get("documents", {CARD_FILE: "", LOG_FILE: "", CURVES_FILE: ""})
    for file in (*documents, REMOTE_CODE.name):
        with contextlib.suppress(WeightsError):  # a folder is whole without them
            files[file] = found.document(file)
    with new_folder(folder) as partial:
        for file, content in files.items():
            (partial / file).write_bytes(content)
    return folder
