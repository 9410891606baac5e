"""The seven oracles of the design for every model family, and the budgets of every method and setting."""

import contextlib
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import footprint
from families import FAMILIES, QUESTION, encode, map_below, model_of, photo, picture, places_of, prune, pruner, tokenizer
from masking import assert_dropping_equals_masking, blinded, drops, extended, merged, watch
from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

from ptp.adapters import adapter_for
from ptp.methods import METHODS
from ptp.pictures import MAX_STRETCH, MIN_SIDE
from ptp.testing.saliency import token_saliency


def with_experts(scale):
    """The configuration of a Qwen3-VL as that of its mixture of experts."""
    settings = FAMILIES["qwen3-vl"].config(scale).to_dict()
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    text = settings["text_config"] | experts | {"model_type": "qwen3_vl_moe_text"}
    vision = settings["vision_config"] | {"model_type": "qwen3_vl_moe"}
    ids = {name: value for name, value in settings.items() if name.endswith("_token_id")}
    return Qwen3VLMoeConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)


@pytest.fixture(params=[*METHODS, "pyramid at 2", "pyramid at 3"])
def method(request):
    return pruner(request.param)


@pytest.mark.parametrize("size", [(MIN_SIDE, MIN_SIDE * MAX_STRETCH), (MIN_SIDE * MAX_STRETCH, MIN_SIDE), (MIN_SIDE, MIN_SIDE)])
def test_every_shape_that_is_opened_is_pruned(family, size):
    inputs = encode(family, ([photo(0, size)], QUESTION))
    if family.name == "mistral3" and size == (MIN_SIDE, MIN_SIDE):
        with pytest.raises(RuntimeError, match="split_sizes"):  # a picture of one token is too small for transformers itself
            model_of(family)(**inputs)
        return
    for name in ("pyramid", "hired", "fastv"):
        _, trace = prune(model_of(family), inputs, pruner(name))
        (image,) = trace.images
        assert len(image.kept) == sum(image.budgets) == max(1, round(0.3 * image.num_tokens))
        assert bool(image.boxes.isfinite().all())


# 1. Mask equivalence


def test_dropping_equals_masking(monkeypatch, family, method):
    model, inputs = model_of(family), encode(family, ([picture()], QUESTION))
    assert_dropping_equals_masking(monkeypatch, model, inputs, method)


@pytest.mark.parametrize("layer", [0, 2])
def test_dropping_equals_masking_under_eager(monkeypatch, family, layer):
    method = pruner(prune_layer=layer)
    model, inputs = model_of(family, "eager"), encode(family, ([picture()], QUESTION))
    trace = assert_dropping_equals_masking(monkeypatch, model, inputs, method)
    _, other = prune(model_of(family), inputs, method)
    assert other.images[0].kept.tolist() == trace.images[0].kept.tolist()


@pytest.mark.parametrize("layer", [0, 2])
def test_dropping_equals_masking_with_experts(monkeypatch, layer):
    """Qwen3-VL with a mixture of experts: what is routed is what is kept, and DeepStack finds its tokens."""
    family = FAMILIES["qwen3-vl"]
    model = model_of(replace(family, name="qwen3-vl-moe", model_class=Qwen3VLMoeForConditionalGeneration, config=with_experts))
    inputs = encode(family, ([picture()], QUESTION))
    assert_dropping_equals_masking(monkeypatch, model, inputs, pruner(prune_layer=layer))


# 2. keep_ratio = 1


def test_keeping_everything_changes_no_bit(family, method):
    model, method = model_of(family), replace(method, keep_ratio=1.0)
    inputs = encode(family, ([picture()], QUESTION), ([], "Hello"))
    with torch.no_grad():
        expected = model(**inputs).logits
        tokens = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    output, trace = prune(model, inputs, method)
    assert torch.equal(output.logits, expected) and trace.visual_tokens[0] == trace.visual_tokens[1] > 0
    with method(model, tokenizer()):
        assert torch.equal(model.generate(**inputs, max_new_tokens=3, do_sample=False), tokens)


# 3. Scores equal a loop over eager attention maps


@pytest.mark.parametrize("layer", [0, 2])
def test_scores_equal_the_loop(family, layer):
    inputs = encode(family, ([picture()], QUESTION))
    method = pruner(prune_layer=layer, relevance="attention", scope="tile", diversity=0.0)
    model = model_of(family, "eager")
    adapter = adapter_for(model)
    with torch.no_grad():
        maps = map_below(model, layer, model(**inputs, output_attentions=True).attentions)
    asked = places_of(QUESTION, inputs["input_ids"][0])
    image = adapter.visual_tokens(inputs["input_ids"])[0].nonzero()[:, 0].tolist()
    (expected,) = token_saliency(model, adapter, inputs, image, [adapter.vision_depth - 1])
    wanted = {place: score for place, score in zip(image, expected.tolist(), strict=True) if not math.isnan(score)}
    for attention in ("eager", "sdpa"):
        _, trace = prune(model_of(family, attention), inputs, method)
        (mine,) = trace.images
        places = mine.positions.tolist()
        assert sorted(places) == list(wanted)
        torch.testing.assert_close(mine.scores["token"], torch.tensor([wanted[p] for p in places]), atol=1e-5, rtol=0)
        relevance = torch.tensor([max(float(maps[i, p]) for i in asked) for p in places])
        torch.testing.assert_close(mine.scores["instruction"], relevance, atol=1e-4, rtol=0)


