"""Every method keeps what a loop written from its paper's rule keeps, over maps of the eager, never shortened model."""

import math
from functools import cache

import pytest
import torch
from conftest import embeddings, encode, picture, prompt, small_model, tokenizer

import rivals_vision
from ptp.greedy import keep_determinantal, keep_diverse
from ptp.methods import METHODS
from test_rivals_text import RULES as TEXT_RULES

GRID = (3, 2)
TILES, SIDE, SIZE = 7, 4, 16
TOKENS = TILES * SIZE
KEEP = 0.3
TOTAL = round(KEEP * 112)


@cache
def inputs():
    return encode(prompt(picture(5, GRID)))


def places() -> tuple[int, int, list[int]]:
    """Position of the first visual token, of the last token, and of the instruction's."""
    ids = inputs()["input_ids"][0].tolist()
    image = small_model().config.image_token_id
    first, last = ids.index(image), len(ids) - 1 - ids[::-1].index(image)
    end = ids.index(tokenizer().convert_tokens_to_ids("<|im_end|>"), last)
    return first, len(ids) - 1, list(range(last + 3, end))


@cache
def vision(layer: int) -> tuple[list[list[float]], list[list[float]]]:
    """[CLS] attention of every patch and of every visual token, tile by tile."""
    model = small_model(attention="eager")
    with torch.no_grad():
        maps = model.model.vision_tower(inputs()["pixel_values"], output_attentions=True).attentions[layer]
    patches = [[float(maps[t, :, 0, 1 + p].mean()) for p in range(64)] for t in range(TILES)]
    tokens = [
        [
            sum(patches[t][(2 * y + dy) * 8 + 2 * x + dx] for dy in (0, 1) for dx in (0, 1)) / 4
            for y in range(SIDE)
            for x in range(SIDE)
        ]
        for t in range(TILES)
    ]
    return patches, tokens


