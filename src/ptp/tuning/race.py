"""The race: few questions first, what is surely worse leaves, the rest gets more. Numbers in, survivors out; no model here."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .candidates import Arm

FIRST, GROWTH, FINALISTS = 12, 2, 3
"""Questions of the first round; how much more each round has in all; how many of a share run to the end."""
ERROR = 0.05
"""The chance of an arm that is as good as any to be sent off in a round, at most (as far as means of losses are normal)."""
AS_FAST = 1.05
"""An arm that takes up to so many times another's time is no slower: what a busy machine's clock can tell."""


@dataclass(frozen=True)
class Seen:
    """How one arm did on one question.

    Attributes:
        changed: Whether the greedy answer is another than the unpruned model's.
        kl: Mean divergence along the unpruned answer, nats per token.
        time: Seconds to the first token, encoding not counted, over the unpruned model's on this question.
        kept: Share of the visual tokens after the last stage.
    """

    changed: bool
    kl: float
    time: float
    kept: float

    @property
    def loss(self) -> float:
        """How much was lost, in [0, 1]: half of it the changed answer, half the divergence, as 1 - exp(-KL).

        A changed answer is what counts but seldom happens; the divergence says something of every question.
        """
        return (self.changed + 1 - math.exp(-self.kl)) / 2


Results = Mapping[Arm, Sequence[Seen]]
"""What each arm did on the same questions, in the same order."""


def rounds(questions: int) -> list[int]:
    """Questions that have been asked at the end of each round; all of them in the last."""
    ends = [FIRST]
    while ends[-1] < questions:
        ends.append(ends[-1] * GROWTH)
    return [*ends[:-1], questions]


def places(round_number: int, entered: int) -> int:
    """How many of the `entered` arms of a share may go on after a round, counted from 0: half each time, to `FINALISTS`."""
    return max(FINALISTS, math.ceil(entered / 2 ** (round_number + 1)))


def survivors(results: Results, entered: Mapping[float, int], round_number: int) -> list[Arm]:
    """The arms that go on: not surely worse than another of their share, and of each share no more than there is room for.

    Of their share only: one that loses more than another with more tokens, and is no faster, may still be the best of its own,
    and a line of the table is read as that.

    Args:
        results: Of those that are still in the race.
        entered: How many arms of each share began it.
    """
    staying: list[Arm] = []
    for share in dict.fromkeys(arm.share for arm in results):
        own = [arm for arm in results if arm.share == share]
        losses = np.array([[seen.loss for seen in results[arm]] for arm in own])
        times = np.array([np.median([seen.time for seen in results[arm]]) for arm in own])
        worse = surely_worse(losses, times)
        ranked = losses.mean(axis=1).argsort(kind="stable")
        fit = [own[place] for place in ranked if not worse[place]] or [own[ranked[0]]]  # every share has somebody to tell of
        staying += fit[: places(round_number, entered[share])]
    return [arm for arm in results if arm in staying]


def surely_worse(losses: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Which arms have another that is no slower and, with confidence, loses less.

    Paired one-sided t intervals of the differences, question by question; `ERROR` is shared out over all others.

    Args:
        losses: (arms, questions). times: (arms,) over the unpruned model's.

    Returns:
        (arms,) bool.
    """
    count, questions = losses.shape
    if count < 2 or questions < 2:
        return np.zeros(count, dtype=bool)
    from scipy.stats import t as student  # of the extra `eval`

    mean = losses.mean(axis=1)
    difference = mean[:, None] - mean  # of the row from the column
    spread = np.cov(losses)
    variance = np.diag(spread)[:, None] + np.diag(spread) - 2 * spread
    error = np.sqrt(np.clip(variance, 0, None) / questions)
    sure = difference > student.ppf(1 - ERROR / (count - 1), questions - 1) * error
    slower = times > AS_FAST * times[:, None]  # the column than the row
    return np.asarray((sure & (difference > 1e-12) & ~slower).any(axis=1))


def best(results: Results) -> list[Arm]:
    """The arm of each share that lost least, most tokens first."""
    ranked = sorted(results, key=lambda arm: (-arm.share, np.mean([seen.loss for seen in results[arm]])))
    found: dict[float, Arm] = {}
    for arm in ranked:
        found.setdefault(arm.share, arm)
    return list(found.values())
