"""Settings from the command line and from YAML: a flag for every field of a config dataclass, and of every method."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib
import inspect
import os
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from simco_zoo.files import write_text
from simco_zoo.models.methods import METHODS, argument_help, method_arguments

Config = TypeVar("Config")

CONFIGS = Path(__file__).parent / "configs"  # of the package; recipes/configs is the same folder


def add_settings(group: Any, config_class: type) -> None:
    """Adds ``--field-name`` for each field of a config dataclass; help comes from its docstring's attributes.

    Args:
        group: An argparse parser or argument group.
        config_class: A dataclass whose fields have defaults and plain types.
    """
    hints, helps = typing.get_type_hints(config_class), _attribute_docs(config_class)
    for field in dataclasses.fields(config_class):
        text = helps[field.name]
        if "default:" not in text.lower():
            text += f" Default: {field.default}."
        add_flag(group, field.name, hints[field.name], text, field.default)


def add_method_settings(group: Any, stated: Mapping[str, str] | None = None) -> None:
    """Adds a flag for every argument of every registered method; its help states each method's default.

    A flag that is not given is None, so that the method's own default counts.

    Args:
        group: An argparse parser or argument group.
        stated: Argument -> its default in words, where the command chooses another than the method.
    """
    defaults: dict[str, dict[Any, list[str]]] = {}
    kinds: dict[str, Any] = {}
    helps: dict[str, str] = {}
    for name, method in METHODS.items():
        texts = argument_help(method.cls)
        for argument, parameter in method_arguments(method.cls).items():
            defaults.setdefault(argument, {}).setdefault(parameter.default, []).append(name)
            kinds.setdefault(argument, parameter.annotation)
            helps[argument] = helps.get(argument) or texts.get(argument, "")
    for argument, names in defaults.items():
        # where all methods agree the value says enough
        alike = len(names) == 1 and len(*names.values()) == len(METHODS)
        values = ", ".join(str(v) if alike else f"{v} ({', '.join(those)})" for v, those in names.items())
        text = f"{helps[argument]} Default: {(stated or {}).get(argument, values)}."
        add_flag(group, argument, kinds[argument], text.strip(), None)


def add_flag(group: Any, name: str, kind: Any, text: str, default: Any) -> None:
    """Adds one flag.

    Args:
        group: An argparse parser or argument group.
        name: Name of the setting.
        kind: bool, a type made from text, a Literal of texts, a tuple of one type, or one of these or None.
        text: Help.
        default: Value if the flag is not given.
    """
    options: dict[str, Any] = {"default": default, "help": text.replace("%", "%%")}
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    plain = next(t for t in (typing.get_args(kind) if union else (kind,)) if t is not types.NoneType)
    if plain is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif typing.get_origin(plain) is typing.Literal:
        options["choices"] = typing.get_args(plain)
    elif typing.get_origin(plain) is tuple:
        options.update(type=typing.get_args(plain)[0], nargs=len(typing.get_args(plain)))
    else:
        options["type"] = plain
    group.add_argument("--" + name.replace("_", "-"), **options)


def add_config(group: Any) -> None:
    """Adds ``--config``."""
    text = "YAML file with any of these settings (underscores for dashes), or the name of one that comes with the "
    group.add_argument("--config", metavar="FILE|NAME", help=f"{text}package, e.g. cifar100/simco_r18")


def add_import(group: Any) -> None:
    """Adds ``--import``, which runs a module that registers methods."""
    text = "module that registers a method of yours (simco_zoo.register_method), imported first"
    group.add_argument("--import", action=_ImportModule, metavar="MODULE", help=text)


class _ImportModule(argparse.Action):
    """An action, not a type: argparse would replace the errors of the module by its own."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, import_module(values))


