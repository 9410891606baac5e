"""What differs between the releases of transformers that the package runs with, 5.16 to 5.23."""

import inspect

import pytest
import torch
import transformers
from families import FAMILIES, QUESTION, encode, fresh_cache, model_of, picture, pruner, tokenizer
from packaging.version import Version
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

import ptp
from ptp.adapters import ADAPTERS
from ptp.testing.families import release


def takes_encoded(model) -> bool:
    """Whether this release takes `mm_encoder_outputs`: from 5.18 on."""
    return "mm_encoder_outputs" in inspect.signature(model.model.forward).parameters


def test_every_model_type_is_in_every_release():
    taken = {name for adapter in ADAPTERS for name in adapter.model_types}
    assert {"internvl", "qwen2_5_vl", "gemma3", "ovis2"} <= taken <= set(CONFIG_MAPPING_NAMES)


def test_the_families_without_a_small_model_are_those_that_need_a_later_release():
    here = Version(transformers.__version__)
    assert set(release.missing) == {name for name, needed in release.NEEDS.items() if here < Version(needed)}


def test_a_family_is_missing_only_where_it_is_written_down(monkeypatch):
    monkeypatch.setattr(release, "missing", [])
    with pytest.raises(ImportError, match="no_such"):
        release.described("no_such", "SUCH")
    monkeypatch.setitem(release.NEEDS, "no_such", "99.0")
    assert release.described("no_such", "SUCH") == [] and release.missing == ["no_such"]
    assert release.described("ovis2", "OVIS2") == [FAMILIES["ovis2"]]


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("before", [True, False], ids=["before the forward", "in the forward"])
def test_generate_prunes_wherever_the_pictures_are_encoded(family, monkeypatch, before, layer):
    """The same tokens, from the same tokens kept, once in each way that this release has."""
    model, inputs, method = model_of(family), encode(family, ([picture()], QUESTION), ([], "Hello")), pruner(prune_layer=layer)
    if not before and takes_encoded(model):  # as releases without `mm_encoder_outputs` generate
        monkeypatch.setattr(model, "_supports_mm_encoder_outputs", lambda: False)
    inside, where = [], []
    core = model.model
    monkeypatch.setattr(core, "forward", _noting(core.forward, lambda: inside.append(1), inside.pop))
    monkeypatch.setattr(core, "get_image_features", _noting(core.get_image_features, lambda: where.append(bool(inside))))
    with method(model, tokenizer()) as trace:
        ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert where == [not (before and takes_encoded(model))], "the encoder runs once, and where it should"
    kept = [image.kept.tolist() for image in trace.images]
    with torch.no_grad(), method(model, tokenizer()) as trace:
        logits = model(**inputs, past_key_values=fresh_cache(model)).logits
        assert [image.kept.tolist() for image in trace.images] == kept and len(kept[0]) < trace.images[0].num_tokens
        assert torch.equal(logits[:, -1].argmax(dim=-1), ids[:, -4])


def test_a_release_that_names_the_cache_otherwise_is_refused(monkeypatch):
    """As 5.24 does: `cache`. Pruning would not find it."""
    model = model_of(FAMILIES["internvl"])

    def renamed(input_ids=None, pixel_values=None, attention_mask=None, position_ids=None, cache=None, **kwargs):
        raise AssertionError("never called")

    monkeypatch.setattr(model.model, "forward", renamed)
    with pytest.raises(ptp.UnsupportedModelError, match=r"takes no past_key_values.* 5\.16 to 5\.23"):
        ptp.attach(model, pruner(), tokenizer())


def _noting(function, enter, leave=lambda: None):
    def noting(*args, **kwargs):
        enter()
        try:
            return function(*args, **kwargs)
        finally:
            leave()

    noting.__signature__ = inspect.signature(function)
    return noting


def test_encoded_pictures_are_pruned_or_refused(family):
    """Releases that do not take them drop the argument, and would read image tokens as words."""
    model, inputs = model_of(family), encode(family, ([picture()], QUESTION))
    about = ("image_sizes", "image_position_ids", "spatial_shapes", "target_sizes")
    pixels = {name: value for name, value in inputs.items() if name.startswith("pixel") or name in about}
    text = {name: value for name, value in inputs.items() if name not in pixels}
    shown = pixels | {name: value for name, value in inputs.items() if name == "image_grid_thw"}
    with torch.no_grad(), pruner()(model, tokenizer()) as trace:
        expected = model(**inputs).logits
        encoded = model.get_image_features(**shown, return_dict=True)
        if takes_encoded(model):
            assert torch.equal(model(**text, mm_encoder_outputs={"image": encoded}).logits, expected)
            assert trace.visual_tokens[1] < trace.visual_tokens[0]
        else:
            with pytest.raises(ptp.UnsupportedModelError, match=r"takes none.* 5\.18 or newer"):
                model(**text, mm_encoder_outputs={"image": encoded})
