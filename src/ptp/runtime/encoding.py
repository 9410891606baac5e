"""The one place that decides what the vision encoder runs on: nothing twice, and nothing that is not read.

Three savings, none of which changes what comes out (beyond the last bits: a batch of another size is added up in another
order):

- tiles with the same pixels are encoded once, where tiles do not see each other;
- layers behind the last one that feeds the language model are left out;
- what was encoded before is taken from an `EncoderCache`, where there is one.

The first two, and tiles that were encoded before, are taken care of inside the encoder's own forward, so that whatever the
model does around it goes on as it is. A whole call that comes again (the next question) does not even begin.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from ..adapters import Adapter
from .hooks import Hook, Shadow
from .reuse import EncoderCache, Entry, Signals, Wanted, digest_of, over, parts_of, state_of
from .trace import EncoderTrace

SAMPLED = 4096
"""Values of each tile that are compared first."""
ASKED_FOR = ("output_hidden_states", "output_attentions")
"""Arguments that ask for more of the encoder than what the language model is given."""
STATES = ("last_hidden_state", "hidden_states", "attentions")
"""What is not kept of the outcome of a call: no model reads it behind the method that encodes."""


@dataclass(frozen=True)
class Savings:
    """What is saved in the encoder.

    Attributes:
        merge_tiles: Tiles with the same pixels are encoded once.
        skip_layers: Layers whose output nobody reads do not run.
        cache: Where encoder outputs are kept; None keeps none.
    """

    merge_tiles: bool = True
    skip_layers: bool = True
    cache: EncoderCache | None = None


ALL_SAVINGS = Savings()
"""What is on by default."""


@dataclass
class Plan:
    """Which tiles of a call of the encoder have to be computed.

    Attributes:
        owners: Of each unit, the first one with the same pixels; itself, where there is none.
        new: The units that are encoded. found: What is there already, by unit.
        keys: Of each unit, what it is kept by; empty where nothing is kept.
        output: What the encoder put out for the new ones; None before it has run, and where there are none.
    """

    owners: list[int]
    new: list[int]
    found: dict[int, Entry] = field(default_factory=dict)
    keys: list[bytes] = field(default_factory=list)
    output: Any = None

    @property
    def whole(self) -> bool:
        """Whether everything is encoded, each unit for itself."""
        return len(self.new) == len(self.owners)


@dataclass
class EncoderRun:
    """One call of a method that encodes pictures.

    Attributes:
        inputs: Its arguments, by name. about: What else its outcome depends on.
        seen: What the hooks have seen, by name. laid_out: What the adapter remembers of the pictures' sizes.
        unread: Ids of the layers that are left out.
        plan: None before the encoder is called, and where nothing is saved in it.
        called: How many times the encoder was called.
        state: Of all that encoding computes with; None where nothing is kept. key: What the call's outcome is kept by.
    """

    inputs: Mapping[str, Any]
    about: tuple[Any, ...] = ()
    seen: dict[Any, Any] = field(default_factory=dict)
    laid_out: Any = None
    unread: frozenset[int] = frozenset()
    plan: Plan | None = None
    called: int = 0
    state: bytes | None = None
    key: bytes | None = None


class EncoderSavings:
    """Runs an encoder on what is needed of it.

    Args:
        wanted: What will be read.
        run: Gives the call that the thread is in; None where it is in none.
    """

    def __init__(self, adapter: Adapter, savings: Savings, wanted: Wanted, run: Callable[[], EncoderRun | None]) -> None:
        self.adapter, self.savings, self.wanted, self.run = adapter, savings, wanted, run

    def attach(self) -> Iterator[Shadow]:
        """Put it into the encoder, one module after the other; where nothing is to be saved, nowhere."""
        if self.savings == Savings(merge_tiles=False, skip_layers=False):
            return
        yield Shadow(self.adapter.vision, "forward", self._forward(self.adapter.vision.forward))
        if self.savings.skip_layers:
            for layer in self.adapter.unread_layers({}):
                yield Shadow(layer, "forward", self._skipping(layer, layer.forward))

    def begin(self, inputs: Mapping[str, Any], about: tuple[Any, ...]) -> EncoderRun:
        """A call of a method that encodes pictures."""
        unread: Sequence[nn.Module] = ()
        if self.savings.skip_layers and not self._asks_for_more(inputs) and not self._is_watched(self.adapter.vision):
            unread = self.adapter.unread_layers(inputs)
        return EncoderRun(inputs, about, unread=frozenset(map(id, unread)))

    def _asks_for_more(self, inputs: Mapping[str, Any]) -> bool:
        config = getattr(self.adapter.vision, "config", None)
        return any(inputs.get(name) or getattr(config, name, False) for name in ASKED_FOR)

    def _is_watched(self, module: nn.Module, without: nn.Module | None = None) -> bool:
        """Whether a module may do another thing each time: the encoder trains, or somebody else listens to a part of it."""
        return self.adapter.vision.training or any(
            not isinstance(hook, Hook) and not str(getattr(hook, "__module__", "")).startswith("transformers.")
            for _, part in parts_of(module, without)
            for hook in (*part._forward_pre_hooks.values(), *part._forward_hooks.values())
        )

    def _skipping(self, layer: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def skipping(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            run = self.run()
            skipped = run is not None and id(layer) in run.unread
            return hidden_states if skipped else forward(hidden_states, *args, **kwargs)

        return skipping

    def _forward(self, encode: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(encode)
        def forward(*args: Any, **kwargs: Any) -> Any:
            run = self.run()
            if run is None:
                return encode(*args, **kwargs)
            run.called += 1
            run.plan = plan = self._plan(run, args, kwargs) if run.called == 1 else None
            if plan is None or plan.whole:
                output = encode(*args, **kwargs)
                if plan is not None and plan.keys:
                    plan.output = self._kept_of(run, output)
                return _without_last(output, len(run.unread))
            if plan.new:
                tiles = len(plan.owners)
                index = torch.tensor(plan.new, device=_pixels(args, kwargs).device)

                def pick(given: Any) -> Any:
                    return given.index_select(0, index) if _is_by_tile(given, tiles) else given

                plan.output = encode(*map(pick, args), **{name: pick(given) for name, given in kwargs.items()})
                if plan.keys:
                    plan.output = self._kept_of(run, plan.output)
            output = self._assembled(plan)
            return _without_last(output, len(run.unread))

        return forward

    def _kept_of(self, run: EncoderRun, output: Any) -> Any:
        """What is kept of an output, in a container of its own: models write into the one that they are given."""
        if isinstance(output, ModelOutput):
            unread = self.adapter.unread_outputs(run.inputs)
            output = type(output)(**{name: value for name, value in output.items() if name not in unread})
        return over(lambda tensor: tensor, output)

    def _assembled(self, plan: Plan) -> Any:
        """The output for all units: in new containers, since models write into them."""
        place = {unit: number for number, unit in enumerate(plan.new)}
        if not plan.found:
            index = [place[owner] for owner in plan.owners]
            return over(lambda states: states.index_select(0, torch.tensor(index, device=states.device)), plan.output)
        parts = [
            plan.found[owner].output
            if owner in plan.found
            else over(lambda states, n=place[owner]: states[n : n + 1], plan.output)
            for owner in plan.owners
        ]
        return over(lambda *states: torch.cat(states), *parts)

    def _cache(self, run: EncoderRun) -> EncoderCache | None:
        """Where a call may find and leave something; None: nowhere."""
        return None if torch.is_grad_enabled() or self._asks_for_more(run.inputs) else self.savings.cache

    def _plan(self, run: EncoderRun, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Plan | None:
        """What has to be computed; None where all of it has, and nothing of it is kept by tile."""
        cache = self._cache(run) if run.state is not None else None
        merge = self.savings.merge_tiles
        if not self.adapter.independent_tiles or (cache is None and not merge) or self._is_watched(self.adapter.vision):
            return None
        tiles = len(_pixels(args, kwargs))
        given: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
        rows = {name: value for name, value in given.items() if _is_by_tile(value, tiles)}
        rest = {name: value for name, value in given.items() if name not in rows}
        if cache is None:
            owners = same_rows(list(rows.values()))
            return Plan(owners, [unit for unit, owner in enumerate(owners) if unit == owner])
        shared = digest_of("tile", run.state, _autocast(_pixels(args, kwargs).device), len(run.unread), rest)
        keys = [digest_of(shared, {name: value[unit] for name, value in rows.items()}) for unit in range(tiles)]
        first = {key: unit for unit, key in reversed(list(enumerate(keys)))}
        owners = [first[key] if merge else unit for unit, key in enumerate(keys)]
        found = {}
        for unit in set(owners):
            if (entry := cache.get(keys[unit], self.wanted)) is not None:
                found[unit] = entry
        return Plan(owners, sorted(set(owners) - set(found)), found, keys)

    def recall(self, run: EncoderRun, own: bool) -> Entry | None:
        """What the same call made before, with all that will be read; None where it has to be made.

        Args:
            own: Whether the method that encodes is the model's own, as its class has it.
        """
        core = self.adapter.core
        if self._cache(run) is None or not own or core.training or run.inputs.get("return_dict") is False:
            return None
        if self._is_watched(core, self.adapter.text.model):
            return None
        run.state = state_of(core, without=self.adapter.text.model)
        if run.state is None or self.savings.cache is None:
            return None
        told = {name: value for name, value in run.inputs.items() if value is not None and name != "return_dict"}
        place = _autocast(next(self.adapter.vision.parameters()).device)
        run.key = digest_of("call", run.state, place, len(run.unread), run.about, told)
        return self.savings.cache.get(run.key, self.wanted)

    def recalled(self, entry: Entry) -> tuple[Any, EncoderTrace]:
        """An output like the one that was kept, in a container of its own; and how it was come by."""
        units, held = len(entry.pixels), 0 if self.savings.cache is None else self.savings.cache.held
        return over(lambda tensor: tensor, entry.output), EncoderTrace(units, 0, units, 0, held)

    def finish(
        self, run: EncoderRun, output: Any, pixels: Sequence[Tensor], read: Callable[[], Signals]
    ) -> tuple[Signals, EncoderTrace]:
        """What scoring reads of all units, and how they were come by; what is new is kept.

        Args:
            output: Of the method that encodes. pixels: A few of each unit. read: Reads what was encoded.
        """
        plan, cache, units = run.plan, self.savings.cache, len(pixels)
        if plan is None or run.called != 1:
            signals, encoded, hits = read(), units, 0
        else:
            fresh = read() if plan.new else Signals({}, {}, ())
            single = {unit: _unit(fresh, number) for number, unit in enumerate(plan.new)}
            single |= {unit: entry.signals for unit, entry in plan.found.items()}
            signals = Signals.joined([single[owner] for owner in plan.owners])
            encoded, hits = len(plan.new), sum(owner in plan.found for owner in plan.owners)
            if cache is not None and plan.keys:
                for number, unit in enumerate(plan.new):
                    tile = over(lambda states, n=number: states[n : n + 1], plan.output)
                    cache.put(plan.keys[unit], Entry(over(_own, tile), single[unit].copied(_own)))
        if cache is None or run.key is None or run.called != 1:
            return signals, EncoderTrace(units, encoded, hits, 0, 0 if cache is None else cache.held)
        if isinstance(output, ModelOutput):
            read_on = {name: value for name, value in output.items() if name not in STATES}
            made = type(output)(**over(_own, read_on))
            cache.put(run.key, Entry(made, signals.copied(_own), over(_own, list(pixels))))
        return signals, EncoderTrace(units, encoded, hits, encoded, cache.held)


def _own(states: Tensor) -> Tensor:
    """A copy: a slice would hold the whole batch."""
    return states.detach().clone()


def same_rows(given: Sequence[Tensor]) -> list[int]:
    """Of each row, the first one that is the same in all of several (T, ...) tensors, bit for bit.

    A few values of each row come to the host first, which on a GPU waits for nothing but the pixels; only rows that are alike
    in these are compared as a whole.
    """
    flat = [_words(each) for each in given]
    samples = [each[:, :: max(1, each.shape[1] // SAMPLED)].cpu().numpy() for each in flat]
    owners: list[int] = []
    alike: dict[bytes, list[int]] = {}
    for row in range(len(flat[0])):
        known = alike.setdefault(b"".join(sample[row].tobytes() for sample in samples), [])
        owner = next((other for other in known if all(torch.equal(each[other], each[row]) for each in flat)), row)
        if owner == row:
            known.append(row)
        owners.append(owner)
    return owners


def _words(tensor: Tensor) -> Tensor:
    """(T, L) of whole numbers: the bits of (T, ...)."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(kinds[tensor.itemsize]).flatten(1)


def _unit(signals: Signals, number: int) -> Signals:
    return Signals(
        {kind: [rows[number]] for kind, rows in signals.attention.items()},
        {layer: [rows[number]] for layer, rows in signals.keys.items()},
        [signals.embeddings[number]] if signals.embeddings else [],
    )


def _pixels(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    return args[0] if args else kwargs["pixel_values"]


def _is_by_tile(given: Any, tiles: int) -> bool:
    return isinstance(given, Tensor) and given.dim() > 0 and len(given) == tiles


def _without_last(output: Any, layers: int) -> Any:
    """The output of an encoder whose last so many layers did not run, without what they would have made."""
    if not layers or not isinstance(output, ModelOutput):
        return output
    left = {name: value for name, value in output.items() if name not in ("last_hidden_state", "pooler_output")}
    if (states := left.get("hidden_states")) is not None:
        left["hidden_states"] = (*states[:-layers], *[None] * layers)
    return type(output)(**left)


def _autocast(device: torch.device) -> Any:
    kind = device.type
    return (kind, torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None)
