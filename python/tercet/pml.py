"""Losses of pytorch-metric-learning, computed by Tercet: subclasses of the originals, with the same constructors.

>>> from tercet.pml import TripletMarginLoss
>>> loss = TripletMarginLoss(margin=0.1)(embeddings, labels)

:func:`tercet.patch` with ``"pytorch_metric_learning"`` puts them in the place of the originals.

==========================  ==========================================================================================
``TripletMarginLoss``       every triplet of the batch, or against ``ref_emb``, by :func:`tercet.functional.batch_all`; those of
                            an ``indices_tuple``, such as a miner's, by :func:`tercet.functional.triplet_margin`
``ContrastiveLoss``         all pairs of the batch, or against ``ref_emb``, by :func:`tercet.functional.batch_contrastive`
``CrossBatchMemory``        of one of these, without a miner: no list of pairs is made
==========================  ==========================================================================================

What is native: ``LpDistance`` with ``p=2`` and ``power`` 1 or 2, normalised or not, and ``CosineSimilarity``; the reducers
``AvgNonZeroReducer`` and ``MeanReducer``, of an ``indices_tuple`` any reducer; embedding regularisers, which stay the original's.
All else goes to the original, and :func:`tercet.report` counts it by reason: ``smooth_loss``, ``swap``, ``triplets_per_anchor``,
``collect_stats``, ``indices_tuple`` of ``ContrastiveLoss``, another distance or reducer.

Two things differ. Distances are computed without cancellation, so near pairs are exact where ``cdist`` is off. And a row with
NaN makes the loss NaN even if the batch has no triplet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytorch_metric_learning.losses as _losses
from pytorch_metric_learning.distances import CosineSimilarity, LpDistance
from pytorch_metric_learning.reducers import AvgNonZeroReducer, MeanReducer, MultipleReducers
from pytorch_metric_learning.utils.loss_and_miner_utils import convert_to_triplets
from torch import Tensor

from . import functional as F
from ._adapters import PassOn, Patches, check_tensors, counted
from ._report import count
from .functional import Distance, MeanOver

__all__ = ["ContrastiveLoss", "CrossBatchMemory", "TripletMarginLoss"]

# Numbers of the rows of a miner's triplets, for each of the three: with more the original's matrix of distances is smaller.
_MOST_GATHERED = 1 << 24
_MEAN_OVER: dict[type, MeanOver] = {AvgNonZeroReducer: "active", MeanReducer: "valid"}


class _AllPairs(Sequence[Tensor]):
    """The indices of all pairs of a batch and a memory, which are made only if somebody looks at them."""

    def __init__(self, make: Callable[[], tuple[Tensor, ...]], own: Tensor | None) -> None:
        self._make, self.own = make, own
        self._made: tuple[Tensor, ...] | None = None

    def indices(self) -> tuple[Tensor, ...]:
        if self._made is None:
            self._made = self._make()
        return self._made

    def __getitem__(self, place: Any) -> Any:
        return self.indices()[place]

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.indices())


def _distance(loss: Any) -> tuple[Distance, bool]:
    """The name of a loss's distance, and whether rows are normalised."""
    distance = loss.distance
    if distance.collect_stats:
        raise PassOn("collect_stats")
    if type(distance) is CosineSimilarity and distance.p == 2 and distance.power == 1:
        return "cosine", False
    if type(distance) is LpDistance and distance.p == 2 and distance.power in (1, 2):
        return "euclidean" if distance.power == 1 else "squared_euclidean", bool(distance.normalize_embeddings)
    raise PassOn("distance")


def _mean_over(loss: Any, names: list[str]) -> MeanOver:
    """What the means of these parts of a loss are over."""
    if loss.collect_stats:
        raise PassOn("collect_stats")
    reducers = [loss.reducer]
    if isinstance(loss.reducer, MultipleReducers):
        if type(loss.reducer) is not MultipleReducers or not all(name in loss.reducer.reducers for name in names):
            raise PassOn("reducer")
        reducers = [loss.reducer.reducers[name] for name in names]
    found = {_MEAN_OVER.get(type(reducer)) for reducer in reducers}
    mean_over = found.pop()
    if mean_over is None or found:
        raise PassOn("reducer")
    if any(reducer.collect_stats for reducer in reducers):
        raise PassOn("collect_stats")
    return mean_over


def _reference(
    embeddings: Tensor, labels: Tensor, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor
) -> F.Reference | None:
    own: Any = None
    if isinstance(indices_tuple, _AllPairs):
        own = indices_tuple.own
    elif indices_tuple is not None:
        raise PassOn("indices_tuple")
    elif ref_emb is embeddings and ref_labels is labels:
        return None
    elif ref_labels is labels:
        # The original takes equal places for the same row where the labels are the same tensor.
        own = 0
    if ref_labels is None or ref_emb.dtype != embeddings.dtype or ref_emb.device != embeddings.device:
        raise PassOn("dtype or device of ref_emb")
    check_tensors(ref_emb, ref_labels)
    return F.Reference(ref_emb, ref_labels.to(embeddings.device), own)


def _of_memory(indices_tuple: Any) -> None:
    if isinstance(indices_tuple, _AllPairs):
        count("pml.CrossBatchMemory", None)


def _reduced(loss: Tensor, embeddings: Tensor) -> dict[str, Any]:
    return {"losses": loss.to(embeddings.dtype), "indices": None, "reduction_type": "already_reduced"}


def _indices(indices_tuple: Any) -> Any:
    if isinstance(indices_tuple, _AllPairs):
        count("pml.CrossBatchMemory", "its loss was passed on")
        return indices_tuple.indices()
    return indices_tuple


