"""What Gemma 4's checkpoints have beside the small model's: other ways to share keys, other masks, experts; and last tokens."""

from dataclasses import replace

import pytest
import torch
from families import FAMILIES, QUESTION, encode, model_of, picture, prune, pruner
from masking import assert_dropping_equals_masking
from transformers import DynamicCache

import ptp
from ptp import Reads, TextProbe
from ptp.adapters import adapter_for
from ptp.testing import small_model, small_processor
from ptp.testing.subject import Subject, by_chat_template
from ptp.testing.text_oracles import relevance
from test_reads import LAYER, given

GEMMA4 = FAMILIES["gemma4"]
LIKE = {
    "E2B": dict(use_bidirectional_attention=None, attention_k_eq_v=False),  # layers share, pictures are seen causally
    "31B": dict(num_kv_shared_layers=0, hidden_size_per_layer_input=0),
    "26B-A4B": dict(
        num_kv_shared_layers=0, hidden_size_per_layer_input=0, enable_moe_block=True, num_experts=4, top_k_experts=2,
        moe_intermediate_size=32,
    ),
}  # fmt: skip
"""Settings of the language models, as far as the published configurations differ from the small one in kind."""


def like(name: str):
    """The family with a language model of another kind."""

    def config(scale):
        made = GEMMA4.config(scale).to_dict()
        text = {key: value for key, value in made["text_config"].items() if key != "per_layer_config"}
        wider = {"global_head_dim": 2 * scale.text["head_dim"], "num_global_key_value_heads": 1}
        return type(GEMMA4.config(scale))(**made | {"text_config": text | wider | LIKE[name]})

    return replace(GEMMA4, name=f"gemma4-{name}", config=config)


@pytest.mark.parametrize("name", LIKE)
@pytest.mark.parametrize("method", ["pyramid", "pyramid at 2", "pyramid at 3", "pyramiddrop", "sparsevlm"])
def test_dropping_equals_masking(monkeypatch, name, method):
    model, inputs = model_of(like(name)), encode(GEMMA4, ([picture()], QUESTION))
    shared = adapter_for(model).text.shares_from
    assert shared == (2 if name == "E2B" else None)
    assert_dropping_equals_masking(monkeypatch, model, inputs, pruner(method))


@pytest.mark.parametrize("name", LIKE)
def test_relevance_is_what_the_maps_say(name):
    model, processor = small_model(like(name)), small_processor(GEMMA4)
    subject = Subject(model, processor, by_chat_template(processor), (picture(),), (pruner(),), 1e-4)
    assert all(check.error <= check.limit for check in relevance(subject))


@pytest.mark.parametrize("probe", [TextProbe("behind", "here"), TextProbe("behind", "here", rotary=False), None])
def test_keys_of_a_layer_that_shares_are_those_that_it_looks_at(probe):
    """Layer 2 looks at the keys of layer 0, the last of its type below: at their positions, or turned back."""
    model, inputs = model_of(GEMMA4), encode(GEMMA4, ([picture()], QUESTION))
    first, cache = model.model.language_model.layers[0], DynamicCache()
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True, past_key_values=cache).hidden_states[0]
        keys = first.self_attn.k_proj(first.input_layernorm(states))[0]
        keys = first.self_attn.k_norm(keys.unflatten(-1, (-1, first.self_attn.head_dim))).flatten(1)
    if probe is not None and probe.rotary:
        keys = cache.layers[0].keys[0].transpose(0, 1).flatten(1)
    assert LAYER == adapter_for(model).text.shares_from == 2
    ((found, text),) = given(model, inputs, Reads(probe=probe), lambda p: (p.keys, None if probe is None else p.text_keys))
    image = (inputs["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0]
    torch.testing.assert_close(found, keys[image], atol=1e-5, rtol=1e-4)
    if text is not None:
        torch.testing.assert_close(text, keys[image[-1] + 1 :], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
@pytest.mark.parametrize("name", ["gemma4", "31B"])
@pytest.mark.parametrize("last", [1, 3, 40])
def test_the_last_logits_are_the_last_of_all(name, layer, last):
    """The model itself goes on with the last token only where layers share keys and values; 40 reach into the picture."""
    model, method = model_of(GEMMA4 if name == "gemma4" else like(name)), pruner(prune_layer=layer, keep_ratio=0.7)
    for prompts in ([([picture()], QUESTION)], [([picture()], QUESTION), ([], "Hello")]):
        inputs = encode(GEMMA4, *prompts)
        whole, _ = prune(model, inputs, method)
        some, _ = prune(model, inputs, method, logits_to_keep=last)
        assert some.logits.shape[1] == last
        torch.testing.assert_close(some.logits, whole.logits[:, -last:], atol=1e-4, rtol=0)


def test_padding_on_the_right_is_not_taken_for_the_last_token():
    model, inputs = model_of(GEMMA4), encode(GEMMA4, ([picture()], QUESTION), ([picture(1)], "Read."))
    shift = int(inputs["attention_mask"][1].argmax())
    pads = {name: value.clone() for name, value in inputs.items()}
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        pads[name][1] = inputs[name][1].roll(-shift)
    method = pruner(prune_layer=1)
    whole, _ = prune(model, pads, method)
    last, _ = prune(model, pads, method, logits_to_keep=1)
    torch.testing.assert_close(last.logits, whole.logits[:, -1:], atol=1e-4, rtol=0)


def test_models_that_see_what_follows_are_refused(monkeypatch):
    model = model_of(GEMMA4)
    monkeypatch.setattr(model.config.text_config, "use_bidirectional_attention", "all")
    with pytest.raises(ptp.UnsupportedModelError, match="sees what follows"):
        ptp.attach(model, pruner())


def test_places_that_are_no_raster_are_refused():
    model, inputs = model_of(GEMMA4), encode(GEMMA4, ([picture()], QUESTION))
    places = inputs["image_position_ids"].clone()
    places[:, [0, 1]] = places[:, [1, 0]]
    with torch.no_grad(), pruner(alpha=0)(model), pytest.raises(ValueError, match="must be a raster of patches"):
        model(**inputs | {"image_position_ids": places})
