"""Several turns on one cache, for every model family."""

import copy

import pytest
import torch
import torch.nn.functional as F
from families import QUESTION, encode, fresh_cache, map_below, model_of, picture, places_of, pruner, tokenizer
from masking import blinded, drops, extended, watch

import ptp
from ptp.adapters import adapter_for
from ptp.testing import token_id

MORE = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
"""Inputs with an entry per token."""


def second_turn(model, first, second):
    """Both turns' tokens as one prompt, and what the model is given in the second turn, beside the cache of the first."""
    whole = {name: torch.cat([first[name], second[name]], dim=1) for name in MORE if name in first}
    new = {"input_ids": second["input_ids"], "attention_mask": whole["attention_mask"]}
    kinds = adapter_for(model).both_ways[0]
    new |= {name: value for name, value in second.items() if name not in MORE or name == kinds}
    if "image_grid_thw" in first:
        grids = torch.cat([first["image_grid_thw"], second["image_grid_thw"]])
        positions, _ = model.model.get_rope_index(**whole, image_grid_thw=grids)
        new["position_ids"] = positions[..., first["input_ids"].shape[1] :]
    return whole, new


def both_pictures(first, second, whole):
    """The inputs of two turns with a picture each as one prompt."""
    made = dict(whole)
    for name in first.keys() - set(MORE):
        one, other = first[name], second[name]
        if name == "pixel_values" and "target_sizes" in first:  # one patch beside another
            made[name] = torch.cat([one, other], dim=3)
            continue
        if name in ("pixel_values", "pixel_attention_mask") and "image_sizes" not in first and one.dim() > 4 - ("mask" in name):
            made[name] = torch.cat([one, other], dim=1)  # tiles of a row follow each other
            continue
        if name == "pixel_values" and one.dim() > 2:  # padded to as many tiles, or to the larger picture
            most = [max(sides) for sides in zip(one.shape[1:], other.shape[1:], strict=True)]
            lacks = ([(0, m - n) for m, n in zip(most, x.shape[1:], strict=True)] for x in (one, other))
            one, other = (F.pad(x, sum(reversed(own), ())) for x, own in zip((one, other), lacks, strict=True))
        made[name] = torch.cat([one, other])
    return made


def ask(model, inputs, cache, **words):
    """Logits of what follows the cache; positions are counted in the mask, as generate does."""
    if "pixel_values" in words and "image_grid_thw" in inputs:
        return model(**words, past_key_values=cache).logits
    places = (words["attention_mask"].cumsum(dim=1) - 1).clamp_min(0)[:, -words["input_ids"].shape[1] :]
    if "image_grid_thw" in inputs:
        places = (places + model.model.rope_deltas).expand(3, *places.shape)
    return model(**words, position_ids=places, past_key_values=cache).logits


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("layer", [0, 2])
def test_what_is_behind_the_picture_can_be_cropped_off_the_cache(family, layer, padded):
    """A question that is asked after another was taken back gets the logits that it gets from a copy."""
    prompts = [([picture()], QUESTION), *([([picture(1)], "Read it.")] if padded else [])]
    model, method = model_of(family), pruner(prune_layer=layer)
    cache = fresh_cache(model)
    first = encode(family, *prompts)
    asked = tokenizer()("And what?", return_tensors="pt").input_ids.expand(len(prompts), -1)
    second = {"input_ids": asked, "attention_mask": extended(first, asked)["attention_mask"]}
    with torch.no_grad(), method(model, tokenizer()) as trace:
        ask(model, first, cache, **first)
        expected = ask(model, first, copy.deepcopy(cache), **second)
        ask(model, first, cache, **second)
        if adapter_for(model).text.hybrid:  # a state cannot be taken back
            with pytest.raises(RuntimeError, match="does not track past states"):
                cache.crop(-asked.shape[1])
            return
        cache.crop(-asked.shape[1])
        again = ask(model, first, copy.deepcopy(cache), **second)
        torch.testing.assert_close(again, expected, atol=1e-4, rtol=0)
        if layer == 0:  # later, the words of the prompt have seen tokens that are gone
            shown = adapter_for(model).visual_tokens(first["input_ids"])
            if family.name == "ovis2":  # transformers gives its markers their embeddings only beside pixels
                shown = torch.isin(first["input_ids"], torch.tensor([token_id(marker) for marker in family.markers]))
            last = int(shown.nonzero()[:, 1].max())
            behind = first["input_ids"][:, last + 1 :]
            cache.crop(-behind.shape[1])
            ask(model, first, cache, input_ids=behind, attention_mask=first["attention_mask"])
            torch.testing.assert_close(ask(model, first, cache, **second), expected, atol=1e-4, rtol=0)
            cache.crop(-asked.shape[1])
        gone = [image.positions[~torch.isin(torch.arange(image.num_tokens), image.kept)] for image in trace.images]
        free = cache.get_seq_length() - 1 - max(int(tokens.max()) for tokens in gone)
        with pytest.raises(ptp.UnsupportedModelError, match=f"can be cropped .here {free}., got -{free + 1}"):
            cache.crop(-free - 1)


