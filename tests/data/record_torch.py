"""Records what PyTorch computes for triplets, for tests/it/triplet_margin/torch.rs.

    .venv/bin/python tests/data/record_torch.py

writes torch_triplet_margin.json beside this file. Needs torch alone (requirements.txt); the seeds are fixed, so another
run with the same version writes the same file.

Every number of an input is k/64 with |k| <= 255: the same number in f64, f32, f16 and bf16, so that one record serves
all of them. Losses and gradients are computed in f64. Each gradient is the one of sum(upstream * loss), where upstream
is a random k/64 as well: one number for mean and sum, one a row for none.

The file:
    torch                  the version
    sets.<name>            b, d and the rows of anchor, positive and negative, row after row
    cases[]                what our loss should agree with
        id
        set                the inputs' name
        op                 triplet_margin     torch.nn.TripletMarginLoss(margin, p, eps, swap, reduction)
                           pairwise_distance  relu(pd(a, p) - pd(a, n) + margin), pd = F.pairwise_distance(p, eps)
                           squared            the tutorials' loss: relu(((a-p)**2).sum(1) - ((a-n)**2).sum(1) + margin)
                           normalized         the same of F.normalize(a), F.normalize(p), F.normalize(n)
                           cosine             relu(cos(a, n) - cos(a, p) + margin), cos = F.cosine_similarity(eps)
        p, eps             where the op has them; p may be "inf"
        margin, swap, reduction, upstream
        loss               a list: one number, or for none one a row
        grads              of anchor, positive and negative, row after row
    differences[]          the same, of op triplet_margin, where our documented behaviour is another one:
        kind kink          a row's loss is exactly 0 from both sides: torch's clamp_min has gradient 1 there
        kind swap_tie      d(a, n) = d(p, n): torch gives half of the gradient to each
"""

import itertools
import json
import math
import pathlib

import torch
import torch.nn.functional as F

PS = [1.0, 2.0, 3.0, 1.5, math.inf, 0.5]
REDUCTIONS = ["none", "mean", "sum"]
GRID = 64  # of all inputs and upstream gradients
# Unless a set is made to lie exactly on the hinge, no row may be so near that rounding in f32 decides.
DECISIVE = 1e-3


def lattice(shape, generator, limit=128):
    return torch.randint(-limit, limit + 1, shape, generator=generator).double() / GRID


def triplets(rows):
    """A set from a list of (a, p, n)."""
    return [torch.tensor([row[i] for row in rows], dtype=torch.float64) for i in range(3)]


def make_sets():
    generator = torch.Generator().manual_seed(20)
    sets = {}
    sets["random"] = [lattice((4, 5), generator) for _ in range(3)]
    # Longer than the running sums of a fused loop, and not a multiple of them.
    sets["wide"] = [lattice((2, 37), generator) for _ in range(3)]
    # In the order a = p, p = n, a = n, all three, zero rows: of one, of two, of all.
    x, y, z = lattice((3, 3), generator).tolist()
    o = [0.0, 0.0, 0.0]
    sets["coincident"] = triplets([(x, x, y), (x, y, y), (x, y, x), (z, z, z), (o, x, z), (y, o, o), (o, o, o)])
    # The same without a = p, where d(a, n) = d(p, n) is a tie of the swap.
    sets["coincident_swap"] = triplets([(x, y, y), (x, y, x), (o, x, z), (y, o, o)])
    # The second row lies exactly on the hinge for margin 1: once for squared distances and p = 2 / 1 / inf each.
    active, inactive = ([0.0, 0.5], [1.0, 1.0], [0.25, 0.5]), ([0.0, 0.5], [0.0, 0.25], [2.0, 3.0])
    o = [0.0, 0.0]
    sets["kink_squared"] = triplets([active, (o, [1.0, 0.0], [1.0, 1.0]), inactive])
    sets["kink_p2"] = triplets([active, (o, [0.75, 1.0], [0.0, 2.25]), inactive])
    sets["kink_p1"] = triplets([active, (o, [0.75, 1.0], [0.5, 2.25]), inactive])
    sets["kink_pinf"] = triplets([active, (o, [0.75, 1.0], [2.0, 0.5]), inactive])
    sets["kink_cosine"] = triplets([active, ([1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]), inactive])
    # d(a, n) = d(p, n) for every p, by symmetry; and with a = p. The third row is no tie: p is nearer. All are active.
    x = [0.5, 0.25]
    sets["swap_tie"] = triplets([(o, [1.0, 0.0], [0.5, 0.25]), (x, x, [0.625, 0.3125]), (o, [0.5, 0.5], [0.75, 1.0])])
    for name, rows in sets.items():
        for x in rows:
            assert bool((x * GRID == (x * GRID).round()).all() and (x * GRID).abs().max() <= 255), name
    return sets


def distances(case, a, p, n):
    """d(a, p), d(a, n), d(p, n), as the case's op has them."""
    if case["op"] == "normalized":
        a, p, n = F.normalize(a), F.normalize(p), F.normalize(n)
    if case["op"] in ("squared", "normalized"):
        of = lambda x, y: ((x - y) ** 2).sum(1)
    elif case["op"] == "cosine":
        of = lambda x, y: 1 - F.cosine_similarity(x, y, dim=1, eps=case["eps"])
    else:
        of = lambda x, y: F.pairwise_distance(x, y, p=case["p"], eps=case["eps"])
    return of(a, p), of(a, n), of(p, n)


