"""Settings from the command line and YAML."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import pytest

from simco_zoo.arguments import add_settings, read_settings, write_settings
from simco_zoo.training import TrainingConfig


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser()
    p.add_argument("--config", type=Path)
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
])  # fmt: skip
def test_what_is_no_setting_is_named(text, message, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_settings(parser(), TrainingConfig, ["--config", str(file)])
