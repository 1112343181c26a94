"""torchvision's operators, where it is installed. It is no dependency: plain torch gives the same results."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from torch import Tensor


def torchvision_operator(name: str) -> Callable[..., Tensor] | None:
    """`torchvision.ops.<name>`, or None where torchvision cannot be imported.

    A torchvision that was built for another torch raises RuntimeError while it is imported.
    """
    try:
        operator: Callable[..., Tensor] = getattr(importlib.import_module("torchvision.ops"), name)
    except (ImportError, RuntimeError):
        return None
    return operator
