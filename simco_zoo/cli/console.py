"""The console command ``simco-zoo``: it finds the command's module and runs it."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

from simco_zoo.cli.run import call
from simco_zoo.version import __version__

# only the module of the command that is called is imported
COMMANDS = {
    "Train": {
        "pretrain": "pretrain a backbone on images without labels",
        "finetune": "fine-tune a pretrained backbone with labels",
    },
    "Evaluate": {
        "knn": "measure the kNN accuracy of a model's features",
        "linear": "measure a linear probe on a model's features",
        "report": "compare runs on one HTML page, with curves and pictures",
        "analyze": "run the paper's argument: the strength of the anchors",
    },
    "Use": {
        "extract": "write the features of images to a file",
        "search": "find the images most similar to a photo, or near-duplicates",
        "predict": "classify images with a fine-tuned model",
        "quickstart": "see it work offline in two minutes: load, extract, compare, train, draw",
    },
    "Models": {
        "list": "list the models and what is known about their weights",
        "info": "show the model card of published weights, or describe a name",
        "verify": "check hashes, keys, values and features of published weights",
        "download": "copy published weights into a folder",
        "convert": "turn a checkpoint of another code into a published folder",
        "publish": "publish a folder on the Hugging Face Hub",
    },
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status: 0 done, 1 if a check failed, 2 for an error.

    ``pretrain`` and ``finetune`` also return 130 after Ctrl-C and 143 after SIGTERM.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    names = [name for group in COMMANDS.values() for name in group]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"simco-zoo {__version__}")
        return 0
    name = arguments[0]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"commands are {', '.join(names)}."
        print(f"error: simco-zoo has no command {name!r}; {hint}", file=sys.stderr)
        return 2
    command = importlib.import_module(f"simco_zoo.cli.{name}")
    return call(lambda: command.main(arguments[1:]), status=2)


def usage() -> str:
    """Returns the help of the whole command."""
    lines = ["usage: simco-zoo COMMAND [...]", "", "Self-supervised backbones for small and medium images."]
    for group, commands in COMMANDS.items():
        lines += ["", f"{group}:", *(f"  {name:<12}{text}" for name, text in commands.items())]
    lines += ["", "simco-zoo COMMAND --help shows the settings of a command; simco-zoo --version the version."]
    return "\n".join(lines)
