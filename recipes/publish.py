"""Publish a run's folder on the Hugging Face Hub, with card, config, log and checksums.

    python recipes/publish.py --folder runs/NAME/best --repo ORG/NAME --dry-run

The same as ``simco-zoo publish``; simco_zoo/cli/publish.py is the recipe itself, and --help lists its settings.
"""

from simco_zoo.cli.publish import main
from simco_zoo.cli.run import run

if __name__ == "__main__":
    run(main)
