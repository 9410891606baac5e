"""Mistral 3 and Pixtral in the Hugging Face format: pictures whole, at their own size, a marker behind each line of tokens."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import UnsupportedModelError
from .base import PIXELS_SIDE, Adapter, Layout, QueryKey, Span, share_out
from .text import TextModel
from .windows import windows


@dataclass(frozen=True)
class Sheet:
    """A picture as the encoder takes it.

    Attributes:
        rows, columns: Patches.
        layout: Of its visual tokens.
        order: (N,) place of each of these in the raster over the picture.
    """

    rows: int
    columns: int
    layout: Layout
    order: Tensor


class PixtralAdapter(Adapter):
    """Pixtral's encoder, no [CLS]: the patches of all pictures lie in one sequence, line by line, and see their own picture.

    In Mistral 3 blocks of 2 x 2 patches become a token. Regions are a grid of windows over the picture. [IMG_BREAK] behind each
    line and [IMG_END] are text and stay.
    """

    family = "Mistral 3 / Pixtral"
    model_types = ("mistral3",)
    regions = "windows of about 448 px"
    saliency = "received"
    has_cls = False
    line_ends = True

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config
        kind = config.vision_config.model_type
        if kind != "pixtral":
            raise UnsupportedModelError(f"{self.family} with vision model {kind!r} is not supported. Supported: Pixtral's.")
        if getattr(config, "vision_feature_select_strategy", "full") != "full":
            raise UnsupportedModelError(
                "vision_feature_select_strategy must be 'full' with Pixtral, which has no [CLS]: 'default' loses a patch."
            )
        self.core = model.model
        self.vision = self.core.vision_tower
        depth, chosen = len(self.vision.transformer.layers), config.vision_feature_layer
        self.vision_depth = max(depth + 1 + n if n < 0 else n for n in ([chosen] if isinstance(chosen, int) else chosen))
        self.text = TextModel(self.core.language_model, self.family)
        self.image_token_id = config.image_token_id
        self.patch = config.vision_config.patch_size
        self.merge = getattr(config, "spatial_merge_size", 1)

    def about(self, inputs: Mapping[str, Any], window: int) -> list[Sheet]:
        """Raises ValueError where patches would be in no token, or the sizes of the pictures are not given."""
        sizes = inputs.get("image_sizes")
        if sizes is None:
            raise ValueError("image_sizes must be given: (height, width) of each picture, as the model's own processor does.")
        sheets, pixels = [], self.merge * self.patch
        for height, width in torch.as_tensor(sizes).tolist():
            if height % pixels or width % pixels:
                raise ValueError(
                    f"Pictures must be multiples of {pixels} pixels, so that each patch is in a token, got {width} x {height}. "
                    "Let the model's own processor resize them."
                )
            sheets.append(
                Sheet(height // self.patch, width // self.patch, *windows(width // pixels, height // pixels, pixels, window))
            )
        return sheets

    def locate(self, input_ids: Tensor, tokens: Tensor, about: list[Sheet], pixels: Sequence[Tensor]) -> list[Span]:
        shares = share_out(tokens, [len(sheet.order) for sheet in about])
        both = enumerate(zip(shares, about, strict=True))
        return [Span(row, here[sheet.order], (unit,), sheet.layout, sheet) for unit, ((row, here), sheet) in both]

    def vision_attention(self, layer: int) -> QueryKey:
        attention = self.vision.transformer.layers[layer].attention
        return QueryKey(attention.q_proj, attention.k_proj, attention.num_heads, attention.scaling)

    def heads(self, layer: int, queries: Tensor, keys: Tensor, about: list[Sheet]) -> list[tuple[Tensor, Tensor]]:
        """One pair per picture."""
        heads = self.vision_attention(layer).heads
        q, k = (states.unflatten(-1, (heads, -1)).transpose(1, 2) for states in (queries, keys))  # (1, H, patches, D)
        axes = [torch.cartesian_prod(torch.arange(sheet.rows), torch.arange(sheet.columns)) for sheet in about]
        modeling, places = sys.modules[type(self.vision).__module__], torch.cat(axes).view(-1, 2)
        if hasattr(modeling, "position_ids_in_meshgrid"):  # transformers 5.16 counts along the rows of the largest picture
            vision = self.vision.config
            places = places[:, 0] * (vision.image_size // vision.patch_size) + places[:, 1]
        cos, sin = self.vision.patch_positional_embedding(q, places.to(q.device))
        q, k = modeling.apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=0)
        return list(zip(self._split(q, about, 2), self._split(k, about, 2), strict=True))

    def vision_embeddings(self) -> nn.Module:
        return self.vision.transformer.layers[self.vision_depth - 1]

    def embed(self, states: Tensor, about: list[Sheet]) -> list[Tensor]:
        """The mean over the patches of each region."""
        means = []
        for sheet, own in zip(about, self._split(states[0], about, 0), strict=True):
            tokens = self._blocks(own, sheet).mean(dim=1)[sheet.order.to(own.device)]
            means.append(torch.stack([part.mean(dim=0) for part in tokens.split(sheet.layout.sizes)]))
        return means

    def shrink(self, pixels: Tensor, about: list[Sheet]) -> list[Tensor]:
        """Without what the smaller ones of a batch are padded with."""
        shown = zip(pixels.float(), about, strict=True)
        cut = (picture[:, : sheet.rows * self.patch, : sheet.columns * self.patch] for picture, sheet in shown)
        return [torch.nn.functional.adaptive_avg_pool2d(picture, PIXELS_SIDE) for picture in cut]

    def pool(self, scores: Sequence[Tensor], span: Span) -> Tensor:
        """Mean over each block of patches."""
        (patches,) = scores
        return self._blocks(patches[:, None], span.about).mean(dim=(1, 2))[span.about.order.to(patches.device)]

    def _blocks(self, patches: Tensor, sheet: Sheet) -> Tensor:
        """(N, patches of a token, D) in raster order, of a picture's (P, D)."""
        grid = patches.view(sheet.rows // self.merge, self.merge, sheet.columns // self.merge, self.merge, -1)
        return grid.transpose(1, 2).flatten(2, 3).flatten(0, 1)

    @staticmethod
    def _split(states: Tensor, about: list[Sheet], dim: int) -> Sequence[Tensor]:
        return states.split([sheet.rows * sheet.columns for sheet in about], dim=dim)
