"""Gemma 3 in the Hugging Face format (`Gemma3ForConditionalGeneration`)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..scoring import pool_pixel_shuffle
from .base import Adapter, Span, runs, tiled
from .text import TextModel


class Gemma3Adapter(Adapter):
    """SigLIP without [CLS]; each picture, and each crop of pan and scan, is one tile; visual tokens by average pooling.

    The model is not told which crops are of which picture, so each keeps its own share. Its sliding windows count places in
    the unpruned sequence; the tokens of a picture see each other both ways, those that are left.
    """

    family = "Gemma 3"
    model_types = ("gemma3",)
    regions = "one tile each; so are crops"
    saliency = "received"
    has_cls = False
    independent_tiles = True

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config
        self.core = model.model
        self.vision = self.core.vision_tower
        self.vision_depth = len(self.vision.encoder.layers)
        self.text = TextModel(self.core.language_model, self.family)
        self.image_token_id = config.image_token_id
        self.side = round(config.mm_tokens_per_image**0.5)
        self.factor = config.vision_config.image_size // config.vision_config.patch_size // self.side

    def locate(self, input_ids: Tensor, tokens: Tensor, about: Any, pixels: Sequence[Tensor]) -> list[Span]:
        """Every unbroken run of image tokens is a picture; markers keep neighbours apart."""
        spans, layout = [], tiled((1, 1), self.side, self.side, thumbnail=False)
        for unit, (row, start, end) in enumerate(runs(tokens)):
            if end - start != layout.tokens:
                raise ValueError(
                    f"A picture must be {layout.tokens} image tokens, got a run of {end - start}. Build the prompt with the "
                    "model's own processor."
                )
            spans.append(Span(row, torch.arange(start, end), (unit,), layout))
        return spans

    def vision_embeddings(self) -> nn.Module:
        return self.vision.post_layernorm

    def pool(self, scores: Sequence[Tensor], span: Span) -> Tensor:
        return pool_pixel_shuffle(scores[0][None], self.factor).flatten()
