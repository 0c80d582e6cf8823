"""MoCo v1 and v2: momentum encoder, queue, InfoNCE."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from simco_zoo.distributed import world_size
from simco_zoo.losses import info_nce
from simco_zoo.models.contrastive import contrast_report, gather_keys, mean_over_pairs
from simco_zoo.models.hard_mixing import mix_negatives, mixed_info_nce
from simco_zoo.models.inputs import check_views
from simco_zoo.models.momentum import KeyEncoder, MomentumModel
from simco_zoo.models.queue import random_keys, write_keys
from simco_zoo.models.split_batch_norm import embed_shuffled, normalizes_apart, split_batch_norm


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
        joint_bn: Where several views go through an encoder, one forward for all rather than one for each.
        bn_splits: Batch norm over this many parts of the batch, with shuffled keys, as several devices would have it
            (MoCo section 3.3); 1 is ordinary batch norm.
        mix: Synthetic negatives (MoCHi, "Hard Negative Mixing for Contrastive Learning", NeurIPS 2020): a
            triple (hardest, pairs, query_mixes). Among the ``hardest`` negatives of each query, ``pairs`` are mixed
            with each other and ``query_mixes`` with the query, e.g. (1024, 1024, 128) with a queue of 16,384. None
            makes none.
        mix_warmup: Number of steps without synthetic negatives at the beginning.
        proj_hidden_dim: Width of the projector's hidden layer; ``None`` for MoCo v1's linear projector.
        proj_dim: Length of the projection.

    Raises:
        ValueError: If an argument is out of its range, or batch norm of the backbone cannot be split.

    Example:
        >>> import simco_zoo
        >>> model = simco_zoo.create_model("mocov2", backbone="test_resnet", queue_size=64)
        >>> report = model.contrast(torch.randn(4, 3, 32, 32), torch.randn(4, 3, 32, 32))
        >>> report["loss"].backward()
    """

    method = "mocov2"
    training_buffers = ("queue", "queue_pointer", "mix_steps")
    queue: Tensor | None
    queue_pointer: Tensor | None
    mix_steps: Tensor | None

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
        mix: tuple[int, int, int] | None = None,
        mix_warmup: int = 1000,
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
        self.mix = _checked_mix(mix, queue_size)
        if mix_warmup < 0:
            raise ValueError(f"mix_warmup is {mix_warmup}, but a number of steps is at least 0.")
        self.mix_warmup = mix_warmup
        for name in self.training_buffers:
            self.register_buffer(name, None)

    def contrast(
        self,
        view1: Tensor,
        view2: Tensor,
        *more: Tensor,
        generator: torch.Generator | None = None,
        across_processes: bool = False,
        hold_key_encoder: bool = False,
        report_features: bool = False,
    ) -> dict[str, Tensor]:
        """Computes InfoNCE against the queue.

        In training mode the key encoder is updated before the keys are made, and the keys enter the queue after the
        loss.

        Args:
            view1: Images (N, C, H, W); the queries.
            view2: The same images in another view; the keys.
            *more: Further views of the same images; more keys, and with ``symmetric`` more queries too.
            generator: Source of the keys' shuffle and of the synthetic negatives, where there are any; torch's default
                generator if None.
            across_processes: Put the keys of all processes into the queue of every process, in rank order.
            hold_key_encoder: Do not update the key encoder.
            report_features: Report the features of the query views.

        Returns:
            ``loss`` (differentiable scalar) and the detached scalars of ``contrast_report``.

        Raises:
            ValueError: If the views' shapes differ.
        """
        views = check_views(view1, view2, *more, in_chans=self.in_chans)
        query_views, key_views = (views, views) if self.symmetric else (views[:1], views[1:])
        key_encoder = self.update_key_encoder(hold=hold_key_encoder)
        with torch.no_grad():
            keys = self._embed_keys(key_encoder, key_views, generator, across_processes)  # (N, D) per key view
        queries, features = self.embed(self, *query_views)  # (N, D) and (N, num_features) per query view
        mixing = self.mix is not None and self._warmed_up(hold_key_encoder)
        loss = partial(self._loss, mixing=mixing, generator=generator)
        total = mean_over_pairs(loss, queries, keys, same_views=self.symmetric)  # a query meets the other views' keys
        if self.training:
            all_keys, _ = gather_keys(*keys) if across_processes else (keys, 0)  # (M, D), M = N x processes
            assert self.queue is not None and self.queue_pointer is not None
            write_keys(self.queue, self.queue_pointer, torch.cat(all_keys))
        positives = keys[1] if self.symmetric else keys[0]  # view 2's
        return contrast_report(total, queries[0], positives, features if report_features else None)

    def _loss(self, query: Tensor, key: Tensor, mixing: bool, generator: torch.Generator | None) -> Tensor:
        """Returns InfoNCE of queries and keys (N, D) against the queue (K, D), with synthetic negatives if mixing."""
        if not mixing:
            return info_nce(query, key, negatives=self.queue, temperature=self.temperature, check=False)
        assert self.queue is not None and self.mix is not None
        queue = self.queue.to(query.dtype, copy=True)  # the queue changes before the backward pass
        mixed = mix_negatives(query, queue, *self.mix, generator=generator)  # (N, pairs + query_mixes, D)
        return mixed_info_nce(query, key, queue, mixed, self.temperature)

    @torch.compiler.disable
    def _warmed_up(self, hold: bool) -> bool:
        """Whether the warm-up of mixing is over; in training mode one more step is counted, unless held."""
        assert self.mix_steps is not None
        warm = int(self.mix_steps) >= self.mix_warmup
        if self.training and not hold:
            self.mix_steps += 1
        return warm

    def _embed_keys(
        self,
        key_encoder: KeyEncoder,
        views: tuple[Tensor, ...],
        generator: torch.Generator | None,
        across_processes: bool,
    ) -> tuple[Tensor, ...]:
        """Embeds views as keys, shuffled where batch norm sees only a part of the images: a split, or a process."""

        def embed(*views: Tensor) -> tuple[Tensor, ...]:
            return self.embed(key_encoder, *key_encoder.cast(*views))[0]

        in_parts = self.bn_splits > 1 or (across_processes and world_size() > 1 and normalizes_apart(key_encoder))
        if not (in_parts and self.training):
            return embed(*views)
        return embed_shuffled(embed, *views, generator=generator, across_processes=across_processes)

    def loss_config(self) -> dict[str, float | str]:
        mixed = {} if self.mix is None else dict(zip(("hardest", "pairs", "query_mixes"), self.mix, strict=True))
        return {**super().loss_config(), **mixed}

    def init_key_encoder(self) -> None:
        """Makes the key encoder and the queue (random unit rows, always the same), unless they are there already."""
        super().init_key_encoder()
        if self.queue is None:
            weight = next(self.projector.parameters())
            rows = random_keys(self.queue_size, self.proj_dim)
            self.queue = rows.to(weight.device, torch.promote_types(weight.dtype, torch.float32))
            self.queue_pointer = torch.zeros((), dtype=torch.long, device=weight.device)
            if self.mix is not None:
                self.mix_steps = torch.zeros((), dtype=torch.long, device=weight.device)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the state as any module does, with the queue last.

        Queue and key encoder appear with the first ``contrast``. Where they come last, a copy that was made before,
        such as timm's ModelEmaV2, still finds its tensors in the same places.
        """
        state = super().state_dict(*args, **kwargs)
        for name in self.training_buffers:
            key = kwargs.get("prefix", "") + name
            if key in state:
                state.move_to_end(key)
        return state

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        if f"{prefix}queue" in state_dict:
            self.init_key_encoder()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _checked_mix(mix: Sequence[int] | None, queue_size: int) -> tuple[int, int, int] | None:
    """Returns the three numbers as a tuple; raises ValueError if they do not fit."""
    if mix is None:
        return None
    if len(mix) != 3 or min(mix) < 0 or not 1 <= mix[0] <= queue_size or mix[1] + mix[2] < 1:
        raise ValueError(
            f"mix is {mix}, but has to be (hardest, pairs, query_mixes): 1 to {queue_size} (queue_size) hardest "
            "negatives, and at least one mixture."
        )
    return mix[0], mix[1], mix[2]


class MoCoV1(MoCo):
    """MoCo v1 ("Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020).

    The same as ``MoCo`` with a linear projector and temperature 0.07; see there for the arguments.

    Example:
        >>> import simco_zoo
        >>> simco_zoo.create_model("mocov1", backbone="test_resnet").temperature
        0.07
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
