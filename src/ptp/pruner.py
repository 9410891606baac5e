"""`Pruner`: the settings of a method, and the context manager that applies it to a model."""

import math
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from .adapters import Adapter, adapter_for
from .conversation import InstructionFinder, reader
from .errors import UnsupportedModelError
from .runtime import EncoderCache, Engine, Picture, Reads, Savings, Setup, TextProbe, Trace, VisionRead
from .selection import Selection, check_keep_ratio, check_share, total_budget

_attached: "weakref.WeakSet[Any]" = weakref.WeakSet()
"""The cores that are being pruned; shallow copies of a model share theirs."""
_attaching = threading.Lock()


@dataclass(frozen=True)
class Stage:
    """One point of the prefill where visual tokens leave.

    Attributes:
        layer: They leave at the input of this language-model layer; 0 is before the language model.
        keep_ratio: Share of the picture's original visual tokens that stays.
        reserve: Share of the others that stays, too, for a later stage to choose from.
    """

    layer: int
    keep_ratio: float
    reserve: float = 0.0

    def budget(self, tokens: int) -> int:
        """How many of a picture's `tokens` stay: K = `total_budget`, and ceil(reserve (tokens - K)) more."""
        kept = total_budget(self.keep_ratio, tokens)
        return kept + math.ceil(self.reserve * (tokens - kept))

    @property
    def share(self) -> float:
        """About what share of a picture's tokens stays."""
        return self.keep_ratio + self.reserve * (1 - self.keep_ratio)


@dataclass(frozen=True, kw_only=True)
class Pruner:
    """A training-free visual-token pruning method: one line around `generate`.

    Subclasses add their settings and `select`.

    Attributes:
        keep_ratio: Share of each picture's visual tokens kept, in (0, 1].
        window: Side in pixels, about, of the regions of pictures that their model does not cut into tiles.
        keep_structure: Whether line ends and tile markers, as far as they stand among a picture's visual tokens, stay in any
            case: they are none, and not in the budget. Off, a line end leaves with the last visual token of its row, a tile's
            markers with its last. (What opens and closes a picture stays.)
        record_scores: Whether the trace keeps the score maps. Serving turns it off and pays nothing for them.
    """

    keep_ratio: float = 0.5
    window: int = 448
    keep_structure: bool = True
    record_scores: bool = True

    def __post_init__(self) -> None:
        check_keep_ratio(self.keep_ratio)
        if not isinstance(self.window, int) or self.window < 1:
            raise ValueError(f"window must be a positive number of pixels, got {self.window!r}. Try 448.")

    def stages(self, layers: int) -> tuple[Stage, ...]:
        """Where tokens leave, in layer order, in a language model of `layers` layers."""
        return (Stage(0, self.keep_ratio),)

    def reads(self, vision_depth: int) -> Reads:
        """What `select` reads beside the tokens' own states.

        Args:
            vision_depth: Layers of the vision encoder up to the one that feeds the language model.
        """
        return Reads()

    def average_keep(self, layers: int) -> float:
        """Share of the visual tokens that a language model of `layers` layers works on, averaged over its layers."""
        ratios = {stage.layer: stage.share for stage in self.stages(layers)}
        alive, total = 1.0, 0.0
        for layer in range(layers):
            alive = ratios.get(layer, alive)
            total += alive
        return total / layers

    def select(self, picture: Picture, stage: Stage) -> Selection:
        """Choose the tokens of one picture that stay: a subset of `picture.alive`, `stage.budget(picture.tokens)` of them."""
        raise NotImplementedError(f"{type(self).__name__} must define select(picture, stage).")

    @contextmanager
    def __call__(
        self,
        model: PreTrainedModel,
        processor: Any | None = None,
        instruction: str | Sequence[str] | Tensor | None = None,
        *,
        merge_tiles: bool = True,
        skip_layers: bool = True,
        reuse: int | EncoderCache = 0,
    ) -> Iterator[Trace]:
        """Prune every prefill of `model` inside the context; on exit, also after an exception, nothing remains.

        Args:
            model: A Hugging Face model of a supported family, or a `peft.PeftModel` around one.
            processor: Its processor or tokenizer, for the instruction tokens and the frames of videos; None uses the one
                saved with the weights.
            instruction: Which words of the prompt are the instruction, where it is not the user's last turn: the words
                themselves, one text per batch row, or a mask (B, S) of the prompt's tokens. None finds the turn by the chat
                template.
            merge_tiles: Encode tiles with the same pixels once, where the encoder takes tiles one by one. The last bits of the
                others may change, as they do in any batch of another size.
            skip_layers: Leave out layers of the encoder behind the last that feeds the language model.
            reuse: Keep encoded pictures, in up to so many bytes, for the next question about them while the context lasts; 0
                keeps none. An `EncoderCache` outlasts the context, and other pruners use it, too. It serves calls without
                gradients (`generate`; others under torch.no_grad() or torch.inference_mode()).

        Of these three none applies while the encoder trains or somebody else's hook listens to it, and of the last two neither
        where output_hidden_states or output_attentions are asked for. An output of `get_image_features` has no
        last_hidden_state where layers were left out, and from the cache only what the model itself reads of it.

        Yields:
            The `Trace` of the newest prefill.

        Raises:
            UnsupportedModelError: the model cannot be pruned exactly.
            ValueError: a setting does not fit the model, or it is already being pruned.
        """
        handle = attach(model, self, processor, instruction, merge_tiles=merge_tiles, skip_layers=skip_layers, reuse=reuse)
        try:
            yield handle.trace
        finally:
            handle.remove()


