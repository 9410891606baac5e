"""Budgets and selection: properties that hold for every picture (oracle 4), and the rule worked out by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ptp.selection import allocate, keep_best, tile_budgets, total_budget

tiles = st.integers(1, 14)
weights = st.floats(0, 1, allow_nan=False)


@st.composite
def shares(draw):
    """(weights, capacities, total) of one picture without its thumbnail."""
    count = draw(tiles)
    capacities = draw(st.lists(st.integers(1, 300), min_size=count, max_size=count))
    return draw(st.lists(weights, min_size=count, max_size=count)), capacities, draw(st.integers(0, sum(capacities)))


@given(shares())
@settings(max_examples=300, deadline=None)
def test_budgets_are_exact_and_fit(case):
    weights, capacities, total = case
    budgets = allocate(weights, capacities, total)
    assert sum(budgets) == total
    assert all(0 <= budget <= capacity for budget, capacity in zip(budgets, capacities, strict=True))


@given(st.lists(weights, min_size=2, max_size=14), st.integers(1, 300), st.data())
@settings(max_examples=300, deadline=None)
def test_a_more_salient_tile_never_gets_less_than_another(weights, size, data):
    check_order(weights, size, data.draw(st.integers(0, size * len(weights))))


def test_a_tile_more_salient_by_one_bit_does_not_lose_a_tie():
    check_order([1.0, math.nextafter(1.0, 0.0), 1.0, 1.0, 1.0, 1.0], 3, 14)


def check_order(weights, size, total):
    budgets = allocate(weights, [size] * len(weights), total)
    for a in range(len(weights)):
        for b in range(len(weights)):
            assert weights[a] <= weights[b] or budgets[a] >= budgets[b]


@given(st.lists(st.integers(0, 50), min_size=2, max_size=8), st.integers(1, 60), st.data())
@settings(max_examples=300, deadline=None)
def test_growing_saliency_never_costs_a_tile_tokens(weights, size, data):
    total = data.draw(st.integers(0, size * len(weights)))
    tile = data.draw(st.integers(0, len(weights) - 1))
    before = allocate([float(w) for w in weights], [size] * len(weights), total)[tile]
    weights[tile] += data.draw(st.integers(1, 50))
    assert allocate([float(w) for w in weights], [size] * len(weights), total)[tile] >= before


@given(
    st.lists(weights, min_size=1, max_size=12),
    st.integers(1, 64),
    st.floats(0.001, 1),
    st.none() | st.floats(0, 1),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_thumbnail_and_tiles_together_are_exact(weights, size, keep, thumbnail_keep, thumbnail):
    sizes = [size] * (len(weights) + thumbnail)
    total = total_budget(keep, sum(sizes))
    budgets = tile_budgets(weights, sizes, total, thumbnail_keep)
    assert sum(budgets) == total and all(0 <= budget <= size for budget in budgets)
    if keep == 1:
        assert budgets == sizes


def allocate_by_loop(weights, capacities, total):
    """Water-filling one token's worth at a time would be too slow: pour in tiny equal steps, then largest remainder."""
    level, step = [0.0] * len(weights), total / 20_000
    for _ in range(20_000):
        open_mass = sum(w for w, x, c in zip(weights, level, capacities, strict=True) if x < c)
        for r, weight in enumerate(weights):
            if level[r] < capacities[r]:
                level[r] = min(capacities[r], level[r] + step * weight / open_mass)
    return level


@pytest.mark.parametrize(
    ("weights", "capacities", "total"),
    [([0.7, 0.2, 0.1], [16, 16, 16], 24), ([0.5, 0.3, 0.15, 0.05], [16] * 4, 50), ([1.0, 1.0, 1.0], [5, 20, 9], 30)],
)
def test_water_filling_agrees_with_pouring(weights, capacities, total):
    poured = allocate_by_loop(weights, capacities, total)
    budgets = allocate(weights, capacities, total)
    assert all(abs(budget - level) < 1.05 for budget, level in zip(budgets, poured, strict=True))


def test_largest_remainder_by_hand():
    assert allocate([5.0, 3.0, 2.0], [16] * 3, 7) == [4, 2, 1]  # quotas 3.5, 2.1, 1.4
    assert allocate([0.9, 0.1, 0.0], [4, 4, 4], 9) == [4, 4, 1]  # the full ones hand on, last of all to weight 0
    assert allocate([0.0, 0.0], [4, 12], 8) == [2, 6]  # nothing is salient: by size


def test_thumbnail_keeps_its_own_share():
    assert tile_budgets([1.0, 1.0], [16, 16, 16], 24) == [8, 8, 8]
    assert tile_budgets([1.0, 1.0], [16, 16, 16], 24, thumbnail_keep=0.0) == [12, 12, 0]
    assert tile_budgets([1.0, 0.0], [16, 16, 16], 24, thumbnail_keep=1.0) == [8, 0, 16]
    assert tile_budgets([1.0, 1.0], [16, 16, 16], 40, thumbnail_keep=0.0) == [16, 16, 8]


@pytest.mark.parametrize(("keep", "tokens", "budget"), [(0.5, 208, 104), (0.2, 208, 42), (1.0, 7, 7), (0.001, 208, 1)])
def test_total_budget(keep, tokens, budget):
    assert total_budget(keep, tokens) == budget


@pytest.mark.parametrize("keep", [0, -0.1, 1.01, math.nan, math.inf])
def test_keep_ratio_must_be_a_share(keep):
    with pytest.raises(ValueError, match=r"keep_ratio must be in \(0, 1\], got .*pass 0.2"):
        total_budget(keep, 100)


@pytest.mark.parametrize(
    ("weights", "total", "message"),
    [([1.0], 17, "total must be in"), ([-1.0], 3, "weights must be finite"), ([math.nan], 3, "weights must be finite")],
)
def test_impossible_budgets_are_refused(weights, total, message):
    with pytest.raises(ValueError, match=message):
        allocate(weights, [16], total)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_keep_best_equals_sorting_each_tile(data):
    sizes = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=6))
    budgets = [data.draw(st.integers(0, size)) for size in sizes]
    scores = data.draw(st.lists(st.integers(0, 5), min_size=sum(sizes), max_size=sum(sizes)))  # many ties
    expected, start = [], 0
    for size, budget in zip(sizes, budgets, strict=True):
        best = sorted(range(start, start + size), key=lambda j: -scores[j])[:budget]
        expected += sorted(best)
        start += size
    assert keep_best(torch.tensor(scores, dtype=torch.float32), sizes, budgets).tolist() == expected
