"""simco-zoo: contrastive backbones (SimCo, SimMoCo, MoCo) that train, publish and load in timm's manner."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from simco_zoo import hub, losses, models
from simco_zoo.models import create_model, list_models, register_method
from simco_zoo.version import __version__

if TYPE_CHECKING:
    from simco_zoo import data, evaluation, publishing, report, training
    from simco_zoo.evaluation import extract_features
    from simco_zoo.publishing import push_to_hub, save_pretrained

# what creating a model does not need is imported when it is first used
_PACKAGES = ("data", "evaluation", "publishing", "report", "training")
_FUNCTIONS = {"extract_features": "evaluation", "push_to_hub": "publishing", "save_pretrained": "publishing"}

__all__ = [
    "__version__",
    "create_model",
    "data",
    "evaluation",
    "extract_features",
    "hub",
    "list_models",
    "losses",
    "models",
    "publishing",
    "push_to_hub",
    "register_method",
    "report",
    "save_pretrained",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"simco_zoo.{name}")
    if name in _FUNCTIONS:
        return getattr(import_module(f"simco_zoo.{_FUNCTIONS[name]}"), name)
    raise AttributeError(f"module 'simco_zoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
