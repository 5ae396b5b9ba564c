"""Times what others have of the losses mined in a batch, forward and backward: pytorch-metric-learning and
sentence-transformers, those of them that can be imported; and what one writes without them, in torch (eager and compiled) and in JAX.

    python benches/peers/mined.py [rows ...] [--json FILE] [--quick]

Squared Euclidean distance where the library has it, else Euclidean; margin 0.2; CUDA where there is a device, else the CPU
with as many threads as torch takes. `batch_contrastive` is over all pairs at Euclidean distance, margin 16;
pytorch-metric-learning's terms are not squared. The floor is the product X X^T alone.
"""

import argparse
import importlib.metadata
import os

import torch
from common import DEVICE, MARGIN, Results, description, labels, relative, seeded

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
PAIR_MARGIN = 16.0
PML, ST, JAX = "pytorch-metric-learning", "sentence-transformers", "jax.jit"
EAGER, COMPILED = "torch, eager", "torch.compile"
# rows, dim, rows a class (an anchor has one positive less), dtypes
CUDA_SIZES = (
    [(rows, 128, 8, ["f32"]) for rows in (256, 1024, 4096)]
    + [(8192, 128, 8, ["f32", "bf16"])]
    + [(rows, 128, 8, ["f32"]) for rows in (16384, 32768)]
    + [(8192, 512, 8, ["f32"]), (8192, 128, 4, ["f32"]), (8192, 128, 64, ["f32"])]
)
# Compiling takes seconds for each.
COMPILED_SIZES = [(rows, 128, 8, "f32") for rows in (1024, 4096, 8192, 32768)]


def squared(x):
    x = x if x.dtype == torch.float64 else x.float()
    norms = x.square().sum(1, keepdim=True)
    return norms + norms.T - 2 * (x @ x.T)


def batch_hard(x, y):
    d, same = squared(x), y[:, None] == y[None, :]
    farthest = d.masked_fill(~same, -torch.inf).amax(1)
    nearest = d.masked_fill(same, torch.inf).amin(1)
    return (farthest - nearest + MARGIN).relu().mean()


