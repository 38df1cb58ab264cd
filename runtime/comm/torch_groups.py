"""Collectives of torch.distributed, over gloo or NCCL."""

from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class TorchGroup:
    """A process group of torch, with its members in the order of the plan."""

    handle: dist.ProcessGroup
    ranks: tuple[int, ...]

    def broadcast(self, tensor: Tensor, source: int) -> None:
        dist.broadcast(tensor, source, group=self.handle)

    def all_reduce(self, tensor: Tensor) -> None:
        dist.all_reduce(tensor, group=self.handle)

    def all_gather(self, own: Tensor, out: Tensor) -> None:
        # torch numbers a group's members in ascending order
        rows = [out[self.ranks.index(rank)] for rank in sorted(self.ranks)]
        dist.all_gather(rows, own, group=self.handle)
