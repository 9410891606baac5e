"""How large the share of changed answers may be, given those that were seen: upper confidence bounds, one-sided."""

import math
from collections.abc import Sequence

import numpy as np

CONFIDENCE = 0.95


def clopper_pearson(changed: int, count: int, confidence: float = CONFIDENCE) -> float:
    """Upper bound of a share, exact: of `count` independent questions `changed` were answered otherwise.

    The largest share under which as few changes have a probability of at least 1 - confidence; one-sided.

    Raises:
        ValueError: changed is not in [0, count], or count is not positive.

    Source: Clopper and Pearson, Biometrika 26 (1934).
    """
    if not 0 <= changed <= count or count < 1:
        raise ValueError(f"changed must be in [0, count] and count positive, got {changed} of {count}. Count again.")
    from scipy.stats import beta  # of the extra `eval`

    return 1.0 if changed == count else float(beta.ppf(confidence, changed + 1, count - changed))


def hoeffding_bentkus(values: Sequence[float], confidence: float = CONFIDENCE) -> float:
    """Upper bound of a mean, of independent values in [0, 1] that need not be 0 or 1; one-sided, holds for any n.

    For several questions about one picture: their answers change together, so the picture counts once, with the share of its
    answers that changed.

    Raises:
        ValueError: there are no values, or one is not in [0, 1].

    Source: Bates et al., Distribution-free, risk-controlling prediction sets, arXiv 2101.02703, section 3.1.
    """
    if not len(values) or min(values) < 0 or max(values) > 1:
        raise ValueError(f"values must be some numbers in [0, 1], got {list(values)[:9]}. Pass shares of changed answers.")
    from scipy.optimize import brentq

    count, mean = len(values), float(np.mean(values))

    def excess(bound: float) -> float:
        return _chance(mean, count, bound) - (1 - confidence)

    return 1.0 if mean >= 1 or excess(1 - 1e-12) > 0 else float(brentq(excess, mean, 1 - 1e-12, xtol=1e-9))


def _chance(mean: float, count: int, bound: float) -> float:
    """At most how likely a mean as low as `mean` is where the true one is `bound`, above it."""
    if bound <= mean:
        return 1.0
    from scipy.stats import binom

    hoeffding = math.exp(-count * _divergence(mean, bound))
    bentkus = math.e * float(binom.cdf(math.ceil(count * mean - 1e-9), count, bound))
    return min(1.0, hoeffding, bentkus)


def _divergence(a: float, b: float) -> float:
    """Of a coin with chance `b` from one with chance `a`, in nats."""
    first = a * math.log(a / b) if a > 0 else 0.0
    return first + (1 - a) * math.log((1 - a) / (1 - b))


def change_bound(changed: Sequence[Sequence[bool]], confidence: float = CONFIDENCE) -> tuple[float, str]:
    """Upper bound of the share of changed answers, and the name of the bound.

    Args:
        changed: Of every picture (or set of pictures that are shown together) whether each of its answers changed.
    """
    if all(len(own) == 1 for own in changed):
        return clopper_pearson(sum(own[0] for own in changed), len(changed), confidence), "Clopper-Pearson"
    return hoeffding_bentkus([float(np.mean(own)) for own in changed], confidence), "Hoeffding-Bentkus over pictures"


def pictures_needed(limit: float, several: bool, rate: float = 0.0, confidence: float = CONFIDENCE) -> int | None:
    """How many pictures it takes until the bound of `change_bound` is at most `limit` where `rate` of the answers change.

    Args:
        several: Whether pictures are asked about more than once.

    Returns:
        The smallest number; None where none does (the rate is not below the limit), or it is above ten million.
    """

    def enough(count: int) -> bool:
        bad = math.ceil(rate * count - 1e-9)
        if several:
            return _chance(bad / count, count, limit) <= 1 - confidence
        return clopper_pearson(bad, count, confidence) <= limit

    if rate >= limit:
        return None
    high = 1
    while not enough(high):
        high *= 2
        if high > 10_000_000:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
