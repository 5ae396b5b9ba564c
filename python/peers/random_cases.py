"""The peers' losses and Tercet's in their place, on random batches: value and gradient of both.

The peer always computes in float64. A call that goes to the original compares nothing: such a case is drawn anew. So is one
in which two candidates are so near that rounding decides between them, or a term so near 0 that rounding decides whether it
counts. Both are counted.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

CASES = 1000
# Of the largest entry: what may differ, by the dtype that Tercet gets.
BOUNDS = {torch.float64: 1e-12, torch.float32: 2e-5}


def draw(numbers: random.Random, most: int) -> tuple[Tensor, Tensor]:
    """Embeddings in float64 that are exact in float32, and labels: a few in a class, or any number."""
    rows, dim = numbers.randint(2, most), numbers.choice((2, 3, 8, 17, 64))
    generator = torch.Generator().manual_seed(numbers.getrandbits(31))
    # Not larger: a peer whose distances are products of rows loses what the rows' lengths have beyond the distances.
    scale = numbers.choice((0.03, 0.3, 1.0, 1.0))
    embeddings = (torch.randn(rows, dim, generator=generator) * scale).double()
    each, classes = numbers.randint(2, 6), numbers.choice((1, 2, 3, rows // 2 + 1, 2 * rows))
    labels = (torch.arange(rows) // each).clamp(max=max(rows // each - 1, 0))
    if numbers.random() < 0.3:
        labels = torch.randint(classes, (rows,), generator=generator)
    return embeddings, labels[torch.randperm(rows, generator=generator)]


def distances(embeddings: Tensor, others: Tensor, distance: str, normalize: bool) -> Tensor:
    if distance == "cosine" or normalize:
        embeddings, others = (nn.functional.normalize(rows) for rows in (embeddings, others))
    squares = (embeddings[:, None] - others[None]).square().sum(2)
    return {"euclidean": squares.sqrt(), "squared_euclidean": squares, "cosine": squares / 2}[distance]


def is_close(values: Tensor, bound: float, scale: float) -> bool:
    """Whether any two of these are nearer than rounding tells apart."""
    ordered = values[torch.isfinite(values)].sort().values
    return bool((ordered.diff() <= bound * scale).any()) if len(ordered) > 1 else False


def compare(
    name: str,
    make: Callable[[random.Random], tuple[Callable[..., Tensor], Callable[..., Tensor], Callable[..., bool]]],
    most: int,
) -> list[str]:
    """Draws cases of a loss, of so many rows at most: ``make`` gives the peer's function, ours, and whether a case is undecided."""
    import tercet

    numbers, undecided_cases, passed_on, wrong = random.Random(name), 0, 0, []
    largest = dict.fromkeys(BOUNDS, 0.0)
    for case in range(CASES):
        dtype = numbers.choice(list(BOUNDS))
        while True:
            peer, ours, undecided = make(numbers)
            embeddings, labels = draw(numbers, most)
            # Sixteen times the bound: what is further apart is told apart in the arithmetic of each.
            if undecided(embeddings, labels, 16 * BOUNDS[dtype]):
                undecided_cases += 1
                continue
            tercet.reset_report()
            leaf = embeddings.to(dtype).requires_grad_()
            value = ours(leaf, labels)
            if any(of["passed_on"] for of in tercet.report().values()):
                passed_on += 1
                continue
            break
        expected_leaf = embeddings.clone().requires_grad_()
        expected = peer(expected_leaf, labels)
        (expected_grad,) = torch.autograd.grad(expected, expected_leaf)
        grad = torch.autograd.grad(value, leaf)[0].double()
        for actual, wanted in ((value.detach().double(), expected.detach()), (grad, expected_grad)):
            scale = wanted.abs().max().item()
            off = (actual - wanted).abs().max().item()
            relative = off / scale if scale > 0 else off
            largest[dtype] = max(largest[dtype], relative)
            if not off <= BOUNDS[dtype] * scale:
                wrong.append(f"{name}, case {case}, {dtype}: off by {relative:.1e} of the largest entry")
    shown = ", ".join(f"{str(dtype).removeprefix('torch.')} {worst:.1e}" for dtype, worst in largest.items())
    anew = f"{undecided_cases} undecided and {passed_on} passed on"
    print(f"{name}: {CASES} random cases, beside {anew}; largest difference {shown}", flush=True)
    return wrong[:3]


