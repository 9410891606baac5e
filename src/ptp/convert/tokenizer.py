"""Tokenizer, chat template and tiling: all of a processor."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AddedToken, LlamaTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.internvl.processing_internvl import InternVLProcessor

from ..loader import pictures_only

CONTEXT = "<IMG_CONTEXT>"
# The processor asks for a video token, too. It is a new one, no row of the embeddings, and never gets there: the processor
# refuses a prompt that has it, as there is no video.
IMAGE_TOKENS = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": CONTEXT}
VIDEO_TOKEN = {"video_token": "<video>"}
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
PROBES = (
    "What is on the red circle?", "  two spaces,\ttab\nand a new line", "a", "1234567890 + 3.14", "书生·万象", "été naïve",
    "🙂 bytes \u200b", "don't CamelCase_snake", "x = [1, 2];  // code", "А вы?",
)  # fmt: skip
"""Texts on which a rebuilt tokenizer must agree with the original."""


CHAT = """
{%- set before, after, end = BEFORE, AFTER, END %}
{{- BOS }}
{%- if messages[0]['role'] != 'system' %}{{ before + 'system' + after + SYSTEM + end }}{% endif %}
{%- for message in messages %}
    {{- before + message['role'] + after }}
    {%- if message['content'] is string %}{{ message['content'] }}
    {%- else %}
        {%- for part in message['content'] %}
            {%- if part['type'] == 'image' %}{{ IMAGE + '\\n' }}
            {%- elif part['type'] == 'text' %}{{ part['text'] }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- end }}
{%- endfor %}
{%- if add_generation_prompt %}{{ before + 'assistant' + after }}{% endif %}"""
"""A chat template; the words in capitals are filled in."""


@dataclass(frozen=True)
class Template:
    """How a family of checkpoints marks turns.

    Attributes:
        before, after: What opens a turn, around its role. end: What closes it.
        system: The message that conversations begin with.
    """

    before: str
    after: str
    end: str
    system: str

    def jinja(self, bos: bool) -> str:
        """The chat template; `bos` begins it with that token, as the tokenizer begins plain text."""
        words = {"BEFORE": self.before, "AFTER": self.after, "END": self.end, "SYSTEM": self.system, "IMAGE": CONTEXT}
        filled = CHAT.replace("BOS", "bos_token" if bos else "''")
        for word, text in words.items():
            filled = filled.replace(word, json.dumps(text, ensure_ascii=False))
        return filled


INTERNVL2 = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
INTERNVL2_5 = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
TEMPLATES = {
    "internlm2-chat": Template("<|im_start|>", "\n", "<|im_end|>", INTERNVL2),
    "Hermes-2": Template("<|im_start|>", "\n", "<|im_end|>", INTERNVL2),
    "phi3-chat": Template("<|", "|>\n", "<|end|>", INTERNVL2),
    "internvl2_5": Template("<|im_start|>", "\n", "<|im_end|>\n", INTERNVL2_5),
}
"""By the name in config.json; the system messages are those the models were trained with."""


def convert_processor(source: Path, original: dict[str, Any]) -> Any:
    """The processor (pictures only) of a checkpoint.

    Raises:
        ValueError: template or tokenizer are not known, or the tokenizer cannot be rebuilt exactly.
    """
    name = original.get("template")
    if name not in TEMPLATES:
        raise ValueError(f"template must be one of {', '.join(TEMPLATES)}, got {name!r}. Others are not known.")
    vision = original["vision_config"]
    side = original.get("force_image_size") or vision["image_size"]
    tokenizer = convert_tokenizer(source, TEMPLATES[name])
    tiles = GotOcr2ImageProcessorPil(
        size={"height": side, "width": side},
        crop_to_patches=bool(original.get("dynamic_image_size", True)),
        min_patches=original.get("min_dynamic_patch", 1),
        max_patches=original.get("max_dynamic_patch", 12),
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
    )
    per_tile = int((side // vision["patch_size"] * original.get("downsample_ratio", 0.5)) ** 2)
    return pictures_only(InternVLProcessor)(
        tiles, tokenizer, None, image_seq_length=per_tile, chat_template=tokenizer.chat_template
    )


def convert_tokenizer(source: Path, template: Template) -> Any:
    """The tokenizer, with the chat template.

    Raises:
        ValueError: it is missing, not known, or cannot be rebuilt exactly.
    """
    settings = _tokenizer_settings(source)
    special = {role: _content(settings[role]) for role in ROLES if settings.get(role)}
    rebuilt = _tokenizer(source, settings, special)
    missing = [token for token in IMAGE_TOKENS.values() if token not in rebuilt.get_vocab()]
    if missing:
        raise ValueError(f"The tokenizer must have {', '.join(missing)}, and has not. Use a checkpoint of InternVL 2 or later.")
    bos = "bos_token" in special and rebuilt("a").input_ids[0] == rebuilt.convert_tokens_to_ids(special["bos_token"])
    return PreTrainedTokenizerFast(
        tokenizer_object=rebuilt.backend_tokenizer,
        extra_special_tokens=IMAGE_TOKENS | VIDEO_TOKEN,
        chat_template=template.jinja(bos),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **{"pad_token": special.get("eos_token"), **special},
    )


def _tokenizer_settings(source: Path) -> dict[str, Any]:
    path = source / "tokenizer_config.json"
    if not path.is_file():
        raise ValueError(f"INPUT_DIR must hold the tokenizer, and {str(path)!r} is not there. Download the whole checkpoint.")
    return json.loads(path.read_text("utf-8"))


def _tokenizer(source: Path, settings: dict[str, Any], special: dict[str, str]) -> Any:
    added = {int(number): _added(token) for number, token in settings.get("added_tokens_decoder", {}).items()}
    if (source / "vocab.json").is_file() and (source / "merges.txt").is_file():
        tokenizer = Qwen2Tokenizer(str(source / "vocab.json"), str(source / "merges.txt"))
        _add(tokenizer, added)
        return tokenizer
    if (source / "tokenizer.model").is_file():
        return _from_sentencepiece(source / "tokenizer.model", settings, special, added)
    raise ValueError("INPUT_DIR must hold tokenizer.model, or vocab.json and merges.txt. Download the whole checkpoint.")


def _from_sentencepiece(path: Path, settings: dict[str, Any], special: dict[str, str], added: dict[int, AddedToken]) -> Any:
    try:
        from sentencepiece import SentencePieceProcessor
        from transformers.tokenization_utils_sentencepiece import SentencePieceExtractor
    except ImportError as error:
        raise ValueError(
            "Reading tokenizer.model needs sentencepiece. Install it with: pip install 'pyramid-token-pruning[convert]'"
        ) from error
    pieces = SentencePieceProcessor(model_file=str(path))
    vocab, _, merges = SentencePieceExtractor(str(path)).extract(True)
    prefixed = pieces.encode("a", out_type=str)[0].startswith("▁")
    tokenizer = LlamaTokenizer(
        vocab=vocab, merges=merges, add_prefix_space=prefixed, add_bos_token=settings.get("add_bos_token", True), **special
    )
    _add(tokenizer, added)
    for text in PROBES:
        ours, original = tokenizer.encode(text, add_special_tokens=False), pieces.encode(text)
        if ours != original:
            raise ValueError(
                f"The tokenizer cannot be rebuilt exactly: {text!r} becomes {ours}, not {original}. Please report it."
            )
    return tokenizer


def _content(token: Any) -> str:
    return token["content"] if isinstance(token, dict) else token


def _added(token: dict[str, Any]) -> AddedToken:
    return AddedToken(
        token["content"], **{key: token[key] for key in ("lstrip", "rstrip", "normalized", "special") if key in token}
    )


def _add(tokenizer: Any, added: dict[int, AddedToken]) -> None:
    """Add tokens under the numbers they have.

    Raises:
        ValueError: one gets another number.
    """
    for number in sorted(added):
        tokenizer.add_tokens([added[number]])
        if (rebuilt := tokenizer.convert_tokens_to_ids(added[number].content)) != number:
            raise ValueError(f"The tokenizer cannot be rebuilt exactly: {added[number].content!r} is {rebuilt}, not {number}.")
