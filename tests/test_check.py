"""What a method decides is checked: a wrong selection is one clear error that names the method."""

import pytest
import torch
from conftest import encode, picture, prompt, small_model

import ptp
from ptp.pruner import Stage
from ptp.selection import Selection, total_budget


class Wrong(ptp.Pruner):
    """Decides what it is told to."""

    def select(self, picture, stage):
        right = torch.arange(total_budget(stage.keep_ratio, picture.tokens)) * 2
        return self.decide(picture, right)


def merged(kept, **changed):
    group = torch.full((80,), -1).index_put((kept,), kept)
    for token, target in changed.items():
        group[int(token[1:])] = target
    return group


def selection(picture, kept, budgets=None, **other):
    return Selection(kept, picture.count_per_tile(kept) if budgets is None else budgets, **other)


CASES = {
    "no selection": (lambda p, k: [1, 2, 3], "must return a Selection, got list"),
    "nothing": (lambda p, k: None, "must return a Selection, got NoneType"),
    "a list of indices": (lambda p, k: Selection(k.tolist(), [8] * 5), r"kept must be \(K,\) int64 indices .* got list"),
    "a mask": (lambda p, k: Selection(torch.ones(80).bool(), [8] * 5), r"got torch.bool \(80,\)\. Of a mask, mask.nonzero"),
    "floats": (lambda p, k: Selection(k.float(), [8] * 5), r"int64 indices .* got torch.float32 \(40,\)"),
    "two dimensions": (lambda p, k: Selection(k[None], [8] * 5), r"got torch.int64 \(1, 40\)"),
    "too few": (lambda p, k: selection(p, k[:-1]), r"kept must be 40 tokens \(the stage's keep_ratio 0.5 of 80\), got 39"),
    "too many": (lambda p, k: selection(p, torch.arange(41)), "kept must be 40 tokens .* got 41"),
    "unsorted": (lambda p, k: selection(p, k.flip(0)), r"kept must ascend and hold no index twice, got \[78, 76, "),
    "twice": (lambda p, k: selection(p, k.clone().index_fill(0, torch.tensor([1]), 0)), "hold no index twice"),
    "out of range": (lambda p, k: Selection(k + 2, [8] * 5), "kept must be among picture.alive"),
    "negative": (lambda p, k: Selection(k - 1, [8] * 5), "kept must be among picture.alive"),
    "wrong budgets": (lambda p, k: selection(p, k, [40, 0, 0, 0, 0]), r"kept in each tile, \[8, 8, 8, 8, 8\], got \[40, 0"),
    "short budgets": (lambda p, k: selection(p, k, [40]), r"got \[40\]\. picture.count_per_tile"),
    "merged, short": (lambda p, k: selection(p, k, merged=torch.zeros(10).long()), r"merged must be \(80,\) int64"),
    "merged, floats": (lambda p, k: selection(p, k, merged=merged(k).float()), r"merged must be \(80,\) int64"),
    "merged without itself": (lambda p, k: selection(p, k, merged=merged(k, _4=-1)), r"go into itself, got merged\[4\] = -1"),
    "merged elsewhere": (lambda p, k: selection(p, k, merged=merged(k, _4=6)), r"go into itself, got merged\[4\] = 6"),
    "merged into a dropped one": (lambda p, k: selection(p, k, merged=merged(k, _5=7)), r"point to kept tokens .* got \[7\]"),
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
    right = type("Right", (Wrong,), {"decide": staticmethod(lambda p, k: selection(p, k, merged=merged(k, _5=4)))})()
    with torch.no_grad(), right(small_model()) as trace:
        small_model()(**encode(prompt(picture(1, (2, 2)))))
    assert trace.images[0].kept.tolist() == list(range(0, 80, 2))


def test_a_later_stage_chooses_among_what_is_left():
    class Twice(Wrong):
        def stages(self, layers):
            return (Stage(0, 0.5), Stage(2, 0.25))

        def decide(self, picture, kept):
            return selection(picture, kept if len(kept) == 40 else torch.arange(20))

    with torch.no_grad(), Twice()(small_model()), pytest.raises(ValueError, match=r"picture.alive \(here 40 of 80 tokens\)"):
        small_model()(**encode(prompt(picture(1, (2, 2)))))


@pytest.mark.parametrize("layers", [None, 3, [0], ("last",), (True,)])
def test_vision_layers_must_be_a_tuple_of_numbers(layers):
    method = type("Mistaken", (Wrong,), {"vision_layers": property(lambda self: layers)})()
    with pytest.raises(ValueError, match=r"Mistaken.vision_layers must be a property that returns a tuple of layer numbers"):
        ptp.attach(small_model(), method)


def test_vision_layers_as_a_method_are_told_apart():
    method = type("Mistaken", (Wrong,), {"vision_layers": lambda self: (-1,)})()
    with pytest.raises(ValueError, match=r"Mistaken.vision_layers must be a property .* got <bound method"):
        ptp.attach(small_model(), method)


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