def import_module(name: str) -> str:
    """Imports a module, also from the working directory, and returns its name."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.split(".")[0] and error.name != name:
            raise
        raise ValueError(f"--import {name}: no module of that name is in this folder or installed.") from error
    return name


def import_first(argv: list[str] | None = None) -> None:
    """Imports what ``--import``, or the config file, names: the flags of methods depend on it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_config(parser)
    add_import(parser)
    args = parser.parse_known_args(argv)[0]
    if args.config is not None:
        name = _load_yaml(find_config(args.config)).get("import")
        if name is not None:
            import_module(str(name))


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
        ValueError: If the file holds no mapping, names an unknown setting or has a value of another type.
    """
    config_file = parser.parse_known_args(argv)[0].config
    if config_file is not None:
        path = find_config(config_file)
        parser.set_defaults(**_typed(_load_yaml(path), {a.dest: a for a in parser._actions}, path))
    args = parser.parse_args(argv)
    names = {field.name for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    return args, config_class(**{name: getattr(args, name) for name in names})


def find_config(name: str | Path) -> Path:
    """Returns a file of settings, given by its path or by its name in the package.

    Raises:
        ValueError: If there is neither.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    packaged = CONFIGS / f"{str(name).removesuffix('.yaml')}.yaml"
    if packaged.is_file():
        return packaged
    names = sorted(file.relative_to(CONFIGS).with_suffix("").as_posix() for file in CONFIGS.rglob("*.yaml"))
    raise ValueError(f"no file {path} and no settings of that name exist; the names are {', '.join(names)}.")


def write_settings(path: Path, args: argparse.Namespace) -> None:
    """Writes all settings of a run as YAML that ``--config`` takes again."""
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    settings.pop("config")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, yaml.safe_dump(settings, sort_keys=True))


def place(text: str) -> str:
    """Reads a path or name as an argparse type: a leading ``~`` is the home directory, also after ``local-dir:``."""
    prefix = "local-dir:" if text.startswith("local-dir:") else ""
    return prefix + os.path.expanduser(text.removeprefix(prefix))


def local_path(text: str) -> Path:
    """Reads a path as an argparse type; a leading ``~`` is the home directory."""
    return Path(text).expanduser()


def _load_yaml(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        raise ValueError(f"{path} is no YAML{where}; write lines like 'epochs: 200'.") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} is not a mapping of settings; write lines like 'epochs: 200'.")
    return settings


def _typed(settings: dict[str, Any], actions: dict[str, argparse.Action], path: Path) -> dict[str, Any]:
    """Returns the settings of a file with the types that their flags have."""
    typed = {}
    for key, value in settings.items():
        if key not in actions or key in ("config", "help"):
            near = difflib.get_close_matches(str(key), actions, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(actions))}."
            raise ValueError(f"{path} has an unknown setting {key!r}; {hint}")
        try:
            typed[key] = _as_flag(value, actions[key])
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} has {key}: {value!r}, but {key} {_wanted(actions[key])}.") from error
    return typed


def _as_flag(value: Any, action: argparse.Action) -> Any:
    """Returns a value of YAML as its flag would read it; raises ValueError or TypeError if it cannot."""
    if value is None:
        if action.default is None:
            return None
        raise ValueError
    if action.nargs == 0:  # a flag without a value
        if not isinstance(value, bool):
            raise TypeError
        return value
    if isinstance(value, dict) and isinstance(action.default, dict):
        return value
    read: Any = action.type or str
    if isinstance(action.nargs, int) and isinstance(value, list) and len(value) == action.nargs:
        return [read(str(part)) for part in value]
    if isinstance(value, bool | dict | list) or isinstance(action.nargs, int):
        raise TypeError
    # by way of text, as on the command line: YAML reads 5e-4 as text, and int() would cut 3.7
    made = read(str(value))
    if action.choices is not None and made not in action.choices:
        raise ValueError
    return made


def _wanted(action: argparse.Action) -> str:
    """Says what values a flag takes, after "KEY "."""
    if action.nargs == 0:
        wanted = "is true or false, without quotes"
    elif action.choices is not None:
        wanted = f"is one of {', '.join(map(str, action.choices))}"
    elif isinstance(action.default, dict):
        wanted = "is a mapping of names to values"
    elif isinstance(action.nargs, int):
        wanted = f"is a list of {action.nargs} values"
    else:
        wanted = f"is of type {action.type.__name__ if isinstance(action.type, type) else 'text'}"
    return wanted if action.default is None else f"{wanted}; leave the line out for the default, {action.default}"


def _attribute_docs(config_class: type) -> dict[str, str]:
    """Reads "Attributes:" of the Google-style docstrings of a class and its bases: what is said about each field."""
    docs: dict[str, str] = {}
    for base in reversed(config_class.__mro__):
        name = ""
        for line in inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")[2].splitlines():
            if line and not line.startswith(" "):  # the next section
                break
            if line.startswith("    ") and not line.startswith("     ") and ":" in line:
                name, text = line.strip().split(":", 1)
                docs[name] = text.strip()
            elif line.strip() and name:
                docs[name] += " " + line.strip()
    return docs
