"""Lightning trains every method, resumes it to the same bits, and loads its checkpoints into a fresh module."""

from __future__ import annotations

import pytest
import torch

import simco_zoo
from simco_zoo.models.methods import METHODS

lightning = pytest.importorskip("pytorch_lightning", reason="pytorch-lightning is not installed")
METHOD_NAMES = [name for name, method in METHODS.items() if method.cls.__module__.startswith("simco_zoo.")]


class Module(lightning.LightningModule):
    def __init__(self, method: str) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = simco_zoo.create_model(method, backbone="test_resnet", small_stem=True)

    def on_train_epoch_start(self):
        # MoCo shuffles its keys by torch's global generator, whose state Lightning does not keep
        torch.manual_seed(self.current_epoch)

    def training_step(self, batch, _):
        return self.model.contrast(*batch)["loss"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    tensors, others = one.state_dict(), other.state_dict()
    return tensors.keys() == others.keys() and all(torch.equal(tensors[name], others[name]) for name in tensors)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_resumed_and_loaded(method, tmp_path, views):
    data = torch.utils.data.TensorDataset(*(view[..., ::4, ::4] for view in views))
    loader = torch.utils.data.DataLoader(data, batch_size=4)

    def fit(module: Module, epochs: int, checkpoint: object = None) -> Module:
        trainer = lightning.Trainer(
            default_root_dir=tmp_path, max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False, enable_checkpointing=False,
        )  # fmt: skip
        trainer.fit(module, loader, ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return module

    torch.manual_seed(0)
    start = Module(method)
    state = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    first = fit(start, 1)
    loaded = Module.load_from_checkpoint(tmp_path / "1.ckpt", weights_only=True)
    assert equal(loaded, first)
    resumed = fit(Module(method), 2, tmp_path / "1.ckpt")
    straight = Module(method)
    straight.load_state_dict(state)
    assert equal(fit(straight, 2), resumed)
