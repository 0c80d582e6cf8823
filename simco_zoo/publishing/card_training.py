"""The model card's table of the training: the settings that decided it, what it saw, and what it cost."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from simco_zoo.data.presets import PRESETS
from simco_zoo.models.methods import method_title

_RECIPE_ROWS = {
    "epochs": "epochs",
    "steps": "steps",
    "batch_size": "batch size",
    "lr": "base learning rate (per 256 images)",
    "opt": "optimizer (timm's name)",
    "weight_decay": "weight decay",
    "warmup_epochs": "warm-up epochs (at most a tenth of the run)",
    "views_per_image": "views per image",
    "augmentations": "augmentations that differ from the preset",
    "label_fraction": "share of the labels",
    "layer_decay": "learning rate's decay per layer",
    "label_smoothing": "label smoothing",
    "mixup": "mixup",
    "cutmix": "cutmix",
    "ema": "decay of the averaged weights",
    "amp": "precision",
    "seed": "seed",
}


def training_table(section: dict[str, Any], kind: str) -> str:
    """Lays out how a model was trained.

    Args:
        section: The section ``simco_zoo`` of config.json.
        kind: What was done, as ``kind_of`` names it.

    Returns:
        A table of Markdown.
    """
    recipe, method = section["recipe"], method_title(section["method"])
    if kind == "converted":
        rows = [("converted from", f"a checkpoint of the {recipe['encoder']} encoder, {recipe['converted_from']}")]
        rows.append(("settings of the training", "not in the checkpoint"))
        rows.append(("mean, deviation and crop of the input", "not in the checkpoint; the usual ones are assumed"))
        return markdown_table(("setting", "value"), rows)
    supervised = kind in ("fine-tuned", "probe", "from scratch")
    rows = [] if kind == "from scratch" else [("pretrained by" if supervised else "method", method)]
    rows.append(("loss", "cross-entropy" if supervised else _loss(section["loss"])))
    rows += _data(section["data"])
    if not supervised:
        rows += _views(recipe)
    rows += [(label, str(recipe[key])) for key, label in _RECIPE_ROWS.items() if recipe.get(key) is not None]
    if recipe.get("decay_share"):
        rows.append(("learning rate after the warm-up", _schedule(recipe["decay_share"])))
    rows += _cost(recipe.get("seconds"), section["hardware"])
    rows.append(("versions", ", ".join(f"{name} {version}" for name, version in section["versions"].items())))
    if not supervised:
        rest = {k: v for k, v in section["method_config"].items() if k not in ("temperature", "dt_m") and v is not None}
        rows.append(("method's arguments", ", ".join(f"{key} {value}" for key, value in rest.items())))
    return markdown_table(("setting", "value"), rows)


def _data(data: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    if data.get("name"):
        images = f": {data['images']:,} images" if isinstance(data.get("images"), int) else ""
        rows.append(("data", f"{data['name']}{', ' + str(data['split']) if data.get('split') else ''}{images}"))
    if data.get("image_size"):
        rows.append(("image size", f"{data['image_size']} px"))
    return rows


def _loss(loss: dict[str, Any]) -> str:
    if "tau_beta" in loss:
        return f"dual temperature, tau_alpha {loss['tau_alpha']:g}, tau_beta {loss['tau_beta']:g}"
    return f"{loss.get('name', 'the method')}" + (
        f", temperature {loss['temperature']:g}" if isinstance(loss.get("temperature"), (int, float)) else ""
    )


def _views(recipe: dict[str, Any]) -> list[tuple[str, str]]:
    """Says how a view is made, at which side, and how many the network saw."""
    rows = []
    if recipe.get("views"):
        rows.append(("views", _augmentations(recipe["views"], recipe.get("view_preset"))))
    stages = _stages(recipe.get("sizes"))
    if stages:
        ramp = ", ".join(f"{side} px for {100 * share:g} % of the steps" for side, share in stages)
        rows.append(("size of the views", ramp))
    counts = [recipe.get("steps"), recipe.get("batch_size"), recipe.get("accumulate", 1)]
    counts.append(recipe.get("views_per_image", 2))
    if all(isinstance(count, int) for count in counts):
        views = math.prod(counts)
        seen = ", ".join(f"{views * share:,.0f} at {side} px" for side, share in stages) or f"{views:,}"
        rows.append(("views through the network", seen))
    return rows


def _stages(sizes: Any) -> list[tuple[str, float]]:
    """Returns (side, share of the steps) of a resolution ramp; none for a ramp that is missing or was edited badly."""
    pairs = [part.split(":") for part in sizes.split(",")] if isinstance(sizes, str) else sizes
    try:
        return [(str(side), float(share)) for side, share in pairs]
    except (TypeError, ValueError):
        return []


def _augmentations(views: Any, values: dict[str, Any] | None) -> str:
    """Names the preset and the values that were used."""
    preset = values or (vars(PRESETS[views]) if isinstance(views, str) and views in PRESETS else views)
    if not isinstance(preset, dict):
        return str(views)
    low, high = preset["scale"]
    parts = [f"crops of {100 * low:g} to {100 * high:g} % of the area"]
    for key, label in {
        "flip": "horizontal flip",
        "jitter": "color jitter",
        "grayscale": "grayscale",
        "blur": "blur",
        "solarize": "solarization",
    }.items():
        if preset.get(key):
            parts.append(f"{label} {100 * preset[key]:g} %")
    return (f"{views}: " if isinstance(views, str) else "") + ", ".join(parts)


def _schedule(decay_share: float) -> str:
    if decay_share == 1:
        return "cosine to 0"
    return f"constant, then a cosine to 0 over the last {100 * decay_share:g} % of the steps"


def _cost(seconds: float | None, hardware: str | None) -> list[tuple[str, str]]:
    rows = []
    if seconds:
        threads = re.search(r"cpu, (\d+) threads?", hardware or "")
        spent = f" ({seconds * int(threads[1]) / 3600:.1f} core-hours)" if threads else ""
        rows.append(("training time", _duration(seconds) + spent))
    if hardware:
        rows.append(("hardware", hardware))
    return rows


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 5400 else f"{seconds / 60:.1f} minutes"


def markdown_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Lays rows out as a table of Markdown."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
