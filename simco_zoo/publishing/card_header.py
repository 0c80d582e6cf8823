"""The YAML header of a model card, which the Hub reads."""

from __future__ import annotations

from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

METRICS = {"knn": "kNN", "linear": "linear probe", "online": "online linear classifier", "finetune": "fine-tuned"}


def kind_of(config: dict[str, Any]) -> str:
    """Returns what was done: "pretrained", "fine-tuned", "probe" (of a frozen backbone), "from scratch" (with labels,
    from random weights), "converted", or "unknown"."""
    recipe = config["simco_zoo"]["recipe"]
    if recipe.get("converted_from"):
        return "converted"
    if not recipe.get("finetuned_from"):
        return "pretrained" if recipe else "unknown"
    if recipe.get("freeze"):
        return "probe"
    return "from scratch" if recipe.get("started_from") == "" else "fine-tuned"


def card_header(config: dict[str, Any]) -> ModelCardData:
    """Returns the YAML header of a card: license, tags, data set and results, as the Hub indexes them."""
    section, kind = config["simco_zoo"], kind_of(config)
    tag, data_id = config["pretrained_cfg"].get("tag"), _hub_id(section["data"])
    own = [] if kind == "from scratch" else ["self-supervised-learning", "contrastive-learning", section["method"]]
    base = str(section["recipe"].get("started_from") or "")
    results = _eval_results(section["metrics"], data_id) if data_id else []
    name = config["architecture"]
    if name == "small_stem" or "_r" not in name:
        name = f"{section['method']}-{(config.get('model_args') or {}).get('backbone', name)}"
    return ModelCardData(
        license=config["pretrained_cfg"].get("license"),
        library_name="timm",
        pipeline_tag="image-classification" if config["num_classes"] else "image-feature-extraction",
        tags=["simco-zoo", *own, "timm", "transformers"],
        base_model=base.removeprefix("hf-hub:").split("@")[0] if base.startswith("hf-hub:") else None,
        datasets=[data_id] if data_id else None,
        metrics=["accuracy"] if results else None,
        model_name=f"{name}.{tag}" if tag else name,
        eval_results=results or None,
    )


def _hub_id(data: dict[str, Any]) -> str | None:
    """Returns the training data's id on the Hub; None for a folder, whose name means nothing there."""
    name = data.get("hub_id") or data.get("name")
    try:
        if not isinstance(name, str) or name.count("/") != 1:
            return None
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def _eval_results(metrics: dict[str, Any], dataset: str) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="image-classification" if key == "finetune" else "image-feature-extraction",
            dataset_type=dataset,
            dataset_name=dataset,
            metric_type="accuracy",
            metric_name=f"{label} {top.replace('top', 'top-')} (%)",
            metric_value=metrics[f"{key}_{top}"],
        )
        for key, label in METRICS.items()
        for top in ("top1", "top5")
        if f"{key}_{top}" in metrics
    ]
