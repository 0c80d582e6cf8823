"""A queue of keys: a buffer of rows of unit length, and a pointer to the oldest of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def random_keys(size: int, dim: int) -> Tensor:
    """Returns the keys (size, dim) that a queue begins with: random unit rows, always the same.

    Example:
        >>> random_keys(8, 4).norm(dim=1).allclose(torch.ones(8))
        True
    """
    return F.normalize(torch.randn(size, dim, generator=torch.Generator().manual_seed(0)), dim=1)


@torch.no_grad()
def write_keys(queue: Tensor, pointer: Tensor, keys: Tensor) -> None:
    """Writes keys (N, D) over the oldest rows of a queue (K, D), and moves the pointer; any N, wrapping at the end.

    Args:
        queue: The rows, changed in place.
        pointer: Row that is written next, an int64 scalar on the queue's device; changed in place.
        keys: New rows; of more than K the last K are kept.

    Example:
        >>> queue, pointer = torch.zeros(3, 2), torch.tensor(2)
        >>> write_keys(queue, pointer, torch.ones(2, 2))
        >>> queue[:, 0].tolist(), int(pointer)
        ([1.0, 0.0, 1.0], 1)
    """
    keys = keys[-len(queue) :]
    # the pointer stays on the device: no synchronization
    slots = (pointer + torch.arange(len(keys), device=keys.device)) % len(queue)
    queue.index_copy_(0, slots, keys.to(queue.dtype))
    pointer.copy_((pointer + len(keys)) % len(queue))
