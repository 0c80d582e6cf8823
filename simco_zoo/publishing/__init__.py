"""Publishing: a model becomes a folder, the folder a repository of the Hugging Face Hub."""

from simco_zoo.publishing.copy import copy_published
from simco_zoo.publishing.push import push_to_hub
from simco_zoo.publishing.register import register_publication
from simco_zoo.publishing.renew import renew_folder
from simco_zoo.publishing.save import save_pretrained

__all__ = ["copy_published", "push_to_hub", "register_publication", "renew_folder", "save_pretrained"]
