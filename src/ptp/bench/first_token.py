"""Time to the first token of a pruned model, with what is saved in the encoder and without: whole calls, from the pixels on."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..adapters import adapter_for
from ..evaluation.encoding import encoded_already
from ..pruner import Pruner
from ..runtime import EncoderCache, PrefillTrace
from .clock import seconds
from .prompt import Turn

OFF: dict[str, Any] = {"merge_tiles": False, "skip_layers": False}
HEADS = ["picture", "tokens", "kept", "units", "encoded", "without", "with", "speed-up", "again", "rest", "again / rest", "MiB"]
NOTES = """Seconds from the pixels to the first token (encoder, selection, prefill, argmax), medians of interleaved rounds:
`without` any saving in the encoder, as before; `with` all of them, what is encoded being kept for the next question, too;
`again`: the next question about the picture; `rest`: its selection and pruned prefill alone, the picture encoded beforehand.
`units` are tiles (pictures, where the encoder takes them whole), `encoded` those that the encoder ran on. `speed-up` and
`again / rest` are medians over rounds of ratios within a round. `MiB`: what is kept of the picture."""


@dataclass
class Measured:
    """One picture, round by round.

    Attributes:
        tokens: Visual tokens (before, after) pruning. units: What the encoder was given. encoded: What it ran on.
        kept_bytes: What the cache holds of it.
        without, with_all, again, rest: Seconds of each round.
    """

    tokens: tuple[int, int] = (0, 0)
    units: int = 0
    encoded: int = 0
    kept_bytes: int = 0
    without: list[float] = field(default_factory=list)
    with_all: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)
    rest: list[float] = field(default_factory=list)

    @property
    def speed_up(self) -> float:
        """Without savings over with them."""
        return statistics.median(a / b for a, b in zip(self.without, self.with_all, strict=True))

    @property
    def over_rest(self) -> float:
        """The next question over its selection and prefill."""
        return statistics.median(a / b for a, b in zip(self.again, self.rest, strict=True))


@torch.inference_mode()
def first_token(model: Any, turn: Turn, pruner: Pruner, **savings: Any) -> tuple[float, PrefillTrace]:
    """Seconds of one call up to its first token, on the host; and its trace."""
    call = partial(model, **turn.inputs, **turn.pictures, use_cache=True, logits_to_keep=1)
    with pruner(model, instruction=turn.asked, **savings) as trace:
        spent = seconds(lambda: int(call().logits[0, -1].argmax()), model.device)
    return spent, trace.newest


@torch.inference_mode()
def measure_round(model: Any, turn: Turn, pruner: Pruner, measured: Measured, without_first: bool) -> None:
    """One round of a picture: without savings and with them, in this order or the other; then the next question."""
    turn = turn.on(model)
    cache = EncoderCache(2**40)
    for savings in (OFF, {"reuse": cache}) if without_first else ({"reuse": cache}, OFF):
        spent, trace = first_token(model, turn, pruner, **savings)
        (measured.without if savings is OFF else measured.with_all).append(spent)
        if savings is not OFF:
            measured.units, measured.encoded = trace.encoder.units, trace.encoder.encoded
            measured.tokens, measured.kept_bytes = trace.visual_tokens, trace.encoder.cache_bytes
    with pruner(model, instruction=turn.asked, reuse=cache):
        encoded = model.get_image_features(**turn.pictures, return_dict=True)
    measured.again.append(first_token(model, turn, pruner, reuse=cache)[0])
    with encoded_already(model, encoded):
        measured.rest.append(first_token(model, turn, pruner)[0])


def measure(
    model: Any,
    turns: Mapping[str, Turn],
    pruner: Pruner,
    found: dict[str, Measured],
    rounds: int,
    advance: Callable[[dict[str, Measured]], None],
) -> None:
    """Measure pictures in interleaved rounds, until each has `rounds` of them.

    Args:
        found: What there is already; it is added to. advance: Called after each round of a picture.
    """
    first = next(iter(turns.values())).on(model)
    with torch.inference_mode():  # a warm-up; of the encoder by one tile, where it takes them one by one
        model(input_ids=first.inputs["input_ids"][:, -8:], use_cache=True)
        if adapter_for(model).independent_tiles and first.pictures.keys() == {"pixel_values"}:
            model.get_image_features(first.pictures["pixel_values"][:1])
    while True:
        done = {kind: len(found.setdefault(kind, Measured()).rest) for kind in turns}
        kind = min(turns, key=lambda each: done[each])
        if done[kind] >= rounds:
            return
        measure_round(model, turns[kind], pruner, found[kind], without_first=done[kind] % 2 == 0)
        advance(found)


def table(found: Mapping[str, Measured]) -> list[list[str]]:
    """A line per picture, under `HEADS`."""
    lines = []
    for kind, one in found.items():
        without, every, again, rest = map(statistics.median, (one.without, one.with_all, one.again, one.rest))
        lines.append(
            [
                kind, f"{one.tokens[0]:,}", f"{one.tokens[1]:,}", str(one.units), str(one.encoded), f"{without:.3g}",
                f"{every:.3g}", f"{one.speed_up:.2f}x", f"{again:.3g}", f"{rest:.3g}", f"{one.over_rest:.2f}",
                f"{one.kept_bytes / 2**20:.0f}",
            ]
        )  # fmt: skip
    return lines


def plot(found: Mapping[str, Measured], path: Path) -> None:
    """Time to the first token of each picture, stacked by part: without savings, with them, and of the next question."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    bars = [("without", lambda one: one.without), ("with", lambda one: one.with_all), ("again", lambda one: one.again)]
    for number, (name, times) in enumerate(bars):
        places = [kind + (number - 1) * 0.27 for kind in range(len(found))]
        rest = [statistics.median(one.rest) for one in found.values()]
        whole = [statistics.median(times(one)) for one in found.values()]
        encoder = [max(total - own, 0.0) for total, own in zip(whole, rest, strict=True)]
        axes.bar(places, encoder, 0.25, color=("C0", "C2", "C1")[number], label=f"{name}: encoder")
        label = "selection, prefill, first token" if number == 2 else None
        axes.bar(places, rest, 0.25, bottom=encoder, color="0.7", label=label)
    axes.set_xticks(range(len(found)), [f"{kind}\n{one.encoded} of {one.units} encoded" for kind, one in found.items()])
    axes.set_ylabel("time to the first token (s)")
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, format="png", dpi=120)


def check_single(what: str, given: Sequence[Any]) -> Any:
    """The one of what --pictures takes one of only; ValueError where there are more."""
    if len(given) != 1:
        raise ValueError(f"--pictures measures one of --{what}, got {len(given)}. Name one, say --methods pyramid --keep 0.25.")
    return given[0]
