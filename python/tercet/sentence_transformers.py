"""Losses of sentence-transformers, computed by Tercet: subclasses of the originals, with the same constructors.

>>> from tercet.sentence_transformers import BatchHardTripletLoss
>>> loss = BatchHardTripletLoss(model, margin=0.5)

:func:`tercet.patch` with ``"sentence_transformers"`` puts them in the place of the originals.

==================================  ======================================================
``BatchAllTripletLoss``             by :func:`tercet.functional.batch_all`
``BatchHardTripletLoss``            by :func:`tercet.functional.batch_hard`
``BatchHardSoftMarginTripletLoss``  by :func:`tercet.functional.batch_hard`
``BatchSemiHardTripletLoss``        by :func:`tercet.functional.batch_semi_hard`
==================================  ======================================================

What is native: the two distances of ``BatchHardTripletLossDistanceFunction``. All else goes to the original, and
:func:`tercet.report` counts it by reason: another ``distance_metric``; and, of the last three, batches in which an anchor lacks a
positive or a negative, which the original takes into its mean and Tercet leaves out. To know that, the host asks a CUDA device
for one number in each call.

Losses of 16-bit embeddings are float32. The gradient of a triplet whose loss is exactly 0 is 0.
"""

from __future__ import annotations

from typing import Any

import sentence_transformers.losses as _losses
from torch import Tensor

from . import functional as F
from ._adapters import PassOn, Patches, check_tensors, counted
from .functional import Distance

__all__ = [
    "BatchAllTripletLoss",
    "BatchHardSoftMarginTripletLoss",
    "BatchHardTripletLoss",
    "BatchSemiHardTripletLoss",
]

_functions = _losses.BatchHardTripletLossDistanceFunction
# The last name had a letter wrong before release 6.
_NAMES: list[tuple[str, Distance]] = [
    ("cosine_distance", "cosine"),
    ("euclidean_distance", "euclidean"),
    ("eucledian_distance", "euclidean"),
]
_DISTANCES: dict[Any, Distance] = {
    getattr(_functions, function): name for function, name in _NAMES if hasattr(_functions, function)
}


def _call(loss: Any, labels: Tensor, embeddings: Tensor) -> tuple[Tensor, Distance]:
    """The labels as the functions take them, and the distance."""
    try:
        distance = _DISTANCES.get(loss.distance_metric)
    except TypeError:
        distance = None
    if distance is None:
        raise PassOn("distance_metric")
    if labels.numel() != embeddings.shape[0]:
        raise PassOn("shape")
    labels = labels.view(-1)
    check_tensors(embeddings, labels)
    return labels, distance


class BatchAllTripletLoss(_losses.BatchAllTripletLoss):
    """``sentence_transformers.losses.BatchAllTripletLoss``, natively where :mod:`tercet.sentence_transformers` says."""

    def batch_all_triplet_loss(self, labels: Tensor, embeddings: Tensor) -> Tensor:
        """The loss of embeddings ``[N, D]``."""

        def native() -> Tensor:
            flat, distance = _call(self, labels, embeddings)
            return F.batch_all(embeddings, flat, margin=self.triplet_margin, distance=distance)

        def original() -> Tensor:
            return super(BatchAllTripletLoss, self).batch_all_triplet_loss(labels, embeddings)

        return counted("sentence_transformers.BatchAllTripletLoss", native, original)


def _hard(loss: Any, labels: Tensor, embeddings: Tensor, **options: Any) -> Tensor:
    flat, distance = _call(loss, labels, embeddings)
    value, stats = F.batch_hard(embeddings, flat, distance=distance, return_stats=True, **options)
    if int(stats.valid) != embeddings.shape[0]:
        raise PassOn("an anchor without a positive or a negative")
    return value


class BatchHardTripletLoss(_losses.BatchHardTripletLoss):
    """``sentence_transformers.losses.BatchHardTripletLoss``, natively where :mod:`tercet.sentence_transformers` says."""

    def batch_hard_triplet_loss(self, labels: Tensor, embeddings: Tensor) -> Tensor:
        """The loss of embeddings ``[N, D]``."""
        return counted(
            "sentence_transformers.BatchHardTripletLoss",
            lambda: _hard(self, labels, embeddings, margin=self.triplet_margin),
            lambda: super(BatchHardTripletLoss, self).batch_hard_triplet_loss(labels, embeddings),
        )


class BatchHardSoftMarginTripletLoss(_losses.BatchHardSoftMarginTripletLoss):
    """``sentence_transformers.losses.BatchHardSoftMarginTripletLoss``, natively where :mod:`tercet.sentence_transformers`
    says."""

    def batch_hard_triplet_soft_margin_loss(self, labels: Tensor, embeddings: Tensor) -> Tensor:
        """The loss of embeddings ``[N, D]``."""
        return counted(
            "sentence_transformers.BatchHardSoftMarginTripletLoss",
            lambda: _hard(self, labels, embeddings, soft_margin=True),
            lambda: super(BatchHardSoftMarginTripletLoss, self).batch_hard_triplet_soft_margin_loss(labels, embeddings),
        )


class BatchSemiHardTripletLoss(_losses.BatchSemiHardTripletLoss):
    """``sentence_transformers.losses.BatchSemiHardTripletLoss``, natively where :mod:`tercet.sentence_transformers` says."""

    def batch_semi_hard_triplet_loss(self, labels: Tensor, embeddings: Tensor) -> Tensor:
        """The loss of embeddings ``[N, D]``."""

        def native() -> Tensor:
            flat, distance = _call(self, labels, embeddings)
            value, stats = F.batch_semi_hard(embeddings, flat, margin=self.margin, distance=distance, return_stats=True)
            # Where there are two classes every anchor has a negative; without one, no pair is valid.
            if int(stats.valid) == 0:
                raise PassOn("no anchor with a positive and a negative")
            return value

        def original() -> Tensor:
            return super(BatchSemiHardTripletLoss, self).batch_semi_hard_triplet_loss(labels, embeddings)

        return counted("sentence_transformers.BatchSemiHardTripletLoss", native, original)


_patches = Patches(
    "sentence_transformers",
    {
        "BatchAllTripletLoss": BatchAllTripletLoss,
        "BatchHardTripletLoss": BatchHardTripletLoss,
        "BatchHardSoftMarginTripletLoss": BatchHardSoftMarginTripletLoss,
        "BatchSemiHardTripletLoss": BatchSemiHardTripletLoss,
    },
)
patch, unpatch = _patches.patch, _patches.unpatch
