"""Measure a linear probe: logistic regression on a model's frozen features.

    simco-zoo linear --model simco_r18_025 --dataset uoft-cs/cifar100
    simco-zoo linear --model simco_r18_025 --dataset uoft-cs/cifar100 --protocol sgd

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

from simco_zoo.arguments import local_path
from simco_zoo.cli.sources import build_parser, extract_splits, load_labeled
from simco_zoo.evaluation import linear_probe
from simco_zoo.training import LINEAR_SGD, finetune


def by_sgd(args: argparse.Namespace) -> dict[str, Any]:
    model, images, test_images = load_labeled(args)
    name = re.sub(r"[^\w.]+", "-", args.model) + ("-untrained" if args.weights == "none" else "")
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
    parser = build_parser("linear", __doc__)
    parser.add_argument("--max-iter", type=int, default=100, help="iterations of L-BFGS for each fit")
    parser.add_argument("--protocol", choices=("lbfgs", "sgd"), default="lbfgs", help="how to fit")
    parser.add_argument("--epochs", type=int, default=LINEAR_SGD.epochs, help="epochs of sgd")
    parser.add_argument("--lr", type=float, default=LINEAR_SGD.lr, help="learning rate of sgd, for a batch of 256")
    parser.add_argument("--output", type=local_path, help="sgd's folder; default: runs/linear-MODEL-DATASET")
    args = parser.parse_args(argv)
    described = {"model": args.model, "dataset": args.dataset, "protocol": args.protocol}
    if args.protocol == "sgd":
        print(json.dumps({**by_sgd(args), **described}))
        return 0
    train, train_labels, test, test_labels = extract_splits(args)
    result = linear_probe(train, train_labels, test, test_labels, max_iter=args.max_iter, seed=args.seed)
    print(json.dumps({**result, **described, "train": len(train), "test": len(test)}))
    return 0
