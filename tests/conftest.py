"""Fixtures shared by all tests; no test needs a network or a downloaded data set."""

from __future__ import annotations

import os
from pathlib import Path

# pytest runs as many processes as there are cores; one thread each, and for the processes that tests start
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

# no test may reach for the Hub by accident; those that test the Hub start a server and a process of their own
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["SIMCO_ZOO_CACHE"] = ""  # nothing is left in the home directory

CIFAR100 = Path(__file__).parents[2] / "shared" / "data" / "cifar100"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz", type=int, default=40, metavar="N", help="inputs of each kind in tests/fuzz; 0: all")


@pytest.fixture(scope="session")
def fuzz_count(request: pytest.FixtureRequest) -> int:
    """How many inputs of each kind tests/fuzz tries; 0 means all there are."""
    return int(request.config.getoption("--fuzz"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def views() -> tuple[torch.Tensor, torch.Tensor]:
    """Two views of eight images whose channels differ, and whose views are alike."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(8, 3, 32, 32, generator=generator)
    return image, image + 0.3 * torch.randn(8, 3, 32, 32, generator=generator)


@pytest.fixture
def cifar100() -> str:
    """The folder of CIFAR-100, where it is."""
    if not CIFAR100.is_dir():
        pytest.skip("CIFAR-100 is not next to the repository (../shared/data/cifar100)")
    return str(CIFAR100)
