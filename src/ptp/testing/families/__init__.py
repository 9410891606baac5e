"""The families that `ptp` ships: one description each. Yours goes into a file beside them, and at the end of the list."""

from ..family import FAMILIES, Family, Scale, register_family, token_id, tokenizer
from .gemma3 import GEMMA3
from .glm4v import GLM_4_1V, GLM_4_5V, GLM_4_6V
from .idefics import IDEFICS3, SMOLVLM
from .internvl import INTERNVL
from .lfm2_vl import LFM2_VL
from .llava15 import LLAVA15
from .llava_next import LLAVA_NEXT
from .llava_onevision import LLAVA_ONEVISION
from .minicpmv4_6 import MINICPM_V_4_6
from .mistral3 import MISTRAL3
from .ovis2 import OVIS2
from .paddleocr_vl import PADDLEOCR_VL
from .qwen3_5 import QWEN3_5
from .qwen_vl import QWEN2_5_VL, QWEN2_VL, QWEN3_VL
from .release import described

SHIPPED = (
    INTERNVL, LLAVA_NEXT, LLAVA_ONEVISION, SMOLVLM, IDEFICS3, QWEN2_5_VL, QWEN3_VL, GEMMA3, OVIS2,
    GLM_4_1V, GLM_4_5V, GLM_4_6V, PADDLEOCR_VL, LLAVA15, QWEN2_VL, MISTRAL3, QWEN3_5, *described("gemma4", "GEMMA4"),
    LFM2_VL, MINICPM_V_4_6,
)  # fmt: skip

for family in SHIPPED:
    register_family(family)

__all__ = ["FAMILIES", "Family", "Scale", "register_family", "token_id", "tokenizer"]
