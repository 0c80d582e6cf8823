"""The model card: a README made from config.json alone, so that the same folder has the same card."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from simco_zoo.models.methods import METHODS, method_title

_RECIPE_ROWS = {
    "epochs": "epochs",
    "steps": "steps",
    "batch_size": "batch size",
    "lr": "base learning rate (per 256 images)",
    "opt": "optimizer (timm's name)",
    "weight_decay": "weight decay",
    "warmup_epochs": "warm-up epochs (at most a tenth of the run)",
    "views": "views",
    "label_fraction": "share of the labels",
    "layer_decay": "learning rate's decay per layer",
    "label_smoothing": "label smoothing",
    "mixup": "mixup",
    "cutmix": "cutmix",
    "ema": "decay of the averaged weights",
    "amp": "precision",
    "seed": "seed",
    "seconds": "seconds of training",
}


def model_card(config: dict[str, Any]) -> str:
    """Makes the model card of a published folder.

    Args:
        config: config.json with its ``simco_zoo`` section.

    Returns:
        README.md with the YAML header that the Hub reads.
    """
    section = config["simco_zoo"]
    method, data, metrics = method_title(section["method"]), section["data"], section["metrics"]
    paper = METHODS[section["method"]].paper if section["method"] in METHODS else ""
    tag, finetuned = config["pretrained_cfg"].get("tag"), section["recipe"].get("finetuned_from")
    name = config["architecture"] + (f".{tag}" if tag else "")
    if config["architecture"] not in ("small_stem",) and "_" not in config["architecture"]:
        name = f"{section['method']}-{name}"
    header = ModelCardData(
        license="apache-2.0",
        library_name="timm",
        pipeline_tag="image-classification" if finetuned else "image-feature-extraction",
        tags=[
            "simco-zoo",
            "self-supervised-learning",
            "contrastive-learning",
            section["method"],
            "timm",
            "transformers",
        ],
        datasets=[str(data["name"])] if data.get("name") else None,
        metrics=["accuracy"] if metrics else None,
        model_name=name,
        eval_results=_eval_results(data, metrics) or None,
    )
    parts = [
        f"---\n{header.to_yaml()}\n---",
        f"# {name}",
        (
            f"{finetuned}, a backbone trained without labels by {method}, fine-tuned with the labels"
            if finetuned
            else f"A backbone trained without labels by {method}"
        )
        + (f" on {data['name']}" if data.get("name") else "")
        + (f"; see {paper}" if paper else "")
        + ". Made with simco-zoo.",
        "## Use\n" + _usage(config, name),
        "## Training\n" + _training(config),
    ]
    if section.get("curves"):
        parts.append("![Loss and accuracy over the epochs](curves.png)")
    if metrics:
        parts.append("## Evaluation\n" + _evaluation(metrics))
    parts.append(
        "## Terms\nThe weights are licensed under Apache-2.0. The training images are not part of this repository; "
        "their own terms are those of the data set named above"
        + (" (no source states a license for CIFAR's images)." if "cifar" in str(data.get("name", "")) else ".")
    )
    return "\n\n".join(parts) + "\n"


def _eval_results(data: dict[str, Any], metrics: dict[str, Any]) -> list[EvalResult]:
    names = {
        "knn_top1": "kNN top-1 (%)",
        "knn_top5": "kNN top-5 (%)",
        "linear_top1": "linear probe top-1 (%)",
        "linear_top5": "linear probe top-5 (%)",
        "online_top1": "online linear classifier top-1 (%)",
        "online_top5": "online linear classifier top-5 (%)",
        "finetune_top1": "fine-tuned top-1 (%)",
        "finetune_top5": "fine-tuned top-5 (%)",
    }
    dataset = str(data.get("name") or "images")
    return [
        EvalResult(
            task_type="image-classification" if key.startswith("finetune") else "image-feature-extraction",
            dataset_type=dataset,
            dataset_name=dataset,
            metric_type="accuracy",
            metric_name=label,
            metric_value=metrics[key],
        )
        for key, label in names.items()
        if key in metrics
    ]


def _usage(config: dict[str, Any], name: str) -> str:
    source = "FOLDER_OR_REPOSITORY"
    architecture = config["architecture"]
    size = config["pretrained_cfg"]["input_size"]
    result = f"features = model(transform(image)[None])  # (1, {config['num_features']})"
    if config["num_classes"]:
        result = f"scores = model(transform(image)[None])  # (1, {config['num_classes']})\n"
        result += 'best = model.pretrained_cfg["label_names"][scores.argmax()]'
    text = f"""`{source}` is `local-dir:PATH` for this folder on disk, or `hf-hub:org/name` on the Hub.

```python
import simco_zoo

model = simco_zoo.create_model("{source}", pretrained=True).eval()
transform = simco_zoo.data.resolve_transform(model)  # PIL image -> tensor {tuple(size)}
{result}
```

```python
import simco_zoo, timm  # the import makes the architecture known to timm

backbone = timm.create_model("{source}", pretrained=True, num_classes=10)  # for fine-tuning
```

