"""A memory of embeddings of earlier batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .functional import Reference
from .losses import MinedLoss

__all__ = ["CrossBatchMemory"]


class CrossBatchMemory(nn.Module):
    """The embeddings of the last batches with their labels, as a reference set: many more positives and negatives than a
    batch has, at the cost of a copy.

    ``forward`` puts the batch into the memory, over the oldest rows, and takes the loss of the batch against the memory:
    positives and negatives of a row are all rows of the memory except its own. The numbers are those of
    pytorch-metric-learning's class of this name, of "Cross-Batch Memory for Embedding Learning" (Wang, Zhang, Huang, Scott
    2020).

    Rows in the memory have no gradient, so a pair of two rows of the batch moves its anchor alone. Run backward before the
    next call, which writes over rows that a backward pass may read again. Between a call and its checkpoint nothing is lost:
    ``state_dict`` has the rows, their labels, and the place of the next one.

    Args:
        loss_fn: the loss, any of :mod:`tercet.losses` over a batch.
        capacity: how many rows there is room for.
        dim: the numbers in a row.
        warm_up: until so many rows are in the memory, ``forward`` is the loss of the batch itself.
        dtype, device: those of the embeddings.

    >>> memory = tercet.CrossBatchMemory(tercet.losses.BatchHardTripletLoss(), capacity=1024, dim=128)
    >>> memory(torch.randn(8, 128, requires_grad=True), torch.arange(8) // 2).backward()
    """

    embeddings: Tensor
    labels: Tensor

    def __init__(
        self,
        loss_fn: MinedLoss,
        capacity: int,
        dim: int,
        warm_up: int = 0,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("capacity", capacity), ("dim", dim)):
            if size < 1:
                raise ValueError(f"{name}: expected at least 1, got {size}")
        self.loss_fn = loss_fn
        self.register_buffer("embeddings", torch.zeros(capacity, dim, dtype=dtype, device=device))
        self.register_buffer("labels", torch.zeros(capacity, dtype=torch.int64, device=device))
        self.warm_up = min(warm_up, capacity)
        self._next = 0
        self._filled = 0

    def __len__(self) -> int:
        """How many rows are in the memory."""
        return self._filled

    @property
    def capacity(self) -> int:
        """How many rows there is room for."""
        return self.labels.shape[0]

    @property
    def is_warm(self) -> bool:
        """Whether the warm-up is over."""
        return self._filled >= self.warm_up

    def clear(self) -> None:
        """Forgets all rows; a warm-up begins again."""
        self._next = self._filled = 0

    @torch.no_grad()
    def enqueue(self, embeddings: Tensor, labels: Tensor) -> None:
        """Copies a batch, of any number of rows, over the oldest rows. Of one larger than the memory the last rows stay."""
        if embeddings.dim() != 2 or embeddings.shape[1] != self.embeddings.shape[1]:
            expected = f"[N, {self.embeddings.shape[1]}]"
            raise ValueError(f"embeddings: expected shape {expected}, got {list(embeddings.shape)}")
        if embeddings.dtype != self.embeddings.dtype or embeddings.device != self.embeddings.device:
            expected = f"{self.embeddings.dtype} on {self.embeddings.device}, as the memory"
            raise ValueError(f"embeddings: expected {expected}, got {embeddings.dtype} on {embeddings.device}")
        if labels.shape != embeddings.shape[:1]:
            raise ValueError(f"labels: expected shape [{embeddings.shape[0]}], got {list(labels.shape)}")
        rows, capacity = embeddings.shape[0], self.capacity
        start = max(rows - capacity, 0)
        to = (self._next + start) % capacity
        while start < rows:
            count = min(rows - start, capacity - to)
            self.embeddings[to : to + count] = embeddings[start : start + count]
            self.labels[to : to + count] = labels[start : start + count]
            start, to = start + count, (to + count) % capacity
        self._next = to
        self._filled = min(self._filled + rows, capacity)

    def newest(self, count: int) -> Tensor:
        """The places of the last ``count`` rows that were put into the memory; -1 for one that is no longer there."""
        back = torch.arange(count, 0, -1, device=self.labels.device)
        places = (self._next - back) % self.capacity
        return torch.where(back <= self._filled, places, -1)

    def reference(self, own: int | Tensor | None = None) -> Reference:
        """The rows in the memory as a reference set. For a batch of n rows that has just been put there, ``own`` is
        ``memory.newest(n)``."""
        return Reference(self.embeddings[: self._filled], self.labels[: self._filled], own)

    def forward(self, embeddings: Tensor, labels: Tensor, **call: Any) -> Any:
        """Puts the batch into the memory, and returns its loss against it; ``call`` is what else the loss takes."""
        self.enqueue(embeddings, labels)
        if not self.is_warm:
            return self.loss_fn(embeddings, labels, **call)
        return self.loss_fn(embeddings, labels, self.reference(self.newest(embeddings.shape[0])), **call)

    def get_extra_state(self) -> dict[str, int]:
        return {"next": self._next, "filled": self._filled}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self._next, self._filled = state["next"], state["filled"]

    def extra_repr(self) -> str:
        return f"capacity={self.capacity}, dim={self.embeddings.shape[1]}, warm_up={self.warm_up}"
