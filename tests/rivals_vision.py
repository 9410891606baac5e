"""The rules of the rivals that need no attention of the language model, as loops over what is known of a picture.

Written from the authors' papers and released code, not from ours. Where a rule cannot be taken over (a count that misses the
budget, an order that is an accident), the method's docstring says what stands in its place, and so do the loops.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Facts:
    """What is known of a picture whose tiles all have `side` x `side` visual tokens, the thumbnail last.

    Attributes:
        grid: (columns, rows) of its tiles; None for one view, which has no thumbnail.
        paid, logits: Per tile and token, what [CLS] pays it in the layer that feeds the projector, and that before softmax.
        early, seen: Per patch of the last view, what [CLS] pays in layer 0, and before softmax in the layer that feeds.
        keys: (N, D) of the encoder. states: (N, D) at the language model's input. words: (R, D) the instruction there.
        late: (N, D) at the input of layer 2, behind the last norm; late_text: (B, D) of the text behind the picture.
        late_keys, late_text_keys: Of layer 1, at their positions.
    """

    grid: tuple[int, int] | None
    side: int
    paid: list[list[float]]
    logits: list[list[float]]
    early: list[float]
    seen: list[float]
    keys: Tensor
    states: Tensor
    words: Tensor
    late: Tensor
    late_text: Tensor
    late_keys: Tensor
    late_text_keys: Tensor

    @property
    def size(self) -> int:
        return self.side * self.side

    @property
    def count(self) -> int:
        return len(self.paid)

    def tile(self, t: int) -> range:
        return range(t * self.size, (t + 1) * self.size)


def flat(scores: list[list[float]]) -> list[float]:
    return [score for tile in scores for score in tile]


def best(scores, tokens, count: int) -> list[int]:
    return sorted(tokens, key=lambda j: (-float(scores[j]), j))[:count]


def cosines(a: Tensor, b: Tensor) -> list[list[float]]:
    a, b = a.double(), b.double()
    return (a @ b.T / (a.norm(dim=1)[:, None] * b.norm(dim=1))).tolist()


def shares(weights: list[float], capacity: int, total: int) -> list[int]:
    """Largest remainder, in proportion to the weights; what a tile cannot take goes to the others."""
    quota, open_tiles, left = [0.0] * len(weights), set(range(len(weights))), float(total)
    while open_tiles:
        mass = sum(weights[r] for r in open_tiles)
        full = {r for r in open_tiles if weights[r] / mass * left >= capacity}
        for r in full or open_tiles:
            quota[r] = float(capacity) if full else weights[r] / mass * left
        left -= capacity * len(full)
        open_tiles = open_tiles - full if full else set()
    counts = [math.floor(q) for q in quota]
    for r in sorted(range(len(quota)), key=lambda r: (counts[r] - quota[r], -weights[r], r))[: total - sum(counts)]:
        counts[r] += 1
    return counts


def even(facts: Facts, total: int) -> list[int]:
    return shares([1.0] * facts.count, facts.size, total)


def on_tiles(patches: list[float], grid: tuple[int, int]) -> list[float]:
    """Sums of the thumbnail's patches over each tile, those on a border split by area."""
    columns, rows = grid
    side = round(len(patches) ** 0.5)
    fine, sums = side * columns * rows, [0.0] * (columns * rows)
    for y in range(fine):
        for x in range(fine):
            tile = (y * rows // fine) * columns + x * columns // fine
            sums[tile] += patches[(y * side // fine) * side + x * side // fine] * (side / fine) ** 2
    return sums


def by_tile(facts: Facts, scores: list[float], budgets: list[int]) -> list[int]:
    return [j for t, b in enumerate(budgets) for j in best(scores, facts.tile(t), b)]


def fastervlm(facts: Facts, total: int) -> list[int]:
    return by_tile(facts, flat(facts.paid), even(facts, total))


def visionzip_merges(facts: Facts, total: int) -> dict[int, list[int]]:
    """Each kept token and what is merged into it."""
    merged, likeness = {}, cosines(facts.keys, facts.keys)
    for t, budget in enumerate(even(facts, total)):
        contextual = round(budget * 10 / 64)
        if budget >= 2:
            contextual = max(contextual, 1)
        dominant = best(flat(facts.paid), facts.tile(t), budget - contextual)
        merged.update({j: [] for j in dominant})
        if contextual:
            rest = [j for j in facts.tile(t) if j not in dominant]
            step = max(1, len(rest) // contextual)
            targets = [rest[i] for i in range(0, len(rest), step)][:contextual]
            merged.update({j: [] for j in targets})
            for j in rest:
                if j not in targets:
                    merged[max(targets, key=lambda target: likeness[j][target])].append(j)
    return merged


def visionzip(facts: Facts, total: int) -> list[int]:
    return list(visionzip_merges(facts, total))


def rounds(likeness: list[list[float]], order: list[int], count: int, step: int) -> list[int]:
    """VisPruner's rounds: `order` is what is dealt out, most attended first."""
    if count == 0:
        return []
    while (r := min(step, len(order) - count)) > 0:
        a, b = order[::2], order[1::2]
        scores = [max(likeness[i][j] for j in b) for i in a]
        ranked = sorted(range(len(a)), key=lambda n: -scores[n])
        order = [a[n] for n in ranked[r:]] + b
    return order


def vispruner(facts: Facts, total: int) -> list[int]:
    kept = []
    for t, budget in enumerate(even(facts, total)):
        start, own = t * facts.size, facts.paid[t]
        order, first = best(own, range(facts.size), facts.size), budget // 2
        tile = facts.states[start : start + facts.size]
        left = rounds(cosines(tile, tile), order[first:], budget - first, max(1, round(8 * facts.size / 576)))
        kept += [start + j for j in (*order[:first], *left)]
    return kept


def hired(facts: Facts, total: int, alpha: float = 0.5, counted: bool = True) -> list[int]:
    scores = flat(facts.paid)
    if facts.grid is None:
        return best(scores, range(facts.size), total)
    own = min(int(total * alpha), facts.size)
    top = best(facts.early, range(len(facts.early)), int(len(facts.early) * (1 - alpha)))
    content = [float(j in top) for j in range(len(facts.early))] if counted else facts.early
    return by_tile(facts, scores, [*shares(on_tiles(content, facts.grid), facts.size, total - own), own])


def globalcom2(facts: Facts, total: int) -> list[int]:
    if facts.grid is None:
        return best(facts.logits[0], range(facts.size), total)
    (columns, rows), side, thumbnail = facts.grid, facts.side, facts.logits[-1]
    sums = on_tiles(facts.seen, facts.grid)
    raised = [math.exp((s - max(sums)) / 10) for s in sums]
    sigma = [e / sum(raised) for e in raised]
    own = round(total / (facts.count * facts.size) * facts.size)
    budgets = [*shares([1 + s - sum(sigma) / len(sigma) for s in sigma], facts.size, total - own), own]
    scores = []
    for t in range(facts.count - 1):
        views = []
        for y in range(side):
            for x in range(side):
                fy = min(max((t // columns * side + y + 0.5) / rows - 0.5, 0), side - 1)
                fx = min(max((t % columns * side + x + 0.5) / columns - 0.5, 0), side - 1)
                y0, x0 = int(fy), int(fx)
                y1, x1 = min(y0 + 1, side - 1), min(x0 + 1, side - 1)
                top = thumbnail[y0 * side + x0] * (1 - fx + x0) + thumbnail[y0 * side + x1] * (fx - x0)
                bottom = thumbnail[y1 * side + x0] * (1 - fx + x0) + thumbnail[y1 * side + x1] * (fx - x0)
                views.append(top * (1 - fy + y0) + bottom * (fy - y0))
        a, b = (math.sqrt(sum(v * v for v in values)) for values in (facts.logits[t], views))
        scores += [own_score / a + view / b for own_score, view in zip(facts.logits[t], views, strict=True)]
    return by_tile(facts, [*scores, *thumbnail], budgets)


def divprune(facts: Facts, total: int) -> list[int]:
    everything = range(facts.count * facts.size)
    likeness = torch.tensor(cosines(facts.states, facts.states))
    nearest = (likeness - 10 * torch.eye(len(everything))).amax(dim=1)
    kept = [int(nearest.argmin())]
    while len(kept) < total:
        closest = likeness[:, kept].amax(dim=1).tolist()
        kept.append(min(set(everything) - set(kept), key=lambda i: closest[i]))
    return kept


def greedy(kernel: Tensor, total: int) -> list[int]:
    """Adds the token of the largest determinant: by the share of its own entry that those chosen do not explain."""
    kept: list[int] = []
    gains = kernel.diagonal()
    while len(kept) < total:
        if kept:
            known = kernel[kept]
            gains = kernel.diagonal() - (known * torch.linalg.solve(known[:, kept], known)).sum(dim=0)
        kept.append(max(set(range(len(kernel))) - set(kept), key=lambda j: (float(gains[j]), -j)))
    return kept


def cdpruner(facts: Facts, total: int) -> list[int]:
    relevance = torch.tensor([sum(row) / len(row) for row in cosines(facts.states, facts.words)], dtype=torch.float64)
    relevance = (relevance - relevance.min() + 1e-6) / (relevance.max() - relevance.min())
    kept = []
    for t, budget in enumerate(even(facts, total)):
        own = list(facts.tile(t))
        likeness = torch.tensor(cosines(facts.states[own], facts.states[own]), dtype=torch.float64)
        kept += [own[j] for j in greedy(relevance[own, None] * likeness * relevance[own], budget)]
    return kept


def cdpruner_picture(facts: Facts, total: int) -> list[int]:
    """Ours: one process over the picture, relevance to the mean embedding."""
    relevance = torch.tensor(cosines(facts.states, facts.words.mean(dim=0)[None]), dtype=torch.float64)[:, 0]
    relevance = ((relevance - relevance.min()) / (relevance.max() - relevance.min())).clamp_min(1e-6)
    likeness = torch.tensor(cosines(facts.states, facts.states), dtype=torch.float64)
    return greedy(relevance[:, None] * likeness * relevance, total)


def dart(facts: Facts, total: int, pivots: int = 4, text_pivots: int = 4) -> list[int]:
    norms, text_norms = (keys.abs().sum(dim=1).tolist() for keys in (facts.late_keys, facts.late_text_keys))
    kept = sorted(best(norms, range(len(norms)), min(pivots, total)))
    asked = sorted(best(text_norms, range(len(text_norms)), text_pivots))
    rows = [*cosines(facts.late[kept], facts.late), *cosines(facts.late_text[asked], facts.late)]
    left, extra = divmod(total - len(kept), len(rows))
    for number, row in enumerate(rows):  # the last ones take what does not divide
        free = sorted(set(range(len(norms))) - set(kept), key=lambda j: row[j])
        kept += free[: left + (number >= len(rows) - extra)]
    return kept


RULES = {
    rule.__name__: rule
    for rule in (
        fastervlm, visionzip, vispruner, hired, globalcom2, divprune, cdpruner, cdpruner_picture, dart,
    )
}  # fmt: skip
