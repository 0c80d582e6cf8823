"""The table of methods: what is read from signatures, and a method of one's own from training to loading."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

import simco_zoo
from simco_zoo.arguments import read_settings
from simco_zoo.cli import pretrain as pretrain_command
from simco_zoo.models.methods import METHODS, argument_help, method_arguments, method_title
from simco_zoo.training import TrainingConfig

# method_config as JSON; published configurations have these bytes, and a new argument comes after them
GOLDEN = {
    "simco": '{"temperature": 0.1, "symmetric": true, "joint_bn": true, "proj_hidden_dim": 128, "proj_dim": 128, '
    '"dt_m": 10.0}',
    "simmoco": '{"temperature": 0.1, "symmetric": false, "joint_bn": true, "proj_hidden_dim": 128, "proj_dim": 128, '
    '"momentum": 0.99, "dt_m": 10.0}',
    "mocov1": '{"temperature": 0.07, "symmetric": false, "joint_bn": true, "proj_hidden_dim": null, "proj_dim": 128, '
    '"momentum": 0.99, "queue_size": 4096, "bn_splits": 1, "mix": null, "mix_warmup": 1000}',
    "mocov2": '{"temperature": 0.1, "symmetric": false, "joint_bn": true, "proj_hidden_dim": 128, "proj_dim": 128, '
    '"momentum": 0.99, "queue_size": 4096, "bn_splits": 1, "mix": null, "mix_warmup": 1000}',
    "simclr": '{"temperature": 0.5, "symmetric": true, "joint_bn": true, "proj_hidden_dim": 128, "proj_dim": 128, '
    '"decoupled": false, "hardness": 0.0, "class_prior": 0.0}',
    "dcl": '{"temperature": 0.1, "symmetric": true, "joint_bn": true, "proj_hidden_dim": 128, "proj_dim": 128, '
    '"decoupled": true, "hardness": 0.0, "class_prior": 0.0}',
    "simsiam": '{"symmetric": true, "joint_bn": false, "proj_hidden_dim": 2048, "proj_dim": 2048, "predictor": "mlp", '
    '"pred_hidden_dim": 512, "proj_layers": 2, "last_norm": true}',
}


@pytest.mark.parametrize("method", GOLDEN)
def test_method_config_keeps_its_bytes(method):
    model = simco_zoo.create_model(method, backbone="test_resnet")
    assert json.dumps(model.method_config()) == GOLDEN[method]


def test_method_config_has_the_arguments_that_were_given():
    model = simco_zoo.create_model("mocov1", backbone="test_resnet", queue_size=7, temperature=0.5)
    config = model.method_config()
    assert (config["queue_size"], config["temperature"], config["proj_hidden_dim"]) == (7, 0.5, None)


@pytest.mark.parametrize("method", METHODS)
def test_every_argument_is_documented_and_typed(method):
    arguments, texts = method_arguments(METHODS[method].cls), argument_help(METHODS[method].cls)
    for name, parameter in arguments.items():
        assert texts.get(name), f"{method} does not document {name}"
        assert not isinstance(parameter.annotation, str)
    assert method_arguments(METHODS["mocov1"].cls)["temperature"].default == 0.07


def test_an_argument_of_another_method():
    with pytest.raises(
        ValueError, match=r"mocov2 has no argument dt_m \(simco and simmoco have it\); its arguments are"
    ):
        simco_zoo.create_model("mocov2", backbone="test_resnet", dt_m=5.0)
    with pytest.raises(ValueError, match=r"simco has no argument queue_size \(mocov1 and mocov2 have it"):
        simco_zoo.create_model("simco_r18_025", queue_size=5)


TOY = """
import simco_zoo


