"""What the encoder made of pictures, kept for the next time they come: `EncoderCache`, and what tells entries apart.

An entry is found by a digest of everything that its content depends on: the bytes, dtype and shape of what the encoder is
given, the encoder's weights and settings (`state_of`), and where the call is told how to compute (autocast, device). A weight
that is changed in place, moved, cast or replaced changes the digest, so what was made before is never found again.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from .reads import AttentionKind

PLAIN = (bool, int, float, str, type(None))
"""Types of attributes that are settings."""
CAPTURING = "_output_capturing_hooks_installed"
"""An attribute that transformers sets when it first records an encoder's states; it changes nothing."""


@dataclass(frozen=True)
class Signals:
    """What scoring reads of a run of the encoder; each list has an element per unit.

    Attributes:
        attention: (P,) by (layer, kind). keys: (P, D) by layer. embeddings: (regions, D); empty where no layer was read.
    """

    attention: Mapping[tuple[int, AttentionKind], Sequence[Tensor]]
    keys: Mapping[int, Sequence[Tensor]]
    embeddings: Sequence[Tensor]

    @classmethod
    def joined(cls, parts: "Sequence[Signals]") -> "Signals":
        """Those of several runs, one after the other; what not all of them have is left out."""
        attention = set.intersection(*(set(part.attention) for part in parts)) if parts else set()
        keys = set.intersection(*(set(part.keys) for part in parts)) if parts else set()
        return cls(
            {kind: [row for part in parts for row in part.attention[kind]] for kind in attention},
            {layer: [row for part in parts for row in part.keys[layer]] for layer in keys},
            [row for part in parts for row in part.embeddings],
        )

    def copied(self, copy: Callable[[Tensor], Tensor]) -> "Signals":
        """The same, each tensor a copy."""
        return Signals(over(copy, dict(self.attention)), over(copy, dict(self.keys)), over(copy, list(self.embeddings)))

    def covers(self, other: "Signals | Wanted") -> bool:
        """Whether all that `other` has is here, too."""
        return set(other.attention) <= set(self.attention) and set(other.keys) <= set(self.keys)


@dataclass(frozen=True)
class Wanted:
    """What will be read: (layer, kind) of attention, and layers of keys."""

    attention: frozenset[tuple[int, AttentionKind]]
    keys: frozenset[int]


@dataclass(frozen=True)
class Entry:
    """What the encoder made of a tile, or the model's own method of all pictures of a call.

    Attributes:
        output: What it put out, in its own class. signals: What scoring read. pixels: Of a call, a few of each unit.
    """

    output: Any
    signals: Signals
    pixels: Sequence[Tensor] = ()

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        read = [dict(self.signals.attention), dict(self.signals.keys), list(self.signals.embeddings)]
        return sum(tensor.nbytes for tensor in tensors_of([self.output, list(self.pixels), *read]))

    def with_signals_of(self, other: "Entry | None") -> "Entry":
        """Itself, with what only an older entry of the same unit has."""
        if other is None:
            return self
        both = Signals(
            {**other.signals.attention, **self.signals.attention},
            {**other.signals.keys, **self.signals.keys},
            self.signals.embeddings or other.signals.embeddings,
        )
        return Entry(self.output, both, self.pixels)


class EncoderCache:
    """Encoder outputs by content, at most `max_bytes` of them: those that were not used for longest leave first.

    One cache may serve several pruners, one after the other or side by side, and several models: what scoring read is kept
    with each output, and what a method reads that is not there is encoded again (and then there for both).

    Raises:
        ValueError: `max_bytes` is not a positive whole number.
    """

    def __init__(self, max_bytes: int) -> None:
        if type(max_bytes) is not int or max_bytes < 1:
            self.refuse(max_bytes)
        self.max_bytes = max_bytes
        self._entries: OrderedDict[bytes, tuple[Entry, int]] = OrderedDict()
        self._bytes, self._lock = 0, threading.Lock()

    @staticmethod
    def refuse(value: Any) -> NoReturn:
        """Say what `reuse` and `max_bytes` may be."""
        raise ValueError(
            f"reuse must be a number of bytes (0 keeps nothing) or an EncoderCache of one or more, got {value!r}. Pass "
            "256 * 2**20 to keep encoded pictures in up to 256 MiB."
        )

    @property
    def held(self) -> int:
        """Bytes held now."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes, wanted: Wanted) -> Entry | None:
        """What was kept under a key, with all that will be read; else None."""
        with self._lock:
            found = self._entries.get(key)
            if found is None or not found[0].signals.covers(wanted):
                return None
            self._entries.move_to_end(key)
            return found[0]

    def put(self, key: bytes, entry: Entry) -> None:
        """Keep an entry, unless it alone is larger than the bound; its tensors are the cache's own from now on."""
        with self._lock:
            before = self._entries.pop(key, None)
            self._bytes -= before[1] if before else 0
            entry = entry.with_signals_of(before[0] if before else None)
            size = entry.size
            if size > self.max_bytes:
                return
            self._entries[key] = entry, size
            self._bytes += size
            while self._bytes > self.max_bytes:
                _, (_, gone) = self._entries.popitem(last=False)
                self._bytes -= gone

    def clear(self) -> None:
        """Let go of all entries."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0


def over(function: Any, *outputs: Any) -> Any:
    """The same structure of tensors as several outputs of one module have, each made by `function` from theirs."""
    first = outputs[0]
    if isinstance(first, Tensor):
        return function(*outputs)
    if isinstance(first, ModelOutput):
        return type(first)(**{name: over(function, *(each[name] for each in outputs)) for name in first})
    if isinstance(first, dict):
        return {name: over(function, *(each[name] for each in outputs)) for name in first}
    if isinstance(first, tuple | list):
        return type(first)(over(function, *parts) for parts in zip(*outputs, strict=True))
    return first


def tensors_of(output: Any) -> Iterator[Tensor]:
    """All tensors in nested containers."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for each in output.values():
            yield from tensors_of(each)
    elif isinstance(output, tuple | list):
        for each in output:
            yield from tensors_of(each)


