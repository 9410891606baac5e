"""Full, pruned and the limit side by side: interleaved rounds of every contender on one prompt."""

import contextlib
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from ..evaluation.encoding import encoded_already
from ..methods.parsing import Variant
from ..pruner import Pruner, Stage, attach
from ..runtime import Picture, Reads, VisionRead
from ..runtime.cache import cache_bytes
from ..selection import Selection
from .clock import Mark, Timing, between, mark, seconds, timing
from .costs import count_flops, peak_memory
from .prompt import FIRST_WORD, Prompt

FULL, LIMIT = "full", "limit"
NAIVE = " (naive)"
"""Added to the name of a contender that runs with eager attention and hands out all of its maps."""
ENCODER_ROUNDS = 3


@dataclass(frozen=True)
class Row:
    """What one contender measured. Times in seconds, sizes in bytes.

    Attributes:
        method: Its name. keep_ratio: What was asked for.
        first_token: Time to the first token: the encoder's median and each round's prefill together.
        read: Scoring in the encoder, as far as it is in `select`.
        visual_tokens: After the last stage. average_tokens: Averaged over the language model's layers.
        structure_tokens: Line ends and tile markers after the last stage.
        encode: The vision encoder, with what the method reads there.
        select: Scoring and selection, in the encoder and in the language model; None where nothing is selected.
        prefill: The language model's, selection included.
        decode: Each output token.
        flops: Of the prefill. peak_memory: Of the prefill, beyond the weights and the prompt; None where it cannot be told.
        cache_bytes: KV cache after the prefill.
        speed_up: Prefill of full / ours, the encoder's share of `select` included.
        over_limit: Ours / the model fed only the tokens of the last stage.
        over_bound: Ours / the mean over layers of the model fed the tokens that each layer has.
        select_share: `select` / prefill of full.
    """

    method: str
    keep_ratio: float
    first_token: Timing
    read: float
    visual_tokens: int
    average_tokens: float
    structure_tokens: int
    encode: Timing
    select: Timing | None
    prefill: Timing
    decode: Timing
    flops: int
    peak_memory: int | None
    cache_bytes: int
    speed_up: float
    over_limit: float
    over_bound: float
    select_share: float

    @property
    def parts(self) -> tuple[float, float, float]:
        """Seconds of the encoder, of scoring and selection, and of the rest: `first_token` in all."""
        select = self.select.median if self.select else 0.0
        return self.encode.median - self.read, select, self.prefill.median - (select - self.read)


@dataclass(frozen=True, kw_only=True)
class Stopwatch(Pruner):
    """Another pruner, its selections timed as they happen.

    Attributes:
        inner: The pruner. marks: (start, end) of each `select` since they were last cleared.
    """

    inner: Pruner
    device: torch.device
    marks: list[tuple[Mark, Mark]] = field(default_factory=list)

    def stages(self, layers: int) -> tuple[Stage, ...]:
        return self.inner.stages(layers)

    def reads(self, vision_depth: int) -> Reads:
        return self.inner.reads(vision_depth)

    def select(self, picture: Picture, stage: Stage) -> Selection:
        start = mark(self.device)
        selection = self.inner.select(picture, stage)
        self.marks.append((start, mark(self.device)))
        return selection


@dataclass
class Contender:
    """One way to prefill the prompt, and its times so far.

    Attributes:
        pruner: None prunes nothing.
        inputs: What the model is called with.
        tokens: Visual tokens that each language-model layer works on; of a method, once it has run.
        structure: Line ends and tile markers after the last stage, likewise.
        positions: Where the output tokens go; None lets the model count.
        naive: Eager attention, all maps handed out.
    """

    name: str
    keep_ratio: float
    pruner: Stopwatch | None
    inputs: dict[str, Any]
    tokens: tuple[int, ...] = ()
    structure: int = 0
    positions: int | None = None
    naive: bool = False
    flops: int = 0
    peak: int | None = None
    cache: int = 0
    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    select: list[float] = field(default_factory=list)


