"""Training checkpoints: everything a run needs to go on as if it had not stopped.

A checkpoint stays with its run; what is shared is the published folder (safetensors and JSON). Checkpoints hold tensors
and plain values only and are read with ``weights_only=True``.
"""

from __future__ import annotations

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from simco_zoo.files import atomic_write


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Writes ``step-N.pt`` atomically and removes all but the newest ``keep`` checkpoints.

    Args:
        folder: The run's checkpoint folder; made if needed.
        step: Optimizer steps done; names the file.
        state: Tensors and plain values.
        keep: Number of checkpoints to keep, >= 1.

    Returns:
        The file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    with atomic_write(path) as partial:
        torch.save(state, partial)
    for old in list_checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """Lists a run's checkpoints, oldest first."""
    found = [path for path in folder.glob("step-*.pt") if re.fullmatch(r"step-\d+\.pt", path.name)]
    return sorted(found, key=lambda path: int(path.stem.split("-")[1]))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads one checkpoint to the CPU.

    Raises:
        ValueError: If the file is damaged or no checkpoint of this package.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError) as error:
        raise ValueError(
            f"{path} cannot be read as a checkpoint ({str(error).splitlines()[0]}); "
            "remove it, or resume from another file."
        ) from error
    if not isinstance(state, dict) or "step" not in state:
        raise ValueError(f"{path} is no training checkpoint of simco-zoo; pass a step-*.pt file of a run.")
    return state


def find_resume(resume: str, folder: Path) -> dict[str, Any] | None:
    """Finds the checkpoint that the ``resume`` setting asks for.

    Args:
        resume: "auto" (the newest readable one of the run, if any), "never", or a file.
        folder: The run's checkpoint folder.

    Returns:
        The checkpoint's state, or None for a fresh start.

    Raises:
        ValueError: If the named file is damaged, or the run has checkpoints and none can be read.
        FileNotFoundError: If the named file does not exist.
    """
    if resume == "never":
        return None
    if resume != "auto":
        if not Path(resume).is_file():
            raise FileNotFoundError(f"there is no checkpoint {resume}; pass --resume auto, never or a step-*.pt file.")
        return load_checkpoint(Path(resume))
    candidates = list_checkpoints(folder)
    for path in reversed(candidates):
        try:
            return load_checkpoint(path)
        except ValueError as error:
            warnings.warn(f"{error} Trying the checkpoint before it.", stacklevel=2)
    if candidates:
        raise ValueError(f"none of the checkpoints in {folder} can be read; pass --resume never to start afresh.")
    return None


def check_settings(now: dict[str, Any], then: dict[str, Any], run: Path) -> None:
    """Raises ValueError, with a list of the differences, unless a run goes on with the settings it was started with."""
    differing = [key for key in sorted({*now, *then}) if now.get(key) != then.get(key)]
    if differing:
        listed = "; ".join(f"{key}: {then.get(key)} then, {now.get(key)} now" for key in differing)
        raise ValueError(
            f"the run in {run} was started with other settings ({listed}); "
            "use the same, another output folder, or resume='never'."
        )
