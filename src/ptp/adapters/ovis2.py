"""Ovis2, in the Hugging Face format (`Ovis2ForConditionalGeneration`)."""

from collections.abc import Sequence
from typing import Any

import torch

from ..errors import UnsupportedModelError
from ..scoring import pool_pixel_shuffle
from .base import Adapter, QueryKey, Span, runs, tiled
from .text import TextModel


class Ovis2Adapter(Adapter):
    """Square tiles without a [CLS]; blocks of patches become one token, a mixture of the words of a visual vocabulary.

    The encoder's output goes, block by block, through a head and a softmax over the visual vocabulary; the token is the mean
    of the vocabulary's embeddings under it. Each token so stands for one block of one tile, and nothing mixes tokens before
    the language model.

    A prompt has the thumbnail first, and markers before and between the tiles that have embeddings of their own: START
    thumbnail GRID tile COL tile ROW tile COL tile END. A picture that fits one tile is START tile GRID END. The model is not
    told the grid, so it is read off the markers, which are no visual tokens and stay.
    """

    family = "Ovis2"
    model_types = ("ovis2",)
    regions = "tiles and thumbnail"
    saliency = "received"
    has_cls = False
    independent_tiles = True

    def __init__(self, model: Any):
        config = model.config
        vision = config.vision_config
        if vision.tokenize_function != "softmax":
            raise UnsupportedModelError(
                f"A visual token must be a mixture of visual words, but tokenize_function={vision.tokenize_function!r} takes "
                "one word, which changes with the call (gumbel_argmax) or with rounding (st_argmax). Use a checkpoint with "
                "vision_config.tokenize_function='softmax'."
            )
        markers = list(config.visual_indicator_token_ids)
        if not len(set(markers)) == len(markers) == vision.num_visual_indicator_tokens == 5:
            raise UnsupportedModelError(
                "The grid of tiles is read off five markers, START, GRID, COL, ROW and END, each an id of its own, got "
                f"visual_indicator_token_ids={markers} and num_visual_indicator_tokens={vision.num_visual_indicator_tokens}. "
                "Use the markers of the released checkpoints."
            )
        side, self.stride = vision.image_size // vision.patch_size, vision.hidden_stride
        if side % self.stride:
            raise UnsupportedModelError(
                f"A tile of {side} x {side} patches must divide into blocks of {self.stride} x {self.stride}, a token each. "
                "Use an image_size that is a multiple of patch_size * hidden_stride."
            )
        self.core = model.model
        self.vision = self.core.vision_tower.transformer
        self.vision_depth = len(self.vision.encoder.layers)
        self.text = TextModel(self.core.language_model, self.family)
        self.image_token_id = config.image_token_id
        self.side = side // self.stride
        self.start, self.grid, self.column, self.line, _ = markers

    def locate(self, input_ids: torch.Tensor, tokens: torch.Tensor, about: Any, pixels: Any) -> list[Span]:
        """Read each picture off its markers: what stands before a tile says where the tile is.

        Raises:
            ValueError: tiles that do not stand between markers as the processor writes them, or that have no pixels.
        """
        pictures: list[tuple[int, list[int], list[int]]] = []  # row, where its tiles start, and the marker before each
        for row, start, end in runs(tokens):
            before = int(input_ids[row, start - 1]) if start else -1
            if end - start != self.side**2 or before not in (self.start, self.grid, self.column, self.line):
                raise ValueError(
                    f"A tile of Ovis2 is {self.side**2} visual tokens behind a marker (one of {self.start}, {self.grid}, "
                    f"{self.column}, {self.line}), got {end - start} at {start} of row {row} behind {before}. Let the "
                    "processor write the prompt; its image_seq_length must fit the model."
                )
            if before == self.start:
                pictures.append((row, [], []))
            if not pictures or pictures[-1][0] != row:
                raise ValueError(f"The tile at {start} of row {row} has no start marker ({self.start}) before its picture.")
            pictures[-1][1].append(start)
            pictures[-1][2].append(before)
        spans: list[Span] = []
        unit = 0
        for row, starts, markers in pictures:
            several = len(starts) > 1
            rows = markers.count(self.line) + 1
            columns = (markers.count(self.column) + rows) // rows
            wanted = [self.start] + ([self.grid] + [self.column] * (columns - 1)) * several
            wanted += ([self.line] + [self.column] * (columns - 1)) * (rows - 1)
            if markers != wanted:
                raise ValueError(f"The markers of the picture at {starts[0]} of row {row} give no grid of tiles: {markers}.")
            order = [*range(1, len(starts)), 0]  # the thumbnail goes last
            block = torch.arange(self.side**2, device=input_ids.device)
            positions = torch.cat([starts[tile] + block for tile in order])
            layout = tiled((columns, rows), self.side, self.side, several)
            spans.append(Span(row, positions, tuple(unit + tile for tile in order), layout))
            unit += len(starts)
        if unit != len(pixels):
            raise ValueError(f"The prompt has {unit} tiles, but pixel_values has {len(pixels)}.")
        return spans

    def vision_attention(self, layer: int) -> QueryKey:
        attention = self.vision.encoder.layers[layer].attention
        return QueryKey(attention.q_proj, attention.k_proj, attention.num_heads, attention.scale)

    def vision_embeddings(self) -> torch.nn.Module:
        """The head takes what the last norm puts out."""
        return self.vision.rms_norm

    def pool(self, scores: Sequence[torch.Tensor], span: Span) -> torch.Tensor:
        return pool_pixel_shuffle(torch.stack(list(scores)), self.stride).flatten()
