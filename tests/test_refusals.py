"""What cannot be pruned exactly is refused in one clear line, and nothing is left half done."""

import copy
import gc
import io
import math
import pickle
import weakref

import families
import pytest
import torch
from conftest import encode, footprint, picture, prompt, small_model, tokenizer
from transformers import AutoModelForCausalLM, DynamicCache, Qwen2Config, StaticCache

import ptp


def model_and_inputs():
    return small_model(), encode(prompt(picture(1, (2, 2))))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep_ratio": 0}, "keep_ratio must be in"),
        ({"keep_ratio": math.nan}, "keep_ratio must be in"),
        ({"keep_ratio": 1.5}, "keep_ratio must be in"),
        ({"alpha": -0.1}, "alpha must be in"),
        ({"alpha": math.nan}, "alpha must be in"),
        ({"region_alpha": 2}, "region_alpha must be in"),
        ({"thumbnail_keep": 1.1}, "thumbnail_keep must be in"),
        ({"temperature": 0}, "temperature must be a positive number"),
        ({"temperature": math.inf}, "temperature must be a positive number"),
        ({"region": "magic"}, "region must be one of thumbnail_attention, "),
        ({"normalize": "row"}, "normalize must be one of picture, tile"),
        ({"scope": "row"}, "scope must be one of picture, tile"),
        ({"relevance": "magic"}, "relevance must be one of attention, "),
        ({"diversity": -1}, "diversity must be a number from 0 up"),
        ({"diversity": math.nan}, "diversity must be a number from 0 up"),
        ({"prune_layer": -1}, "prune_layer must be a layer number"),
        ({"prune_layer": 1.5}, "prune_layer must be a layer number"),
        ({"vision_layer": None}, "vision_layer must be a layer number"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        ptp.PyramidPruner(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"prune_layer": 4}, r"prune_layer must be in \[0, 3\]"), ({"vision_layer": 3}, r"vision_layer must be in \[-3, 2\]")],
)
def test_layers_are_checked_against_the_model(settings, message):
    with pytest.raises(ValueError, match=message), ptp.PyramidPruner(**settings)(small_model(), tokenizer()):
        pass


@pytest.mark.parametrize("alpha", [0, 0.5])
def test_what_is_no_processor_is_refused(alpha):
    with pytest.raises(ValueError, match="processor must be the model's processor or tokenizer, got str"):
        ptp.attach(small_model(), ptp.PyramidPruner(alpha=alpha), "photo.jpg")


def test_a_model_without_pictures_is_refused():
    text = AutoModelForCausalLM.from_config(
        Qwen2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=50)
    )
    with pytest.raises(ptp.UnsupportedModelError, match=r"'qwen2' is not supported.*InternVL"):
        ptp.attach(text, ptp.PyramidPruner())
    with pytest.raises(ptp.UnsupportedModelError, match="None is not supported"):
        ptp.attach(torch.nn.Linear(2, 2), ptp.PyramidPruner())


def test_windows_are_not_left_to_an_attention_that_counts_tokens(monkeypatch):
    family = families.FAMILIES["gemma3"]
    model, inputs = families.model_of(family), families.encode(family, ([families.picture()], "What is it?"))
    with ptp.PyramidPruner()(model, families.tokenizer()), monkeypatch.context() as patch:
        patch.setattr(model.config.text_config, "_attn_implementation_internal", "flash_attention_2")
        with pytest.raises(ptp.UnsupportedModelError, match="under eager or sdpa attention, got 'flash_attention_2'"):
            model(**inputs)


def test_sliding_windows_are_refused(monkeypatch):
    model = small_model()
    monkeypatch.setattr(model.config.text_config, "layer_types", ["sliding_attention"] * 4)
    with pytest.raises(ptp.UnsupportedModelError, match="Sliding-window"):
        ptp.attach(model, ptp.PyramidPruner())


def test_one_pruner_at_a_time():
    model, _ = model_and_inputs()
    handle = ptp.attach(model, ptp.PyramidPruner(), tokenizer())
    with pytest.raises(ValueError, match="already being pruned"):
        ptp.attach(model, ptp.PyramidPruner(), tokenizer())
    handle.remove()
    handle.remove()
    ptp.attach(model, ptp.PyramidPruner(), tokenizer()).remove()


def test_the_instruction_needs_a_tokenizer_but_vision_alone_does_not():
    model, inputs = model_and_inputs()
    with pytest.raises(ValueError, match=r"Pass processor=.*alpha=0"):
        ptp.attach(model, ptp.PyramidPruner())
    with torch.no_grad(), ptp.PyramidPruner(alpha=0)(model) as trace:
        model(**inputs)
    assert trace.visual_tokens == (80, 40)


NO_DRIVER = torch.version.cuda is not None and not torch.cuda.is_available()
OFFLOADED = pytest.param("offloaded", marks=pytest.mark.skipif(NO_DRIVER, reason="a CUDA torch offloads to CUDA only"))


