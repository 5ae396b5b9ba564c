"""Times batch_all and batch_hard of pytorch-metric-learning and sentence-transformers, forward and backward.

    python benches/peers/mined.py [rows ...]

prints a table: f32, 128 numbers a row, eight rows a class, squared Euclidean where the library has it, else Euclidean,
margin 0.2, on CUDA where there is a device, else on the CPU with as many threads as torch takes. Medians.
"""

import importlib.metadata
import statistics
import sys
import time

import torch
from pytorch_metric_learning import distances, losses, miners, reducers
from sentence_transformers.sentence_transformer.losses import BatchAllTripletLoss, BatchHardTripletLoss

SECONDS = 6
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def pml(mined):
    distance = distances.LpDistance(p=2, power=2, normalize_embeddings=False)
    reducer = reducers.MeanReducer() if mined else reducers.AvgNonZeroReducer()
    loss = losses.TripletMarginLoss(margin=0.2, distance=distance, reducer=reducer)
    miner = miners.BatchHardMiner(distance=distance) if mined else None
    return lambda x, y: loss(x, y, miner(x, y) if miner else None)


def sentence_transformers(mined):
    if mined:
        loss = BatchHardTripletLoss(model=None, margin=0.2)
        return lambda x, y: loss.batch_hard_triplet_loss(y, x)
    loss = BatchAllTripletLoss(model=None, margin=0.2)
    return lambda x, y: loss.batch_all_triplet_loss(y, x)


PEERS = {"pytorch-metric-learning": pml, "sentence-transformers": sentence_transformers}


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
    versions = {name: importlib.metadata.version(name) for name in [*PEERS, "torch"]}
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    print(f"{name}; " + ", ".join(f"{package} {version}" for package, version in versions.items()))
    for op, mined in [("batch_all", False), ("batch_hard", True)]:
        for rows in sizes:
            for peer, make in PEERS.items():
                try:
                    print(f"{op:<12} {rows:>6}x128  {peer:<24} {median_ms(make(mined), rows):10.2f} ms", flush=True)
                except RuntimeError as error:
                    print(f"{op:<12} {rows:>6}x128  {peer:<24} {str(error).splitlines()[0]}", flush=True)


if __name__ == "__main__":
    main()
