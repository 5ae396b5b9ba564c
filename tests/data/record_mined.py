"""Records what other libraries compute for mined triplets, for tests/it/mined/peers.rs.

    python tests/data/record_mined.py

writes mined_peers.json beside this file. Needs torch, pytorch-metric-learning and sentence-transformers; the seeds are
fixed, so another run with the same versions writes the same file.

Every number of an input is k/64 with |k| <= 128, exact in f32. Losses and gradients are computed in f64.

The file:
    versions          of what was asked
    sets.<name>       n, d, labels, and the rows, row after row
    cases[]
        id, set, library
        loss          batch_all, batch_hard, or batch_hard_soft
        distance      squared, euclidean or cosine
        margin, normalize
        mean_over     active or valid, of batch_all
        value, grad   the loss and its gradient, row after row
"""

import importlib.metadata
import itertools
import json
import pathlib

import torch
from pytorch_metric_learning import distances, losses, miners, reducers
from sentence_transformers.sentence_transformer.losses import (
    BatchAllTripletLoss,
    BatchHardSoftMarginTripletLoss,
    BatchHardTripletLoss,
    BatchHardTripletLossDistanceFunction,
)

torch.set_default_dtype(torch.float64)
torch.manual_seed(20251125)


def batch(labels, d):
    x = torch.randint(-128, 129, (len(labels), d)).double() / 64
    return {"n": len(labels), "d": d, "labels": labels, "rows": x.flatten().tolist()}


SETS = {
    "pairs": batch([0, 0, 1, 1, 2, 2, 3, 3], 5),
    "uneven": batch([4, -1, 4, 7, -1, 4, 9, 7, 4, -1, 9, 9, 7, 7, 4], 3),
    "larger": batch([i * 7 % 9 for i in range(40)], 4),
}


def pml(loss, distance, margin, normalize, mean_over):
    measure = {
        "squared": lambda: distances.LpDistance(p=2, power=2, normalize_embeddings=normalize),
        "euclidean": lambda: distances.LpDistance(p=2, power=1, normalize_embeddings=normalize),
        "cosine": distances.CosineSimilarity,
    }[distance]()
    reducer = reducers.AvgNonZeroReducer() if mean_over == "active" else reducers.MeanReducer()
    soft = loss == "batch_hard_soft"
    function = losses.TripletMarginLoss(margin=margin, distance=measure, reducer=reducer, smooth_loss=soft)
    miner = miners.BatchHardMiner(distance=measure) if loss.startswith("batch_hard") else None
    return lambda x, y: function(x, y, miner(x, y) if miner else None)


def sentence_transformers(loss, distance, margin):
    """Its losses take a model; the distance and the formula are static methods behind it."""
    measure = {
        "euclidean": BatchHardTripletLossDistanceFunction.eucledian_distance,
        "cosine": BatchHardTripletLossDistanceFunction.cosine_distance,
    }[distance]
    kind = {"batch_all": BatchAllTripletLoss, "batch_hard": BatchHardTripletLoss, "batch_hard_soft": BatchHardSoftMarginTripletLoss}[loss]
    arguments = {"model": None, "distance_metric": measure}
    if loss != "batch_hard_soft":
        arguments["margin"] = margin
    function = kind(**arguments)
    name = {"batch_all": "batch_all_triplet_loss", "batch_hard": "batch_hard_triplet_loss", "batch_hard_soft": "batch_hard_triplet_soft_margin_loss"}[loss]
    return lambda x, y: getattr(function, name)(y, x)


def record(case, function):
    of_set = SETS[case["set"]]
    x = torch.tensor(of_set["rows"]).view(of_set["n"], of_set["d"]).requires_grad_()
    value = function(x, torch.tensor(of_set["labels"]))
    (grad,) = torch.autograd.grad(value, x)
    return {**case, "value": value.item(), "grad": grad.flatten().tolist()}


def cases():
    for name, distance, margin in itertools.product(SETS, ["squared", "euclidean", "cosine"], [0.05, 1.0]):
        for normalize in [False] if distance == "cosine" else [False, True]:
            common = {"set": name, "distance": distance, "margin": margin, "normalize": normalize, "library": "pytorch-metric-learning"}
            for mean_over in ["active", "valid"]:
                case = {**common, "loss": "batch_all", "mean_over": mean_over}
                yield case, pml("batch_all", distance, margin, normalize, mean_over)
            # The hinge of Hermans et al. is averaged over anchors, zeros included.
            yield {**common, "loss": "batch_hard"}, pml("batch_hard", distance, margin, normalize, "valid")
            if margin == 1.0:
                yield {**common, "loss": "batch_hard_soft"}, pml("batch_hard_soft", distance, 0.0, normalize, "valid")
    for name, distance, margin in itertools.product(SETS, ["euclidean", "cosine"], [0.2, 5.0]):
        common = {"set": name, "distance": distance, "margin": margin, "normalize": False, "library": "sentence-transformers"}
        yield {**common, "loss": "batch_all", "mean_over": "active"}, sentence_transformers("batch_all", distance, margin)
        yield {**common, "loss": "batch_hard"}, sentence_transformers("batch_hard", distance, margin)
        if margin == 0.2:
            yield {**common, "loss": "batch_hard_soft"}, sentence_transformers("batch_hard_soft", distance, margin)


def rounded(value):
    """Twelve digits of each number: the losses agree to fewer."""
    if isinstance(value, float):
        return float(f"{value:.12g}")
    if isinstance(value, list):
        return [rounded(x) for x in value]
    return {key: rounded(x) for key, x in value.items()} if isinstance(value, dict) else value


def main():
    recorded = []
    for case, function in cases():
        case["id"] = f"{len(recorded)}"
        recorded.append(record(case, function))
    names = ["torch", "pytorch-metric-learning", "sentence-transformers"]
    file = {"versions": {name: importlib.metadata.version(name) for name in names}, "sets": SETS, "cases": recorded}
    text = json.dumps(rounded(file), separators=(",", ":")).replace("},{", "},\n{")
    (pathlib.Path(__file__).parent / "mined_peers.json").write_text(text + "\n")
    print(f"{len(recorded)} cases")


if __name__ == "__main__":
    main()
