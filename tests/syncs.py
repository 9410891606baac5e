"""Where a GPU would have to be waited for, counted without one.

Every tensor that would lie on the GPU is followed through torch's functions: the model's weights and inputs, and what is made
of them. (What is made of nothing, an arange, counts as soon as it meets one of these.) Taking values of such a tensor to the
host (item, tolist, bool, cpu, numpy, equal) or making one whose shape depends on them (nonzero, a mask as an index) is a wait.
"""

import traceback
import weakref
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

WAITS = {
    "item", "tolist", "__bool__", "__int__", "__float__", "__index__", "cpu", "numpy", "nonzero", "argwhere", "equal", "unique",
    "masked_select", "is_nonzero", "bincount", "__array__", "allclose",
}  # fmt: skip
TO_HOST = {"cpu", "numpy", "tolist", "item"}


class Waits(TorchFunctionMode):
    """Counts waits by the line of `ptp` that they happen in."""

    def __init__(self, model: torch.nn.Module, inputs: dict[str, Tensor]) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.total = 0
        self._on_device: dict[int, Any] = {}
        for tensor in (*model.parameters(), *model.buffers(), *inputs.values()):
            self._mark(tensor)

    def _mark(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self._on_device[id(value)] = weakref.ref(value)
        elif isinstance(value, tuple | list):
            for each in value:
                self._mark(each)

    def _is_there(self, value: Any) -> bool:
        if isinstance(value, Tensor):
            known = self._on_device.get(id(value))
            return known is not None and known() is value
        if isinstance(value, tuple | list):
            return any(map(self._is_there, value))
        return isinstance(value, dict) and any(map(self._is_there, value.values()))

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = (resolve_name(function) or getattr(function, "__name__", "")).rpartition(".")[2]
        there = self._is_there(args) or self._is_there(kwargs)
        to_host = name in TO_HOST or (name == "to" and "cpu" in map(str, (*args[1:2], kwargs.get("device"))) and self._said())
        index = args[1] if name in ("__getitem__", "__setitem__") and len(args) > 1 else ()
        masked = any(
            isinstance(each, Tensor) and each.dtype == torch.bool for each in (index if type(index) is tuple else [index])
        )
        if there and (name in WAITS or masked or to_host):
            self._count(name)
        result = function(*args, **kwargs)
        if to_host and isinstance(result, Tensor):
            return result.clone()  # on the CPU it was the same tensor
        if there and not to_host:
            self._mark(result)
        return result

    def _said(self) -> bool:
        """Whether the code itself says "cpu": a device that is passed on stands for the GPU."""
        line = next((f.line or "" for f in reversed(traceback.extract_stack()) if "/ptp/" in f.filename), "")
        return '"cpu"' in line

    def _count(self, name: str) -> None:
        self.total += 1
        frames = [frame for frame in traceback.extract_stack() if "syncs.py" not in frame.filename]
        innermost = next((f for f in reversed(frames) if not f.filename.endswith("torch/overrides.py")), frames[-1])
        if "/ptp/" in innermost.filename:
            place = innermost.filename.rpartition("/ptp/")[2]
            self.found[f"{place}:{innermost.lineno} {innermost.line}"] += 1
