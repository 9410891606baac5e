"""Is an answer right? The metrics of the usual benchmarks, by name: an answer and the right ones in, a score in [0, 1] out."""

import re
from collections.abc import Callable, Sequence

NUMBER_WORDS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
ARTICLES = {"a", "an", "the"}


def plain(text: str) -> str:
    """Lower case, single spaces, no full stop at the end."""
    return " ".join(text.lower().split()).rstrip(".").rstrip()


def exact(answer: str, right: Sequence[str]) -> float:
    """1 where the answer is one of the right ones, but for case, spaces and a full stop."""
    return float(plain(answer) in {plain(one) for one in right})


def contains(answer: str, right: Sequence[str]) -> float:
    """1 where one of the right answers stands in the answer, as whole words."""
    return float(any(re.search(rf"(?<!\w){re.escape(plain(one))}(?!\w)", plain(answer)) for one in right if plain(one)))


def anls(answer: str, right: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity: 1 - distance / longer length to the nearest right answer; below 0.5 it is 0.

    Source: Biten et al., Scene Text Visual Question Answering, ICCV 2019 (arXiv 1905.13648), section 4.2.
    """
    given, best = " ".join(answer.lower().split()), 0.0
    for one in (" ".join(text.lower().split()) for text in right):
        longest = max(len(given), len(one))
        best = max(best, 1 - _distance(given, one) / longest if longest else 1.0)
    return best if best >= 0.5 else 0.0


def _distance(a: str, b: str) -> int:
    """Levenshtein distance."""
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (letter != other))
    return row[-1]


def relaxed(answer: str, right: Sequence[str]) -> float:
    """1 where a number is within 5 % of the right one, or a text equals it. "12 %" is 0.12.

    Source: ChartQA, Masry et al. 2022 (arXiv 2203.10244), section 4.1, after Methani et al. 2020.
    """
    return float(any(_near(answer, one) for one in right))


def _near(answer: str, right: str) -> bool:
    given, wanted = _number(answer), _number(right)
    if given is None or wanted is None:
        return plain(answer) == plain(right)
    return abs(given - wanted) <= 0.05 * abs(wanted)


def _number(text: str) -> float | None:
    text = plain(text).replace(",", "")
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def vqa(answer: str, right: Sequence[str]) -> float:
    """VQA accuracy: min(1, people who gave this answer / 3), averaged over leaving out each of the people in turn.

    With fewer than four right answers one that agrees is enough.

    Source: Antol et al., VQA, ICCV 2015 (arXiv 1505.00468), section 4, as its evaluation code averages; answers are compared
    without articles and punctuation, numbers up to ten as digits.
    """
    given, people = _vqa(answer), [_vqa(one) for one in right]
    if len(people) < 4:
        return float(given in people)
    agree = sum(given == one for one in people)
    return sum(min(1.0, (agree - (given == one)) / 3) for one in people) / len(people)


def _vqa(text: str) -> str:
    words = re.sub(r"[^\w\s'.:-]|(?<!\d)[.:](?!\d)", " ", text.lower()).split()
    return " ".join(NUMBER_WORDS.get(word, word) for word in words if word not in ARTICLES)


def choice(answer: str, right: Sequence[str]) -> float:
    """1 where the answer's letter is the right one: "B", "(B)", "B. a dog", "Answer: B"."""
    letter = _letter(answer)
    return float(letter is not None and letter in {_letter(one) for one in right})


def _letter(text: str) -> str | None:
    """The first capital that stands alone; of a lone small letter, its capital."""
    text = text.strip()
    if re.fullmatch(r"\(?[a-z]\)?\.?", text):
        text = text.upper()
    found = re.search(r"(?<![A-Za-z'])([A-Z])(?=\s*(?:[).:,]|$))|\(([A-Z])\)", text)
    return (found[1] or found[2]) if found else None


METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "exact": exact, "contains": contains, "anls": anls, "relaxed": relaxed, "vqa": vqa, "choice": choice,
}  # fmt: skip
"""By the names of `ptp eval --metric`."""
