"""A made-up prompt of real size: what every contender of a benchmark prefills."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from ..adapters import Adapter, Span, adapter_for
from ..conversation import InstructionFinder
from ..conversation.tokenizer import reader
from ..evaluation.encoding import EncoderReader
from ..pruner import Pruner
from ..runtime import VisionRead
from ..runtime.picture import Vision
from ..runtime.structure import structure_of
from ..runtime.vision import SIGNALS, picture_of, read_attention, resolve
from ..tiny.model import IMAGE_MEAN, IMAGE_STD

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


@dataclass(frozen=True)
class Turn:
    """A user turn with one picture, not yet encoded.

    Attributes:
        inputs: Ids (1, S), and what their positions come from. pictures: What the encoder is given.
        asked: (1, S) bool, the question's tokens.
    """

    inputs: Mapping[str, Tensor]
    pictures: Mapping[str, Tensor]
    asked: Tensor

    def on(self, model: Any) -> "Turn":
        """The same on a model's device, pictures in its dtype."""
        inputs = {name: value.to(model.device) for name, value in self.inputs.items()}
        pictures = {
            name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
            for name, value in self.pictures.items()
        }
        return Turn(inputs, pictures, self.asked.to(model.device))


@torch.inference_mode()
def make_prompt(model: Any, tiles: int, pruners: Sequence[Pruner]) -> Prompt:
    """A user turn for an InternVL with one picture of `tiles` tiles (the thumbnail is one of them) and a question.

    Args:
        pruners: The encoder is read for all of them.
    """
    config = model.config
    height, width = config.vision_config.image_size
    shape = (tiles, config.vision_config.num_channels, height, width)
    return _encoded(model, None, made_up_turn(config, torch.randn(shape, generator=torch.Generator().manual_seed(0))), pruners)


def cut(picture: Image.Image, side: int, most: int) -> Tensor:
    """(T, 3, side, side) tiles of a picture and its thumbnail, as InternVL's image processor makes them, `most` at most."""
    processor = GotOcr2ImageProcessorPil(
        size={"height": side, "width": side},
        crop_to_patches=True,
        min_patches=1,
        max_patches=most,
        image_mean=list(IMAGE_MEAN),
        image_std=list(IMAGE_STD),
    )
    return processor(picture, return_tensors="pt")["pixel_values"]


def made_up_turn(config: Any, pixels: Tensor) -> Turn:
    """A turn for an InternVL, its words made up, with a picture of (T, 3, height, width) tiles."""
    generator, tiles = torch.Generator().manual_seed(0), len(pixels)
    words = torch.randint(FIRST_WORD, LAST_WORD, (TEXT_BEFORE + QUESTION,), generator=generator).tolist()
    image = [config.image_token_id] * (tiles * config.image_seq_length)
    opened, closed = AROUND_IMAGE
    ids = [*words[:TEXT_BEFORE], *OPENING, opened, *image, closed, *words[TEXT_BEFORE:], CLOSING, closed]
    asked = torch.zeros(1, len(ids), dtype=torch.bool)
    asked[:, -2 - QUESTION : -2] = True
    return Turn({"input_ids": torch.tensor([ids])}, {"pixel_values": pixels}, asked)


@torch.inference_mode()
def picture_prompt(
    model: Any, processor: Any, encode: Callable[[Image.Image, str], Mapping[str, Tensor]], side: int, pruners: Sequence[Pruner]
) -> Prompt:
    """A user turn for any family, with a noise picture made ready by its processor.

    Args:
        encode: (picture, question) -> model inputs. side: Width of the picture in pixels; it is 4 : 3.
    """
    noise = torch.randint(256, (side * 3 // 4, side, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return _encoded(model, processor, picture_turn(model, processor, encode, Image.fromarray(noise.numpy())), pruners)


def picture_turn(
    model: Any, processor: Any, encode: Callable[[Image.Image, str], Mapping[str, Tensor]], picture: Image.Image
) -> Turn:
    """A turn for any family, with a picture made ready by its processor; `encode` as of `picture_prompt`."""
    made = encode(picture, ASKED)
    inputs = {name: value for name, value in made.items() if name in PROMPT_INPUTS and name != "attention_mask"}
    pictures = {name: value for name, value in made.items() if name not in PROMPT_INPUTS}
    ids = made["input_ids"]
    asked = InstructionFinder.of(model, processor).mask(ids, torch.ones_like(ids).bool(), adapter_for(model).visual_tokens(ids))
    return Turn(inputs, pictures, asked)


def _encoded(model: Any, processor: Any | None, turn: Turn, pruners: Sequence[Pruner]) -> Prompt:
    adapter, seen, turn = adapter_for(model, reader(model, processor)), dict[str, Tensor](), turn.on(model)
    inputs, pictures = turn.inputs, turn.pictures
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
    return Prompt(model, adapter, inputs, positions, pictures, encoded, span, turn.asked, signal, processor)


def _signal(adapter: Adapter, span: Span, vision: Vision, queries: Tensor, keys: Tensor) -> Any:
    layer = adapter.vision_depth - 1
    (read,) = resolve(adapter, [VisionRead(layer)])
    assert read.attention is not None  # it was asked for
    attention = {(layer, read.attention): read_attention(adapter, layer, read.attention, queries, keys, vision.about)}
    return picture_of(adapter, span, replace(vision, attention=attention), [read])
