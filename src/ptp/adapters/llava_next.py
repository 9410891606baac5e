"""LLaVA-NeXT (LLaVA 1.6) in the Hugging Face format (`LlavaNextForConditionalGeneration`)."""

from typing import Any

from .anyres import AnyResolution


class LlavaNextAdapter(AnyResolution):
    """CLIP with [CLS] (read up to the layer that feeds the projector, the last but one); see `anyres` for its tiles."""

    family = "LLaVA-NeXT"
    model_types = ("llava_next",)
    regions = "tiles and thumbnail"
    saliency = "[CLS]"

    def packing(self, about: Any) -> dict[str, Any]:
        return {"vision_feature_select_strategy": self.config.vision_feature_select_strategy}
