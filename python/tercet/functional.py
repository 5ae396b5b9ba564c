"""The losses as functions of tensors, each a call of one fused kernel.

=========================  ==================================================================================
:func:`triplet_margin`     pre-formed triplets, ``anchor``, ``positive``, ``negative`` of shape ``[B, D]``
:func:`contrastive`        pre-formed pairs, ``x1``, ``x2`` of shape ``[B, D]``, and whether each belongs together
:func:`batch_all`          every triplet of a labelled batch, embeddings ``[N, D]`` and labels ``[N]``
:func:`batch_hard`         for each anchor its farthest positive and its nearest negative
:func:`batch_semi_hard`    for each anchor and positive the nearest negative beyond the positive
:func:`batch_negative`     for each anchor and positive one negative, chosen as asked
:func:`batch_contrastive`  all pairs of a labelled batch
:func:`pairwise_distance`  the matrix of distances between all rows of two matrices: ``cdist`` without its cancellation
:func:`top_k`              the nearest rows of many for each query
=========================  ==================================================================================

Embeddings are float32, float16, bfloat16 or on the CPU float64 (``triplet_margin`` and ``contrastive``: on CUDA, too), on the
CPU or a CUDA device; labels are int64 or int32, of any values. Rows may be views with any strides. The arithmetic is float32,
of float64 float64; losses are float64 for float64 and float32 for all others. Sums are in a fixed order, so that the same
inputs give the same bits on the same machine.

All functions work under ``torch.compile(fullgraph=True)`` with dynamic shapes. Under ``torch.autocast`` nothing is cast,
for rows of 16 bits are read as they are and computed in float32; where the tensors of one call have different dtypes there,
they are all taken in the wider one. A gradient cannot be differentiated once more: that is an error.

Wrong arguments raise ``RuntimeError``, whose text names the argument, what was expected and what came.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from ._operators import calls as _calls

__all__ = [
    "Lp",
    "Reference",
    "Stats",
    "batch_all",
    "batch_contrastive",
    "batch_hard",
    "batch_negative",
    "batch_semi_hard",
    "contrastive",
    "pairwise_distance",
    "top_k",
    "triplet_margin",
]

_ops = torch.ops.tercet
_batch_all, _batch_hard, _batch_semi_hard = _calls["batch_all"], _calls["batch_hard"], _calls["batch_semi_hard"]
_batch_negative, _batch_contrastive = _calls["batch_negative"], _calls["batch_contrastive"]
_triplet_margin, _contrastive = _calls["triplet_margin"], _calls["contrastive"]
_pairwise_distance = _calls["pairwise_distance"]

Distance = Literal["squared_euclidean", "euclidean", "cosine"]
Reduction = Literal["none", "mean", "sum"]
MeanOver = Literal["active", "valid"]
Precision = Literal["highest", "high", "medium"]


class Lp(NamedTuple):
    """The distance ``(sum |x - y + eps|^p)^(1/p)`` of paired losses: ``torch.nn.functional.pairwise_distance``."""

    p: float = 2.0
    eps: float = 1e-6


PairedDistance = Distance | Lp


class Reference(NamedTuple):
    """A reference set, from which positives and negatives are drawn instead of from the batch: a memory, say, or the batches
    of all processes."""

    embeddings: Tensor
    """``[M, D]``, of the dtype and on the device of the batch. If it requires a gradient, it gets one."""
    labels: Tensor
    """``[M]``, int64 or int32."""
    own: int | Tensor | None = None
    """Which reference row each anchor is itself; that row is never its positive. ``None``: none. An integer: anchor ``i`` is
    row ``i + own``. A tensor ``[N]`` of integers: one for each anchor, -1 for an anchor that is not in the set."""


class Stats(NamedTuple):
    """What a mined loss found in a batch, as scalar tensors on its device: only reading one waits for the device."""

    valid: Tensor
    """How many triplets, pairs or anchors the loss is taken over: int64."""
    active: Tensor
    """How many of these have a loss above 0: int64."""
    mean_positive_distance: Tensor
    """The mean distance between anchors and positives, 0 if there is none: float64."""
    mean_negative_distance: Tensor
    """The mean distance between anchors and negatives, 0 if there is none: float64."""
    too_many_pairs: Tensor
    """Whether a CUDA device had no room for the batch's pairs, and the loss is NaN for that: bool."""


