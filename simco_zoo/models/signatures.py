"""A method's arguments, read from the ``__init__`` signatures of its class and of the bases that it passes them to."""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from collections.abc import Iterable, Mapping
from typing import get_type_hints

__all__ = ["argument_help", "method_arguments", "unknown_argument"]


def method_arguments(cls: type) -> dict[str, inspect.Parameter]:
    """Returns the arguments of a method's class, without its backbone.

    An ``__init__`` that takes ``**kwargs`` passes them to its base, so the base's arguments count too. Those of a base
    come first, with the default that the class gives them.

    Args:
        cls: A ``ContrastiveModel`` or a subclass.

    Returns:
        Name -> parameter; its annotation is a type, not a string, and the default's type where there is none.

    Example:
        >>> from simco_zoo.models import SimCo
        >>> list(method_arguments(SimCo))
        ['temperature', 'symmetric', 'joint_bn', 'proj_hidden_dim', 'proj_dim', 'dt_m']
        >>> method_arguments(SimCo)["dt_m"].default
        10.0
    """
    return dict(_arguments_of(cls))


@functools.cache  # each load and each register asks for those of all methods
def _arguments_of(cls: type) -> dict[str, inspect.Parameter]:
    accepted: dict[str, inspect.Parameter] = {}
    order: list[str] = []
    chain = [base for base in cls.__mro__ if "__init__" in vars(base) and base.__module__.split(".")[0] != "torch"]
    open_ended = True
    for base in chain[: chain.index(object) if object in chain else None]:
        signature = inspect.signature(base.__init__)  # type: ignore[misc]  # of a class, not of an instance
        own = [p for p in list(signature.parameters.values())[2:] if p.kind is not p.VAR_KEYWORD]
        order = [p.name for p in own] + [name for name in order if name not in signature.parameters]
        if open_ended:
            hints = get_type_hints(base.__init__)  # type: ignore[misc]
            for parameter in own:
                hint = hints.get(parameter.name, type(parameter.default))
                accepted.setdefault(parameter.name, parameter.replace(annotation=hint))
            open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    return {name: accepted[name] for name in order if name in accepted}


def argument_help(cls: type) -> dict[str, str]:
    """Returns what the docstrings of a class and of its bases say of each argument, on one line each.

    Args:
        cls: A ``ContrastiveModel`` or a subclass, with Google-style docstrings.
    """
    texts: dict[str, str] = {}
    for base in cls.__mro__:
        part = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", inspect.cleandoc(base.__doc__ or ""), re.DOTALL | re.MULTILINE)
        for entry in re.split(r"\n(?=    \w)", part[1].rstrip()) if part else []:
            name, _, text = entry.partition(":")
            texts.setdefault(name.strip(), " ".join(text.split()))
    return texts


def unknown_argument(name: str, method: str, known: Iterable[str], owners: Mapping[str, Iterable[str]]) -> str:
    """Returns a sentence about an argument that a method does not have.

    Args:
        name: The argument.
        method: The method's name.
        known: The method's arguments.
        owners: Argument -> methods that have it.
    """
    known = list(known)
    others = list(owners.get(name, ()))
    if others:
        hint = f"{' and '.join(others)} {'have' if len(others) > 1 else 'has'} it"
    else:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "nor has its backbone"
    return f"{method} has no argument {name} ({hint}); its arguments are {', '.join(known)}."
