"""The hub: published folders, where they are found, how they are verified, and how a model becomes one."""

from simco_zoo.hub.errors import WeightsError
from simco_zoo.hub.folder import WeightsFolder
from simco_zoo.hub.publish import push_to_hub, save_pretrained
from simco_zoo.hub.weights import published, resolve

__all__ = ["WeightsError", "WeightsFolder", "published", "push_to_hub", "resolve", "save_pretrained"]
