"""Which calls of patched losses ran natively, which the originals took, and why; and the patching itself."""

from __future__ import annotations

import importlib
from collections import Counter
from typing import Any

_calls: Counter[tuple[str, str | None]] = Counter()

_ADAPTERS = {"pytorch_metric_learning": "tercet.pml", "sentence_transformers": "tercet.sentence_transformers"}


def count(loss: str, reason: str | None) -> None:
    """Counts a call of a loss: one that ran natively, or one that was passed on to the original for a reason."""
    _calls[loss, reason] += 1


def report() -> dict[str, dict[str, Any]]:
    """By loss: how many calls ran natively, and how many were passed on to the original, by reason.

    >>> tercet.report()
    {'pml.TripletMarginLoss': {'native': 120, 'passed_on': {'smooth_loss': 2}}}
    """
    losses: dict[str, dict[str, Any]] = {}
    for (loss, reason), calls in sorted(_calls.items(), key=lambda item: (item[0][0], item[0][1] or "")):
        of_loss = losses.setdefault(loss, {"native": 0, "passed_on": {}})
        if reason is None:
            of_loss["native"] = calls
        else:
            of_loss["passed_on"][reason] = calls
    return losses


def reset_report() -> None:
    """Begins the counts of :func:`report` anew."""
    _calls.clear()


def patch(library: str) -> list[str]:
    """Puts Tercet's classes in the place of those of ``"pytorch_metric_learning"`` or ``"sentence_transformers"``; returns
    their names.

    The classes are subclasses of the originals, with the same constructors. What they cannot compute goes to the original, and
    :func:`report` counts it. Names that were imported before, ``from pytorch_metric_learning.losses import ..``, stay the
    originals: patch first. :func:`unpatch` takes it back.
    """
    return _adapter(library).patch()


def unpatch(library: str) -> None:
    """Puts the original classes back."""
    _adapter(library).unpatch()


def _adapter(library: str) -> Any:
    if library not in _ADAPTERS:
        raise ValueError(f"library: expected one of {', '.join(map(repr, _ADAPTERS))}, got {library!r}")
    return importlib.import_module(_ADAPTERS[library])
