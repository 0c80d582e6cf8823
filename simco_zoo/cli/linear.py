"""Measure a linear probe: logistic regression on a model's frozen features.

    simco-zoo linear --model simco_r18_025 --dataset uoft-cs/cifar100
    simco-zoo linear --model simco_r18_025 --dataset uoft-cs/cifar100 --protocol sgd

There are two protocols: lbfgs fits features of clean images exactly, in seconds; sgd is the field's, a linear layer
trained by SGD on random crops and flips, for a grid of learning rates at once. Weight decay and learning rate are
chosen on held-out training images. With a data set that the model was not trained on, this is transfer.

The last line printed is JSON, accuracies in percent.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from torch import Tensor

from simco_zoo.cli.evaluate import add_results, evaluate, write_results
from simco_zoo.cli.sources import (
    AMP,
    build_parser,
    default_output,
    describe,
    load_labeled,
    load_model,
    note,
    say_side,
    seen_as,
)
from simco_zoo.distributed import init_distributed, is_main, pick_device
from simco_zoo.evaluation.linear import linear_scores
from simco_zoo.evaluation.linear_sgd import LEARNING_RATES, linear_probe_sgd
from simco_zoo.files import check_disk_space
from simco_zoo.lock import locked


def main(argv: list[str] | None = None) -> int:
    parser = build_parser("linear", __doc__)
    how = parser.add_argument_group("probe")
    how.add_argument("--protocol", choices=("lbfgs", "sgd"), default="lbfgs", help="how to fit")
    how.add_argument("--max-iter", type=int, default=100, help="iterations of L-BFGS for each fit")
    how.add_argument("--epochs", type=int, default=100, help="passes over the training images (sgd)")
    text = f"learning rates for a batch of 256 (sgd); default: {', '.join(f'{rate:g}' for rate in LEARNING_RATES)}"
    how.add_argument("--lr", nargs="+", type=float, default=list(LEARNING_RATES), metavar="RATE", help=text)
    how.add_argument("--min-scale", type=float, default=0.08, help="smallest share of the area of a crop (sgd)")
    results = parser.add_argument_group("results")
    add_results(results)
    args = parser.parse_args(argv)
    described = {"model": args.model, "dataset": args.dataset, "protocol": args.protocol}
    if args.protocol == "sgd":
        print(json.dumps({**by_sgd(args), **described}))
        return 0
    chosen: list[float] = []

    def classify(train: Tensor, labels: Tensor, test: Tensor, classes: int) -> Tensor:
        scores, decay = linear_scores(train, labels, test, classes, max_iter=args.max_iter, seed=args.seed)
        chosen.append(decay)
        return scores

    result = evaluate(args, classify, pixel_side=16)
    print(json.dumps({**result, "weight_decay": chosen[0], **described}))
    return 0


def by_sgd(args: argparse.Namespace) -> dict[str, Any]:
    """Trains the grid of linear layers; what is done stays in the output folder, from which the same call continues."""
    if args.flip or args.baselines:
        raise ValueError("--flip and --baselines go with --protocol lbfgs; leave them out.")
    output = args.output or default_output("linear", args)
    if is_main():
        check_disk_space(output, 0)
    device = init_distributed(pick_device(args.device))
    model = load_model(args)
    note(f"{describe(args)} on {args.dataset}: {args.train_split} -> {args.test_split}, output: {output}")
    note(say_side(model, args.image_size))
    images, test_images = load_labeled(args, **seen_as(model, args.image_size))
    checkpoint = output / "checkpoint.pt"

    def say(row: dict[str, Any]) -> None:
        note(
            f"epoch {row['epoch']} of {args.epochs}: loss {row['loss']:.4f}, held-out top-1 "
            f"{row['held_out_top1']:.2f} % at rate {row['rate']:g}"
        )

    with locked(output):
        result = linear_probe_sgd(
            model,
            images,
            test_images,
            learning_rates=args.lr,
            epochs=args.epochs,
            batch_size=args.batch_size,
            min_scale=args.min_scale,
            seed=args.seed,
            device=device,
            num_workers=args.workers,
            amp=AMP[args.amp],
            checkpoint=checkpoint,
            on_epoch=say,
        )
        scores = result.pop("scores")
        found = {**result, "train": len(images), "test": len(test_images)}
        if is_main():
            write_results(output, found, scores, test_images, describe(args))
    return {**found, "output": str(output.absolute())}
