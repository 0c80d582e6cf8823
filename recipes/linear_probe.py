"""Measure a linear probe: logistic regression on a model's frozen features.

    python recipes/linear_probe.py --model simco_r18_025 --dataset uoft-cs/cifar100

The same as ``simco-zoo linear``; simco_zoo/cli/linear.py is the recipe itself, and --help lists its settings.
"""

from simco_zoo.cli.linear import main
from simco_zoo.cli.run import run

if __name__ == "__main__":
    run(main)
