"""How a command runs: a parser with readable help, errors in one sentence, results printed once."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from simco_zoo.distributed import launched
from simco_zoo.hub import WeightsError
from simco_zoo.training import TrainingError

ERRORS = (ValueError, TrainingError, WeightsError, OSError, ImportError)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the description, and adds the default of every flag whose help does not state it."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        if action.required or action.nargs == 0 or not action.option_strings or "default" in text.lower():
            return text
        return f"{text} (default: {'none' if action.default in (None, {}) else '%(default)s'})"


def build_command(name: str, description: str | None, positional: str = "") -> argparse.ArgumentParser:
    """Returns the parser of a command.

    Args:
        name: The command, e.g. "knn".
        description: The docstring of its module; the help starts with it.
        positional: Positional arguments as the usage shows them, e.g. "NAME".
    """
    prog = f"simco-zoo {name}"
    usage = " ".join(filter(None, (prog, positional, "[settings]")))  # argparse's own lists every flag
    return argparse.ArgumentParser(prog=prog, usage=usage, description=description, formatter_class=HelpFormatter)


def run(main: Callable[[], int]) -> None:
    """Runs a recipe and ends the process with its status; an error is one sentence on stderr and status 1."""
    sys.exit(call(main, status=1))


def call(main: Callable[[], int], status: int) -> int:
    """Returns the exit status of a command; of the processes that torchrun starts only the first prints results.

    Args:
        main: The command.
        status: Exit status of an error.
    """
    try:
        if launched()[0] > 0:
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for as long as the process lives
        return main()
    except BrokenPipeError:  # whoever reads the output has seen enough
        sys.stderr.close()
        return 0
    except ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return status
