"""The shared library, and the registration of its operators with the PyTorch that is imported."""

from __future__ import annotations

import ctypes
import json
import os
from typing import Any

import torch

_FILE = "libtercet_python.so"


def _load() -> ctypes.CDLL:
    path = os.environ.get("TERCET_PYTHON_LIBRARY") or os.path.join(os.path.dirname(os.path.abspath(__file__)), _FILE)
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise ImportError(f"tercet: {error}") from error
    for name in ("tercet_register", "tercet_defaults", "tercet_version"):
        getattr(library, name).restype = ctypes.c_char_p
    refused = library.tercet_register()
    if refused is not None:
        raise ImportError(f"tercet: {refused.decode()} (this is PyTorch {torch.__version__})")
    return library


_library = _load()

version: str = _library.tercet_version().decode()


def defaults() -> dict[str, dict[str, Any]]:
    """The names and defaults of each operator's options, as the Rust library has them."""
    return json.loads(_library.tercet_defaults())
