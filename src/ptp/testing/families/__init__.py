"""The families that `ptp` ships: one description each. Yours goes into a file beside them, and at the end of the list."""

from ..family import FAMILIES, Family, Scale, register_family, token_id, tokenizer
from .gemma3 import GEMMA3
from .gemma4 import GEMMA4
from .idefics import IDEFICS3, SMOLVLM
from .internvl import INTERNVL
from .llava15 import LLAVA15
from .llava_next import LLAVA_NEXT
from .llava_onevision import LLAVA_ONEVISION
from .mistral3 import MISTRAL3
from .ovis2 import OVIS2
from .qwen_vl import QWEN2_5_VL, QWEN2_VL, QWEN3_VL

SHIPPED = (
    INTERNVL, LLAVA_NEXT, LLAVA_ONEVISION, SMOLVLM, IDEFICS3, QWEN2_5_VL, QWEN3_VL, GEMMA3, OVIS2,
    LLAVA15,
    QWEN2_VL,
    MISTRAL3,
    GEMMA4,
)  # fmt: skip

for family in SHIPPED:
    register_family(family)

__all__ = ["FAMILIES", "Family", "Scale", "register_family", "token_id", "tokenizer"]
