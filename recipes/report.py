"""Compare finished and unfinished runs on one page: results, curves, nearest neighbors, a map, and the views.

    python recipes/report.py runs/NAME runs/OTHER --output runs/report.html

The same as ``simco-zoo report``; simco_zoo/cli/report.py is the recipe itself, and --help lists its settings.
"""

from simco_zoo.cli.report import main
from simco_zoo.cli.run import run

if __name__ == "__main__":
    run(main)
