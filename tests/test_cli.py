"""The console command."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import simco_zoo
from simco_zoo import cli
from simco_zoo.cli import COMMANDS, main

NAMES = [name for group in COMMANDS.values() for name in group]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    model = simco_zoo.create_model("simco_r18_025")
    return simco_zoo.save_pretrained(model, tmp_path_factory.mktemp("cli") / "model", metrics={"knn_top1": 12.5})


def test_list(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "tag", "method", "data", "params", "kNN", "linear", "size", "where"]
    assert {line.split()[0] for line in lines[1:]} == set(simco_zoo.list_models())
    assert any(line.startswith("simco_r50") and "23.50 M" in line for line in lines)


def test_list_with_a_pattern(capsys):
    assert main(["list", "mocov1*"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert main(["list", "nothing*"]) == 1
    assert "no model matches 'nothing*'" in capsys.readouterr().err
    assert main(["list", "r18"]) == 1
    assert "no model matches 'r18'; try '*r18*'" in capsys.readouterr().err
    assert main(["list", "*r18*"]) == 0


def test_list_pretrained_shows_what_can_be_loaded(capsys):
    assert main(["list", "--pretrained"]) == 0
    shown = [".".join(line.split()[:2]) for line in capsys.readouterr().out.splitlines()[1:]]
    assert shown == simco_zoo.list_models(pretrained=True)


def test_info(folder, capsys):
    assert main(["info", str(folder)]) == 0
    assert "dual temperature, tau_alpha 0.1, tau_beta 1" in capsys.readouterr().out
    assert main(["info", "mocov2_r50"]) == 0
    assert "no weights published" in capsys.readouterr().out
    assert main(["info", "nonsense"]) == 2
    assert "no model 'nonsense' in the zoo" in capsys.readouterr().err


def test_verify(folder, tmp_path, capsys):
    import shutil

    assert main(["verify", str(folder)]) == 0
    assert ": ok (sha256 of model.safetensors" in capsys.readouterr().out
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    content = bytearray((damaged / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (damaged / "model.safetensors").write_bytes(content)
    assert main(["verify", str(folder), str(damaged)]) == 1
    assert f"{damaged}: FAILED" in capsys.readouterr().out
    assert main(["verify"]) == 2
    assert main(["verify", "--all"]) == 0


def test_extract(folder, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for i in range(3):
        values = np.random.default_rng(i).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / "images" / f"{i}.jpg")
    (tmp_path / "images" / "broken.jpg").write_text("no")
    call = ["extract", "--model", f"local-dir:{folder}", "--images", str(tmp_path / "images")]
    assert main([*call, "--output", str(tmp_path / "f.npz")]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"count": 3, "dim": 128, "skipped": 1, "output": str(tmp_path / "f.npz")}
    assert "skipped broken.jpg" in printed.err
    assert "images are seen at 32 px, the model's own side (--image-size takes another)" in printed.err
    with np.load(tmp_path / "f.npz") as file:
        assert file["features"].shape == (3, 128) and file["names"].tolist() == ["0.jpg", "1.jpg", "2.jpg"]
    assert main([*call, "--output", str(tmp_path / "f.txt")]) == 2


def test_download(folder, tmp_path, capsys):
    assert main(["download", f"local-dir:{folder}", "--to", str(tmp_path / "copy")]) == 0
    for file in ("model.safetensors", "projector.safetensors", "config.json", "README.md"):
        assert (tmp_path / "copy" / file).read_bytes() == (folder / file).read_bytes()
    assert main(["verify", str(tmp_path / "copy")]) == 0


def test_the_installed_command_and_the_module_agree():
    call = [sys.executable, "-m", "simco_zoo.cli", "--version"]
    assert (
        subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip().endswith(simco_zoo.__version__)
    )


def test_import_brings_in_nothing_heavy():
    heavy = ["datasets", "pyarrow", "matplotlib", "sklearn", "skimage", "pandas", "transformers"]
    code = f"import sys, simco_zoo; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    helpers = {"__init__", "__main__", "console", "evaluate", "run", "sources"}
    files = {path.stem for path in Path(cli.__file__).parent.glob("*.py")} - helpers
    assert files == {*NAMES} and all(f"  {name} " in shown for name in NAMES)
    assert main(["pretrian"]) == 2
    assert "no command 'pretrian'; did you mean pretrain?" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_help_of_a_command(name, capsys):
    """What it does, an example, and for every setting its default."""
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    usage, first, example, *_ = capsys.readouterr().out.split("\n\n")
    assert usage.startswith(f"usage: simco-zoo {name}") and len(usage) < 120
    assert first.endswith(".") and len(first.splitlines()) == 1 and f"    simco-zoo {name}" in example
    parser = parser_of(name)
    for action in parser._actions:
        shown = parser._get_formatter()._expand_help(action)
        assert len(shown.split()) > 1, action.dest
        if not action.required and action.nargs != 0:
            assert "default" in shown.lower() or not action.option_strings, f"{name} --{action.dest}: {shown}"


def parser_of(name: str):
    """The parser that a command calls parse_args, or parse_known_args, of."""
    parsers = []

    def stop(self, *_):
        parsers.append(self)
        raise SystemExit

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        main([name])
    return parsers[0]


class Parsed(Exception):
    """Ends a command where its flags have been read."""


@pytest.mark.parametrize("file", ["README.md", "recipes/README.md", "recipes/tour.ipynb"])
def test_the_commands_that_are_shown_can_be_read(file, monkeypatch):
    plain = argparse.ArgumentParser.parse_args

    def parse(*args, **kwargs):
        plain(*args, **kwargs)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    text = (Path(__file__).parents[1] / file).read_text(encoding="utf-8")
    if file.endswith(".ipynb"):
        text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.S) for line in block.splitlines()]
    commands = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("simco-zoo ")]
    assert len(commands) >= 5
    for name, *arguments in commands:
        with pytest.raises(Parsed):
            importlib.import_module(f"simco_zoo.cli.{name}").main(arguments)
