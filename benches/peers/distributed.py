"""What libraries make of a batch that lies over several processes: batch-all over the active triplets, against one process.

    python benches/peers/distributed.py [--ours target/release/examples/distributed] [--processes 2 4]

Starts itself as so many processes on this machine's CPUs (gloo), each with the same encoder and its rows of the batch. The
gradients of the weights are then averaged, as DistributedDataParallel does. Printed are the value (the mean over processes), the
length and the direction of the averaged gradient, and its worst entry's error relative to the largest entry, all against one
process with the whole batch in f64. `alike`: each process's rows are like the others'. `unlike`: the rows of one process have no
positive, so that it has no active triplet. All of the libraries need as many rows in each process.

Packages: torch; pytorch-metric-learning (with numpy, scipy and tqdm), open_clip_torch and sentence-transformers, each left out if
missing. Of the latter two only the file with the gather is loaded, which needs nothing else. `--ours` runs Tercet's example on the same batch:

    cargo build --release --example distributed
"""

import argparse
import importlib.util
import os
import socket
import subprocess
import sys
import types
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.nn

ROWS, INPUTS, HIDDEN, DIM, MARGIN = 24, 20, 64, 32, 1.0


def batch(processes, layout):
    """The same numbers as in examples/distributed.rs."""
    torch.manual_seed(5)
    n = ROWS * processes
    inputs = torch.randn(n, INPUTS, dtype=torch.float64)
    weights = [torch.randn(INPUTS, HIDDEN, dtype=torch.float64) * 0.2, torch.randn(HIDDEN, DIM, dtype=torch.float64) * 0.2]
    labels = torch.tensor([(i * 7 + i // 5) % 9 for i in range(n)])
    if layout == "unlike":
        labels[:ROWS] = torch.arange(ROWS) + 1000
    return inputs, labels, weights


def encode(inputs, weights):
    return (inputs @ weights[0]).tanh() @ weights[1]


def batch_all(x, labels, others, other_labels, first):
    """The mean over active triplets of anchors `x` against `others`, in which anchor 0 is row `first`."""
    d = (x[:, None] - others[None]).square().sum(2)
    same = labels[:, None] == other_labels[None]
    itself = torch.arange(len(others))[None] == torch.arange(len(x))[:, None] + first
    terms = (d[:, :, None] - d[:, None, :] + MARGIN).relu()
    terms = terms * ((same & ~itself)[:, :, None] & ~same[:, None, :])
    return terms.sum() / (terms > 0).sum().clamp(min=1)


def file_of(package, name):
    """A file of a package that is installed, without running the package."""
    spec = importlib.util.find_spec(package)
    return Path(spec.submodule_search_locations[0]) / name if spec else None


def load(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def open_clip_gather():
    path = file_of("open_clip", "loss.py")
    return load(path, "open_clip_loss").gather_features if path else None


def sentence_transformers_gather():
    path = file_of("sentence_transformers", "util/distributed.py")
    if not path:
        return None
    # What the file imports beside torch, and does not need for this.
    parts = {
        "transformers": {},
        "transformers.utils": {"logging": types.SimpleNamespace(get_logger=lambda _: None)},
        "gathers": {},
        "gathers.environment": {"is_dist_initialized": dist.is_initialized},
        "gathers.misc": {"disable_logging": None},
        "gathers.tensor": {"_move_tensors_to_cpu": None, "_move_tensors_to_device": None},
    }
    for name, contents in parts.items():
        module = types.ModuleType(name)
        module.__dict__.update(contents)
        module.__path__ = []
        sys.modules[name] = module
    return load(path, "gathers.distributed").all_gather_with_grad


def pytorch_metric_learning_losses():
    try:
        from pytorch_metric_learning import distances, losses
        from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
    except ImportError:
        return {}
    distance = distances.LpDistance(normalize_embeddings=False, p=2, power=2)
    loss = losses.TripletMarginLoss(margin=MARGIN, distance=distance)
    return {
        "pytorch-metric-learning, DistributedLossWrapper": DistributedLossWrapper(loss),
        "pytorch-metric-learning, efficient=True": DistributedLossWrapper(loss, efficient=True),
    }


def losses(rank, processes):
    """Each library's loss of this process's rows, by name."""
    first = rank * ROWS

    def gathered(x, labels):
        all_x = [torch.zeros_like(x) for _ in range(processes)]
        all_labels = [torch.zeros_like(labels) for _ in range(processes)]
        dist.all_gather(all_x, x.detach())
        dist.all_gather(all_labels, labels)
        return torch.cat(all_x), torch.cat(all_labels)

    found = {"each process its own batch": lambda x, y: batch_all(x, y, x, y, 0)}

    def without_gradient(x, y):
        return batch_all(x, y, *gathered(x, y), first)

    found["own anchors, gathered without a gradient"] = without_gradient
    gather = open_clip_gather()
    if gather:
        for local, grad in [(False, False), (True, False), (False, True), (True, True)]:
            flags = "".join([" --local-loss" if local else "", " --gather-with-grad" if grad else ""]) or ", no flag"

            def clip(x, y, local=local, grad=grad):
                all_x, _ = gather(x, x, local, grad, rank, processes)
                all_y = gathered(x, y)[1]
                return batch_all(x, y, all_x, all_y, first) if local else batch_all(all_x, all_y, all_x, all_y, 0)

            found[f"open_clip's gather{flags}"] = clip
    gather_with_grad = sentence_transformers_gather()
    if gather_with_grad:
        found["sentence-transformers, gather_across_devices"] = lambda x, y: batch_all(
            x, y, gather_with_grad(x), gathered(x, y)[1], first
        )
    return {**found, **pytorch_metric_learning_losses()}


def row(name, value, whole, gradient, expected):
    length = (gradient.norm() / expected.norm()).item()
    cosine = (gradient @ expected / (gradient.norm() * expected.norm())).item() if gradient.norm() > 0 else 0.0
    error = ((gradient - expected).abs().max() / expected.abs().max()).item()
    print(f"| {name} | x {value / whole:.3f} | x {length:.3f} | {cosine:.4f} | {error:.1e} |", flush=True)


def process():
    dist.init_process_group("gloo")
    rank, processes, layout = dist.get_rank(), dist.get_world_size(), os.environ["LAYOUT"]
    inputs, labels, weights = batch(processes, layout)
    exact = [weight.clone().requires_grad_() for weight in weights]
    whole = batch_all(encode(inputs, exact), labels, encode(inputs, exact), labels, 0)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(whole, exact)])
    own = slice(rank * ROWS, rank * ROWS + ROWS)
    for name, loss in losses(rank, processes).items():
        weights_here = [weight.float().requires_grad_() for weight in weights]
        value = loss(encode(inputs[own].float(), weights_here), labels[own])
        gradients = torch.autograd.grad(value, weights_here, allow_unused=True)
        gradients = [torch.zeros_like(w) if g is None else g for g, w in zip(gradients, weights_here)]
        gradient = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(gradient)
        mean = value.detach().clone()
        dist.all_reduce(mean)
        if rank == 0:
            row(name, mean.item() / processes, whole.item(), gradient.double() / processes, expected)
    dist.destroy_process_group()


def start(program, processes, layout):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    variables |= {"OMP_NUM_THREADS": 1, "LAYOUT": layout}
    running = []
    for rank in range(processes):
        own = variables | {"RANK": rank, "LOCAL_RANK": rank}
        running.append(subprocess.Popen(program, env=os.environ | {name: str(value) for name, value in own.items()}))
    codes = [child.wait() for child in running]
    if any(codes):
        sys.exit(f"{program}: exit codes {codes}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ours", help="the example `distributed` of Tercet, as it was built")
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}; each figure against one process with the whole batch")
    for processes in arguments.processes:
        for layout in ("alike", "unlike"):
            print(f"\n{processes} processes, shards {layout}\n")
            print("| | value | length of the gradient | cosine | worst error |\n|---|---|---|---|---|", flush=True)
            start([sys.executable, __file__], processes, layout)
            if arguments.ours:
                start([arguments.ours], processes, layout)


if __name__ == "__main__":
    process() if "RANK" in os.environ else main()