def _stats(written: Tensor) -> Stats:
    distances = written[2:4].view(torch.float64)
    return Stats(written[0], written[1], distances[0], distances[1], written[5] != 0)


def _of_one_dtype(tensors: list[Tensor]) -> list[Tensor]:
    """Under autocast a call may have rows of different dtypes: all are taken in the widest."""
    first = tensors[0].dtype
    if all(tensor.dtype == first for tensor in tensors) or not torch.is_autocast_enabled(tensors[0].device.type):
        return tensors
    widest = first
    for tensor in tensors[1:]:
        widest = torch.promote_types(widest, tensor.dtype)
    return [tensor.to(widest) for tensor in tensors]


def _wants(*tensors: Tensor | None) -> int:
    """Bit i: whether a gradient with respect to tensor i will be asked for."""
    if not torch.is_grad_enabled():
        return 0
    bits = 0
    for which, tensor in enumerate(tensors):
        if tensor is not None and tensor.requires_grad:
            bits |= 1 << which
    return bits


def _call(
    embeddings: Tensor, labels: Tensor, reference: Reference | None, step: int | Tensor | None = None
) -> tuple[Any, ...]:
    """The arguments that the operators of all mined losses begin with."""
    if step is not None and not isinstance(step, Tensor):
        step = torch.tensor(step, dtype=torch.int64, device=embeddings.device)
    if reference is None:
        return embeddings, labels, None, None, None, None, step, _wants(embeddings)
    rows, of_rows, own = reference
    if rows.dtype != embeddings.dtype:
        embeddings, rows = _of_one_dtype([embeddings, rows])
    indices, offset = (own, None) if isinstance(own, Tensor) else (None, own)
    return embeddings, labels, rows, of_rows, indices, offset, step, _wants(embeddings, rows)


def _split(distance: PairedDistance) -> tuple[str, float, float]:
    if isinstance(distance, str):
        return distance, 2.0, 1e-6
    return "lp", distance.p, distance.eps


