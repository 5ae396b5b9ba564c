"""Times of the package beside pytorch-metric-learning, sentence-transformers and formulas in PyTorch's own operations.

    python python/benches/peers.py [NAME..] [--json] [--beside FILE]

Forward and backward of leaves, on the CPU, with PyTorch's own number of threads; the fastest of several runs, each of calls that
take half a second together. Peers that are not installed are left out. It prints a table, and is to be run on a machine that does
nothing else; with ``--json`` one line for each row instead. ``--beside FILE`` has the times of the operators through tch, from
``cargo bench -p tercet -- operators --json FILE``, and prints how much longer they take here.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import relu

import tercet
from tercet import functional as F

RUNS, SECONDS = 7, 0.5


def seconds(call: Callable[[], Any]) -> float:
    """The time of one call."""
    call()
    begin = time.perf_counter()
    call()
    count = max(1, int(SECONDS / (time.perf_counter() - begin) / RUNS))
    best = float("inf")
    for _ in range(RUNS):
        begin = time.perf_counter()
        for _ in range(count):
            call()
        best = min(best, (time.perf_counter() - begin) / count)
    return best


def both(loss: Callable[..., Tensor], *leaves: Tensor) -> Callable[[], Any]:
    """Forward and backward of a loss, or of the sum of a matrix."""

    def call() -> Any:
        value = loss(*leaves)
        return torch.autograd.grad(value.sum() if value.dim() else value, leaves)

    return call


def rows(count: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def pml() -> Any:
    import pytorch_metric_learning.losses

    return pytorch_metric_learning.losses


def st() -> Any:
    import sentence_transformers.losses

    return sentence_transformers.losses


class Identity(torch.nn.Module):
    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return features


def of_sentence_transformers(module: Any, name: str, labels: Tensor) -> Callable[[Tensor], Tensor]:
    loss = getattr(module, name)(Identity())
    return lambda x: loss([{"sentence_embedding": x}], labels)


def pml_batch_all() -> list[tuple[str, Any]]:
    from tercet import pml as ours

    x, y = rows(1024, 128), torch.arange(1024) // 8
    return [
        ("tercet.pml", both(lambda x: ours.TripletMarginLoss()(x, y), x)),
        ("pytorch-metric-learning", both(lambda x: pml().TripletMarginLoss()(x, y), x)),
    ]


def pml_contrastive() -> list[tuple[str, Any]]:
    from tercet import pml as ours

    x, y = rows(1024, 128), torch.arange(1024) // 8
    return [
        ("tercet.pml", both(lambda x: ours.ContrastiveLoss()(x, y), x)),
        ("pytorch-metric-learning", both(lambda x: pml().ContrastiveLoss()(x, y), x)),
    ]


def st_of(name: str, count: int) -> Callable[[], list[tuple[str, Any]]]:
    def make() -> list[tuple[str, Any]]:
        from tercet import sentence_transformers as ours

        x, y = rows(count, 128), torch.arange(count) // 8
        return [
            ("tercet.sentence_transformers", both(of_sentence_transformers(ours, name, y), x)),
            ("sentence-transformers", both(of_sentence_transformers(st(), name, y), x)),
        ]

    return make


def formula(a: Tensor, p: Tensor, n: Tensor) -> Tensor:
    return relu((a - p).square().sum(1) - (a - n).square().sum(1) + 0.2).mean()


def triplets(count: int, dim: int) -> Callable[[], list[tuple[str, Any]]]:
    def make() -> list[tuple[str, Any]]:
        leaves = [rows(count, dim, seed) for seed in range(3)]
        return [("tercet", both(F.triplet_margin, *leaves)), ("torch operations", both(formula, *leaves))]

    return make


def every_operator(count: int, dim: int) -> Callable[[], list[tuple[str, Any]]]:
    """With the inputs of benches/operators.rs, which times the same through tch."""

    def make() -> list[tuple[str, Any]]:
        x, labels = rows(count, dim), torch.arange(count) // 8
        a, p, n = (rows(16 * count, dim, seed) for seed in range(3))
        same, y = torch.arange(16 * count) % 2 == 0, rows(count, dim, 1)
        margin = {"margin": float(dim) / 8}
        return [
            ("triplet_margin", both(lambda a, p, n: F.triplet_margin(a, p, n), a, p, n)),
            ("contrastive", both(lambda a, p: F.contrastive(a, p, same, margin=16.0), a, p)),
            ("batch_all", both(lambda x: F.batch_all(x, labels, **margin), x)),
            ("batch_hard", both(lambda x: F.batch_hard(x, labels, **margin), x)),
            ("batch_semi_hard", both(lambda x: F.batch_semi_hard(x, labels, **margin), x)),
            ("batch_negative", both(lambda x: F.batch_negative(x, labels, **margin), x)),
            ("batch_contrastive", both(lambda x: F.batch_contrastive(x, labels, margin=16.0), x)),
            ("pairwise_distance", both(lambda x, y: F.pairwise_distance(x, y, distance="euclidean"), x, y)),
            ("top_k", lambda: F.top_k(x.detach(), y.detach(), k=10)),
        ]

    return make


BENCHES: dict[str, Callable[[], list[tuple[str, Any]]]] = {
    "32 x 16": triplets(32, 16),
    "4096 x 128": triplets(4096, 128),
    "PML batch-all 1024 x 128": pml_batch_all,
    "PML contrastive 1024 x 128": pml_contrastive,
    "ST batch-all 1024 x 128": st_of("BatchAllTripletLoss", 1024),
    "ST batch-hard 4096 x 128": st_of("BatchHardTripletLoss", 4096),
    "ST batch-semi-hard 1024 x 128": st_of("BatchSemiHardTripletLoss", 1024),
    "operators 1024 x 128": every_operator(1024, 128),
    "operators 256 x 128": every_operator(256, 128),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only benches whose name has one of these in it")
    parser.add_argument("--json", action="store_true", help="one line of JSON for each row")
    parser.add_argument("--beside", help="the operators' times through tch")
    options = parser.parse_args()
    wanted, as_json = options.names, options.json
    through_tch = {}
    if options.beside:
        with open(options.beside) as lines:
            through_tch = {(row["bench"], row["who"]): row["us"] for row in map(json.loads, lines)}
    if not as_json:
        print(f"PyTorch {torch.__version__}, tercet {tercet.__version__}, {torch.get_num_threads()} threads")
    for name, make in BENCHES.items():
        if wanted and not any(part in name for part in wanted):
            continue
        try:
            contestants = make()
        except ImportError as missing:
            print(f"{name}: left out, {missing}", file=sys.stderr)
            continue
        first = None
        for who, call in contestants:
            try:
                took = seconds(call)
            except ImportError as missing:
                print(f"{name}: left out, {missing}", file=sys.stderr)
                continue
            first = first or took
            if as_json:
                print(json.dumps({"bench": name, "who": who, "us": took * 1e6, "torch": torch.__version__}), flush=True)
            else:
                ratio = "" if took is first or name.startswith("operators") else f"{took / first:9.2f} x"
                if (name, who) in through_tch:
                    ratio = f"{took * 1e6 / through_tch[name, who]:9.2f} of its time through tch"
                print(f"{name:32} {who:30} {took * 1e6:12.1f} us {ratio}", flush=True)


if __name__ == "__main__":
    main()
