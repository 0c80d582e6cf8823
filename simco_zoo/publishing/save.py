"""save_pretrained: writes a model as one folder, the same on disk and on the Hub."""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import tempfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from simco_zoo.hub.folder import CONFIG_FILE, MODEL_FILE, PROJECTOR_FILE
from simco_zoo.models import ContrastiveModel, zoo
from simco_zoo.publishing.card import model_card
from simco_zoo.publishing.fingerprint import fingerprint
from simco_zoo.version import __version__

FORMAT = 1  # of the "simco_zoo" section in config.json
CARD_FILE, LOG_FILE, CURVES_FILE = "README.md", "log.csv", "curves.png"
REMOTE_CODE = Path(__file__).parent / "remote_code" / "modeling_simco.py"
_INPUT_KEYS = (
    "tag",
    "input_size",
    "fixed_input_size",
    "pool_size",
    "crop_pct",
    "crop_mode",
    "interpolation",
    "mean",
    "std",
    "first_conv",
    "classifier",
    "label_names",
    "license",
)


def save_pretrained(
    model: ContrastiveModel,
    folder: str | Path,
    *,
    recipe: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
    log: str | Path | None = None,
    curves: str | Path | None = None,
    hardware: str | None = None,
    versions: dict[str, str] | None = None,
    tag: str | None = None,
    half: bool = False,
    projector: bool = True,
    remote_code: bool = False,
) -> Path:
    """Writes a model's published folder, which simco_zoo, timm (after ``import simco_zoo``) and transformers load.

    The folder holds ``model.safetensors`` (the backbone in timm's keys, with its classifier if it has one),
    ``projector.safetensors``, ``config.json`` (timm's schema and a section ``simco_zoo``), ``README.md`` (the model
    card) and ``log.csv``. It is written under a temporary name and takes the old one's place when it is complete.

    Args:
        model: A model of the zoo.
        folder: Where to write; an existing published folder is replaced.
        recipe: Training settings, for config and card.
        data: Training data: ``name``, ``split``, ``images``, ``image_size``.
        metrics: Accuracies in percent, e.g. ``knn_top1``.
        log: ``log.csv`` of the run.
        curves: ``curves.png`` of the run, which the card then shows.
        hardware: What it was trained on.
        versions: Of the libraries that it was trained with; None: the present ones.
        tag: Tag of the weights, e.g. the data set.
        half: Store weights in half precision; batch norm's statistics stay in fp32.
        projector: Write the projector, too; without it the folder gives features, but no projections.
        remote_code: Add ``modeling_simco.py``, with which transformers loads a registered name without this package
            (``trust_remote_code=True``).

    Returns:
        The folder's absolute path.

    Raises:
        ValueError: If ``folder`` exists and is no published folder, the model was not made by ``create_model``,
            there is no remote code for its architecture, or a weight is beyond the range of half precision.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not (folder / CONFIG_FILE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is no published folder; choose another, so that nothing is lost.")
    if not getattr(model, "architecture", ""):
        raise ValueError("the model does not say how its backbone is built; make it with simco_zoo.create_model.")
    tensors = {MODEL_FILE: _tensors(model.backbone, half)}
    if projector:
        tensors[PROJECTOR_FILE] = _tensors(model.projector, half)
    files = {name: safetensors.torch.save(t, metadata={"format": "pt"}) for name, t in tensors.items()}

    config = _config(model, tag)
    config["simco_zoo"] = {
        "format": FORMAT,
        "method": model.method,
        "method_config": model.method_config(),
        "loss": _loss(model),
        "recipe": recipe or {},
        "data": data or {},
        "metrics": metrics or {},
        "hardware": hardware,
        "curves": curves is not None,
        "versions": versions or _versions(),
        "files": {n: {"sha256": hashlib.sha256(b).hexdigest(), "size": len(b)} for n, b in files.items()},
        "fingerprint": fingerprint(_as_saved(model.backbone, tensors[MODEL_FILE])),
    }
    if remote_code:
        config["auto_map"] = auto_map(model.architecture)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for name, content in files.items():
            (partial / name).write_bytes(content)
        if log is not None:
            shutil.copyfile(log, partial / LOG_FILE)
        if curves is not None:
            shutil.copyfile(curves, partial / CURVES_FILE)
        if remote_code:
            shutil.copyfile(REMOTE_CODE, partial / REMOTE_CODE.name)
        (partial / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (partial / CARD_FILE).write_text(model_card(config), encoding="utf-8")
        partial.chmod(0o755)  # mkdtemp's folders are private
        _replace_folder(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def auto_map(architecture: str) -> dict[str, str]:
    """Returns config.json's entry that leads transformers to the remote code."""
    if architecture not in zoo.__all__:
        raise ValueError(
            f"there is no remote code for {architecture}, only for the registered names; leave remote_code out "
            "(a free backbone of timm needs none)."
        )
    return {"AutoModel": f"{REMOTE_CODE.stem}.SimcoModel"}