```python
import simco_zoo
from transformers import AutoModel

backbone = AutoModel.from_pretrained("PATH_OR_REPOSITORY")
```
"""
    if not config.get("model_args") and architecture.startswith(tuple(METHODS)):
        text += f"""
```python
import torch

model = torch.hub.load("PATH_OF_SIMCO_ZOO", "{architecture}", source="local", weights="PATH")
```
"""
    return (text + _plain_usage(config)).rstrip()


def _plain_usage(config: dict[str, Any]) -> str:
    """Returns how a registered ResNet loads in plain timm; nothing for other architectures and changed networks."""
    named = re.fullmatch(r"[a-z0-9]+_r(18|34|50)(_025)?", config["architecture"])
    model_args = config.get("model_args") or {}
    if named is None or not model_args.keys() <= {"stem_padding"} or config["num_classes"]:
        return ""
    # timm's plain stem has 64 channels; of a narrower network the deep stem has as many as the first stage
    narrow_stem = ', channels=(16, 32, 64, 128), stem_type="deep", stem_width=8'
    width, narrow = (16, narrow_stem) if named[2] else (64, "")
    padding = model_args.get("stem_padding", 1)
    return f"""
Without this package, in plain timm{"" if named[2] else " (or torchvision, with `resnet.fc = nn.Identity()`)"}:

```python
import safetensors.torch, timm
from torch import nn

resnet = timm.create_model("resnet{named[1]}", num_classes=0{narrow})
resnet.conv1, resnet.maxpool = nn.Conv2d(3, {width}, 3, 1, {padding}, bias=False), nn.Identity()
resnet.load_state_dict(safetensors.torch.load_file("model.safetensors"))
```
"""


def _training(config: dict[str, Any]) -> str:
    section = config["simco_zoo"]
    loss, data, recipe = section["loss"], section["data"], section["recipe"]
    if recipe.get("finetuned_from"):
        described = "cross-entropy"
    elif "tau_beta" in loss:
        described = f"dual temperature, tau_alpha {loss['tau_alpha']:g}, tau_beta {loss['tau_beta']:g}"
    else:
        described = f"{loss['name']}, temperature {loss['temperature']:g}"
    rows = [("pretrained by" if recipe.get("finetuned_from") else "method", method_title(section["method"]))]
    if recipe.get("converted_from"):
        rows.append(("converted from", f"a checkpoint of the {recipe['encoder']} encoder, {recipe['converted_from']}"))
        rows.append(("settings of the training", "not in the checkpoint"))
        return markdown_table(("setting", "value"), rows)
    rows.append(("loss", described))
    if data.get("name"):
        rows.append(("data", f"{data['name']}, {data.get('split')}: {data.get('images'):,} images"))
        rows.append(("image size", f"{data.get('image_size')} px"))
    rows += [(label, str(recipe[key])) for key, label in _RECIPE_ROWS.items() if recipe.get(key) is not None]
    if section["hardware"]:
        rows.append(("hardware", section["hardware"]))
    rows.append(("versions", ", ".join(f"{name} {version}" for name, version in section["versions"].items())))
    rest = {k: v for k, v in section["method_config"].items() if k not in ("temperature", "dt_m") and v is not None}
    rows.append(("method's arguments", ", ".join(f"{key} {value}" for key, value in rest.items())))
    return markdown_table(("setting", "value"), rows)


def _evaluation(metrics: dict[str, Any]) -> str:
    rows = []
    if "knn_top1" in metrics:
        k, temperature = metrics.get("knn_k", 200), metrics.get("knn_temperature", 0.1)
        protocol = f"k = {k}, cosine, exp(s / {temperature}) votes, clean images, bank: the training images"
        rows.append(("kNN", _number(metrics, "knn_top1"), _number(metrics, "knn_top5"), protocol))
    if "linear_top1" in metrics:
        protocol = "logistic regression on standardized features of clean images, weight decay by held-out images"
        rows.append(("linear probe", _number(metrics, "linear_top1"), _number(metrics, "linear_top5"), protocol))
    if "online_top1" in metrics:
        protocol = "a linear classifier trained beside the run on the views' features, without gradient to the backbone"
        rows.append(("online linear", _number(metrics, "online_top1"), _number(metrics, "online_top5"), protocol))
    if "finetune_top1" in metrics:
        protocol = "classifier and backbone trained with labels; clean test images, the best epoch"
        rows.append(("fine-tuning", _number(metrics, "finetune_top1"), _number(metrics, "finetune_top5"), protocol))
    table = markdown_table(("protocol", "top-1 (%)", "top-5 (%)", "how"), rows)
    if "half_knn_top1_change" not in metrics:
        return table
    return (
        f"{table}\n\nThe weights are stored in half precision, batch norm's statistics in fp32. Against the weights in "
        f"fp32 this changes kNN top-1 by {metrics['half_knn_top1_change']:+.2f} and linear top-1 by "
        f"{metrics['half_linear_top1_change']:+.2f} points (measured)."
    )


def _number(metrics: dict[str, Any], name: str) -> str:
    return f"{metrics[name]:.2f}" if name in metrics else "not measured"


def markdown_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Lays rows out as a table of Markdown."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
