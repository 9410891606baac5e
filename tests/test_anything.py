"""Whatever people put together: a prefill is pruned exactly, or refused in one clear line."""

from dataclasses import dataclass

import pytest
import torch
from families import FAMILIES, WINDOW, model_of, photo, processor_of, tokenizer
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from masking import blinded, drops, merged, watch

from ptp.adapters import adapter_for
from ptp.methods import METHODS
from ptp.selection import total_budget

LAYOUTS = ("after", "before", "system", "turns", "later", "bare")
"""Where the words are: behind the pictures or before them; with a system prompt; pictures in the first of two turns, or in the
second; without any template."""
WORDS = ("", "What is on it?", "Read the sign.\n\nThen count: 1, 2", "<image>", "é 中文 🙂", "a" * 60)
SETTINGS = {
    "pyramid": st.fixed_dictionaries(
        {},
        optional={
            "alpha": st.floats(0, 1), "region_alpha": st.none() | st.floats(0, 1), "diversity": st.floats(0, 2),
            "relevance": st.sampled_from([None, "attention", "similarity", "both"]),
            "region": st.sampled_from(["thumbnail_attention", "attention_mass", "cls_similarity", "uniform"]),
            "scope": st.sampled_from(["picture", "tile"]), "normalize": st.sampled_from(["picture", "tile"]),
            "thumbnail_keep": st.none() | st.floats(0, 1), "vision_layer": st.integers(-4, 3),
        },
    ),
}  # fmt: skip
LAYERED = [name for name in METHODS if "prune_layer" in METHODS[name].__dataclass_fields__]


@dataclass
class Case:
    """One call: a family, the rows of a batch (sizes of pictures, words, layout), a method."""

    family: str
    attention: str
    rows: list[tuple[list[tuple[int, int]], str, str]]
    method: str
    settings: dict


@st.composite
def sides(draw) -> tuple[int, int]:
    """Width and height in pixels; from 1 x 1 to 1 : 200 and 200 : 1."""
    short = draw(st.integers(1, 220))
    long = draw(st.integers(short, max(short, min(200 * short, 420)))) if draw(st.booleans()) else short
    return (short, long) if draw(st.booleans()) else (long, short)


@st.composite
def cases(draw) -> Case:
    name = draw(st.sampled_from(list(METHODS)))
    own = draw(SETTINGS.get(name, st.just({})))
    if name in LAYERED:
        own = own | {"prune_layer": draw(st.integers(0, 4))}
    rows = st.tuples(st.lists(sides(), max_size=3), st.sampled_from(WORDS), st.sampled_from(LAYOUTS))
    return Case(
        draw(st.sampled_from(list(FAMILIES))),
        draw(st.sampled_from(["eager", "sdpa"])),
        draw(st.lists(rows, min_size=1, max_size=3)),
        name,
        own | {"keep_ratio": draw(st.floats(0.001, 1.0))},
    )


def prompt_of(shown: str, words: str, layout: str) -> str:
    """The text of one row; `shown` is its pictures."""
    turn = "<|im_start|>{}\n{}<|im_end|>\n".format
    told = turn("assistant", "Yes.")
    texts = {
        "after": turn("user", f"{shown}\n{words}"),
        "before": turn("user", f"{words}\n{shown}"),
        "system": turn("system", "Be brief.") + turn("user", f"{shown}\n{words}"),
        "turns": turn("user", f"{shown}\nWhat?") + told + turn("user", words),
        "later": turn("user", "Hello") + told + turn("user", f"{shown}\n{words}"),
        "bare": f"{shown} {words}",
    }
    return texts[layout] + ("" if layout == "bare" else "<|im_start|>assistant\n")


def inputs_of(case: Case):
    """What the family's own processor makes of it; None where it, or the model without pruning, refuses."""
    family = FAMILIES[case.family]
    texts = [prompt_of(family.image * len(sizes), words, layout) for sizes, words, layout in case.rows]
    pictures = [[photo(n, size) for n, size in enumerate(sizes)] for sizes, _, _ in case.rows]
    shown = pictures if family.nested else [picture for row in pictures for picture in row]
    try:
        made = processor_of(family)(text=texts, images=shown, padding=True, return_tensors="pt") if any(pictures) else None
        inputs = dict(processor_of(family)(text=texts, padding=True, return_tensors="pt") if made is None else made)
        with torch.no_grad():
            model_of(family, case.attention)(**inputs)
    except Exception:
        return None
    return inputs


def check(case: Case, patch: pytest.MonkeyPatch) -> None:
    inputs = inputs_of(case)
    assume(inputs is not None)
    model = model_of(FAMILIES[case.family], case.attention)
    with patch.context() as watching:
        try:
            method = METHODS[case.method](window=WINDOW, **case.settings)
            selections = watch(watching, method)
            with torch.no_grad(), method(model, tokenizer()) as trace:
                output = model(**inputs)
        except ValueError as error:
            assert "\n" not in str(error) and str(error).endswith("."), "one line, with a remedy"
            return
    assert len(trace.images) == sum(len(sizes) for sizes, _, _ in case.rows)
    last = method.stages(len(adapter_for(model).layers))[-1]
    for image in trace.images:
        assert len(image.kept) == total_budget(last.keep_ratio, image.num_tokens)
    if not trace.images:
        return
    gone = drops(inputs, trace, selections)
    mask = inputs["attention_mask"].bool()
    with torch.no_grad(), blinded(model, mask, (gone, None)), merged(model, trace, selections):
        expected = model(**inputs).logits
    for row, stays in enumerate(mask & ~gone[max(gone)]):
        count = int(stays.sum())
        torch.testing.assert_close(output.logits[row, -count:], expected[row, stays], atol=2e-4, rtol=0)


slow = settings(deadline=None, print_blob=True, suppress_health_check=list(HealthCheck))


@settings(slow, max_examples=100, derandomize=True)
@given(case=cases())
def test_it_is_exact_or_refused(case):
    with pytest.MonkeyPatch.context() as patch:
        check(case, patch)


@pytest.mark.nightly
@settings(slow, max_examples=1000)
@given(case=cases())
def test_it_is_exact_or_refused_many_times(case):
    with pytest.MonkeyPatch.context() as patch:
        check(case, patch)
