"""LLaVA 1.5 in the Hugging Face format (`LlavaForConditionalGeneration`): one tile, a visual token for each patch."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import UnsupportedModelError
from .base import Adapter, Span, share_out, tiled
from .pixtral import PixtralAdapter
from .text import TextModel


class Llava15Adapter(Adapter):
    """CLIP, its [CLS] read up to the layer that feeds the projector, the last but one; or SigLIP without [CLS].

    The published processor cuts pictures to a square, and the model is not told what of them is left: boxes are fractions of
    that square. Checkpoints whose encoder is Pixtral's (Pixtral 12B) are laid out as Mistral 3 lays pictures out.
    """

    family = "LLaVA 1.5"
    model_types = ("llava",)
    regions = "one tile (with Pixtral: windows)"
    saliency = "[CLS] (SigLIP, Pixtral: received)"
    independent_tiles = True

    def __new__(cls, model: PreTrainedModel) -> Any:
        """Of a Pixtral: its own adapter."""
        pixtral = model.config.vision_config.model_type == "pixtral"
        return PixtralAdapter(model) if pixtral else super().__new__(cls)

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config
        kind, strategy = config.vision_config.model_type, config.vision_feature_select_strategy
        if kind not in ("clip_vision_model", "siglip_vision_model"):
            raise UnsupportedModelError(
                f"{self.family} with vision model {kind!r} is not supported. Supported: CLIP, SigLIP, Pixtral."
            )
        self.has_cls = kind == "clip_vision_model"
        if strategy != ("default" if self.has_cls else "full"):
            raise UnsupportedModelError(
                f"vision_feature_select_strategy {strategy!r} does not fit {kind!r}: [CLS] would be a visual token that shows "
                "no place of the picture, or a patch be lost. Use 'default' with CLIP and 'full' with SigLIP."
            )
        self.core = model.model
        self.vision = self.core.vision_tower
        depth, chosen = len(self.vision.encoder.layers), config.vision_feature_layer
        self.layer = chosen
        self.vision_depth = max(depth + 1 + n if n < 0 else n for n in ([chosen] if isinstance(chosen, int) else chosen))
        self.text = TextModel(self.core.language_model, self.family)
        self.image_token_id = config.image_token_id
        self.side = config.vision_config.image_size // config.vision_config.patch_size

    def about(self, inputs: Mapping[str, Any], window: int) -> Any:
        """Nothing; but the arguments must not ask for other features than the model's own."""
        layer = inputs.get("vision_feature_layer")
        if layer is not None and layer != self.layer:
            raise ValueError(
                f"vision_feature_layer must be the model's own, {self.layer}, while visual tokens are pruned, got {layer}. "
                "Set it in the model's configuration before the pruner is attached."
            )
        return None

    def locate(self, input_ids: Tensor, tokens: Tensor, about: Any, pixels: Sequence[Tensor]) -> list[Span]:
        layout = tiled((1, 1), self.side, self.side, thumbnail=False)
        shares = share_out(tokens, [layout.tokens] * len(pixels))
        return [Span(row, places, (unit,), layout) for unit, (row, places) in enumerate(shares)]

    def unread_layers(self, inputs: Mapping[str, Any]) -> Sequence[nn.Module]:
        usual = inputs.get("vision_feature_layer") in (None, self.layer)
        return self.vision.encoder.layers[self.vision_depth :] if usual else ()

    def vision_embeddings(self) -> nn.Module:
        return self.vision.encoder.layers[self.vision_depth - 1]

    def pool(self, scores: Sequence[Tensor], span: Span) -> Tensor:
        """A token is a patch."""
        return scores[0]
