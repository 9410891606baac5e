"""A made-up prompt of real size: what every contender of a benchmark prefills."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..adapters import Adapter, Span, adapter_for
from ..conversation import InstructionFinder
from ..conversation.tokenizer import reader
from ..evaluation.encoding import EncoderReader
from ..pruner import Pruner
from ..runtime import VisionRead
from ..runtime.picture import Vision
from ..runtime.structure import structure_of
from ..runtime.vision import SIGNALS, picture_of, read_attention, resolve

TEXT_BEFORE, QUESTION = 8, 32
OPENING, CLOSING, AROUND_IMAGE = (7, 8), 9, (10, 11)
"""Token ids that stand where a chat template has its markers."""
FIRST_WORD, LAST_WORD = 16, 400
"""Words are token ids from one up to the other."""
ASKED = "What is written on the red sign next to the blue circle, and how many signs are there in all?"
PROMPT_INPUTS = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")


@dataclass(frozen=True)
class Prompt:
    """One picture and a question about it, encoded.

    Attributes:
        model, adapter: What it is for. processor: The model's, where one made the prompt.
        inputs: What the model is called with besides `encoded`: ids (1, S), and what its positions come from.
        positions: (1, S), or (3, 1, S), of all tokens.
        pictures: What `get_image_features` is called with.
        encoded: What it put out, with the signals of all contenders.
        span: The picture.
        instruction: (1, S) bool, the question's tokens.
        signal: Scores one vision layer from its queries and keys, and pools the scores onto visual tokens.
    """

    model: Any
    adapter: Adapter
    inputs: Mapping[str, Any]
    positions: Tensor
    pictures: Mapping[str, Any]
    encoded: Any
    span: Span
    instruction: Tensor
    signal: Callable[[], Any]
    processor: Any | None = None

    @property
    def ids(self) -> Tensor:
        """(1, S)."""
        return self.inputs["input_ids"]

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of the picture, N."""
        return self.span.layout.tokens

    @property
    def structure_tokens(self) -> int:
        """Its line ends and tile markers."""
        spare = self.adapter.visual_tokens(self.ids.cpu())[0]
        spare[self.span.positions.cpu()] = False
        return len(structure_of(self.span, spare, self.adapter.line_ends).places)

    def whole(self) -> dict[str, Any]:
        """What the model is called with, `encoded_already`: the ids and the picture."""
        return {**self.inputs, **self.pictures}

    def fed(self, count: int) -> dict[str, Any]:
        """What the model is called with to prefill `count` of the visual tokens and all of the text, original positions."""
        image = self.span.positions.sort().values.to(self.ids.device)
        stays = torch.ones_like(self.ids[0], dtype=torch.bool)
        stays[image] = False
        stays[image[torch.linspace(0, len(image) - 1, count, device=image.device).round().long()]] = True
        places = stays.nonzero()[:, 0]
        embeddings, features = self.model.get_input_embeddings()(self.ids), self.encoded.pooler_output
        pictures = torch.cat([part.flatten(0, -2) for part in ([features] if isinstance(features, Tensor) else features)])
        embeddings = embeddings.masked_scatter(
            self.adapter.visual_tokens(self.ids)[..., None], pictures.to(embeddings.device, embeddings.dtype)
        )
        made = {"inputs_embeds": embeddings[:, places], "position_ids": self.positions[..., places]}
        text = self.adapter.text
        if text.window is not None:
            made["attention_mask"] = self._masks(places, text.window)
        if getattr(text.config, "hidden_size_per_layer_input", 0):  # Gemma 4 looks these up by ids, and padding for pictures
            words = self.ids.masked_fill(self.adapter.visual_tokens(self.ids), text.config.pad_token_id)
            made["per_layer_inputs"] = text.model.get_per_layer_inputs(words)[:, places]
        return made

    def _masks(self, places: Tensor, window: int) -> dict[str, Tensor | None]:
        """What each kind of layer sees of the tokens at some places (S',), by its name; None is all that came before.

        As the pruned model has it: windows count places in the whole prompt, and the picture's tokens see each other both ways
        where they do so. Left alone, transformers would read other masks off places with gaps.
        """
        config, both_ways = self.adapter.text.config, self.adapter.both_ways[1]
        floats = config._attn_implementation == "eager"
        behind, image = places[:, None] - places, self.adapter.visual_tokens(self.ids)[0, places]
        masks: dict[str, Tensor | None] = {}
        for name, reach in (("full_attention", None), ("sliding_attention", window)):
            seen = (behind >= 0) | (image[:, None] & image) if name in both_ways else behind >= 0
            seen = (seen if reach is None else seen & (behind < reach))[None, None]
            masks[name] = seen
            if floats:
                dtype = self.model.dtype
                masks[name] = torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
            elif reach is None and name not in both_ways:
                masks[name] = None
        return masks


