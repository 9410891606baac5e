"""The architecture, tokenizer and processor files of ``ptp-tiny``: an ordinary, small Hugging Face InternVL."""

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    GenerationConfig,
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from ..loader import save_internvl_processor
from .drawing import COLORS, LABELS, SHAPES, TAG, TAG_COLORS, TILE
from .tasks import WORDS, every_question

PATCH = 14
TOKENS_PER_TILE = (TILE // PATCH // 2) ** 2
IMAGE_TOKEN, START_TOKEN, END_TOKEN = "<IMG_CONTEXT>", "<img>", "</img>"
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", START_TOKEN, END_TOKEN, IMAGE_TOKEN, "<video>")
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{ '<IMG_CONTEXT>\\n' }}{%- elif part['type'] == 'text' -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the task vocabulary: any text can be encoded, task words are one token each."""
    words = [*COLORS, *TAG_COLORS, *SHAPES, TAG, "table", "yes", "no", *LABELS, *" ".join(WORDS["relation"]).split()]
    corpus = [*words, *(f" {word}" for word in words)] * 1000
    corpus += every_question()
    corpus += ["user\n", "assistant\n", "system\n"] * 50
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=512, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
        extra_special_tokens={
            "start_image_token": START_TOKEN,
            "end_image_token": END_TOKEN,
            "context_image_token": IMAGE_TOKEN,
            "video_token": "<video>",
        },
    )


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The id of one token."""
    found = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(found, int)  # a list only for a list
    return found


def build_config(tokenizer: PreTrainedTokenizerFast) -> InternVLConfig:
    """An InternVL with a 6-layer, 128-wide vision encoder and a 6-layer, 192-wide Qwen2 text model."""
    eos, pad, image = (token_id(tokenizer, token) for token in ("<|im_end|>", "<|endoftext|>", IMAGE_TOKEN))
    return InternVLConfig(
        vision_config=dict(
            hidden_size=128,
            num_hidden_layers=6,
            num_attention_heads=4,
            intermediate_size=512,
            attention_bias=True,
            image_size=[TILE, TILE],
            patch_size=[PATCH, PATCH],
            layer_scale_init_value=1.0,
            use_mean_pooling=True,
        ),
        text_config=dict(
            model_type="qwen2",
            hidden_size=192,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=2,
            intermediate_size=512,
            vocab_size=len(tokenizer),
            max_position_embeddings=4096,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},  # as Qwen2's own
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=eos,
            pad_token_id=pad,
        ),
        image_token_id=image,
        image_seq_length=TOKENS_PER_TILE,
        downsample_ratio=0.5,
        tie_word_embeddings=True,
    )


def sincos_positions(side: int, width: int) -> torch.Tensor:
    """(1, 1 + side * side, width) fixed 2-D sine-cosine embeddings, zero for [CLS]."""
    frequencies = 1.0 / 100 ** (torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows = waves[:, None].expand(side, side, -1)
    columns = waves[None].expand(side, side, -1)
    grid = torch.cat([rows, columns], dim=-1).reshape(side * side, width)
    return torch.cat([torch.zeros(1, width), grid])[None]


def build_model(config: InternVLConfig, seed: int) -> InternVLForConditionalGeneration:
    """A fresh model with an initialisation that a small model learns from in minutes.

    Xavier weights everywhere and sine-cosine positions of amplitude 0.5. With the usual N(0, 0.02) attention starts out
    uniform at this width: then the encoder does not find the glyphs, nor the language model the signs, within hours.
    """
    torch.manual_seed(seed)
    model = InternVLForConditionalGeneration(config)
    vision = model.model.vision_tower
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        # Last: the output layer is tied to the embeddings.
        nn.init.normal_(model.lm_head.weight, std=config.get_text_config().hidden_size ** -0.5)
        projection = vision.embeddings.patch_embeddings.projection
        nn.init.xavier_uniform_(projection.weight.view(projection.out_channels, -1))
        vision.embeddings.position_embeddings.copy_(0.5 * sincos_positions(TILE // PATCH, vision.config.hidden_size))
        nn.init.normal_(vision.embeddings.cls_token, std=0.5)
    return model


def build_image_processor() -> GotOcr2ImageProcessorPil:
    """InternVL's dynamic tiling at 112 px: 1 to 12 tiles plus a thumbnail, no torchvision needed."""
    return GotOcr2ImageProcessorPil(
        size={"height": TILE, "width": TILE},
        crop_to_patches=True,
        min_patches=1,
        max_patches=12,
        image_mean=list(IMAGE_MEAN),
        image_std=list(IMAGE_STD),
    )


def save(model: InternVLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write a complete Hugging Face checkpoint: half-precision weights, configs, tokenizer, processor."""
    eos, pad = token_id(tokenizer, "<|im_end|>"), token_id(tokenizer, "<|endoftext|>")
    model.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=pad)
    dtype = model.dtype
    weights: nn.Module = model  # transformers types .to and .half for its own dispatch only
    weights.half()
    model.save_pretrained(directory)
    weights.to(dtype)
    save_internvl_processor(build_image_processor(), tokenizer, TOKENS_PER_TILE, directory)
