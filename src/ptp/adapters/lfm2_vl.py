"""LFM2-VL in the Hugging Face format (`Lfm2VlForConditionalGeneration`)."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .base import Adapter, Layout, Span, Tile, runs, tiled
from .text import TextModel

PLACE = re.compile(r"row_(\d+)_col_(\d+)")
"""In the marker before a tile, counted from 1; the one before the thumbnail has none."""


class Lfm2Text(TextModel):
    """Short convolutions over three tokens between the layers that attend; its norms have names of their own."""

    layer_norm, head_norm, final_norm = "operator_norm", "{}_layernorm", "embedding_norm"


class Lfm2VlAdapter(Adapter):
    """SigLIP2 without [CLS], over tiles that are padded to one number of patches; a token is a block of patches.

    Tiles come in raster order and the thumbnail last, at its own size, each behind a marker. The model is not told the grid; it
    is read off the markers' names. Smaller pictures come whole, without markers. A token that left is absent from the
    convolutions from `prune_layer` on: its neighbours become each other's.
    """

    family = "LFM2-VL"
    model_types = ("lfm2_vl",)
    regions = "tiles and thumbnail"
    saliency = "received"
    limits = (
        "with prune_layer above 0, the layers below it that do not attend have passed on something of the dropped tokens. "
        "Methods that read attention need a layer above the first that attends (2): prune_layer=3 or later. Its KV caches "
        "cannot be cropped, nor can pictures that go on from one be pruned in a batch of rows of different length."
    )
    has_cls = False

    def __init__(self, model: PreTrainedModel) -> None:
        self.core = model.model
        self.vision = self.core.vision_tower
        self.vision_depth = len(self.vision.encoder.layers)
        self.text = Lfm2Text(self.core.language_model, self.family)
        self.image_token_id = model.config.image_token_id
        self.factor = model.config.downsample_factor

    def about(self, inputs: Mapping[str, Any], window: int) -> list[list[int]]:
        """Rows and columns of patches of each tile."""
        return inputs["spatial_shapes"].tolist()

    def locate(self, input_ids: Tensor, tokens: Tensor, about: list[list[int]], pixels: Sequence[Tensor]) -> list[Span]:
        """A run of image tokens is a tile. Those of a picture have a marker, one token, between them.

        Raises:
            ValueError: the runs are not the tiles that were encoded, or their markers tell no grid.
        """
        pictures: list[list[tuple[int, int, int]]] = []
        for run in runs(tokens):
            if not pictures or pictures[-1][-1][0] != run[0] or run[1] - pictures[-1][-1][2] != 1:
                pictures.append([])
            pictures[-1].append(run)
        sizes = [(rows // self.factor, columns // self.factor) for rows, columns in about]
        found = [end - start for picture in pictures for _, start, end in picture]
        if found != [rows * columns for rows, columns in sizes]:
            raise ValueError(
                f"A tile must be a run of as many image tokens as it has (here {[r * c for r, c in sizes]}), with a marker "
                f"between tiles, got runs of {found}. Build the prompt with the model's own processor, which marks tiles "
                "(use_image_special_tokens)."
            )
        spans: list[Span] = []
        first = 0
        for picture in pictures:
            units = tuple(range(first, first := first + len(picture)))
            places = torch.cat([torch.arange(start, end) for _, start, end in picture])
            row = picture[0][0]
            spans.append(Span(row, places, units, self._layout(input_ids[row], picture, [sizes[unit] for unit in units])))
        return spans

    def _layout(self, ids: Tensor, picture: list[tuple[int, int, int]], sizes: list[tuple[int, int]]) -> Layout:
        rows, columns = sizes[0]
        if len(picture) == 1:
            return Layout((Tile(columns, rows),))
        marked = [PLACE.search(self.read(ids[start - 1 : start].tolist())) for _, start, _ in picture]
        thumbnail = marked[-1] is None
        places = [(int(mark[1]), int(mark[2])) for mark in marked if mark is not None]
        down, across = places[-1] if places else (0, 0)
        if places != [(y + 1, x + 1) for y in range(down) for x in range(across)] or len(places) + thumbnail != len(picture):
            raise ValueError(
                f"The grid of a picture of {len(picture)} tiles is read off their markers (row 1 column 1, ...), got "
                f"{places}. Pass the model's processor (or its tokenizer) to the pruner, which reads them."
            )
        layout = tiled((across, down), columns, rows, thumbnail=False)
        if not thumbnail:
            return layout
        rows, columns = sizes[-1]
        return Layout((*layout.tiles, Tile(columns, rows)), (across, down), thumbnail=True)

    def vision_embeddings(self) -> nn.Module:
        return self.vision.post_layernorm

    def heads(self, layer: int, queries: Tensor, keys: Tensor, about: list[list[int]]) -> list[tuple[Tensor, Tensor]]:
        """One pair per tile, without its padding."""
        count = self.vision_attention(layer).heads
        both = (states.unflatten(-1, (count, -1)).transpose(1, 2) for states in (queries, keys))
        pairs = zip(*both, about, strict=True)
        return [(q[None, :, : rows * columns], k[None, :, : rows * columns]) for q, k, (rows, columns) in pairs]

    def embed(self, states: Tensor, about: list[list[int]]) -> list[Tensor]:
        """The mean over the patches of each tile."""
        units = zip(states, about, strict=True)
        return [own[: rows * columns].mean(dim=0, keepdim=True) for own, (rows, columns) in units]

    def shrink(self, pixels: Tensor, about: list[list[int]]) -> list[Tensor]:
        """The mean of each patch."""
        units = zip(pixels.float().mean(dim=-1), about, strict=True)
        return [own[: rows * columns] for own, (rows, columns) in units]

    def pool(self, scores: Sequence[Tensor], span: Span) -> Tensor:
        """Mean over each block of patches."""
        units = zip(scores, span.layout.tiles, strict=True)
        blocks = [own.view(tile.rows, self.factor, tile.columns, self.factor) for own, tile in units]
        return torch.cat([block.mean(dim=(1, 3)).flatten() for block in blocks])
