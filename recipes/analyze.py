"""Run the paper's argument: why many negatives help InfoNCE, and what the second temperature does instead.

    python recipes/analyze.py strength --model simco_r18_025 --dataset uoft-cs/cifar100

The same as ``simco-zoo analyze``; simco_zoo/cli/analyze.py is the recipe itself, and --help lists its settings.
"""

from simco_zoo.cli.analyze import main
from simco_zoo.cli.run import run

if __name__ == "__main__":
    run(main)
