"""The losses as modules: options in the constructor, tensors in the call.

====================================  ==========================================================================
:class:`TripletMarginLoss`            pre-formed triplets: anchor, positive, negative
:class:`ContrastiveLoss`              pre-formed pairs
:class:`BatchAllTripletLoss`          every triplet of a labelled batch
:class:`BatchHardTripletLoss`         for each anchor its farthest positive and its nearest negative
:class:`BatchSemiHardTripletLoss`     for each anchor and positive the nearest negative beyond the positive
:class:`BatchNegativeTripletLoss`     for each anchor and positive one negative, chosen as asked
:class:`BatchContrastiveLoss`         all pairs of a labelled batch
====================================  ==========================================================================

>>> loss_fn = tercet.losses.BatchHardTripletLoss(margin=0.3, distance="cosine")
>>> loss = loss_fn(encoder(images), labels)
>>> loss.backward()

A loss over a batch takes a reference set, too (``loss_fn(embeddings, labels, reference)``, see :class:`tercet.Reference`), and
gives statistics with ``return_stats=True``. :class:`tercet.CrossBatchMemory` keeps the embeddings of earlier batches as such a
set, and :class:`tercet.DistributedLoss` takes the batches of all processes as one.

The names and defaults are those of the Rust crate; :mod:`tercet.functional` has the definitions, and documents the options.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from . import functional as F
from .functional import Distance, MeanOver, PairedDistance, Precision, Reduction, Reference, Stats

__all__ = [
    "BatchAllTripletLoss",
    "BatchContrastiveLoss",
    "BatchHardTripletLoss",
    "BatchNegativeTripletLoss",
    "BatchSemiHardTripletLoss",
    "ContrastiveLoss",
    "MinedLoss",
    "TripletMarginLoss",
]


class _Loss(nn.Module):
    """A module whose options, the parameters of its constructor, are its attributes."""

    _options: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls) and not cls._options:  # a user's subclass has its own parameters
            cls._options = tuple(inspect.signature(cls.__init__).parameters)[1:]

    def options(self) -> dict[str, Any]:
        """The options by name."""
        return {name: getattr(self, name) for name in self._options}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options().items())


class MinedLoss(_Loss):
    """A loss that finds its pairs or triplets itself, by the labels of a batch."""

    reduction: Reduction
    _function: ClassVar[Callable[..., Any]]

    def forward(
        self, embeddings: Tensor, labels: Tensor, reference: Reference | None = None, *, return_stats: bool = False
    ) -> Tensor | tuple[Tensor, Stats]:
        """The loss of embeddings ``[N, D]`` with labels ``[N]``: a scalar, or with ``reduction="none"`` ``[N]``.

        Positives and negatives come from ``reference``, if there is one; with ``return_stats`` the statistics are returned,
        too.
        """
        return self._function(embeddings, labels, reference, return_stats=return_stats, **self.options())


class TripletMarginLoss(_Loss):
    """``max(d(anchor, positive) - d(anchor, negative) + margin, 0)``; see :func:`tercet.functional.triplet_margin`."""

    def __init__(
        self,
        margin: float = 0.2,
        distance: PairedDistance = "squared_euclidean",
        normalize: bool = False,
        swap: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.margin, self.distance, self.normalize, self.swap, self.reduction = (
            margin,
            distance,
            normalize,
            swap,
            reduction,
        )

    @classmethod
    def torch(cls, **options: Any) -> TripletMarginLoss:
        """The loss with the defaults of ``torch.nn.TripletMarginLoss``: margin 1, :class:`tercet.Lp`."""
        return cls(**{"margin": 1.0, "distance": F.Lp(), **options})

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """The loss of rows ``[B, D]``: a scalar, or with ``reduction="none"`` ``[B]``."""
        return F.triplet_margin(anchor, positive, negative, **self.options())


class ContrastiveLoss(_Loss):
    """``d^2 / 2`` for pairs that belong together, ``max(margin - d, 0)^2 / 2`` for others; see
    :func:`tercet.functional.contrastive`."""

    def __init__(
        self,
        margin: float = 1.0,
        distance: PairedDistance = "euclidean",
        normalize: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.margin, self.distance, self.normalize, self.reduction = margin, distance, normalize, reduction

    def forward(self, x1: Tensor, x2: Tensor, same: Tensor) -> Tensor:
        """The loss of rows ``[B, D]``, of which ``same``, ``[B]``, says whether they belong together."""
        return F.contrastive(x1, x2, same, **self.options())


class BatchAllTripletLoss(MinedLoss):
    """Every triplet of a batch; see :func:`tercet.functional.batch_all`."""

    _function = staticmethod(F.batch_all)

    def __init__(
        self,
        margin: float = 0.2,
        distance: Distance = "squared_euclidean",
        normalize: bool = False,
        reduction: Literal["mean", "sum"] = "mean",
        mean_over: MeanOver = "active",
        precision: Precision = "highest",
        pairs_at_once: int | None = None,
    ) -> None:
        super().__init__()
        self.margin, self.distance, self.normalize = margin, distance, normalize
        self.reduction, self.mean_over, self.precision = reduction, mean_over, precision
        self.pairs_at_once = pairs_at_once


class BatchHardTripletLoss(MinedLoss):
    """The farthest positive and the nearest negative of each anchor; see :func:`tercet.functional.batch_hard`."""

    _function = staticmethod(F.batch_hard)

    def __init__(
        self,
        margin: float = 0.2,
        distance: Distance = "squared_euclidean",
        normalize: bool = False,
        soft_margin: bool = False,
        reduction: Reduction = "mean",
        precision: Precision = "highest",
    ) -> None:
        super().__init__()
        self.margin, self.distance, self.normalize = margin, distance, normalize
        self.soft_margin, self.reduction, self.precision = soft_margin, reduction, precision


class BatchSemiHardTripletLoss(MinedLoss):
    """For each anchor and positive the nearest negative beyond the positive; see
    :func:`tercet.functional.batch_semi_hard`."""

    _function = staticmethod(F.batch_semi_hard)

    def __init__(
        self,
        margin: float = 0.2,
        distance: Distance = "squared_euclidean",
        normalize: bool = False,
        reduction: Reduction = "mean",
        precision: Precision = "highest",
        pairs_at_once: int | None = None,
    ) -> None:
        super().__init__()
        self.margin, self.distance, self.normalize = margin, distance, normalize
        self.reduction, self.precision, self.pairs_at_once = reduction, precision, pairs_at_once


class BatchNegativeTripletLoss(MinedLoss):
    """For each anchor and positive one negative, chosen as asked; see :func:`tercet.functional.batch_negative`."""

    _function = staticmethod(F.batch_negative)

    def __init__(
        self,
        margin: float = 0.2,
        negative: Literal["hardest", "random", "semi_hard"] = "semi_hard",
        pairs: Literal["ordered", "once"] = "ordered",
        seed: int = 0,
        distance: Distance = "squared_euclidean",
        normalize: bool = False,
        reduction: Reduction = "mean",
        precision: Precision = "highest",
        pairs_at_once: int | None = None,
    ) -> None:
        super().__init__()
        self.margin, self.negative, self.pairs, self.seed = margin, negative, pairs, seed
        self.distance, self.normalize, self.reduction = distance, normalize, reduction
        self.precision, self.pairs_at_once = precision, pairs_at_once

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        reference: Reference | None = None,
        step: int | Tensor | None = None,
        *,
        return_stats: bool = False,
    ) -> Tensor | tuple[Tensor, Stats]:
        """The loss of embeddings ``[N, D]`` with labels ``[N]``, with the draws of ``step``."""
        call: dict[str, Any] = {"return_stats": return_stats, **self.options()}
        return self._function(embeddings, labels, reference, step, **call)


class BatchContrastiveLoss(MinedLoss):
    """All pairs of a batch; see :func:`tercet.functional.batch_contrastive`."""

    _function = staticmethod(F.batch_contrastive)

    def __init__(
        self,
        margin: float = 1.0,
        distance: Distance = "euclidean",
        normalize: bool = False,
        negatives: Literal["all", "hardest"] = "all",
        power: Literal[1, 2] = 2,
        pos_margin: float = 0.0,
        reduction: Reduction = "mean",
        mean_over: MeanOver = "valid",
        means_apart: bool = False,
        precision: Precision = "highest",
    ) -> None:
        super().__init__()
        self.margin, self.distance, self.normalize = margin, distance, normalize
        self.negatives, self.power, self.pos_margin = negatives, power, pos_margin
        self.reduction, self.mean_over, self.means_apart = reduction, mean_over, means_apart
        self.precision = precision