@pytest.mark.parametrize("layer", [0, 2])
def test_many_questions_go_on_from_one_picture_in_a_batch(family, layer):
    """The cache is repeated, its rows mixed; questions are padded. Each gets what it gets from a copy."""
    model, method = model_of(family), pruner(prune_layer=layer)
    cache = fresh_cache(model)
    first = encode(family, ([picture()], QUESTION), ([picture(1)], "Read it."))
    questions = ["And what?", "How many are there?", "Red?"]
    text = adapter_for(model).text
    hybrid = text.hybrid
    if hybrid or text.window is not None:  # transformers itself runs states through, and counts in windows, the padding
        questions = questions[:1] * 3
    asked = tokenizer()(questions, padding=True, return_tensors="pt")
    rows = torch.tensor([1, 0, 0])
    with torch.no_grad(), method(model, tokenizer()):
        ask(model, first, cache, **first)
        deltas = model.model.rope_deltas if "image_grid_thw" in first else None
        many = copy.deepcopy(cache)
        if hybrid:  # the only way to mix rows that transformers has for states
            many.reorder_cache(rows)
        else:
            many.batch_repeat_interleave(2)
            many.batch_select_indices(2 * rows)
        if deltas is not None:
            model.model.rope_deltas = deltas[rows]
        together = ask(
            model, first, many, input_ids=asked.input_ids,
            attention_mask=torch.cat([first["attention_mask"][rows], asked.attention_mask], dim=1),
        )  # fmt: skip
        for number, row in enumerate(rows.tolist()):
            one = copy.deepcopy(cache)
            (one.reorder_cache if hybrid else one.batch_select_indices)(rows[number : number + 1])
            if deltas is not None:
                model.model.rope_deltas = deltas[row : row + 1]
            length = int(asked.attention_mask[number].sum())
            words = asked.input_ids[number : number + 1, -length:]
            mask = torch.cat([first["attention_mask"][row : row + 1], torch.ones_like(words)], dim=1)
            alone = ask(model, first, one, input_ids=words, attention_mask=mask)
            torch.testing.assert_close(together[number, -length:], alone[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("layer", [0, 2])
def test_a_second_question_goes_on_from_what_was_kept(monkeypatch, family, layer):
    """Through generate, with the whole conversation's ids and the first turn's cache."""
    model, method = model_of(family), pruner(prune_layer=layer)
    first, cache = encode(family, ([picture()], QUESTION)), fresh_cache(model)
    selections = watch(monkeypatch, method)
    with method(model, tokenizer()) as trace:
        ids = model.generate(**first, past_key_values=cache, max_new_tokens=3, do_sample=False)
        (dropped,) = drops(first, trace, selections).values()
        more = tokenizer()("<|im_end|>\n<|im_start|>user\nAnd what?<|im_end|>\n", return_tensors="pt").input_ids
        length = first["input_ids"].shape[1]
        whole = extended(first, torch.cat([ids[:, length:], more], dim=1))
        told = {name: value for name, value in whole.items() if "pixel" not in name and "image" not in name}
        output = model.generate(
            **told, past_key_values=cache, max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    for step in range(3):
        longer = extended(whole, output.sequences[:, -3:][:, :step])
        gone = F.pad(dropped, (0, longer["input_ids"].shape[1] - length))
        with torch.no_grad(), blinded(model, longer["attention_mask"].bool(), ({layer: gone}, length)):
            logits = model(**longer).logits[0, -1]
        torch.testing.assert_close(output.logits[step][0], logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", [pruner(), pruner(prune_layer=2), pruner("fastv"), pruner("deft")])
def test_a_new_picture_in_a_later_turn_is_pruned_by_itself(monkeypatch, family, method):
    model = model_of(family)
    first, second = encode(family, ([picture()], QUESTION)), encode(family, ([picture(1)], "And what here?"))
    length, cache = first["input_ids"].shape[1], fresh_cache(model)
    whole, new = second_turn(model, first, second)
    selections = watch(monkeypatch, method)
    with torch.no_grad(), method(model, tokenizer()) as trace:
        model(**first, past_key_values=cache)
        gone = drops(first, trace, selections)
        selections.clear()
        output = model(**new, past_key_values=cache)
        assert len(trace.images) == 1 and trace.sequence_length[0] == whole["input_ids"].shape[1]
        gone = {layer: F.pad(tokens, (0, second["input_ids"].shape[1])) for layer, tokens in gone.items()}
        later = drops(whole, trace, selections)
        word = torch.full((1, 1), 40)
        place = new["position_ids"].amax(dim=(0, 2))[:, None] + 1 if "position_ids" in new else None
        decoded = model(input_ids=word, past_key_values=cache, position_ids=place).logits
    assert all(
        (tokens & (whole["input_ids"] == adapter_for(model).image_token_id) == tokens).all() for tokens in later.values()
    )
    both = both_pictures(first, second, whole) | {"input_ids": torch.cat([whole["input_ids"], word], dim=1)}
    both |= {name: F.pad(whole[name], (0, 1), value=name == "attention_mask") for name in whole if name != "input_ids"}
    gone, later = ({layer: F.pad(tokens, (0, 1)) for layer, tokens in one.items()} for one in (gone, later))
    with (
        torch.no_grad(),
        blinded(model, both["attention_mask"].bool(), (gone, length), (later, both["input_ids"].shape[1] - 1)),
    ):
        expected = model(**both).logits
    stays = ~later[max(later)][0, length:-1]
    torch.testing.assert_close(output.logits, expected[:, length:-1][:, stays], atol=1e-4, rtol=0)
    torch.testing.assert_close(decoded, expected[:, -1:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("layer", [0, 2])
def test_scores_in_a_later_turn_equal_the_loop(monkeypatch, family, layer):
    """What the second question attends to, over all that it still sees of the first turn."""
    method = pruner(prune_layer=layer, relevance="attention", scope="tile", diversity=0.0)
    first, second = encode(family, ([picture(2)], "Read it.")), encode(family, ([picture(1)], QUESTION))
    length, model = first["input_ids"].shape[1], model_of(family, "eager")
    cache = fresh_cache(model)
    whole, new = second_turn(model, first, second)
    selections = watch(monkeypatch, method)
    with torch.no_grad(), method(model, tokenizer()) as trace:
        model(**first, past_key_values=cache)
        gone = drops(first, trace, selections)
        model(**new, past_key_values=cache)
    (image,) = trace.images
    gone = {at: F.pad(tokens, (0, second["input_ids"].shape[1])) for at, tokens in gone.items()}
    with torch.no_grad(), blinded(model, whole["attention_mask"].bool(), (gone, length)):
        both = both_pictures(first, second, whole)
        maps = map_below(model, layer, model(**both, output_attentions=True).attentions)
    asked = [length + place for place in places_of(QUESTION, second["input_ids"][0])]
    relevance = torch.tensor([max(float(maps[i, place]) for i in asked) for place in image.positions])
    torch.testing.assert_close(image.scores["instruction"], relevance, atol=1e-4, rtol=0)


@pytest.mark.since_5_18
def test_one_encoding_serves_several_questions(family):
    """Rows of different length have the same picture in different places."""
    model, method = model_of(family), pruner(alpha=0)
    prompts = [([picture()], "Read it."), ([picture()], "What is on the red circle, and on the blue one?")]
    both = encode(family, *prompts)
    with torch.no_grad(), method(model, tokenizer()) as trace:
        expected = model(**both)
        kept = [(image.row, image.positions.tolist(), image.kept.tolist()) for image in trace.images]
        alone = {name: value for name, value in encode(family, prompts[0]).items() if name not in MORE}
        encoded = model.get_image_features(**alone, return_dict=True)
        twice = lambda parts: torch.cat([parts, parts]) if isinstance(parts, torch.Tensor) else (*parts, *parts)  # noqa: E731
        encoded.pooler_output = twice(encoded.pooler_output)
        if getattr(encoded, "deepstack_features", None) is not None:
            encoded.deepstack_features = [twice(level) for level in encoded.deepstack_features]
        asked = {name: value for name, value in both.items() if not name.startswith("pixel") and name != "image_sizes"}
        output = model(**asked, mm_encoder_outputs={"image": encoded})
    assert [(image.row, image.positions.tolist(), image.kept.tolist()) for image in trace.images] == kept
    torch.testing.assert_close(output.logits, expected.logits, atol=1e-4, rtol=0)


def test_a_pruned_batch_goes_on_inside_the_context_only(family):
    """Outside, nobody would know which slots are padding."""
    model, batch = model_of(family), encode(family, ([picture()], "Read it."), ([picture(1), picture(2)], QUESTION))
    with torch.no_grad(), pruner()(model, tokenizer()):
        cache = model(**batch).past_key_values
        model.generate(**batch, max_new_tokens=2)
    step, mask = torch.tensor([[70], [71]]), torch.ones(2, batch["input_ids"].shape[1] + 1).long()
    with torch.no_grad(), pytest.raises(ptp.UnsupportedCacheError, match="goes on only where the model is still pruned"):
        model(input_ids=step, past_key_values=cache, attention_mask=mask)
