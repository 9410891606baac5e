"""Language models that attend in some layers only, in the order of released checkpoints: one after three that do not."""

import copy
from dataclasses import dataclass, replace
from functools import cache, partial

import gated_delta
import pytest
import torch
from families import FAMILIES, QUESTION, encode, fresh_cache, model_of, picture, places_of, prune, pruner, tokenizer
from masking import assert_dropping_equals_masking
from transformers import Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration
from transformers.models.qwen3_5 import modeling_qwen3_5
from transformers.models.qwen3_5_moe.modeling_qwen3_5_moe import Qwen3_5MoeSparseMoeBlock

import ptp
from ptp.adapters import adapter_for
from ptp.methods import METHODS
from ptp.runtime import Reads
from ptp.selection import Selection, total_budget
from ptp.testing import check_adapter, small_processor, token_id
from ptp.testing.families.qwen3_5 import qwen3_5

ORDER = ["linear_attention", "linear_attention", "linear_attention", "full_attention"] * 2
FAMILY = replace(
    FAMILIES["qwen3.5"],
    name="qwen3.5 in order",
    config=partial(qwen3_5, num_hidden_layers=8, layer_types=ORDER),
)
"""Layers 3 and 7 attend."""


@cache
def model(attention: str = "sdpa"):
    """In float64, as far as transformers lets it be; norms and gates are not all ones."""
    made = copy.deepcopy(model_of(FAMILY, attention)).double()
    torch.manual_seed(2)
    with torch.no_grad():
        for _, parameter in sorted(made.model.language_model.named_parameters()):
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def row(inputs: dict, kept: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs (S, D) of layer 0 of a batch of one, places (3, S), and which tokens were dropped (S,)."""
    core = model().model
    features = core.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
    states = model().get_input_embeddings()(inputs["input_ids"])
    image = (inputs["input_ids"] == token_id("<|image_pad|>"))[..., None]
    states = states.masked_scatter(image, torch.cat(features).to(states))
    asked = {name: inputs[name] for name in ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")}
    places, _ = core.get_rope_index(**asked)
    dropped = torch.zeros(states.shape[1], dtype=torch.bool)
    dropped[positions] = True
    dropped[positions[kept]] = False
    return states[0], places[:, 0], dropped


class InDouble:
    """torch, for kernels that compute in float32 whatever they are given."""

    float32 = torch.float64

    def __getattr__(self, name: str):
        return getattr(torch, name)


@pytest.fixture
def in_double(monkeypatch):
    monkeypatch.setattr(modeling_qwen3_5, "torch", InDouble())


@pytest.mark.parametrize(("layer", "settings"), [(0, {}), (2, {"alpha": 0}), (3, {"alpha": 0}), (4, {}), (6, {})])
def test_what_left_is_absent_from_the_recurrence(in_double, layer, settings):
    """Token by token: no fading, no writing, a convolution over the neighbours that stay; and so at each step of decoding."""
    inputs = encode(FAMILY, ([picture()], QUESTION))
    length, method = inputs["input_ids"].shape[1], pruner(prune_layer=layer, **settings)
    output, trace = prune(model(), inputs, method)
    (image,) = trace.images
    with torch.no_grad():
        states, places, dropped = row(inputs, image.kept, image.positions)
        expected = gated_delta.logits(model(), states, places, dropped, layer)
        torch.testing.assert_close(output.logits[0].double(), expected, atol=1e-4, rtol=0)  # norms are float32
        with method(model(), tokenizer()):
            answer = model().generate(
                **inputs, max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
        for token, found in zip(answer.sequences[0, length:], answer.logits, strict=True):
            torch.testing.assert_close(found[0].double(), expected[-1], atol=1e-4, rtol=0)
            states = torch.cat([states, model().get_input_embeddings()(token)[None]])
            places = torch.cat([places, places[:, -1:].amax(dim=0, keepdim=True).expand(3, 1) + 1], dim=1)
            dropped = torch.nn.functional.pad(dropped, (0, 1))
            expected = gated_delta.logits(model(), states, places, dropped, layer, length)


@pytest.mark.parametrize("method", [pruner(), pruner(prune_layer=2, alpha=0), pruner(prune_layer=4), pruner("deft")])
def test_a_padded_batch_equals_its_rows_alone(in_double, method):
    """In float32 they differ by 1e-3 without any pruning: chunks of a padded row begin elsewhere."""
    prompts = [
        ([picture()], QUESTION),
        ([], "What color is sign 7?"),
        ([picture(1), picture(2)], "Read it."),
        ([picture(2)], "K?"),
    ]
    together, trace = prune(model(), encode(FAMILY, *prompts), method)
    assert [image.row for image in trace.images] == [0, 2, 2, 3]
    for number, one in enumerate(prompts):
        alone, _ = prune(model(), encode(FAMILY, one), method)
        length = alone.logits.shape[1]
        torch.testing.assert_close(together.logits[number, -length:], alone.logits[0], atol=1e-9, rtol=0)


def test_a_mask_with_holes_is_something_else():
    """transformers' own 2-D mask sets a hidden token to zero, which still fades the state: the reference is not blind to it."""
    inputs = encode(FAMILY, ([picture()], QUESTION))
    output, trace = prune(model(), inputs, pruner())
    (image,) = trace.images
    with torch.no_grad():
        _, places, dropped = row(inputs, image.kept, image.positions)
        hidden = inputs | {"attention_mask": (~dropped)[None].long(), "position_ids": places[:, None]}
        holes = model()(**hidden).logits[0, ~dropped]
    assert (holes - output.logits[0]).abs().max() > 0.1


@pytest.mark.parametrize("layer", [4, 6, 7])
def test_text_is_read_in_the_nearest_layer_below_that_attends(layer):
    inputs = encode(FAMILY, ([picture()], QUESTION))
    with torch.no_grad():
        maps = model("eager")(**inputs, output_attentions=True).attentions[0][0].mean(dim=0)
    asked = places_of(QUESTION, inputs["input_ids"][0])
    for attention in ("eager", "sdpa"):
        _, trace = prune(model(attention), inputs, pruner(prune_layer=layer, relevance="attention"))
        relevance = maps[asked].amax(dim=0)[trace.images[0].positions]
        torch.testing.assert_close(trace.images[0].scores["instruction"], relevance.float(), atol=1e-5, rtol=0)


@dataclass(frozen=True, kw_only=True)
class TwoStages(ptp.PyramidPruner):
    """Drops at 5 and at 6, by what is read in layer 3: the last of the tokens, then by what text attends to."""

    def stages(self, layers):
        return (ptp.Stage(5, 0.6), ptp.Stage(6, 0.3))

    def reads(self, vision_depth):
        return ptp.PyramidPruner(relevance="attention", prune_layer=5).reads(vision_depth)

    def select(self, picture, stage):
        seen.append(picture.text_attention)
        kept = picture.alive[-total_budget(stage.keep_ratio, picture.tokens) :]
        return Selection(kept, picture.count_per_tile(kept))


seen: list[torch.Tensor] = []


def test_two_stages_may_read_one_layer():
    """What has left in between counts as attended to then, and is nobody's to choose now."""
    seen.clear()
    inputs = encode(FAMILY, ([picture()], QUESTION), ([picture(1)], "Read it."))
    prune(model(), inputs, TwoStages(window=56))
    (first, other, again, other_again) = seen
    for before, after in ((first, again), (other, other_again)):
        left = total_budget(0.6, len(before))
        assert (after[:-left] == 0).all() and after[-left:].gt(0).all()
        torch.testing.assert_close(after[-left:], before[-left:])


# What cannot be done


class Keys(METHODS["fastv"]):
    """Asks for keys without a probe."""

    def reads(self, vision_depth):
        return Reads()

    def select(self, picture, stage):
        return picture.keys


@pytest.mark.parametrize(
    ("method", "line"),
    [
        (pruner("fastv"), r"at layer 2: the first layer that attends is 3\. Prune at layer 4 or later"),
        (pruner("sparsevlm"), r"at layer 1: the first layer that attends is 3\. Prune at layer 4 or later"),
        (pruner("pyramiddrop"), r"at layer 2: the first layer that attends is 3"),
        (pruner(prune_layer=3), "at layer 3: the first layer that attends is 3"),
        (pruner(relevance="attention"), r"at layer 0: the first layer that attends is 3.*relevance=\"similarity\""),
        (ptp.PyramidPruner.published(keep_ratio=0.3), "at layer 2: the first layer that attends is 3"),
        (pruner("dart"), r"at layer 2: the first layer that attends is 3"),
        (Keys(prune_layer=2), r"Layer 2 does not attend.*Prune at one that does: 3, 7\."),
    ],
)
def test_what_no_layer_says_is_refused(method, line):
    inputs = encode(FAMILY, ([picture()], QUESTION))
    with torch.no_grad(), method(model(), tokenizer()), pytest.raises(ptp.UnsupportedModelError, match=line) as caught:
        model()(**inputs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", [pruner("fastv", prune_layer=4), pruner("dart", prune_layer=6), pruner("deft")])
def test_the_same_methods_run_where_there_is_something_to_read(method):
    _, trace = prune(model(), encode(FAMILY, ([picture()], QUESTION)), method)
    assert trace.visual_tokens[1] == round(0.3 * trace.visual_tokens[0])


@pytest.mark.parametrize("layer", [0, 4])
def test_a_padded_batch_goes_on_from_a_cache_only_in_step(layer):
    """Rows that keep differently many tokens would have padding between what is held and what is new."""
    first = encode(FAMILY, ([picture()], QUESTION), ([picture()], QUESTION))
    for others, even in (([picture(2), picture(1)], False), ([picture(2), picture(2)], True)):
        cache = fresh_cache(model())
        second = encode(FAMILY, *[([other], "And here?") for other in others])
        mask = torch.cat([first["attention_mask"], second["attention_mask"]], dim=1)
        whole = {name: torch.cat([first[name], second[name]], dim=1) for name in ("input_ids", "mm_token_type_ids")}
        grids = torch.stack([first["image_grid_thw"], second["image_grid_thw"]], dim=1).flatten(0, 1)
        places, _ = model().model.get_rope_index(**whole, attention_mask=mask, image_grid_thw=grids)
        ask = second | {"attention_mask": mask, "position_ids": places[..., first["input_ids"].shape[1] :]}
        with torch.no_grad(), pruner(prune_layer=layer)(model(), tokenizer()):
            model()(**first, past_key_values=cache)
            if even:
                both = model()(**ask, past_key_values=cache).logits
                torch.testing.assert_close(both[0], both[1], atol=1e-5, rtol=0)
                continue
            with pytest.raises(ptp.UnsupportedCacheError, match=r"run through the padding.*Prefill such rows one by one"):
                model()(**ask, past_key_values=cache)


# Caches


def test_a_cache_of_two_kinds():
    """Slots in the layers that attend, states of one size in the others; what cannot be cropped is left whole."""
    inputs = encode(FAMILY, ([picture()], QUESTION))
    with torch.no_grad(), pruner(prune_layer=4)(model(), tokenizer()) as trace:
        cache = model()(**inputs).past_key_values
        left = inputs["input_ids"].shape[1] - trace.visual_tokens[0] + trace.visual_tokens[1]
        assert [getattr(layer, "keys", torch.empty(1, 1, 0)).shape[2] for layer in cache.layers] == [0, 0, 0, left] * 2
        assert trace.cache_bytes[1] == 2 * 2 * 2 * left * 12 * 8 and cache.get_seq_length() == inputs["input_ids"].shape[1]
        before, step = copy.deepcopy(cache), {"input_ids": torch.tensor([[70]])}
        with pytest.raises(RuntimeError, match="does not track past states"):
            cache.crop(-1)
        assert torch.equal(model()(**step, past_key_values=cache).logits, model()(**step, past_key_values=before).logits)
        cache.reset()
        again = model()(**inputs, past_key_values=cache).logits
        assert torch.equal(again, model()(**inputs).logits)


@pytest.mark.parametrize("kind", ["static", "offloaded"])
def test_other_caches_are_refused(kind):
    if kind == "offloaded" and torch.version.cuda is not None and not torch.cuda.is_available():
        pytest.skip("a CUDA torch offloads to CUDA only")
    inputs = encode(FAMILY, ([picture()], QUESTION))
    with pruner()(model(), tokenizer()), pytest.raises(ptp.UnsupportedCacheError, match="DynamicCache only"):
        model().generate(**inputs, max_new_tokens=2, cache_implementation=kind)


# The oracles


def test_the_oracles_of_all_families_hold():
    report = check_adapter(model_of(FAMILY), small_processor(FAMILY), tolerance=3e-3)  # padded batches: see above
    assert [each.settings for each in report if each.oracle == "relevance"] == ["prune_layer=4, eager", "prune_layer=4, sdpa"]
    assert adapter_for(model_of(FAMILY)).text.attending == (3, 7)


EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=32)


@pytest.mark.parametrize("layer", [0, 2, 4])
def test_dropping_equals_masking_with_experts(monkeypatch, layer):
    config = partial(qwen3_5, config_class=Qwen3_5MoeConfig, text="qwen3_5_moe_text", num_hidden_layers=8, layer_types=ORDER)
    whole = partial(config, **EXPERTS)
    family = replace(FAMILY, name="qwen3.5-moe", model_class=Qwen3_5MoeForConditionalGeneration, config=whole)
    experts = model_of(family)
    assert isinstance(adapter_for(experts).layers[0].mlp, Qwen3_5MoeSparseMoeBlock)
    method = pruner(prune_layer=layer, alpha=0.5 if layer != 2 else 0)
    assert_dropping_equals_masking(monkeypatch, experts, encode(family, ([picture()], QUESTION)), method)
