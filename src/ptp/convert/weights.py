"""The weights: reading them, and what transformers calls each."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from .config import architecture

VISION = {
    r"vision_model\.embeddings\.class_embedding": "vision_tower.embeddings.cls_token",
    r"vision_model\.embeddings\.position_embedding": "vision_tower.embeddings.position_embeddings",
    r"vision_model\.embeddings\.patch_embedding\.(\w+)": r"vision_tower.embeddings.patch_embeddings.projection.\1",
    r"vision_model\.encoder\.layers\.(\d+)\.attn\.proj\.(\w+)": r"vision_tower.encoder.layer.\1.attention.projection_layer.\2",
    r"vision_model\.encoder\.layers\.(\d+)\.attn\.([qk]_norm)\.(\w+)": r"vision_tower.encoder.layer.\1.attention.\2.\3",
    r"vision_model\.encoder\.layers\.(\d+)\.ls([12])": r"vision_tower.encoder.layer.\1.lambda_\2",
    r"vision_model\.encoder\.layers\.(\d+)\.norm1\.(\w+)": r"vision_tower.encoder.layer.\1.layernorm_before.\2",
    r"vision_model\.encoder\.layers\.(\d+)\.norm2\.(\w+)": r"vision_tower.encoder.layer.\1.layernorm_after.\2",
    r"vision_model\.encoder\.layers\.(\d+)\.mlp\.(fc[12])\.(\w+)": r"vision_tower.encoder.layer.\1.mlp.\2.\3",
    r"mlp1\.0\.(\w+)": r"multi_modal_projector.layer_norm.\1",
    r"mlp1\.1\.(\w+)": r"multi_modal_projector.linear_1.\1",
    r"mlp1\.3\.(\w+)": r"multi_modal_projector.linear_2.\1",
}
INTERNLM2 = {
    r"language_model\.model\.tok_embeddings\.weight": "language_model.embed_tokens.weight",
    r"language_model\.model\.norm\.weight": "language_model.norm.weight",
    r"language_model\.model\.layers\.(\d+)\.attention\.wo\.weight": r"language_model.layers.\1.self_attn.o_proj.weight",
    r"language_model\.model\.layers\.(\d+)\.feed_forward\.w1\.weight": r"language_model.layers.\1.mlp.gate_proj.weight",
    r"language_model\.model\.layers\.(\d+)\.feed_forward\.w2\.weight": r"language_model.layers.\1.mlp.down_proj.weight",
    r"language_model\.model\.layers\.(\d+)\.feed_forward\.w3\.weight": r"language_model.layers.\1.mlp.up_proj.weight",
    r"language_model\.model\.layers\.(\d+)\.attention_norm\.weight": r"language_model.layers.\1.input_layernorm.weight",
    r"language_model\.model\.layers\.(\d+)\.ffn_norm\.weight": r"language_model.layers.\1.post_attention_layernorm.weight",
}
OTHERS = {r"language_model\.model\.(.+)": r"language_model.\1"}
"""The authors' names -> those inside `model.` in transformers; the fused projections apart."""
HEADS = ("language_model.output.weight", "language_model.lm_head.weight")
VISION_QKV = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.attn\.qkv\.(weight|bias)")
TEXT_QKV = re.compile(r"language_model\.model\.layers\.(\d+)\.attention\.wqkv\.weight")
RECOMPUTED = re.compile(r".*\.rotary_emb\.inv_freq")


def read_weights(source: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of every weight of a checkpoint, one file open at a time.

    Raises:
        ValueError: there are none, or a file holds more than tensors.
    """
    files = sorted(source.glob("*.safetensors")) or sorted(source.glob("pytorch_model*.bin"))
    if not files:
        raise ValueError(f"INPUT_DIR must hold *.safetensors or pytorch_model*.bin, and {str(source)!r} has neither.")
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as weights:
                for name in weights.keys():  # noqa: SIM118 (not a dict)
                    yield name, weights.get_tensor(name)
        else:
            try:
                loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            except Exception as error:
                reason = str(error).split("\n")[0]
                raise ValueError(f"{file.name!r} cannot be read as plain weights ({reason}). Use safetensors.") from error
            yield from loaded.items()


def convert_weights(weights: Iterator[tuple[str, Tensor]], model: nn.Module, original: dict[str, Any]) -> dict[str, Tensor]:
    """The state of `model` (built on the meta device), every shape checked.

    Raises:
        ValueError: a weight is missing, left over or of another shape.
    """
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    tied = original["llm_config"].get("tie_word_embeddings", False)
    found: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in weights:
        if RECOMPUTED.fullmatch(name) or (tied and name in HEADS):
            continue
        parts = _rename(name, tensor, original)
        unknown += [] if parts else [name]
        found.update(parts)
    if tied:
        found["lm_head.weight"] = found.get("model.language_model.embed_tokens.weight", torch.empty(0))
    wrong = [
        f"{n} is {tuple(t.shape)}, not {tuple(expected[n])}"
        for n, t in found.items()
        if n in expected and t.shape != expected[n]
    ]
    problems = {
        "not known": unknown + sorted(found.keys() - expected.keys()),
        "missing": sorted(expected.keys() - found.keys()),
        "of another shape": wrong,
    }
    for problem, names in problems.items():
        if names:
            shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            raise ValueError(f"Weights are {problem}: {shown}. The checkpoint is incomplete, or of another architecture.")
    return found


def _rename(name: str, tensor: Tensor, original: dict[str, Any]) -> dict[str, Tensor]:
    """What one weight becomes; nothing where its name is not known."""
    if match := VISION_QKV.fullmatch(name):
        prefix = f"model.vision_tower.encoder.layer.{match[1]}.attention"
        return {f"{prefix}.{part}_proj.{match[2]}": piece.clone() for part, piece in zip("qkv", tensor.chunk(3), strict=True)}
    fused = architecture(original) == "InternLM2ForCausalLM"
    if fused and (match := TEXT_QKV.fullmatch(name)):
        prefix = f"model.language_model.layers.{match[1]}.self_attn"
        return {f"{prefix}.{part}_proj.weight": piece for part, piece in split_wqkv(tensor, original["llm_config"]).items()}
    if name in HEADS:
        return {"lm_head.weight": tensor}
    for pattern, new in (VISION | (INTERNLM2 if fused else OTHERS)).items():
        if re.fullmatch(pattern, name):
            return {"model." + re.sub(pattern, new, name): tensor}
    return {}


def split_wqkv(fused: Tensor, text: dict[str, Any]) -> dict[str, Tensor]:
    """Queries, keys and values of InternLM2's one weight: for each key head its queries, then the key, then the value.

    Args:
        fused: ((heads + 2 * key heads) * width, hidden).
        text: The language model's configuration.
    """
    heads, groups = text["num_attention_heads"], text["num_key_value_heads"]
    parts = fused.view(groups, heads // groups + 2, -1, fused.shape[-1])
    split = {"q": parts[:, :-2], "k": parts[:, -2:-1], "v": parts[:, -1:]}
    return {name: part.reshape(-1, fused.shape[-1]).clone() for name, part in split.items()}
