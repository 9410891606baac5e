"""Small models with random weights, prompts, and a reference that never shortens anything."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler is quiet

from functools import cache, lru_cache

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import InternVLConfig, InternVLForConditionalGeneration
from transformers.models.internvl.processing_internvl import InternVLProcessor

from ptp.loader import pictures_only
from ptp.testing import FAMILIES, Family
from ptp.testing.subject import footprint as footprint  # tests take it from here
from ptp.tiny.drawing import draw_scene
from ptp.tiny.model import IMAGE_TOKEN, build_image_processor, build_tokenizer

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))

TEXT_MODELS: dict[str, dict] = {
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "llama": {},
    "mistral": {"sliding_window": None},
    "phi3": {},
    "ministral3": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "llama_4_scaling_beta": 0.5,
                                       "original_max_position_embeddings": 16}},  # queries grow from token 16 on
    "granite": {"attention_multiplier": 0.2},
}  # fmt: skip
"""Text models, and what their configurations need to be small."""
TEXT_LAYERS = 4


@lru_cache(maxsize=1)
def tokenizer():
    return build_tokenizer()


@lru_cache(maxsize=1)
def processor():
    return pictures_only(InternVLProcessor)(
        build_image_processor(), tokenizer(), None, image_seq_length=16, chat_template=tokenizer().chat_template
    )


@cache
def small_model(text: str = "qwen2", attention: str = "sdpa", **vision) -> InternVLForConditionalGeneration:
    """A random InternVL whose attention is far from uniform; the same weights under every attention."""
    eos, pad = tokenizer().convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    config = InternVLConfig(
        vision_config=dict(
            hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, attention_bias=True,
            image_size=[112, 112], patch_size=[14, 14], layer_scale_init_value=1.0, **vision,
        ),
        text_config=dict(
            model_type=text, hidden_size=48, num_hidden_layers=TEXT_LAYERS, num_attention_heads=4, num_key_value_heads=2,
            head_dim=12, intermediate_size=96, vocab_size=len(tokenizer()), max_position_embeddings=2048,
            eos_token_id=eos, pad_token_id=pad, bos_token_id=None, **TEXT_MODELS[text],
        ),
        image_token_id=tokenizer().convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=16,
        tie_word_embeddings=False,
        attn_implementation=attention,
    )  # fmt: skip
    torch.manual_seed(0)
    model = InternVLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
            if "position_embeddings" in name or "cls_token" in name:
                torch.nn.init.normal_(parameter, std=0.5)
            if "q_proj.weight" in name or "k_proj.weight" in name:
                parameter.mul_(2.0)
    model.generation_config.eos_token_id = None  # random answers have no end
    model.generation_config.pad_token_id = pad
    return model


def picture(seed: int, grid: tuple[int, int]):
    return draw_scene(np.random.default_rng(seed), grid).image


def prompt(*pictures, question: str = "What is on the red circle?") -> list[dict]:
    """One user turn: the pictures, then the question."""
    parts = [{"type": "image", "image": image} for image in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def encode(*conversations) -> dict[str, Tensor]:
    """Model inputs of one conversation or a left-padded batch of several."""
    return dict(
        processor().apply_chat_template(
            list(conversations), add_generation_prompt=True, tokenize=True, return_dict=True,
            processor_kwargs={"padding": True, "return_tensors": "pt"},
        )
    )  # fmt: skip


def embeddings(model, inputs) -> Tensor:
    """(B, S, width) inputs of layer 0, pictures filled in."""
    states = model.get_input_embeddings()(inputs["input_ids"])
    if "pixel_values" not in inputs:
        return states
    features = model.model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output
    image = (inputs["input_ids"] == model.config.image_token_id)[..., None]
    return states.masked_scatter(image, features.to(states.dtype))


def masked_logits(model, states: Tensor, dropped: Tensor, layer: int, prompt_length: int | None = None) -> Tensor:
    """Logits of the full sequence in which nothing attends to `dropped` (B, S) from `layer` on. Nothing is removed.

    Tokens after `prompt_length` were decoded from compacted caches: they see the dropped tokens in no layer.
    """
    language = model.model.language_model
    length = states.shape[1]
    positions = torch.arange(length)[None].expand(len(states), -1)
    rotary = language.rotary_emb(states, positions)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    for number, decoder in enumerate(language.layers):
        blind = torch.full((length,), number >= layer)
        blind[prompt_length or length :] = True
        allowed = causal & ~(dropped[:, None] & blind[:, None])
        allowed = allowed | torch.eye(length, dtype=torch.bool)  # no empty rows: what they hold is never read
        mask = torch.zeros(allowed.shape, dtype=states.dtype).masked_fill(~allowed, torch.finfo(states.dtype).min)[:, None]
        states = decoder(states, attention_mask=mask, position_embeddings=rotary, position_ids=positions)
    return model.lm_head(language.norm(states))


def dropped_tokens(trace, inputs) -> Tensor:
    """(B, S) bool: the tokens a trace says were dropped."""
    dropped = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    for image in trace.images:
        gone = torch.ones(image.num_tokens, dtype=torch.bool)
        gone[image.kept] = False
        dropped[image.row, image.positions[gone]] = True
    return dropped


@pytest.fixture(params=list(TEXT_MODELS))
def model(request):
    return small_model(request.param)


@pytest.fixture(params=list(FAMILIES))
def family(request) -> Family:
    return FAMILIES[request.param]
