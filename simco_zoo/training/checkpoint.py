"""Training checkpoints: everything a run needs to go on as if it had not stopped.

A checkpoint stays with its run; what is shared is the published folder (safetensors and JSON). Checkpoints hold tensors
and plain values only and are read with ``weights_only=True``. The file is what ``torch.save`` writes, a zip archive,
with a SHA-256 of its content as the archive's comment, so that ``torch.load`` reads it, too.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import torch

from simco_zoo.files import atomic_write

FORMAT = 2
_COMMENT = b"simco-zoo sha256:"
_COMMENT_SIZE = len(_COMMENT) + 64
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


class _HashedFile:
    """Passes on what is written and hashes it on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.hash = file, hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.hash.update(content)
        return self.file.write(content)

    def flush(self) -> None:
        self.file.flush()


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
    with atomic_write(path, durable=True) as partial, partial.open("wb") as file:
        hashed = _HashedFile(file)
        torch.save({**state, "format": FORMAT}, hashed)  # type: ignore[arg-type]  # it needs no more than write
        # the archive ends with the length of its comment, 0 so far
        file.seek(-2, io.SEEK_END)
        file.write(struct.pack("<H", _COMMENT_SIZE) + _COMMENT + hashed.hash.hexdigest().encode())
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
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read as a checkpoint ({error.strerror}).") from error
    verified = _is_whole(content, path)
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # an altered archive can fail anywhere within torch's reader
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} cannot be read as a checkpoint ({reason}).") from error
    if not isinstance(state, dict) or not isinstance(state.get("step"), int):
        raise ValueError(f"{path} is not a training checkpoint of simco-zoo; pass a step-*.pt file of a run.")
    if state.get("format", 1) == 1:
        return _from_format_1(state, path)
    if not verified:
        raise ValueError(f"{path} cannot be read as a checkpoint (its checksum is missing).")
    wrong = [name for name, kind in _TYPES.items() if not isinstance(state.get(name), kind)]
    if wrong or state["format"] != FORMAT:
        what = f"of format {state['format']}" if state["format"] != FORMAT else f"without {', '.join(wrong)}"
        raise ValueError(f"{path} is a checkpoint {what}, which this version of simco-zoo does not read.")
    return state


def _is_whole(content: bytes, path: Path) -> bool:
    """Compares a file with the checksum at its end; False if it has none.

    Raises:
        ValueError: If the two do not agree.
    """
    comment = content[-_COMMENT_SIZE:]
    if not comment.startswith(_COMMENT):
        return False
    found = hashlib.sha256(memoryview(content)[: -_COMMENT_SIZE - 2])
    found.update(b"\0\0")
    if found.hexdigest().encode() != comment[len(_COMMENT) :]:
        raise ValueError(f"{path} cannot be read as a checkpoint (it is damaged: its checksum differs).")
    return True


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
