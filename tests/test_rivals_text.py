"""Rivals that read the language model keep what a loop written from their authors' rule keeps."""

import math
from functools import cache

import pytest
import torch
from conftest import tokenizer
from rivals import CASES, LAYERS, Case, Prefill, best, inputs_of, model_of, on_tokens, vision_maps

from ptp.clustering import density_peaks
from ptp.methods import METHODS


def fastv(case: Case, keep: float) -> list[int]:
    """K = 2: the attention of layer 1, last token, head mean."""
    run = Prefill(case)
    return best(run.visual(run.run_to(2)[-1]), run.alive, round(keep * case.tokens))


def pyramiddrop(case: Case, keep: float) -> list[int]:
    """At 1/4, 1/2 and 3/4 of the depth, by the attention of the layer where tokens leave, on its input; last token."""
    run = Prefill(case)
    for number, layer in enumerate((LAYERS // 4, LAYERS // 2, 3 * LAYERS // 4), 1):
        run.run_to(layer)
        row = run.look()[1].mean(dim=0)[-1]
        run.leave(best(run.visual(row), run.alive, max(1, round(keep ** (number / 3) * case.tokens))))
    return run.alive


def deft(case: Case, keep: float) -> list[int]:
    """M = min(N, K + ceil(0.2 (N - K))) by a global top-M of [CLS]; at half depth the mean over all text of the layer below."""
    wanted = max(1, round(keep * case.tokens))
    many = min(case.tokens, wanted + math.ceil(0.2 * (case.tokens - wanted)))
    run = Prefill(case)
    paid = on_tokens(case, vision_maps(case)[-1][:, :, 0, 1:].mean(dim=1))
    run.leave(best(paid, run.alive, many))
    attention = run.run_to(LAYERS // 2)
    return best(run.visual(attention[run.text].mean(dim=0)), run.alive, wanted)


def clusters_of(dropped: int) -> int:
    """int(0.3 of the dropped) + 1 are recycled into a tenth as many tokens, plus one."""
    return int((int(dropped * 0.3) + 1) / 10) + 1


def peaks(features: list[torch.Tensor], count: int) -> list[int]:
    """Density peaks by hand: of each token the one at its cluster's centre."""
    width, every = len(features[0]) ** 0.5, range(len(features))
    apart = [[float((a - b).norm()) / width for b in features] for a in features]
    density = [math.exp(-sum(d * d for d in sorted(row)[:count]) / count) for row in apart]
    most = max(map(max, apart))
    reach = [min((apart[i][j] for j in every if density[j] > density[i]), default=most) for i in every]
    centers = sorted(every, key=lambda i: -reach[i] * density[i])[:count]
    return [i if i in centers else min(centers, key=lambda c: apart[i][c]) for i in every]


@cache
def sparsevlm(case: Case, keep: float, recycle: bool = True) -> tuple[list[int], list[int]]:
    """Raters once, from the embeddings, among all text behind the picture; layers 2, 6, 15 of 32, tokens leave after them.

    Returns what is kept, and of it what stands for a cluster.
    """
    schedules = {110: (300, 200, 110), 36: (303, 110, 36), 17: (66, 30, 17)}
    run = Prefill(case)
    likeness = (run.visual(run.states) @ run.states[run.behind].T).softmax(dim=1).mean(dim=0)
    raters = [i for i, value in zip(run.behind, likeness, strict=True) if value > likeness.mean()]
    assert 0 < len(raters) < len(run.behind)
    merged: list[int] = []
    for layer, count in zip((1, 2, 4), schedules[round(keep * 576)], strict=True):  # of 8 layers: (3, 7, 16) / 4, upwards
        attention = run.run_to(layer)
        scores = run.visual(attention[raters].mean(dim=0))
        budget = max(1, round(count / 576 * case.tokens))
        alone = budget
        if recycle:  # clusters are in the budget: as many tokens of their own as leave room for them
            fitting = [k for k in range(1, budget) if k + clusters_of(len(run.alive) - k) <= budget]
            alone = max(fitting, default=budget)
        kept = best(scores, run.alive, alone)
        merged = []
        if alone < budget:
            dropped = [j for j in run.alive if j not in kept]
            chosen = best(scores, dropped, int(0.3 * len(dropped)) + 1)
            places = [run.first + j for j in chosen]
            centers = [chosen[c] for c in peaks([run.states[p] for p in places], budget - alone)]
            states = run.states.clone()
            for center in set(centers):
                group = [p for p, c in zip(places, centers, strict=True) if c == center]
                states[run.first + center] = run.states[group].mean(dim=0)
            run.states, merged = states, sorted(set(centers))
        run.leave(sorted([*kept, *merged]))
    return run.alive, merged


RULES = {rule.__name__: cache(rule) for rule in (fastv, pyramiddrop, deft, sparsevlm)}


def kept_by(method, case: Case, attention: str) -> list[int]:
    with torch.no_grad(), method(model_of(case, attention), tokenizer()) as trace:
        model_of(case, attention)(**inputs_of(case))
    return trace.images[0].kept.tolist()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("keep", [0.3, 0.07])
@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
@pytest.mark.parametrize("name", ["fastv", "pyramiddrop", "deft"])
def test_it_keeps_what_the_authors_keep(name, case, keep, attention):
    expected = RULES[name](case, keep)
    assert len(expected) == max(1, round(keep * case.tokens))
    assert kept_by(METHODS[name](keep_ratio=keep), case, attention) == expected


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("last", [110, 36, 17])
@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_sparsevlm_keeps_what_the_authors_keep(case, last, attention):
    expected, merged = sparsevlm(case, last / 576)
    assert merged or case.size == 16, "large pictures recycle"
    assert kept_by(METHODS["sparsevlm"](keep_ratio=last / 576), case, attention) == expected


def test_sparsevlm_without_recycling():
    case = CASES["seven of 16"]
    expected, merged = sparsevlm(case, 110 / 576, recycle=False)
    assert not merged and kept_by(METHODS["sparsevlm"](keep_ratio=110 / 576, recycle=0), case, "sdpa") == expected


def test_the_schedules_are_the_authors():
    """300/200/110, 303/110/36 and 66/30/17 of 576, between inputs of layers 3, 7 and 16 of 32."""
    for counts in ((300, 200, 110), (303, 110, 36), (66, 30, 17)):
        stages = METHODS["sparsevlm"](keep_ratio=counts[-1] / 576).stages(32)
        assert [(stage.layer, stage.budget(576)) for stage in stages] == list(zip((3, 7, 16), counts, strict=True))
    assert [stage.keep_ratio for stage in METHODS["sparsevlm"](keep_ratio=1.0).stages(32)] == [1.0, 1.0, 1.0]
    stages = METHODS["pyramiddrop"](keep_ratio=1 / 8).stages(32)
    assert [(stage.layer, stage.budget(576)) for stage in stages] == [(8, 288), (16, 144), (24, 72)]
    (read,) = METHODS["deft"]().reads(27).vision
    assert (read.layer, read.layer_without_cls) == (-1, -2), "without [CLS] the last block but one"
    assert [stage.budget(577) for stage in METHODS["deft"](keep_ratio=0.2).stages(28)] == [115 + math.ceil(0.2 * 462), 115]


@pytest.mark.parametrize("name", ["fastv", "pyramiddrop", "sparsevlm", "deft", "dart"])
def test_a_prompt_that_ends_with_its_picture_is_refused(name):
    """Nobody behind the picture attends to it: whatever a method kept would be chance."""
    case = CASES["seven of 16"]
    inputs, run = dict(inputs_of(case)), Prefill(case)
    for cut in ("input_ids", "attention_mask"):
        inputs[cut] = inputs[cut][:, : run.first + case.tokens]
    with torch.no_grad(), METHODS[name]()(model_of(case), tokenizer()), pytest.raises(ValueError, match="text behind the pict"):
        model_of(case)(**inputs)


@pytest.mark.parametrize(("count", "clusters"), [(1, 1), (7, 1), (20, 3), (60, 7), (9, 9)])
def test_density_peaks_by_hand(count, clusters):
    features = torch.randn(count, 6, generator=torch.Generator().manual_seed(count))
    assert density_peaks(features, clusters).tolist() == peaks(list(features), clusters)
