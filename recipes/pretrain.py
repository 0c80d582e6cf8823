"""Pretrain a backbone on images without labels, and leave a folder that loads in one line.

    python recipes/pretrain.py --model simco_r18_025 --dataset photos --epochs 5
    torchrun --nproc-per-node 2 recipes/pretrain.py --model simco_r18_025 --dataset photos

The same as ``simco-zoo pretrain``; simco_zoo/cli/pretrain.py is the recipe itself, and --help lists its settings.
"""

from simco_zoo.cli.pretrain import main
from simco_zoo.cli.run import run

if __name__ == "__main__":
    run(main)