def triplet_margin(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    margin: float = 0.2,
    distance: PairedDistance = "squared_euclidean",
    normalize: bool = False,
    swap: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """``max(d(anchor, positive) - d(anchor, negative) + margin, 0)`` for each row of three matrices ``[B, D]``.

    ``torch.nn.functional.triplet_margin_loss`` is this with ``margin=1.0, distance=Lp()``, except for its gradient where a
    loss is exactly 0, which is 0 here.

    Args:
        margin: how much farther than the positive the negative should be; 0 or more.
        distance: ``"squared_euclidean"``, ``"euclidean"``, ``"cosine"`` (one minus the cosine), or :class:`Lp`.
        normalize: divide each row by its L2 norm (at least 1e-12) first, gradient included.
        swap: take ``min(d(anchor, negative), d(positive, negative))`` for the distance to the negative.
        reduction: ``"mean"`` over the rows, ``"sum"``, or ``"none"``: one loss a row.

    >>> anchor, positive, negative = (torch.randn(8, 128, requires_grad=True) for _ in range(3))
    >>> tercet.functional.triplet_margin(anchor, positive, negative).backward()
    """
    if not (anchor.dtype == positive.dtype == negative.dtype):
        anchor, positive, negative = _of_one_dtype([anchor, positive, negative])
    wants = _wants(anchor, positive, negative)
    name, p, eps = _split(distance)
    return _triplet_margin(anchor, positive, negative, wants, margin, name, p, eps, normalize, swap, reduction)[0]


def contrastive(
    x1: Tensor,
    x2: Tensor,
    same: Tensor,
    *,
    margin: float = 1.0,
    distance: PairedDistance = "euclidean",
    normalize: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """``d^2 / 2`` for rows of ``x1`` and ``x2``, ``[B, D]``, that belong together, ``max(margin - d, 0)^2 / 2`` for others.

    Args:
        same: ``[B]``, 1 or ``True`` where the rows belong together, else 0: bool, an integer or a float. Another number is an
            error on the CPU; on CUDA nothing waits for the device, and that pair's loss is NaN.
        margin: how far apart rows that do not belong together should be; 0 or more.
        distance: as in :func:`triplet_margin`.
        normalize: divide each row by its L2 norm (at least 1e-12) first, gradient included.
        reduction: ``"mean"`` over the rows, ``"sum"``, or ``"none"``: one loss a row.

    >>> x1, x2 = (torch.randn(4, 128, requires_grad=True) for _ in range(2))
    >>> tercet.functional.contrastive(x1, x2, torch.tensor([1, 0, 0, 1])).backward()
    """
    if x1.dtype != x2.dtype:
        x1, x2 = _of_one_dtype([x1, x2])
    name, p, eps = _split(distance)
    return _contrastive(x1, x2, same, _wants(x1, x2), margin, name, p, eps, normalize, reduction)[0]


@overload
def batch_all(
    embeddings: Tensor,
    labels: Tensor,
    reference: Reference | None = ...,
    *,
    margin: float = ...,
    distance: Distance = ...,
    normalize: bool = ...,
    reduction: Literal["mean", "sum"] = ...,
    mean_over: MeanOver = ...,
    precision: Precision = ...,
    pairs_at_once: int | None = ...,
    return_stats: Literal[False] = ...,
) -> Tensor: ...
@overload
def batch_all(
    embeddings: Tensor,
    labels: Tensor,
    reference: Reference | None = ...,
    *,
    margin: float = ...,
    distance: Distance = ...,
    normalize: bool = ...,
    reduction: Literal["mean", "sum"] = ...,
    mean_over: MeanOver = ...,
    precision: Precision = ...,
    pairs_at_once: int | None = ...,
    return_stats: Literal[True],
) -> tuple[Tensor, Stats]: ...
def batch_all(
    embeddings: Tensor,
    labels: Tensor,
    reference: Reference | None = None,
    *,
    margin: float = 0.2,
    distance: Distance = "squared_euclidean",
    normalize: bool = False,
    reduction: Literal["mean", "sum"] = "mean",
    mean_over: MeanOver = "active",
    precision: Precision = "highest",
    pairs_at_once: int | None = None,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, Stats]:
    """``max(d(a, p) - d(a, n) + margin, 0)`` over every triplet of the batch, without a list of triplets.

    Args:
        embeddings: ``[N, D]``.
        labels: ``[N]``.
        reference: positives and negatives come from this set instead of from the batch; see :class:`Reference`.
        margin: how much farther than the positive the negative should be; 0 or more.
        distance: ``"squared_euclidean"``, ``"euclidean"`` or ``"cosine"`` (one minus the cosine).
        normalize: divide each row by its L2 norm (at least 1e-12) first, gradient included.
        reduction: ``"mean"`` or ``"sum"``.
        mean_over: what the mean is over: ``"active"``, the triplets whose loss is above 0, or ``"valid"``, all.
        precision: how exactly a CUDA device multiplies rows, as in ``torch.set_float32_matmul_precision``.
        pairs_at_once: how many pairs of an anchor and a row of its class a CUDA device has room for; ``None``: 2^22, or 128
            an anchor if that is more. With more pairs the loss is NaN, and ``too_many_pairs`` of the statistics says so.
        return_stats: return :class:`Stats`, too.

    >>> embeddings, labels = torch.randn(8, 128, requires_grad=True), torch.arange(8) // 2
    >>> tercet.functional.batch_all(embeddings, labels, normalize=True).backward()
    """
    call = _call(embeddings, labels, reference)
    options = (margin, distance, normalize, reduction, mean_over, precision, pairs_at_once)
    found = _batch_all(*call, *options)
    return (found[0], _stats(found[1])) if return_stats else found[0]


@overload
def batch_hard(
    embeddings: Tensor,
    labels: Tensor,
    reference: Reference | None = ...,
    *,
    margin: float = ...,
    distance: Distance = ...,
    normalize: bool = ...,
    soft_margin: bool = ...,
    reduction: Reduction = ...,
    precision: Precision = ...,
    return_stats: Literal[False] = ...,
) -> Tensor: ...
@overload
def batch_hard(
    embeddings: Tensor,
    labels: Tensor,
    reference: Reference | None = ...,
    *,
    margin: float = ...,
    distance: Distance = ...,
    normalize: bool = ...,
    soft_margin: bool = ...,
    reduction: Reduction = ...,
    precision: Precision = ...,
    return_stats: Literal[True],
) -> tuple[Tensor, Stats]: ...
def batch_hard(
    embeddings: Tensor,
    labels: Tensor,
    reference: Reference | None = None,
    *,
    margin: float = 0.2,
    distance: Distance = "squared_euclidean",
    normalize: bool = False,
    soft_margin: bool = False,
    reduction: Reduction = "mean",
    precision: Precision = "highest",
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, Stats]:
    """For each anchor the farthest positive and the nearest negative: ``max(d(a, p) - d(a, n) + margin, 0)``.

    The mean is over the anchors that have both; the others add nothing. Of equally far rows the one with the lowest index is
    taken.

    Args:
        soft_margin: take ``ln(1 + exp(d(a, p) - d(a, n)))`` instead; ``margin`` is not used.
        reduction: ``"mean"``, ``"sum"``, or ``"none"``: one loss an anchor, 0 without a positive or a negative.

    The other arguments are those of :func:`batch_all`.
    """
    call = _call(embeddings, labels, reference)
    found = _batch_hard(*call, margin, distance, normalize, soft_margin, reduction, precision)
    return (found[0], _stats(found[1])) if return_stats else found[0]


@overload
def batch_semi_hard(
    embeddings: Tensor,
    labels: Tensor,
    reference: Reference | None = ...,
    *,
    margin: float = ...,
    distance: Distance = ...,
    normalize: bool = ...,
    reduction: Reduction = ...,
    precision: Precision = ...,
    pairs_at_once: int | None = ...,
    return_stats: Literal[False] = ...,
) -> Tensor: ...
@overload
def batch_semi_hard(
    embeddings: Tensor,
    labels: Tensor,
    reference: Reference | None = ...,
    *,
    margin: float = ...,
    distance: Distance = ...,
    normalize: bool = ...,
    reduction: Reduction = ...,
    precision: Precision = ...,
    pairs_at_once: int | None = ...,
    return_stats: Literal[True],
) -> tuple[Tensor, Stats]: ...
def batch_semi_hard(
    embeddings: Tensor,
    labels: Tensor,
    reference: Reference | None = None,
    *,
    margin: float = 0.2,
    distance: Distance = "squared_euclidean",
    normalize: bool = False,
    reduction: Reduction = "mean",
    precision: Precision = "highest",
    pairs_at_once: int | None = None,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, Stats]:
    """For each anchor and positive the nearest negative that is farther than the positive, or else the farthest one.

    The mean is over the pairs of anchor and positive whose anchor has a negative. With ``reduction="none"`` the result is the
    sum of each anchor's losses. The arguments are those of :func:`batch_all`.
    """
    call = _call(embeddings, labels, reference)
    found = _batch_semi_hard(*call, margin, distance, normalize, reduction, precision, pairs_at_once)
    return (found[0], _stats(found[1])) if return_stats else found[0]


@overload
def batch_negative(
    embeddings: Tensor,
    labels: Tensor,
    reference: Reference | None = ...,
    step: int | Tensor | None = ...,
    *,
    margin: float = ...,
    negative: Literal["hardest", "random", "semi_hard"] = ...,
    pairs: Literal["ordered", "once"] = ...,
    seed: int = ...,
    distance: Distance = ...,
    normalize: bool = ...,
    reduction: Reduction = ...,
    precision: Precision = ...,
    pairs_at_once: int | None = ...,
    return_stats: Literal[False] = ...,
) -> Tensor: ...
@overload
def batch_negative(
    embeddings: Tensor,
    labels: Tensor,
    reference: Reference | None = ...,
    step: int | Tensor | None = ...,
    *,
    margin: float = ...,
    negative: Literal["hardest", "random", "semi_hard"] = ...,
    pairs: Literal["ordered", "once"] = ...,
    seed: int = ...,
    distance: Distance = ...,
    normalize: bool = ...,
    reduction: Reduction = ...,
    precision: Precision = ...,
    pairs_at_once: int | None = ...,
    return_stats: Literal[True],
) -> tuple[Tensor, Stats]: ...
def batch_negative(
    embeddings: Tensor,
    labels: Tensor,
    reference: Reference | None = None,
    step: int | Tensor | None = None,
    *,
    margin: float = 0.2,
    negative: Literal["hardest", "random", "semi_hard"] = "semi_hard",
    pairs: Literal["ordered", "once"] = "ordered",
    seed: int = 0,
    distance: Distance = "squared_euclidean",
    normalize: bool = False,
    reduction: Reduction = "mean",
    precision: Precision = "highest",
    pairs_at_once: int | None = None,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, Stats]:
    """For each anchor and positive one negative, chosen as ``negative`` says; a pair for which there is none is skipped.

    Args:
        step: which draws to make: equal steps draw alike, others anew. On CUDA a tensor of one int64 is read by the kernels,
            so that a replayed CUDA graph draws anew if it has been written to meanwhile. ``None``: step 0.
        negative: ``"hardest"``, the nearest, if its loss is above 0; ``"random"``, one of those whose loss is above 0;
            ``"semi_hard"``, one of those that are farther than the positive by less than the margin.
        pairs: ``"ordered"``, ``(a, p)`` and ``(p, a)``; ``"once"``, those with ``a < p`` alone.
        seed: of the random choices.

    The other arguments are those of :func:`batch_all`; with ``reduction="none"`` the result is each anchor's sum.
    """
    call = _call(embeddings, labels, reference, step)
    options = (margin, negative, pairs, seed, distance, normalize, reduction, precision, pairs_at_once)
    found = _batch_negative(*call, *options)
    return (found[0], _stats(found[1])) if return_stats else found[0]


@overload
def batch_contrastive(
    embeddings: Tensor,
    labels: Tensor,
    reference: Reference | None = ...,
    *,
    margin: float = ...,
    distance: Distance = ...,
    normalize: bool = ...,
    negatives: Literal["all", "hardest"] = ...,
    power: Literal[1, 2] = ...,
    pos_margin: float = ...,
    reduction: Reduction = ...,
    mean_over: MeanOver = ...,
    means_apart: bool = ...,
    precision: Precision = ...,
    return_stats: Literal[False] = ...,
) -> Tensor: ...
@overload
def batch_contrastive(
    embeddings: Tensor,
    labels: Tensor,
    reference: Reference | None = ...,
    *,
    margin: float = ...,
    distance: Distance = ...,
    normalize: bool = ...,
    negatives: Literal["all", "hardest"] = ...,
    power: Literal[1, 2] = ...,
    pos_margin: float = ...,
    reduction: Reduction = ...,
    mean_over: MeanOver = ...,
    means_apart: bool = ...,
    precision: Precision = ...,
    return_stats: Literal[True],
) -> tuple[Tensor, Stats]: ...
def batch_contrastive(
    embeddings: Tensor,
    labels: Tensor,
    reference: Reference | None = None,
    *,
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
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, Stats]:
    """``max(d - pos_margin, 0)^2 / 2`` for pairs of one class, ``max(margin - d, 0)^2 / 2`` for pairs of different classes.

    Pairs are ordered: in a batch that is its own reference set each comes twice.

    Args:
        margin: how far apart rows of different classes should be; 0 or more.
        negatives: ``"all"`` pairs of different classes, or the ``"hardest"``: as many as there are pairs of one class.
        power: 2, or 1: a pair costs ``max(d - pos_margin, 0)`` or ``max(margin - d, 0)`` itself, without the half. A CUDA device
            takes these in passes of their own, which are slower.
        pos_margin: how near rows of one class may be before they are pulled together no further; 0 or more.
        reduction: ``"mean"`` over the selected pairs, ``"sum"``, or ``"none"``: each anchor's sum.
        mean_over: what the mean is over: ``"valid"``, the selected pairs, or ``"active"``, those whose loss is above 0.
        means_apart: take the mean over the pairs of one class plus the mean over the pairs of different classes.

    The other arguments are those of :func:`batch_all`.
    """
    call = _call(embeddings, labels, reference)
    options = (margin, distance, normalize, negatives, power, pos_margin, reduction, mean_over, means_apart, precision)
    found = _batch_contrastive(*call, *options)
    return (found[0], _stats(found[1])) if return_stats else found[0]


def pairwise_distance(
    x: Tensor,
    y: Tensor,
    *,
    distance: Distance = "squared_euclidean",
    normalize: bool = False,
    precision: Precision = "highest",
) -> Tensor:
    """The distances ``[N, M]`` between the rows of ``x``, ``[N, D]``, and of ``y``, ``[M, D]``.

    Serves as ``torch.cdist``, without its cancellation: distances that are small against the rows' norms are computed from
    the difference of the rows. Coincident rows are at distance 0, where the gradient of ``"euclidean"`` is taken as 0.

    >>> tercet.functional.pairwise_distance(torch.randn(4, 128), torch.randn(6, 128), distance="cosine").shape
    torch.Size([4, 6])
    """
    if x.dtype != y.dtype:
        x, y = _of_one_dtype([x, y])
    return _pairwise_distance(x, y, distance, normalize, precision)[0]


def top_k(
    queries: Tensor,
    stored: Tensor,
    *,
    k: int = 1,
    distance: Distance = "squared_euclidean",
    normalize: bool = False,
    precision: Precision = "highest",
    scales: Tensor | None = None,
    exact: Tensor | None = None,
    own: int | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The ``k`` nearest rows of ``stored``, ``[M, D]``, for each of ``queries``, ``[Q, D]``: distances, ascending, and indices,
    both ``[Q, k]``.

    Of equally far rows the lowest index comes first. Where there are fewer than ``k`` rows, what is left is +inf and -1. A row
    with NaN or infinity is no neighbour, and a query with one gets NaN and -1. The results have no gradient.

    Args:
        k: how many rows to find; on CUDA at most 1024.
        scales: for ``stored`` of int8, a float32 for each row that it is multiplied by.
        exact: the float32 rows that the stored ones were rounded from: they decide between all that the rounding leaves open,
            and the distances are those to them.
        own: which stored row each query is itself, as in :class:`Reference`: that row is never its neighbour.

    >>> distances, indices = tercet.functional.top_k(torch.randn(4, 128), torch.randn(1000, 128), k=5, distance="cosine")
    """
    indices, offset = (own, None) if isinstance(own, Tensor) else (None, own)
    queries, stored = queries.detach(), stored.detach()
    options = (k, distance, normalize, precision)
    distances, found = _ops.top_k(queries, stored, scales, exact, indices, offset, *options)
    return distances, found
