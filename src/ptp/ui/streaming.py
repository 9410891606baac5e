"""One answer as it grows: `generate` in a thread of its own, its tokens handed over through a queue."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from ..adapters import adapter_for
from ..pruner import Pruner
from ..runtime import PrefillTrace
from ..runtime.cache import cache_bytes


@dataclass(frozen=True)
class Loaded:
    """The model that the page asks, one answer at a time.

    Attributes:
        name: What the page calls it.
        lock: Held while an answer is made: pruning changes what the model does for all who call it.
    """

    model: Any
    processor: Any
    name: str
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class Reply:
    """An answer so far.

    Attributes:
        text: What was written.
        done: Whether it is whole.
        first: Seconds from the start to the first token: encoder, selection, prefill; None before it.
        runs: How often that was measured; it is the median.
        cache_bytes: Of the KV cache at the first token.
        trace: Of the prefill; None where nothing was pruned.
        ids: (1, S) the prompt's ids and the answer's, when it is done.
        deltas: What the model counts positions from, when it is done: to be handed back with its cache.
    """

    text: str = ""
    done: bool = False
    first: float | None = None
    runs: int = 1
    cache_bytes: int = 0
    trace: PrefillTrace | None = None
    ids: Tensor | None = None
    deltas: Any = None


def fresh_cache(model: Any) -> DynamicCache:
    """An empty KV cache that can be held from turn to turn."""
    hybrid = adapter_for(model).text.hybrid
    return DynamicCache(config=model.config) if hybrid else DynamicCache()


def stream(
    loaded: Loaded,
    inputs: dict[str, Tensor],
    cache: DynamicCache,
    pruner: Pruner | None,
    max_new_tokens: int,
    deltas: Any = None,
) -> Iterator[Reply]:
    """Answer greedily, pruned by `pruner` or with all visual tokens.

    Args:
        inputs: Of one row; behind what `cache` holds, the ids of the whole conversation.
        cache: Goes on to hold the conversation.
        deltas: Of the reply that the cache is of; Qwen-VL and its like leave them in the model, where others replace them.

    Yields:
        The answer so far, at every token; the last is `done`. A caller that leaves early ends the run at its next token.

    Raises:
        Whatever `generate` or the pruner raises.
    """
    told: queue.Queue[Reply | BaseException] = queue.Queue()
    stopped = threading.Event()

    def run() -> None:
        try:
            with loaded.lock:
                if not stopped.is_set():
                    if deltas is not None:
                        loaded.model.model.rope_deltas = deltas
                    told.put(_generate(loaded, inputs, cache, pruner, max_new_tokens, told.put, stopped))
        except BaseException as error:  # the caller raises it
            told.put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        while True:
            reply = told.get()
            if isinstance(reply, BaseException):
                raise reply
            yield reply
            if reply.done:
                return
    finally:
        stopped.set()


def _generate(
    loaded: Loaded,
    inputs: dict[str, Tensor],
    cache: DynamicCache,
    pruner: Pruner | None,
    max_new_tokens: int,
    tell: Callable[[Reply], object],
    stopped: threading.Event,
) -> Reply:
    context = nullcontext() if pruner is None else pruner(loaded.model, loaded.processor)
    with context as trace:
        now = lambda: None if trace is None else trace.of_this_thread  # noqa: E731
        tokens = _Tokens(loaded, cache, now, tell)
        ids = loaded.model.generate(
            **inputs,
            past_key_values=cache,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            streamer=tokens,
            stopping_criteria=StoppingCriteriaList([_Stopped(stopped)]),
        )
        deltas = getattr(loaded.model.model, "rope_deltas", None)
        return replace(tokens.reply, done=True, ids=ids, deltas=deltas)


class _Tokens(BaseStreamer):  # type: ignore[misc]
    """What `generate` tells of its tokens."""

    def __init__(
        self, loaded: Loaded, cache: DynamicCache, trace: Callable[[], PrefillTrace | None], tell: Callable[[Reply], object]
    ) -> None:
        self.loaded, self.cache, self.trace, self.tell = loaded, cache, trace, tell
        self.reply, self.ids, self.prompted, self.start = Reply(), list[int](), False, time.perf_counter()

    def put(self, value: Tensor) -> None:
        if not self.prompted:  # the prompt comes first
            self.prompted = True
            return
        if not self.ids:
            first = time.perf_counter() - self.start
            self.reply = Reply(first=first, cache_bytes=cache_bytes(self.cache), trace=self.trace())
        self.ids += value.flatten().tolist()
        text = self.loaded.processor.decode(self.ids, skip_special_tokens=True).strip()
        self.reply = replace(self.reply, text=text)
        self.tell(self.reply)

    def end(self) -> None:
        pass


class _Stopped(StoppingCriteria):  # type: ignore[misc]
    """Ends `generate` once nobody waits for its answer."""

    def __init__(self, stopped: threading.Event) -> None:
        self.stopped = stopped

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), self.stopped.is_set(), dtype=torch.bool, device=input_ids.device)
