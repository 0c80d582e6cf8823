"""Settings from the command line and YAML."""

from __future__ import annotations

import argparse
import dataclasses
import sys

import pytest

import simco_zoo
from simco_zoo import arguments
from simco_zoo.arguments import (
    add_config,
    add_method_settings,
    add_settings,
    find_config,
    import_first,
    place,
    read_settings,
    write_settings,
)
from simco_zoo.models import methods
from simco_zoo.training import TrainingConfig


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser()
    add_config(p)
    p.add_argument("--model", default="simco_r18")
    add_settings(p, TrainingConfig)
    return p


def test_every_field_is_a_flag_with_the_documented_help():
    text = parser().format_help()
    for field in dataclasses.fields(TrainingConfig):
        assert "--" + field.name.replace("_", "-") in text
    assert read_settings(parser(), TrainingConfig, [])[1] == TrainingConfig()


def test_a_flag_goes_before_the_file_and_the_file_before_the_default(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("model: simco_r50\nepochs: 7\nweight_decay: 5e-4\nlinear: false\nmax_steps: null\nclip_grad: 1\n")
    args, config = read_settings(parser(), TrainingConfig, ["--config", str(file), "--epochs", "9", "--max-steps", "3"])
    assert args.model == "simco_r50"
    assert (config.epochs, config.max_steps, config.weight_decay, config.linear) == (9, 3, 5e-4, False)
    assert isinstance(config.clip_grad, float)


def test_settings_round_trip(tmp_path):
    args, config = read_settings(parser(), TrainingConfig, ["--lr", "0.5", "--no-channels-last"])
    write_settings(tmp_path / "config.yaml", args)
    assert read_settings(parser(), TrainingConfig, ["--config", str(tmp_path / "config.yaml")])[1] == config


def test_an_unknown_key_names_the_nearest(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("epoch: 7\n")
    with pytest.raises(ValueError, match="unknown setting 'epoch'; did you mean 'epochs'"):
        read_settings(parser(), TrainingConfig, ["--config", str(file)])
    file.write_text("- 7\n")
    with pytest.raises(ValueError, match="is not a mapping of settings"):
        read_settings(parser(), TrainingConfig, ["--config", str(file)])


@pytest.mark.parametrize(("text", "message"), [
    ("epochs: [1", r"is no YAML in line \d; write lines like"),
    ("epochs: many", "has epochs: 'many', but epochs is of type int"),
    ("epochs: null", "has epochs: None, but epochs is of type int; leave the line out for the default, 200"),
    ("epochs: 3.7", "has epochs: 3.7, but epochs is of type int"),
    ("epochs: true", "has epochs: True, but epochs is of type int"),
    ("epochs: [3]", r"has epochs: \[3\], but epochs is of type int"),
    ("linear: 'false'", "has linear: 'false', but linear is true or false, without quotes"),
    ("linear: 0", "has linear: 0, but linear is true or false, without quotes"),
    ("linear: null", "has linear: None, but linear is true or false"),
    ("views: {a: 1}", "but views is of type str"),
])  # fmt: skip
def test_what_is_no_setting_is_named(text, message, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_settings(parser(), TrainingConfig, ["--config", str(file)])


def test_a_config_is_found_by_its_name_in_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = find_config("cifar100/simco_r18")
    assert file.name == "simco_r18.yaml" and "simco_r18" in file.read_text()
    (tmp_path / "mine.yaml").write_text("epochs: 3\n")
    assert find_config("mine.yaml").samefile(tmp_path / "mine.yaml")
    with pytest.raises(ValueError, match=r"no file cifar100/simco_r19 .*names are .*cifar100/simco_r18, "):
        find_config("cifar100/simco_r19")


def test_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.yaml").write_text("epochs: 3\n")
    assert find_config("~/c.yaml") == tmp_path / "c.yaml"
    assert place("~/images") == f"{tmp_path}/images"
    assert place("local-dir:~/run/last") == f"local-dir:{tmp_path}/run/last"
    assert place("photos") == "photos"


@pytest.fixture
def toy_method(monkeypatch):
    monkeypatch.setattr(methods, "METHODS", {**methods.METHODS})
    monkeypatch.setattr(arguments, "METHODS", methods.METHODS)

    @simco_zoo.register_method("toy")
    class Toy(simco_zoo.models.ContrastiveModel):
        """A method.

        Args:
            ratio: A ratio, 100 % at most.
        """

        def __init__(self, backbone, *, ratio: float = 0.5, temperature: float = 0.3, shout: bool = False, **kwargs):
            super().__init__(backbone, temperature=temperature, **kwargs)


def test_flags_of_the_methods_come_from_their_signatures(toy_method):
    p = argparse.ArgumentParser()
    add_method_settings(p)
    shown = " ".join(p.format_help().split())
    assert "A ratio, 100 % at most. Default: 0.5 (toy)." in shown
    assert "0.07 (mocov1), 0.5 (simclr), 0.3 (toy)." in shown
    assert "Default: 128 (simco, simmoco, mocov1, mocov2, simclr, dcl, toy), 2048 (simsiam)." in shown
    args = p.parse_args(["--ratio", "0.7", "--shout", "--queue-size", "64", "--no-symmetric"])
    assert (args.ratio, args.shout, args.queue_size, args.symmetric, args.temperature) == (0.7, True, 64, False, None)


def test_a_module_is_imported_from_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "registers_something.py").write_text("import sys\nsys.registered = 1\n")
    (tmp_path / "c.yaml").write_text("import: registers_something\n")
    import_first(["--config", str(tmp_path / "c.yaml")])
    assert sys.registered == 1 and sys.modules.pop("registers_something")
    del sys.registered
    import_first(["--import", "registers_something", "--other", "1"])
    assert sys.registered == 1
    del sys.registered
    with pytest.raises(ValueError, match="no module of that name"):
        import_first(["--import", "registers_nothing"])
