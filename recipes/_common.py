"""What every recipe's last line calls: errors in one sentence, one voice where several processes run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from simco_zoo.hub import WeightsError
from simco_zoo.training import TrainingError


def run(main: Callable[[], int]) -> None:
    """Runs a recipe and ends the process with its status; of torchrun's processes only the first prints results."""
    if int(os.environ.get("RANK", 0)) > 0:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for as long as the process lives
    try:
        sys.exit(main())
    except (ValueError, TrainingError, WeightsError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
