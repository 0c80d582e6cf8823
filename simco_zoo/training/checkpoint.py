"""Training checkpoints: everything a run needs to go on as if it had not stopped.

A checkpoint stays with its run; what is shared is the published folder (safetensors and JSON). Checkpoints hold tensors
and plain values only, and have a checksum, see ``sealed.py``.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

from simco_zoo.sealed import load_sealed, save_sealed

FORMAT = 2
# what a checkpoint has at least, and of which type
_TYPES: dict[str, type | tuple[type, ...]] = {
    "step": int,
    "seconds": (int, float),
    "epoch_seconds": (int, float),
    "epoch_steps": int,
    "rows": list,
    "best": dict,
    "phases": list,
    "identity": dict,
    "processes": list,
    "optimizer": dict,
    "scaler": dict,
}
_PROCESS = {"rng", "sums", "buffers"}  # what it has of each process


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Writes ``step-N.pt`` and, when it is on the disk, removes the ones that are not needed any more.

    Those are all but the newest ``keep``, and any of a later step: they are damaged, or of a past that was given up.

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
    save_sealed(path, {**state, "format": FORMAT})
    earlier = [old for old in list_checkpoints(folder) if step_of(old) <= step]
    for old in list_checkpoints(folder):
        if old not in earlier[-keep:]:
            old.unlink(missing_ok=True)
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """Lists a run's checkpoints, oldest first."""
    found = [path for path in folder.glob("step-*.pt") if re.fullmatch(r"step-\d+\.pt", path.name) and path.is_file()]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """Returns the step that a checkpoint's name tells."""
    return int(path.stem.split("-")[1])


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads one checkpoint to the CPU.

    Raises:
        ValueError: If the file is damaged or is not a checkpoint of this package.
    """
    state, verified = load_sealed(path, "a checkpoint")
    if not isinstance(state, dict) or not isinstance(state.get("step"), int):
        raise ValueError(f"{path} is not a training checkpoint of simco-zoo; pass a step-*.pt file of a run.")
    if state.get("format", 1) == 1:
        return _from_format_1(state, path)
    if not verified:
        raise ValueError(f"{path} cannot be read as a checkpoint (its checksum is missing).")
    wrong = [name for name, kind in _TYPES.items() if not isinstance(state.get(name), kind)]
    if not wrong and not (state["processes"] and all(own.keys() >= _PROCESS for own in state["processes"])):
        wrong = ["the state of its processes"]
    if not {"model", "network"} & state.keys():
        wrong.append("weights")
    if wrong or state["format"] != FORMAT:
        what = f"of format {state['format']}" if state["format"] != FORMAT else f"without {', '.join(wrong)}"
        raise ValueError(f"{path} is a checkpoint {what}, which this version of simco-zoo does not read.")
    return state


def _from_format_1(state: dict[str, Any], path: Path) -> dict[str, Any]:
    """Brings a checkpoint of version 1, which had no checksum, into today's form."""
    try:
        rows = state["rows"]
        best_by = "top1" if "network" in state else "knn_top1"
        measured = [row for row in rows if best_by in row]
        return {
            **state,
            "seconds": state.get("seconds", rows[-1]["seconds"] if rows else 0.0),
            "epoch_seconds": 0.0,
            "epoch_steps": 0,
            "best": state.get("best") or max(measured, key=lambda row: row[best_by], default={}),
            "phases": [],
            "identity": {k: v for k, v in state["settings"].items() if k not in ("data.source", "model")},
            "processes": [{"rng": rng, "sums": {}, "buffers": {}} for rng in state["rng"]],
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a training checkpoint of simco-zoo; pass a step-*.pt file of a run."
        ) from error


def newest_checkpoint(folder: Path, run: str | None) -> tuple[Path, dict[str, Any]] | None:
    """Reads the newest checkpoint of a run; where it is damaged the one before, with a warning.

    Args:
        folder: The run's checkpoint folder.
        run: Id of the run; checkpoints of other runs are passed over. None: that of any run.

    Returns:
        The file and its state, or None if there is none.

    Raises:
        ValueError: If there are checkpoints and none can be read.
    """
    candidates = list_checkpoints(folder)
    for path in reversed(candidates):
        try:
            state = load_checkpoint(path)
        except ValueError as error:
            warnings.warn(f"{error} The one before it is used.", stacklevel=2)
            continue
        if run is None or state.get("run", run) == run:
            return path, state
        warnings.warn(f"{path} belongs to another run and is passed over.", stacklevel=2)
    if candidates:
        raise ValueError(
            f"none of the checkpoints in {folder} can be used; pass --resume never, which sets the run aside and "
            "starts afresh."
        )
    return None
