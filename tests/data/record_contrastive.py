"""Records what the contrastive losses that people use compute, for tests/it/contrastive/torch.rs.

    .venv/bin/python tests/data/record_contrastive.py

writes torch_contrastive.json beside this file. Needs torch alone (requirements.txt); the seeds are fixed, so another run
with the same version writes the same file. As record_torch.py does it: inputs and upstream gradients are k/64, the same
number in every dtype, computed with in f64.

The file:
    torch                  the version
    sets.<name>            b, d, the rows of x1 and x2, row after row, and same
    cases[]                what our loss should agree with
        id
        set                the inputs' name
        op                 what d is:  pairwise_distance  F.pairwise_distance(x1, x2, p, eps)
                                       norm               the L2 norm of x1 - x2
                                       squared            its square
                                       normalized_norm    the norm, of F.normalize(x1) - F.normalize(x2)
                                       cosine             1 - F.cosine_similarity(x1, x2, eps)
                           in  0.5 * (same * d**2 + (1 - same) * relu(margin - d)**2)
        p, eps             where the op has them; p may be "inf"
        margin, reduction, upstream
        loss               a list: one number, or for none one a row
        grads              of x1 and x2, row after row
    differences[]          the same, of other libraries' formulas, where ours is documented to be another one:
        kind tensorflow_addons   tfa.losses.contrastive_loss(same, d, margin): no halves
        kind siamese_triplet     ContrastiveLoss: relu(margin - (d**2 + 1e-9).sqrt())**2
"""

import itertools

import torch
import torch.nn.functional as F

from record_torch import GRID, PS, REDUCTIONS, lattice, outcome, write


def make_sets():
    generator = torch.Generator().manual_seed(30)
    sets = {}

    def add(name, x1, x2, same):
        x1, x2 = (torch.tensor(x, dtype=torch.float64) if isinstance(x, list) else x for x in (x1, x2))
        for x in (x1, x2):
            assert bool((x * GRID == (x * GRID).round()).all() and (x * GRID).abs().max() <= 255), name
        sets[name] = (x1, x2, torch.tensor(same))

    add("random", lattice((6, 5), generator), lattice((6, 5), generator), [True, False, True, False, False, True])
    # Longer than the running sums of a fused loop, and not a multiple of them.
    add("wide", lattice((3, 37), generator), lattice((3, 37), generator), [False, True, False])
    # Near enough to be pushed.
    x = lattice((4, 7), generator)
    add("near", x, x + lattice((4, 7), generator, 6), [False, True, False, False])
    x, o = lattice((1, 3), generator).tolist()[0], [0.0, 0.0, 0.0]
    y = [x[0], x[1], x[2] + 0.25]
    # The same point, near ones, zero rows: of one, of both; each as a pair that belongs together and as one that does not.
    rows = [(x, x), (x, y), (o, x), (x, o), (o, o)]
    for name, same in [("coincident_same", True), ("coincident_different", False)]:
        add(name, [r[0] for r in rows], [r[1] for r in rows], [same] * len(rows))
    # At distance 1.25 exactly, for p = 2, inf and 1, and for the first row alone, p = 1.
    add("margin", [[0.0, 0.0]] * 3, [[0.75, 1.0], [1.25, 0.0], [0.5, 0.75]], [False] * 3)
    return sets


def distance(case, x1, x2):
    op = case["op"]
    if op == "pairwise_distance":
        return F.pairwise_distance(x1, x2, p=case["p"], eps=case["eps"])
    if op == "cosine":
        return 1 - F.cosine_similarity(x1, x2, dim=1, eps=case["eps"])
    if op == "squared":
        return ((x1 - x2) ** 2).sum(1)
    if op == "normalized_norm":
        x1, x2 = F.normalize(x1), F.normalize(x2)
    return torch.linalg.vector_norm(x1 - x2, dim=1)


