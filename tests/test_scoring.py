"""Each score against a loop over single numbers."""

import pytest
import torch

from ptp import scoring


def test_cls_attention_equals_the_loop():
    torch.manual_seed(0)
    queries, keys = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)
    scores = scoring.cls_attention(queries, keys)
    for t in range(2):
        for p in range(4):
            heads = []
            for h in range(3):
                logits = [float(queries[t, h, 0] @ keys[t, h, k]) / 2 for k in range(5)]
                heads.append(float(torch.tensor(logits).softmax(0)[1 + p]))
            assert float(scores[t, p]) == pytest.approx(sum(heads) / 3, abs=1e-6)


def test_received_attention_equals_the_loop():
    torch.manual_seed(0)
    queries, keys = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 4, 8)
    scores = scoring.received_attention(queries, keys, scale=0.3)
    for t in range(2):
        for j in range(4):
            received = [float((queries[t, h, i] @ keys[t, h].T * 0.3).softmax(0)[j]) for h in range(3) for i in range(4)]
            assert float(scores[t, j]) == pytest.approx(sum(received) / 12, abs=1e-6)
    torch.testing.assert_close(scores.sum(1), torch.ones(2))


@pytest.mark.parametrize("side", [27, 32, 64, 96])
def test_in_a_large_tile_patches_spread_evenly_speak_for_all(side):
    torch.manual_seed(0)
    patches = side * side
    queries, keys = torch.randn(1, 2, patches, 8), torch.randn(1, 2, patches, 8)
    chance = torch.rand(64, generator=torch.Generator().manual_seed(0)).tolist()
    asked = [int((i + chance[i]) * patches / 64) for i in range(64)]
    for places in ([p // side for p in asked], [p % side for p in asked]):  # no part of the tile is left out
        counts = torch.bincount(torch.tensor(places) * 8 // side, minlength=8)
        assert counts.min() >= 3 and counts.max() <= 15
    weights = (queries[0, :, asked] @ keys[0].mT * 8**-0.5).softmax(dim=-1)
    torch.testing.assert_close(scoring.received_attention(queries, keys)[0], weights.mean(dim=(0, 1)))
    everyone = (queries[0] @ keys[0].mT * 8**-0.5).softmax(dim=-1).mean(dim=(0, 1))
    assert torch.corrcoef(torch.stack([weights.mean(dim=(0, 1)), everyone]))[0, 1] > 0.6, "on noise, where nothing stands out"


def test_pooling_follows_the_pixel_shuffle():
    """Scores painted on the patches come out where InternVL's own pixel shuffle puts those patches."""
    from conftest import small_model

    scores = torch.rand(2, 64)
    shuffled = small_model().model.pixel_shuffle(scores.view(2, 8, 8, 1), 0.5)  # (T, 4, 4, 4 patches)
    torch.testing.assert_close(scoring.pool_pixel_shuffle(scores, 2), shuffled.mean(-1).view(2, 16))


def test_pooling_refuses_what_is_no_square():
    with pytest.raises(ValueError, match="without \\[CLS\\]"):
        scoring.pool_pixel_shuffle(torch.rand(1, 65), 2)


@pytest.mark.parametrize("shape", [(8, 8), (10, 6), (4, 12)])
@pytest.mark.parametrize("grid", [(4, 3), (3, 4), (1, 3), (5, 2), (12, 1)])
def test_thumbnail_attention_equals_counting_fine_cells(grid, shape):
    columns, rows = grid
    wide, high = shape
    attention = torch.rand(wide * high)
    boxes = [(x / columns, y / rows, (x + 1) / columns, (y + 1) / rows) for y in range(rows) for x in range(columns)]
    shares = scoring.thumbnail_attention(attention, torch.tensor(boxes), (wide // 2, high // 2))
    fine, counted = 120, torch.zeros(columns * rows)  # all sides divide 120
    for y in range(fine):
        for x in range(fine):
            tile = (y * rows // fine) * columns + x * columns // fine
            counted[tile] += attention[(y * high // fine) * wide + x * wide // fine]
    torch.testing.assert_close(shares, counted / counted.sum(), atol=1e-5, rtol=0)


def test_region_sources():
    attention = torch.tensor([0.1, 0.4, 0.3, 0.3, 0.2])
    torch.testing.assert_close(scoring.attention_mass(attention, [2, 3]), torch.tensor([0.4, 0.3]))
    tiles = torch.tensor([[1.0, 0.0], [1.0, 1.0], [-2.0, 0.0]])
    similarity = scoring.cls_similarity(tiles, torch.tensor([3.0, 0.0]))
    torch.testing.assert_close(similarity, torch.tensor([1.0, 0.5**0.5, -1.0]))
    torch.testing.assert_close(scoring.region_weights(torch.tensor([1.0, 3.0]), None), torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(scoring.region_weights(torch.zeros(2), None), torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(
        scoring.region_weights(torch.tensor([0.2, 0.4]), 0.1), torch.tensor([1.0, torch.e**2]) / (1 + torch.e**2)
    )


@pytest.mark.parametrize("rows_per_chunk", [1, 2, 128])
def test_instruction_relevance_equals_the_loop(monkeypatch, rows_per_chunk):
    monkeypatch.setattr(scoring, "ROWS_PER_CHUNK", rows_per_chunk)
    torch.manual_seed(0)
    queries, keys = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 6, 8)
    rows, row_valid = torch.tensor([[3, 4, 5], [5, 0, 0]]), torch.tensor([[True, True, True], [True, False, False]])
    key_valid = torch.tensor([[True] * 6, [False, False, True, True, True, True]])
    scores = scoring.instruction_relevance(queries, keys, rows, row_valid, key_valid, 0.5)
    for b in range(2):
        for j in range(6):
            best = 0.0
            for i in range(3):
                if not row_valid[b, i] or not key_valid[b, j] or j > rows[b, i]:
                    continue
                seen = [s for s in range(int(rows[b, i]) + 1) if key_valid[b, s]]
                heads = []
                for h in range(4):
                    logits = torch.stack([queries[b, h, i] @ keys[b, h // 2, s] * 0.5 for s in seen])
                    heads.append(float(logits.softmax(0)[seen.index(j)]))
                best = max(best, sum(heads) / 4)
            assert float(scores[b, j]) == pytest.approx(best, abs=1e-6)


def test_similarity_takes_the_most_similar_word():
    states = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, -3.0]])
    text = torch.tensor([[5.0, 0.0], [0.0, 0.1]])
    torch.testing.assert_close(scoring.similarity_relevance(states, text), torch.tensor([1.0, 0.5**0.5, 0.0]))
    assert scoring.similarity_relevance(states, text[:0]).tolist() == [0, 0, 0]


def test_novelty_is_what_better_tokens_of_the_tile_do_not_explain():
    one, other = [1.0, 0.0, 0.0], [0.0, 2.0, 0.0]
    states = torch.tensor([one, other, one, [3.0, 0.0, 0.0], one, other, [1.0, 1.0, 0.0]])
    scores = torch.tensor([0.1, 0.2, 0.9, 0.5, 0.3, 0.9, 0.3])
    noise = scoring.NOISE
    twice, thrice = (1 + noise - n / (n + noise) for n in (1, 2))  # a copy of n better tokens
    mixed = 1 + noise - 2 * 0.5 / (1 + noise)  # half of it along each of two
    expected = torch.tensor([thrice, 1 + noise, 1 + noise, twice, 1 + noise, 1 + noise, mixed]) / (1 + noise)
    torch.testing.assert_close(scoring.novelty(states, scores, (4, 3)), expected)
    assert scoring.novelty(states, -scores, (4, 3)).argmax() == 0, "the best token of the first tile is new"


@pytest.mark.parametrize("sizes", [(7,), (3, 3), (6, 1, 5), (9, 8)])
def test_novelty_looks_at_near_tokens_only(monkeypatch, sizes):
    monkeypatch.setattr(scoring, "NEIGHBOURS", 3)
    generator = torch.Generator().manual_seed(0)
    states, scores = torch.randn(sum(sizes), 5, generator=generator), torch.randn(sum(sizes), generator=generator)
    runs = {1: [1], 3: [3], 5: [3, 2], 6: [3, 3], 7: [3, 2, 2], 8: [3, 3, 2], 9: [3, 3, 3]}
    expected = [
        scoring.novelty(part, mine, (len(part),))
        for part, mine in zip(*(x.split([n for size in sizes for n in runs[size]]) for x in (states, scores)), strict=True)
    ]
    torch.testing.assert_close(scoring.novelty(states, scores, sizes), torch.cat(expected))
    assert len(expected) > len(sizes) or max(sizes) <= 3


def test_no_instruction_means_no_relevance():
    none = torch.zeros(1, 1, dtype=torch.bool)
    scores = scoring.instruction_relevance(
        torch.randn(1, 2, 1, 4),
        torch.randn(1, 2, 5, 4),
        torch.zeros(1, 1, dtype=torch.long),
        none,
        torch.ones(1, 5).bool(),
        0.5,
    )
    assert (scores == 0).all()


def test_fusion_weighs_rescaled_scores():
    token, instruction = torch.tensor([2.0, 4.0, 3.0]), torch.tensor([0.0, 0.0, 0.5])
    torch.testing.assert_close(scoring.fuse(token, instruction, 0.25), torch.tensor([0.0, 0.75, 0.625]))
    torch.testing.assert_close(scoring.fuse(torch.ones(3), instruction, 0.5), torch.tensor([0.0, 0.0, 0.5]))
