"""Two processes under torchrun (gloo) against one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from simco_zoo.distributed import all_reduce_any, gather_rows, launched, rank, world_size
from tests.training import two_processes
from tests.training.two_processes import CASES

SAME = [case for case in CASES if case != "simco-local"]


def torchrun(*command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": ""}
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run([*start, *command], env=environment, cwd=cwd or root, capture_output=True, text=True)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("two")
    done = torchrun(two_processes.__file__, str(folder))
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "results.pt", weights_only=True), folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("one")
    results: dict[str, Any] = {"gradients": two_processes.gradients_of_the_gather()}
    return {**results, **{case: two_processes.run_case(case, folder).state_dict() for case in CASES}}


def distance(a: dict[str, Any], b: dict[str, Any]) -> float:
    """Largest difference in a parameter or the queue; batch norm's statistics are averages over processes."""
    assert a.keys() == b.keys()
    names = [name for name in a if not name.endswith(("running_mean", "running_var", "tracked"))]
    return max((a[name].double() - b[name].double()).abs().max().item() for name in names)


@pytest.mark.parametrize("case", SAME)
def test_two_processes_train_as_one(case, one, two):
    assert distance(one[case], two[0][case]) < 1e-9
    assert two[0][f"{case} same"]


def test_two_processes_fine_tune_as_one(two, tmp_path):
    assert distance(two_processes.fine_tuned(tmp_path), two[0]["fine-tuned"]) < 1e-9


def test_the_online_probe_learns_as_one(two, tmp_path):
    assert distance(two_processes.probed(tmp_path), two[0]["probed"]) < 1e-6  # it computes in fp32


def test_the_comparison_sees_a_difference(one, two):
    """Negatives of one's own process only are another loss, and after four steps other parameters."""
    assert distance(one["simco-local"], two[0]["simco-local"]) > 1e-3


def test_gradients_of_gathered_keys(one, two):
    for name, gradient in one["gradients"].items():
        torch.testing.assert_close(two[0]["gradients"][name], gradient, rtol=1e-12, atol=1e-14)


def test_features_are_shared_out_and_gathered(two):
    assert torch.equal(two[0]["features"], two[0]["plain features"])
    assert len(two[0]["features"]) == 70


def test_a_signal_to_one_process_ends_all_and_the_run_goes_on_exactly(two):
    resumed, whole = two[0]["interrupted"]
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_interrupted_within_an_epoch_it_ends_bit_identically(two):
    resumed, whole, logs = two[0]["within an epoch"]
    assert any(name.endswith("running_var") for name in whole)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert logs[0] == logs[1]


def test_errors_name_the_remedy(two):
    assert "multiple of 2" in two[0]["errors"]["batch"]
    assert "sync_bn needs GPUs" in two[0]["errors"]["sync_bn"]


def test_one_log_and_one_folder(two):
    run = two[1] / "simco-accumulate"
    assert (run / "last" / "model.safetensors").is_file()
    assert len((run / "log.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize(("environment", "expected"), [
    ({}, (0, 1)),
    ({"RANK": "1"}, (0, 1)),
    ({"WORLD_SIZE": "2"}, (0, 1)),
    ({"RANK": "0", "WORLD_SIZE": "1"}, (0, 1)),
    ({"RANK": "1", "WORLD_SIZE": "2"}, "this is process 1 of 2, but .* start them with torchrun"),
    ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}, (1, 2)),
])  # fmt: skip
def test_what_a_launcher_tells(environment, expected, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            launched()
    else:
        assert launched() == expected


JOINED = """
import torch
from simco_zoo.distributed import gather_objects, init_distributed, rank
init_distributed(torch.device("cpu"))
print(gather_objects(rank()))
"""


def test_processes_that_another_launcher_started_are_joined():
    """As srun, mpirun or a cluster's operator start them: with torchrun's variables, but not by torchrun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "CUDA_VISIBLE_DEVICES": ""}
    common["PYTHONPATH"] = str(Path(__file__).parents[2])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", JOINED],
            env={**os.environ, **common, "RANK": str(i)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    assert [process.communicate(timeout=120)[0] for process in processes] == ["[0, 1]\n"] * 2


def test_an_error_of_the_main_process_is_everyones(two):
    assert two[0]["errors everywhere"] == ["FolderInUseError", "FolderInUseError"]


def test_without_torchrun_all_is_identity():
    rows = torch.randn(3, 2)
    assert (rank(), world_size(), all_reduce_any(True), all_reduce_any(False)) == (0, 1, True, False)
    assert gather_rows(rows) is rows


@pytest.mark.parametrize("recipe", ["knn", "linear_probe", "extract"])
def test_recipes_give_the_same_under_torchrun(recipe, tmp_path):
    command = [f"recipes/{recipe}.py", "--model", "simco_r18_025", "--device", "cpu"]
    if recipe == "extract":
        command += ["--images", "photos", "--split", "test", "--limit", "101", "--output", str(tmp_path / "x.npz")]
    else:
        command += ["--limit", "101", *(["--k", "20"] if recipe == "knn" else [])]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    alone = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
    assert alone.returncode == 0, alone.stderr
    together = torchrun(*command)
    assert together.returncode == 0, together.stderr[-3000:]
    assert together.stdout == alone.stdout  # once, not once per process
