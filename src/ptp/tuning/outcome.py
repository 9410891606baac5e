"""What tuning found: the best of each share, measured on pictures that it was not chosen on, and the one that is proposed."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .bounds import change_bound, pictures_needed
from .candidates import Arm
from .race import Seen


@dataclass(frozen=True)
class Line:
    """One share's best, on the reporting half.

    Attributes:
        name, keep_ratio: Method and settings, and what it is told. share: Of the tokens, averaged over the layers.
        kept: Share of the tokens after the last stage.
        questions, pictures: That were asked. changed: Answers that changed.
        bound: What the share of changed answers is at most, with 95 % confidence. bound_name: Which bound that is.
        kl: Mean divergence, nats per token.
        first_token, full_first_token: Median seconds from the pixels to the first token; None where no clock ran.
        speed_up: Median over rounds of the unpruned time over its own.
        proven: Whether the bound is met, and by all that keep more: see `lines`.
    """

    name: str
    keep_ratio: float
    share: float
    kept: float
    questions: int
    pictures: int
    changed: int
    bound: float
    bound_name: str
    kl: float
    first_token: float | None
    full_first_token: float | None
    speed_up: float | None
    proven: bool

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def lines(
    results: Mapping[Arm, Sequence[Seen]], groups: Sequence[int], times: Mapping[str, Sequence[float]], max_change: float
) -> list[Line]:
    """A line for each arm, most tokens first.

    The bounds are tested in this order, each at 95 %, until the first that is not met: so that with 95 % confidence *none* of
    those called proven changes more than `max_change` of the answers (fixed-sequence testing; the order was fixed before the
    reporting half was looked at).

    Args:
        results: Of the reporting half. groups: The picture of each of its rows.
        times: Seconds to the first token, round by round, by `Arm.key` and "full".

    Source: Angelopoulos et al., Learn then test, arXiv 2110.01052, section 2.3.
    """
    found, proven = [], True
    for arm in sorted(results, key=lambda arm: -arm.share):
        seen = results[arm]
        by_picture: dict[int, list[bool]] = defaultdict(list)
        for group, one in zip(groups, seen, strict=True):
            by_picture[group].append(one.changed)
        bound, bound_name = change_bound(list(by_picture.values()))
        proven = proven and bound <= max_change
        full, own = times.get("full", ()), times.get(arm.key, ())
        clocked = bool(full) and bool(own)
        found.append(
            Line(
                arm.name,
                arm.keep_ratio,
                arm.share,
                float(np.mean([one.kept for one in seen])),
                len(seen),
                len(by_picture),
                sum(one.changed for one in seen),
                bound,
                bound_name,
                float(np.mean([one.kl for one in seen])),
                statistics.median(own) if clocked else None,
                statistics.median(full) if clocked else None,
                statistics.median(a / b for a, b in zip(full, own, strict=True)) if clocked else None,
                proven,
            )
        )
    return found


def proposed(found: Sequence[Line]) -> Line:
    """The smallest share that is proven; where none is, the one with the lowest bound, of equals the smallest share."""
    proven = [line for line in found if line.proven]
    return min(proven, key=lambda line: line.share) if proven else min(found, key=lambda line: (line.bound, line.share))


def verdict(found: Sequence[Line], max_change: float) -> list[str]:
    """What to say of it, a line each."""
    best = proposed(found)
    limit, seen = f"{100 * max_change:g} %", f"{best.changed} of {best.questions} answers changed"
    times = ""
    if best.first_token is not None and best.full_first_token is not None and best.speed_up is not None:
        before, after = 1000 * best.full_first_token, 1000 * best.first_token
        times = f" First token {before:.3g} -> {after:.3g} ms ({best.speed_up:.2f}x)."
        times += " It saves no time here." if best.speed_up < 1 else ""
    what = f"{best.name} at keep {best.keep_ratio:.3g} ({100 * best.share:g} % of the tokens, averaged over the layers)"
    if best.proven:
        return [
            f"Smallest keep that changes at most {limit} of the answers, with 95 % confidence: {what}; {seen} on pictures that "
            f"it was not chosen on, at most {100 * best.bound:.2g} % ({best.bound_name}, one-sided).{times}"
        ]
    told = [f"Best found, but not shown to change at most {limit} of the answers: {what}; {seen}.{times}"]
    several = best.pictures < best.questions
    needed = pictures_needed(max_change, several)
    if needed is not None and best.pictures < needed:
        told.append(
            f"A change of at most {limit} takes at least {2 * needed:,} pictures to show, half of them to report on (where no "
            f"answer changes); there are {best.pictures} to report on. Give more, or a larger --max-change."
        )
    else:
        most = found[0]
        told.append(
            f"Even {100 * most.share:g} % of the tokens changed {most.changed} of {most.questions} answers (bound "
            f"{100 * most.bound:.2g} %). A larger --max-change can be met, or shorter answers (--max-new-tokens) counted."
        )
    return told
