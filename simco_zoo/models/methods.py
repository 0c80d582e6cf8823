"""The table of methods. Everything that has to know a method by name reads it here.

A new method is one file with a subclass of ``ContrastiveModel`` and one row below; a method of your own is a class with
the decorator ``register_method``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from simco_zoo.models.contrastive import ContrastiveModel
from simco_zoo.models.moco import MoCo, MoCoV1
from simco_zoo.models.signatures import argument_help, method_arguments, unknown_argument
from simco_zoo.models.simclr import DCL, SimCLR
from simco_zoo.models.simco import SimCo
from simco_zoo.models.simmoco import SimMoCo
from simco_zoo.models.simsiam import SimSiam

__all__ = [
    "METHODS",
    "Method",
    "argument_help",
    "argument_owners",
    "method_arguments",
    "method_of",
    "method_title",
    "not_an_argument",
    "register_method",
    "split_arguments",
]

_Class = TypeVar("_Class", bound=type[ContrastiveModel])


@dataclass(frozen=True)
class Method:
    """A method as the command line, the model card and the tables know it.

    Attributes:
        name: What ``create_model`` and ``--model`` call it; the first part of its registered names.
        cls: Its class.
        title: Its name in texts.
        paper: Title, venue and arXiv number of its source; empty if there is none.
    """

    name: str
    cls: type[ContrastiveModel]
    title: str
    paper: str = ""


_SIMCO_PAPER = (
    '"Dual Temperature Helps Contrastive Learning Without Many Negative Samples: Towards Understanding and '
    'Simplifying MoCo" (CVPR 2022, arXiv:2203.17248)'
)
_MOCOV1_PAPER = '"Momentum Contrast for Unsupervised Visual Representation Learning" (CVPR 2020, arXiv:1911.05722)'
_MOCOV2_PAPER = '"Improved Baselines with Momentum Contrastive Learning" (2020, arXiv:2003.04297)'
_SIMCLR_PAPER = '"A Simple Framework for Contrastive Learning of Visual Representations" (ICML 2020, arXiv:2002.05709)'
_DCL_PAPER = '"Decoupled Contrastive Learning" (ECCV 2022, arXiv:2110.06848)'
_SIMSIAM_PAPER = '"Exploring Simple Siamese Representation Learning" (CVPR 2021, arXiv:2011.10566)'

METHODS: dict[str, Method] = {
    "simco": Method("simco", SimCo, "SimCo", _SIMCO_PAPER),
    "simmoco": Method("simmoco", SimMoCo, "SimMoCo", _SIMCO_PAPER),
    "mocov1": Method("mocov1", MoCoV1, "MoCo v1", _MOCOV1_PAPER),
    "mocov2": Method("mocov2", MoCo, "MoCo v2", _MOCOV2_PAPER),
    "simclr": Method("simclr", SimCLR, "SimCLR", _SIMCLR_PAPER),
    "dcl": Method("dcl", DCL, "DCL", _DCL_PAPER),
    "simsiam": Method("simsiam", SimSiam, "SimSiam", _SIMSIAM_PAPER),
}
_BUILT_IN = frozenset(METHODS)


def register_method(name: str, *, title: str | None = None, paper: str = "") -> Callable[[_Class], _Class]:
    """Registers a method of your own; it can then be used like the built-in ones.

    ``create_model(name, backbone=...)`` builds it, ``recipes/pretrain.py --model NAME --import MODULE`` trains it with
    a flag for each of its arguments, and its published folder loads again once the module is imported. Every argument
    of ``__init__`` has a default and is kept as an attribute of the same name, from which ``method_config`` reads it.
    ``contrast`` returns a dict with at least ``loss``, a differentiable scalar; other entries are logged.

    Args:
        name: A lower-case name, e.g. "mine".
        title: Its name in texts; default: the name of the class.
        paper: Title, venue and arXiv number of its source, for the model card.

    Returns:
        A decorator for a subclass of ``ContrastiveModel``.

    Raises:
        ValueError: If the name is taken or not lower-case, or the class cannot be built from plain arguments.

    Example:
        >>> import simco_zoo
        >>> @simco_zoo.register_method("align", title="Alignment")
        ... class Align(simco_zoo.models.ContrastiveModel):
        ...     def __init__(self, backbone, *, power: float = 2.0, **kwargs):
        ...         super().__init__(backbone, **kwargs)
        ...         self.power = power
        ...
        ...     def contrast(self, view1, view2, **options):
        ...         z1, z2 = self.project(view1), self.project(view2)
        ...         return {"loss": (z1 - z2).norm(dim=1).pow(self.power).mean()}
        >>> model = simco_zoo.create_model("align", backbone="test_resnet", power=1.0)
        >>> model.method_config()["power"]
        1.0
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"a method's name has lower-case letters, digits and underscores, but not {name!r}.")

    def register(cls: _Class) -> _Class:
        if not (isinstance(cls, type) and issubclass(cls, ContrastiveModel)):
            raise ValueError(f"{cls!r} is not a subclass of simco_zoo.models.ContrastiveModel.")
        known = METHODS.get(name)
        # a module may be read twice, and a notebook's cell run again
        again = known is not None and _full_name(known.cls) == _full_name(cls)
        if name in _BUILT_IN or (known is not None and not again):
            raise ValueError(f"there is a method {name!r} already; choose another name for {cls.__name__}.")
        bare = [n for n, p in method_arguments(cls).items() if p.default is p.empty or p.kind is p.VAR_POSITIONAL]
        if bare:
            raise ValueError(f"{cls.__name__}.__init__ has no default for {', '.join(bare)}; give each argument one.")
        cls.method = name
        METHODS[name] = Method(name, cls, title or cls.__name__, paper)
        return cls

    return register


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def method_of(architecture: str) -> Method:
    """Returns the method of a registered name, e.g. of "simco_r18"."""
    return METHODS[architecture.split("_")[0]]


def method_title(name: str) -> str:
    """Returns how a text writes a method; the name itself for one that is not registered here."""
    return METHODS[name].title if name in METHODS else name


def argument_owners() -> dict[str, list[str]]:
    """Returns the arguments of all methods, each with the names of the methods that have it."""
    owners: dict[str, list[str]] = {}
    for method in METHODS.values():
        for argument in method_arguments(method.cls):
            owners.setdefault(argument, []).append(method.name)
    return owners


def split_arguments(cls: type[ContrastiveModel], arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits keyword arguments into those of a method and those of its backbone.

    Args:
        cls: The method's class.
        arguments: Keyword arguments of both.

    Returns:
        The method's arguments, and the rest.

    Raises:
        ValueError: If an argument belongs to other methods only.
    """
    known, owners = method_arguments(cls), argument_owners()
    for name in arguments:
        if name not in known and name in owners:
            raise ValueError(unknown_argument(name, cls.method, known, owners))
    own = {name: value for name, value in arguments.items() if name in known}
    return own, {name: value for name, value in arguments.items() if name not in known}


def not_an_argument(error: TypeError, cls: type[ContrastiveModel], arguments: dict[str, Any]) -> ValueError | None:
    """Turns a backbone's complaint about an argument into a sentence that names what was meant.

    Args:
        error: What building the backbone raised.
        cls: The method's class.
        arguments: What was passed on to the backbone.

    Returns:
        The error to raise, None if ``error`` is not about one of the arguments.
    """
    found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if found is None or found[1] not in arguments:
        return None
    return ValueError(unknown_argument(found[1], cls.method, method_arguments(cls), {}))
