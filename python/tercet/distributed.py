"""The loss of a batch that several processes have a part of each."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .functional import Reference
from .losses import MinedLoss

__all__ = ["DistributedLoss"]


class DistributedLoss(nn.Module):
    """A loss of :mod:`tercet.losses` over the batches of all processes of a group, as one process would compute it on the
    concatenated batch.

    The value is the same in all processes. The gradient of each process's rows is that of the whole loss times the number of
    processes W: data-parallel training, which takes the *mean* over processes of the parameters' gradients, then has exactly
    the gradient of the loss. (Whoever sums them divides by W.)

    Args:
        loss_fn: the loss. ``reduction="none"`` is not taken.
        group: a group of ``torch.distributed``; ``None``: that of all processes.
        work: ``"shared"``: each process compares its own rows with all, and what they pull at others' rows is added up by a
            reduce-scatter. ``"repeated"``: each process computes the loss of the whole batch, and nothing is exchanged in
            backward; the results are to the bits those of one process. A ``BatchContrastiveLoss`` that selects over the whole
            batch (``negatives="hardest"``) or has two means (``means_apart=True``) is always computed so.

    Processes may have different numbers of rows, and none at all. Rows of 16 bits are gathered as they are, and computed and
    added up in float32.

    >>> loss_fn = tercet.DistributedLoss(tercet.losses.BatchHardTripletLoss())
    >>> loss_fn(ddp_encoder(images), labels).backward()
    """

    def __init__(
        self,
        loss_fn: MinedLoss,
        group: dist.ProcessGroup | None = None,
        work: Literal["shared", "repeated"] = "shared",
    ) -> None:
        super().__init__()
        if work not in ("shared", "repeated"):
            raise ValueError(f"work: expected 'shared' or 'repeated', got {work!r}")
        if getattr(loss_fn, "reduction", None) not in ("mean", "sum"):
            raise ValueError("loss_fn: expected a loss over a batch with reduction 'mean' or 'sum'")
        # A selection over the whole batch, and two means, are no sum over the anchors of each process.
        is_whole = getattr(loss_fn, "negatives", None) == "hardest" or getattr(loss_fn, "means_apart", False)
        self.loss_fn, self.group = loss_fn, group
        self.work = "repeated" if is_whole else work

    def forward(self, embeddings: Tensor, labels: Tensor, **call: Any) -> Tensor:
        """The loss of the batches of all processes, of which this one has ``embeddings`` ``[n, D]`` and ``labels`` ``[n]``."""
        sizes = _sizes(embeddings, self.group)
        rank, world = dist.get_rank(self.group), dist.get_world_size(self.group)
        if sum(sizes) == 0:
            raise ValueError("embeddings: expected at least one row in one of the processes, got none")
        first = sum(sizes[:rank])
        all_labels = _gathered(labels.to(torch.int64), sizes, self.group)
        # The arithmetic is float32 in any case; so the gradient of 16-bit rows is rounded once, after all has been added up.
        wide = embeddings if embeddings.dtype is torch.float64 else embeddings.float()
        if self.work == "repeated":
            rows = _Gather.apply(wide, embeddings.dtype, sizes, self.group, False)
            return self.loss_fn(rows, all_labels, **call)
        rows = _Gather.apply(wide, embeddings.dtype, sizes, self.group, True)
        value, count = self._part(
            wide, all_labels[first : first + sizes[rank]], Reference(rows, all_labels, first), call
        )
        totals = _gathered(torch.stack([value.detach().double(), count.double()])[None], [1] * world, self.group)
        total, terms = totals.sum(0).unbind()
        divisor = terms.clamp(min=1) if self.loss_fn.reduction == "mean" else torch.ones_like(terms)
        result = (total / divisor).to(value.dtype)
        # The value is the whole loss, and the gradient that of this process's part, W times as large.
        scaled = value * (world / divisor).to(value.dtype)
        return _ValueOf.apply(scaled, result)

    def _part(self, rows: Tensor, labels: Tensor, reference: Reference, call: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The sum over this process's anchors, and how many terms it has."""
        if rows.shape[0] == 0:
            # A loss of no rows, that takes part in the reduce-scatter of the others' gradients all the same.
            nothing = (reference.embeddings[:1] * 0.0).sum()
            return nothing, torch.zeros((), dtype=torch.int64, device=rows.device)
        before = self.loss_fn.reduction
        self.loss_fn.reduction = "sum"
        try:
            value, stats = self.loss_fn(rows, labels, reference, return_stats=True, **call)
        finally:
            self.loss_fn.reduction = before
        over_active = getattr(self.loss_fn, "mean_over", "valid") == "active"
        return value, stats.active if over_active else stats.valid


def _sizes(rows: Tensor, group: dist.ProcessGroup | None) -> list[int]:
    """How many rows each process has."""
    world = dist.get_world_size(group)
    own = torch.tensor([rows.shape[0]], dtype=torch.int64, device=rows.device)
    counts = [torch.empty_like(own) for _ in range(world)]
    dist.all_gather(counts, own, group=group)
    return [int(count) for count in torch.cat(counts).tolist()]


def _padded(rows: Tensor, most: int) -> Tensor:
    missing = most - rows.shape[0]
    return rows.contiguous() if missing == 0 else torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])])


def _gathered(rows: Tensor, sizes: list[int], group: dist.ProcessGroup | None) -> Tensor:
    """The rows of all processes, in the order of ranks: they travel padded to the most, and are cut out of the padding."""
    own = _padded(rows.detach(), max(sizes))
    parts = [torch.empty_like(own) for _ in sizes]
    dist.all_gather(parts, own, group=group)
    return torch.cat([part[:size] for part, size in zip(parts, sizes)])


class _Gather(torch.autograd.Function):
    """The rows of all processes, and its transpose: each process's gradient is the sum of what all have for its rows, or, where
    all compute the same loss, W times its own part of it."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        wire: torch.dtype,
        sizes: list[int],
        group: dist.ProcessGroup | None,
        adds_up: bool,
    ) -> Tensor:
        ctx.sizes, ctx.group, ctx.adds_up = sizes, group, adds_up
        return _gathered(rows.to(wire), sizes, group).to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = upstream
        sizes, rank = ctx.sizes, dist.get_rank(ctx.group)
        first, count = sum(sizes[:rank]), sizes[rank]
        if not ctx.adds_up:
            return grad[first : first + count] * len(sizes), None, None, None, None
        parts = [_padded(part, max(sizes)) for part in grad.split(sizes)]
        own = torch.empty_like(parts[rank])
        try:
            dist.reduce_scatter(own, parts, group=ctx.group)
        except (RuntimeError, ValueError):
            # A backend without it, as gloo was.
            whole = torch.cat(parts)
            dist.all_reduce(whole, group=ctx.group)
            own = whole[rank * max(sizes) : (rank + 1) * max(sizes)]
        return own[:count], None, None, None, None


class _ValueOf(torch.autograd.Function):
    """The value of one number with the gradient of another."""

    @staticmethod
    def forward(ctx: Any, scaled: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return upstream[0], None
