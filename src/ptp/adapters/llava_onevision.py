"""LLaVA-OneVision in the Hugging Face format (`LlavaOnevisionForConditionalGeneration`)."""

from typing import Any

from .anyres import AnyResolution


class LlavaOnevisionAdapter(AnyResolution):
    """SigLIP without [CLS]; the raster over all tiles is shrunk (bilinear) to at most nine tiles' worth: see `anyres`.

    Several pictures in one prompt are not cut into tiles.
    """

    family = "LLaVA-OneVision"
    model_types = ("llava_onevision",)
    regions = "tiles and thumbnail; several pictures: whole"
    saliency = "received"

    def packing(self, about: Any) -> dict[str, Any]:
        return {"vision_aspect_ratio": about[2]}
