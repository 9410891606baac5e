"""A made-up prompt of real size: what every contender of a benchmark prefills."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..adapters import Adapter, adapter_for
from ..adapters.instruction import TurnMarkers
from ..pruner import EncoderReader, Pruner

TEXT_BEFORE, QUESTION = 8, 32
OPENING, CLOSING, AROUND_IMAGE = (7, 8), 9, (10, 11)
FIRST_WORD, LAST_WORD = 16, 400
"""Words are token ids from one up to the other; below are the markers."""


@dataclass(frozen=True)
class Prompt:
    """One picture and a question about it, encoded.

    Attributes:
        model, adapter: What it is for.
        ids: (1, S).
        pixels: (T, C, h, w) noise.
        encoded: The vision encoder's output, with the signals of all contenders.
        markers: The made-up turn markers of `ids`.
    """

    model: Any
    adapter: Adapter
    ids: Tensor
    pixels: Tensor
    encoded: Any
    markers: TurnMarkers

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of the picture, N."""
        return int((self.ids == self.model.config.image_token_id).sum())

    def whole(self) -> dict[str, Any]:
        """What the model is called with: the ids and the encoded picture."""
        return {"input_ids": self.ids, "mm_encoder_outputs": {"image": self.encoded}}

    def fed(self, count: int) -> dict[str, Any]:
        """What the model is called with to prefill `count` of the visual tokens and all of the text, original positions."""
        image = (self.ids[0] == self.model.config.image_token_id).nonzero()[:, 0]
        stays = torch.ones_like(self.ids[0], dtype=torch.bool)
        stays[image] = False
        stays[image[torch.linspace(0, len(image) - 1, count, device=image.device).round().long()]] = True
        places = stays.nonzero().T
        embeddings = self.model.get_input_embeddings()(self.ids)
        pictures = self.encoded.pooler_output.to(embeddings.device, embeddings.dtype)
        embeddings = embeddings.masked_scatter((self.ids == self.model.config.image_token_id)[..., None], pictures)
        return {"inputs_embeds": embeddings[:, places[0]], "position_ids": places}


@torch.inference_mode()
def make_prompt(model: Any, tiles: int, pruners: Sequence[Pruner]) -> Prompt:
    """A user turn with one picture of `tiles` tiles (the thumbnail is one of them) and a question of 32 tokens.

    Args:
        pruners: The encoder is read for all of them.
    """
    config, generator = model.config, torch.Generator().manual_seed(0)
    words = torch.randint(FIRST_WORD, LAST_WORD, (TEXT_BEFORE + QUESTION,), generator=generator).tolist()
    image = [config.image_token_id] * (tiles * config.image_seq_length)
    opened, closed = AROUND_IMAGE
    ids = [*words[:TEXT_BEFORE], *OPENING, opened, *image, closed, *words[TEXT_BEFORE:], CLOSING, closed]
    markers = TurnMarkers(OPENING, CLOSING, (config.image_token_id, *OPENING, CLOSING, *AROUND_IMAGE))
    height, width = config.vision_config.image_size
    pixels = torch.randn(tiles, config.vision_config.num_channels, height, width, generator=generator)
    pixels = pixels.to(model.device, model.dtype)
    with EncoderReader.of(pruners)(model, markers):
        encoded = model.get_image_features(pixels, return_dict=True)
    encoded.last_hidden_state = None  # only the projected tokens and the signals are used again
    return Prompt(model, adapter_for(model), torch.tensor([ids], device=model.device), pixels, encoded, markers)