@simco_zoo.register_method("toy", title="Toy alignment", paper='"Toys" (2025)')
class Toy(simco_zoo.models.ContrastiveModel):
    '''Pulls views together and pushes the batch apart.

    Args:
        power: Exponent of the distance.
    '''

    def __init__(self, backbone, *, power: float = 2.0, **kwargs):
        super().__init__(backbone, **kwargs)
        self.power = power

    def contrast(self, view1, view2):
        z1, z2 = self.project(view1), self.project(view2)
        return {"loss": (z1 - z2).norm(dim=1).pow(self.power).mean() + (z1 @ z2.T).exp().mean()}
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The name of a module with a method of one's own, registered as long as the test runs."""
    (tmp_path / "toy_method.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("toy_method")
    yield "toy"
    METHODS.pop("toy", None)
    sys.modules.pop("toy_method", None)


def images() -> torch.Tensor:
    return torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_method_of_ones_own_trains_is_published_and_loads_again(toy, tmp_path):
    model = simco_zoo.create_model(toy, backbone="test_resnet", power=3.0, temperature=0.3)
    assert model.method_config()["power"] == 3.0
    folder = simco_zoo.training.pretrain(
        model, images(), output=tmp_path / "run", epochs=2, batch_size=8, max_steps=3, knn_every=0, device="cpu"
    )
    config = json.loads((folder / "config.json").read_text())["simco_zoo"]
    assert config["method"] == "toy" and config["method_config"]["power"] == 3.0
    card = (folder / "README.md").read_text()
    assert "Toy alignment" in card and '"Toys" (2025)' in card
    header, *rows = (Path(folder).parent / "log.csv").read_text().splitlines()
    assert len(rows) == 2 and float(rows[0].split(",")[header.split(",").index("loss")]) > 0

    loaded = simco_zoo.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert type(loaded) is METHODS["toy"].cls and loaded.power == 3.0 and loaded.temperature == 0.3
    x = torch.randn(2, 3, 32, 32)
    # the trained model lies in channels_last, which adds in another order
    torch.testing.assert_close(loaded.project(x), model.eval().project(x), rtol=1e-4, atol=1e-5)

    METHODS.pop("toy")  # someone who has not imported the module
    with pytest.raises(ValueError, match=r"published with the method 'toy', .* import the module that registers it"):
        simco_zoo.create_model(f"local-dir:{folder}", pretrained=True)
    assert method_title("toy") == "toy"


@pytest.mark.parametrize(("settings", "message"), [
    ({"views_per_image": 3}, "views_per_image is 3, but contrast of toy takes two views"),
    ({"online_linear": True}, "contrast of toy takes no report_features"),
])  # fmt: skip
def test_what_a_method_does_not_take_is_said_before_anything_is_written(toy, settings, message, tmp_path):
    model = simco_zoo.create_model(toy, backbone="test_resnet")
    pixels, labels = images(), torch.arange(16) % 2
    labeled = simco_zoo.data.ImageData(pixels, labels, [str(i) for i in range(16)], image_size=32)
    with pytest.raises(ValueError, match=message):
        simco_zoo.training.pretrain(
            model, labeled, test_images=labeled, output=tmp_path / "run", batch_size=8, device="cpu", **settings
        )
    assert not (tmp_path / "run").exists()


def test_its_argument_is_a_flag_of_the_command_line(toy, tmp_path, monkeypatch):
    METHODS.pop("toy")  # the command imports the module itself
    sys.modules.pop("toy_method")
    monkeypatch.chdir(tmp_path)
    flags = (
        "--model toy --import toy_method --power 1.5 --backbone test_resnet --dataset photos --limit 16 --max-steps 2"
    )
    rest = ["--batch-size", "8", "--output", str(tmp_path / "run"), "--device", "cpu", "--test-split", "none"]
    code = pretrain_command.main([*flags.split(), *rest])
    assert code == 0
    config = json.loads((tmp_path / "run" / "last" / "config.json").read_text())
    assert config["simco_zoo"]["method_config"]["power"] == 1.5
    text = pretrain_command.build_parser().format_help()
    assert "--power" in text and "Exponent of the distance." in text


def test_flags_of_several_values_and_of_choices(tmp_path):
    parser = pretrain_command.build_parser()
    args = parser.parse_args(["--mix", "8", "4", "2", "--predictor", "bias"])
    assert args.mix == [8, 4, 2] and args.predictor == "bias"
    file = tmp_path / "c.yaml"
    file.write_text("mix: [8, 4, 2]\npredictor: bias\n")
    read = read_settings(pretrain_command.build_parser(), TrainingConfig, ["--config", str(file)])[0]
    assert read.mix == [8, 4, 2] and read.predictor == "bias"
    for text, message in (("mix: [8, 4]", "is a list of 3 values"), ("predictor: gru", "is one of mlp, bias")):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_settings(pretrain_command.build_parser(), TrainingConfig, ["--config", str(file)])


def test_a_method_may_be_registered_again_but_not_in_the_place_of_another(toy, tmp_path):
    module = importlib.reload(sys.modules["toy_method"])
    assert METHODS["toy"].cls is module.Toy
    for name in ("toy", "simco", "mocov2"):
        with pytest.raises(ValueError, match=f"there is a method '{name}' already; choose another name for Other"):

            @simco_zoo.register_method(name)
            class Other(simco_zoo.models.SimCo):
                pass


def test_what_cannot_be_a_method():
    with pytest.raises(ValueError, match="lower-case letters, digits and underscores, but not 'My Method'"):
        simco_zoo.register_method("My Method")
    with pytest.raises(ValueError, match="is not a subclass of"):
        simco_zoo.register_method("mine")(torch.nn.Linear)

    class NoDefault(simco_zoo.models.ContrastiveModel):
        def __init__(self, backbone, *, power, **kwargs):
            super().__init__(backbone, **kwargs)

    with pytest.raises(ValueError, match=r"NoDefault.__init__ has no default for power; give each argument one"):
        simco_zoo.register_method("mine")(NoDefault)
    assert "mine" not in METHODS


def test_an_argument_that_is_not_kept_is_named():
    @simco_zoo.register_method("forgetful")
    class Forgetful(simco_zoo.models.ContrastiveModel):
        def __init__(self, backbone, *, power: float = 1.0, **kwargs):
            super().__init__(backbone, **kwargs)

    try:
        with pytest.raises(AttributeError, match=r"Forgetful keeps no attribute power; .*set self.power = power"):
            simco_zoo.create_model("forgetful", backbone="test_resnet").method_config()
    finally:
        METHODS.pop("forgetful")
