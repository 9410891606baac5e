"""What checkpoints publish beside their weights: chat templates, and tokenizers that cut words as theirs do."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from chat_templates import (
    GEMMA3,
    GEMMA4,
    GLM_4_1V,
    GLM_4_5V,
    IDEFICS3,
    INTERNVL,
    LFM2_VL,
    MINICPM_V_4_6,
    MISTRAL,
    MISTRAL3,
    MISTRAL_LAST,
    NEXT_LLAMA3,
    NEXT_MISTRAL,
    NEXT_VICUNA,
    NEXT_YI,
    ONEVISION,
    PADDLEOCR_VL,
    QWEN2,
    QWEN2_5_VL,
    QWEN3_5,
    QWEN3_VL,
    SMOLVLM,
)
from chat_tokenizers import byte_level, sentencepiece
from torch import Tensor, isin, tensor
from transformers import PreTrainedTokenizerFast

from ptp.conversation import InstructionFinder

IMAGE = {"type": "image"}
MODEL = SimpleNamespace(name_or_path="")
"""With nothing beside its weights."""


@dataclass
class Processor:
    """What ptp reads of a processor."""

    tokenizer: Any
    chat_template: Any = None


@dataclass(frozen=True)
class Checkpoint:
    """What a family's checkpoints publish.

    Attributes:
        tokenizer: Its like. image: Its visual token.
        template: Of the processor; None where there is only the tokenizer's. tokenizer_template: Of the tokenizer.
        pictures: What the processor writes in the place of each placeholder.
        tools: "own": the template knows tools; "role": it writes any role's name; None: it refuses them.
        strings: Whether messages are plain strings, in which people write the placeholder themselves.
        video: The visual token of videos, where that is another.
    """

    tokenizer: Callable[[], PreTrainedTokenizerFast]
    image: str
    template: str | None
    tokenizer_template: str | None = None
    pictures: dict[str, str] = field(default_factory=dict)
    tools: str | None = None
    strings: bool = False
    video: str = "<pad>"

    def render(self, messages: list[dict], prompt: bool = True, **settings: Any) -> str:
        """The prompt's text, pictures filled in."""
        template = self.template or self.tokenizer_template
        if self.strings:
            messages = [{**message, "content": typed(message["content"])} for message in messages]
        text = self.tokenizer().apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=prompt, **settings
        )
        for placeholder, picture in self.pictures.items():
            text = text.replace(placeholder, picture)
        return text

    def encode(self, text: str, starts: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """input_ids, is_token and visual, each (1, S); `starts`: not on a KV cache."""
        tokenizer = self.tokenizer()
        bos = starts and not (tokenizer.bos_token and text.startswith(tokenizer.bos_token))
        ids = tensor([tokenizer.encode(text, add_special_tokens=bos)])
        visual = tensor(tokenizer.convert_tokens_to_ids([self.image, self.video]))
        return ids, ids >= 0, isin(ids, visual)

    def processor(self) -> Any:
        """What AutoProcessor would return, as far as templates go."""
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=self.tokenizer().backend_tokenizer, bos_token=self.tokenizer().bos_token, pad_token="<pad>"
        )
        tokenizer.chat_template = self.tokenizer_template
        return Processor(tokenizer, self.template) if self.template else tokenizer


def typed(content: list[dict]) -> str:
    """Parts as people type them for models that know plain strings."""
    return "".join("<image>\n" if part["type"] == "image" else part["text"] for part in content)


CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN = (*CHATML, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
AROUND, TILE = "<fake_token_around_image>", "<image>" * 4
SPLIT = f"{AROUND}<row_1_col_1>{TILE}{AROUND}<row_1_col_2>{TILE}\n\n{AROUND}<global-img>{TILE}{AROUND}"
QWEN_PICTURE = {"<|image_pad|>": "<|image_pad|>" * 8}
TEKKEN = ("</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[IMG]", "[IMG_BREAK]", "[IMG_END]")
LINES = {"[IMG]": "[IMG][IMG][IMG][IMG_BREAK][IMG][IMG][IMG][IMG_END]"}
LLAVA_PICTURE = {"<image>": "<image>" * 8}
GLM = (
    "<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<|begin_of_image|>",
    "<|image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|video|>", "<|end_of_video|>",
)  # fmt: skip
GLM_PICTURE = {"<|image|>": "<|image|>" * 8}
LFM2 = (
    "<|im_start|>", "<|im_end|>", "<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>", "<|img_row_1_col_1|>",
    "<|img_row_1_col_2|>",
)  # fmt: skip
LFM2_PICTURE = f"<|image_start|><|img_row_1_col_1|>{TILE}<|img_row_1_col_2|>{TILE}<|img_thumbnail|>{TILE}<|image_end|>"
PADDLE = ("</s>", "<|begin_of_sentence|>", "<|IMAGE_START|>", "<|IMAGE_PLACEHOLDER|>", "<|IMAGE_END|>")


def _qwen() -> PreTrainedTokenizerFast:
    return byte_level(*QWEN, plain=("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"))


def _glm() -> PreTrainedTokenizerFast:
    words = ("<think>", "</think>", "/nothink", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
    return byte_level(*GLM, plain=(*words, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"))


def _qwen3_5() -> PreTrainedTokenizerFast:
    plain = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
    return byte_level(*QWEN, plain=plain)


SLICES = ("<image>", "</image>", "<slice>", "</slice>", "<image_id>", "</image_id>")
PADS, SLICE = "<|image_pad|>" * 4, "<slice><|image_pad|><|image_pad|></slice>"
SLICED = f"<image_id>0</image_id><image>{PADS}</image>{SLICE}{SLICE}\n{SLICE}{SLICE}"


def _minicpm() -> PreTrainedTokenizerFast:
    return byte_level(
        *QWEN, *SLICES, plain=("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
    )


def _tekken() -> PreTrainedTokenizerFast:
    return byte_level(*TEKKEN, bos="<s>")


CHECKPOINTS = {
    "internvl": Checkpoint(
        lambda: byte_level(*CHATML, "<img>", "</img>", "<IMG_CONTEXT>", "<video>"), "<IMG_CONTEXT>", INTERNVL, INTERNVL,
        {"<IMG_CONTEXT>": f"<img>{'<IMG_CONTEXT>' * 8}</img>"}, "role",
    ),
    "llava-next mistral": Checkpoint(
        lambda: sentencepiece("</s>", "<image>"), "<image>", NEXT_MISTRAL, MISTRAL, LLAVA_PICTURE
    ),
    "llava-next mistral, its text model's template": Checkpoint(
        lambda: sentencepiece("</s>", "<image>"), "<image>", None, MISTRAL, LLAVA_PICTURE, strings=True
    ),
    "llava-next mistral, system prompt in the last turn": Checkpoint(
        lambda: sentencepiece("</s>", "<image>"), "<image>", None, MISTRAL_LAST, LLAVA_PICTURE, strings=True
    ),
    "llava-next vicuna": Checkpoint(
        lambda: sentencepiece("</s>", "<image>"), "<image>", NEXT_VICUNA, None, LLAVA_PICTURE, "role"
    ),
    "llava-next yi": Checkpoint(
        lambda: sentencepiece("<|startoftext|>", *CHATML, "<image>", prefix=False),
        "<image>", NEXT_YI, None, LLAVA_PICTURE, "role",
    ),
    "llava-next llama 3": Checkpoint(
        lambda: byte_level("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<image>", bos="<|begin_of_text|>"),
        "<image>", NEXT_LLAMA3, None, LLAVA_PICTURE, "role",
    ),
    "llava-onevision": Checkpoint(
        lambda: byte_level(*CHATML, "<image>", "<video>"), "<image>", ONEVISION, QWEN2, LLAVA_PICTURE, "role"
    ),
    "smolvlm": Checkpoint(
        lambda: byte_level(
            *CHATML, AROUND, "<global-img>", "<image>", "<end_of_utterance>", "<row_1_col_1>", "<row_1_col_2>"
        ),
        "<image>", SMOLVLM, SMOLVLM, {"<image>": SPLIT}, "role",
    ),
    "idefics3": Checkpoint(
        lambda: byte_level(AROUND, "<image>", "<end_of_utterance>", bos="<|begin_of_text|>"),  # others are plain text
        "<image>", IDEFICS3, None, {"<image>": SPLIT}, "role",
    ),
    "qwen2.5-vl": Checkpoint(_qwen, "<|image_pad|>", QWEN2_5_VL, QWEN2_5_VL, QWEN_PICTURE, "role"),
    "qwen3-vl": Checkpoint(_qwen, "<|image_pad|>", QWEN3_VL, QWEN3_VL, QWEN_PICTURE, "own", video="<|video_pad|>"),
    "qwen3.5": Checkpoint(_qwen3_5, "<|image_pad|>", QWEN3_5, QWEN3_5, QWEN_PICTURE, "own", video="<|video_pad|>"),
    "gemma3": Checkpoint(
        lambda: sentencepiece(
            "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>",
            prefix=False, bos="<bos>",
        ),
        "<image_soft_token>", GEMMA3, GEMMA3,
        {"<start_of_image>": f"\n\n<start_of_image>{'<image_soft_token>' * 8}<end_of_image>\n\n"},
    ),
    "glm-4.1v": Checkpoint(lambda: byte_level(*GLM), "<|image|>", GLM_4_1V, GLM_4_1V, GLM_PICTURE),
    "glm-4.5v": Checkpoint(_glm, "<|image|>", GLM_4_5V, GLM_4_5V, GLM_PICTURE, "own"),
    "glm-4.6v": Checkpoint(_glm, "<|image|>", GLM_4_5V, GLM_4_5V, GLM_PICTURE, "own"),
    "lfm2-vl": Checkpoint(
        lambda: byte_level(*LFM2, bos="<|startoftext|>"), "<image>", LFM2_VL, LFM2_VL, {"<image>": LFM2_PICTURE}, "role"
    ),
    "minicpm-v-4.6": Checkpoint(
        _minicpm, "<|image_pad|>", MINICPM_V_4_6, MINICPM_V_4_6, {"<|image_pad|>": SLICED}, "own", video="<|video_pad|>"
    ),
    "paddleocr-vl": Checkpoint(
        lambda: sentencepiece(*PADDLE), "<|IMAGE_PLACEHOLDER|>", PADDLEOCR_VL, PADDLEOCR_VL,
        {"<|IMAGE_PLACEHOLDER|>": "<|IMAGE_PLACEHOLDER|>" * 8},
    ),
    "llava-1.5": Checkpoint(lambda: sentencepiece("</s>", "<image>"), "<image>", NEXT_VICUNA, None, LLAVA_PICTURE, "role"),
    "qwen2-vl": Checkpoint(_qwen, "<|image_pad|>", QWEN2_5_VL, QWEN2_5_VL, QWEN_PICTURE, "role"),
    "mistral3": Checkpoint(_tekken, "[IMG]", MISTRAL3, MISTRAL3, LINES),
    "gemma4": Checkpoint(
        lambda: sentencepiece(
            "<|turn>", "<turn|>", "<|image>", "<|image|>", "<image|>", "<|video|>", "<|think|>", "<|channel>", "<channel|>",
            "<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>", prefix=False, bos="<bos>",
        ),
        "<|image|>", GEMMA4, GEMMA4, {"<|image|>": f"<|image>{'<|image|>' * 8}<image|>"}, "own", video="<|video|>",
    ),
}  # fmt: skip


def say(role: str, *parts: Any, **more: Any) -> dict:
    """One message of texts and pictures."""
    return {
        "role": role,
        "content": [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts],
        **more,
    }


def read(finder: InstructionFinder, checkpoint: Checkpoint, text: str) -> str:
    """What the mask marks, decoded as it is; warnings are errors."""
    inputs = checkpoint.encode(text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mask = finder.mask(*inputs)
    assert not (mask & inputs[2]).any()
    return finder.words(inputs[0][mask])
