"""Put a run's model among the weights that ship with the package, in half precision if that costs nothing.

    python recipes/ship.py --folder runs/NAME/last --dataset uoft-cs/cifar100 --license apache-2.0

Measures kNN and linear probe with the weights as they are and rounded to half precision (batch norm's statistics stay
in fp32). Where neither loses 0.05 points, simco_zoo/weights/NAME.TAG gets the rounded ones, with their own accuracies
and the change in the card; otherwise the weights stay in fp32. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import simco_zoo
from simco_zoo.cli.run import run
from simco_zoo.data import load_splits
from simco_zoo.distributed import pick_device
from simco_zoo.evaluation import extract_features, knn, linear_probe
from simco_zoo.hub.folder import from_path
from simco_zoo.hub.registry import SHIPPED
from simco_zoo.publishing.card import CURVES_FILE, LOG_FILE
from simco_zoo.publishing.verify import verify

LARGEST_LOSS = 0.05  # points of top-1


def measure(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Returns kNN and linear accuracy of a published folder, in percent."""
    model = simco_zoo.create_model(f"local-dir:{folder}", pretrained=True)
    size, device = model.pretrained_cfg["input_size"][-1], pick_device(args.device)
    parts = load_splits(args.dataset, image_size=size, limit=args.limit, require_labels=True)
    train, test = (extract_features(model, part, device=device, progress_bar=True) for part in parts)
    found: dict[str, float] = {}
    for name, result in (
        ("knn", knn(train.features, train.labels, test.features, test.labels, k=min(200, len(train)))),
        ("linear", linear_probe(train.features, train.labels, test.features, test.labels)),
    ):
        found.update({f"{name}_{top}": round(result[top], 3) for top in ("top1", "top5")})
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="a published folder, e.g. runs/NAME/last")
    parser.add_argument("--dataset", required=True, help="what it was trained on: Hub id, folder, or photos")
    parser.add_argument("--data-id", help="id on the Hub of the data it was trained on, for the card")
    parser.add_argument("--license", help="license of the weights, as the Hub names it; default: none is claimed")
    parser.add_argument("--limit", type=int, help="measure on at most this number of images of each split")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--to", type=Path, default=SHIPPED, help="folder of shipped weights; default: the package's")
    args = parser.parse_args(argv)

    problems = [check for check in verify(args.folder) if check.problem]
    if problems:
        raise ValueError("; ".join(f"{check.name}: {check.problem}" for check in problems))
    config = from_path(args.folder, folder_only=True).config
    section, tag = config["simco_zoo"], config["pretrained_cfg"].get("tag")
    if not tag:
        raise ValueError(f"{args.folder} has no tag, which its name is made of; train with --tag.")
    model = simco_zoo.create_model(f"local-dir:{args.folder}", pretrained=True)
    target = args.to / f"{config['architecture']}.{tag}"

    def save(folder: Path, half: bool, metrics: dict[str, Any]) -> Path:
        files = {key: args.folder / name for key, name in (("log", LOG_FILE), ("curves", CURVES_FILE))}
        kept = {key: section[key] for key in ("recipe", "data", "hardware", "versions")}
        kept["data"] = section["data"] | ({"hub_id": args.data_id} if args.data_id else {})
        present = {key: file for key, file in files.items() if file.is_file()}
        metrics = {**section["metrics"], **metrics}
        return simco_zoo.save_pretrained(
            model, folder, half=half, metrics=metrics, license=args.license, **kept, **present
        )

    whole = measure(args.folder, args)
    print(f"fp32: {whole}", flush=True)
    half, stated = False, whole
    with tempfile.TemporaryDirectory() as temporary:
        try:
            folder = save(Path(temporary) / "half", True, {})
        except ValueError as error:
            print(f"half: {error}")
        else:
            rounded = measure(folder, args)
            change = {f"half_{key}_change": round(rounded[key] - whole[key], 3) for key in ("knn_top1", "linear_top1")}
            print(f"half: {rounded}, {change}")
            half = min(change.values()) >= -LARGEST_LOSS
            stated = {**rounded, **change} if half else whole
    save(target, half, stated)
    print(f"{target} is in {'half precision' if half else 'fp32'}")
    print(json.dumps({"folder": str(target.absolute()), "half": half, **stated}))
    return 0


if __name__ == "__main__":
    run(main)
