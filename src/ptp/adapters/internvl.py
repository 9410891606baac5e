"""InternVL 2.5 / 3 / 3.5 in the Hugging Face format (`InternVLForConditionalGeneration`)."""

import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import UnsupportedModelError
from ..scoring import pool_pixel_shuffle
from .base import Adapter, QueryKey, Span

TEXT_MODELS = ("qwen2", "qwen3", "qwen3_moe", "llama")
"""Text models whose attention is q_proj / k_proj (/ q_norm / k_norm) with full rotary positions."""


class InternVLAdapter(Adapter):
    """Tiles in raster order with the thumbnail last; [CLS] first; visual tokens by 2 x 2 pixel shuffle."""

    family = "InternVL"
    model_types = ("internvl",)
    has_cls = True

    def __init__(self, model: PreTrainedModel) -> None:
        text = model.config.text_config
        if text.model_type not in TEXT_MODELS:
            raise UnsupportedModelError(
                f"InternVL with text model {text.model_type!r} is not supported. Supported: {', '.join(TEXT_MODELS)}."
            )
        if "sliding_attention" in (getattr(text, "layer_types", None) or ()):
            raise UnsupportedModelError(
                "Sliding-window attention cannot be pruned exactly: a window counts tokens, and pruning removes some. "
                "Use a checkpoint with use_sliding_window=false."
            )
        self.config = model.config
        self.core = model.model
        self.vision = model.model.vision_tower
        self.vision_depth = len(self.vision.encoder.layer)
        self.language = model.model.language_model
        self.layers = self.language.layers
        self.factor = round(1 / model.config.downsample_ratio)
        height, width = self.vision.embeddings.patch_embeddings.patch_shape
        self.tokens_per_tile = height * width // self.factor**2

    def locate(self, input_ids: Tensor) -> list[Span]:
        """Every unbroken run of image tokens is one picture; `<img>` and `</img>` keep neighbours apart."""
        image = F.pad((input_ids == self.config.image_token_id).int(), (1, 1))
        change = image.diff(dim=1)
        starts, ends = (change == 1).nonzero().tolist(), (change == -1).nonzero().tolist()
        spans = []
        for (row, start), (_, end) in zip(starts, ends, strict=True):
            tiles, rest = divmod(end - start, self.tokens_per_tile)
            if rest:
                raise ValueError(
                    f"A picture must be a whole number of tiles of {self.tokens_per_tile} visual tokens, got a run of "
                    f"{end - start} image tokens. Build the prompt with the model's own processor."
                )
            spans.append(Span(row, start, (self.tokens_per_tile,) * tiles))
        return spans

    def vision_attention(self, layer: int) -> QueryKey:
        attention = self.vision.encoder.layer[layer].attention
        return QueryKey(attention.q_norm, attention.k_norm, attention.num_heads, attention.num_heads, attention.scale)

    def vision_embeddings(self) -> nn.Module:
        layer = self.config.vision_feature_layer
        if layer == -1:
            return self.vision.layernorm
        return self.vision.encoder.layer[layer if layer < 0 else layer - 1]

    def pool(self, scores: Tensor) -> Tensor:
        return pool_pixel_shuffle(scores, self.factor)

    def grid(self, pixels: Tensor) -> tuple[int, int] | None:
        """The model is not told the grid, so it is read off the pixels: the layout whose mosaic matches the thumbnail.

        Where every layout matches equally (a picture of one colour) the squarest is taken; then no tile differs from
        another, and nothing depends on the answer.
        """
        tiles = len(pixels) - 1
        if tiles < 1:
            return None
        side = pixels.shape[-1]
        layouts = [(columns, tiles // columns) for columns in range(1, tiles + 1) if tiles % columns == 0]
        layouts.sort(key=lambda grid: abs(grid[0] - grid[1]))
        errors = []
        for columns, rows in layouts:
            mosaic = pixels[:-1].view(rows, columns, -1, side, side).permute(2, 0, 3, 1, 4)
            mosaic = mosaic.reshape(1, -1, rows * side, columns * side)
            errors.append((F.interpolate(mosaic, size=(side, side), mode="area")[0] - pixels[-1]).square().mean())
        return layouts[int(torch.stack(errors).argmin())]

    def text_attention(self, layer: int) -> QueryKey:
        attention = self.layers[layer].self_attn
        text = self.config.text_config
        query = getattr(attention, "q_norm", attention.q_proj)
        key = getattr(attention, "k_norm", attention.k_proj)
        return QueryKey(query, key, text.num_attention_heads, text.num_key_value_heads, attention.scaling)

    def probe(self, layer: int, rows: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        decoder = self.layers[layer]
        attention, where = decoder.self_attn, self.text_attention(layer)
        query = attention.q_proj(decoder.input_layernorm(rows))
        key = attention.k_proj(decoder.input_layernorm(hidden))
        if where.query is not attention.q_proj:  # Qwen3 normalises every head
            query = where.query(query.unflatten(-1, (where.heads, -1)))
            key = where.key(key.unflatten(-1, (where.key_heads, -1)))
        return query, key

    def rotate(self, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        modeling = sys.modules[type(self.layers[0].self_attn).__module__]
        return modeling.apply_rotary_pos_emb(states[:, :1], states, cos, sin)[1]