def run(drops: dict[int, list[int]]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Inputs (S, D) and attention maps (S, S) of every layer of the full sequence, in which nothing attends from layer K on
    to the visual tokens `drops[K]`."""
    model = small_model(attention="eager")
    language, first = model.model.language_model, places()[0]
    with torch.no_grad():
        states = embeddings(model, inputs())
        length = states.shape[1]
        positions = torch.arange(length)[None]
        rotary = language.rotary_emb(states, positions)
        allowed, all_states, maps = torch.ones(length, length, dtype=torch.bool).tril(), [], []
        for number, decoder in enumerate(language.layers):
            for token in drops.get(number, []):
                allowed[:, first + token] = False
            mask = torch.zeros(length, length).masked_fill(~(allowed | torch.eye(length, dtype=torch.bool)), -1e30)[None, None]
            hook = decoder.self_attn.register_forward_hook(lambda module, args, output: maps.append(output[1][0].mean(dim=0)))
            all_states.append(states[0])
            states = decoder(states, attention_mask=mask, position_embeddings=rotary, position_ids=positions)
            hook.remove()
    return all_states, maps


def best(scores, tokens, count: int) -> list[int]:
    return sorted(tokens, key=lambda j: (-float(scores[j]), j))[:count]


def shares(weights: list[float], capacity: int, total: int) -> list[int]:
    """Largest remainder, for weights that fill no tile."""
    quota = [total * weight / sum(weights) for weight in weights]
    assert all(q <= capacity for q in quota)
    counts = [math.floor(q) for q in quota]
    for r in sorted(range(len(quota)), key=lambda r: (counts[r] - quota[r], -weights[r], r))[: total - sum(counts)]:
        counts[r] += 1
    return counts


def even() -> list[int]:
    return shares([1.0] * TILES, SIZE, TOTAL)


def cosine(features: torch.Tensor) -> list[list[float]]:
    return [[float(torch.cosine_similarity(a, b, dim=0)) for b in features] for a in features]


def by_tile(scores: list[float], budgets: list[int]) -> list[int]:
    return [j for t, b in enumerate(budgets) for j in best(scores, range(16 * t, 16 * t + 16), b)]


def flat(tokens: list[list[float]]) -> list[float]:
    return [score for tile in tokens for score in tile]


def uniform_grid():
    return [16 * t + math.floor((i + 0.5) * 16 / b) for t, b in enumerate(even()) for i in range(b)]


@cache
def received(layer: int) -> list[float]:
    """Attention that every visual token receives from the patches of its tile, [CLS] left out of rows and columns."""
    model = small_model(attention="eager")
    with torch.no_grad():
        maps = model.model.vision_tower(inputs()["pixel_values"], output_attentions=True).attentions[layer]
    shares = maps[:, :, 1:, 1:] / maps[:, :, 1:, 1:].sum(dim=3, keepdim=True)
    patches = [[float(shares[t, :, :, p].mean()) for p in range(64)] for t in range(TILES)]
    return [
        sum(patches[t][(2 * y + dy) * 8 + 2 * x + dx] for dy in (0, 1) for dx in (0, 1)) / 4
        for t in range(TILES)
        for y in range(SIDE)
        for x in range(SIDE)
    ]


def hiprune(alpha=0.1, total=TOTAL):
    objects, deep, kept = received(0), received(-1), []  # layer 9 of 24 is layer 1 of 3
    anchors = best(objects, range(112), round(alpha * total / 5))
    for t, budget in enumerate(shares([1.0] * TILES, SIZE, total)):
        mine = [j for j in anchors if j // 16 == t]
        spots = {
            (y + dy, x + dx) for y, x in (divmod(j % 16, 4) for j in mine) for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1))
        }
        buffers = {16 * t + 4 * y + x for y, x in spots if 0 <= y < 4 and 0 <= x < 4} - set(mine)
        rest = set(range(16 * t, 16 * t + 16)) - set(mine) - buffers
        kept += [*mine, *best(objects, buffers, 16), *best(deep, rest, 16)][:budget]
    return kept


def prumerge(spatial: float = 0.0):
    scores, budgets = flat(vision(-1)[1]), even()
    kept = by_tile(scores, [b - round(spatial * b) for b in budgets])
    for t, b in enumerate(budgets):
        rest = [j for j in range(16 * t, 16 * t + 16) if j not in kept]
        count = round(spatial * b)
        kept += [rest[i * len(rest) // count] for i in range(count)]
    return kept


RULES = {
    rule.__name__: rule
    for rule in (uniform_grid, hiprune, prumerge)
}  # fmt: skip


@cache
def expected(name: str) -> list[int]:
    return sorted(RULES[name]())


def test_every_method_has_a_loop():
    elsewhere = {"pyramid", "random"}  # in test_oracles and test_evaluation
    loops = [*RULES, *rivals_vision.RULES, *TEXT_RULES, *elsewhere]
    assert sorted(METHODS) == sorted(loops), "one each"


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", RULES)
def test_a_method_keeps_what_its_rule_keeps(name, attention):
    model = small_model(attention=attention)
    with torch.no_grad(), METHODS[name](keep_ratio=KEEP)(model, tokenizer()) as trace:
        model(**inputs())
    (image,) = trace.images
    assert len(image.kept) == TOTAL == len(set(expected(name)))
    assert image.kept.tolist() == expected(name)
    assert image.budgets == [sum(j // 16 == t for j in expected(name)) for t in range(TILES)]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("keep", [1.0, 0.5, 0.01])
def test_every_method_keeps_its_budget_of_every_picture(name, keep):
    """Pictures of several tiles and of one, in a padded batch with a row of text."""
    model = small_model()
    batch = encode(prompt(picture(1, (3, 2)), picture(2, (1, 1))), prompt(question="Hello"), prompt(picture(3, (2, 2))))
    with torch.no_grad():
        full = model(**batch).logits
        with METHODS[name](keep_ratio=keep)(model, tokenizer()) as trace:
            output = model(**batch).logits
    totals = [max(1, round(keep * tokens)) for tokens in (112, 16, 80)]
    assert [len(image.kept) for image in trace.images] == totals == [sum(image.budgets) for image in trace.images]
    assert all((image.kept.diff() > 0).all() for image in trace.images) and output.isfinite().all()
    assert trace.layer_tokens[-1] == sum(totals) and 0 < trace.average_tokens <= 208
    if keep == 1:
        assert torch.equal(output, full)


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_gives_every_row_what_it_gets_alone(name):
    model, rows = small_model(), [prompt(picture(1, (3, 2))), prompt(picture(2, (2, 1)), question="Count the red signs.")]
    with torch.no_grad(), METHODS[name](keep_ratio=0.4)(model, tokenizer()) as trace:
        together = model(**encode(*rows)).logits
        kept = [image.kept.tolist() for image in trace.images]
        for row, mine in zip(rows, range(2), strict=True):
            alone = model(**encode(row)).logits[0]
            assert trace.images[0].kept.tolist() == kept[mine]
            torch.testing.assert_close(together[mine, -len(alone) :], alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("alpha", [0, 0.5, 1])
@pytest.mark.parametrize("keep", [0.05, 0.2, KEEP, 0.5, 0.9])
def test_hiprune_takes_any_share_of_anchors(alpha, keep):
    with torch.no_grad(), METHODS["hiprune"](keep_ratio=keep, object_share=alpha)(small_model(), tokenizer()) as trace:
        small_model()(**inputs())
    assert trace.images[0].kept.tolist() == sorted(hiprune(alpha, round(keep * 112)))


@pytest.mark.parametrize(("share", "depth", "layer"), [(0.375, 24, 8), (0.5, 32, 15), (0.375, 27, 9), (0, 3, 0), (1, 3, 2)])
def test_hiprune_scales_its_object_layer(share, depth, layer):
    assert METHODS["hiprune"](object_depth=share).reads(depth).vision[0].layer == layer


def vision_keys() -> torch.Tensor:
    """(N, D) keys of the last vision layer, the mean over heads and over the 2 x 2 patches of a visual token."""
    model, seen = small_model(attention="eager"), []
    tower, heads = model.model.vision_tower, model.config.vision_config.num_attention_heads
    hook = tower.encoder.layer[-1].attention.k_proj.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        tower(inputs()["pixel_values"])
    hook.remove()
    patches = seen[0][:, 1:].unflatten(2, (heads, -1)).mean(dim=2)
    corners = [2 * y * 8 + 2 * x for y in range(SIDE) for x in range(SIDE)]
    return torch.stack([tile[[c, c + 1, c + 8, c + 9]].mean(dim=0) for tile in patches for c in corners])


@pytest.mark.parametrize(("neighbours", "spatial"), [(32, 0.0), (3, 0.0), (3, 0.5), (0, 1.0)])
def test_prumerge_adds_its_neighbours_to_each_kept_token(neighbours, spatial):
    """It equals the model fed, at the kept places, the token plus its k nearest ones times their share of [CLS] attention."""
    model, likeness, paid = small_model(), cosine(vision_keys()), vision(-1)[1]
    states, first, merged = embeddings(model, inputs()), places()[0], {}
    for i in prumerge(spatial):
        t = i // 16
        merged[i] = states[0, first + i].clone()
        for j in best(likeness[i], set(range(16 * t, 16 * t + 16)) - {i}, neighbours):
            merged[i] += paid[t][j - 16 * t] / sum(paid[t]) * states[0, first + j]
    kept = sorted(merged)
    method = METHODS["prumerge"](keep_ratio=KEEP, neighbours=neighbours, spatial=spatial)
    with torch.no_grad(), method(model, tokenizer()) as trace:
        output = model(**inputs()).logits
    assert trace.images[0].kept.tolist() == kept
    states = states.clone()
    states[0, [first + i for i in kept]] = torch.stack([merged[i] for i in kept])
    stays = [p for p in range(states.shape[1]) if not 0 <= p - first < 112 or p - first in merged]
    with torch.no_grad():
        expected_logits = model(inputs_embeds=states[:, stays], position_ids=torch.tensor([stays])).logits
    torch.testing.assert_close(output, expected_logits, atol=1e-4, rtol=0)


def test_the_layers_that_prune_are_averaged():
    with torch.no_grad(), METHODS["pyramiddrop"](keep_ratio=0.125)(small_model(), tokenizer()) as trace:
        small_model()(**inputs())
    assert trace.layer_tokens == (112, 56, 28, 14) and trace.average_tokens == 52.5
    assert trace.to_dict()["average_tokens"] == 52.5


@pytest.mark.parametrize("keep", [keep_diverse, keep_determinantal])
def test_greedy_selections_take_any_budget(keep):
    features = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    previous: set[int] = set()
    for budget in range(1, 10):
        kept = keep(features, budget).tolist()
        assert len(kept) == len(set(kept)) == budget and kept == sorted(kept)
        assert previous <= set(kept), "greedy: more budget only adds"
        previous = set(kept)


BAD = {
    "visionzip": {"contextual": 2}, "vispruner": {"important": -1}, "hired": {"thumbnail_share": 2},
    "globalcom2": {"temperature": 0}, "dart": {"pivots": 0}, "deft": {"reserve": -1}, "random": {"seed": 10**30},
    "prumerge": {"neighbours": -1}, "hiprune": {"object_share": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_wrong_settings_are_refused(name):
    with pytest.raises(ValueError, match=f"{next(iter(BAD[name]))} must be"):
        METHODS[name](**BAD[name])
