"""What a method decides is checked: a wrong selection is one clear error that names the method."""

import pytest
import torch
from conftest import encode, picture, prompt, small_model
from families import FAMILIES, model_of

import ptp
from ptp import Reads, Selection, Stage, VisionRead
from ptp.selection import averages, total_budget


class Wrong(ptp.Pruner):
    """Decides what it is told to."""

    def select(self, picture, stage):
        right = torch.arange(total_budget(stage.keep_ratio, picture.tokens)) * 2
        return self.decide(picture, right)


def selection(picture, kept, budgets=None, **other):
    return Selection(kept, picture.count_per_tile(kept) if budgets is None else budgets, **other)


CASES = {
    "no selection": (lambda p, k: [1, 2, 3], "must return a Selection, got list"),
    "nothing": (lambda p, k: None, "must return a Selection, got NoneType"),
    "a list of indices": (lambda p, k: Selection(k.tolist(), [8] * 5), r"kept must be \(K,\) int64 indices .* got list"),
    "a mask": (lambda p, k: Selection(torch.ones(80).bool(), [8] * 5), r"got torch.bool \(80,\)\. Of a mask, mask.nonzero"),
    "floats": (lambda p, k: Selection(k.float(), [8] * 5), r"int64 indices .* got torch.float32 \(40,\)"),
    "two dimensions": (lambda p, k: Selection(k[None], [8] * 5), r"got torch.int64 \(1, 40\)"),
    "too few": (lambda p, k: selection(p, k[:-1]), r"kept must be 40 tokens \(the stage's budget of 80\), got 39"),
    "too many": (lambda p, k: selection(p, torch.arange(41)), "kept must be 40 tokens .* got 41"),
    "unsorted": (lambda p, k: selection(p, k.flip(0)), r"kept must ascend and hold no index twice, got \[78, 76, "),
    "twice": (lambda p, k: selection(p, k.clone().index_fill(0, torch.tensor([1]), 0)), "hold no index twice"),
    "out of range": (lambda p, k: Selection(k + 2, [8] * 5), "kept must be among picture.alive"),
    "negative": (lambda p, k: Selection(k - 1, [8] * 5), "kept must be among picture.alive"),
    "wrong budgets": (lambda p, k: selection(p, k, [40, 0, 0, 0, 0]), r"kept in each tile, \[8, 8, 8, 8, 8\], got \[40, 0"),
    "short budgets": (lambda p, k: selection(p, k, [40]), r"got \[40\]\. picture.count_per_tile"),
    "a mix of other shape": (lambda p, k: selection(p, k, mix=torch.zeros(80)), r"mix must be \(40, 80\) .* got .*\(80,\)"),
    "a mix of integers": (lambda p, k: selection(p, k, mix=torch.ones(40, 80).long()), r"mix must be .* got torch.int64"),
    "a mix that loses a token": (lambda p, k: selection(p, k, mix=torch.eye(80)[k] * (k[:, None] != 4)), "its kept token"),
    "a mix that is not finite": (lambda p, k: selection(p, k, mix=torch.eye(80)[k] * torch.inf), "must be finite"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_selection_is_refused_by_name(case):
    decide, message = CASES[case]
    method = type("Mistaken", (Wrong,), {"decide": staticmethod(decide)})()
    model, inputs = small_model(), encode(prompt(picture(1, (2, 2))))
    with torch.no_grad(), method(model), pytest.raises(ValueError, match=f"Mistaken.select: .*{message}"):
        model(**inputs)
    with torch.no_grad():
        model(**inputs)


def test_a_right_selection_is_not_refused():
    right = type(
        "Right", (Wrong,), {"decide": staticmethod(lambda p, k: selection(p, k, mix=averages(torch.arange(80) // 2 * 2, k)))}
    )()
    with torch.no_grad(), right(small_model()) as trace:
        small_model()(**encode(prompt(picture(1, (2, 2)))))
    assert trace.images[0].kept.tolist() == list(range(0, 80, 2))


def test_a_mix_of_tokens_that_left_is_refused():
    class Twice(Wrong):
        def stages(self, layers):
            return (Stage(0, 0.5), Stage(2, 0.25))

        def decide(self, picture, kept):
            return selection(picture, picture.alive[: len(kept)], mix=torch.ones(len(kept), 80))

    with (
        torch.no_grad(),
        Twice()(small_model()),
        pytest.raises(ValueError, match=r"Twice.select: mix must weigh tokens of picture.alive"),
    ):
        small_model()(**encode(prompt(picture(1, (2, 2)))))


def test_a_later_stage_chooses_among_what_is_left():
    class Twice(Wrong):
        def stages(self, layers):
            return (Stage(0, 0.5), Stage(2, 0.25))

        def decide(self, picture, kept):
            return selection(picture, kept if len(kept) == 40 else torch.arange(20))

    with torch.no_grad(), Twice()(small_model()), pytest.raises(ValueError, match=r"picture.alive \(here 40 of 80 tokens\)"):
        small_model()(**encode(prompt(picture(1, (2, 2)))))


@pytest.mark.parametrize(
    ("reads", "message"),
    [
        (None, "must return a Reads, got None"),
        ((-1,), r"must return a Reads, got \(-1,\)"),
        (Reads(vision=(-1,)), r"vision must be a tuple of VisionRead, got \(-1,\)"),
        (Reads(vision=[VisionRead()]), r"vision must be a tuple of VisionRead, got \[VisionRead"),
        (Reads(vision=VisionRead()), "vision must be a tuple of VisionRead, got VisionRead"),
        (Reads(probe="last"), "probe must be a TextProbe or None, got 'last'"),
    ],
)
def test_reads_must_be_reads(reads, message):
    method = type("Mistaken", (Wrong,), {"reads": lambda self, depth: reads})()
    with pytest.raises(ValueError, match=f"Mistaken.reads:? ?{message}"):
        ptp.attach(small_model(), method)


def test_cls_attention_is_refused_where_there_is_no_cls():
    method = type("Wants", (Wrong,), {"reads": lambda self, depth: Reads(vision=(VisionRead(attention="cls"),))})()
    with pytest.raises(
        ptp.UnsupportedModelError, match=r"reads \[CLS\] attention, and the encoder of SmolVLM .* has no \[CLS\]"
    ):
        ptp.attach(model_of(FAMILIES["smolvlm"]), method)


@pytest.mark.parametrize("setting", ["early_layer", "vision_layer"])
def test_a_layer_that_is_not_there_is_reported_by_its_setting(setting):
    method = ptp.METHODS["hired"](**{setting: 7})
    with pytest.raises(ValueError, match=rf"^{setting} must be in \[-3, 2\] for this model, got 7"):
        ptp.attach(small_model(), method)


def test_stages_must_be_stages():
    method = type("Mistaken", (Wrong,), {"stages": lambda self, layers: ()})()
    with pytest.raises(ValueError, match=r"Mistaken.stages must return at least one Stage"):
        ptp.attach(small_model(), method)
    method = type("Mistaken", (Wrong,), {"stages": lambda self, layers: [(0, 0.5)]})()
    with pytest.raises(ValueError, match=r"Mistaken.stages must return Stages, got \(0, 0.5\)"):
        ptp.attach(small_model(), method)
    method = type("Mistaken", (Wrong,), {"stages": lambda self, layers: (Stage(0, 1.5),)})()
    with pytest.raises(ValueError, match=r"keep_ratio must be in \(0, 1\], got 1.5"):
        ptp.attach(small_model(), method)