@torch.inference_mode()
def make_prompt(model: Any, tiles: int, pruners: Sequence[Pruner]) -> Prompt:
    """A user turn for an InternVL with one picture of `tiles` tiles (the thumbnail is one of them) and a question.

    Args:
        pruners: The encoder is read for all of them.
    """
    config, generator = model.config, torch.Generator().manual_seed(0)
    words = torch.randint(FIRST_WORD, LAST_WORD, (TEXT_BEFORE + QUESTION,), generator=generator).tolist()
    image = [config.image_token_id] * (tiles * config.image_seq_length)
    opened, closed = AROUND_IMAGE
    ids = [*words[:TEXT_BEFORE], *OPENING, opened, *image, closed, *words[TEXT_BEFORE:], CLOSING, closed]
    asked = torch.zeros(1, len(ids), dtype=torch.bool)
    asked[:, -2 - QUESTION : -2] = True
    height, width = config.vision_config.image_size
    pixels = torch.randn(tiles, config.vision_config.num_channels, height, width, generator=generator)
    return _encoded(model, None, {"input_ids": torch.tensor([ids])}, {"pixel_values": pixels}, asked, pruners)


@torch.inference_mode()
def picture_prompt(
    model: Any, processor: Any, encode: Callable[[Image.Image, str], Mapping[str, Tensor]], side: int, pruners: Sequence[Pruner]
) -> Prompt:
    """A user turn for any family, with a noise picture made ready by its processor.

    Args:
        encode: (picture, question) -> model inputs. side: Width of the picture in pixels; it is 4 : 3.
    """
    noise = torch.randint(256, (side * 3 // 4, side, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    made = encode(Image.fromarray(noise.numpy()), ASKED)
    inputs = {name: value for name, value in made.items() if name in PROMPT_INPUTS and name != "attention_mask"}
    pictures = {name: value for name, value in made.items() if name not in PROMPT_INPUTS}
    ids = made["input_ids"]
    asked = InstructionFinder.of(model, processor).mask(ids, torch.ones_like(ids).bool(), adapter_for(model).visual_tokens(ids))
    return _encoded(model, processor, inputs, pictures, asked, pruners)


def _encoded(
    model: Any,
    processor: Any | None,
    inputs: Mapping[str, Tensor],
    pictures: Mapping[str, Tensor],
    asked: Tensor,
    pruners: Sequence[Pruner],
) -> Prompt:
    adapter, seen = adapter_for(model, reader(model, processor)), dict[str, Tensor]()
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    pictures = {
        name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
        for name, value in pictures.items()
    }
    last = adapter.vision_attention(adapter.vision_depth - 1)
    taps = [
        module.register_forward_hook(lambda m, a, output, name=name: seen.update({name: output}))
        for name, module in (("query", last.query), ("key", last.key))
    ]
    try:
        with EncoderReader.of(pruners)(model):
            encoded = model.get_image_features(**pictures, return_dict=True)
    finally:
        for tap in taps:
            tap.remove()
    vision: Vision = getattr(encoded, SIGNALS)
    ids = inputs["input_ids"].cpu()
    (span,) = adapter.locate(ids, adapter.visual_tokens(ids), vision.about, vision.pixels)
    for name in ("last_hidden_state", "hidden_states"):
        if getattr(encoded, name, None) is not None:
            setattr(encoded, name, None)  # only the projected tokens and the signals are used again
    positions = torch.arange(inputs["input_ids"].shape[1], device=model.device)[None]
    if "image_grid_thw" in pictures:
        inputs = {**inputs, "image_grid_thw": pictures["image_grid_thw"]}
        positions = adapter.core.get_rope_index(**inputs)[0]
    signal = partial(_signal, adapter, span, vision, seen["query"], seen["key"])
    return Prompt(model, adapter, inputs, positions, pictures, encoded, span, asked.to(model.device), signal, processor)


def _signal(adapter: Adapter, span: Span, vision: Vision, queries: Tensor, keys: Tensor) -> Any:
    layer = adapter.vision_depth - 1
    (read,) = resolve(adapter, [VisionRead(layer)])
    assert read.attention is not None  # it was asked for
    attention = {(layer, read.attention): read_attention(adapter, layer, read.attention, queries, keys, vision.about)}
    return picture_of(adapter, span, replace(vision, attention=attention), [read])
