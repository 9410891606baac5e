"""The check of the signals on a checkpoint: what they say, and what happens when a tenth of the tokens goes by them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from .. import scoring
from ..pruner import Pruner, Stage
from ..runtime import ImageTrace, Picture, Reads, TextProbe, VisionRead
from ..selection import Selection, keep_best, total_budget
from .statistics import Map

TENTH = 0.1
Signal = Literal["similarity", "attention", "saliency"]
Part = Literal["top", "random", "bottom"]
PARTS: tuple[Part, ...] = ("top", "random", "bottom")


@dataclass(frozen=True, kw_only=True)
class DropTenth(Pruner):
    """Drops a tenth of each picture's visual tokens by one signal, and remembers the signal.

    Attributes:
        signal: "similarity" of a token with the instruction's words, before the language model; "attention" that they pay it
            in the layer below `layer`; "saliency" in the encoder's last layer.
        part: Which tenth goes: the strongest, the weakest, or any.
        layer: Tokens leave at the input of this layer of the language model.
        given: Scores to go by instead, (N,) of each picture in prompt order.
        maps: (N,) of each picture, as they are read: one `DropTenth` is for one prefill.
    """

    signal: Signal
    part: Part = "top"
    layer: int = 0
    given: Sequence[Tensor] | None = None
    maps: list[Tensor] = field(default_factory=list, compare=False)
    keep_ratio: float = 1 - TENTH

    def stages(self, layers: int) -> tuple[Stage, ...]:
        return (Stage(self.layer, self.keep_ratio),)

    def reads(self, vision_depth: int) -> Reads:
        vision = (VisionRead(-1),) if self.signal == "saliency" else ()
        return Reads(vision=vision, probe=None if self.signal == "saliency" else TextProbe("instruction"))

    def select(self, picture: Picture, stage: Stage) -> Selection:
        read = self._read(picture).float().cpu()
        scores = read if self.given is None else self.given[len(self.maps)]
        self.maps.append(read)
        if self.part == "random":
            order = torch.Generator().manual_seed(picture.fingerprint)
            scores = torch.randperm(picture.tokens, generator=order).float()
        scores = scores if self.part == "bottom" else -scores  # what is best stays
        kept = keep_best(scores, [picture.tokens], [total_budget(stage.keep_ratio, picture.tokens)]).to(picture.alive.device)
        return Selection(kept, picture.count_per_tile(kept))

    def _read(self, picture: Picture) -> Tensor:
        """(N,) the signal."""
        if self.signal == "saliency":
            return picture.saliency
        if self.signal == "attention":
            return picture.text_attention
        return scoring.similarity_relevance(picture.states, picture.text_states)


@dataclass(frozen=True)
class Checked:
    """One signal on one question.

    Attributes:
        maps: Of its pictures. others: (N,) of each under other words.
        kl, changed: By what was dropped.
    """

    maps: list[Map]
    others: list[Any]
    kl: dict[str, float]
    changed: dict[str, bool]


def signals(layers: int) -> dict[str, tuple[Signal, int]]:
    """The signals that are checked, by name: which, and the layer where tokens leave."""
    third = max(1, layers // 3)
    return {
        "similarity to the words before the language model": ("similarity", 0),
        f"attention of the words at layer {third} of {layers}": ("attention", third),
        "encoder saliency": ("saliency", 0),
    }


def check(led: Callable[[Pruner], Any], reread: Callable[[Pruner], Any], signal: Signal, layer: int, window: int) -> Checked:
    """One signal on one question.

    Args:
        led: Leads the model under a pruner along the unpruned answer, and returns an `evaluation.own.Led`.
        reread: Prefills the same pictures with other words under a pruner.
        window: Of the pruners.
    """
    under_others = DropTenth(signal=signal, layer=layer, window=window)
    reread(under_others)
    kl, changed, maps = dict[str, float](), dict[str, bool](), list[Map]()
    for part in PARTS:
        pruner = DropTenth(signal=signal, layer=layer, window=window, part=part)
        found = led(pruner)
        kl[part], changed[part] = found.agreement.kl, not found.agreement.same
        if part == "top":
            maps = [_map(scores, image) for scores, image in zip(pruner.maps, found.trace.images, strict=True)]
    other = led(DropTenth(signal=signal, layer=layer, window=window, given=under_others.maps))
    kl["other"], changed["other"] = other.agreement.kl, not other.agreement.same
    return Checked(maps, [scores.numpy() for scores in under_others.maps], kl, changed)


def _map(scores: Tensor, image: ImageTrace) -> Map:
    layout = image.layout
    whole = torch.zeros(layout.tokens, dtype=torch.bool)
    if layout.thumbnail:
        whole[layout.tokens - layout.sizes[-1] :] = True
    boxes = layout.boxes.float().cpu()
    return Map(scores.numpy(), ((boxes[:, :2] + boxes[:, 2:]) / 2).numpy(), whole.numpy())
