"""save_pretrained: writes a model as one folder, the same on disk and on the Hub."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from simco_zoo.files import named_if_full
from simco_zoo.hub.checks import activation_name
from simco_zoo.hub.config import CONFIG_FILE, MODEL_FILE, PROJECTOR_FILE, seal
from simco_zoo.models import ContrastiveModel, zoo
from simco_zoo.publishing.card import CARD_FILE, CURVES_FILE, LOG_FILE, model_card
from simco_zoo.publishing.fingerprint import fingerprint
from simco_zoo.publishing.names import check_license, check_tag
from simco_zoo.version import __version__

REMOTE_CODE = Path(__file__).parent / "remote_code" / "modeling_simco.py"
OWN_FILES = {MODEL_FILE, PROJECTOR_FILE, CONFIG_FILE, CARD_FILE, LOG_FILE, CURVES_FILE, REMOTE_CODE.name}
_INPUT_KEYS = (
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
    license: str | None = None,
    half: bool = False,
    projector: bool = True,
    remote_code: bool = False,
) -> Path:
    """Writes a model's published folder, which simco_zoo, timm (after ``import simco_zoo``) and transformers load.

    The folder holds ``model.safetensors`` (the backbone in timm's keys, with its classifier if it has one),
    ``projector.safetensors``, ``config.json`` (timm's schema and a section ``simco_zoo``), ``README.md`` (the model
    card) and ``log.csv``. It is written under a temporary name and takes the old one's place when it is complete.

    Args:
        model: A ``ContrastiveModel``.
        folder: Where to write; an existing published folder is replaced.
        recipe: Training settings, for config and card.
        data: Training data: ``name``, ``split``, ``images``, ``image_size``.
        metrics: Accuracies in percent, e.g. ``knn_top1``.
        log: ``log.csv`` of the run.
        curves: ``curves.png`` of the run, which the card then shows.
        hardware: What it was trained on.
        versions: Versions of the libraries that it was trained with; None: the installed ones.
        tag: Tag of the weights, e.g. the data set. That of a model trained with labels ends in ``-ft``, so it never
            takes the place of the pretrained weights.
        license: License of the weights, as the Hub names it (e.g. ``"apache-2.0"``, ``"cc-by-nc-4.0"``); None: none is
            claimed.
        half: Store weights in half precision; batch norm's statistics stay in fp32.
        projector: Write the projector, too; without it the folder gives features, but no projections.
        remote_code: Add ``modeling_simco.py``, with which transformers loads a registered name without this package
            (``trust_remote_code=True``).

    Returns:
        The folder's absolute path.

    Raises:
        ValueError: If ``folder`` exists and is not a published folder, the model was not made by ``create_model``,
            there is no remote code for its architecture, a weight is beyond the range of half precision, or tag or
            license are not written as such.

    Example:
        >>> import simco_zoo, tempfile
        >>> model = simco_zoo.create_model("simco", backbone="test_resnet")
        >>> folder = simco_zoo.save_pretrained(model, Path(tempfile.mkdtemp()) / "model", tag="mine")
        >>> again = simco_zoo.create_model(f"local-dir:{folder}", pretrained=True)
    """
    check_tag(tag)
    check_license(license)
    folder = Path(folder).expanduser().absolute()
    check_target(folder)
    if not getattr(model, "architecture", ""):
        raise ValueError("the model does not say how its backbone is built; make it with simco_zoo.create_model.")
    tensors = {MODEL_FILE: _tensors(model.backbone, half)}
    if projector:
        tensors[PROJECTOR_FILE] = _tensors(model.head, half)
    files = {name: safetensors.torch.save(t, metadata={"format": "pt"}) for name, t in tensors.items()}

    tag = tag or model.pretrained_cfg.get("tag")
    if tag and (recipe or {}).get("finetuned_from") and not tag.endswith("-ft"):
        tag += "-ft"
    config = _config(model, tag, license)
    config["simco_zoo"] = {
        "method": model.method,
        "method_config": model.method_config(),
        "loss": {} if (recipe or {}).get("converted_from") else model.loss_config(),  # it is not in a checkpoint
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
    documents = {CARD_FILE: model_card(config).encode()}
    for name, source in ((LOG_FILE, log), (CURVES_FILE, curves)):
        if source is not None:
            documents[name] = Path(source).read_bytes()
    config = with_documents(config, documents)
    with new_folder(folder) as partial:
        for name, content in {**files, **documents}.items():
            (partial / name).write_bytes(content)
        (partial / CONFIG_FILE).write_text(config_text(config), encoding="utf-8")
        if remote_code:
            shutil.copyfile(REMOTE_CODE, partial / REMOTE_CODE.name)
    return folder


def check_target(folder: Path) -> None:
    """Raises ValueError unless a published folder may be written there: a new, an empty or an older published one."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / CONFIG_FILE).is_file():
        raise ValueError(f"{folder} exists and is not a published folder; choose another, so that nothing is lost.")
    try:
        config = json.loads((folder / CONFIG_FILE).read_bytes())
    except ValueError:
        config = None
    foreign = [] if isinstance(config, dict) and "simco_zoo" in config else [CONFIG_FILE]
    foreign += sorted(path.name for path in folder.iterdir() if path.name not in OWN_FILES)
    if foreign:
        raise ValueError(
            f"{folder} holds files that are not a published model's ({', '.join(foreign[:4])}); choose another folder, "
            "so that nothing is lost."
        )


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Gives a temporary folder; what is written there takes the place of ``folder`` when the block ends well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with named_if_full(folder):
            yield partial
            partial.chmod(0o755)  # mkdtemp's folders are private
            _replace_folder(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def with_documents(config: dict[str, Any], documents: dict[str, bytes]) -> dict[str, Any]:
    """Returns a config with the hashes of the files that people read (the card tells by it whether someone edited it),
    sealed by its own hash."""
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in documents.items()}
    return seal({**config, "simco_zoo": {**config["simco_zoo"], "documents": hashes}})


def config_text(config: dict[str, Any]) -> str:
    """Returns config.json as it is written."""
    return json.dumps(config, indent=2) + "\n"


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


def _config(model: ContrastiveModel, tag: str | None, license: str | None) -> dict[str, Any]:
    """Returns timm's part of config.json. It never puts num_classes into model_args: transformers fails on that."""
    cfg = {key: value for key, value in model.pretrained_cfg.items() if key in _INPUT_KEYS and value is not None}
    cfg |= {key: value for key, value in (("tag", tag), ("license", license)) if value}
    config: dict[str, Any] = {
        "architecture": model.architecture,
        "dtype": "float32",  # transformers would otherwise train in the type of the file, which may be half precision
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "pretrained_cfg": {**cfg, "num_classes": model.num_classes},
    }
    if "global_pool" not in model.model_args:
        pool = getattr(getattr(model.backbone, "global_pool", None), "pool_type", None)
        config["global_pool"] = pool or getattr(model.backbone, "global_pool", None) or "avg"
        if not isinstance(config["global_pool"], str):
            config["global_pool"] = "avg"
    # even if empty: transformers would write null there, which timm refuses
    config["model_args"] = _as_json(model.model_args)
    config |= label_entries(cfg.get("label_names"), model.num_classes)
    if not model.num_classes:
        config["pretrained_cfg"].pop("label_names", None)
    return config


def _as_json(arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns a backbone's arguments as config.json holds them."""

    def name(value: Any) -> str:
        known = activation_name(value)
        if known is None:
            raise ValueError(
                f"the backbone was built with {value!r}, which config.json cannot hold; give create_model timm's name "
                "of it as a text."
            )
        return known

    plain: dict[str, Any] = json.loads(json.dumps(arguments, default=name))
    return plain


def label_entries(names: Sequence[str] | None, num_classes: int) -> dict[str, Any]:
    """Returns the class names as transformers looks for them, at the top of config.json."""
    if names is None or not num_classes:
        return {}
    if len(names) != num_classes:
        raise ValueError(f"label_names has {len(names)} names, but the model has {num_classes} classes.")
    return {"label_names": list(names), "id2label": {str(i): name for i, name in enumerate(names)}}


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
