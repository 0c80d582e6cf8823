"""Extraction into a file that survives an interruption: features are kept in parts until the last one is there."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from simco_zoo.data import ImageData
from simco_zoo.data.fingerprint import describe_images
from simco_zoo.data.transforms import input_config
from simco_zoo.distributed import gather_objects, is_main, on_main
from simco_zoo.evaluation.export import write_features, writer_for
from simco_zoo.evaluation.features import collect, iterate_features
from simco_zoo.files import atomic_write, check_disk_space, write_text
from simco_zoo.lock import locked

PART_IMAGES = 1024  # at least, of one part
WAITING_FILE = "parts.json"  # the hash of each part, and the images skipped so far


def extract_to_file(
    model: nn.Module,
    images: ImageData,
    output: str | Path,
    batch_size: int = 256,
    *,
    flip: bool = False,
    amp: torch.dtype | None = None,
    info: dict[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Extracts the features of images and writes them to a file.

    On the way they are kept in OUTPUT.parts. After an interruption the same call continues with the first image that
    is not in there; with another model, other images or settings it raises an error.

    Args:
        model: A model from ``create_model`` or from timm.
        images: Loaded images.
        output: File that ends in .safetensors, .npz, .parquet or .csv.
        batch_size: Images per forward.
        flip: Take the mean of the features of each image and of its mirror image.
        amp: Type for autocast, e.g. ``torch.bfloat16``; None: none.
        info: What else the file says about how the features were made.
        **options: ``device``, ``num_workers``, ``progress_bar`` and ``across_processes`` of ``extract_features``.

    Returns:
        ``count``, ``dim``, ``output`` (absolute path), and ``skipped``, the (name, reason) of each image left out.

    Raises:
        ValueError: If the suffix is unknown or the parts belong to another extraction.
        OSError: If nothing can be written there, or another process extracts to the same file.
    """
    path = Path(output).absolute()
    check_output(path)
    made = {"image_size": images.image_size, "flip": flip, "amp": None if amp is None else str(amp), **(info or {})}
    identity = {**made, "weights": hash_weights(model), "images": hash_images(images)}
    folder = path.with_name(f"{path.name}.parts")
    with locked(folder):
        parts: Any = on_main(lambda: _Parts(folder, identity), lambda _: None)
        start = gather_objects(parts.end if is_main() else 0)[0]
        pending: list[tuple[Tensor, Tensor]] = []
        for rows, batch in iterate_features(
            model, images, batch_size, config=input_config(model), start=start, flip=flip, amp=amp, **options
        ):
            if not is_main():
                continue
            pending.append((rows, batch))
            if sum(len(part) for part, _ in pending) >= PART_IMAGES:
                parts.add(pending, images.skipped)
                pending = []
        summary: dict[str, Any] = {}
        if is_main():
            if pending:
                parts.add(pending, images.skipped)
            rows, features = parts.read(images.skipped)
            found = collect(images, rows, features, {**made, "weights": identity["weights"]})
            write_features(found, path)
            parts.remove()
            summary = {"count": len(found), "dim": found.features.shape[1], "output": str(path)}
            summary["skipped"] = found.skipped
        return gather_objects(summary)[0]


def check_output(path: Path) -> None:
    """Raises ValueError or OSError if a file of features cannot be written there."""
    writer_for(path)
    if path.is_dir():
        raise ValueError(f"the output {path} is a folder; name a file.")
    if is_main():
        check_disk_space(path.parent, 0)


def hash_weights(model: nn.Module) -> str:
    """Returns the sha256 of all parameters and buffers with their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def hash_images(images: ImageData) -> str:
    """Returns a sha256 of what tells these images from others: their number, names, labels and pixels."""
    return hashlib.sha256(json.dumps(describe_images("images", images), sort_keys=True).encode()).hexdigest()


class _Parts:
    """The folder in which the features wait.

    Args:
        folder: The folder; it exists, and is locked.
        identity: What the features depend on.

    Raises:
        ValueError: If the folder holds parts of another extraction.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder, self.files = folder, list[Path]()
        self.waiting: dict[str, Any] = {"parts": {}, "skipped": []}
        file = folder / "identity.json"
        if not file.is_file():
            write_text(file, json.dumps(identity, indent=2))
            return
        before = _read_json(file)
        changed = sorted(key for key in {*before, *identity} if before.get(key) != identity.get(key))
        if changed:
            raise ValueError(
                f"{folder} holds a part of another extraction (other {', '.join(changed)}); delete it, or choose "
                "another --output."
            )
        waiting = folder / WAITING_FILE
        if waiting.is_file():
            self.waiting.update(_read_json(waiting))
        self.files = list(itertools.takewhile(self._is_whole, sorted(folder.glob("*.safetensors"))))

    @property
    def end(self) -> int:
        """The row after the last one of the parts."""
        return int(self.files[-1].stem) if self.files else 0

    def add(self, batches: list[tuple[Tensor, Tensor]], skipped: list[tuple[str, str]]) -> None:
        rows, features = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
        if not len(rows):
            return
        file = self.folder / f"{int(rows[-1]) + 1:012d}.safetensors"
        content = save({"rows": rows, "features": features})
        with atomic_write(file) as partial:
            partial.write_bytes(content)
        self.waiting["parts"][file.name] = hashlib.sha256(content).hexdigest()
        self.waiting["skipped"] = skipped
        write_text(self.folder / WAITING_FILE, json.dumps(self.waiting))
        self.files.append(file)

    def read(self, skipped: list[tuple[str, str]]) -> tuple[Tensor, Tensor]:
        """Returns all rows and features, and completes the list of skipped images."""
        if not self.files:
            raise ValueError(f"none of the images can be read, e.g. {': '.join(skipped[0])}.")
        skipped[:] = dict([*map(tuple, self.waiting["skipped"]), *skipped]).items()
        parts = [load_file(file) for file in self.files]
        return torch.cat([part["rows"] for part in parts]), torch.cat([part["features"] for part in parts])

    def remove(self) -> None:
        shutil.rmtree(self.folder)

    def _is_whole(self, part: Path) -> bool:
        return hashlib.sha256(part.read_bytes()).hexdigest() == self.waiting["parts"].get(part.name)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{file} is damaged; delete {file.parent}, and the extraction starts afresh.")
    return content
