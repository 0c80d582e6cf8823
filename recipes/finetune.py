"""Fine-tune a pretrained backbone with labels, and leave a classifier that loads in one line.

    python recipes/finetune.py --model simco_r18_025 --dataset photos

The same as ``simco-zoo finetune``; simco_zoo/cli/finetune.py is the recipe itself, and --help lists its settings.
"""

from simco_zoo.cli.finetune import main
from simco_zoo.cli.run import run

if __name__ == "__main__":
    run(main)
