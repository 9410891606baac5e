"""What the page does with the model: an answer with all visual tokens and a pruned one, and methods compared."""

import statistics
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace

from PIL import Image
from torch import Tensor

from ..methods.parsing import Variant
from ..pruner import Pruner
from ..runtime import PrefillTrace
from .conversation import Side, check_length, prepare, remember
from .settings import build
from .streaming import Loaded, Reply, fresh_cache, stream

ROUNDS, PATIENCE = 4, 1.0
"""How often times to first token are measured again, and for how many seconds at most."""


@dataclass(frozen=True)
class Turn:
    """One question and its two answers so far.

    Attributes:
        full, pruned: The answers; an empty `Reply` before they begin.
        held: Whether both went on from held KV caches. Where one cannot, both read the conversation anew: times compare.
        trace: Of the prefill that pruned the picture, in this turn or an earlier one.
    """

    question: str
    full: Reply = field(default_factory=Reply)
    pruned: Reply = field(default_factory=Reply)
    held: bool = False
    trace: PrefillTrace | None = None


@dataclass
class Talk:
    """A visitor's conversation about a picture, kept in memory.

    Attributes:
        full, pruned: Its two sides, each with the answers it gave itself.
        pruner: What the held cache of `pruned` was pruned by; with another one the conversation is read anew.
        turns: What the page shows.
        finished: When its newest turn was, on the monotonic clock.
        stopped: Set to end the answer that is being written.
        over: Whether another conversation has taken its place.
    """

    picture: Image.Image
    name: str
    full: Side = field(default_factory=Side)
    pruned: Side = field(default_factory=Side)
    pruner: Pruner | None = None
    turns: list[Turn] = field(default_factory=list)
    finished: float = float("-inf")
    stopped: threading.Event = field(default_factory=threading.Event)
    over: bool = False

    def end(self) -> None:
        """Stop what is being written, for another conversation."""
        self.over = True
        self.stopped.set()


def forget(talk: Talk) -> None:
    """Let go of both caches; the words stay."""
    talk.full.drop_cache()
    talk.pruned.drop_cache()


def ask(loaded: Loaded, talk: Talk, question: str, pruner: Pruner, max_new_tokens: int) -> Generator[Turn, None, None]:
    """Answer a question with all visual tokens, then pruned; a later question goes on from both caches.

    Yields:
        The turn as it grows. When it is whole it is in `talk`; left early, or after an error, the conversation is what it
        was, read anew by the next question.

    Raises:
        ValueError: a setting does not fit the model, or the conversation is too long for it.
    """
    sides, by = (talk.full, talk.pruned), (None, pruner)
    if talk.pruner != pruner:
        forget(talk)
        talk.pruner = pruner
    earlier = talk.turns[-1].trace if talk.turns else None
    turn = Turn(question)
    yield turn
    finished = []
    try:
        prepared = [prepare(loaded, side, talk.picture, question) for side in sides]
        if not all(held for *_, held in prepared):
            forget(talk)
            prepared = [prepare(loaded, side, talk.picture, question) for side in sides]
        for side, method, (inputs, cache, held) in zip(sides, by, prepared, strict=True):
            check_length(loaded, inputs, max_new_tokens)
            turn = replace(turn, held=held)
            for reply in stream(loaded, inputs, cache, method, max_new_tokens, side.deltas if held else None):
                if method is None:
                    turn = replace(turn, full=reply)
                else:
                    turn = replace(turn, pruned=reply, trace=earlier if held else reply.trace)
                yield turn
            finished.append((side, reply, cache, inputs))
        if not turn.held:
            full, pruned = settled(loaded, prepared[0][0], by, (turn.full, turn.pruned))
            turn = replace(turn, full=full, pruned=pruned)
    except BaseException:
        forget(talk)
        raise
    for side, reply, cache, inputs in finished:
        remember(loaded, side, question, reply, cache, inputs)
    talk.turns.append(turn)
    talk.finished = time.monotonic()
    yield turn


def settled(
    loaded: Loaded, inputs: dict[str, Tensor], pruners: Sequence[Pruner | None], replies: Sequence[Reply]
) -> list[Reply]:
    """The replies with the median time to first token of a few more runs each, in turns, as long as that takes no second.

    One run of a small model says more about what else the machine is doing.
    """
    times = [[reply.first or 0.0] for reply in replies]
    started, rounds = time.perf_counter(), 0
    while rounds < ROUNDS and (time.perf_counter() - started) + sum(seconds[-1] for seconds in times) < PATIENCE:
        for pruner, seconds in zip(pruners, times, strict=True):
            *_, reply = stream(loaded, inputs, fresh_cache(loaded.model), pruner, 1)
            seconds.append(reply.first or 0.0)
        rounds += 1
    return [
        replace(reply, first=statistics.median(seconds), runs=len(seconds))
        for reply, seconds in zip(replies, times, strict=True)
    ]


@dataclass(frozen=True)
class Row:
    """One method of a comparison; `error` says why it gave no answer."""

    method: str
    reply: Reply = field(default_factory=Reply)
    error: str = ""


def compare(
    loaded: Loaded, picture: Image.Image, question: str, variants: Sequence[Variant], keep_percent: float, max_new_tokens: int
) -> Generator[list[Row], None, None]:
    """Ask one question about one picture with all visual tokens, then with each method.

    Yields:
        The rows so far, the first with all visual tokens. A method that does not fit the model is a row with an error.

    Raises:
        ValueError: the kept share is none, or the question is too long.
    """
    methods: list[tuple[str, Pruner | None]] = [("all tokens", None)]
    methods += [(variant.name, build(variant, keep_percent)) for variant in variants]
    rows: list[Row] = []
    for name, pruner in methods:
        inputs, cache, _ = prepare(loaded, Side(), picture, question)
        check_length(loaded, inputs, max_new_tokens)
        try:
            for reply in stream(loaded, inputs, cache, pruner, max_new_tokens):
                yield [*rows, Row(name, reply)]
            (reply,) = settled(loaded, inputs, [pruner], [reply])
            rows.append(Row(name, reply))
            yield rows
        except ValueError as error:
            rows.append(Row(name, error=str(error)))
            yield rows
