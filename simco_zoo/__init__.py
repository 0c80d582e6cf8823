"""simco-zoo: contrastive backbones (SimCo, SimMoCo, MoCo) that train, publish and load in timm's manner."""

from simco_zoo import data, evaluation, hub, losses, models, training
from simco_zoo.evaluation import extract_features
from simco_zoo.models import create_model, list_models, register_method
from simco_zoo.publishing import push_to_hub, save_pretrained
from simco_zoo.version import __version__

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
    "push_to_hub",
    "register_method",
    "save_pretrained",
    "training",
]
