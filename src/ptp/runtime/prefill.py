"""One prefill, from its prompt to the cache it leaves behind. Each call of the model has its own.

Its life: `begin` (what came in, which text scores), `see` (what was encoded), `prune` at each stage (what stays), `mask` and
`remaining.shorten` (what the layers are handed), `finish` (what the cache remembers), `trace` (what is told of it).
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import Cache
from transformers.masking_utils import create_causal_mask

from ..adapters import Adapter, Span
from ..adapters.text import Part
from ..conversation import InstructionFinder
from ..selection import Selection
from .cache import Record, UnsupportedCacheError, cache_bytes, compact_cache, finish_cache
from .check import check_selection
from .encoding import ALL_SAVINGS, Savings
from .gather import merge, take
from .incoming import Held, Incoming
from .picture import Picture, Vision
from .reads import Reads
from .remaining import Remaining
from .structure import Structure, structure_of
from .trace import NOTHING_ENCODED, EncoderTrace, ImageTrace, PrefillTrace


class StageLike(Protocol):
    """A stage, as far as the runtime cares."""

    @property
    def layer(self) -> int: ...
    @property
    def keep_ratio(self) -> float: ...
    def budget(self, tokens: int) -> int: ...


class Method(Protocol):
    """A pruning method, as far as the runtime cares."""

    @property
    def window(self) -> int: ...
    @property
    def keep_structure(self) -> bool: ...
    def select(self, picture: Picture, stage: Any) -> Selection: ...


@dataclass(frozen=True)
class Setup:
    """What all prefills of a model share while it is pruned.

    Attributes:
        reads: What the method reads. instruction: Finds the instruction; None where it is not read.
        stages: Where tokens leave, in layer order.
        savings: What is saved in the encoder.
    """

    adapter: Adapter
    method: Method
    reads: Reads
    instruction: InstructionFinder | None
    stages: tuple[StageLike, ...]
    savings: Savings = ALL_SAVINGS


@dataclass(frozen=True)
class Host:
    """What of a prompt is read on the host.

    Attributes:
        ids: (B, S) int64. is_token, asked: (B, S) bool. counts: Asked tokens of each row.
    """

    ids: Tensor
    is_token: Tensor
    asked: Tensor
    counts: list[int]

    @classmethod
    def of(cls, ids: Tensor, is_token: Tensor, asked: Tensor) -> "Host":
        """One copy of the three."""
        own, valid, asking = torch.stack([ids, is_token.long(), asked.long()]).cpu()
        return cls(own, valid.bool(), asking.bool(), asking.sum(dim=1).tolist())


@dataclass
class Prefill:
    """State of one prefill; places, slots and indices are told apart in `remaining`.

    Attributes:
        setup: What it shares with others.
        input_ids: (B, S) the new tokens. is_token: (B, S) bool, False is padding.
        encoded: Encoder outputs that were passed, by modality. visions: What was read of those made in this call.
        encoder: How they were come by.
        asked: (B, S) bool, the text tokens that score. asked_places: (B, R) where they are; asked_valid: (B, R).
        cache: The KV cache, None without one. held: What it held before.
        shared: Keys and values of earlier layers that later ones look at, (keys, values) by name; None without such.
        last: How many of the last tokens are wanted of the language model, where it is told; 0 is all.
        remaining: Which of the new tokens are left.
        host: What of it is read on the host, copied there once: a GPU has nothing to wait for then.
        spans, pictures: Where the pictures are, and what may be read of them. structures: Their line ends and tile markers.
        captured: Outputs of projections in the attending layer below the next stage. captured_of: What was left there.
        inputs: (B, S, D) what the first layer was given, where it is read later.
        late: Mask (B, S) and features of DeepStack, which the runtime adds in the model's place.
        selections: Of the newest stage. kept: Their tokens, on the host. layer_tokens: Visual tokens that each layer works on.
        contexts: What ends with the prefill.
    """

    setup: Setup
    input_ids: Tensor
    is_token: Tensor
    encoded: Mapping[str, Any]
    asked: Tensor
    asked_places: Tensor
    asked_valid: Tensor
    cache: Cache | None
    held: Held
    remaining: Remaining
    host: Host
    visions: dict[str, Vision] = field(default_factory=dict)
    encoder: EncoderTrace = NOTHING_ENCODED
    spans: list[Span] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    structures: list[Structure] = field(default_factory=list)
    captured: dict[Part, Tensor] = field(default_factory=dict)
    captured_of: Remaining | None = None
    inputs: Tensor | None = None
    late: tuple[Tensor, Sequence[Tensor]] | None = None
    shared: Any = None
    last: int = 0
    selections: list[Selection] = field(default_factory=list)
    layer_tokens: tuple[int, ...] = ()
    contexts: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    kept: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.held_on_host = self.held.valid.cpu(), self.held.places.cpu()

    @classmethod
    def begin(cls, setup: Setup, incoming: Incoming) -> "Prefill":
        """Take in a prompt with pictures.

        Raises:
            UnsupportedModelError, ValueError: it cannot be pruned.
        """
        incoming.check(setup.adapter)
        input_ids: Any = incoming.input_ids
        is_token, held = incoming.tokens()
        asked = _asked(setup, input_ids, is_token)
        host = Host.of(input_ids, is_token, asked)
        _check_asked(setup, host.ids, host.asked)
        places, valid = (made.to(asked.device) for made in _pad_rows(host.asked))
        remaining = Remaining(is_token, host.is_token)
        return cls(setup, input_ids, is_token, incoming.encoded, asked, places, valid, incoming.cache, held, remaining, host)

    def see(self, found: Sequence[tuple[Span, Picture]]) -> None:
        """Take in the pictures, batch row by batch row and in prompt order."""
        self.spans, self.pictures = [span for span, _ in found], [picture for _, picture in found]
        spare, follow = self.setup.adapter.visual_tokens(self.host.ids), self.setup.adapter.line_ends
        for span in self.spans:
            spare[span.row, span.positions.cpu()] = False
        self.structures = [structure_of(span, spare[span.row], follow) for span in self.spans]

    def wants_last(self, tokens: int) -> bool:
        """Take in that only the last tokens are wanted of the language model (0: all), and say whether it must not know.

        Layers that look at keys and values of earlier ones then get these tokens only. Where some of them might leave, or do
        so in such a layer, all tokens go through.
        """
        self.last, shares_from = tokens, self.setup.adapter.text.shares_from
        if not tokens or shares_from is None:
            return False
        text = self.host.is_token & ~self.setup.adapter.visual_tokens(self.host.ids)
        return tokens > 1 or not bool(text[:, -1].all()) or self.setup.stages[-1].layer >= shares_from

    def asked_slots(self, remaining: Remaining | None = None) -> Tensor:
        """(B, R) where the scoring text tokens are in the current sequence, or in another; they never leave."""
        return (remaining or self.remaining).slots().gather(1, self.asked_places)

    def prune(self, stage: StageLike, pictures: Sequence[Picture], hidden: Tensor) -> Tensor:
        """Let the method choose at a stage; the others leave.

        Args:
            pictures: With what may be read at this stage.
            hidden: (B, S', D) the input of the stage's layer.

        Returns:
            (B, S'', D) of those that stay.
        """
        method = self.setup.method
        self.selections = [method.select(picture, stage) for picture in pictures]
        each = zip(self.selections, pictures, strict=True)
        self.kept = [check_selection(s, p, stage.budget(p.tokens), method) for s, p in each]
        self._count(stage.layer)
        stays, slots, merged = self.host.is_token.clone(), self.remaining.slots(), hidden
        more = stage.layer < self.setup.stages[-1].layer  # who will be asked again has to stay
        if not more:
            self.captured.clear()
        for (span, structure, selection, picture), chosen in zip(self._each(), self.kept, strict=True):
            places = span.positions.cpu()
            kept = places[chosen]
            stays[span.row, places] = False
            stays[span.row, kept] = True
            if not method.keep_structure:
                gone = structure.leave(chosen, stage.layer, self.host.asked[span.row] & more)
                stays[span.row, gone] = False
            if selection.mix is not None:
                own = slots[span.row]
                sources = own[places.to(own.device)[picture.alive.to(own.device)]]
                mix = selection.mix[:, picture.alive.to(selection.mix.device)]
                merged = merge(merged, span.row, sources, own[kept.to(own.device)], mix)
        self.pictures = [replace(p, alive=s.kept) for p, s in zip(self.pictures, self.selections, strict=True)]
        left = self.remaining.leave(stays)
        if left is None:
            return hidden  # the model runs exactly as it would alone: nothing is merged either
        if self.setup.adapter.text.hybrid and self.held.seen and self.remaining.padded:
            raise UnsupportedCacheError(
                "Pictures that go on from a KV cache cannot be pruned in a batch whose rows are, or would be, of different "
                "length: linear attention would run through the padding between. Prefill such rows one by one."
            )
        compact_cache(self.cache, self.shared, stage.layer, self.held.valid.shape[1], left)
        return take(merged, left, dim=1)

    def _each(self) -> Iterator[tuple[Span, Structure, Selection, Picture]]:
        return zip(self.spans, self.structures, self.selections, self.pictures, strict=True)

    def _count(self, layer: int) -> None:
        before = sum(span.layout.tokens for span in self.spans)
        after = sum(len(selection.kept) for selection in self.selections)
        below = self.layer_tokens[:layer] if self.layer_tokens else (before,) * layer
        self.layer_tokens = (*below, *(after,) * (len(self.setup.adapter.layers) - layer))

    def mask(self, layer: int, hidden: Tensor, given: Any) -> Any:
        """The attention mask of the current sequence; layers of a kind share it. Those that do not attend get (B, S'), where
        rows are padded.

        Args:
            hidden: (B, S', D) its input; or (B, 1, D), where the model goes on with the prompt's last token only.
            given: The layer's own. With sliding windows there may be more in it than what is causal; None is nothing more.
        """
        held, text, left = self.held, self.setup.adapter.text, self.remaining.places.shape[1]
        whole = hidden.shape[1] == left
        if layer not in text.attending:
            return self.remaining.valid.to(hidden.device) if self.remaining.padded else None
        if text.window is not None and given is not None:
            return self.remaining.shorten_mask(given, held.valid.shape[1])

        def causal() -> Any:
            flat = None
            if self.remaining.padded or not bool(self.held_on_host[0].all()):
                flat = torch.cat([held.valid, self.remaining.valid], dim=1).long()
                flat = torch.nn.functional.pad(flat, (held.seen - held.valid.shape[1], 0))
            return create_causal_mask(
                config=text.config,
                inputs_embeds=hidden if whole else hidden.expand(-1, left, -1),
                attention_mask=flat,
                past_key_values=self.cache if held.valid.shape[1] else None,
                layer_idx=layer,
            )

        mask = self.remaining.once(create_causal_mask, causal)
        return mask if mask is None or whole else mask[:, :, -1:]

    def finish(self, cache: Cache | None) -> None:
        """Let the cache know what it has seen and does not hold."""
        if cache is not None and self.remaining.shorter:
            device, (left, slots) = self.remaining.valid.device, self.remaining.on_host
            valid = torch.cat([self.held_on_host[0], left], dim=1)
            places = torch.cat([self.held_on_host[1], self.held.seen + slots], dim=1)
            windowed = self.setup.adapter.text.window is not None
            record = Record.of(valid, places, self.held.seen + self.input_ids.shape[1], windowed)
            finish_cache(cache, replace(record, valid=record.valid.to(device), places=record.places.to(device)))

    def trace(self, cache: Cache | None) -> PrefillTrace:
        """What happened, for whoever asks."""
        images = []
        for (span, structure, selection, _), kept in zip(self._each(), self.kept, strict=True):
            scores = {name: score.detach().float().cpu() for name, score in selection.scores.items()}
            positions = self.held.seen + span.positions
            text = self._instruction(span.row)
            markers = self.held.seen + structure.places, structure.left
            images.append(ImageTrace(span.row, span.layout, selection.budgets, kept, positions, scores, text, *markers))
        seen = self.held.seen + self.input_ids.shape[1]
        left = self.held.valid.shape[1] + self.remaining.places.shape[1]
        size = cache_bytes(cache)
        return PrefillTrace(
            images=images,
            visual_tokens=(sum(image.num_tokens for image in images), sum(len(image.kept) for image in images)),
            structure_tokens=(sum(len(i.structure) for i in images), sum(len(i.structure_kept) for i in images)),
            layer_tokens=self.layer_tokens,
            sequence_length=(seen, left),
            cache_bytes=(size // left * seen, size),
            encoder=self.encoder,
        )

    def _instruction(self, row: int) -> str:
        finder = self.setup.instruction
        return "" if finder is None else finder.words(self.host.ids[row], self.host.asked[row])


def _asked(setup: Setup, input_ids: Tensor, is_token: Tensor) -> Tensor:
    """(B, S) bool: the text tokens that the probe asks."""
    if setup.reads.probe is None:
        return torch.zeros_like(is_token)
    visual, rows = setup.adapter.visual_tokens(input_ids), setup.reads.probe.rows
    if rows == "instruction":
        assert setup.instruction is not None  # `attach` has made it
        return setup.instruction.mask(input_ids, is_token, visual) & is_token
    order = torch.arange(input_ids.shape[1], device=is_token.device)
    if rows == "last":
        return order == torch.where(is_token, order, -1).amax(dim=1, keepdim=True)
    begin = torch.where(visual, order, -1).amax(dim=1, keepdim=True) if rows == "behind" else -1
    return is_token & ~visual & (order > begin)


def _check_asked(setup: Setup, input_ids: Tensor, asked: Tensor) -> None:
    """Whether every row with pictures has text behind the last, where the probe asks text by its place.

    Raises:
        ValueError: it has none. What stands before a picture sees nothing of it, and all of its tokens would score alike.
    """
    probe = setup.reads.probe
    if probe is None or probe.rows == "instruction":
        return
    visual = setup.adapter.visual_tokens(input_ids)
    order = torch.arange(input_ids.shape[1], device=asked.device)
    last = torch.where(visual, order, -1).amax(dim=1, keepdim=True)
    blind = visual.any(dim=1) & ~(asked & ~visual & (order > last)).any(dim=1)
    if bool(blind.any()):
        raise ValueError(
            f"There must be text behind the pictures: {type(setup.method).__name__} asks it what it attends to, and row "
            f"{int(blind.int().argmax())} ends with a picture. Put the question behind it, or choose a method without text."
        )


def _pad_rows(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of the True entries of each row of a (B, S) mask, padded: (B, R) int64 and (B, R) bool validity."""
    width = max(int(mask.sum(dim=1).max()), 1)
    order = torch.arange(mask.shape[1], device=mask.device)
    columns = torch.where(mask, order, mask.shape[1]).sort(dim=1).values[:, :width]
    valid = columns < mask.shape[1]
    return columns.where(valid, 0), valid
