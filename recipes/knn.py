"""Measure the kNN accuracy of a model's features (cosine, weighted vote).

    python recipes/knn.py --model simco_r18_025 --dataset uoft-cs/cifar100

The same as ``simco-zoo knn``; simco_zoo/cli/knn.py is the recipe itself, and --help lists its settings.
"""

from simco_zoo.cli.knn import main
from simco_zoo.cli.run import run

if __name__ == "__main__":
    run(main)
