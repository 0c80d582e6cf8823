"""MoCo v1 and v2: momentum encoder, queue, InfoNCE."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from simco_zoo.distributed import broadcast, gather_rows, rank, world_size
from simco_zoo.losses import info_nce
from simco_zoo.models.contrastive import check_views, contrast_report, mean_over_pairs
from simco_zoo.models.momentum import KeyEncoder, MomentumModel
from simco_zoo.models.split_batch_norm import split_batch_norm


class MoCo(MomentumModel):
    """MoCo v2 ("Improved Baselines with Momentum Contrastive Learning", 2020) as the paper runs it on small images.

    The negatives of a query are the keys in the queue, those of earlier steps. ``mocov1`` is the same with a linear
    projector and temperature 0.07 ("Momentum Contrast", CVPR 2020).

    Args:
        backbone: A timm model.
        temperature: Temperature of InfoNCE, > 0.
        momentum: Momentum of the key encoder, in [0, 1].
        queue_size: Number K of keys in the queue; best well below the number of images, or the queue holds older keys
            of the query's own image as negatives. The paper's 65,536 is longer than CIFAR.
        symmetric: Average both directions; both see the same queue, then both views' keys enter it.
        joint_bn: Where both views pass an encoder, one forward of 2N rather than two of N.
        bn_splits: Batch norm over this many parts of the batch, with shuffled keys, as several devices would have it
            (MoCo section 3.3); 1 is ordinary batch norm.
        proj_hidden_dim: Width of the projector's hidden layer; ``None`` for MoCo v1's linear projector.
        proj_dim: Length of the projection.

    Raises:
        ValueError: If an argument is out of its range, or ``bn_splits`` > 1 and the backbone has no ``BatchNorm2d``.
    """

    method = "mocov2"
    queue: Tensor | None
    queue_pointer: Tensor | None

    def __init__(
        self,
        backbone: nn.Module,
        *,
        temperature: float = 0.1,
        momentum: float = 0.99,
        queue_size: int = 4096,
        symmetric: bool = False,
        joint_bn: bool = True,
        bn_splits: int = 1,
        proj_hidden_dim: int | None = 128,
        proj_dim: int = 128,
    ) -> None:
        if bn_splits != 1:
            split_batch_norm(backbone, bn_splits)
        super().__init__(
            backbone,
            momentum=momentum,
            temperature=temperature,
            symmetric=symmetric,
            joint_bn=joint_bn,
            proj_hidden_dim=proj_hidden_dim,
            proj_dim=proj_dim,
        )
        if queue_size < 1:
            raise ValueError(f"queue_size is {queue_size}, but the queue holds at least 1 key.")
        self.queue_size = queue_size
        self.bn_splits = bn_splits
        self.register_buffer("queue", None)
        self.register_buffer("queue_pointer", None)

    def contrast(
        self, view1: Tensor, view2: Tensor, *more: Tensor, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Computes InfoNCE against the queue.

        In training mode the key encoder makes its step before the keys are made, and the keys enter the queue after
        the loss. Where ``across_processes`` is set, those of all processes enter, in rank order, on every process.

        Args:
            view1: Images (N, C, H, W); the queries.
            view2: The same images in another view; the keys.
            *more: Further views of the same images; more keys, and with ``symmetric`` more queries too.
            generator: Source of the keys' shuffle, where there is one; torch's default generator if None.

        Returns:
            ``loss`` (differentiable scalar) and the detached scalars of ``contrast_report``.

        Raises:
            ValueError: If the views' shapes differ.
        """
        views = check_views(view1, view2, *more)
        key_encoder = self.update_key_encoder()
        features: list[Tensor] | None = [] if self.report_features else None
        query_views = views if self.symmetric else views[:1]
        key_views = views if self.symmetric else views[1:]
        with torch.no_grad():
            keys = self._keys(key_encoder, *key_views, generator=generator)  # (N, D) per key view
        queries = self.embed_views(self, *query_views, features=features)  # (N, D) per query view
        positives = keys[1] if self.symmetric else keys[0]  # view 2's, for the report
        loss = partial(info_nce, negatives=self.queue, temperature=self.temperature, check=False)
        total = mean_over_pairs(loss, queries, keys, same_views=self.symmetric)
        if self.training:
            self._enqueue(torch.cat(self.gather_keys(*keys)[0]))
        return contrast_report(total, queries[0], positives, features)

    def _keys(
        self, key_encoder: KeyEncoder, *views: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, ...]:
        """Embeds views as keys, shuffled within each view so that a key's batch-norm part is not its query's.

        The parts are those of ``bn_splits`` and, unless batch norm is synchronized, the processes' (MoCo section 3.3).
        """
        processes = world_size() if self.across_processes else 1
        apart = self.bn_splits > 1 or (processes > 1 and _normalizes_apart(key_encoder))
        if not (apart and self.training):
            return self.embed_views(key_encoder, *views)
        n, device = len(views[0]), views[0].device
        drawn_on = generator.device if generator is not None else device
        own = slice(rank() * n, (rank() + 1) * n) if processes > 1 else slice(None)
        orders, shuffled = [], []
        for view in views:
            order = torch.randperm(n * processes, generator=generator, device=drawn_on).to(device)
            images = view
            if processes > 1:
                order, images = broadcast(order), gather_rows(view)
            orders.append(order)
            # the gather lays the images out anew
            shuffled.append(torch.empty_like(view).copy_(images[order[own]]))
        keys = self.embed_views(key_encoder, *shuffled)
        if processes > 1:
            keys = tuple(gather_rows(k) for k in keys)
        return tuple(k[torch.argsort(order)[own]] for k, order in zip(keys, orders, strict=True))

    def init_key_encoder(self) -> None:
        """Makes the key encoder and the queue (random unit rows, always the same), unless they are there already."""
        super().init_key_encoder()
        if self.queue is None:
            weight = next(self.projector.parameters())
            rows = torch.randn(self.queue_size, self.proj_dim, generator=torch.Generator().manual_seed(0))
            self.queue = F.normalize(rows, dim=1).to(weight.device, torch.promote_types(weight.dtype, torch.float32))
            self.queue_pointer = torch.zeros((), dtype=torch.long, device=weight.device)

    @torch.no_grad()
    def _enqueue(self, keys: Tensor) -> None:
        """Writes keys (N, D) over the oldest ones; any N, wrapping at the end."""
        assert self.queue is not None and self.queue_pointer is not None
        keys = keys[-self.queue_size :]
        # the pointer stays on the device: no synchronization
        slots = (self.queue_pointer + torch.arange(len(keys), device=keys.device)) % self.queue_size
        self.queue.index_copy_(0, slots, keys.to(self.queue.dtype))
        self.queue_pointer.copy_((self.queue_pointer + len(keys)) % self.queue_size)


def _normalizes_apart(module: nn.Module) -> bool:
    """Whether batch norm sees one process's images only."""
    return any(isinstance(m, _BatchNorm) and not isinstance(m, nn.SyncBatchNorm) for m in module.modules())


class MoCoV1(MoCo):
    """MoCo v1 ("Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020).

    The same as ``MoCo`` with a linear projector and temperature 0.07; see there for the arguments.
    """

    method = "mocov1"

    def __init__(
        self,
        backbone: nn.Module,
        *,
        temperature: float = 0.07,
        proj_hidden_dim: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, temperature=temperature, proj_hidden_dim=proj_hidden_dim, **kwargs)
