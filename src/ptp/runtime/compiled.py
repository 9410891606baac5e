"""Next to torch.compile: what is read and shortened runs uncompiled, decoding stays compiled."""

import contextlib
import sys
from typing import Any

import torch

from ..errors import UnsupportedModelError


def uncompiled() -> contextlib.AbstractContextManager[Any]:
    """A context in which compiled modules run as they are written.

    Compiled code does not look at hooks that came later (torch guards against them only on demand): a prefill in it would
    not be pruned, and nobody would be told.
    """
    if "torch._dynamo" not in sys.modules:  # nothing can be compiled, and the import takes seconds
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")


def refuse_compiled(*modules: Any) -> None:
    """Raise UnsupportedModelError where one of `modules` is compiled itself: what is around pruning cannot be one graph."""
    if any(hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None for module in modules):
        raise UnsupportedModelError(
            "A model that is compiled as a whole cannot be pruned. Compile its language model instead: "
            "model.model.language_model.compile() keeps decoding compiled."
        )
