"""Records what other libraries compute for semi-hard, chosen negatives, contrastive over a batch, reference sets, and the
rest of torch.nn, for tests/it/parity.rs.

    python tests/data/record_parity.py

writes parity.json beside this file. Needs torch, pytorch-metric-learning and sentence-transformers; the seeds are fixed, so
another run with the same versions writes the same file. siamese-triplet is not a package, and TensorFlow-Addons needs
TensorFlow: their formulas are written here in tensor operations, and named so ("formula of ...").

As record_mined.py does it: every number of an input is k/64 with |k| <= 128, losses and gradients are computed in f64.

The file:
    versions          of what was asked
    sets.<name>       n, d, labels, and the rows, row after row
        reference     n, labels, rows, and own: null, or one index an anchor
    triplets          b, d, and the rows of anchor, positive and negative; pairs: b, d, rows of x1 and x2, and same
    cases[]
        id, set, library
        of            what of that library
        loss          ours: batch_all, batch_hard, batch_semi_hard, batch_negative, batch_contrastive,
                      triplet_margin or contrastive; of CosineEmbeddingLoss none
        distance      squared, euclidean, cosine, manhattan; pairwise_1 or pairwise_2: F.pairwise_distance, with its eps
        margin, and the options of that loss; of batch_contrastive power 2, a pos_margin of 0 and one mean where nothing is said
        factor        theirs is this times ours
        pairs, candidates    of batch_negative: each (a, p), and of what one is drawn for it
        chosen        the one that was, or null
        value, grad   the loss and its gradient, row after row; of a paired loss lists of them
        reference_grad    where there is one
"""

import importlib.metadata
import itertools
import json
import pathlib

import torch
import torch.nn.functional as F
from pytorch_metric_learning import distances, losses, miners, reducers
from sentence_transformers.sentence_transformer.losses import (
    BatchHardTripletLossDistanceFunction,
    BatchSemiHardTripletLoss,
    ContrastiveLoss as PairContrastiveLoss,
    SiameseDistanceMetric,
    TripletDistanceMetric,
    TripletLoss,
)

from record_mined import rounded

torch.set_default_dtype(torch.float64)

LABELS = {
    "pairs": [0, 0, 1, 1, 2, 2],
    "uneven": [4, -1, 4, 7, -1, 4, 9, 7, 4, -1],
    "larger": [i * 7 % 9 for i in range(24)],
}


def make_sets():
    generator = torch.Generator().manual_seed(41)

    def rows(n, d):
        return (torch.randint(-128, 129, (n, d), generator=generator).double() / 64).flatten().tolist()

    sets = {}
    for (name, labels), d in zip(LABELS.items(), [5, 3, 4]):
        sets[name] = {"n": len(labels), "d": d, "labels": labels, "rows": rows(len(labels), d)}
    # Two views of the same things, each its own class.
    own, views = list(range(6)), {"n": 6, "d": 4, "rows": rows(6, 4)}
    sets["views"] = {**views, "labels": own, "reference": {"n": 6, "labels": own, "rows": rows(6, 4), "own": None}}
    # Apart from the batch: some labels that it has, one that it lacks.
    labels = [4, 9, 9, 5, -1, 7, 4, 5, 7, -1, -1, 4]
    sets["bank"] = {**sets["uneven"], "reference": {"n": 12, "labels": labels, "rows": rows(12, 3), "own": None}}
    return sets


SETS = make_sets()


def tensors(name):
    of_set = SETS[name]
    shape = of_set["n"], of_set["d"]
    return torch.tensor(of_set["rows"]).view(shape), torch.tensor(of_set["labels"])


def squared_distances(x, y):
    return (x.unsqueeze(1) - y.unsqueeze(0)).pow(2).sum(2)


def matrix(distance, x, y):
    if distance == "cosine":
        return 1 - F.normalize(x) @ F.normalize(y).t()
    squared = squared_distances(x, y)
    if distance == "squared":
        return squared
    # The root's slope at 0 is infinite, and nothing asks for the diagonal.
    return torch.where(squared == 0, 0.0, torch.where(squared == 0, 1.0, squared).sqrt())


def pml_distance(distance, normalize=False):
    return {
        "squared": lambda: distances.LpDistance(p=2, power=2, normalize_embeddings=normalize),
        "euclidean": lambda: distances.LpDistance(p=2, power=1, normalize_embeddings=normalize),
        "cosine": distances.CosineSimilarity,
    }[distance]()


