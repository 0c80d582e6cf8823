"""torch.hub: what it lists, what it says, what it loads, from a path and from its cache."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch

import simco_zoo

ROOT = Path(__file__).parents[1]


@pytest.fixture
def cached(tmp_path, monkeypatch) -> str:
    """A repository as torch.hub's cache holds it after a download; loading it makes no request."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "someone_simco-zoo_main"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "hubconf.py", folder)
    return "someone/simco-zoo:main"


def test_list_shows_every_model_and_nothing_else(cached):
    assert sorted(torch.hub.list(cached, verbose=False)) == sorted(simco_zoo.list_models())


def test_help_tells_of_each(cached):
    for name in simco_zoo.list_models():
        text = torch.hub.help(cached, name)
        assert name in text and "pretrained" in text and "pooled features" in text


@pytest.mark.parametrize("source", ["local", "cache"])
def test_load(source, cached):
    images = torch.randn(1, 3, 32, 32)
    torch.manual_seed(0)
    if source == "local":
        model = torch.hub.load(str(ROOT), "mocov1_r18", source="local", num_classes=3)
    else:
        model = torch.hub.load(cached, "mocov1_r18", num_classes=3, trust_repo=True, verbose=False)
    torch.manual_seed(0)
    expected = simco_zoo.create_model("mocov1_r18", num_classes=3)
    assert model.method == "mocov1"
    assert torch.equal(model.eval()(images), expected.eval()(images))


def test_dependencies_are_import_names():
    spec = importlib.util.spec_from_file_location("hubconf", ROOT / "hubconf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert isinstance(module.dependencies, list)
    assert all(importlib.util.find_spec(name) for name in module.dependencies)
