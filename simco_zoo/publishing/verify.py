"""verify: is a published folder what it claims to be, down to the features it gives?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from simco_zoo.hub.config import is_sealed, saved_by_transformers, section, sha256_of
from simco_zoo.hub.download import WeightsError
from simco_zoo.hub.folder import WeightsFolder
from simco_zoo.hub.registry import published, resolve
from simco_zoo.models import create_model
from simco_zoo.publishing.card import CARD_FILE, card_as_written
from simco_zoo.publishing.fingerprint import compare_fingerprints, fingerprint


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What it was.
        problem: What is wrong with it, or None.
        note: What is worth knowing although nothing is wrong, or None.
    """

    name: str
    problem: str | None = None
    note: str | None = None


def verify(name: str | Path) -> list[Check]:
    """Verifies a published model as a whole: hashes, values, the model with projector and classifier, and its features.

    The features are those of an image that is made by a formula, so a wrong stem, normalization, interpolation or a
    lost buffer is seen.

    Args:
        name: A published name, ``hf-hub:org/name``, ``local-dir:PATH`` or a folder.

    Returns:
        The checks; those after a failed one are left out where they could only fail, too.

    Raises:
        WeightsError: If the folder cannot be found, or its config.json is damaged.
    """
    text = str(name)
    is_name = text.startswith(("hf-hub:", "local-dir:")) or text in published()
    meant = isinstance(name, Path) or text.startswith((".", "/", "~"))  # a path, also where nothing is there
    is_path = not is_name and (meant or Path(text).exists())
    found = resolve(text, weights=text if is_path else None)
    if not found.config:
        raise WeightsError(f"{found.origin} is a bare file without a config.json; there is nothing to verify it by.")
    own = section(found.config)
    if not own:
        return [Check("config.json", f"{found.origin} was not published by simco-zoo; it has no hashes to verify")]
    checks = [check for file in found.file_names for check in _check_file(found, file)] + [_check_config(found)]
    if any(check.problem for check in checks):
        return checks
    try:
        source = f"hf-hub:{found.repository}" if found.repository is not None else f"local-dir:{found.folder}"
        model = create_model(source, pretrained=True)
    except (WeightsError, ValueError) as error:
        return [*checks, Check("keys and shapes", str(error))]
    checks.append(Check("keys and shapes", _wrong_sizes(found.config, model)))
    if saved_by_transformers(found.config):
        return [*checks, Check("fingerprint", None, "transformers saved this folder and made none")]
    return [*checks, _check_fingerprint(own.get("fingerprint"), model), *_check_documents(found)]


def _check_config(found: WeightsFolder) -> Check:
    if is_sealed(found.config):
        return Check("config.json")
    if saved_by_transformers(found.config):
        return Check("config.json", None, "transformers saved this folder; it has no hashes to compare")
    return Check("config.json", None, "has no hash of its own content; simco_zoo.publishing.renew_folder adds it")


def _check_file(found: WeightsFolder, file: str) -> list[Check]:
    try:
        tensors = found.read(file)
    except WeightsError as error:
        return [Check(f"sha256 of {file}", str(error))]
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor.float()).all()]
    problem = f"not finite: {', '.join(broken[:4])}" if broken else None
    if not tensors:
        problem = "the file holds no tensors"
    return [Check(f"sha256 of {file}"), Check(f"values of {file}", problem)]


def _wrong_sizes(config: dict[str, Any], model: Any) -> str | None:
    """Compares what config.json says about the whole model with the model."""
    stated = {"num_features": config.get("num_features"), "num_classes": config.get("num_classes")}
    wrong = [
        f"{key} is {getattr(model, key)}, but config.json says {value}"
        for key, value in stated.items()
        if value not in (None, getattr(model, key))
    ]
    config_of_method = section(config).get("method_config", {})
    wrong += [
        f"{key} is {value!r}, but config.json says {config_of_method[key]!r}"
        for key, value in model.method_config().items()
        if config_of_method.get(key, value) != value
    ]
    return "; ".join(wrong) or None


def _check_fingerprint(expected: dict[str, Any] | None, model: Any) -> Check:
    if expected is None:
        return Check("fingerprint", "config.json has none; publish the folder again")
    try:
        return Check("fingerprint", compare_fingerprints(expected, fingerprint(model)))
    except (KeyError, TypeError, ValueError) as error:
        return Check("fingerprint", f"config.json has a malformed one ({type(error).__name__}: {error})")


def _check_documents(found: WeightsFolder) -> list[Check]:
    """Compares card, log and curves with what was published."""
    checks = []
    for name, expected in section(found.config).get("documents", {}).items():
        try:
            data = found.document(name)
        except WeightsError as error:
            checks.append(Check(name, f"is missing ({error})"))
            continue
        edited = sha256_of(card_as_written(data) if name == CARD_FILE else data) != expected
        if not edited:
            checks.append(Check(name))
        elif name == CARD_FILE:
            checks.append(Check(name, None, "was edited by hand; it is not the card made from config.json"))
        else:
            checks.append(Check(name, "was edited: it is not the file that was published"))
    return checks