def triplets_undecided(margin: float, distance: str, normalize: bool, itself: bool = True) -> Callable[..., bool]:
    """Whether a triplet's loss is as good as 0."""

    def undecided(x: Tensor, y: Tensor, bound: float) -> bool:
        d = distances(x, x, distance, normalize)
        terms = d[:, :, None] - d[:, None, :] + margin
        alike = y[:, None] == y[None]
        positive = alike & ~torch.eye(len(y), dtype=torch.bool) if itself else alike
        valid = positive[:, :, None] & ~alike[:, None, :]
        scale = d.max().item() + margin
        near_zero = itself and bool((d[positive] <= bound * scale).any())
        return near_zero or bool((terms[valid].abs() <= bound * scale).any())

    return undecided


def hard_undecided(margin: float | None, distance: str) -> Callable[..., bool]:
    """Whether two positives are equally far from an anchor, or two negatives, or the loss is as good as 0. Without a margin:
    of a soft margin."""

    def undecided(x: Tensor, y: Tensor, bound: float) -> bool:
        d = distances(x, x, distance, False)
        alike, itself = y[:, None] == y[None], torch.eye(len(y), dtype=torch.bool)
        scale = d.max().item() + (margin or 0.0)
        terms = []
        for a in range(len(y)):
            positives, negatives = d[a][alike[a] & ~itself[a]], d[a][~alike[a]]
            far, near = positives.topk(min(2, len(positives))).values, (-negatives).topk(min(2, len(negatives))).values
            if is_close(far, bound, scale) or is_close(near, bound, scale):
                return True
            if len(far) and len(near):
                term = far[0] + near[0] + (margin or 0.0)
                terms.append(term.item())
                if (margin is not None and abs(term) <= bound * scale) or far[0] <= bound * scale:
                    return True
        # Far below 0 the loss is exp(term), and its relative error the absolute error of a distance.
        return margin is None and max(terms, default=0.0) < -2.0

    return undecided


def semi_hard_undecided(margin: float, distance: str) -> Callable[..., bool]:
    """Whether a negative is as far as a positive, two negatives as far as each other, or a loss as good as 0."""

    def undecided(x: Tensor, y: Tensor, bound: float) -> bool:
        d = distances(x, x, distance, False)
        alike, itself = y[:, None] == y[None], torch.eye(len(y), dtype=torch.bool)
        scale = d.max().item() + margin
        for a in range(len(y)):
            positives, negatives = d[a][alike[a] & ~itself[a]], d[a][~alike[a]]
            if is_close(torch.cat([positives, negatives]), bound, scale):
                return True
            gaps = positives[:, None] - negatives[None] + margin
            if bool((gaps.abs() <= bound * scale).any()) or bool((positives <= bound * scale).any()):
                return True
        return False

    return undecided


def pairs_undecided(pos_margin: float, margin: float, distance: str, normalize: bool) -> Callable[..., bool]:
    """Whether a pair's loss is as good as 0."""

    def undecided(x: Tensor, y: Tensor, bound: float) -> bool:
        d = distances(x, x, distance, normalize)
        scale = d.max().item() + max(pos_margin, margin)
        pairs = d[~torch.eye(len(y), dtype=torch.bool)]
        return any(bool(((pairs - at).abs() <= bound * scale).any()) for at in (0.0, pos_margin, margin))

    return undecided


