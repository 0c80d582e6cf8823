"""Run by test_distributed.py, once in its own process and once under torchrun: the same runs, the same results.

torchrun --nproc-per-node 2 two_processes.py FOLDER
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

import simco_zoo
from simco_zoo.data import load_images
from simco_zoo.distributed import all_reduce_any, gather_objects, gather_rows, init_distributed, rank, world_size
from simco_zoo.evaluation import extract_features
from simco_zoo.lock import FolderLock
from simco_zoo.losses import dual_temperature
from simco_zoo.training import Interrupted, Pretraining, finetune, pretrain
from simco_zoo.training.checkpoint import list_checkpoints, load_checkpoint
from tests.training.test_run import rows

# name: model, backbone, its arguments, the method's arguments, settings of the run
CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    f"{method}-{'symmetric' if symmetric else 'one-sided'}-{backbone}": (
        method,
        backbone,
        kwargs,
        {"symmetric": symmetric, **({"queue_size": 40} if method == "mocov2" else {})},
        {},
    )
    for method in ("simco", "simmoco", "mocov2")
    for symmetric in (False, True)
    for backbone, kwargs in (
        ("test_convnext", {}),
        ("resnet18", {"norm_layer": "groupnorm", "channels": [32, 32, 32, 64]}),
    )
}
CASES["simco-accumulate"] = ("simco", "test_convnext", {}, {}, {"accumulate": 2, "epochs": 2})
CASES["simmoco-accumulate"] = ("simmoco", "test_convnext", {}, {}, {"accumulate": 2, "epochs": 2})
CASES["simco-local"] = ("simco", "test_convnext", {}, {}, {"negatives": "local"})
CASES["mocov2-shuffled"] = ("mocov2", "resnet18", {"channels": [8, 8, 16, 16]}, {"queue_size": 40}, {})


def images() -> torch.Tensor:
    return torch.randint(0, 256, (70, 3, 16, 16), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)


class HalvesBatchNorm2d(torch.nn.BatchNorm2d):
    """What the batch norms of two processes do, each on its half of the batch."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.cat([super(HalvesBatchNorm2d, self).forward(half) for half in input.chunk(2)])


def build(case: str) -> Any:
    method, backbone, kwargs, arguments, _ = CASES[case]
    torch.manual_seed(0)
    arguments = {**arguments, "small_stem": True, "proj_dim": 16}
    model = simco_zoo.create_model(method, backbone=backbone, backbone_kwargs=kwargs, **arguments)
    if case == "mocov2-shuffled" and world_size() == 1:
        model.bn_splits = 2  # the keys are shuffled
        for module in model.modules():
            if type(module) is torch.nn.BatchNorm2d:
                module.__class__ = HalvesBatchNorm2d
    return model.double()  # so that nothing but a mistake can tell two processes from one


def run_case(case: str, folder: Path, **settings: Any) -> Any:
    usual = {"epochs": 1, "batch_size": 16, "lr": 2.0, "device": "cpu", "progress_bar": False}
    model = build(case)
    pretrain(model, load_images(images()), output=folder / case, **{**usual, **CASES[case][-1], **settings})
    return model


