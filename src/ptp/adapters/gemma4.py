"""Gemma 4 in the Hugging Face format (`Gemma4ForConditionalGeneration`): pictures and videos; sound is refused."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import UnsupportedModelError
from ..scoring import speakers
from .base import Adapter, Modality, QueryKey, Span
from .packed import Grid, grids_of, region_means, spans_of
from .text import Part, TextModel


class Gemma4Text(TextModel):
    """Windows turn at a speed of their own and have narrower heads; in the smaller models the last layers look at the keys and
    values of earlier ones; keys may be values, too."""

    def __init__(self, model: Any, family: str) -> None:
        super().__init__(model, family)
        if self.config.use_bidirectional_attention == "all":
            raise UnsupportedModelError(
                "A language model that sees what follows cannot be pruned: every token is changed by every other. Use a "
                "checkpoint whose use_bidirectional_attention is null or 'vision'."
            )
        shared = self.config.num_kv_shared_layers
        self.shares_from = self.config.num_hidden_layers - shared if shared else None

    def projection(self, layer: int, part: Part) -> nn.Module:
        attention = self.layers[layer].self_attn
        return attention.k_proj if part == "v" and attention.v_proj is None else super().projection(layer, part)

    def beside(self, embeds: Tensor) -> dict[str, Any]:
        width = self.config.hidden_size_per_layer_input
        return {"per_layer_inputs": embeds.new_zeros(*embeds.shape[:2], len(self.layers), width)} if width else {}

    def rotate(self, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return sys.modules[type(self.model).__module__].apply_rotary_pos_emb(states, cos, sin)


class Gemma4Adapter(Adapter):
    """Pictures whole, padded to one number of patches; no [CLS]; a visual token is the mean of 3 x 3 patches."""

    family = "Gemma 4"
    model_types = ("gemma4",)
    regions = "windows; videos: frames"
    saliency = "received"
    limits = "no sound beside pictures; only eager and sdpa attention (sliding windows)."
    has_cls = False

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config
        if config.vision_config is None:
            raise UnsupportedModelError("A Gemma 4 without a vision encoder sees no pictures. Use a checkpoint with one.")
        self.core = model.model
        self.vision = self.core.vision_tower
        self.vision_depth = len(self.vision.encoder.layers)
        self.text = Gemma4Text(self.core.language_model, self.family)
        self.image_token_id, self.video_token_id = config.image_token_id, config.video_token_id
        self.factor, self.patch = config.vision_config.pooling_kernel_size, config.vision_config.patch_size
        mutual = config.text_config.use_bidirectional_attention == "vision"
        self.both_ways = ("mm_token_type_ids", ("sliding_attention",) if mutual else ())

    @property
    def modalities(self) -> tuple[Modality, ...]:
        return (*super().modalities, Modality("video", "get_video_features", "pixel_values_videos", self.video_token_id))

    def about(self, inputs: Mapping[str, Any], window: int) -> list[Grid]:
        """Pictures, or videos, by the places of their patches; padding has none.

        Raises:
            ValueError: the patches of one are no raster of whole visual tokens.
        """
        places = inputs.get("video_position_ids", inputs.get("image_position_ids"))  # (units, L, 2) column and row
        ends = torch.cat([places.amax(dim=1) + 1, (places[..., :1] >= 0).sum(dim=1)], dim=1).tolist()
        for own, (columns, rows, patches) in zip(places, ends, strict=True):
            whole = patches == columns * rows > 0 and not columns % self.factor and not rows % self.factor
            if not whole or not torch.equal(own[:patches], raster(rows, columns, own.device)):
                raise ValueError(
                    f"A picture must be a raster of patches, its sides multiples of {self.factor}, got {patches} patches up to "
                    f"column {columns - 1} and row {rows - 1}. Pass the positions that the model's own processor made."
                )
        sizes = [[1, rows, columns] for columns, rows, _ in ends]
        told = {"image_grid_thw": torch.tensor(sizes)}
        if "video_position_ids" in inputs:
            frames = inputs["num_frames_per_video"].tolist()
            firsts = [sum(frames[:number]) for number in range(len(frames))]
            told = {"video_grid_thw": torch.tensor([[n, *sizes[first][1:]] for n, first in zip(frames, firsts, strict=True)])}
        return grids_of(told, self.factor, self.factor * self.patch, window)

    def locate(self, input_ids: Tensor, tokens: Tensor, about: list[Grid], pixels: Sequence[Tensor]) -> list[Span]:
        return spans_of(tokens, about)

    def vision_attention(self, layer: int) -> QueryKey:
        attention = self.vision.encoder.layers[layer].self_attn
        return QueryKey(attention.q_norm, attention.k_norm, self.vision.config.num_attention_heads, attention.scaling)

    def vision_embeddings(self) -> nn.Module:
        return self.vision.encoder.layers[-1]

    def received_heads(self, layer: int, queries: Tensor, keys: Tensor, about: list[Grid]) -> list[tuple[Tensor, Tensor]]:
        return self.heads(layer, queries, keys, about, speakers)

    def heads(
        self, layer: int, queries: Tensor, keys: Tensor, about: list[Grid],
        asked: Callable[[int], Tensor | None] = lambda patches: None,
    ) -> list[tuple[Tensor, Tensor]]:  # fmt: skip
        """One pair per picture or frame, without its padding, of normed (units, L, H, D); keys are repeated where heads
        share them."""
        attention, modeling = self.vision.encoder.layers[layer].self_attn, sys.modules[type(self.vision).__module__]

        def turned(heads: Tensor, places: Tensor) -> Tensor:
            cos, sin = self.vision.encoder.rotary_emb(heads, places[None])
            return modeling.apply_multidimensional_rope(heads[None], cos, sin, places[None]).transpose(1, 2)

        pairs = []
        for unit, grid in enumerate(units_of(about)):
            places = raster(grid.rows, grid.columns, queries.device)
            chosen = asked(len(places))
            rows = slice(len(places)) if chosen is None else chosen.to(queries.device)
            k = turned(keys[unit, : len(places)], places)
            q = turned(queries[unit, rows], places[rows])
            pairs.append((q, k.repeat_interleave(attention.num_key_value_groups, dim=1)))
        return pairs

    def embed(self, states: Tensor, about: list[Grid]) -> list[Tensor]:
        """The mean over the patches of each region."""
        units = zip(states, units_of(about), strict=True)
        return region_means(torch.cat([self._tokens(own, grid) for own, grid in units]), about)

    def shrink(self, pixels: Tensor, about: list[Grid]) -> list[Tensor]:
        """The mean of each patch."""
        units = zip(pixels.float().mean(dim=-1), units_of(about), strict=True)
        return [own[: grid.rows * grid.columns] for own, grid in units]

    def pool(self, scores: Sequence[Tensor], span: Span) -> Tensor:
        tokens = torch.cat([self._tokens(patches[:, None], span.about) for patches in scores])[:, 0]
        return tokens[span.about.order.to(tokens.device)]

    def _tokens(self, patches: Tensor, grid: Grid) -> Tensor:
        """(N, D) means over blocks of patches, in raster order; (L, D) patches of a unit, its padding behind them."""
        sides = (grid.rows // self.factor, self.factor, grid.columns // self.factor, self.factor)
        return patches[: grid.rows * grid.columns].unflatten(0, sides).mean(dim=(1, 3)).flatten(0, 1)


def raster(rows: int, columns: int, device: torch.device) -> Tensor:
    """(rows * columns, 2) int64: column and row of each patch."""
    order = torch.arange(rows * columns, device=device)
    return torch.stack([order % columns, order // columns], dim=-1)


def units_of(about: list[Grid]) -> list[Grid]:
    """Of each picture or frame, the picture or video."""
    return [grid for grid in about for _ in range(grid.frames)]