class Handle:
    """What `attach` returns: the trace of the newest prefill, and the way to stop pruning."""

    def __init__(self, core: Any, engine: Engine) -> None:
        self._core, self._engine = weakref.ref(core), engine

    @property
    def trace(self) -> Trace:
        """The record of the newest prefill."""
        return self._engine.trace

    def remove(self) -> None:
        """Stop pruning; the model is as it was. Calling it again does nothing."""
        if self._engine.handles:
            self._engine.detach()
            _attached.discard(self._core())


def attach(
    model: PreTrainedModel,
    pruner: Pruner,
    processor: Any | None = None,
    instruction: str | Sequence[str] | Tensor | None = None,
    *,
    merge_tiles: bool = True,
    skip_layers: bool = True,
    reuse: int | EncoderCache = 0,
) -> Handle:
    """Prune every prefill of `model` from now on, until `handle.remove()`. Arguments and errors as `Pruner.__call__`."""
    model = _without_peft(model)
    adapter = adapter_for(model, reader(model, processor))
    stages, reads = _checked_stages(pruner, adapter), checked_reads(pruner, adapter.vision_depth)
    reads_instruction = reads.probe is not None and reads.probe.rows == "instruction"
    finder = InstructionFinder.of(model, processor, instruction) if reads_instruction else None
    if type(reuse) is bool or not isinstance(reuse, int | EncoderCache) or (isinstance(reuse, int) and reuse < 0):
        EncoderCache.refuse(reuse)
    own = EncoderCache(reuse) if isinstance(reuse, int) and reuse else None
    savings = Savings(merge_tiles, skip_layers, reuse if isinstance(reuse, EncoderCache) else own)
    engine = Engine(model, Setup(adapter, pruner, reads, finder, stages, savings), own)
    with _attaching:
        if adapter.core in _attached:
            raise ValueError("The model is already being pruned. Leave that context, or call remove() on its handle, first.")
        try:
            engine.attach()
            _attached.add(adapter.core)
        except BaseException:
            engine.detach()
            raise
    return Handle(adapter.core, engine)


def _without_peft(model: Any) -> Any:
    """The Hugging Face model inside a `peft.PeftModel`; any other as it is.

    Raises:
        UnsupportedModelError: the adapter puts tokens of its own before the prompt.
    """
    if not hasattr(model, "get_base_model"):
        return model
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise UnsupportedModelError(
            f"A PeftModel with {type(model.active_peft_config).__name__} cannot be pruned: it puts tokens of its own before "
            "the prompt. Use an adapter on the weights (LoRA), or prune the base model."
        )
    return model.get_base_model()


def _checked_stages(pruner: Pruner, adapter: Adapter) -> tuple[Stage, ...]:
    name, layers, previous = type(pruner).__name__, len(adapter.layers), -1
    stages = tuple(pruner.stages(layers))
    if not stages:
        raise ValueError(f"{name}.stages must return at least one Stage, got none. Return (Stage(0, self.keep_ratio),).")
    for stage in stages:
        if not isinstance(stage, Stage):
            raise ValueError(f"{name}.stages must return Stages, got {stage!r}. Return (Stage(0, self.keep_ratio),).")
        check_keep_ratio(stage.keep_ratio)
        check_share("reserve", stage.reserve)
        if not 0 <= stage.layer < layers:
            setting = "prune_layer" if hasattr(pruner, "prune_layer") else f"{name}.stages: the layer"
            raise ValueError(
                f"{setting} must be in [0, {layers - 1}] (the model has {layers} layers), got {stage.layer}. "
                "0 prunes before the first."
            )
        if stage.layer <= previous:
            raise ValueError(f"Stages must be at increasing layers, got layer {stage.layer} after {previous}. Reorder them.")
        previous = stage.layer
    return stages


def checked_reads(pruner: Pruner, depth: int) -> Reads:
    """What a method reads of an encoder of `depth` layers; ValueError where that is none of them, or no `Reads`."""
    name = type(pruner).__name__
    reads = pruner.reads(depth)
    if not isinstance(reads, Reads):
        raise ValueError(f"{name}.reads must return a Reads, got {reads!r}. Return Reads(vision=(VisionRead(-1),)), say.")
    if not isinstance(reads.vision, tuple) or not all(isinstance(read, VisionRead) for read in reads.vision):
        raise ValueError(f"{name}.reads: vision must be a tuple of VisionRead, got {reads.vision!r}. Return (VisionRead(-1),).")
    if reads.probe is not None and not isinstance(reads.probe, TextProbe):
        raise ValueError(f"{name}.reads: probe must be a TextProbe or None, got {reads.probe!r}. Return TextProbe().")
    for layer in [at for read in reads.vision for at in (read.layer, read.layer_without_cls) if at is not None]:
        if type(layer) is not int or not -depth <= layer < depth:
            names = [field.name for field in fields(pruner) if getattr(pruner, field.name) == layer]
            setting = next((name for name in names if name.endswith("_layer") and name != "prune_layer"), "vision_layer")
            raise ValueError(f"{setting} must be in [-{depth}, {depth - 1}] for this model, got {layer!r}. -1 is the last.")
    return reads