def sentence_transformers_semi_hard(distance, margin):
    measure = {
        "euclidean": BatchHardTripletLossDistanceFunction.euclidean_distance,
        "cosine": BatchHardTripletLossDistanceFunction.cosine_distance,
    }[distance]
    function = BatchSemiHardTripletLoss(model=None, distance_metric=measure, margin=margin)
    return lambda x, y: function.batch_semi_hard_triplet_loss(y, x)


def addons_semi_hard(distance, margin):
    """tfa.losses.triplet_semihard_loss: over ordered pairs, with the nearest negative beyond d_ap, else the farthest."""

    def function(x, y):
        d = matrix(distance, x, x)
        total, pairs = 0.0, 0
        for a, p in itertools.permutations(range(len(y)), 2):
            if y[a] != y[p]:
                continue
            negatives = d[a][y != y[a]]
            beyond = negatives[negatives > d[a, p]]
            negative = beyond.min() if len(beyond) else negatives.max()
            total, pairs = total + F.relu(d[a, p] - negative + margin), pairs + 1
        return total / pairs

    return function


def siamese_triplets(x, y, selector, margin):
    """The selectors of siamese-triplet: each pair once; by pair the candidates, and the one that is taken."""
    d = squared_distances(x, x).detach()
    found = []
    for a, p in itertools.combinations(range(len(y)), 2):
        if y[a] != y[p]:
            continue
        negatives = (y != y[a]).nonzero().flatten()
        violation = d[a, p] - d[a, negatives] + margin
        if selector == "semi_hard":
            candidates = negatives[(violation > 0) & (violation < margin)]
        else:
            candidates = negatives[violation > 0]
        chosen = None
        if len(candidates):
            # What it draws does not matter here, but that any of them may come.
            drawn = candidates[(3 * a + p) % len(candidates)]
            chosen = (negatives[violation.argmax()] if selector == "hardest" else drawn).item()
        found.append({"pairs": [a, p], "candidates": candidates.tolist(), "chosen": chosen})
    return found


def siamese_online_triplet(triplets, margin):
    """OnlineTripletLoss over (a, p, n)."""

    def function(x, y):
        a, p, n = torch.tensor(triplets).t()
        return F.relu((x[a] - x[p]).pow(2).sum(1) - (x[a] - x[n]).pow(2).sum(1) + margin).mean()

    return function


def siamese_online_contrastive(negatives, margin):
    """OnlineContrastiveLoss with AllPositivePairSelector(balance=False) or HardNegativePairSelector: d² and (m - d)², no
    halves, over each pair once."""

    def function(x, y):
        d = squared_distances(x, x)
        pairs = torch.tensor(list(itertools.combinations(range(len(y)), 2)))
        same = y[pairs[:, 0]] == y[pairs[:, 1]]
        positive, negative = pairs[same], pairs[~same]
        if negatives == "hardest":
            negative = negative[d[negative[:, 0], negative[:, 1]].argsort()[: len(positive)]]
        pull = d[positive[:, 0], positive[:, 1]]
        push = F.relu(margin - d[negative[:, 0], negative[:, 1]].sqrt()).pow(2)
        return torch.cat([pull, push]).mean()

    return function


class ContrastiveLoss(losses.ContrastiveLoss):
    """pytorch-metric-learning's pairs and distances under Hadsell's formula: its own is linear in d. The name is kept because
    CrossBatchMemory asks for it."""

    def pos_calc(self, pos_pair_dist, margin):
        return super().pos_calc(pos_pair_dist, margin).pow(2) / 2

    def neg_calc(self, neg_pair_dist, margin):
        return super().neg_calc(neg_pair_dist, margin).pow(2) / 2


def record(case, function):
    x, y = tensors(case["set"])
    x.requires_grad_()
    reference = SETS[case["set"]].get("reference")
    if reference is None:
        value = function(x, y)
        (grad,) = torch.autograd.grad(value, x)
        return {**case, "value": value.item(), "grad": grad.flatten().tolist()}
    others = torch.tensor(reference["rows"]).view(reference["n"], -1).requires_grad_()
    value = function(x, y, others, torch.tensor(reference["labels"]))
    grad, to_others = torch.autograd.grad(value, [x, others])
    grads = {"grad": grad.flatten().tolist(), "reference_grad": to_others.flatten().tolist()}
    return {**case, "value": value.item(), **grads}


