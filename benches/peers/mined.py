"""Times what pytorch-metric-learning and sentence-transformers have of the losses mined in a batch, forward and backward.

    python benches/peers/mined.py [rows ...]

prints a table: f32, 128 numbers a row, eight rows a class, squared Euclidean where the library has it, else Euclidean,
margin 0.2, on CUDA where there is a device, else on the CPU with as many threads as torch takes. Medians.
`batch_contrastive` is over all pairs at Euclidean distance, margin 16; pytorch-metric-learning's terms are not squared.
"""

import importlib.metadata
import statistics
import sys
import time

import torch
from pytorch_metric_learning import distances, losses, miners, reducers
from sentence_transformers.sentence_transformer.losses import (
    BatchAllTripletLoss,
    BatchHardTripletLoss,
    BatchSemiHardTripletLoss,
)

SECONDS = 6
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def pml_triplets(mined):
    distance = distances.LpDistance(p=2, power=2, normalize_embeddings=False)
    reducer = reducers.MeanReducer() if mined else reducers.AvgNonZeroReducer()
    loss = losses.TripletMarginLoss(margin=0.2, distance=distance, reducer=reducer)
    miner = miners.BatchHardMiner(distance=distance) if mined else None
    return lambda x, y: loss(x, y, miner(x, y) if miner else None)


def pml_pairs():
    distance = distances.LpDistance(p=2, power=1, normalize_embeddings=False)
    return losses.ContrastiveLoss(pos_margin=0, neg_margin=16, distance=distance)


def sentence_transformers(loss, function):
    return lambda x, y: getattr(loss(model=None, margin=0.2), function)(y, x)


PML, ST = "pytorch-metric-learning", "sentence-transformers"
OPS = {
    "batch_all": {
        PML: lambda: pml_triplets(mined=False),
        ST: lambda: sentence_transformers(BatchAllTripletLoss, "batch_all_triplet_loss"),
    },
    "batch_hard": {
        PML: lambda: pml_triplets(mined=True),
        ST: lambda: sentence_transformers(BatchHardTripletLoss, "batch_hard_triplet_loss"),
    },
    "batch_semi_hard": {ST: lambda: sentence_transformers(BatchSemiHardTripletLoss, "batch_semi_hard_triplet_loss")},
    "batch_contrastive": {PML: pml_pairs},
}


def median_ms(function, rows):
    torch.manual_seed(1)
    x = torch.randn(rows, 128, device=DEVICE, requires_grad=True)
    y = torch.arange(rows, device=DEVICE) % max(rows // 8, 1)
    times = []
    start = time.perf_counter()
    while len(times) < 4 or (time.perf_counter() - start < SECONDS and len(times) < 50):
        begin = time.perf_counter()
        torch.autograd.grad(function(x, y), x)
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times[1:])


def main():
    sizes = [int(size) for size in sys.argv[1:]] or [256, 1024]
    versions = {name: importlib.metadata.version(name) for name in [PML, ST, "torch"]}
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    print(f"{name}; " + ", ".join(f"{package} {version}" for package, version in versions.items()))
    for op, peers in OPS.items():
        for rows in sizes:
            for peer, make in peers.items():
                start = f"{op:<18} {rows:>6}x128  {peer:<24}"
                try:
                    print(f"{start} {median_ms(make(), rows):10.2f} ms", flush=True)
                except RuntimeError as error:
                    print(f"{start} {str(error).splitlines()[0]}", flush=True)


if __name__ == "__main__":
    main()
