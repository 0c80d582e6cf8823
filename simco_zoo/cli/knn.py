"""Measure the kNN accuracy of a model's features (cosine, weighted vote).

    simco-zoo knn --model simco_r18_025 --dataset uoft-cs/cifar100
    simco-zoo knn --model local-dir:runs/NAME/last --dataset FOLDER --baselines --output runs/NAME/knn

The last line printed is JSON, accuracies in percent.
"""

from __future__ import annotations

import json

from torch import Tensor

from simco_zoo.cli.evaluate import add_results, evaluate
from simco_zoo.cli.sources import build_parser, note
from simco_zoo.evaluation.neighbors import knn_scores


def main(argv: list[str] | None = None) -> int:
    parser = build_parser("knn", __doc__)
    how = parser.add_argument_group("kNN")
    how.add_argument("--k", type=int, default=200, help="neighbors that vote")
    how.add_argument("--temperature", type=float, default=0.1, help="t of the votes, exp(cosine / t)")
    add_results(parser.add_argument_group("results"))
    args = parser.parse_args(argv)

    def classify(train: Tensor, labels: Tensor, test: Tensor, classes: int) -> Tensor:
        if args.k > len(train):
            note(f"k is {args.k}, but there are {len(train)} training images; all of them vote")
        return knn_scores(train, labels, test, classes, args.k, args.temperature)

    result = evaluate(args, classify, pixel_side=32)
    described = {"model": args.model, "dataset": args.dataset, "temperature": args.temperature}
    print(json.dumps({**result, **described, "k": min(args.k, result["train"])}))
    return 0
