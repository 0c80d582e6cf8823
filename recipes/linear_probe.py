"""Measure a linear probe: logistic regression on a model's frozen features.

    python recipes/linear_probe.py --model simco_r18_025 --dataset uoft-cs/cifar100
    python recipes/linear_probe.py --model simco_r18_025 --dataset uoft-cs/cifar100 --protocol sgd

Two protocols: lbfgs fits features of clean images exactly, in seconds, the weight decay chosen on held-out training
images; sgd is the field's, a linear layer trained by SGD on random crops and flips. With a data set that the model was
not trained on, this is transfer.

The last line printed is JSON, accuracies in percent.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from _common import run
from _evaluate import build_parser, extract_splits, load_labeled

from simco_zoo.evaluation import linear_probe
from simco_zoo.training import LINEAR_SGD, finetune


def by_sgd(args: argparse.Namespace) -> dict[str, Any]:
    model, images, test_images = load_labeled(args)
    name = re.sub(r"[^\w.]+", "-", args.model)
    return finetune(
        model,
        images,
        test_images,
        output=args.output or Path("runs") / f"linear-{name}-{Path(args.dataset).name}",
        config=LINEAR_SGD,
        name=args.model,
        epochs=args.epochs,
        lr=args.lr,
        batch_size=args.batch_size,
        workers=args.workers,
        device=args.device,
        seed=args.seed,
    )


def main(argv: list[str] | None = None) -> int:
    parser = build_parser(__doc__)
    parser.add_argument("--max-iter", type=int, default=100, help="iterations of L-BFGS for each fit")
    parser.add_argument("--protocol", choices=("lbfgs", "sgd"), default="lbfgs")
    parser.add_argument("--epochs", type=int, default=LINEAR_SGD.epochs, help="of sgd")
    parser.add_argument("--lr", type=float, default=LINEAR_SGD.lr, help="of sgd, for a batch of 256")
    parser.add_argument("--output", type=Path, help="sgd's folder; default runs/linear-MODEL-DATASET")
    args = parser.parse_args(argv)
    described = {"model": args.model, "dataset": args.dataset, "protocol": args.protocol}
    if args.protocol == "sgd":
        print(json.dumps({**by_sgd(args), **described}))
        return 0
    train, test = extract_splits(args)
    result = linear_probe(
        train.features, train.labels, test.features, test.labels, max_iter=args.max_iter, seed=args.seed
    )
    print(json.dumps({**result, **described, "train": len(train), "test": len(test)}))
    return 0


if __name__ == "__main__":
    run(main)