def gradients_of_the_gather() -> dict[str, torch.Tensor]:
    """One backward in float64 through DistributedDataParallel, or without it."""
    torch.manual_seed(1)
    layer = torch.nn.Linear(6, 5).double()
    x1, x2 = torch.randn(2, 8, 6, dtype=torch.float64)
    own = slice(rank() * 8 // world_size(), (rank() + 1) * 8 // world_size())
    forward = DistributedDataParallel(layer) if world_size() > 1 else layer
    q, k = F.normalize(forward(torch.stack([x1[own], x2[own]])), dim=2)
    loss = dual_temperature(q, gather_rows(k), positive_offset=own.start)
    loss.backward()
    return {name: parameter.grad for name, parameter in layer.named_parameters()}


def interrupted_then_resumed(folder: Path) -> Any:
    """A signal that only the last process gets ends all of them, and the run goes on as if it had not come."""
    model = build("simco-one-sided-test_convnext")
    steps = 0
    draw = torch.randperm

    def signal_at_the_third_step(*args: Any, **kwargs: Any) -> torch.Tensor:  # an epoch draws its order once
        nonlocal steps
        steps += 1
        if steps == 2 and rank() == world_size() - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(*args, **kwargs)

    settings = {"epochs": 3, "batch_size": 32, "lr": 2.0, "device": "cpu", "progress_bar": False}
    torch.randperm = signal_at_the_third_step  # type: ignore[assignment]
    try:
        pretrain(model, load_images(images()), output=folder / "interrupted", **settings)
        raise AssertionError("the run was not interrupted")
    except Interrupted as error:
        assert error.exit_code == 128 + signal.SIGTERM
    finally:
        torch.randperm = draw
    resumed = build("simco-one-sided-test_convnext")
    pretrain(resumed, load_images(images()), output=folder / "interrupted", **settings)
    whole = build("simco-one-sided-test_convnext")
    pretrain(whole, load_images(images()), output=folder / "whole", **settings)
    return resumed.state_dict(), whole.state_dict()


def interrupted_within_an_epoch(folder: Path) -> Any:
    """Batch norm's statistics differ between the processes then; the run goes on with each one's own."""
    case, settings = "mocov2-shuffled", {"epochs": 2}
    train_step = Pretraining.train_step

    def signal_at_step_six(self: Pretraining, batch: Any) -> Any:
        if self.state.step == 5 and rank() == world_size() - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(self, batch)

    Pretraining.train_step = signal_at_step_six  # type: ignore[method-assign]
    try:
        run_case(case, folder / "within", **settings)
        raise AssertionError("the run was not interrupted")
    except Interrupted:
        pass
    finally:
        Pretraining.train_step = train_step  # type: ignore[method-assign]
    resumed, whole = run_case(case, folder / "within", **settings), run_case(case, folder / "without", **settings)
    logs = [rows(folder / name / case) for name in ("within", "without")]
    return resumed.state_dict(), whole.state_dict(), logs


def labeled() -> Any:
    data = load_images(images())
    return type(data)(**{**vars(data), "labels": torch.arange(len(data)) % 3})


def probed(folder: Path) -> Any:
    """The weights of the online linear probe after a run."""
    model, data = build("simco-one-sided-test_convnext"), labeled()
    settings = {"epochs": 1, "batch_size": 16, "device": "cpu", "progress_bar": False, "linear": False, "knn_k": 5}
    pretrain(model, data, test_images=data, output=folder / "probed", online_linear=True, **settings)
    checkpoint = load_checkpoint(list_checkpoints(folder / "probed" / "checkpoints")[-1])
    return checkpoint["online_probe"]["classifier"]


def fine_tuned(folder: Path) -> Any:
    data = labeled()
    model = build("simco-one-sided-test_convnext")
    settings = {"epochs": 2, "batch_size": 16, "device": "cpu", "progress_bar": False, "opt": "momentum", "lr": 1.0}
    finetune(model, data, data, output=folder / "finetune", **settings)
    return model.backbone.state_dict()


def in_use(folder: Path) -> str:
    """The error's name on a process, where the folder's lock is another's and only the main process sees it."""
    taken = folder / "taken" / "simco-local"
    if rank() == 0:
        taken.mkdir(parents=True)
        held = FolderLock(taken)
    try:
        run_case("simco-local", folder / "taken")
    except OSError as error:
        return type(error).__name__
    finally:
        if rank() == 0:
            held.release()
    return "none"


def same_everywhere(state: dict[str, torch.Tensor]) -> bool:
    """Whether parameters and queue are the same bits on all processes."""
    differs = False
    for name, tensor in state.items():
        if not name.endswith(("running_mean", "running_var")):
            everywhere = gather_rows(tensor.detach().reshape(1, -1))
            differs |= not torch.equal(everywhere[:1].expand_as(everywhere), everywhere)
    return not all_reduce_any(differs)


def main(folder: Path) -> None:
    init_distributed(torch.device("cpu"))
    results: dict[str, Any] = {"gradients": gradients_of_the_gather()}
    for case in CASES:
        model = run_case(case, folder)
        results[case] = model.state_dict()
        results[f"{case} same"] = same_everywhere(model.state_dict())
    features = extract_features(model, images(), batch_size=7, across_processes=True)
    results["fine-tuned"] = fine_tuned(folder)
    results["probed"] = probed(folder)
    results["features"] = features.features
    results["plain features"] = extract_features(model, images(), batch_size=7).features
    results["interrupted"] = interrupted_then_resumed(folder)
    results["within an epoch"] = interrupted_within_an_epoch(folder)
    errors = {}
    for name, settings in {"batch": {"batch_size": 15}, "sync_bn": {"sync_bn": True}}.items():
        try:
            run_case("simco-local", folder / name, **settings)
        except ValueError as error:
            errors[name] = str(error)
    results["errors"] = errors
    results["errors everywhere"] = gather_objects(in_use(folder))
    if rank() == 0:
        torch.save(results, folder / "results.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