@pytest.mark.parametrize("cache", ["static", OFFLOADED])
def test_other_caches_are_refused(cache):
    model, inputs = model_and_inputs()
    with ptp.PyramidPruner()(model, tokenizer()), pytest.raises(ptp.UnsupportedCacheError, match="DynamicCache only"):
        model.generate(**inputs, max_new_tokens=2, cache_implementation=cache)
    with ptp.PyramidPruner()(model, tokenizer()), pytest.raises(ptp.UnsupportedCacheError, match="DynamicCache only"):
        model(**inputs, past_key_values=StaticCache(config=model.config.text_config, max_cache_len=300))


def test_a_mask_that_does_not_cover_what_was_seen_is_refused():
    model, inputs = model_and_inputs()
    cache = DynamicCache()
    with torch.no_grad(), ptp.PyramidPruner()(model, tokenizer()):
        model(**inputs, past_key_values=cache)
        with pytest.raises(ptp.UnsupportedCacheError, match="whole conversation's mask"):
            model(input_ids=inputs["input_ids"][:, -3:], attention_mask=torch.ones(1, 3), past_key_values=cache)
        with pytest.raises(ptp.UnsupportedCacheError, match="whole conversation's mask"):
            model(**inputs, past_key_values=cache)


def test_a_pruned_cache_can_be_reset():
    model, inputs = model_and_inputs()
    cache = DynamicCache()
    with torch.no_grad(), ptp.PyramidPruner()(model, tokenizer()):
        first = model(**inputs, past_key_values=cache).logits
        cache.reset()
        assert torch.equal(model(**inputs, past_key_values=cache).logits, first)


@pytest.mark.parametrize("copied", [False, True])
def test_new_tokens_on_a_pruned_cache_continue_at_the_original_positions(copied):
    """The same tokens fed by hand, one by one or at once, give what generate's own loop gives."""
    model, inputs = model_and_inputs()
    with torch.no_grad(), ptp.PyramidPruner(keep_ratio=0.3)(model, tokenizer()):
        ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        new = ids[:, inputs["input_ids"].shape[1] :]
        cache = model(**inputs).past_key_values
        if copied:
            cache = copy.deepcopy(cache)
        at_once = model(input_ids=new[:, :3], past_key_values=cache).logits
        cache = model(**inputs).past_key_values
        one_by_one = torch.cat([model(input_ids=new[:, i : i + 1], past_key_values=cache).logits for i in range(3)], dim=1)
    torch.testing.assert_close(at_once, one_by_one, atol=1e-5, rtol=0)
    assert torch.equal(at_once.argmax(-1), new[:, 1:])


def test_image_tokens_without_their_pictures_are_refused():
    """transformers itself would take them for words."""
    model, inputs = model_and_inputs()
    del inputs["pixel_values"]
    with ptp.PyramidPruner()(model, tokenizer()), pytest.raises(ValueError, match="image tokens but no pictures"):
        model(**inputs)


def test_chunked_prefill_is_refused():
    model, inputs = model_and_inputs()
    with ptp.PyramidPruner()(model, tokenizer()), pytest.raises(ValueError):
        model.generate(**inputs, max_new_tokens=2, prefill_chunk_size=16)


@pytest.mark.since_5_18
def test_pictures_encoded_elsewhere_are_refused_and_inside_are_reused():
    model, inputs = model_and_inputs()
    pixels = inputs.pop("pixel_values")
    outside = model.get_image_features(pixels, return_dict=True)
    with torch.no_grad(), ptp.PyramidPruner()(model, tokenizer()) as trace:
        with pytest.raises(ValueError, match="Encode them while it is attached"):
            model(**inputs, mm_encoder_outputs={"image": outside})
        inside = model.get_image_features(pixels, return_dict=True)
        first = model(**inputs, mm_encoder_outputs={"image": inside}).logits
        assert torch.equal(first, model(**inputs, pixel_values=pixels).logits)
        assert trace.visual_tokens == (80, 40)
    with ptp.PyramidPruner(vision_layer=0)(model, tokenizer()), pytest.raises(ValueError, match="another vision layer"):
        model(**inputs, mm_encoder_outputs={"image": inside})
    with torch.no_grad(), ptp.RandomPruner()(model) as trace:
        model(**inputs, mm_encoder_outputs={"image": inside})
        assert trace.visual_tokens == (80, 40)


def test_labels_and_other_masks_are_refused():
    model, inputs = model_and_inputs()
    with torch.no_grad(), ptp.PyramidPruner()(model, tokenizer()):
        with pytest.raises(ValueError, match="labels"):
            model(**inputs, labels=inputs["input_ids"])
        with pytest.raises(ValueError, match="logits_to_keep"):
            model(**inputs, logits_to_keep=torch.tensor([3]))
        with pytest.raises(ValueError, match="attention_mask must be"):
            model(**{**inputs, "attention_mask": torch.ones(1, 1, 4, 4)})


def test_a_run_of_image_tokens_must_be_whole_tiles():
    model, inputs = model_and_inputs()
    ids = inputs["input_ids"]
    broken = torch.cat([ids[:, :30], ids[:, :1], ids[:, 30:]], dim=1)
    with torch.no_grad(), ptp.PyramidPruner()(model, tokenizer()), pytest.raises(ValueError, match="whole number of tiles"):
        model(input_ids=broken, pixel_values=inputs["pixel_values"])


