"""Turn other people's checkpoints into a published folder: ResNets of MoCo, SimMoCo, SimCo, and plain timm weights.

    python recipes/convert.py --checkpoint last.ckpt --method simco --stem-padding 2 --output FOLDER

The same as ``simco-zoo convert``; simco_zoo/cli/convert.py is the recipe itself, and --help lists its settings.
"""

from simco_zoo.cli.convert import main
from simco_zoo.cli.run import run

if __name__ == "__main__":
    run(main)
