"""One cell of reproduce.py, in a process of its own: pretrain.py, then what the table needs besides.

Takes pretrain.py's flags and ends with its exit status. The run's folder gets ``measured.json``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import simco_zoo
from simco_zoo.arguments import read_settings
from simco_zoo.cli import pretrain
from simco_zoo.cli.run import run
from simco_zoo.data import load_splits
from simco_zoo.distributed import pick_device
from simco_zoo.evaluation import extract_features, linear_probe
from simco_zoo.files import write_text
from simco_zoo.training import TrainingConfig


def read_section(folder: Path) -> dict[str, Any]:
    """Reads what a published folder says of its run."""
    section: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))["simco_zoo"]
    return section


def probe(folder: Path, args: Any, config: TrainingConfig) -> float:
    """Returns the top-1 accuracy of a linear probe on a published folder, measured as pretrain measures the last."""
    device = pick_device(config.device)
    model = simco_zoo.create_model(f"local-dir:{folder}", pretrained=True)
    names = ("image_size", "limit", "image_column", "label_column", "dataset_config", "revision")
    parts = load_splits(
        args.dataset,
        train_split=args.train_split,
        test_split=args.test_split,
        val_fraction=args.val_fraction,
        require_labels=True,
        **{name: getattr(args, name) for name in names},
    )
    train, test = (extract_features(model, part, device=device, num_workers=config.workers) for part in parts)
    result = linear_probe(train.features, train.labels, test.features, test.labels, device=device)
    return round(result["top1"], 3)


def measure(folder: Path, args: Any, config: TrainingConfig) -> dict[str, Any]:
    """Returns the measured columns of a finished run."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    last, best = (read_section(folder / name) for name in ("last", "best"))
    same = all(last["files"][name]["sha256"] == file["sha256"] for name, file in best["files"].items())
    return {
        "images": last["data"]["images"],
        "knn_last": summary["knn_top1"],
        "knn_best": summary["best_knn_top1"],
        "linear_last": summary["linear_top1"],
        "linear_best": summary["linear_top1"] if same else probe(folder / "best", args, config),
        "online_last": summary["online_top1"],
        "online_best": summary["best_online_top1"],
        "loss": summary["loss"],
        "seconds": summary["seconds"],
        "images_per_second": summary["images_per_second"],
        "peak_memory_mb": summary["peak_memory_mb"],
        "hardware": last["hardware"],
        **{name: last["versions"][name] for name in ("torch", "timm", "simco_zoo")},
    }


def main(argv: list[str] | None = None) -> int:
    status = pretrain.main(argv)
    if status:
        return status
    args, config = read_settings(pretrain.build_parser(), TrainingConfig, argv)
    write_text(args.output / "measured.json", json.dumps(measure(args.output, args, config), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    run(main)
