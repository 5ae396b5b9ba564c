"""Tercet: fused kernels for metric-learning losses, for PyTorch on the CPU and on CUDA devices.

=================================  =============================================================================
:mod:`tercet.losses`               the losses as modules
:mod:`tercet.functional`           the losses, the distance matrix and exact search as functions
:class:`tercet.CrossBatchMemory`   the embeddings of earlier batches as a reference set
:class:`tercet.DistributedLoss`    a loss over the batches of all processes
:mod:`tercet.pml`                  losses of pytorch-metric-learning, by the same constructors
:mod:`tercet.sentence_transformers`  losses of sentence-transformers, by the same constructors
:func:`tercet.patch`               puts these in the place of the originals
:func:`tercet.report`              which calls ran natively, which the originals took, and why
=================================  =============================================================================

>>> import torch, tercet
>>> embeddings, labels = torch.randn(64, 128, requires_grad=True), torch.arange(64) // 4
>>> tercet.losses.BatchHardTripletLoss(margin=0.3)(embeddings, labels).backward()

The operators themselves are ``torch.ops.tercet``. They are written in Rust and CUDA, and registered with PyTorch through its
stable C ABI: one wheel serves every PyTorch from 2.10 on.
"""

from __future__ import annotations

from . import functional, losses
from ._library import version as __version__
from ._report import patch, report, reset_report, unpatch
from .distributed import DistributedLoss
from .functional import Lp, Reference, Stats
from .memory import CrossBatchMemory

__all__ = [
    "CrossBatchMemory",
    "DistributedLoss",
    "Lp",
    "Reference",
    "Stats",
    "__version__",
    "functional",
    "losses",
    "patch",
    "report",
    "reset_report",
    "unpatch",
]
