"""Measure the kNN accuracy of a model's features (cosine, weighted vote).

    simco-zoo knn --model simco_r18_025 --dataset uoft-cs/cifar100

The last line printed is JSON, accuracies in percent.
"""

from __future__ import annotations

import json

from simco_zoo.cli.sources import build_parser, extract_splits
from simco_zoo.evaluation import knn


def main(argv: list[str] | None = None) -> int:
    parser = build_parser("knn", __doc__)
    parser.add_argument("--k", type=int, default=200, help="neighbors that vote")
    parser.add_argument("--temperature", type=float, default=0.1, help="t of the votes, exp(cosine / t)")
    args = parser.parse_args(argv)
    train, train_labels, test, test_labels = extract_splits(args)
    result = knn(train, train_labels, test, test_labels, k=args.k, temperature=args.temperature)
    described = {"model": args.model, "dataset": args.dataset, "k": args.k, "temperature": args.temperature}
    print(json.dumps({**result, **described, "train": len(train), "test": len(test)}))
    return 0
