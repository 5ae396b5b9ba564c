"""What the adapters of other libraries share: the classes that stand in for the originals, and putting them there."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ._report import count

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32)


class PassOn(Exception):
    """A call that the original must take, and the reason."""


def check_tensors(embeddings: Tensor, labels: Tensor | None) -> None:
    """Refuses tensors that the operators do not take; ``labels``: where there are any."""
    if embeddings.device.type not in ("cpu", "cuda"):
        raise PassOn("device")
    if embeddings.dtype not in FLOATS or (embeddings.dtype is torch.float64 and embeddings.device.type == "cuda"):
        raise PassOn("dtype of the embeddings")
    if labels is not None and labels.dtype not in INTEGERS:
        raise PassOn("dtype of the labels")
    if embeddings.dim() != 2 or embeddings.numel() == 0:
        raise PassOn("shape")


class Patches:
    """Classes by name, and where their originals were found when they were put in their place."""

    def __init__(self, library: str, classes: dict[str, type]) -> None:
        self.library, self.classes = library, classes
        self._replaced: list[tuple[ModuleType, str, Any]] = []

    def patch(self) -> list[str]:
        """Puts the classes in the place of the originals in all modules of the library that are loaded."""
        originals = {name: cls.__mro__[1] for name, cls in self.classes.items()}
        for module_name, module in list(sys.modules.items()):
            if module is None or not (module_name == self.library or module_name.startswith(f"{self.library}.")):
                continue
            for name, cls in self.classes.items():
                if vars(module).get(name) is originals[name]:
                    self._replaced.append((module, name, originals[name]))
                    setattr(module, name, cls)
        return sorted(self.classes)

    def unpatch(self) -> None:
        """Puts the originals back."""
        for module, name, original in self._replaced:
            setattr(module, name, original)
        self._replaced.clear()


def counted(name: str, native: Any, original: Any) -> Any:
    """The result of ``native()``, or of ``original()`` where that raises :class:`PassOn`; both are counted."""
    try:
        result = native()
    except PassOn as reason:
        count(name, str(reason))
        return original()
    count(name, None)
    return result
