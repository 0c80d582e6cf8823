"""Write the features of images to a file.

    python recipes/extract.py --model simco_r18_025 --images FOLDER --output features.parquet

The same as ``simco-zoo extract``; simco_zoo/cli/extract.py is the recipe itself, and --help lists its settings.
"""

from simco_zoo.cli.extract import main
from simco_zoo.cli.run import run

if __name__ == "__main__":
    run(main)
