"""The docstrings of the public names: one sentence first, an example that runs, and every argument described."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import tempfile
from pathlib import Path

import pytest

from simco_zoo.models.methods import METHODS

ROOT = Path(__file__).parents[1]
PACKAGES = ["", ".losses", ".hub", ".data", ".models", ".publishing", ".evaluation", ".training", ".analysis"]
WITH_EXAMPLES = [
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for file in sorted((ROOT / "simco_zoo").rglob("*.py"))
    if ">>>" in file.read_text(encoding="utf-8")
]


def public_objects() -> dict[str, object]:
    found = {}
    for package in PACKAGES:
        module = importlib.import_module(f"simco_zoo{package}")
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if inspect.isfunction(value) or inspect.isclass(value):
                found[f"{value.__module__}.{value.__qualname__}"] = value
    return found


PUBLIC = public_objects()


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_run(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = set(METHODS)
    found = doctest.testmod(importlib.import_module(module))
    for name in set(METHODS) - before:  # an example registers a method
        del METHODS[name]
    assert not found.failed


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_docstring_has_a_sentence_an_example_and_all_arguments(name):
    value = PUBLIC[name]
    text = inspect.getdoc(value) or ""
    assert re.match(r"[^\n]{15,}\.$", text.split("\n")[0]), "the first line has to be a sentence"
    assert ">>>" in text or "Example:" in text
    if inspect.isfunction(value):
        missing = [name for name in inspect.signature(value).parameters if not re.search(rf"\b{name}\b", text)]
        assert not missing or "The arguments are those of" in text
