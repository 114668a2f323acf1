"""Jagged nested tensors need torch._dynamo, which takes seconds to import: only where a file has
one.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_MODULE = "torch.nested._internal.nested_tensor"


def nested_tensor_class() -> Any:
    """torch's class for jagged tensors; weights_only knows it from then on."""
    import_module("torch._dynamo")
    return import_module(_MODULE).NestedTensor
