"""See it work, offline, in about two minutes on two cores: load, extract, compare, train, draw.

    python recipes/quickstart.py

The same as ``simco-zoo quickstart``; simco_zoo/cli/quickstart.py is the recipe itself, and --help lists its settings.
"""

from simco_zoo.cli.quickstart import main
from simco_zoo.cli.run import run

if __name__ == "__main__":
    run(main)
