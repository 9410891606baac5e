"""Adapters that are wrong, each in one thing."""

from dataclasses import replace

import torch

from ptp.adapters import QueryKey, Tile
from ptp.adapters.gemma3 import Gemma3Adapter
from ptp.adapters.internvl import InternVLAdapter
from ptp.adapters.llava import LlavaAdapter
from ptp.adapters.qwen_vl import QwenVLAdapter
from ptp.adapters.smolvlm import SmolVLMAdapter
from ptp.testing import token_id


class OtherToken(QwenVLAdapter):
    def __init__(self, model):
        super().__init__(model)
        self.image_token_id = token_id("<|vision_start|>")


class TokenLost(Gemma3Adapter):
    def locate(self, *args):
        return [replace(span, positions=span.positions.repeat_interleave(2)[:16]) for span in super().locate(*args)]


class TilesMiscounted(InternVLAdapter):
    def locate(self, *args):
        spans = super().locate(*args)
        tile = Tile(self.columns, self.rows - 1)
        return [replace(span, layout=replace(span.layout, tiles=(tile, *span.layout.tiles[1:]))) for span in spans]


class OneEmbedding(QwenVLAdapter):
    def embed(self, states, about):
        return [part.mean(dim=0, keepdim=True) for part in super().embed(states, about)]


class LastLayer(LlavaAdapter):
    def __init__(self, model):
        super().__init__(model)
        self.vision_depth = len(self.vision.encoder.layers)


class EarlierFeatures(SmolVLMAdapter):
    def vision_embeddings(self):
        return self.vision.encoder.layers[0]


class ThumbnailFirst(SmolVLMAdapter):
    def locate(self, *args):
        return [replace(span, positions=span.positions.roll(self.side**2)) for span in super().locate(*args)]


class ColumnsFirst(InternVLAdapter):
    def locate(self, *args):
        side = self.columns
        order = torch.arange(side * side).view(side, side).T.flatten()
        return [
            replace(span, positions=span.positions.view(-1, side * side)[:, order].flatten()) for span in super().locate(*args)
        ]


class WindowsForgotten(QwenVLAdapter):
    """Tokens in the prompt's order, regions as if they were in order of the windows."""

    def about(self, inputs, window):
        return [replace(grid, order=torch.arange(len(grid.order))) for grid in super().about(inputs, window)]


class EveryFourth(SmolVLMAdapter):
    def pool(self, scores, span):
        return torch.cat([part[:: self.factor**2] for part in scores])


class UnitsTurned(InternVLAdapter):
    def locate(self, *args):
        return [replace(span, units=span.units[::-1]) for span in super().locate(*args)]


class WrongScale(LlavaAdapter):
    def vision_attention(self, layer):
        return replace(super().vision_attention(layer), scale=1.0)


class QueriesAsKeys(Gemma3Adapter):
    def vision_attention(self, layer):
        attention = self.vision.encoder.layers[layer].self_attn
        return QueryKey(attention.k_proj, attention.q_proj, attention.num_heads, attention.scale)


class LayerBelow(Gemma3Adapter):
    def vision_attention(self, layer):
        return super().vision_attention(max(layer - 1, 0))


class NoRotation(QwenVLAdapter):
    def heads(self, layer, queries, keys, about):
        q, k, _ = queries.unflatten(-1, (3, self.vision_attention(layer).heads, -1)).transpose(0, 2).unbind(1)
        lengths = [grid.rows * grid.columns for grid in about]
        return [(a[None], b[None]) for a, b in zip(q.split(lengths, dim=1), k.split(lengths, dim=1), strict=True)]


class PatchForCls(SmolVLMAdapter):
    has_cls = True

    def by_unit(self, layer, rows, about):
        return [torch.cat([row[:1], row]) for row in rows]


class TextScale(QwenVLAdapter):
    def __init__(self, model):
        super().__init__(model)
        self.text.scale = lambda layer: 1.0


class TextKeysOfNextLayer(InternVLAdapter):
    def __init__(self, model):
        super().__init__(model)
        own, layers = self.text.projection, len(self.text.layers)
        self.text.projection = lambda layer, part: own((layer + (part == "k")) % layers, part)


class FeaturesStay(QwenVLAdapter):
    def __init__(self, model):
        super().__init__(model)
        self.late_features = None


class RowsTogether(InternVLAdapter):
    def locate(self, *args):
        return [replace(span, row=0) for span in super().locate(*args)]


class HookForgotten(InternVLAdapter):
    def __init__(self, model):
        super().__init__(model)
        self.vision.register_forward_hook(lambda *args: None)


WRONG = [
    (OtherToken, "qwen3-vl", "layout", r"pixels reach tokens of ids \[\d+\], `modalities` has"),
    (TokenLost, "gemma3", "layout", "missing: "),
    (TilesMiscounted, "internvl", "layout", "tokens, and positions"),
    (OneEmbedding, "qwen2.5-vl", "layout", "`embed` gives 1 embeddings for"),
    (LastLayer, "llava-next", "encoder", "depend on 2 of the 3 vision layers, and vision_depth is 3"),
    (EarlierFeatures, "smolvlm", "encoder", "runs behind layer 0, and layer 2 is the last"),
    (ThumbnailFirst, "idefics3", "boxes", "a disc in the box of token"),
    (ColumnsFirst, "internvl", "boxes", "a disc in the box of token"),
    (WindowsForgotten, "qwen3-vl", "boxes", "a disc in the box of token"),
    (EveryFourth, "smolvlm", "saliency", "token saliency differs by"),
    (UnitsTurned, "internvl", "saliency", "token saliency differs by"),
    (WrongScale, "llava-onevision", "saliency", "token saliency differs by"),
    (QueriesAsKeys, "gemma3", "saliency", "token saliency differs by"),
    (LayerBelow, "gemma3", "saliency", "token saliency differs by"),
    (NoRotation, "qwen3-vl", "saliency", "token saliency differs by"),
    (PatchForCls, "smolvlm", "saliency", "token saliency differs by"),
    (TextScale, "qwen2.5-vl", "relevance", "relevance differs by"),
    (TextKeysOfNextLayer, "internvl", "relevance", "relevance differs by"),
    (FeaturesStay, "qwen3-vl", "masking", "late_features"),
    (RowsTogether, "internvl", "batch", "were found in"),
    (HookForgotten, "internvl", "nothing left", "attributes or hooks remain on model.vision_tower"),
]
"""(adapter, family, the oracle that finds it, what it says)."""
