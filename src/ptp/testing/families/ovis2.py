"""Ovis2: square tiles behind markers, the thumbnail first, tokens mixed from a visual vocabulary."""

from typing import Any

from transformers import Ovis2Config, Ovis2ForConditionalGeneration
from transformers.models.ovis2.configuration_ovis2 import Ovis2VisionConfig
from transformers.models.ovis2.image_processing_pil_ovis2 import Ovis2ImageProcessorPil
from transformers.models.ovis2.processing_ovis2 import Ovis2Processor

from ..family import Family, Scale, token_id, tokenizer

MARKERS = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
SIDES = {False: 56, True: 448}
"""Side of a tile: small, and of the released checkpoints."""
WORDS = {False: 64, True: 2048}
"""Visual words. The released checkpoints have 16379, which would be a third of the parameters of a preset."""


def config(scale: Scale) -> Ovis2Config:
    vision = Ovis2VisionConfig(
        **scale.vision(),
        image_size=SIDES[scale.real],
        patch_size=14,
        hidden_stride=2,
        vocab_size=WORDS[scale.real] + len(MARKERS),  # the last ones are the markers'
    )
    text = scale.language("qwen2")
    return Ovis2Config(
        vision_config=vision,
        text_config=text,
        hidden_size=text["hidden_size"],
        vocab_size=text["vocab_size"],
        image_token_id=token_id("<IMG_ATOM>"),
        visual_indicator_token_ids=[token_id(marker) for marker in MARKERS],
        tie_word_embeddings=False,
    )


def processor(scale: Scale) -> Any:
    side = SIDES[scale.real]
    tiles = Ovis2ImageProcessorPil(
        size={"height": side, "width": side}, crop_to_patches=True, max_patches=9 if scale.real else 4
    )
    return Ovis2Processor(tiles, tokenizer(), chat_template=tokenizer().chat_template, image_seq_length=(side // 28) ** 2)


OVIS2 = Family(
    "ovis2",
    "<image>",
    Ovis2ForConditionalGeneration,
    config,
    processor,
    markers=("<image>", "<IMG_ATOM>", *MARKERS),
)
