"""Measure a linear probe: logistic regression on a model's frozen features.

    python recipes/linear_probe.py --model simco_r18_025 --dataset uoft-cs/cifar100

The last line printed is JSON, accuracies in percent.
"""

from __future__ import annotations

import json

from _evaluate import build_parser, extract_splits
from _run import run

from simco_zoo.evaluation import linear_probe


def main(argv: list[str] | None = None) -> int:
    parser = build_parser(__doc__)
    parser.add_argument("--max-iter", type=int, default=100, help="iterations of L-BFGS for each fit")
    args = parser.parse_args(argv)
    train, test = extract_splits(args)
    result = linear_probe(
        train.features, train.labels, test.features, test.labels, max_iter=args.max_iter, seed=args.seed
    )
    described = {"model": args.model, "dataset": args.dataset, "train": len(train), "test": len(test)}
    print(json.dumps({**result, **described}))
    return 0


if __name__ == "__main__":
    run(main)