class Contest:
    """Runs contenders on one prompt.

    Args:
        new_tokens: Output tokens decoded after each prefill.
    """

    def __init__(self, prompt: Prompt, new_tokens: int) -> None:
        self.prompt, self.new_tokens = prompt, new_tokens
        self.model, self.device = prompt.model, prompt.model.device
        self.layers, self.structure = len(prompt.adapter.layers), prompt.structure_tokens

    def full(self, naive: bool = False) -> Contender:
        """All tokens."""
        tokens = (self.prompt.visual_tokens,) * self.layers
        return Contender(FULL + NAIVE * naive, 1.0, None, self.prompt.whole(), tokens, self.structure, naive=naive)

    def pruned(self, variant: Variant, keep_ratio: float, told: float, naive: bool = False) -> Contender:
        """A method at `keep_ratio`, for which it is told to keep `told`."""
        inner = variant.pruner(told)
        pruner = Stopwatch(inner=inner, device=self.device, window=inner.window, keep_structure=inner.keep_structure)
        return Contender(variant.name + NAIVE * naive, keep_ratio, pruner, self.prompt.whole(), naive=naive)

    def limit(self, count: int) -> Contender:
        """The model fed `count` visual tokens from the start."""
        share, after = count / self.prompt.visual_tokens, int(self.prompt.positions.max()) + 1
        return Contender(LIMIT, share, None, self.prompt.fed(count), (count,) * self.layers, self.structure, after)

    @contextlib.contextmanager
    def ready(self, contender: Contender, encoding: bool = False) -> Iterator[None]:
        """The model as the contender runs it.

        Args:
            encoding: Whether its encoder runs; else it has been asked already.
        """
        usual = self.model.config._attn_implementation
        encoder = contextlib.nullcontext() if encoding else encoded_already(self.model, self.prompt.encoded)
        with encoder:
            told = (self.prompt.processor, self.prompt.instruction)
            handle = attach(self.model, contender.pruner, *told) if contender.pruner else None
            try:
                if contender.naive:
                    self.model.set_attn_implementation("eager")
                yield
            finally:
                if contender.naive:
                    self.model.set_attn_implementation(usual)
                if handle is not None:
                    contender.tokens = handle.trace.layer_tokens or contender.tokens
                    contender.structure = handle.trace.structure_tokens[1]
                    handle.remove()

    def run(self, contender: Contender) -> Any:
        """One prefill."""
        extra = {"output_attentions": True} if contender.naive else {}
        return self.model(**contender.inputs, **extra, use_cache=True, logits_to_keep=1)

    def measure_costs(self, contender: Contender) -> None:
        """Count operations and memory; it warms up, too."""
        with self.ready(contender):
            held: list[Any] = []
            contender.flops = count_flops(lambda: held.append(self.run(contender)))
            contender.cache = cache_bytes(held.pop().past_key_values)
            contender.peak = peak_memory(partial(self.run, contender), self.device)

    def time_once(self, contender: Contender) -> None:
        """One timed prefill, and the decoding after it."""
        outputs: list[Any] = []
        if contender.pruner:
            contender.pruner.marks.clear()
        with self.ready(contender):
            contender.prefill.append(seconds(lambda: outputs.append(self.run(contender)), self.device))
            cache = outputs.pop().past_key_values
            contender.decode.append(seconds(partial(self._decode, cache, contender.positions), self.device) / self.new_tokens)
        if contender.pruner:
            contender.select.append(sum(between(*pair) for pair in contender.pruner.marks))

    def _decode(self, cache: Any, positions: int | None) -> None:
        word = torch.full((1, 1), FIRST_WORD, device=self.device)
        for step in range(self.new_tokens):
            place = {} if positions is None else {"position_ids": torch.full_like(word, positions + step)}
            self.model(input_ids=word, past_key_values=cache, use_cache=True, **place)

    def encoder_runs(self, contenders: Sequence[Contender]) -> int:
        """How many times `time_encoders` runs the encoder."""
        return ENCODER_ROUNDS * len({self.read_by(contender) for contender in contenders})

    def time_encoders(
        self, contenders: Sequence[Contender], advance: Callable[[], None]
    ) -> dict[frozenset[VisionRead], Timing]:
        """Seconds of the vision encoder by what is read there."""
        readers = {self.read_by(contender): contender for contender in contenders}
        times: dict[frozenset[VisionRead], list[float]] = {reads: [] for reads in readers}
        for _ in range(ENCODER_ROUNDS):
            for reads, contender in readers.items():
                with self.ready(contender, encoding=True):
                    encode = partial(self.model.get_image_features, **self.prompt.pictures, return_dict=True)
                    times[reads].append(seconds(encode, self.device))
                advance()
        return {reads: timing(measured) for reads, measured in times.items()}

    def read_by(self, contender: Contender) -> frozenset[VisionRead]:
        """What a contender reads of the vision encoder."""
        return frozenset(contender.pruner.reads(self.prompt.adapter.vision_depth).vision) if contender.pruner else frozenset()

    def row(
        self,
        contender: Contender,
        full: Contender,
        limits: dict[int, Contender],
        encoders: dict[frozenset[VisionRead], Timing],
        signal: float,
    ) -> Row:
        """What a contender measured; ratios are medians over rounds, each of times of the same round.

        Args:
            limits: By visual tokens. signal: Seconds that reading one vision layer takes.
        """
        total, rounds = self.prompt.visual_tokens, range(len(contender.prefill))
        signals = signal * len(self.read_by(contender))
        fed = {count: limit.prefill for count, limit in limits.items()} | {total: full.prefill}
        ours = [spent + signals for spent in contender.prefill]
        bound = [statistics.mean(fed[count][r] for count in contender.tokens) for r in rounds]
        select = timing([spent + signals for spent in contender.select]) if contender.select else None
        encode = encoders[self.read_by(contender)]
        return Row(
            method=contender.name,
            keep_ratio=contender.keep_ratio,
            first_token=timing([encode.median + spent for spent in contender.prefill]),
            read=signals,
            visual_tokens=contender.tokens[-1],
            average_tokens=statistics.mean(contender.tokens),
            structure_tokens=contender.structure,
            encode=encode,
            select=select,
            prefill=timing(contender.prefill),
            decode=timing(contender.decode),
            flops=contender.flops,
            peak_memory=contender.peak,
            cache_bytes=contender.cache,
            speed_up=statistics.median(full.prefill[r] / ours[r] for r in rounds),
            over_limit=statistics.median(ours[r] / fed[contender.tokens[-1]][r] for r in rounds),
            over_bound=statistics.median(ours[r] / bound[r] for r in rounds),
            select_share=select.median / statistics.median(full.prefill) if select else 0.0,
        )


