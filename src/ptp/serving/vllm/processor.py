"""Prompts with as many placeholders as visual tokens will stay.

How many that is follows from the settings and the picture's size. Which ones follows from the picture, the settings and, for
methods that read it, the instruction: all of that goes into the picture's hash, by which the engine's caches (of processed
pictures, encoded pictures, and prefixes) tell them apart. A request that prunes nothing is the engine's own.
"""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import ImageProcessorItems
from vllm.multimodal.processing import BaseProcessingInfo, InputProcessingContext, ProcessorInputs, PromptUpdateDetails

from ...conversation import InstructionFinder, words_of_pictures
from ...pruner import checked_reads
from . import metrics
from .config import REFUSED
from .context import HidesSettings, without_settings
from .positions import LARGEST
from .settings import ENGINE_ONLY, KEY, Settings, resolve

MEASURING: Mapping[str, object] = {}
"""Keyword arguments (this very object) of the prompts by which the engine measures itself: the largest there can be."""


@dataclass(frozen=True)
class Order:
    """How the pictures of one request are to be pruned; it takes the place of the settings while the request is processed.

    Attributes:
        settings: Of all its pictures. keys: By which each picture is known, however pruned.
        words: The ids of the instruction of each, empty where none is read.
    """

    settings: Settings
    keys: tuple[str, ...]
    words: tuple[tuple[int, ...], ...]

    def of(self, numbers: Sequence[int]) -> "Order":
        """The same for some of the pictures."""
        return Order(self.settings, tuple(self.keys[n] for n in numbers), tuple(self.words[n] for n in numbers))

    def hashes(self) -> list[str]:
        """What each picture is known by as it will be pruned."""
        parts = zip(self.keys, self.words, strict=True)
        return [hashlib.blake2b(f"{k} {self.settings.text} {w}".encode(), digest_size=32).hexdigest() for k, w in parts]

    def fields(self, tokens: Sequence[int]) -> dict[str, torch.Tensor]:
        """What travels with the pictures to the worker.

        Args:
            tokens: Of each picture, line ends among them.
        """
        keys = [hashlib.blake2b(key.encode(), digest_size=16).digest() for key in self.keys]
        return {
            "ptp_tokens": torch.tensor(tokens),
            "ptp_key": torch.tensor([list(key) for key in keys], dtype=torch.uint8),
            "ptp_settings": torch.tensor(list(self.settings.text.encode()), dtype=torch.uint8),
            "ptp_word_count": torch.tensor([len(words) for words in self.words]),
            "ptp_words": torch.tensor([number for words in self.words for number in words], dtype=torch.int64),
        }


@dataclass
class Shortened(PromptUpdateDetails):
    """A picture's placeholders, `missing` of them taken out."""

    missing: int = 0


def embeds_of(details: PromptUpdateDetails) -> list[bool]:
    """Which of a picture's placeholders are visual tokens; others open and close it."""
    return [True] * len(details.full) if details.is_embed is None else details.is_embed(details.full).tolist()


def shorten(details: PromptUpdateDetails, settings: Settings, line_ends: int = 0) -> Shortened:
    """The placeholders of the tokens that stay: the first of those of all.

    Args:
        line_ends: How many of them are line ends, which stay and are not in the budget.

    Raises:
        ValueError: the picture has more tokens than can be told apart.
    """
    embeds = embeds_of(details)
    total = sum(embeds)
    if total > LARGEST:
        raise ValueError(f"A picture may have {LARGEST} visual tokens where it is pruned, got {total}. Make it smaller.")
    budget = settings.stage.budget(total - line_ends) + line_ends
    full, seen = [], 0
    for number, embed in zip(details.full, embeds, strict=True):
        seen += embed
        if not embed or seen <= budget:
            full.append(number)
    return Shortened(full, details.is_embed, total - budget)


