"""Settings from the command line and from YAML: a flag for every field of a config dataclass."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml

from simco_zoo.files import write_text

Config = TypeVar("Config")


def add_settings(group: Any, config_class: type) -> None:
    """Adds ``--field-name`` for each field of a config dataclass; help comes from its docstring's attributes.

    Args:
        group: An argparse parser or argument group.
        config_class: A dataclass whose fields have defaults and plain types.
    """
    hints, helps = typing.get_type_hints(config_class), _attribute_docs(config_class)
    for field in dataclasses.fields(config_class):
        kind = hints[field.name]
        options: dict[str, Any] = {"default": field.default, "help": f"{helps[field.name]} Default: {field.default}."}
        options["help"] = options["help"].replace("%", "%%")
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["type"] = next(t for t in typing.get_args(kind) or (kind,) if t is not types.NoneType)
        group.add_argument("--" + field.name.replace("_", "-"), **options)


def read_settings(
    parser: argparse.ArgumentParser, config_class: type[Config], argv: list[str] | None = None
) -> tuple[argparse.Namespace, Config]:
    """Parses the command line; a ``--config`` file gives the defaults of this call.

    Args:
        parser: A parser with ``--config`` and the fields of ``config_class``.
        config_class: The dataclass to fill.
        argv: Arguments; None: those of the process.

    Returns:
        All settings, and the dataclass made of those that are its own.

    Raises:
        ValueError: If the file is no mapping or names an unknown setting.
    """
    config_file = parser.parse_known_args(argv)[0].config
    if config_file is not None:
        parser.set_defaults(**_read_yaml(config_file, {a.dest: a for a in parser._actions}))
    args = parser.parse_args(argv)
    names = {field.name for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    return args, config_class(**{name: getattr(args, name) for name in names})


def write_settings(path: Path, args: argparse.Namespace) -> None:
    """Writes all settings of a run as YAML that ``--config`` takes again."""
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    settings.pop("config")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, yaml.safe_dump(settings, sort_keys=True))


def _read_yaml(path: Path, actions: dict[str, argparse.Action]) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        where = f" in line {place.line + 1}" if place is not None else ""
        raise ValueError(f"{path} is no YAML{where}; write lines like 'epochs: 200'.") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} is no mapping of settings; write lines like 'epochs: 200'.")
    for key, value in settings.items():
        if key not in actions or key in ("config", "help"):
            near = difflib.get_close_matches(str(key), actions, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(actions))}."
            raise ValueError(f"{path} has an unknown setting {key!r}; {hint}")
        # YAML reads 5e-4 as text; the flag's own type makes it a number
        kind = actions[key].type
        if kind is not None and value is not None and callable(kind):
            try:
                settings[key] = kind(value)
            except (ValueError, TypeError) as error:
                wanted = getattr(kind, "__name__", str(kind))
                raise ValueError(f"{path} has {key}: {value!r}, but {key} is of type {wanted}.") from error
    return settings


def _attribute_docs(config_class: type) -> dict[str, str]:
    """Reads the "Attributes:" part of a Google-style docstring."""
    docs: dict[str, str] = {}
    name = ""
    for line in (config_class.__doc__ or "").split("Attributes:")[-1].splitlines():
        if line.startswith(" " * 8) and not line.startswith(" " * 9) and ":" in line:
            name, text = line.strip().split(":", 1)
            docs[name] = text.strip()
        elif line.startswith(" " * 12) and name:
            docs[name] += " " + line.strip()
    return docs
