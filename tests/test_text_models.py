"""Text models are taken by what they have and by how they attend, not by their names; what attends otherwise is refused."""

import types

import pytest
import torch
from conftest import footprint, small_model, tokenizer
from transformers import GPT2Config, GPT2Model, LlamaConfig, LlamaModel, Olmo2Config, Olmo2Model

import ptp
from ptp.adapters import text_check

SIZES = dict(
    hidden_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96, vocab_size=64
)


def attending_otherwise(change):
    """A model whose second layer attends in another way: `change(module, the attention's own forward)` is its forward."""
    model = small_model.__wrapped__("llama")
    attention = model.model.language_model.layers[1].self_attn
    kind = type(attention)
    own = {"forward": lambda self, *a, **k: change(self, kind.forward, *a, **k), "__module__": kind.__module__}
    attention.__class__ = type("Changed", (kind,), own)
    return model


def longer_queries(module, forward, *args, **kwargs):
    twice = types.SimpleNamespace(**vars(module), q_proj=lambda x: 2 * module.q_proj(x), k_proj=module.k_proj)
    twice.v_proj, twice.o_proj = module.v_proj, module.o_proj
    return forward(twice, *args, **kwargs)


def mixed_heads(module, forward, *args, **kwargs):
    twin = types.SimpleNamespace(**vars(module), k_proj=module.k_proj, v_proj=module.v_proj, o_proj=module.o_proj)
    twin.q_proj = lambda x: module.q_proj(x).unflatten(-1, (-1, 4)).transpose(-1, -2).flatten(-2)
    return forward(twin, *args, **kwargs)


def with_sinks(module, forward, *args, **kwargs):
    output, weights = forward(module, *args, **kwargs)
    return output, None if weights is None else 0.7 * weights


def without_weights(module, forward, *args, **kwargs):
    return forward(module, *args, **kwargs)[0], None


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (longer_queries, r"its scores are 2 times the products"),
        (mixed_heads, "queries or keys are normed, rotated or gated in another way"),
        (with_sinks, r"they sum to 0\.7 to 0\.7 and not to 1"),
        (without_weights, "does not tell its attention weights"),
    ],
)
def test_what_attends_otherwise_is_refused(change, problem):
    """Only the layer of the other kind shows it."""
    model = attending_otherwise(change)
    before = footprint(model)
    with pytest.raises(
        ptp.UnsupportedModelError, match=rf"InternVL with text model 'llama'.*of layer 1 \(Changed\).*{problem}"
    ):
        ptp.attach(model, ptp.PyramidPruner(), tokenizer())
    assert footprint(model) == before


@pytest.mark.parametrize(
    ("made", "missing"),
    [
        (lambda: Olmo2Model(Olmo2Config(**SIZES)), "'olmo2' .* no input_layernorm in layer 0"),
        (lambda: GPT2Model(GPT2Config(n_embd=48, n_layer=1, n_head=2, vocab_size=64)), "'gpt2' .* no layers"),
    ],
)
def test_what_has_other_parts_is_refused(made, missing):
    with pytest.raises(ptp.UnsupportedModelError, match=f"F with text model {missing}"):
        text_check.check_parts(made(), "F")


def test_windows_are_found_where_no_layer_is_named():
    config = LlamaConfig(**SIZES)
    config.sliding_window = 4
    with pytest.raises(ptp.UnsupportedModelError, match="Sliding-window attention"):
        ptp.adapters.text.TextModel(LlamaModel(config), "F")


def test_a_model_is_checked_once_and_left_as_it_was(monkeypatch):
    model = small_model.__wrapped__("qwen3")
    before, runs = footprint(model), []
    monkeypatch.setattr(text_check, "_listen", lambda *args, own=text_check._listen: runs.append(1) or own(*args))
    for _ in range(2):
        ptp.attach(model, ptp.PyramidPruner(), tokenizer()).remove()
    assert len(runs) == 1 and footprint(model) == before
    assert model.config.text_config._attn_implementation == "sdpa"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_rounding_is_no_difference(dtype):
    ptp.attach(small_model.__wrapped__("phi3").to(dtype), ptp.PyramidPruner(), tokenizer()).remove()
