"""The model card: a README made from config.json alone, so that the same folder has the same card.

The words are in ``card.md.jinja``; this module works out the facts. It states what config.json says and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from simco_zoo.models.methods import METHODS, method_title
from simco_zoo.publishing.card_header import METRICS, card_header, kind_of
from simco_zoo.publishing.card_training import markdown_table, training_table

CARD_FILE, LOG_FILE, CURVES_FILE = "README.md", "log.csv", "curves.png"
# how the examples of a folder's card name it; a repository's card has its id in these places
_FOLDER = "FOLDER"
_SOURCE = f"local-dir:{_FOLDER}"
_TEMPLATE = Path(__file__).with_name("card.md.jinja")


def model_card(config: dict[str, Any]) -> str:
    """Makes the model card of a published folder.

    Args:
        config: config.json with its ``simco_zoo`` section.

    Returns:
        README.md with the YAML header that the Hub reads.
    """
    section = config["simco_zoo"]
    names = config["pretrained_cfg"].get("label_names")
    metrics, license = section["metrics"], config["pretrained_cfg"].get("license")
    card = ModelCard.from_template(
        card_header(config),
        template_path=str(_TEMPLATE),
        title=_title(config),
        summary=_summary(config),
        source=_SOURCE,
        folder=_FOLDER,
        size=tuple(config["pretrained_cfg"]["input_size"]),
        num_features=config["num_features"],
        num_classes=config["num_classes"],
        classes=_class_list(names) if names and config["num_classes"] else "",
        plain=_plain_timm(config),
        training=training_table(section, kind_of(config)),
        curves=bool(section.get("curves")),
        evaluation=_evaluation(config) if any(f"{name}_top1" in metrics for name in METRICS) else "",
        limits=_limits(config),
        license=f"The weights are licensed under {license}." if license else "No license was stated for these weights.",
    )
    return card.content.rstrip() + "\n"


def card_for_repository(card: bytes, repo_id: str) -> bytes:
    """Returns a folder's card as it is published: the examples name the repository instead of a folder."""
    return card.replace(_SOURCE.encode(), f"hf-hub:{repo_id}".encode()).replace(
        f'"{_FOLDER}"'.encode(), f'"{repo_id}"'.encode()
    )


def card_as_written(card: bytes) -> bytes:
    """Returns a published card as ``save_pretrained`` wrote it, which config.json has the hash of."""
    named = re.search(rb"hf-hub:([\w.-]+/[\w.-]+)", card)
    if named is None:
        return card
    return card.replace(named[0], _SOURCE.encode()).replace(b'"%s"' % named[1], f'"{_FOLDER}"'.encode())


# What the model is


def backbone_name(config: dict[str, Any]) -> str:
    """Returns how a text names the backbone."""
    named = re.fullmatch(r"[a-z0-9]+_r(\d+)(_025)?", config["architecture"])
    if named is not None:
        return f"ResNet-{named[1]}{' (a quarter of the width)' if named[2] else ''} with the small-image stem"
    if config["architecture"] == "small_stem":
        return f"{(config.get('model_args') or {}).get('backbone')} with the small-image stem"
    return str(config["architecture"])


def _title(config: dict[str, Any]) -> str:
    section = config["simco_zoo"]
    method, backbone, kind = method_title(section["method"]), backbone_name(config), kind_of(config)
    on = f" on {section['data']['name']}" if section["data"].get("name") else ""
    what = {
        "fine-tuned": f"{backbone}, fine-tuned{on} ({method})",
        "probe": f"{backbone}, linear probe{on} ({method})",
        "from scratch": f"{backbone}, trained with labels{on}",
        "pretrained": f"{backbone}, {method}{on}",
    }
    return what.get(kind, f"{backbone}, {method}")


def _summary(config: dict[str, Any]) -> str:
    section = config["simco_zoo"]
    method, kind, recipe = method_title(section["method"]), kind_of(config), section["recipe"]
    name = section["data"].get("name")
    on, labels = (f" on {name}", f"the labels of {name}") if name else ("", "labels")
    backbone, start = backbone_name(config), recipe.get("started_from") or recipe.get("finetuned_from")
    start = str(start).removeprefix("hf-hub:")
    text = {
        "pretrained": f"A {backbone}, trained by {method}{on} without labels.",
        "fine-tuned": f"A {backbone} that was pretrained without labels by {method} ({start}) and then fine-tuned with "
        f"{labels}, backbone and classifier together.",
        "probe": f"A {backbone} that was pretrained without labels by {method} ({start}), with a linear classifier "
        f"trained with {labels}. The backbone stayed as it was.",
        "from scratch": f"A {backbone}, trained with {labels} from random weights, without pretraining.",
        "converted": f"A {backbone}, converted from a {recipe.get('converted_from')} checkpoint. What it was trained "
        "with is not in the checkpoint"
        + (f"; it was declared as {method}." if recipe.get("declared_method", True) else "."),
        "unknown": f"A {backbone} with the head of {method}. How it was trained was not recorded.",
    }[kind]
    if kind == "pretrained" and recipe.get("started_from"):
        text = text.rstrip(".") + f", starting from {start}."
    paper = METHODS[section["method"]].paper if section["method"] in METHODS else ""
    if paper and kind in ("pretrained", "fine-tuned", "probe"):
        text += f" {method}: {paper}."
    return f"{text} Made with simco-zoo {section['versions'].get('simco_zoo', '')}".rstrip() + "."