def semi_hard_cases():
    for name, margin in itertools.product(LABELS, [0.2, 5.0]):
        common = {"set": name, "loss": "batch_semi_hard", "margin": margin, "factor": 1.0}
        for distance in ["euclidean", "cosine"]:
            case = {"library": "sentence-transformers", "of": "BatchSemiHardTripletLoss", "distance": distance}
            yield {**common, **case}, sentence_transformers_semi_hard(distance, margin)
        for distance in ["euclidean", "squared", "cosine"]:
            case = {"library": "formula of TensorFlow-Addons", "of": "triplet_semihard_loss", "distance": distance}
            yield {**common, **case}, addons_semi_hard(distance, margin)


def negative_cases():
    for name, selector, margin in itertools.product(LABELS, ["hardest", "random", "semi_hard"], [1.0, 6.0]):
        found = siamese_triplets(*tensors(name), selector, margin)
        triplets = [[*of["pairs"], of["chosen"]] for of in found if of["chosen"] is not None]
        if not triplets:
            continue
        case = {"set": name, "loss": "batch_negative", "distance": "squared", "margin": margin, "factor": 1.0}
        case |= {"library": "formula of siamese-triplet", "of": "OnlineTripletLoss", "negative": selector}
        case |= {key: [of[key] for of in found] for key in ["pairs", "candidates", "chosen"]}
        yield case, siamese_online_triplet(triplets, margin)


def contrastive_cases():
    for name, margin in itertools.product(LABELS, [1.0, 3.0]):
        common = {"set": name, "loss": "batch_contrastive", "margin": margin}
        for negatives, selector in [("all", "AllPositivePairSelector"), ("hardest", "HardNegativePairSelector")]:
            case = {"library": "formula of siamese-triplet", "of": f"OnlineContrastiveLoss, {selector}", "factor": 2.0}
            case |= {"distance": "euclidean", "negatives": negatives, "reduction": "mean"}
            yield {**common, **case}, siamese_online_contrastive(negatives, margin)
    for name, margin, distance in itertools.product([*LABELS, "bank"], [1.0, 3.0], ["euclidean", "squared"]):
        function = ContrastiveLoss(neg_margin=margin, distance=pml_distance(distance), reducer=reducers.SumReducer())
        case = {"set": name, "loss": "batch_contrastive", "margin": margin, "factor": 1.0, "distance": distance}
        case |= {"library": "pytorch-metric-learning", "of": "ContrastiveLoss, its terms squared and halved"}
        case |= {"negatives": "all", "reduction": "sum"}
        yield case, lambda x, y, *others, f=function: f(x, y, None, *others)
    averages = [("active", reducers.AvgNonZeroReducer), ("valid", reducers.MeanReducer)]
    of = ["euclidean", "squared", "cosine"]
    for name, distance, pos_margin, (mean_over, reducer) in itertools.product([*LABELS, "bank"], of, [0.0, 0.25], averages):
        # Similarities s = 1 - d: max(m - s, 0) = max(d - (1 - m), 0).
        margins = {"pos_margin": pos_margin, "neg_margin": 1.0}
        given = {key: 1 - value for key, value in margins.items()} if distance == "cosine" else margins
        function = losses.ContrastiveLoss(**given, distance=pml_distance(distance), reducer=reducer())
        case = {"set": name, "loss": "batch_contrastive", "margin": 1.0, "pos_margin": pos_margin, "factor": 1.0}
        case |= {"distance": distance, "library": "pytorch-metric-learning", "of": "ContrastiveLoss", "negatives": "all"}
        case |= {"reduction": "mean", "power": 1, "mean_over": mean_over, "means_apart": True}
        yield case, lambda x, y, *others, f=function: f(x, y, None, *others)


def reference_cases():
    for distance, margin in itertools.product(["squared", "euclidean", "cosine"], [0.2, 1.0]):
        common = {"set": "bank", "library": "pytorch-metric-learning", "distance": distance, "margin": margin, "factor": 1.0}
        measure = pml_distance(distance)
        for mean_over, reducer in [("active", reducers.AvgNonZeroReducer), ("valid", reducers.MeanReducer)]:
            function = losses.TripletMarginLoss(margin=margin, distance=measure, reducer=reducer())
            case = {"loss": "batch_all", "of": "TripletMarginLoss with ref_emb", "mean_over": mean_over}
            yield {**common, **case}, lambda x, y, r, s, f=function: f(x, y, None, r, s)
        function = losses.TripletMarginLoss(margin=margin, distance=measure, reducer=reducers.MeanReducer())
        miner = miners.BatchHardMiner(distance=measure)
        case = {"loss": "batch_hard", "of": "TripletMarginLoss, BatchHardMiner with ref_emb"}
        yield {**common, **case}, lambda x, y, r, s, f=function, m=miner: f(x, y, m(x, y, r, s), r, s)


