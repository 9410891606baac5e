"""What people do with their models, of every family: beams, pieces, quantised weights, compilation, `ptp run`."""

import copy

import accelerate
import bitsandbytes
import peft
import pytest
import torch
import torchao
from conftest import footprint
from families import FAMILIES, QUESTION, encode, model_of, picture, processor_of, prune, pruner, tokenizer
from masking import assert_dropping_equals_masking
from transformers import BitsAndBytesConfig

import ptp
from ptp.adapters import adapter_for
from ptp.bench.measure import compare
from ptp.report.overlay import overlay_uris
from ptp.tiny.model import CHAT_TEMPLATE


def test_beams_share_the_pruned_pictures(family):
    model, method = model_of(family), pruner()
    prompts = [([picture(1), picture()], "Read it."), ([picture(2)], QUESTION)]
    with method(model, tokenizer()) as trace:
        together = model.generate(**encode(family, *prompts), max_new_tokens=3, num_beams=2, do_sample=False)
        assert [image.row for image in trace.images] == [0, 0, 1, 1, 2, 3]
        for row, one in enumerate(prompts):
            alone = model.generate(**encode(family, one), max_new_tokens=3, num_beams=2, do_sample=False)
            assert together[row, -3:].tolist() == alone[0, -3:].tolist()


def test_ptp_run_takes_any_family(family):
    """Two answers and two times, from a picture and a question through the processor's chat template."""
    processor = copy.copy(processor_of(family))
    processor.chat_template = CHAT_TEMPLATE.replace("<IMG_CONTEXT>", family.image)
    found = compare(model_of(family), processor, [picture()], QUESTION, pruner(), max_new_tokens=2, rounds=1)
    assert len(found.trace.images) == 1 and found.trace.visual_tokens[1] == round(0.3 * found.trace.visual_tokens[0])
    drawn = overlay_uris(picture(), found.trace.images[0])
    assert {"Kept tokens", "Tile budgets", "Fused"} <= {panel["title"] for panel in drawn}
    assert all((panel["thumbnail"] is None) or found.trace.images[0].layout.thumbnail for panel in drawn)


def test_a_model_in_pieces_prunes_the_same(family):
    """Weights held elsewhere and brought in module by module, as device_map does when a model does not fit.

    Of Idefics3, GLM, LFM2-VL and MiniCPM-V only the language model's: transformers' encoders of these look at a weight that is
    not there, pruned or not. Of Gemma 4 only the decoder layers': its embeddings are looked at from outside, too.
    """
    whole, inputs = model_of(family), encode(family, ([picture()], QUESTION))
    expected, trace = prune(whole, inputs, pruner(prune_layer=2))
    pieces = copy.deepcopy(whole)
    text = adapter_for(pieces).text
    looks = family.name.startswith(("idefics3", "glm", "lfm2", "minicpm"))
    apart = text.model if looks else text.layers if family.name == "gemma4" else pieces
    accelerate.cpu_offload(apart, execution_device=torch.device("cpu"))
    output, other = prune(pieces, inputs, pruner(prune_layer=2))
    assert other.images[0].kept.tolist() == trace.images[0].kept.tolist()
    torch.testing.assert_close(output.logits, expected.logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layer", [0, 2])
def test_a_model_that_is_its_own_assistant_gives_the_greedy_answer(family, layer):
    """`generate` keeps the pictures from an assistant, so it guesses blindly and is corrected."""
    model, inputs = model_of(family), encode(family, ([picture()], QUESTION))
    with pruner(prune_layer=layer)(model, tokenizer()) as trace:
        alone = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        kept = trace.images[0].kept.tolist()
        if model._is_stateful:  # a state cannot be taken back to before a wrong guess; LFM2's, of three tokens, can
            with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
                model.generate(**inputs, max_new_tokens=6, do_sample=False, assistant_model=model)
            return
        helped = model.generate(**inputs, max_new_tokens=6, do_sample=False, assistant_model=model)
        assert trace.images[0].kept.tolist() == kept
    assert torch.equal(alone, helped)


@pytest.mark.parametrize("layer", [0, 2])
def test_a_peft_model_is_pruned_like_its_merged_weights(family, layer):
    """LoRA on the language model: attach to what peft hands out, generate, detach; nothing is left."""
    model, inputs = copy.deepcopy(model_of(family)), encode(family, ([picture()], QUESTION))
    inside = set(adapter_for(model).text.model.modules())
    ends = ("q_proj", "k_proj", "v_proj")
    names = [name for name, module in model.named_modules() if module in inside and name.endswith(ends)]
    config = peft.LoraConfig(r=4, target_modules=names, init_lora_weights=False)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, config)
    method = pruner(prune_layer=layer)
    before = footprint(adapted)
    with torch.no_grad(), method(adapted, tokenizer()) as trace:
        tokens = adapted.generate(**inputs, max_new_tokens=4, do_sample=False)
        logits = adapted(**inputs).logits
    kept = trace.images[0].kept.tolist()
    assert footprint(adapted) == before
    merged = adapted.merge_and_unload()
    with torch.no_grad(), method(merged, tokenizer()) as trace:
        assert torch.equal(merged.generate(**inputs, max_new_tokens=4, do_sample=False), tokens)
        torch.testing.assert_close(merged(**inputs).logits, logits, atol=1e-4, rtol=0)
    assert trace.images[0].kept.tolist() == kept


