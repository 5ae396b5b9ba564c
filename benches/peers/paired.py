"""Times the losses of given triplets and pairs that others have: torch in eager mode and compiled, and a single-pass kernel
in Triton.

    python benches/peers/paired.py [--json FILE] [--quick]

Squared Euclidean distance, margin 0.2, mean: forward and backward. The floor is a copy of as many bytes: the rows in, and
their gradients out.
"""

import argparse

import torch
import torch.nn.functional as F
from common import DEVICE, MARGIN, Results, description, relative, seeded, turns

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

WITH_BF16 = [(65536, 128), (1 << 20, 128), (262144, 512)]
SIZES = [(256, 128), (4096, 128), (65536, 128), (262144, 128), (1 << 20, 128), (4096, 512), (65536, 512), (262144, 512)]


def triplet_margin(a, p, n):
    return ((a - p).square().sum(1) - (a - n).square().sum(1) + MARGIN).relu().mean()


def torchs_loss(a, p, n):
    return F.triplet_margin_loss(a, p, n, margin=MARGIN)


def contrastive(a, b):
    d = (a - b).square().sum(1).clamp_min(1e-12).sqrt()
    same = torch.arange(a.shape[0], device=a.device) % 2 == 0
    return torch.where(same, d.square(), (16 - d).relu().square()).mean() / 2


if triton:

    @triton.jit
    def _triplet(a, p, n, ga, gp, gn, losses, rows, margin, factor, D: tl.constexpr, R: tl.constexpr):
        row = tl.program_id(0) * R + tl.arange(0, R)
        at = row.to(tl.int64)[:, None] * D + tl.arange(0, D)[None, :]
        mask = (row < rows)[:, None]
        x = tl.load(a + at, mask=mask, other=0).to(tl.float32)
        y = tl.load(p + at, mask=mask, other=0).to(tl.float32)
        z = tl.load(n + at, mask=mask, other=0).to(tl.float32)
        t = tl.sum((x - y) * (x - y), 1) - tl.sum((x - z) * (x - z), 1) + margin
        active = (t > 0) & (row < rows)
        tl.store(losses + tl.program_id(0), tl.sum(tl.where(active, t, 0.0)))
        w = tl.where(active, 2 * factor, 0.0)[:, None]
        tl.store(ga + at, w * (z - y), mask=mask)
        tl.store(gp + at, w * (y - x), mask=mask)
        tl.store(gn + at, w * (x - z), mask=mask)

    class Triton(torch.autograd.Function):
        """Loss and gradients in one pass over the rows; the gradients are those of a loss that nothing scales."""

        @staticmethod
        def forward(ctx, a, p, n):
            rows, dim = a.shape
            block = max(1, 4096 // dim)
            blocks = triton.cdiv(rows, block)
            losses = torch.empty(blocks, device=a.device)
            ctx.grads = [torch.empty_like(x) for x in (a, p, n)]
            _triplet[(blocks,)](a, p, n, *ctx.grads, losses, rows, MARGIN, 1 / rows, D=dim, R=block, num_warps=8)
            return losses.sum() / rows

        @staticmethod
        def backward(ctx, upstream):
            return tuple(ctx.grads)


def who(op):
    if op == "triplet_margin":
        yield "torch, eager", triplet_margin
        yield "torch's own triplet_margin_loss (Euclidean)", torchs_loss
        yield "torch.compile", torch.compile(triplet_margin)
        if triton and DEVICE == "cuda":
            yield "Triton, one pass", Triton.apply
    else:
        yield "torch, eager", contrastive
        yield "torch.compile", torch.compile(contrastive)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="add the rows to this file")
    parser.add_argument("--quick", action="store_true", help="two sizes, f32")
    args = parser.parse_args()
    results = Results(args.json)
    print(f"{description()}; torch {torch.__version__}" + (f"; triton {triton.__version__}" if triton else ""))
    sizes = SIZES[1:3] if args.quick else SIZES
    torch._dynamo.config.cache_size_limit = 64
    for op, count in [("triplet_margin", 3), ("contrastive", 2)]:
        for rows, dim in sizes:
            for dtype in ["f32"] + (["bf16"] if (rows, dim) in WITH_BF16 and not args.quick else []):
                x = seeded(rows, dim, dtype, count)
                bytes_of_one = sum(t.nbytes for t in x)
                sets = [x] + [[t.detach().clone().requires_grad_() for t in x] for _ in range(turns(2 * bytes_of_one) - 1)]
                what = {"op": op, "rows": rows, "dim": dim, "dtype": dtype, "pass": "both"}
                to = [[torch.empty_like(t) for t in s] for s in sets]

                @torch.no_grad()
                def copy(turn, sets=sets, to=to):
                    for source, target in zip(sets[turn % len(sets)], to[turn % len(to)]):
                        target.copy_(source)

                results.measure(what | {"who": "copy of as many bytes"}, copy)
                del to
                exact = triplet_margin if op == "triplet_margin" else contrastive
                for name, function in who(op):

                    def step(turn, function=function, sets=sets):
                        s = sets[turn % len(sets)]
                        return torch.autograd.grad(function(*s), s)

                    def errors(function=function, name=name):
                        if "Euclidean" in name or rows > 65536:
                            return {}
                        wide = [t.detach().double().requires_grad_() for t in x]
                        loss = exact(*wide)
                        grads = torch.autograd.grad(loss, wide)
                        return {
                            "loss_error": relative(function(*x), loss),
                            "grad_error": max(map(relative, torch.autograd.grad(function(*x), x), grads)),
                        }

                    results.measure(what | {"who": name}, step, errors)
                del sets, x


if __name__ == "__main__":
    main()