def mined_cases():
    """Other ways to pytorch-metric-learning's triplets that come out as ours."""
    library = {"library": "pytorch-metric-learning", "factor": 1.0}
    for name, distance, margin in itertools.product(["uneven", "larger"], ["squared", "euclidean"], [0.2, 1.0]):
        common = {**library, "set": name, "distance": distance, "margin": margin}
        measure = pml_distance(distance)
        violating = miners.TripletMarginMiner(margin=margin, type_of_triplets="all", distance=measure)
        function = losses.TripletMarginLoss(margin=margin, distance=measure)
        case = {"loss": "batch_all", "of": "TripletMarginLoss, TripletMarginMiner(all)", "mean_over": "active"}
        yield {**common, **case}, lambda x, y, f=function, m=violating: f(x, y, m(x, y))
        function = losses.TripletMarginLoss(margin=margin, distance=measure, reducer=reducers.SumReducer())
        case = {"loss": "batch_all", "of": "TripletMarginLoss, SumReducer", "mean_over": "active", "reduction": "sum"}
        yield {**common, **case}, function
        function = losses.TripletMarginLoss(margin=margin, distance=measure, reducer=reducers.MeanReducer())
        hardest = miners.BatchEasyHardMiner(pos_strategy="hard", neg_strategy="hard", distance=measure)
        case = {"loss": "batch_hard", "of": "TripletMarginLoss, BatchEasyHardMiner(hard, hard)"}
        yield {**common, **case}, lambda x, y, f=function, m=hardest: f(x, y, m(x, y))
    for distance in ["squared", "cosine"]:
        function = losses.TripletMarginLoss(margin=1.0, distance=pml_distance(distance))
        function = losses.SelfSupervisedLoss(function, symmetric=False)
        case = {"loss": "batch_all", "of": "SelfSupervisedLoss(TripletMarginLoss)", "mean_over": "active"}
        case |= {**library, "set": "views", "distance": distance, "margin": 1.0}
        yield case, lambda x, y, r, s, f=function: f(x, r)


def memory_cases():
    """CrossBatchMemory after batches that fill its queue and go round: the batch lies in it, in two pieces. The memory is
    detached, so there is one gradient."""
    size, batches = 12, 3
    generator = torch.Generator().manual_seed(43)
    x = torch.randint(-128, 129, (batches, 5, 3), generator=generator).double() / 64
    y = torch.randint(0, 4, (batches, 5), generator=generator)
    kinds = [("batch_all", losses.TripletMarginLoss), ("batch_contrastive", ContrastiveLoss)]
    for (loss, kind), distance in itertools.product(kinds, ["euclidean", "squared"]):
        reducer = reducers.AvgNonZeroReducer() if loss == "batch_all" else reducers.SumReducer()
        margin = {"margin": 1.0} if loss == "batch_all" else {"neg_margin": 1.0}
        function = kind(distance=pml_distance(distance), reducer=reducer, **margin)
        memory = losses.CrossBatchMemory(function, embedding_size=3, memory_size=size)
        for batch, labels in zip(x, y):
            batch = batch.clone().requires_grad_()
            value = memory(batch, labels)
        (grad,) = torch.autograd.grad(value, batch)
        reference = {
            "n": size,
            "labels": memory.label_memory.tolist(),
            "rows": memory.embedding_memory.flatten().tolist(),
            "own": memory.curr_batch_idx.tolist(),
        }
        SETS["memory"] = {"n": 5, "d": 3, "labels": y[-1].tolist(), "rows": x[-1].flatten().tolist(), "reference": reference}
        case = {"set": "memory", "loss": loss, "distance": distance, "margin": 1.0, "factor": 1.0}
        inner = "TripletMarginLoss" if loss == "batch_all" else "ContrastiveLoss, its terms squared and halved"
        case |= {"library": "pytorch-metric-learning", "of": f"CrossBatchMemory({inner})"}
        case |= {"mean_over": "active"} if loss == "batch_all" else {"negatives": "all", "reduction": "sum"}
        yield {**case, "value": value.item(), "grad": grad.flatten().tolist()}


def paired_sets():
    generator = torch.Generator().manual_seed(47)

    def rows():
        return torch.randint(-128, 129, (7, 4), generator=generator).double() / 64

    return {"triplets": [rows(), rows(), rows()], "pairs": [rows(), rows()]}


PAIRED = paired_sets()
SAME = [True, False, False, True, False, True, False]


