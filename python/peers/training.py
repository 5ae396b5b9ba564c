"""A training loop of pytorch-metric-learning's kind, with its sampler, and the same with one line swapped."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

STEPS, ROWS = 100, 256


def run(losses: Any) -> tuple[list[float], float]:
    """The losses of the steps, and the seconds of all."""
    from pytorch_metric_learning.samplers import MPerClassSampler

    torch.manual_seed(0)
    labels = torch.arange(32).repeat_interleave(40)
    centres = torch.randn(32, 24, dtype=torch.float64)
    inputs = centres[labels] + torch.randn(len(labels), 24, dtype=torch.float64)
    encoder = nn.Sequential(nn.Linear(24, 64), nn.Tanh(), nn.Linear(64, 32)).double()
    optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-3)
    loss_fn = losses.TripletMarginLoss(margin=0.2)
    sampler = MPerClassSampler(labels, m=8, batch_size=ROWS, length_before_new_iter=STEPS * ROWS)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(inputs, labels), batch_size=ROWS, sampler=sampler
    )
    import numpy

    numpy.random.seed(0)
    values, begin = [], time.perf_counter()
    for x, y in loader:
        optimizer.zero_grad()
        loss = loss_fn(encoder(x), y)
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return values, time.perf_counter() - begin


def compare() -> list[str]:
    """What differs between both loops."""
    import pytorch_metric_learning.losses as theirs

    from tercet import pml as ours

    (expected, peer_seconds), (values, seconds) = run(theirs), run(ours)
    off = max(abs(value - wanted) / wanted for value, wanted in zip(values, expected))
    print(
        f"training, {len(values)} steps of {ROWS} rows in float64: loss {expected[0]:.4f} to {expected[-1]:.4f}, curves differ by "
        f"{off:.1e}; {peer_seconds:.2f} s with the original, {seconds:.2f} s with tercet.pml",
        flush=True,
    )
    return [] if off <= 1e-4 and len(values) == STEPS else [f"the loss curves differ by {off:.1e}"]
