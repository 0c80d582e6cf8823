"""Settings from the command line and YAML."""

from __future__ import annotations

import argparse
import dataclasses
import sys

import pytest

from simco_zoo.arguments import (
    add_config,
    add_method_settings,
    add_settings,
    find_config,
    import_first,
    method_arguments,
    place,
    read_settings,
    write_settings,
)
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
    with pytest.raises(ValueError, match="no mapping of settings"):
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
    with pytest.raises(ValueError, match=r"no file cifar100/simco_r19, .*names are .*cifar100/simco_r18, "):
        find_config("cifar100/simco_r19")


def test_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.yaml").write_text("epochs: 3\n")
    assert find_config("~/c.yaml") == tmp_path / "c.yaml"
    assert place("~/images") == f"{tmp_path}/images"
    assert place("local-dir:~/run/last") == f"local-dir:{tmp_path}/run/last"
    assert place("photos") == "photos"


class Base:
    """A base.

    Args:
        backbone: Not a setting.
        width: Width of it,
            in pixels.
        depth: Depth.
    """

    def __init__(self, backbone: object, *, width: int = 3, depth: int | None = None) -> None: ...


class Derived(Base):
    """A method.

    Args:
        ratio: A ratio, 100 % at most.
    """

    def __init__(
        self, backbone: object, *, ratio: float = 0.5, width: int = 4, flag: bool = True, **kwargs: int
    ) -> None:
        super().__init__(backbone, width=width, **kwargs)


def test_arguments_of_a_method_come_from_the_signatures_of_all_its_classes():
    assert method_arguments(Derived) == {
        "ratio": (float, 0.5, "A ratio, 100 % at most."),
        "width": (int, 4, "Width of it, in pixels."),
        "flag": (bool, True, ""),
        "depth": (int | None, None, "Depth."),
    }
    p = argparse.ArgumentParser()
    add_method_settings(p, {"base": Base, "derived": Derived})
    shown = " ".join(p.format_help().split())
    assert "A ratio, 100 % at most. Defaults: derived: 0.5." in shown
    assert "Width of it, in pixels. Defaults: base: 3; derived: 4." in shown
    args = p.parse_args(["--width", "7", "--no-flag"])
    assert (args.width, args.flag, args.ratio, args.depth) == (7, False, None, None)


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
    with pytest.raises(ValueError, match="there is no module of that name"):
        import_first(["--import", "registers_nothing"])