def _tensors(module: nn.Module, half: bool) -> dict[str, Tensor]:
    """Returns a module's state dict on the CPU, each tensor with memory of its own."""
    statistics = {
        f"{path}.{name}" if path else name
        for path, child in module.named_modules()
        if isinstance(child, _BatchNorm)
        for name in ("running_mean", "running_var")
    }
    tensors = {}
    for name, tensor in module.state_dict().items():
        tensor = tensor.detach().cpu().contiguous().clone()
        if tensor.is_floating_point():
            exact = tensor
            tensor = tensor.to(torch.float16 if half and name not in statistics else torch.float32)
            if tensor.isinf().any() and not exact.isinf().any():
                raise ValueError(f"{name} has values beyond half precision's range; leave half out.")
        tensors[name] = tensor
    return tensors


def _as_saved(backbone: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """Returns the backbone as it will be loaded: with the rounding of half precision, if any."""
    backbone = copy.deepcopy(backbone).cpu().float()
    backbone.load_state_dict(tensors)
    return backbone


def _config(model: ContrastiveModel, tag: str | None) -> dict[str, Any]:
    """Returns timm's part of config.json. It never puts num_classes into model_args: transformers fails on that."""
    cfg = {key: value for key, value in model.pretrained_cfg.items() if key in _INPUT_KEYS and value is not None}
    if tag:
        cfg["tag"] = tag
    config: dict[str, Any] = {
        "architecture": model.architecture,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "pretrained_cfg": {**cfg, "num_classes": model.num_classes},
    }
    if "global_pool" not in model.model_args:
        pool = getattr(getattr(model.backbone, "global_pool", None), "pool_type", None)
        config["global_pool"] = pool or getattr(model.backbone, "global_pool", None) or "avg"
        if not isinstance(config["global_pool"], str):
            config["global_pool"] = "avg"
    if model.model_args:
        config["model_args"] = model.model_args
    return config


def _loss(model: ContrastiveModel) -> dict[str, Any]:
    dt_m = getattr(model, "dt_m", None)
    if dt_m is None:
        return {"name": "InfoNCE", "temperature": model.temperature}
    return {"name": "dual temperature", "tau_alpha": model.temperature, "tau_beta": dt_m * model.temperature}


def _versions() -> dict[str, str]:
    packages = ("torch", "torchvision", "timm", "safetensors", "numpy")
    return {
        "simco_zoo": __version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def _replace_folder(new: Path, folder: Path) -> None:
    """Puts a complete folder in the place of an older one, which is set aside until the new one stands."""
    if not folder.exists():
        os.replace(new, folder)
        return
    aside = folder.with_name(f".{folder.name}-old-{os.getpid()}")
    os.replace(folder, aside)
    try:
        os.replace(new, folder)
    except OSError:
        os.replace(aside, folder)
        raise
    shutil.rmtree(aside)