def loss_of(case, a, p, n):
    if case["op"] == "triplet_margin":
        return torch.nn.TripletMarginLoss(
            margin=case["margin"], p=case["p"], eps=case["eps"], swap=case["swap"], reduction=case["reduction"]
        )(a, p, n)
    d_ap, d_an, _ = distances(case, a, p, n)
    loss = F.relu(d_ap - d_an + case["margin"])
    return {"none": lambda: loss, "mean": loss.mean, "sum": loss.sum}[case["reduction"]]()


def record(sets, case, generator, exact):
    rows = [x.clone().requires_grad_() for x in sets[case["set"]]]
    d_ap, d_an, d_pn = distances(case, *rows)
    argument = d_ap - (torch.minimum(d_an, d_pn) if case["swap"] else d_an) + case["margin"]
    assert exact == "hinge" or argument.abs().min() > DECISIVE, (case, argument)
    assert exact == "swap" or not case["swap"] or (d_an - d_pn).abs().min() > DECISIVE, case
    loss = loss_of(case, *rows)
    upstream = lattice(loss.shape, generator)
    upstream[upstream == 0] = 1.0
    grads = torch.autograd.grad(loss, rows, upstream)
    assert all(bool(torch.isfinite(x).all()) for x in (loss, *grads)), case
    return outcome(case, upstream, loss, grads)


def outcome(case, upstream, loss, grads):
    listed = lambda x: [0.0 if v == 0 else v for v in x.detach().flatten().tolist()]  # without -0.0
    if case.get("p") == math.inf:
        case["p"] = "inf"
    return case | {"upstream": listed(upstream), "loss": listed(loss), "grads": [listed(g) for g in grads]}


def make_cases(sets):
    generator = torch.Generator().manual_seed(21)
    cases, differences = [], []

    def add(op, rows, margin=1.0, swap=False, reduction="mean", exact=None, kind=None, **options):
        into = cases if kind is None else differences
        case = {"id": f"{'case' if kind is None else kind}-{len(into)}", "set": rows, "op": op}
        case |= {"kind": kind} if kind else {}
        case |= options | {"margin": margin, "swap": swap, "reduction": reduction}
        into.append(record(sets, case, generator, exact))

    turns = itertools.cycle(REDUCTIONS)
    for p, swap, margin, reduction in itertools.product(PS, [False, True], [0.2, 1.0], REDUCTIONS):
        add("triplet_margin", "random", margin, swap, reduction, p=p, eps=1e-6)
    for p in PS:
        # eps = 0: where a difference is 0, the gradient is torch's convention alone.
        for eps in [1e-6, 0.0]:
            add("triplet_margin", "coincident", reduction=next(turns), p=p, eps=eps)
            add("triplet_margin", "coincident_swap", swap=True, reduction=next(turns), p=p, eps=eps)
            add("pairwise_distance", "coincident", 0.2, reduction=next(turns), p=p, eps=eps)
        for eps in [1e-6, 0.125]:
            add("pairwise_distance", "random", reduction=next(turns), p=p, eps=eps)
    for p in [2.0, 1.0, 3.0, math.inf]:
        add("triplet_margin", "wide", swap=p == 2.0, reduction=next(turns), p=p, eps=1e-6)

    for op, eps in [("squared", {}), ("normalized", {}), ("cosine", {"eps": 1e-8})]:
        for reduction in REDUCTIONS:
            add(op, "random", 0.2, reduction=reduction, **eps)
        add(op, "random", 1.0, reduction=next(turns), **eps)
        add(op, "wide", 1.0, reduction=next(turns), **eps)
        # Zero rows have no direction: only with the minimum norm that `normalize` has do all agree on their gradient.
        for reduction in REDUCTIONS:
            add(op, "coincident", 0.2, reduction=reduction, **({"eps": 1e-12} if eps else {}))

    # relu has gradient 0 at 0, as we do.
    for reduction in REDUCTIONS:
        add("squared", "kink_squared", reduction=reduction, exact="hinge")
        add("cosine", "kink_cosine", reduction=reduction, exact="hinge", eps=1e-8)
        for p, rows in [(2.0, "kink_p2"), (1.0, "kink_p1"), (math.inf, "kink_pinf")]:
            add("pairwise_distance", rows, reduction=reduction, exact="hinge", p=p, eps=0.0)
            add("triplet_margin", rows, reduction=reduction, exact="hinge", kind="kink", p=p, eps=0.0)
        for p in PS:
            add("triplet_margin", "swap_tie", 1.0, True, reduction, exact="swap", kind="swap_tie", p=p, eps=0.0)
    return cases, differences


def main():
    sets = make_sets()
    cases, differences = make_cases(sets)
    shown = {
        name: {"b": len(rows[0]), "d": len(rows[0][0])}
        | {role: x.flatten().tolist() for role, x in zip(["anchor", "positive", "negative"], rows)}
        for name, rows in sets.items()
    }
    write("torch_triplet_margin.json", shown, cases, differences)


def write(name, sets, cases, differences):
    lines = lambda items: ",\n".join(json.dumps(item, allow_nan=False) for item in items)
    text = (
        f'{{"torch": {json.dumps(torch.__version__.split("+")[0])},\n"sets": {{\n'
        + ",\n".join(f"{json.dumps(name)}: {json.dumps(rows, allow_nan=False)}" for name, rows in sets.items())
        + f'\n}},\n"cases": [\n{lines(cases)}\n],\n"differences": [\n{lines(differences)}\n]}}\n'
    )
    path = pathlib.Path(__file__).with_name(name)
    path.write_text(text)
    print(f"{path.name}: {len(cases)} cases, {len(differences)} differences, {len(text)} bytes")


if __name__ == "__main__":
    main()