def sentence_transformers() -> list[str]:
    """The four losses over a batch of sentence-transformers, on embeddings as they are."""
    import sentence_transformers.losses as theirs

    from tercet import sentence_transformers as ours

    functions = theirs.BatchHardTripletLossDistanceFunction
    euclidean = getattr(functions, "euclidean_distance", None) or functions.eucledian_distance
    metrics = {"cosine": functions.cosine_distance, "euclidean": euclidean}
    undecided = {
        "BatchAllTripletLoss": lambda margin, distance: triplets_undecided(margin, distance, False),
        "BatchHardTripletLoss": hard_undecided,
        "BatchHardSoftMarginTripletLoss": lambda _, distance: hard_undecided(None, distance),
        "BatchSemiHardTripletLoss": semi_hard_undecided,
    }
    wrong = []
    for name, is_undecided in undecided.items():

        def make(numbers: random.Random) -> tuple[Any, Any, Any]:
            distance, margin = numbers.choice(list(metrics)), numbers.choice((0.1, 0.5, 1.0, 5.0))
            options: dict[str, Any] = {"model": nn.Identity(), "distance_metric": metrics[distance]}
            if name != "BatchHardSoftMarginTripletLoss":
                options["margin"] = margin

            def call(module: Any) -> Callable[..., Tensor]:
                loss = getattr(module, name)(**options)
                return lambda x, y: loss([{"sentence_embedding": x}], y)

            return call(theirs), call(ours), is_undecided(margin, distance)

        wrong += compare(name, make, 40)
    return wrong


def pml() -> list[str]:
    """The losses of pytorch-metric-learning with their options, of a batch and against a reference set."""
    import pytorch_metric_learning.losses as theirs
    from pytorch_metric_learning.distances import CosineSimilarity, LpDistance
    from pytorch_metric_learning.reducers import AvgNonZeroReducer, MeanReducer

    from tercet import pml as ours

    def options(numbers: random.Random) -> tuple[dict[str, Any], str, bool]:
        distance, normalize = numbers.choice(("euclidean", "squared_euclidean", "cosine")), numbers.random() < 0.5
        power = {"euclidean": 1, "squared_euclidean": 2}.get(distance)
        of = LpDistance(power=power, normalize_embeddings=normalize) if power else CosineSimilarity()
        reducer = numbers.choice((AvgNonZeroReducer, MeanReducer))()
        return {"distance": of, "reducer": reducer}, distance, normalize

    def triplets(numbers: random.Random) -> tuple[Any, Any, Any]:
        (of, distance, normalize), margin = options(numbers), numbers.choice((0.05, 0.2, 1.0))
        losses = (module.TripletMarginLoss(margin=margin, **of) for module in (theirs, ours))
        return *losses, triplets_undecided(margin, distance, normalize)

    def pairs(numbers: random.Random) -> tuple[Any, Any, Any]:
        of, distance, normalize = options(numbers)
        pos_margin, neg_margin = numbers.choice((0, 0.1, 0.5)), numbers.choice((0.5, 1))
        losses = (
            module.ContrastiveLoss(pos_margin=pos_margin, neg_margin=neg_margin, **of) for module in (theirs, ours)
        )
        kinks = (1 - pos_margin, 1 - neg_margin) if distance == "cosine" else (pos_margin, neg_margin)
        return *losses, pairs_undecided(*kinks, distance, normalize)

    def memory(numbers: random.Random) -> tuple[Any, Any, Any]:
        of, distance, normalize = options(numbers)
        both = []
        for module in (theirs, ours):
            loss = module.ContrastiveLoss(pos_margin=0.1, neg_margin=0.9, **of)

            def call(x: Tensor, y: Tensor, module: Any = module, loss: Any = loss) -> Tensor:
                bank = module.CrossBatchMemory(loss, x.shape[1], memory_size=len(x) + 3)
                bank(x.detach() * 0.7, y)
                return bank(x, y)

            both.append(call)
        kinks = (0.9, 0.1) if distance == "cosine" else (0.1, 0.9)

        def undecided(x: Tensor, y: Tensor, bound: float) -> bool:
            rows = torch.cat([x, x * 0.7])
            d = distances(x, rows, distance, normalize)
            scale = d.max().item() + 0.9
            own = torch.zeros_like(d, dtype=torch.bool)
            own[:, : len(x)] = torch.eye(len(x), dtype=torch.bool)
            return any(bool(((d[~own] - at).abs() <= bound * scale).any()) for at in (0.0, *kinks))

        return *both, undecided

    wrong = []
    for name, make in (("TripletMarginLoss", triplets), ("ContrastiveLoss", pairs), ("CrossBatchMemory", memory)):
        # From 26 rows on `cdist` takes products of rows, and near pairs lose in float64 what is compared here.
        wrong += compare(name, make, 25)
    return wrong
