"""Records of verification and retrieval metrics as scikit-learn and pytorch-metric-learning compute them.

Writes metrics.json beside itself:

    python -m venv metrics-venv
    metrics-venv/bin/pip install scikit-learn==1.9.1 pytorch-metric-learning==2.9.0 torch==2.11.0
    metrics-venv/bin/python trainer/tests/data/metrics.py

Coordinates are whole numbers over `scale`, so that squared distances are exact in f32 and ties are ties. Among equally near
images the one with the lower index is nearer; the library leaves that to its nearest-neighbour search, so a search with this
rule is handed to it. Where nothing is tied its own search must give the same numbers, and the script checks that.
"""

import json
from pathlib import Path

import numpy as np
import pytorch_metric_learning
import sklearn
import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from sklearn.metrics import roc_auc_score, roc_curve

NAMES = ("precision_at_1", "r_precision", "mean_average_precision_at_r")


def squared_distances(points):
    difference = points[:, None, :] - points[None, :, :]
    return (difference**2).sum(-1)


def lowest_index_first(query, k, reference, ref_includes_query):
    distances = squared_distances(reference.double().numpy())
    if ref_includes_query:
        np.fill_diagonal(distances, np.inf)
        k = min(k, len(distances) - 1)
    indices = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return torch.from_numpy(np.take_along_axis(distances, indices, 1)), torch.from_numpy(indices)


def retrieval(points, labels, knn):
    calculator = AccuracyCalculator(include=NAMES, k=None, device=torch.device("cpu"), knn_func=knn)
    embeddings, labels = torch.from_numpy(points), torch.from_numpy(labels)
    return calculator.get_accuracy(embeddings, labels)


def recall_at(points, labels, k):
    distances = squared_distances(points)
    np.fill_diagonal(distances, np.inf)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :k]
    asked = [i for i in range(len(labels)) if (labels == labels[i]).sum() > 1]
    return float(np.mean([(labels[nearest[i]] == labels[i]).any() for i in asked]))


def equal_error_rate(fpr, tpr):
    g = fpr + tpr - 1
    i = int(np.argmax(g >= 0))
    t = -g[i - 1] / (g[i] - g[i - 1])
    return float(fpr[i - 1] + t * (fpr[i] - fpr[i - 1]))


def most_accurate(distances, genuine):
    best, threshold = (~genuine).sum(), -np.inf
    values = np.unique(distances)
    for i, value in enumerate(values):
        right = ((distances <= value) == genuine).sum()
        if right > best:
            best = right
            threshold = (value + values[min(i + 1, len(values) - 1)]) / 2
    return threshold


def folds(distances, genuine, count):
    """LFW's protocol: fold i is every count-th pair from the i-th on."""
    accuracies = []
    number = np.arange(len(distances)) % count
    for fold in range(count):
        own = number == fold
        threshold = most_accurate(distances[~own], genuine[~own])
        accuracies.append(float(((distances[own] <= threshold) == genuine[own]).mean()))
    return {"count": count, "mean": np.mean(accuracies), "error": np.std(accuracies, ddof=1) / np.sqrt(count)}


def case(name, whole, scale, labels, tied):
    points = whole / scale
    i, j = np.tril_indices(len(labels), -1)
    distances = squared_distances(points)[i, j]
    genuine = labels[i] == labels[j]
    fpr, tpr, thresholds = roc_curve(genuine, -distances, drop_intermediate=False)
    found = retrieval(points, labels, lowest_index_first)
    own = retrieval(points, labels, CustomKNN(LpDistance(normalize_embeddings=False, power=2)))
    agrees = all(abs(found[n] - own[n]) < 1e-12 for n in NAMES)
    assert agrees or tied, (name, found, own)
    assert (len(np.unique(distances)) < len(distances)) or not tied
    return {
        "name": name,
        "scale": scale,
        "points": whole.tolist(),
        "labels": labels.tolist(),
        "far": fpr.tolist(),
        "tar": tpr.tolist(),
        "thresholds": (-thresholds[1:]).tolist(),
        "auc": float(roc_auc_score(genuine, -distances)),
        "eer": equal_error_rate(fpr, tpr),
        "tar_at_far": [[far, float(tpr[fpr <= far].max())] for far in (1e-3, 1e-2, 0.1, 0.5)],
        "recall": [[k, recall_at(points, labels, k)] for k in (1, 2, 4, 8)],
        "folds": folds(distances, genuine, 5),
        **{n: found[n] for n in NAMES},
    }


def clusters(rng, count, dim, spread, scale):
    labels = rng.integers(0, count // 4, count)
    centres = rng.normal(size=(count, dim))
    points = centres[labels] + spread * rng.normal(size=(count, dim))
    return np.round(points * scale).astype(np.int64), labels


def main():
    rng = np.random.default_rng(20261125)
    few = rng.integers(0, 10, 44)  # ten labels on a lattice of 27 places: nearly everything is tied
    lone = np.concatenate([np.repeat(np.arange(6), 5), np.arange(6, 16)])  # ten labels have one image
    cases = [
        case("lattice", rng.integers(0, 3, (44, 3)), 1, few, True),
        case("coincident", np.zeros((12, 2), dtype=np.int64), 1, np.arange(12) % 4, True),
        case("clusters", *(lambda p, y: (p, 64, y))(*clusters(rng, 40, 6, 0.5, 64)), False),
        case("lone", rng.integers(-3, 4, (40, 4)), 1, rng.permutation(lone), True),
    ]
    made = {
        "by": "trainer/tests/data/metrics.py",
        "scikit-learn": sklearn.__version__,
        "pytorch-metric-learning": pytorch_metric_learning.__version__,
        "numpy": np.__version__,
    }
    text = json.dumps({"made": made, "cases": cases}, separators=(",", ":"))
    text = text.replace('{"name"', '\n{"name"') + "\n"
    Path(__file__).with_suffix(".json").write_text(text)


if __name__ == "__main__":
    main()