# 4. Budgets


def test_every_picture_keeps_its_budget(family, method):
    inputs = encode(family, ([picture(), picture(2)], QUESTION), ([picture(1)], "Read it."), ([], "Hello"))
    _, trace = prune(model_of(family), inputs, method)
    for image in trace.images:
        assert len(image.kept) == sum(image.budgets) == max(1, round(0.3 * image.num_tokens))
        counts = torch.bincount(torch.repeat_interleave(torch.tensor(image.sizes))[image.kept], minlength=len(image.sizes))
        assert counts.tolist() == image.budgets and image.kept.tolist() == sorted(set(image.kept.tolist()))


@pytest.mark.parametrize("settings", [{"normalize": "tile"}, {"scope": "tile"}, {"thumbnail_keep": 0.0}, {"alpha": 0}])
@pytest.mark.parametrize("region", ["thumbnail_attention", "attention_mass", "cls_similarity", "uniform"])
def test_every_setting_keeps_the_budget(family, region, settings):
    inputs = encode(family, ([picture(), picture(2)], QUESTION))
    _, trace = prune(model_of(family), inputs, pruner(region=region, **settings))
    assert [len(image.kept) for image in trace.images] == [max(1, round(0.3 * image.num_tokens)) for image in trace.images]


# 5. Batch = singles


def test_a_padded_batch_equals_its_rows_alone(family, method):
    prompts = [
        ([picture()], QUESTION),
        ([], "What color is sign 7?"),
        ([picture(1), picture(2)], "Read the blue square."),
        ([picture(2)], "Name the color of sign K."),
    ]
    model, batch = model_of(family), encode(family, *prompts)
    places = {}
    if "image_grid_thw" not in batch:  # positions as generate counts them: float32 tables are not the same further along
        places["position_ids"] = (batch["attention_mask"].cumsum(dim=1) - 1).clamp_min(0)
    together, trace = prune(model, batch, method, **places)
    images = list(trace.images)
    assert [image.row for image in images] == [0, 2, 2, 3]
    for row, one in enumerate(prompts):
        alone, single = prune(model, encode(family, one), method)
        length = alone.logits.shape[1]
        torch.testing.assert_close(together.logits[row, -length:], alone.logits[0], atol=1e-4, rtol=0)
        for mine in single.images:
            assert images.pop(0).kept.tolist() == mine.kept.tolist()
    assert not images
    with method(model, tokenizer()):
        tokens = model.generate(**batch, max_new_tokens=3, do_sample=False)[:, -3:]
        for row, one in enumerate(prompts):
            assert (
                tokens[row].tolist()
                == model.generate(**encode(family, one), max_new_tokens=3, do_sample=False)[0, -3:].tolist()
            )


# 6. Nothing is left behind


@pytest.mark.parametrize("fail", [False, True])
def test_nothing_is_left_behind(family, method, fail):
    model, inputs = model_of(family), encode(family, ([picture()], QUESTION))
    with torch.no_grad():
        expected = model(**inputs).logits
    before = footprint(model)
    with contextlib.suppress(KeyboardInterrupt), torch.no_grad(), method(model, tokenizer()) as trace:
        model(**inputs)
        if fail:
            raise KeyboardInterrupt
    assert footprint(model) == before and len(trace.images) == 1
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, expected)


# 7. Decode


def test_generate_equals_a_greedy_loop_over_the_masked_sequence(monkeypatch, family, method):
    model, inputs = model_of(family), encode(family, ([picture()], QUESTION))
    selections = watch(monkeypatch, method)
    with torch.no_grad(), method(model, tokenizer()) as trace:
        output = model.generate(**inputs, max_new_tokens=5, do_sample=False, output_logits=True, return_dict_in_generate=True)
    dropped = drops(inputs, trace, selections)
    length = inputs["input_ids"].shape[1]
    tokens = output.sequences[:, length:]
    for step in range(5):
        whole = extended(inputs, tokens[:, :step])
        gone = {layer: F.pad(tokens_gone, (0, step)) for layer, tokens_gone in dropped.items()}
        with (
            torch.no_grad(),
            blinded(model, whole["attention_mask"].bool(), (gone, length)),
            merged(model, trace, selections),
        ):
            logits = model(**whole).logits[0, -1]
        torch.testing.assert_close(output.logits[step][0], logits, atol=1e-4, rtol=0)
        assert logits.argmax() == tokens[0, step]
