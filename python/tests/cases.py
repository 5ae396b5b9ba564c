"""Calls that several tests make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import tercet
from tercet import functional as F

MINED: dict[str, Callable[..., Any]] = {
    "batch_all": F.batch_all,
    "batch_hard": F.batch_hard,
    "batch_semi_hard": F.batch_semi_hard,
    "batch_negative": F.batch_negative,
    "batch_contrastive": F.batch_contrastive,
}
PER_ANCHOR = [name for name in MINED if name != "batch_all"]
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

# What each operator takes after the tensors, by name: its defaults, except for margins at which many terms count.
OPTIONS: dict[str, dict[str, Any]] = {
    "batch_all": {"margin": 1.0},
    "batch_hard": {"margin": 1.0},
    "batch_semi_hard": {"margin": 1.0},
    "batch_negative": {"margin": 1.0, "negative": "hardest"},
    "batch_contrastive": {"margin": 4.0},
}


def batch(rows: int = 12, dim: int = 5, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Embeddings that require a gradient, and labels: classes of three rows, in no order."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    labels = torch.arange(rows) // 3
    return embeddings.to(dtype).requires_grad_(), labels[torch.randperm(rows, generator=generator)]


def reference(rows: int = 10, dim: int = 5, dtype: torch.dtype = torch.float64) -> tercet.Reference:
    embeddings, labels = batch(rows, dim, dtype, seed=1)
    return tercet.Reference(embeddings, labels, torch.arange(12) - 4)


def arguments(operator: str, *tensors: Any, **options: Any) -> tuple[Any, ...]:
    """The arguments of an operator, the rest of them the defaults of the Rust library."""
    from tercet import _library

    schema = getattr(torch.ops.tercet, operator).default._schema
    defaults = _library.defaults()[operator.removesuffix("_backward")]
    names = [argument.name for argument in schema.arguments][len(tensors) :]
    return (*tensors, *(options[name] if name in options else defaults[name] for name in names))
