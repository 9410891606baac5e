"""Next to torch.compile: what is read and shortened runs uncompiled, decoding stays compiled."""

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

import torch

from ..errors import UnsupportedModelError

_lock = threading.Lock()
_inside = 0
_stance = contextlib.ExitStack()


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """A context in which compiled modules run as they are written.

    Compiled code does not look at hooks that came later (torch guards against them only on demand): a prefill in it would
    not be pruned, and nobody would be told. The compiler has one stance for all threads, so the first one in changes it and
    the last one out changes it back.
    """
    global _inside
    if "torch._dynamo" not in sys.modules:  # nothing can be compiled, and the import takes seconds
        yield
        return
    with _lock:
        if _inside == 0:
            _stance.enter_context(torch.compiler.set_stance("force_eager"))
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _stance.close()


def refuse_compiled(*modules: Any) -> None:
    """Raise UnsupportedModelError where one of `modules`, or its forward, is compiled: what is around pruning cannot be one
    graph."""
    if any(map(_is_compiled, modules)):
        raise UnsupportedModelError(
            "A model that is compiled as a whole cannot be pruned. Compile its language model instead: "
            "model.model.language_model.compile() keeps decoding compiled."
        )


def _is_compiled(module: Any) -> bool:
    own = vars(module)  # looked up here: asked at every step, and a module takes long to say that it lacks an attribute
    return (
        "_orig_mod" in own.get("_modules", ())
        or own.get("_compiled_call_impl") is not None
        or hasattr(own.get("forward"), "_torchdynamo_orig_callable")
    )
