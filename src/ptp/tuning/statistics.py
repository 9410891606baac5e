"""Does a map of scores speak? Pure functions, arrays in, numbers out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

UNCHANGED, PLACED, PILED = 0.95, 0.5, 0.5
"""From which rank correlation on a map is called unchanged; from which share on one is mostly position, or on outliers."""
SURE = 0.05
SPEAKS, IGNORES, INVERTED, POSITION = "speaks", "ignores the words", "inverted", "mostly position"
UNDECIDED = "no difference seen"


@dataclass(frozen=True)
class Map:
    """Scores of one picture's visual tokens.

    Attributes:
        scores: (N,) float.
        centres: (N, 2), where each token is on the picture, in fractions of it.
        whole: (N,) bool, the tokens of the thumbnail.
    """

    scores: np.ndarray
    centres: np.ndarray
    whole: np.ndarray


def words_change(own: np.ndarray, other: np.ndarray) -> float | None:
    """Spearman's rank correlation of a picture's map under the right words with its map under other words; 1 is no change.

    Args:
        own, other: (N,).

    Returns:
        In [-1, 1]; None where a map is constant, so that there are no ranks.
    """
    if np.ptp(own) == 0 or np.ptp(other) == 0:
        return None
    from scipy.stats import spearmanr  # of the extra `eval`

    return float(spearmanr(own, other).statistic)


def place_share(maps: Sequence[Map]) -> float | None:
    """What share of a map's variance is explained by place alone, in [0, 1].

    Each map is standardised; the mean correlation of the maps of two different pictures at equal places is the share of
    variance that they have in common, which is place: pictures and questions differ. Where no two pictures have the same
    layout, tokens are compared with the nearest on the other one (thumbnails with thumbnails).

    Returns:
        None where there are not two maps that vary.
    """
    maps = [one for one in maps if np.ptp(one.scores) > 0]
    scores = [(one.scores - one.scores.mean()) / one.scores.std() for one in maps]
    pairs = [(i, j) for i in range(len(maps)) for j in range(len(maps)) if i != j]
    alike = [(i, j) for i, j in pairs if _same_places(maps[i], maps[j])]
    if alike:
        return _clipped([float(np.mean(scores[i] * scores[j])) for i, j in alike])
    return _clipped([float(np.mean(scores[i] * scores[j][_nearest(maps[i], maps[j])])) for i, j in pairs])


def _clipped(correlations: Sequence[float]) -> float | None:
    return float(np.clip(np.mean(correlations), 0, 1)) if correlations else None


def _same_places(a: Map, b: Map) -> bool:
    return a.centres.shape == b.centres.shape and np.allclose(a.centres, b.centres) and bool((a.whole == b.whole).all())


def _nearest(a: Map, b: Map) -> np.ndarray:
    """(N,) the token of `b` that is nearest to each of `a`."""
    from scipy.spatial import cKDTree

    found = np.empty(len(a.scores), dtype=int)
    for whole in (False, True):
        mine, theirs = np.flatnonzero(a.whole == whole), np.flatnonzero(b.whole == whole)
        theirs = theirs if len(theirs) else np.arange(len(b.scores))
        if len(mine):
            found[mine] = theirs[cKDTree(b.centres[theirs]).query(a.centres[mine])[1]]
    return found


def outlier_share(scores: np.ndarray) -> float | None:
    """What share of a map's variance its strongest hundredth of tokens (at least one) has; of a normal distribution 0.08.

    Args:
        scores: (N,).

    Returns:
        In [0, 1]; None where the map is constant.
    """
    squares = (scores - scores.mean()) ** 2
    if squares.sum() <= 0:
        return None
    strongest = np.argsort(-scores, kind="stable")[: -(-len(scores) // 100)]
    return float(squares[strongest].sum() / squares.sum())


def more(a: Sequence[float], b: Sequence[float]) -> float:
    """How surely `a` is larger than `b`: the p-value of a paired one-sided signed-rank test, 1 where nothing differs.

    Source: Wilcoxon, Biometrics Bulletin 1 (1945).
    """
    from scipy.stats import wilcoxon

    difference = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    return float(wilcoxon(difference, alternative="greater").pvalue) if difference.any() else 1.0


@dataclass(frozen=True)
class Finding:
    """What was measured of a signal.

    Attributes:
        name: Of the signal. pictures: That it was measured on.
        words: Mean rank correlation of the map with the one under other words; None where it cannot be said.
        place: Share explained by place. outliers: Share of variance on the strongest hundredth.
        top, random, bottom, other: Mean divergence from the unpruned answers, nats per token, where the top tenth is dropped,
            a random tenth, the bottom tenth, and the tenth that is on top under other words.
        top_changed, random_changed, bottom_changed: Share of answers that changed.
        top_matters, bottom_matters, top_is_less: p-values: top more than random, bottom more than random, top less.
        words_matter: p-value: the top tenth under the right words more than that under others.
    """

    name: str
    pictures: int
    words: float | None
    place: float | None
    outliers: float | None
    top: float
    random: float
    bottom: float
    other: float
    top_changed: float
    random_changed: float
    bottom_changed: float
    top_matters: float
    bottom_matters: float
    top_is_less: float
    words_matter: float

    @property
    def verdict(self) -> str:
        """In words. What is inverted does harm, so that is said first."""
        if (self.bottom_matters < SURE and self.top_matters >= SURE) or self.top_is_less < SURE:
            return INVERTED
        if self.place is not None and self.place >= PLACED:
            return POSITION
        if self.words is None or self.words >= UNCHANGED:
            return IGNORES
        return SPEAKS if self.top_matters < SURE and self.bottom_matters >= SURE else UNDECIDED

    def line(self) -> str:
        """All of it, in one."""
        words = "has no ranks" if self.words is None else f"under other words its ranks correlate {self.words:.2f}"
        place = "" if self.place is None else f", {100 * self.place:.0f} % is place"
        piled = ""
        if self.outliers is not None:
            piled = f", {100 * self.outliers:.0f} % of its variance is on 1 % of the tokens"
            piled += " (outliers)" if self.outliers >= PILED else ""
        effects = f"{self.top:.3g} / {self.random:.3g} / {self.bottom:.3g}"
        top, other = self.top_changed, self.random_changed
        return (
            f"{self.name}: {self.verdict}; {words}{place}{piled}; without its top, a random, its bottom tenth KL {effects}, "
            f"answers changed {100 * top:.0f} / {100 * other:.0f} / {100 * self.bottom_changed:.0f} %"
        )


def finding(
    name: str,
    maps: Sequence[Map],
    others: Sequence[np.ndarray],
    kl: Mapping[str, Sequence[float]],
    changed: Mapping[str, Sequence[bool]],
) -> Finding:
    """Put the statistics of a signal together.

    Args:
        maps: Under the right words, a picture each. others: (N,) under other words, of the same pictures.
        kl, changed: By what was dropped ("top", "random", "bottom", "other"): divergence, and whether the answer changed,
            question by question.
    """
    words = [words_change(one.scores, other) for one, other in zip(maps, others, strict=True)]
    ranked = [value for value in words if value is not None]
    piled = [value for one in maps if (value := outlier_share(one.scores)) is not None]
    mean = {part: float(np.mean(values)) for part, values in kl.items()}
    share = {part: float(np.mean(values)) for part, values in changed.items()}
    return Finding(
        name=name,
        pictures=len(kl["top"]),
        words=float(np.mean(ranked)) if ranked else None,
        place=place_share(maps),
        outliers=float(np.mean(piled)) if piled else None,
        top=mean["top"],
        random=mean["random"],
        bottom=mean["bottom"],
        other=mean["other"],
        top_changed=share["top"],
        random_changed=share["random"],
        bottom_changed=share["bottom"],
        top_matters=more(kl["top"], kl["random"]),
        bottom_matters=more(kl["bottom"], kl["random"]),
        top_is_less=more(kl["random"], kl["top"]),
        words_matter=more(kl["top"], kl["other"]),
    )