class TripletMarginLoss(_losses.TripletMarginLoss):
    """``pytorch_metric_learning.losses.TripletMarginLoss``, natively where :mod:`tercet.pml` says."""

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor
    ) -> dict[str, Any]:
        """The loss as the reducer takes it."""

        def native() -> dict[str, Any]:
            if self.smooth_loss:
                raise PassOn("smooth_loss")
            if self.swap:
                raise PassOn("swap")
            if self.margin < 0:
                raise PassOn("margin")
            check_tensors(embeddings, labels)
            distance, normalize = _distance(self)
            if indices_tuple is not None and not isinstance(indices_tuple, _AllPairs):
                return self._of_triplets(embeddings, labels, indices_tuple, ref_emb, ref_labels, distance, normalize)
            if labels is None:
                raise PassOn("labels")
            if self.triplets_per_anchor != "all":
                raise PassOn("triplets_per_anchor")
            mean_over = _mean_over(self, ["loss"])
            loss = F.batch_all(
                embeddings,
                labels,
                _reference(embeddings, labels, indices_tuple, ref_emb, ref_labels),
                margin=self.margin,
                distance=distance,
                normalize=normalize,
                mean_over=mean_over,
            )
            _of_memory(indices_tuple)
            return {"loss": _reduced(loss, embeddings)}

        def original() -> dict[str, Any]:
            return super(TripletMarginLoss, self).compute_loss(
                embeddings, labels, _indices(indices_tuple), ref_emb, ref_labels
            )

        return counted("pml.TripletMarginLoss", native, original)

    def _of_triplets(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: Any,
        ref_emb: Tensor,
        ref_labels: Tensor,
        distance: Any,
        normalize: bool,
    ) -> dict[str, Any]:
        """The losses of the triplets of a miner: their rows are gathered, and each is a row of a paired loss."""
        triplets = convert_to_triplets(indices_tuple, labels, ref_labels, t_per_anchor=self.triplets_per_anchor)
        count = len(triplets[0])
        if count == 0:
            raise PassOn("no triplets")
        if count * embeddings.shape[1] > _MOST_GATHERED:
            raise PassOn("many triplets")
        if ref_emb.dtype != embeddings.dtype:
            raise PassOn("dtype or device of ref_emb")
        anchors, positives, negatives = triplets
        losses = F.triplet_margin(
            embeddings[anchors],
            ref_emb[positives],
            ref_emb[negatives],
            margin=self.margin,
            distance=distance,
            normalize=normalize,
            reduction="none",
        )
        return {
            "loss": {"losses": losses.to(embeddings.dtype), "indices": triplets, "reduction_type": "triplet"},
        }


class ContrastiveLoss(_losses.ContrastiveLoss):
    """``pytorch_metric_learning.losses.ContrastiveLoss``, natively where :mod:`tercet.pml` says."""

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor
    ) -> dict[str, Any]:
        """The losses as the reducers take them."""

        def native() -> dict[str, Any]:
            if labels is None:
                raise PassOn("labels")
            check_tensors(embeddings, labels)
            mean_over, (distance, normalize) = _mean_over(self, ["pos_loss", "neg_loss"]), _distance(self)
            pos_margin, margin = self.pos_margin, self.neg_margin
            if distance == "cosine":
                # Of similarities: max(m - s, 0) = max(d - (1 - m), 0).
                pos_margin, margin = 1 - pos_margin, 1 - margin
            if pos_margin < 0 or margin < 0:
                raise PassOn("margin")
            reference = _reference(embeddings, labels, indices_tuple, ref_emb, ref_labels)
            if reference is not None and embeddings.shape[0] * ref_emb.shape[0] <= 2:
                # The original takes no loss of one pair.
                raise PassOn("a pair or two")
            loss = F.batch_contrastive(
                embeddings,
                labels,
                reference,
                margin=margin,
                pos_margin=pos_margin,
                power=1,
                distance=distance,
                normalize=normalize,
                mean_over=mean_over,
                means_apart=True,
            )
            _of_memory(indices_tuple)
            # Both means are in the one number.
            return {"pos_loss": _reduced(loss, embeddings), "neg_loss": self.zero_loss()}

        def original() -> dict[str, Any]:
            return super(ContrastiveLoss, self).compute_loss(
                embeddings, labels, _indices(indices_tuple), ref_emb, ref_labels
            )

        return counted("pml.ContrastiveLoss", native, original)


class CrossBatchMemory(_losses.CrossBatchMemory):
    """``pytorch_metric_learning.losses.CrossBatchMemory``, natively where :mod:`tercet.pml` says."""

    def create_indices_tuple(
        self,
        embeddings: Tensor,
        labels: Tensor,
        E_mem: Tensor,
        L_mem: Tensor,
        input_indices_tuple: Any,
        do_remove_self_comparisons: bool,
    ) -> Any:
        """The indices of all pairs, which a native loss does not look at."""

        def make() -> tuple[Tensor, ...]:
            return super(CrossBatchMemory, self).create_indices_tuple(
                embeddings, labels, E_mem, L_mem, input_indices_tuple, do_remove_self_comparisons
            )

        reason = None
        if self.miner:
            reason = "miner"
        elif input_indices_tuple is not None:
            reason = "indices_tuple"
        elif not isinstance(self.loss, (TripletMarginLoss, ContrastiveLoss)):
            reason = "its loss is not native"
        if reason is not None:
            count("pml.CrossBatchMemory", reason)
            return make()
        return _AllPairs(make, self.curr_batch_idx if do_remove_self_comparisons else None)


_patches = Patches(
    "pytorch_metric_learning",
    {
        "TripletMarginLoss": TripletMarginLoss,
        "ContrastiveLoss": ContrastiveLoss,
        "CrossBatchMemory": CrossBatchMemory,
    },
)
patch, unpatch = _patches.patch, _patches.unpatch
