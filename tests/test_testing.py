"""`check_adapter` passes every family, and finds what is wrong with adapters that are."""

import copy
from dataclasses import replace

import pytest
import torch
from conftest import footprint
from wrong_adapters import WRONG

import ptp
from ptp.adapters import ADAPTERS, register
from ptp.methods import METHODS
from ptp.testing import (
    FAMILIES,
    SIZES,
    CheckFailed,
    check_adapter,
    photo,
    register_family,
    small_model,
    small_processor,
    token_id,
)
from ptp.testing.check import CHECKS
from ptp.testing.family import tokenizer
from ptp.testing.report import ORACLES


def check(name: str, **options):
    shown = [photo(number, FAMILIES[name].shape(size)) for number, size in enumerate(SIZES)]
    return check_adapter(small_model(FAMILIES[name]), small_processor(FAMILIES[name]), **{"pictures": shown, **options})


def test_every_family_passes(family, capsys):
    model = small_model(family)
    with torch.no_grad():  # transformers leaves hooks of its own where maps were asked for
        model(**family.encode(small_processor(family), [([photo(0, (60, 60))], "Hello")]), output_attentions=True)
    before = footprint(model)
    report = check(family.name)
    assert {found.oracle for found in report} == set(CHECKS) == set(ORACLES)
    assert all(found.error <= found.limit for found in report)
    assert capsys.readouterr().out == "" and "masking        4 checked, off by" in str(report)
    assert footprint(model) == before


def test_the_attention_that_a_model_had_is_given_back():
    model = small_model(FAMILIES["internvl"], "eager")
    check_adapter(model, small_processor(FAMILIES["internvl"]), pruners=[ptp.PyramidPruner(alpha=0)])
    kinds = {part.config._attn_implementation for part in model.modules() if hasattr(part, "config")}
    assert kinds == {"eager"}


@pytest.mark.parametrize(("adapter", "name", "oracle", "problem"), WRONG, ids=[wrong[0].__name__ for wrong in WRONG])
def test_a_wrong_adapter_is_found(adapter, name, oracle, problem):
    family = FAMILIES[name]
    model = copy.deepcopy(small_model(family))  # one of them leaves a hook on it
    register(adapter)
    try:
        with pytest.raises(CheckFailed, match=problem) as caught:
            check_adapter(model, small_processor(family))
    finally:
        ADAPTERS.remove(adapter)
    assert caught.value.oracle == oracle and ORACLES[oracle] in str(caught.value)


def test_a_method_that_merges_tokens_is_checked_too():
    report = check("internvl", pruners=[METHODS["visionzip"](keep_ratio=0.3, contextual=0.5)])
    assert any(each.oracle == "masking" and "VisionZipPruner" in each.settings for each in report)


# Models and prompts that cannot be checked


def test_what_cannot_be_checked_is_refused():
    family = FAMILIES["internvl"]
    with pytest.raises(ValueError, match=r"must be in float32, got torch\.bfloat16.*model\.float\(\)"):
        check_adapter(family.build(ptp.testing.SMALL, torch.bfloat16), small_processor(family))
    with pytest.raises(ValueError, match=r"must be in eval mode.*model\.eval\(\)"):
        check_adapter(family.build(ptp.testing.SMALL).train(), small_processor(family))
    with pytest.raises(ValueError, match=r"makes no inputs of a batch.*pass encode="):
        check_adapter(small_model(family), "processor")


def test_pictures_and_encode_are_ones_own():
    family, asked = FAMILIES["qwen3-vl"], []

    def encode(prompts):
        asked.extend(picture.size for pictures, _ in prompts for picture in pictures)
        return family.encode(small_processor(family), prompts)

    check("qwen3-vl", pictures=[photo(7, (222, 111))], encode=encode, pruners=[ptp.PyramidPruner(window=56)])
    assert set(asked) == {(222, 111), (888, 444)}


# Families


def test_markers_of_a_new_family_change_no_other_ones_weights():
    family = FAMILIES["llava-next"]
    before, size = family.build(ptp.testing.SMALL).state_dict(), len(tokenizer())
    ids = {marker: token_id(marker) for each in FAMILIES.values() for marker in each.markers}
    try:
        register_family(replace(family, name="mine", markers=("[IMG]", "<image>")))
        assert FAMILIES["mine"].name == "mine" and token_id("[IMG]") == size == len(tokenizer()) - 1
        assert ids == {marker: token_id(marker) for marker in ids}
        after = family.build(ptp.testing.SMALL).state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items())
    finally:
        del FAMILIES["mine"]


def test_there_is_room_for_so_many_markers():
    with pytest.raises(ValueError, match="must fit into a vocabulary of 1024, got 1000 more"):
        register_family(replace(FAMILIES["internvl"], markers=tuple(f"<{n}>" for n in range(1000))))
    with pytest.raises(ValueError, match=r"'<nothing>' is no token\. Put it among the family's markers"):
        token_id("<nothing>")