def paired_cases():
    """Losses of pre-formed rows that record_torch.py does not have; the gradients are those of the loss's sum."""
    functions = {
        "squared": lambda x, y: (x - y).pow(2).sum(1),
        "euclidean": lambda x, y: (x - y).pow(2).sum(1).sqrt(),
        "cosine": lambda x, y: 1 - F.cosine_similarity(x, y, eps=1e-12),
    }
    for (distance, function), margin, swap, reduction in itertools.product(
        functions.items(), [0.2, 1.0], [False, True], ["none", "mean", "sum"]
    ):
        x = [x.clone().requires_grad_() for x in PAIRED["triplets"]]
        loss = torch.nn.TripletMarginWithDistanceLoss(
            distance_function=function, margin=margin, swap=swap, reduction=reduction
        )
        value = loss(*x)
        case = {"set": "triplets", "library": "torch.nn", "of": "TripletMarginWithDistanceLoss", "loss": "triplet_margin"}
        case |= {"distance": distance, "margin": margin, "swap": swap, "reduction": reduction, "factor": 1.0}
        grads = [grad.flatten().tolist() for grad in torch.autograd.grad(value.sum(), x)]
        yield {**case, "value": value.flatten().tolist(), "grad": grads}
    measures = {"euclidean": "EUCLIDEAN", "cosine": "COSINE", "manhattan": "MANHATTAN"}
    for (distance, name), margin in itertools.product(measures.items(), [0.2, 5.0]):
        x = [x.clone().requires_grad_() for x in PAIRED["triplets"]]
        loss = TripletLoss(None, distance_metric=getattr(TripletDistanceMetric, name), triplet_margin=margin)
        value = loss.compute_loss_from_embeddings(x, None)
        case = {"set": "triplets", "library": "sentence-transformers", "of": "TripletLoss", "loss": "triplet_margin"}
        case |= {"distance": distance, "margin": margin, "swap": False, "reduction": "mean", "factor": 1.0}
        yield {**case, "value": [value.item()], "grad": [g.flatten().tolist() for g in torch.autograd.grad(value, x)]}
    measures = {"pairwise_2": "EUCLIDEAN", "cosine": "COSINE_DISTANCE", "pairwise_1": "MANHATTAN"}
    for (distance, name), margin, mean in itertools.product(measures.items(), [0.5, 4.0], [True, False]):
        x = [x.clone().requires_grad_() for x in PAIRED["pairs"]]
        measure = getattr(SiameseDistanceMetric, name)
        loss = PairContrastiveLoss(None, distance_metric=measure, margin=margin, size_average=mean)
        value = loss.compute_loss_from_embeddings(x, torch.tensor(SAME).long())
        case = {"set": "pairs", "library": "sentence-transformers", "of": "ContrastiveLoss", "loss": "contrastive"}
        case |= {"distance": distance, "margin": margin, "reduction": "mean" if mean else "sum", "factor": 1.0}
        yield {**case, "value": [value.item()], "grad": [g.flatten().tolist() for g in torch.autograd.grad(value, x)]}
    for margin in [0.0, 0.5]:
        target = torch.tensor([1.0 if same else -1.0 for same in SAME])
        value = torch.nn.CosineEmbeddingLoss(margin=margin, reduction="none")(*PAIRED["pairs"], target)
        case = {"set": "pairs", "library": "torch.nn", "of": "CosineEmbeddingLoss", "loss": "cosine_embedding"}
        yield {**case, "distance": "cosine", "margin": margin, "value": value.tolist()}


def main():
    recorded = []
    kinds = [semi_hard_cases, negative_cases, contrastive_cases, reference_cases, mined_cases]
    for case, function in itertools.chain(*(kind() for kind in kinds)):
        recorded.append(record(case, function))
    recorded += [*memory_cases(), *paired_cases()]
    for i, case in enumerate(recorded):
        case["id"] = f"{i}"
    names = ["torch", "pytorch-metric-learning", "sentence-transformers"]
    paired = {name: {"b": 7, "d": 4, "x": [x.flatten().tolist() for x in rows]} for name, rows in PAIRED.items()}
    paired["pairs"]["same"] = SAME
    file = {"versions": {name: importlib.metadata.version(name) for name in names}, "sets": SETS, **paired, "cases": recorded}
    text = json.dumps(rounded(file), separators=(",", ":")).replace("},{", "},\n{")
    (pathlib.Path(__file__).parent / "parity.json").write_text(text + "\n")
    print(f"{len(recorded)} cases")


if __name__ == "__main__":
    main()