def losses_of(case, x1, x2, same):
    kind, m, y = case.get("kind"), case["margin"], same.double()
    if kind == "siamese_triplet":
        squared = ((x2 - x1) ** 2).sum(1)
        return 0.5 * (y * squared + (1 - y) * F.relu(m - (squared + 1e-9).sqrt()) ** 2)
    d = distance(case, x1, x2)
    if kind == "tensorflow_addons":
        return y * d**2 + (1 - y) * F.relu(m - d) ** 2
    return 0.5 * (y * d**2 + (1 - y) * F.relu(m - d) ** 2)


def record(sets, case, generator):
    x1, x2, same = sets[case["set"]]
    rows = [x1.clone().requires_grad_(), x2.clone().requires_grad_()]
    losses = losses_of(case, *rows, same)
    loss = {"none": lambda: losses, "mean": losses.mean, "sum": losses.sum}[case["reduction"]]()
    upstream = lattice(loss.shape, generator)
    upstream[upstream == 0] = 1.0
    grads = torch.autograd.grad(loss, rows, upstream)
    assert all(bool(torch.isfinite(x).all()) for x in (loss, *grads)), case
    return outcome(case, upstream, loss, grads)


def make_cases(sets):
    generator = torch.Generator().manual_seed(31)
    cases, differences = [], []

    def add(op, rows, margin=1.0, reduction="mean", kind=None, **options):
        into = cases if kind is None else differences
        case = {"id": f"{'case' if kind is None else kind}-{len(into)}", "set": rows, "op": op}
        case |= {"kind": kind} if kind else {}
        into.append(record(sets, case | options | {"margin": margin, "reduction": reduction}, generator))

    turns = itertools.cycle(REDUCTIONS)
    for p, margin, reduction in itertools.product(PS, [1.0, 6.0], REDUCTIONS):
        add("pairwise_distance", "random", margin, reduction, p=p, eps=1e-6)
    for p in PS:
        for rows in ["near", "wide"]:
            add("pairwise_distance", rows, 4.0, next(turns), p=p, eps=0.125)
        # eps = 0: where a difference is 0, the gradient is torch's convention alone.
        for eps, rows in itertools.product([1e-6, 0.0], ["coincident_same", "coincident_different"]):
            add("pairwise_distance", rows, 2.0, next(turns), p=p, eps=eps)
    for op, eps in [("norm", {}), ("squared", {}), ("normalized_norm", {}), ("cosine", {"eps": 1e-8})]:
        for rows, margin in itertools.product(["random", "near", "wide"], [0.5, 1.0, 8.0]):
            add(op, rows, margin, next(turns), **eps)
        # Zero rows have no direction: only with the minimum norm that `normalize` has do all agree on their gradient.
        for rows, reduction in itertools.product(["coincident_same", "coincident_different"], REDUCTIONS):
            add(op, rows, 2.0, reduction, **({"eps": 1e-12} if eps else {}))
    # Exactly the margin apart: nothing, and no gradient, from either side.
    for reduction in REDUCTIONS:
        add("norm", "margin", 1.25, reduction)
        add("pairwise_distance", "margin", 1.25, reduction, p=1.0, eps=0.0)
        add("squared", "margin", 1.5625, reduction)
    for kind, rows in itertools.product(
        ["tensorflow_addons", "siamese_triplet"],
        ["random", "near", "wide", "coincident_same", "coincident_different", "margin"],
    ):
        for reduction, margin in itertools.product(REDUCTIONS, [1.0, 2.0]):
            add("norm", rows, margin, reduction, kind=kind)
    return cases, differences


def main():
    sets = make_sets()
    cases, differences = make_cases(sets)
    shown = {
        name: {"b": len(x1), "d": len(x1[0]), "x1": x1.flatten().tolist(), "x2": x2.flatten().tolist()}
        | {"same": same.tolist()}
        for name, (x1, x2, same) in sets.items()
    }
    write("torch_contrastive.json", shown, cases, differences)


if __name__ == "__main__":
    main()