def test_a_prompt_without_pictures_runs_unpruned():
    model, inputs = model_and_inputs()
    text = encode(prompt(question="Hello"))
    with torch.no_grad():
        expected = model(**text).logits
        with ptp.PyramidPruner()(model, tokenizer()) as trace:
            model(**inputs)
            assert torch.equal(model(**text).logits, expected)
    assert not trace.images and str(trace) == "no picture was pruned"


def test_a_method_without_select_says_so():
    model, inputs = model_and_inputs()
    with torch.no_grad(), ptp.Pruner()(model), pytest.raises(NotImplementedError, match="must define select"):
        model(**inputs)


@pytest.mark.parametrize("part", ["whole", "core", "language model", "layer", "encoder"])
def test_a_model_is_not_copied_or_pickled_while_it_is_pruned(part):
    """A copy would call back into the original."""
    model, inputs = small_model.__wrapped__(), model_and_inputs()[1]  # fresh: transformers leaves hooks that no pickle takes
    parts = {
        "whole": model, "core": model.model, "language model": model.model.language_model,
        "layer": model.model.language_model.layers[0], "encoder": model.model.vision_tower,
    }  # fmt: skip
    with torch.no_grad():
        expected = model(**inputs).logits
        with ptp.PyramidPruner()(model, tokenizer()):
            pruned = model(**inputs).logits
            for attempt in (copy.deepcopy, pickle.dumps, lambda module: torch.save(module, io.BytesIO())):
                with pytest.raises(ValueError, match=r"being pruned cannot be copied or pickled.*attach a pruner to the copy"):
                    attempt(parts[part])
            assert torch.equal(model(**inputs).logits, pruned)
        assert torch.equal(copy.deepcopy(model)(**inputs).logits, expected)


def test_weights_are_saved_while_a_model_is_pruned(tmp_path):
    model, inputs = model_and_inputs()
    with torch.no_grad():
        expected = model(**inputs).logits
        with ptp.PyramidPruner()(model, tokenizer()):
            model.save_pretrained(tmp_path)
        assert torch.equal(type(model).from_pretrained(tmp_path)(**inputs).logits, expected)


def test_a_shallow_copy_is_no_other_model():
    """It shares what is pruned: it is refused while the model is pruned, and one made before counts as the same."""
    model, inputs = model_and_inputs()
    before = copy.copy(model)
    with ptp.PyramidPruner()(model, tokenizer()):
        for part in (model, model.model):
            with pytest.raises(ValueError, match="being pruned cannot be copied"):
                copy.copy(part)
        with pytest.raises(ValueError, match="already being pruned"):
            ptp.attach(before, ptp.PyramidPruner(), tokenizer())
    with torch.no_grad():
        assert torch.equal(copy.copy(model)(**inputs).logits, model(**inputs).logits)


def test_a_failed_attach_leaves_nothing(monkeypatch):
    model, _ = model_and_inputs()
    before = footprint(model)

    def missing(self):
        raise AttributeError("no such module")

    with monkeypatch.context() as patch:
        patch.setattr("ptp.adapters.internvl.InternVLAdapter.vision_embeddings", missing)
        with pytest.raises(AttributeError, match="no such module"):
            ptp.attach(model, ptp.PyramidPruner(), tokenizer())
    assert footprint(model) == before
    ptp.attach(model, ptp.PyramidPruner(), tokenizer()).remove()


def test_an_attached_model_can_be_freed():
    model = small_model.__wrapped__()
    gone = weakref.ref(model)
    handle = ptp.attach(model, ptp.PyramidPruner(), tokenizer())
    del model, handle
    gc.collect()
    assert gone() is None


def test_continuous_batching_is_refused():
    model, _ = model_and_inputs()
    with ptp.PyramidPruner()(model, tokenizer()):
        for begin in (
            lambda: model.generate_batch([[1, 2, 3]], max_new_tokens=2),
            model.init_continuous_batching,
            lambda: model.continuous_batching_context_manager().__enter__(),
        ):
            with pytest.raises(
                ValueError, match=r"generate_batch .* cannot be used while visual tokens are pruned.*padded batch"
            ):
                begin()
    assert "init_continuous_batching" not in vars(model)


def test_embeddings_that_hide_their_pictures_are_refused():
    model, inputs = model_and_inputs()
    with torch.no_grad(), ptp.PyramidPruner()(model, tokenizer()):
        states = model.get_input_embeddings()(inputs["input_ids"])
        with pytest.raises(ValueError, match=r"input_ids are needed .* got inputs_embeds"):
            model(inputs_embeds=states)
        with pytest.raises(ValueError, match=r"input_ids are needed .* got inputs_embeds"):
            model.generate(inputs_embeds=states, max_new_tokens=2)


def test_the_core_alone_is_refused():
    model, _ = model_and_inputs()
    with pytest.raises(ptp.UnsupportedModelError, match=r"pruned as a whole.*got InternVLModel\. Pass the"):
        ptp.attach(model.model, ptp.PyramidPruner(), tokenizer())
