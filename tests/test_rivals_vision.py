"""The rivals that decide from vision keep what loops written from their authors' code keep."""

from functools import cache

import pytest
import torch
from conftest import embeddings, encode, picture, prompt, small_model, tokenizer

import rivals_vision
from ptp.adapters.base import tiled
from ptp.methods import METHODS
from ptp.methods.vispruner import distinct
from ptp.pruner import Stage
from ptp.runtime import Picture
from ptp.runtime.picture import VisionSignal
from rivals_vision import RULES, Facts

GRIDS = {"tiles": (3, 2), "one view": (1, 1)}


@cache
def inputs(grid):
    return encode(prompt(picture(5, grid)))


def pooled(patches: torch.Tensor) -> torch.Tensor:
    """(T, 64, ...) patches to (T, 16, ...) tokens: this model joins 2 x 2."""
    return patches.unflatten(1, (4, 2, 4, 2)).mean(dim=(2, 4)).flatten(1, 2)


@cache
def measured(grid) -> Facts:
    """What the eager model shows of a picture in its own maps, states and caches."""
    model, ids = small_model(attention="eager"), inputs(grid)["input_ids"][0].tolist()
    tower, seen = model.model.vision_tower, {}
    attention = tower.encoder.layer[-1].attention
    hooks = [
        module.register_forward_hook(lambda m, a, output, name=name: seen.update({name: output}))
        for name, module in (("q", attention.q_norm), ("k", attention.k_norm))
    ]
    with torch.no_grad():
        maps = tower(inputs(grid)["pixel_values"], output_attentions=True).attentions
        for hook in hooks:
            hook.remove()
        q, k = (seen[name].unflatten(2, (2, 16)).transpose(1, 2) for name in "qk")
        logits = q @ k.mT * 16**-0.5
        torch.testing.assert_close(logits.softmax(dim=-1), maps[-1], atol=1e-5, rtol=1e-4)
        output = model(**inputs(grid), output_hidden_states=True, use_cache=True)
        late = model.model.language_model.norm(output.hidden_states[2][0])
        states = embeddings(model, inputs(grid))[0]
    image = [n for n, token in enumerate(ids) if token == model.config.image_token_id]
    question = tokenizer().encode("What is on the red circle?", add_special_tokens=False)
    start = next(n for n in range(len(ids)) if ids[n : n + len(question)] == question)
    behind = list(range(image[-1] + 1, len(ids)))
    cached = output.past_key_values.layers[1].keys[0].transpose(0, 1).flatten(1)  # at their positions
    paid, raw = maps[-1][:, :, 0, 1:].mean(dim=1), logits[:, :, 0, 1:].mean(dim=1)
    return Facts(
        grid if len(paid) > 1 else None, 4, pooled(paid).tolist(), pooled(raw).tolist(),
        maps[0][-1, :, 0, 1:].mean(dim=0).tolist(), raw[-1].tolist(),
        pooled(seen["k"][:, 1:].unflatten(2, (2, 16)).mean(dim=2)).flatten(0, 1),
        states[image], states[start : start + len(question)], late[image], late[behind], cached[image], cached[behind],
    )  # fmt: skip


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("keep", [0.3, 0.42, 0.07])
@pytest.mark.parametrize("shape", GRIDS)
@pytest.mark.parametrize("name", RULES)
def test_a_rival_keeps_what_its_authors_rule_keeps(name, shape, keep, attention):
    model, facts = small_model(attention=attention), measured(GRIDS[shape])
    total = max(1, round(keep * facts.count * 16))
    expected = sorted(RULES[name](facts, total))
    with torch.no_grad(), METHODS[name](keep_ratio=keep)(model, tokenizer()) as trace:
        model(**inputs(GRIDS[shape]))
    (image,) = trace.images
    assert len(set(expected)) == len(expected) == total
    assert image.kept.tolist() == expected
    assert image.budgets == [sum(j // 16 == t for j in expected) for t in range(facts.count)]


class Known:
    """Readings of a made-up picture."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.late = False

    def states(self):
        return self.facts.late if self.late else self.facts.states

    def normed(self, states):
        assert self.late
        return states

    def keys(self):
        return self.facts.late_keys

    def text_keys(self):
        return self.facts.late_text_keys

    def text_states(self):
        return self.facts.late_text if self.late else self.facts.words

    def text_attention(self, rows):
        raise AssertionError("not read by these methods")


@cache
def made_up(grid, side: int) -> Facts:
    """As in LLaVA-NeXT: a patch is a token."""
    draw, size = torch.Generator().manual_seed(side), side * side
    count = grid[0] * grid[1] + 1 if grid is not None else 1
    normal = lambda *shape: torch.randn(*shape, generator=draw)  # noqa: E731
    logits, early = normal(count, size), (2 * normal(size)).softmax(dim=0)
    paid = (2 * normal(count, size)).softmax(dim=1)
    tokens, width = count * size, 400  # more than any budget that determinants are taken of
    return Facts(
        grid, side, paid.tolist(), logits.tolist(), early.tolist(), logits[-1].tolist(), normal(tokens, 24),
        normal(tokens, width), normal(7, width), normal(tokens, 48), normal(11, 48), normal(tokens, 16), normal(11, 16),
    )  # fmt: skip


def selected(name: str, facts: Facts, total: int, **settings):
    """What a method selects of a made-up picture; its reads say which signals it gets."""
    tokens = facts.count * facts.size
    method = METHODS[name](keep_ratio=total / tokens, **settings)
    thumbnail = facts.grid is not None
    signals = []
    for read in method.reads(24).vision:
        scores = facts.logits if read.attention == "logits" else facts.paid
        view = facts.seen if read.attention == "logits" else facts.early
        signals.append(VisionSignal(torch.tensor(scores).flatten(), torch.tensor(view) if thumbnail else None, facts.keys))
    (stage,) = method.stages(32)
    readings = Known(facts)
    readings.late = stage.layer > 0
    layout = tiled(facts.grid or (1, 1), facts.side, facts.side, thumbnail)
    image = Picture(layout, torch.arange(tokens), tuple(signals), torch.empty(0, 0), (), readings)
    return method.select(image, Stage(stage.layer, total / tokens))


@pytest.mark.parametrize("total", [97, 321])
@pytest.mark.parametrize("grid", [(2, 1), None], ids=["tiles", "one view"])
@pytest.mark.parametrize("name", RULES)
def test_a_rival_keeps_its_authors_choice_of_tiles_of_576(name, grid, total):
    facts = made_up(grid, 24)
    total = total if grid else total // 2 + 1
    selection = selected(name, facts, total)
    assert selection.kept.tolist() == sorted(RULES[name](facts, total))
    assert sum(selection.budgets) == total == len(selection.kept)


@pytest.mark.parametrize("total", [1, 2, 3, 5, 15, 33, 64, 79, 80])
@pytest.mark.parametrize("name", RULES)
def test_a_rival_takes_any_budget(name, total):
    facts = made_up((2, 2), 4)
    assert selected(name, facts, total).kept.tolist() == sorted(RULES[name](facts, total))


@pytest.mark.parametrize(("side", "total"), [(24, 192), (4, 20), (4, 5), (4, 3), (4, 33)])
def test_visionzip_adds_the_mean_of_what_is_merged(side, total):
    facts = made_up((2, 1), side)
    selection, merged = selected("visionzip", facts, total), rivals_vision.visionzip_merges(facts, total)
    assert selection.mix is not None
    for token, row in zip(selection.kept.tolist(), selection.mix, strict=True):
        expected = torch.zeros(len(row))
        expected[token] = 1
        expected[merged[token]] = 1 / max(len(merged[token]), 1)
        torch.testing.assert_close(row, expected)
    assert any(merged.values()) == (total > 3), "a tile that keeps one token merges nothing"


def test_visionzip_merges_in_the_model():
    """It equals the model fed, at the kept places, each token plus the mean of those merged into it."""
    model, facts = small_model(), measured((3, 2))
    merged = rivals_vision.visionzip_merges(facts, 34)
    first = inputs((3, 2))["input_ids"][0].tolist().index(model.config.image_token_id)
    with torch.no_grad(), METHODS["visionzip"](keep_ratio=0.3)(model, tokenizer()) as trace:
        output = model(**inputs((3, 2))).logits
    kept = trace.images[0].kept.tolist()
    with torch.no_grad():
        states = embeddings(model, inputs((3, 2)))
        whole = states[0].clone()
        for token in kept:
            for other in merged[token]:
                states[0, first + token] += whole[first + other] / len(merged[token])
        stays = [p for p in range(len(whole)) if not 0 <= p - first < 112 or p - first in merged]
        expected = model(inputs_embeds=states[:, stays], position_ids=torch.tensor([stays])).logits
    torch.testing.assert_close(output, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("size", "step"), [(576, 8), (16, 1), (17, 3), (256, 4)])
def test_vispruner_deals_in_the_order_of_similarity(size, step):
    """In float64, where no two similarities are alike."""
    features = torch.randn(size, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    likeness = torch.tensor(rivals_vision.cosines(features, features), dtype=torch.float64)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(1))
    for count in (0, 1, 2, 7, size // 3, size // 2 + 1, size - 1, size):
        found = distinct(likeness, order, count, step).tolist()
        assert found == rivals_vision.rounds(likeness.tolist(), order.tolist(), count, step), "in this order"


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("side", [4, 24])
def test_hired_shares_by_what_it_counts(alpha, counted, side):
    facts = made_up((2, 2), side)
    total = round(0.2 * 5 * side * side) + 1
    settings = {"thumbnail_share": alpha, "counted": counted}
    kept = selected("hired", facts, total, **settings).kept.tolist()
    if alpha == 1:  # nothing is left for the tiles, but what the thumbnail cannot take
        own = min(total, side * side)
        assert sum(j >= 4 * side * side for j in kept) == own and len(kept) == total
    else:
        assert kept == sorted(rivals_vision.hired(facts, total, alpha, counted))


@pytest.mark.parametrize(("pivots", "text"), [(4, 4), (8, 0), (1, 2), (4, 40)])
@pytest.mark.parametrize("total", [2, 4, 5, 68, 132])
def test_dart_takes_any_pivots(pivots, text, total):
    facts = made_up((2, 1), 24)
    kept = selected("dart", facts, total, pivots=pivots, text_pivots=text).kept.tolist()
    assert kept == sorted(rivals_vision.dart(facts, total, pivots, text))


def test_dart_keeps_the_authors_count_where_it_is_a_whole_one():
    """int(N keep / 8) for each of 8 pivots, and the 4 of the picture on top: 132 of 128."""
    facts = made_up((2, 1), 24)
    kept = sorted(best := rivals_vision.best(facts.late_keys.abs().sum(dim=1).tolist(), range(3 * 576), 4))
    text = sorted(rivals_vision.best(facts.late_text_keys.abs().sum(dim=1).tolist(), range(11), 4))
    valid = set(range(3 * 576)) - set(best)
    for row in [*facts.late[kept], *facts.late_text[text]]:
        order = list(valid)
        likeness = torch.nn.functional.cosine_similarity(row, facts.late[order], dim=-1)
        chosen = [order[i] for i in (-likeness).topk(int(128 / 8)).indices]
        kept, valid = [*kept, *chosen], valid - set(chosen)
    assert len(kept) == 132 and selected("dart", facts, 132).kept.tolist() == sorted(kept)


def test_globalcom2_on_logits_tells_tiles_apart():
    """The thumbnail commands: on probabilities all tiles would keep the same share within a few percent."""
    facts = made_up((2, 2), 24)
    budgets = selected("globalcom2", facts, 576).budgets
    assert max(budgets[:4]) > 1.2 * min(budgets[:4])