def test_adapters_that_add_tokens_are_refused():
    family = FAMILIES["internvl"]
    config = peft.PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3, num_layers=4, token_dim=48, num_attention_heads=4
    )
    adapted = peft.get_peft_model(copy.deepcopy(model_of(family)), config)
    with pytest.raises(ptp.UnsupportedModelError, match="PromptTuningConfig cannot be pruned: it puts tokens of its own"):
        ptp.attach(adapted, pruner(), tokenizer())


@pytest.mark.parametrize("layer", [0, 2])
def test_quantised_weights_are_pruned_exactly(monkeypatch, family, layer):
    """Eight-bit linear layers in the language model: dropping is still masking."""
    model, inputs = copy.deepcopy(model_of(family)), encode(family, ([picture()], QUESTION))
    torchao.quantization.quantize_(adapter_for(model).text.model, torchao.quantization.Int8WeightOnlyConfig())
    method = pruner(prune_layer=layer)
    assert_dropping_equals_masking(monkeypatch, model, inputs, method)


@pytest.mark.parametrize("layer", [0, 2])
def test_a_checkpoint_loaded_in_four_bits_is_pruned_exactly(monkeypatch, tmp_path, family, layer):
    """bitsandbytes' NF4 in the language model, the projector and the encoder, as from_pretrained loads them."""
    whole = model_of(family, wider=True)
    whole.save_pretrained(tmp_path)
    settings = dict(bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    whole_32 = ["lm_head", "in_proj_a", "in_proj_b"]  # its CPU kernel takes 32 rows at a time; these have one for each head
    four = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=whole_32, **settings)
    model = type(whole).from_pretrained(tmp_path, quantization_config=four, dtype=torch.float32, device_map="cpu")
    assert any(isinstance(module, bitsandbytes.nn.Linear4bit) for module in adapter_for(model).vision.modules())
    inputs = encode(family, ([picture()], QUESTION))
    # Its CPU kernel rounds to bfloat16: where float32 differs by 1e-6, a number may be rounded the other way.
    assert_dropping_equals_masking(monkeypatch, model, inputs, pruner(prune_layer=layer), atol=1e-2)


@pytest.fixture
def compiler():
    """A fresh compiler; it says nothing and starts afresh for whoever comes next."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_compiled_model_is_pruned_and_decodes_the_same(family, when, compiler):
    """Language model and encoder compiled before the pruner is attached, and used; or after."""
    model, inputs = copy.deepcopy(model_of(family)), encode(family, ([picture()], QUESTION))
    method, adapter = pruner(prune_layer=2), adapter_for(model)
    with method(model, tokenizer()) as trace:
        expected = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    kept = trace.images[0].kept.tolist()
    if when == "before":
        adapter.text.model.compile(backend="eager")
        adapter.vision.compile(backend="eager")
        model.generate(**inputs, max_new_tokens=3, do_sample=False)
    with method(model, tokenizer()) as trace:
        if when == "after":
            adapter.text.model.compile(backend="eager")
            adapter.vision.compile(backend="eager")
        assert model.generate(**inputs, max_new_tokens=4, do_sample=False).tolist() == expected.tolist()
        assert trace.images[0].kept.tolist() == kept


def test_a_model_compiled_as_a_whole_is_refused(compiler):
    family = FAMILIES["internvl"]
    model, inputs = copy.deepcopy(model_of(family)), encode(family, ([picture()], QUESTION))
    with pytest.raises(ptp.UnsupportedModelError, match="compiled as a whole"):
        ptp.attach(torch.compile(model, backend="eager"), pruner(), tokenizer())
    with torch.no_grad(), pruner()(model, tokenizer()):
        model.compile(backend="eager")
        with pytest.raises(ptp.UnsupportedModelError, match="compiled as a whole"):
            model(**inputs)
    with pytest.raises(ptp.UnsupportedModelError, match="compiled as a whole"):
        ptp.attach(model, pruner(), tokenizer())


@pytest.mark.parametrize("part", ["model", "core"])
def test_a_compiled_forward_is_refused(part, compiler):
    """model.forward = torch.compile(model.forward), before the pruner is attached or after."""
    family = FAMILIES["internvl"]
    model, inputs = copy.deepcopy(model_of(family)), encode(family, ([picture()], QUESTION))
    module = model if part == "model" else model.model
    with torch.no_grad(), pruner()(model, tokenizer()):
        module.forward = torch.compile(module.forward, backend="eager")
        with pytest.raises(ptp.UnsupportedModelError, match=r"compiled as a whole.*language_model\.compile"):
            model(**inputs)
    with pytest.raises(ptp.UnsupportedModelError, match="compiled as a whole"):
        ptp.attach(model, pruner(), tokenizer())


def test_a_compiled_forward_of_the_language_model_prunes_and_decodes_the_same(compiler):
    family = FAMILIES["internvl"]
    model, inputs = copy.deepcopy(model_of(family)), encode(family, ([picture()], QUESTION))
    with pruner(prune_layer=2)(model, tokenizer()) as trace:
        expected = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        kept = trace.images[0].kept.tolist()
    language = model.model.language_model
    language.forward = torch.compile(language.forward, backend="eager")
    model.generate(**inputs, max_new_tokens=3, do_sample=False)
    with pruner(prune_layer=2)(model, tokenizer()) as trace:
        assert model.generate(**inputs, max_new_tokens=4, do_sample=False).tolist() == expected.tolist()
        assert trace.images[0].kept.tolist() == kept
