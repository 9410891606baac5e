"""The benchmarks' metrics, with cases from their papers."""

import pytest

from ptp.evaluation.metrics import METRICS

CASES = [
    ("exact", "Red.", ["red"], 1),
    ("exact", "  dark   RED ", ["dark red"], 1),
    ("exact", "redder", ["red"], 0),
    ("contains", "It is a red sign.", ["red"], 1),
    ("contains", "It is bored.", ["red"], 0),
    ("contains", "C++ it is", ["c++"], 1),
    ("anls", "hello", ["hello"], 1),
    ("anls", "helo", ["hello"], 0.8),
    ("anls", "abc", ["xyz"], 0),
    ("anls", "HELLO", ["nothing", "hello"], 1),
    ("anls", "abcd", ["abxy"], 0.5),
    ("anls", "abcde", ["abxyz"], 0),
    ("relaxed", "104", ["100"], 1),
    ("relaxed", "106", ["100"], 0),
    ("relaxed", "-95", ["-100"], 1),
    ("relaxed", "Spain", ["spain"], 1),
    ("relaxed", "0.5", ["50%"], 1),
    ("relaxed", "1,050", ["1000"], 1),
    ("relaxed", "0", ["0"], 1),
    ("relaxed", "many", ["3"], 0),
    ("vqa", "yes", ["yes"] * 10, 1),
    ("vqa", "yes", ["yes"] * 2 + ["no"] * 8, (2 * 1 / 3 + 8 * 2 / 3) / 10),
    ("vqa", "yes", ["yes"] + ["no"] * 9, 9 * (1 / 3) / 10),
    ("vqa", "The two dogs!", ["2 dogs"] * 10, 1),
    ("vqa", "no", ["yes"] * 10, 0),
    ("vqa", "yes", ["yes", "no"], 1),
    ("choice", "B", ["B"], 1),
    ("choice", "(B) a dog", ["B"], 1),
    ("choice", "The answer is C.", ["C"], 1),
    ("choice", "b", ["B"], 1),
    ("choice", "A dog is in B.", ["B"], 1),
    ("choice", "I don't know", ["A"], 0),
    ("choice", "D. All of them", ["D. All of them"], 1),
    ("choice", "A", ["B"], 0),
]


@pytest.mark.parametrize(("name", "answer", "right", "score"), CASES)
def test_a_metric_says_what_its_paper_says(name, answer, right, score):
    assert METRICS[name](answer, right) == pytest.approx(score)