@torch.inference_mode()
def compete(
    prompt: Prompt,
    entries: Sequence[tuple[Variant, float, float]],
    *,
    rounds: int,
    new_tokens: int,
    naive: bool = False,
    total: Callable[[int], None] = lambda steps: None,
    advance: Callable[[], None] = lambda: None,
) -> list[Row]:
    """Measure full, every entry, and the limits they are held against.

    Args:
        entries: (method, keep ratio asked for, keep ratio it is told).
        rounds: Timed rounds; in each every contender runs once, in turn.
        new_tokens: Output tokens decoded after each prefill.
        naive: Also run full, and the methods that look at the text, with eager attention and full maps.
        total: Told how many steps there are, once that is known. advance: Called after each.

    Returns:
        Full first, then the entries in their order; the limits last, most tokens first.
    """
    contest = Contest(prompt, new_tokens)
    full = contest.full()
    contenders = [full, *(contest.pruned(*entry) for entry in entries)]
    if naive:
        depth = prompt.adapter.vision_depth
        asking = [
            contender.pruner is not None and contender.pruner.reads(depth).probe is not None for contender in contenders[1:]
        ]
        reading = [entry for entry, asks in zip(entries, asking, strict=True) if asks]
        contenders += [contest.full(naive=True), *(contest.pruned(*entry, naive=True) for entry in reading)]
    for contender in contenders:
        contest.measure_costs(contender)
        advance()
    counts = {count for contender in contenders for count in contender.tokens} - {prompt.visual_tokens}
    limits = {count: contest.limit(count) for count in sorted(counts, reverse=True)}
    everyone = [*contenders, *limits.values()]
    total((1 + rounds) * len(everyone) + contest.encoder_runs(contenders))
    for contender in limits.values():
        contest.measure_costs(contender)
        advance()
    encoders = contest.time_encoders(contenders, advance)
    shuffle = random.Random(0)
    for _ in range(rounds):
        # Those that keep as many tokens run next to their limit, in an order that changes: a noisy minute hits all of them.
        for contender in sorted(shuffle.sample(everyone, len(everyone)), key=lambda contender: contender.tokens[-1]):
            contest.time_once(contender)
            advance()
    signal = statistics.median(seconds(prompt.signal, contest.device) for _ in range(rounds + 1))
    rows = [contest.row(contender, full, limits, encoders, signal) for contender in contenders]
    return rows + [contest.row(contender, full, limits, encoders, signal) for contender in limits.values()]
