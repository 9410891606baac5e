"""MiniCPM-V 4.6 in the Hugging Face format (`MiniCPMV4_6ForConditionalGeneration`)."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import UnsupportedModelError
from .base import Adapter, Layout, QueryKey, Span, Tile, runs
from .packed import pairs_of
from .text import TextModel

Sizes = list[tuple[int, int]]
"""(rows, columns) of patches of each slice, as they are where the projector takes them."""


class MiniCPMV46Adapter(Adapter):
    """Slices at sizes of their own, all patches in one sequence; no [CLS]; the language model of Qwen3.5.

    Amid the encoder, 2 x 2 patches attend to each other and become one. Vision layers count in the order in which they run,
    these windows among them: saliency of a layer before is then the mean over four patches, and of the windows what a patch
    receives inside. The whole picture comes first in a prompt and counts as the thumbnail; lines of slices are told by the line
    ends between them.
    """

    family = "MiniCPM-V 4.6"
    model_types = ("minicpmv4_6",)
    regions = "slices and the whole picture"
    saliency = "received"
    limits = (
        "no videos. As in Qwen3.5, with prune_layer above 0 the states of the layers below it keep what they took from the "
        "dropped tokens; methods that read attention need prune_layer=4 or later; its KV caches cannot be cropped."
    )
    has_cls = False

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config
        self.core = model.model
        self.vision = self.core.vision_tower
        self.mode, last = config.downsample_mode, config.vision_config.insert_layer_id
        blocks = list(self.vision.encoder.layers)
        self.window, self.windows = 1, len(blocks)
        if self.mode != "4x" and last >= 0:
            (self.window, across), self.windows = config.vision_config.window_kernel_size, last + 1
            if self.window != across or self.windows > len(blocks):
                raise UnsupportedModelError(
                    f"Patches must merge in squares behind a layer that is there, got {self.window} x {across} behind layer "
                    f"{last} of {len(blocks)}. Use the settings of the released checkpoints."
                )
            blocks.insert(self.windows, self.vision.vit_merger)
        self.blocks, self.vision_depth = blocks, len(blocks)
        self.text = TextModel(self.core.language_model, self.family)
        self.image_token_id = config.image_token_id
        self.merge = config.merge_kernel_size[0] ** config.merger_times

    def about(self, inputs: Mapping[str, Any], window: int) -> Sizes:
        mode = inputs.get("downsample_mode") or self.mode
        if mode != self.mode:
            raise ValueError(
                f"downsample_mode must be the configuration's ({self.mode!r}) while visual tokens are pruned, got {mode!r}. "
                "Set model.config.downsample_mode before attaching the pruner."
            )
        return [(rows // self.window, columns // self.window) for rows, columns in inputs["target_sizes"].tolist()]

    def locate(self, input_ids: Tensor, tokens: Tensor, about: Sizes, pixels: Sequence[Tensor]) -> list[Span]:
        """A run of image tokens is a slice or a whole picture: what stands before it says which, as rows begin with a picture.

        Raises:
            ValueError: the runs are not what was encoded, or slices are in lines of different length.
        """
        found = runs(tokens)
        sizes = [(rows // self.merge, columns // self.merge) for rows, columns in about]
        if [end - start for _, start, end in found] != [rows * columns for rows, columns in sizes]:
            raise ValueError(
                f"A slice must be a run of as many image tokens as it has, got runs of {[e - s for _, s, e in found]} for "
                f"slices of {[r * c for r, c in sizes]}. Build the prompt with the model's own processor."
            )
        pictures: list[list[int]] = []
        opening: dict[int, int] = {}  # of each row, what stands before its first picture
        for unit, (row, start, _) in enumerate(found):
            before = int(input_ids[row, start - 1]) if start else -1
            if opening.setdefault(row, before) == before:
                pictures.append([])
            pictures[-1].append(unit)
        return [self._span(found, picture, sizes) for picture in pictures]

    def _span(self, found: list[tuple[int, int, int]], picture: list[int], sizes: Sizes) -> Span:
        whole, *slices = picture
        thumbnail = Tile(sizes[whole][1], sizes[whole][0])
        places = torch.cat([torch.arange(*found[unit][1:]) for unit in (*slices, whole)])
        layout = Layout((thumbnail,))
        if slices:
            gaps = [found[b][1] - found[a][2] for a, b in itertools.pairwise(slices)]
            breaks = [number for number, gap in enumerate(gaps, 1) if gap > 2]  # </slice><slice> are two
            down = len(breaks) + 1
            across = len(slices) // down
            if breaks != [across * line for line in range(1, down)] or across * down != len(slices):
                raise ValueError(
                    f"A picture must have as many slices in each line, got {len(slices)} with line ends behind {breaks}. Build "
                    "the prompt with the model's own processor."
                )
            tiles = []
            for number, unit in enumerate(slices):
                y, x = divmod(number, across)
                box = (x / across, y / down, (x + 1) / across, (y + 1) / down)
                tiles.append(Tile(sizes[unit][1], sizes[unit][0], box))
            layout = Layout((*tiles, thumbnail), (across, down), thumbnail=True)
        return Span(found[whole][0], places, (*slices, whole), layout)

    def vision_attention(self, layer: int) -> QueryKey:
        attention = self.blocks[layer].self_attn
        return QueryKey(attention.q_proj, attention.k_proj, attention.num_heads, attention.scaling)

    def vision_embeddings(self) -> nn.Module:
        return self.vision.post_layernorm

    def heads(self, layer: int, queries: Tensor, keys: Tensor, about: Sizes) -> list[tuple[Tensor, Tensor]]:
        """One pair per slice; all windows in one, where patches merge."""
        q, k = (states[0].unflatten(-1, (self.vision_attention(layer).heads, -1)) for states in (queries, keys))
        inside = self.window**2
        if layer == self.windows and self.window > 1:
            return [(q.unflatten(0, (-1, inside)).transpose(1, 2), k.unflatten(0, (-1, inside)).transpose(1, 2))]
        each = inside if layer < self.windows else 1
        return pairs_of(q, k, [rows * columns * each for rows, columns in about])

    def by_unit(self, layer: int, rows: Sequence[Tensor], about: Sizes) -> list[Tensor]:
        """Means over the patches that merge."""
        if self.window == 1 or layer > self.windows:
            return list(rows)
        if layer == self.windows:
            return list(torch.stack(list(rows)).mean(dim=1).split([r * c for r, c in about]))
        units = zip(rows, about, strict=True)
        blocks = [own.unflatten(0, (r, self.window, c, self.window)).mean(dim=(1, 3)) for own, (r, c) in units]
        return [block.flatten(0, 1) for block in blocks]

    def embed(self, states: Tensor, about: Sizes) -> list[Tensor]:
        """The mean over the patches of each slice."""
        return [own.mean(dim=0, keepdim=True) for own in states[0].split([rows * columns for rows, columns in about])]

    def shrink(self, pixels: Tensor, about: Sizes) -> list[Tensor]:
        """The mean of each patch."""
        patches = pixels[0].float().unflatten(-1, (-1, pixels.shape[2])).mean(dim=(0, 1, 3))
        return list(patches.split([rows * columns * self.window**2 for rows, columns in about]))

    def pool(self, scores: Sequence[Tensor], span: Span) -> Tensor:
        """Mean over each block of patches."""
        units = zip(scores, span.layout.tiles, strict=True)
        blocks = [own.view(tile.rows, self.merge, tile.columns, self.merge) for own, tile in units]
        return torch.cat([block.mean(dim=(1, 3)).flatten() for block in blocks])
