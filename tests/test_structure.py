"""Line ends and tile markers: found where the processor put them, counted, and let go with their row or tile when asked."""

import dataclasses

import pytest
import torch
from families import FAMILIES, encode, model_of, photo, prune, pruner, token_id, tokenizer
from masking import assert_dropping_equals_masking

from ptp import Selection
from ptp.pruner import Pruner, Stage

TILED = ("llava-next", "llava-onevision", "smolvlm", "idefics3", "ovis2", "mistral3", "lfm2-vl")
MARKERS = {"smolvlm": "<fake_token_around_image>", "idefics3": "<fake_token_around_image>"}


def prompt_of(name):
    return encode(FAMILIES[name], ([photo(0, (300, 200))], "What is on the red circle?"))


class Chosen(Pruner):
    """Keeps, at layer 1, what it is told; then, at layer 2, the first of it."""

    def stages(self, layers):
        return tuple(Stage(layer, keep) for layer, keep in self.plan)

    def select(self, picture, stage):
        kept = self.choose(picture)[: stage.budget(picture.tokens)]
        return Selection(kept, picture.count_per_tile(kept))


def chosen(tokens: list[int], of: int, **settings) -> Pruner:
    plan = ((1, len(tokens) / of),)
    body = {"plan": plan, "choose": lambda self, picture: torch.tensor(tokens)}
    return dataclasses.dataclass(frozen=True, kw_only=True)(type("Chosen", (Chosen,), body))(**settings)


@pytest.mark.parametrize("name", TILED)
def test_they_are_what_stands_among_the_visual_tokens(name):
    inputs = prompt_of(name)
    trace = prune(model_of(FAMILIES[name]), inputs, pruner(keep_ratio=0.1))[1]
    (image,) = trace.images
    visual, found = set(image.positions.tolist()), image.structure.tolist()
    between = [place for place in range(min(visual), max(visual)) if place not in visual]
    assert found[: len(between)] == between and found, "these families have some"
    ids = inputs["input_ids"][0]
    image_id = model_of(FAMILIES[name]).config.image_token_id
    spare = [place for place in (ids == image_id).nonzero()[:, 0].tolist() if place not in visual]
    assert set(spare) <= set(found) and set(found[len(between) :]) <= set(spare)
    assert trace.structure_tokens == (len(found), len(found)), "they stay, as a rule"
    assert image.structure_kept.tolist() == found and trace.to_dict()["structure_tokens"] == [len(found)] * 2
    assert f"{len(found)} -> {len(found)} line ends and tile markers" in str(trace)


@pytest.mark.parametrize("name", ["internvl", "qwen2.5-vl", "gemma3"])
def test_some_families_have_none(name):
    trace = prune(model_of(FAMILIES[name]), prompt_of(name), pruner(keep_ratio=0.1))[1]
    assert trace.structure_tokens == (0, 0) and "line ends" not in str(trace)


@pytest.mark.parametrize("name", ["llava-next", "llava-onevision"])
def test_a_line_end_leaves_with_its_row(name):
    """Of a raster over all tiles, one row stays: its line end and no other; then the thumbnail alone, and no line end."""
    inputs, model = prompt_of(name), model_of(FAMILIES[name])
    (whole,) = prune(model, inputs, pruner(keep_ratio=1.0))[1].images
    thumbnail = whole.sizes[-1]
    tops = {float(top) for top in whole.boxes[:-thumbnail, 1]}
    for top in sorted(tops)[:2]:
        row = [j for j in range(whole.num_tokens - thumbnail) if float(whole.boxes[j, 1]) == top]
        method = chosen(row, whole.num_tokens, keep_structure=False)
        (image,) = prune(model, inputs, method)[1].images
        (end,) = image.structure_kept.tolist()
        assert end == max(whole.positions[row].tolist()) + 1
    alone = list(range(whole.num_tokens - thumbnail, whole.num_tokens))
    (image,) = prune(model, inputs, chosen(alone, whole.num_tokens, keep_structure=False))[1].images
    assert len(image.structure_kept) == 0


@pytest.mark.parametrize("name", ["smolvlm", "idefics3", "ovis2"])
def test_markers_leave_with_their_tile(name):
    """One tile stays, with the markers right before it."""
    inputs, model = prompt_of(name), model_of(FAMILIES[name])
    (whole,) = prune(model, inputs, pruner(keep_ratio=1.0))[1].images
    places = whole.positions.split(whole.sizes)
    for number in (1, len(whole.sizes) - 1):
        first = sum(whole.sizes[:number])
        tile = list(range(first, first + whole.sizes[number]))
        method = chosen(tile, whole.num_tokens, keep_structure=False)
        (image,) = prune(model, inputs, method)[1].images
        start = min(places[number].tolist())
        before = max((int(p.max()) for p in places if int(p.max()) < start), default=start - 1)
        assert image.structure_kept.tolist() == list(range(before + 1, start))
    if name in MARKERS:
        assert token_id(MARKERS[name]) in inputs["input_ids"][0, image.structure].tolist()


@pytest.mark.parametrize("method", ["pyramid", "pyramid at 2", "fastv", "deft", "sparsevlm", "random"])
@pytest.mark.parametrize("name", TILED)
def test_letting_them_go_equals_hiding_them(name, method, monkeypatch):
    chosen = pruner(method, keep_ratio=0.04, keep_structure=False)
    inputs, model = prompt_of(name), model_of(FAMILIES[name])
    with monkeypatch.context() as patch:
        trace = assert_dropping_equals_masking(patch, model, inputs, chosen)
    before, after = trace.structure_tokens
    assert after < before, "at 4 % some row or tile has nothing left"


@pytest.mark.parametrize("name", ["llava-next", "smolvlm"])
def test_generation_goes_on_without_them(name):
    """`generate`, on compacted caches, gives the tokens of a loop that prefills the growing sequence at every step."""
    inputs, model = prompt_of(name), model_of(FAMILIES[name])
    with torch.no_grad(), pruner(keep_ratio=0.05, keep_structure=False)(model, tokenizer()) as trace:
        ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        assert trace.structure_tokens[1] < trace.structure_tokens[0]
        given, tokens = dict(inputs), []
        for _ in range(4):
            tokens.append(int(model(**given, use_cache=False).logits[0, -1].argmax()))
            given["input_ids"] = torch.cat([given["input_ids"], torch.tensor([[tokens[-1]]])], dim=1)
            given["attention_mask"] = torch.ones_like(given["input_ids"])
    assert ids[0, inputs["input_ids"].shape[1] :].tolist() == tokens