def positive_distances(d, each):
    """[N, each - 1]. Row i is of class i mod (N / each): a loader knows that, so the pairs are not searched for."""
    rows = d.shape[0]
    i = torch.arange(rows, device=d.device)
    return d.gather(1, (i[:, None] + rows // each * torch.arange(1, each, device=d.device)) % rows)


def batch_all(x, y, each):
    d = squared(x)
    d_ap = positive_distances(d, each)
    t = (d_ap[:, :, None] - d[:, None, :] + MARGIN).relu()
    t = t.masked_fill((y[:, None] == y[None, :])[:, None, :], 0)
    return t.sum() / (t > 0).sum().clamp_min(1)


def batch_semi_hard(x, y, each):
    d = squared(x)
    d_ap = positive_distances(d, each)
    far = d.masked_fill(y[:, None] == y[None, :], torch.inf).sort(1).values
    place = torch.searchsorted(far.detach().contiguous(), d_ap.detach().contiguous(), right=True)
    d_an = far.gather(1, place.clamp_max(x.shape[0] - each - 1))
    return (d_ap - d_an + MARGIN).relu().mean()


def batch_contrastive(x, y):
    d2, same = squared(x), y[:, None] == y[None, :]
    own = torch.eye(x.shape[0], dtype=torch.bool, device=x.device)
    positives = d2.masked_fill(~(same ^ own), 0)
    negatives = (PAIR_MARGIN - d2.clamp_min(1e-12).sqrt()).relu().square().masked_fill(same, 0)
    return (positives + negatives).sum() / (2 * x.shape[0] * (x.shape[0] - 1))


def formulation(op, each):
    return {
        "batch_hard": batch_hard,
        "batch_all": lambda x, y: batch_all(x, y, each),
        "batch_semi_hard": lambda x, y: batch_semi_hard(x, y, each),
        "batch_contrastive": batch_contrastive,
    }[op]


def pml(op):
    from pytorch_metric_learning import distances, losses, miners, reducers

    if op == "batch_contrastive":
        distance = distances.LpDistance(p=2, power=1, normalize_embeddings=False)
        return losses.ContrastiveLoss(pos_margin=0, neg_margin=PAIR_MARGIN, distance=distance)
    distance = distances.LpDistance(p=2, power=2, normalize_embeddings=False)
    reducer = reducers.MeanReducer() if op == "batch_hard" else reducers.AvgNonZeroReducer()
    loss = losses.TripletMarginLoss(margin=MARGIN, distance=distance, reducer=reducer)
    miner = miners.BatchHardMiner(distance=distance) if op == "batch_hard" else None
    return lambda x, y: loss(x, y, miner(x, y) if miner else None)


def sentence_transformers(op):
    from sentence_transformers.sentence_transformer import losses

    name, function = {
        "batch_all": ("BatchAllTripletLoss", "batch_all_triplet_loss"),
        "batch_hard": ("BatchHardTripletLoss", "batch_hard_triplet_loss"),
        "batch_semi_hard": ("BatchSemiHardTripletLoss", "batch_semi_hard_triplet_loss"),
    }[op]
    loss = getattr(losses, name)(model=None, margin=MARGIN)
    return lambda x, y: getattr(loss, function)(y, x)


def jax_step(op, x, y, each):
    """A step on JAX's own arrays; torch's events see its work only if it waits, so it does."""
    import jax
    import jax.numpy as jnp

    x = jnp.asarray(x.detach().float().cpu().numpy()).astype(jnp.bfloat16 if x.dtype == torch.bfloat16 else jnp.float32)
    y = jnp.asarray(y.cpu().numpy())

    def loss(x):
        x = x.astype(jnp.float32)
        norms = (x * x).sum(1)
        d = norms[:, None] + norms[None, :] - 2 * jnp.matmul(x, x.T, precision="highest")
        same = y[:, None] == y[None, :]
        if op == "batch_hard":
            farthest = jnp.where(same, d, -jnp.inf).max(1)
            return jax.nn.relu(farthest - jnp.where(same, jnp.inf, d).min(1) + MARGIN).mean()
        classes = x.shape[0] // each
        i = jnp.arange(x.shape[0])
        positives = (i[:, None] + classes * jnp.arange(1, each)) % x.shape[0]
        t = jax.nn.relu(jnp.take_along_axis(d, positives, 1)[:, :, None] - d[:, None, :] + MARGIN)
        t = jnp.where(same[:, None, :], 0, t)
        return t.sum() / jnp.maximum((t > 0).sum(), 1)

    function = jax.jit(jax.value_and_grad(loss))
    return lambda turn: jax.block_until_ready(function(x))


def peers(op, each, large, compiles):
    yield EAGER, formulation(op, each)
    if DEVICE == "cuda" and compiles:
        yield COMPILED, torch.compile(formulation(op, each))
    if large:
        return
    for who, make, lacks in ((ST, sentence_transformers, "batch_contrastive"), (PML, pml, "batch_semi_hard")):
        if op == lacks:
            continue
        try:
            function = make(op)
        except ImportError as missing:
            print(f"{op}: {who} is left out: {missing}")
            continue
        yield who, function


def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", type=int, help="batch sizes (256 and 1024; on CUDA up to 32768)")
    parser.add_argument("--json", help="add the rows to this file")
    parser.add_argument("--quick", action="store_true", help="1024 rows alone")
    parser.add_argument("--jax", action="store_true", help="JAX alone, which wants the device for itself")
    args = parser.parse_args()
    sizes = CUDA_SIZES if DEVICE == "cuda" else [(rows, 128, 8, ["f32"]) for rows in (256, 1024)]
    if args.rows or args.quick:
        sizes = [(rows, 128, 8, ["f32"]) for rows in args.rows or [1024]]
    results = Results(args.json)
    names = [PML, ST, "torch"] + (["jax"] if args.jax else [])
    print(f"{description()}; " + ", ".join(f"{name} {version(name)}" for name in names))
    torch._dynamo.config.cache_size_limit = 256
    for rows, dim, each, dtypes in sizes:
        y = labels(rows, each)
        for dtype in dtypes:
            (x,) = seeded(rows, dim, dtype, 1)
            what = {"rows": rows, "dim": dim, "each": each, "dtype": dtype}
            if args.jax:
                for op in ("batch_all", "batch_hard"):
                    try:
                        step = jax_step(op, x, y, each)
                    except Exception as error:  # noqa: BLE001
                        print(f"JAX: {error}")
                        continue
                    results.measure(what | {"op": op, "pass": "both", "who": JAX}, step)
                continue
            for allow, who in [(False, "f32"), (True, "tf32")] if dtype == "f32" and DEVICE == "cuda" else [(False, dtype)]:
                torch.backends.cuda.matmul.allow_tf32 = allow
                step = torch.no_grad()(lambda turn: x @ x.T)
                results.measure(what | {"op": "product", "pass": "forward", "who": f"X X^T, {who}"}, step)
            torch.backends.cuda.matmul.allow_tf32 = False
            for op in ("batch_hard", "batch_all", "batch_semi_hard", "batch_contrastive"):
                large = rows > 8192 or (rows > 4096 and op == "batch_all")
                for who, function in peers(op, each, large, (rows, dim, each, dtype) in COMPILED_SIZES):

                    def step(turn, function=function, x=x, y=y):
                        return torch.autograd.grad(function(x, y), x)

                    def errors(op=op, who=who, function=function, x=x, y=y):
                        if rows > 4096 or who in (PML, ST):  # theirs are other distances and means
                            return {}
                        wide = x.detach().double().requires_grad_()
                        loss = formulation(op, each)(wide, y)
                        (grad,) = torch.autograd.grad(loss, wide)
                        return {
                            "loss_error": relative(function(x, y), loss),
                            "grad_error": relative(torch.autograd.grad(function(x, y), x)[0], grad),
                        }

                    results.measure(what | {"op": op, "pass": "both", "who": who}, step, errors)


if __name__ == "__main__":
    main()