class PrunesPrompts:
    """What a multi-modal processor of vLLM does otherwise where pictures are to be pruned; it stands before that one.

    A family says how many tokens its pictures have (`visual_tokens`), how many of these are line ends (`line_ends`), what
    of its encoder can be read, and what else rules pruning out (`check`).

    Attributes:
        has_cls: Whether the encoder has [CLS].
    """

    info: BaseProcessingInfo
    has_cls: ClassVar[bool]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._settings({})  # wrong settings of the engine are told when it starts

    def visual_tokens(self, processed: Mapping[str, Any]) -> list[int]:
        """Of each picture, line ends among them, from what the Hugging Face processor made of them."""
        raise NotImplementedError(f"{type(self).__name__} must define visual_tokens(processed).")

    def line_ends(self, pictures: ImageProcessorItems) -> list[int]:
        """How many of each picture's tokens are line ends, which the encoder gives with it."""
        return [0] * len(pictures)

    def check(self, settings: Settings) -> None:
        """Raise ValueError where the model cannot be pruned so."""

    @functools.cached_property
    def _finder(self) -> InstructionFinder:
        return InstructionFinder.of(None, self.info.get_hf_processor())  # type: ignore[arg-type]

    # -- what is asked for -------------------------------------------------------------------------------------------

    def _settings(self, kwargs: Mapping[str, object]) -> Settings | None:
        """The settings of a request; ValueError where they are wrong, or the engine as it is set up cannot prune."""
        ctx: Any = self.info.ctx
        merged, engine = ctx.settings(kwargs), ctx.settings({})
        settings = resolve(merged)
        for name in ENGINE_ONLY:
            asked = [given.get(name) if isinstance(given, Mapping) else None for given in (merged, engine)]
            if asked[0] != asked[1]:
                raise ValueError(f"{KEY}: {name} is the engine's, a request cannot set it. Pass it when the engine starts.")
        if settings is not None:
            self.check(settings)
            self._check_reads(settings)
        reason = getattr(ctx.get_hf_config(), REFUSED, None)
        if settings is not None and reason is not None:
            raise ValueError(f"Visual tokens cannot be pruned with {reason}")
        return settings

    def vision_depth(self) -> int:
        """Layers of the encoder up to the one that feeds the language model."""
        config: Any = self.info.get_hf_config()
        return config.vision_config.num_hidden_layers

    def _check_reads(self, settings: Settings) -> None:
        reads = checked_reads(settings.pruner, self.vision_depth())
        if not self.has_cls and any(read.attention == "cls" for read in reads.vision):
            raise ValueError(
                f"{type(settings.pruner).__name__} reads [CLS] attention, and the encoder has no [CLS]. Choose another method."
            )

    def _order(self, inputs: ProcessorInputs, settings: Settings) -> Order:
        """How to prune the pictures of a request.

        Args:
            inputs: The request without our settings.
        """
        items = inputs.mm_data_items
        others = [name for name, parts in items.items() if len(parts) and name != "image"]
        if others:
            raise ValueError(
                f"{', '.join(others)} cannot be pruned when served. Pass frames as pictures, or keep_ratio 1 in this request."
            )
        if any(len(parts) and not isinstance(parts, ImageProcessorItems) for parts in items.values()):
            raise ValueError(
                "Precomputed embeddings cannot be pruned: there are no pictures to look at. Pass these, or keep_ratio 1."
            )
        ctx: Any = self.info.ctx
        keys = inputs.get_mm_hashes(self.info.model_id, ctx.get_mm_config().mm_hasher_algorithm).get("image", [])
        words: list[list[int]] = [[] for _ in keys]
        if keys and settings.reads_words:
            words = words_of_pictures(self._finder, inputs.prompt, self._picture_id())
            if len(words) != len(keys):
                raise ValueError(f"The prompt has places for {len(words)} pictures, and {len(keys)} came with it.")
            if settings.needs_words and not all(words):
                raise ValueError(
                    f"{type(settings.pruner).__name__} reads the user's words, and a picture's turn has none. Ask something "
                    "in the turn that shows it, or choose a method that reads none (pyramid with alpha 0)."
                )
        return Order(settings, tuple(keys), tuple(map(tuple, words)))

    def _picture_id(self) -> int:
        """The id that stands for a picture in a prompt that comes in."""
        config: Any = self.info.get_hf_config()
        return config.image_token_id

    # -- vLLM's own steps --------------------------------------------------------------------------------------------

    def apply(self, inputs: ProcessorInputs, timing_ctx: Any) -> Any:
        given = inputs.hf_processor_mm_kwargs
        if given is not MEASURING:
            settings = self._settings(given)
            inputs = replace(inputs, hf_processor_mm_kwargs=without_settings(given))
            if settings is not None and inputs.mm_data_items:
                order = self._order(inputs, settings)
                inputs = replace(inputs, hf_processor_mm_kwargs={**inputs.hf_processor_mm_kwargs, KEY: order})
        return super().apply(inputs, timing_ctx)  # type: ignore[misc]

    def _cached_apply_hf_processor(self, inputs: ProcessorInputs, timing_ctx: Any) -> Any:
        processed = super()._cached_apply_hf_processor(inputs, timing_ctx)  # type: ignore[misc]
        if inputs.hf_processor_mm_kwargs is not MEASURING:
            self._check_and_count(processed, inputs.hf_processor_mm_kwargs.get(KEY))
        return processed

    def _check_and_count(self, processed: Any, order: Any) -> None:
        ctx: Any = self.info.ctx
        contents = [update.content for update, *_ in processed.prompt_updates.get("image", ())]
        missing = sum(content.missing for content in contents if isinstance(content, Shortened))
        if isinstance(order, Order):
            length = len(processed.prompt_ids) + missing + sum(len(content.full) - 1 for content in contents)
            longest = ctx.get_hf_config().get_text_config().max_position_embeddings
            if length > longest:
                raise ValueError(
                    f"Unpruned, the prompt must not be longer than the {longest} positions of the model, got {length}: tokens "
                    "that stay keep their positions. Make the pictures smaller."
                )
        if contents:
            method = type(order.settings.pruner).__name__ if isinstance(order, Order) else "none"
            kept = sum(embeds_of(content).count(True) for content in contents)
            served = ctx.model_config.served_model_name or ctx.model_config.model
            model = served if isinstance(served, str) else served[0]
            metrics.count(model, method, len(contents), kept + missing, kept)

    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> ProcessorInputs:
        """By these the engine measures how much room pictures take: unpruned, as they are encoded."""
        return replace(super().get_dummy_inputs(*args, **kwargs), hf_processor_mm_kwargs=MEASURING)  # type: ignore[misc]

    def _get_mm_hashes(self, inputs: ProcessorInputs) -> Any:
        order = inputs.hf_processor_mm_kwargs.get(KEY)
        if not isinstance(order, Order):
            return super()._get_mm_hashes(inputs)  # type: ignore[misc]
        return {"image": order.hashes()}

    def _get_cache_missing_processor_kwargs(self, inputs: ProcessorInputs, is_cached: Any) -> Mapping[str, object]:
        kwargs = super()._get_cache_missing_processor_kwargs(inputs, is_cached)  # type: ignore[misc]
        order = kwargs.get(KEY)
        if not isinstance(order, Order):
            return kwargs
        return {**kwargs, KEY: order.of([n for n, cached in enumerate(is_cached["image"]) if not cached])}

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        processed = super()._apply_hf_processor_main(mm_items, without_settings(hf_kwargs))  # type: ignore[misc]
        order = hf_kwargs.get(KEY)
        if isinstance(order, Order) and order.keys:
            processed.update(order.fields(self.visual_tokens(processed)))
        return processed

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Any:
        own = super()._get_mm_fields_config(hf_inputs, without_settings(hf_processor_mm_kwargs))  # type: ignore[misc]
        if "ptp_tokens" not in hf_inputs:
            return own
        batched = MultiModalFieldConfig.batched("image", keep_on_cpu=True)
        return {
            **own,
            "ptp_tokens": batched,
            "ptp_key": batched,
            "ptp_settings": MultiModalFieldConfig.shared("image", len(hf_inputs["ptp_tokens"]), keep_on_cpu=True),
            "ptp_word_count": batched,
            "ptp_words": MultiModalFieldConfig.flat_from_sizes("image", hf_inputs["ptp_word_count"], keep_on_cpu=True),
        }

    def _get_mm_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any) -> Any:
        updates = super()._get_mm_prompt_updates(  # type: ignore[misc]
            mm_items, without_settings(hf_processor_mm_kwargs), out_mm_kwargs
        )
        order = hf_processor_mm_kwargs.get(KEY)
        if not isinstance(order, Order) or not updates.get("image"):
            return updates
        ends = self.line_ends(mm_items.get_items("image", ImageProcessorItems))
        short = [
            [replace(each, content=shorten(each.content, order.settings, count)) for each in item]
            for item, count in zip(updates["image"], ends, strict=True)
        ]
        return {**updates, "image": short}


def hides_settings(info: type[BaseProcessingInfo]) -> type[BaseProcessingInfo]:
    """A family's `ProcessingInfo` whose Hugging Face processor does not see our settings."""

    class Info(info):  # type: ignore[misc, valid-type]
        def __init__(self, ctx: InputProcessingContext) -> None:
            super().__init__(HidesSettings(ctx.model_config, ctx.tokenizer))

    Info.__name__ = Info.__qualname__ = info.__name__
    return Info
