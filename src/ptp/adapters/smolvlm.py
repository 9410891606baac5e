"""SmolVLM and Idefics3 in the Hugging Face format."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..scoring import pool_pixel_shuffle
from .base import Adapter, Layout, Span, runs, tiled
from .text import TextModel


class SmolVLMAdapter(Adapter):
    """SigLIP without [CLS]; tiles in raster order with the thumbnail last, each behind markers of its row and column.

    The markers are text and stay, also those of a tile that loses all of its tokens: they tell where the other tiles are.
    (A method's `keep_structure` lets them leave.)
    """

    family = "SmolVLM / Idefics3"
    model_types = ("smolvlm", "idefics3")
    regions = "tiles and thumbnail"
    saliency = "received"
    has_cls = False
    independent_tiles = True

    def __init__(self, model: PreTrainedModel) -> None:
        self.config = model.config
        self.core = model.model
        self.vision = self.core.vision_model
        self.vision_depth = len(self.vision.encoder.layers)
        self.text = TextModel(self.core.text_model, self.family)
        self.image_token_id = self.config.image_token_id
        self.factor = self.config.scale_factor
        self.side = self.config.vision_config.image_size // self.config.vision_config.patch_size // self.factor

    def about(self, inputs: Mapping[str, Any], window: int) -> Any:
        mask = inputs.get("pixel_attention_mask")
        if mask is not None:
            shown = mask.flatten(-2).float().mean(dim=-1)
            if bool(((shown > 0) & (shown < 1)).any()):
                raise ValueError(
                    "Tiles must be full of pixels while visual tokens are pruned, and pixel_attention_mask says that some are "
                    "padded. Keep the processor's do_image_splitting or its square max_image_size."
                )
        return None

    def locate(self, input_ids: Tensor, tokens: Tensor, about: Any, pixels: Sequence[Tensor]) -> list[Span]:
        """A run of image tokens is a tile. The marker before a row's last run is the thumbnail's, with which pictures end;
        the token after it stands around pictures, and a tile that it does not follow is the last of its line."""
        found, per_tile = runs(tokens), self.side**2
        spans, tiles, first = [], list[tuple[int, int]](), 0
        for row, start, end in found:
            if end - start != per_tile or start == 0 or end == input_ids.shape[1]:
                raise ValueError(
                    f"A tile must be a run of {per_tile} image tokens between its markers, got a run of {end - start} in row "
                    f"{row}. Build the prompt with the model's own processor."
                )
            tiles.append((start, end))
            last = max(b for r, _, b in found if r == row)
            if input_ids[row, start - 1] != input_ids[row, last - per_tile - 1]:
                continue
            around = input_ids[row, last]
            columns = next((n for n, (_, b) in enumerate(tiles[:-1], 1) if input_ids[row, b] != around), 1)
            if (len(tiles) - 1) % columns:
                raise ValueError(
                    f"A picture must have as many tiles in each line, got {len(tiles) - 1} in lines of {columns}. Build the "
                    "prompt with the model's own processor."
                )
            places = torch.cat([torch.arange(*tile) for tile in tiles])
            units = tuple(range(first, first + len(tiles)))
            spans.append(Span(row, places, units, self._layout(columns, len(tiles) - 1)))
            first, tiles = first + len(units), []
        return spans

    def _layout(self, columns: int, tiles: int) -> Layout:
        grid = (columns, tiles // columns) if tiles else (1, 1)
        return tiled(grid, self.side, self.side, thumbnail=tiles > 0)

    def vision_embeddings(self) -> nn.Module:
        return self.vision.post_layernorm

    def pool(self, scores: Sequence[Tensor], span: Span) -> Tensor:
        return pool_pixel_shuffle(torch.stack(list(scores)), self.factor).flatten()