def _class_list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:50])
    more = f", and {len(names) - 50} more (`label_names` in config.json)" if len(names) > 50 else ""
    return f"{len(names)} classes: {shown}{more}."


def _plain_timm(config: dict[str, Any]) -> dict[str, Any] | None:
    """Returns how a registered ResNet loads in plain timm; None for other architectures and changed networks."""
    named = re.fullmatch(r"[a-z0-9]+_r(18|34|50)(_025)?", config["architecture"])
    arguments = config.get("model_args") or {}
    if named is None or not arguments.keys() <= {"stem_padding"} or config["num_classes"]:
        return None
    # timm's plain stem has 64 channels; of a narrower network the deep stem has as many as the first stage
    narrow = ', channels=(16, 32, 64, 128), stem_type="deep", stem_width=8' if named[2] else ""
    return {
        "resnet": f"resnet{named[1]}",
        "width": 16 if named[2] else 64,
        "narrow": narrow,
        "padding": arguments.get("stem_padding", 1),
        "also": "" if named[2] else " (or torchvision, with `resnet.fc = nn.Identity()`)",
    }


# How good it is, and its limits


def _evaluation(config: dict[str, Any]) -> str:
    metrics, recipe = config["simco_zoo"]["metrics"], config["simco_zoo"]["recipe"]
    k, temperature = metrics.get("knn_k", 200), metrics.get("knn_temperature", 0.1)
    trained = "classifier on the frozen backbone" if recipe.get("freeze") else "backbone and classifier"
    chosen = "epoch chosen by held-out training images" if recipe.get("holdout") else "the last epoch"
    protocols = {
        "knn": f"k = {k}, cosine, exp(s / {temperature}) votes, clean images, bank: the training images",
        "linear": "logistic regression on standardized features of clean images, weight decay by held-out images",
        "online": "a linear classifier trained during the run on the views' features, without gradient to the backbone",
        "finetune": f"{trained} trained with labels; clean test images, {chosen}",
    }
    rows = [
        (METRICS[key], _number(metrics, f"{key}_top1"), _number(metrics, f"{key}_top5"), how)
        for key, how in protocols.items()
        if f"{key}_top1" in metrics
    ]
    table = markdown_table(("protocol", "top-1 (%)", "top-5 (%)", "how"), rows)
    if "half_knn_top1_change" not in metrics:
        return table
    return (
        f"{table}\n\nThe weights are stored in half precision, batch norm's statistics in fp32. Against the weights in "
        f"fp32 this changes kNN top-1 by {metrics['half_knn_top1_change']:+.2f} and linear top-1 by "
        f"{metrics['half_linear_top1_change']:+.2f} points (measured)."
    )


def _limits(config: dict[str, Any]) -> str:
    data, side = config["simco_zoo"]["data"], config["pretrained_cfg"]["input_size"][-1]
    metrics, names = config["simco_zoo"]["metrics"], config["pretrained_cfg"].get("label_names")
    lines = [f"Images are resized to {side} px before the network sees them; smaller details are lost."]
    if any(f"{name}_top1" in metrics for name in METRICS):
        where = data.get("name") or "the data of the training"
        lines.append(f"The accuracies hold for {where}; measure the model on images of your own before relying on it.")
    else:
        lines.append("No accuracy was measured.")
    if config["num_classes"]:
        lines.append(
            f"The classifier answers with one of its {len(names or []) or config['num_classes']} classes for every "
            "image, also for one that shows none of them."
        )
    if data.get("name"):
        lines.append(
            "The training images are not part of this repository and have terms of their own"
            + (" (no source states a license for CIFAR's images)." if "cifar" in str(data["name"]).lower() else ".")
        )
    return "\n".join(f"- {line}" for line in lines)


def _number(metrics: dict[str, Any], name: str) -> str:
    return f"{metrics[name]:.2f}" if name in metrics else "not measured"