def digest_of(*parts: Any) -> bytes:
    """A digest of tensors (bytes, dtype, shape, device) and of the text of anything else, in nested containers."""
    total = hashlib.blake2b(digest_size=20)
    _add(total, parts)
    return total.digest()


def _add(total: Any, part: Any) -> None:
    if isinstance(part, Tensor):
        total.update(f"{part.dtype}{tuple(part.shape)}{part.device}".encode())
        total.update(part.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy().data)
    elif isinstance(part, Mapping):
        _add(total, list(part.items()))
    elif isinstance(part, tuple | list):
        total.update(f"[{len(part)}".encode())
        for each in part:
            _add(total, each)
    elif isinstance(part, bytes):
        total.update(part)
    else:
        total.update(f"{type(part).__name__} {part!r};".encode())


def parts_of(module: nn.Module, without: nn.Module | None = None) -> Iterator[tuple[str, nn.Module]]:
    """A module and those inside it, by name; without one of them and what is inside that."""
    left_out = set(map(id, without.modules())) if without is not None else set()
    return ((name, part) for name, part in module.named_modules() if id(part) not in left_out)


@torch.no_grad()
def state_of(module: nn.Module, without: nn.Module | None = None) -> bytes | None:
    """A digest of what a module computes with: its weights, buffers and settings. None where it cannot be told.

    Of every tensor: where it lies, its version (which torch counts up whenever it is changed in place), dtype, shape, device,
    and the sum of its bits as whole numbers, for writes that torch does not count (`weight.data`). Only such a write that
    moves values about, their sum the same, goes unseen. Of every module: its class, and its settings (LoRA's scaling, what
    adapter is active). 36 ms for 300 M float32 parameters on two cores.
    """
    told: list[Any] = []
    sums: list[Tensor] = []
    for name, part in parts_of(module, without):
        settings = [(key, value) for key, value in vars(part).items() if _is_setting(key, value)]
        config = vars(part).get("config")
        chosen = [] if config is None else [each for each in vars(config).items() if _is_setting(*each)]
        attention = getattr(config, "_attn_implementation", None)
        told.append((name, type(part).__qualname__, settings, chosen, attention))
        for tensor in (*part._parameters.values(), *part._buffers.values()):
            if tensor is None:
                continue
            for plain in _plain(tensor):
                if plain.device.type == "meta":  # offloaded: it is elsewhere
                    return None
                version = None if plain.is_inference() else plain._version
                told.append((plain.data_ptr(), version, plain.dtype, tuple(plain.shape), plain.stride(), plain.device))
                sums.append(_bits(plain))
    by_device: dict[torch.device, list[Tensor]] = {}
    for total in sums:
        by_device.setdefault(total.device, []).append(total)
    return digest_of(repr(told), [torch.stack(totals) for totals in by_device.values()])


def _is_setting(name: str, value: Any) -> bool:
    if name == CAPTURING:
        return False
    if type(value) in (tuple, list):
        return all(type(each) in PLAIN for each in value)
    return type(value) in PLAIN or (type(value) is dict and bool(value) and all(type(v) in PLAIN for v in value.values()))


def _plain(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors that a quantised one is made of; any other as it is."""
    if hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _plain(getattr(tensor, name))
    else:
        with torch._C.DisableTorchFunctionSubclass():
            yield tensor.detach()


def _bits(tensor: Tensor) -> Tensor:
    """() int64: the sum of a tensor's bytes, taken eight at a time where they divide."""
    flat = tensor.contiguous().view(-1)
    whole = flat.nbytes % 8 == 0 and flat.storage_offset() * flat.itemsize % 8 == 0
    return flat.view(torch.int64 if whole else torch.uint8).sum(dtype=torch.int64)
