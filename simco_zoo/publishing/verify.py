"""verify: is a published folder what it claims to be, down to the features it gives?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import timm
import torch

from simco_zoo.hub.errors import WeightsError
from simco_zoo.hub.folder import MODEL_FILE, WeightsFolder
from simco_zoo.hub.weights import published, resolve
from simco_zoo.publishing.fingerprint import compare_fingerprints, fingerprint


@dataclass(frozen=True)
class Check:
    """One thing that was looked at, and what is wrong with it (None: nothing)."""

    name: str
    problem: str | None = None


def verify(name: str | Path) -> list[Check]:
    """Verifies hashes, keys, shapes, finite values, and the features of a formula-made image.

    Args:
        name: A published name, ``hf-hub:org/name``, ``local-dir:PATH`` or a folder.

    Returns:
        The checks; those after a failed one are left out where they could only fail, too.

    Raises:
        WeightsError: If the folder cannot be found or its config.json cannot be read.
    """
    text = str(name)
    is_path = not text.startswith(("hf-hub:", "local-dir:")) and text not in published() and Path(text).exists()
    found = resolve(text, weights=text if is_path else None)
    if not found.config:
        raise WeightsError(f"{found.origin} is a bare file without a config.json; there is nothing to verify it by.")
    checks: list[Check] = []
    for path in filter(None, (found.model_file, found.projector_file)):
        checks += _check_file(found, path)
    if any(check.problem for check in checks):
        return checks
    try:
        backbone = timm.create_model(
            found.config["architecture"],
            pretrained=True,
            pretrained_cfg=found.timm_cfg(),
            num_classes=found.config.get("num_classes", 0),
            **{k: v for k, v in (found.config.get("model_args") or {}).items() if k != "num_classes"},
        )
    except (WeightsError, RuntimeError, TypeError) as error:
        return [*checks, Check("keys and shapes", str(error))]
    checks.append(Check("keys and shapes"))
    expected = found.config.get("simco_zoo", {}).get("fingerprint")
    if expected is None:
        return [*checks, Check("fingerprint", "config.json has none; publish the folder again")]
    return [*checks, Check("fingerprint", compare_fingerprints(expected, fingerprint(backbone)))]


def _check_file(found: WeightsFolder, path: Path) -> list[Check]:
    try:
        tensors = found.read(path)
    except WeightsError as error:
        return [Check(f"sha256 of {path.name}", str(error))]
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor.float()).all()]
    problem = f"not finite: {', '.join(broken[:4])}" if broken else None
    checks = [Check(f"sha256 of {path.name}"), Check(f"values of {path.name}", problem)]
    if path.name == MODEL_FILE and not tensors:
        checks.append(Check(f"content of {path.name}", "the file holds no tensors"))
    return checks
