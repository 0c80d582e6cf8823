"""The console command ``simco-zoo``, one file per command; ``python -m simco_zoo.cli`` is the same.

A command is a module with ``main(argv) -> exit status``, whose docstring is what ``simco-zoo COMMAND --help`` begins
with. Adding one takes the module, a row of ``COMMANDS`` in console.py and, if it should also run as a script, a file in
recipes/ that calls it.
"""

from simco_zoo.cli.console import COMMANDS, main

__all__ = ["COMMANDS", "main"]
