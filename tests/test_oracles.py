"""The seven oracles of the design: what makes pruning exact."""

import math

import pytest
import torch
from conftest import (
    TEXT_MODELS,
    dropped_tokens,
    embeddings,
    encode,
    footprint,
    masked_logits,
    picture,
    prompt,
    small_model,
    tokenizer,
)  # fmt: skip

import ptp
from ptp.selection import Selection

LAYERS = (0, 2, 3)


def pruner(**settings) -> ptp.PyramidPruner:
    return ptp.PyramidPruner(**{"keep_ratio": 0.3, **settings})


def prune(model, inputs, method=None, **call):
    with torch.no_grad(), (method or pruner())(model, tokenizer()) as trace:
        return model(**inputs, **call), trace


# 1. Mask equivalence


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("text", TEXT_MODELS)
def test_dropping_equals_masking(text, layer, attention):
    model = small_model(text, attention)
    inputs = encode(prompt(picture(1, (3, 2))))
    output, trace = prune(model, inputs, pruner(prune_layer=layer))
    dropped = dropped_tokens(trace, inputs)
    assert dropped.sum() == 112 - round(0.3 * 112)
    with torch.no_grad():
        expected = masked_logits(model, embeddings(model, inputs), dropped, layer)
    torch.testing.assert_close(output.logits, expected[~dropped][None], atol=1e-4, rtol=0)


@pytest.mark.parametrize("layer", [0, 2])
def test_dropping_equals_masking_without_a_cache(model, layer):
    inputs = encode(prompt(picture(2, (2, 2))))
    output, trace = prune(model, inputs, pruner(prune_layer=layer), use_cache=False)
    dropped = dropped_tokens(trace, inputs)
    with torch.no_grad():
        expected = masked_logits(model, embeddings(model, inputs), dropped, layer)
    torch.testing.assert_close(output.logits, expected[~dropped][None], atol=1e-4, rtol=0)
    assert trace.cache_bytes == (0, 0)


def test_two_stages_equal_two_masks(model):
    """A method with two stages drops twice; tokens of stage one stay visible below its layer only."""

    class TwoStages(ptp.PyramidPruner):
        def stages(self, layers):
            return (ptp.Stage(1, 0.6), ptp.Stage(3, 0.2))

        def select(self, picture, stage):
            budget = round(stage.keep_ratio * picture.tokens)
            seen.append((picture.alive, picture.text_attention))
            kept = picture.alive[-budget:]
            return Selection(kept, picture.count_per_tile(kept))

    seen = []
    inputs = encode(prompt(picture(3, (2, 2))))
    output, trace = prune(model, inputs, TwoStages())
    final = dropped_tokens(trace, inputs)
    start = trace.images[0].positions[0]
    first = torch.zeros_like(final)
    first[0, start : start + 80 - 48] = True
    language = model.model.language_model
    with torch.no_grad():
        states = embeddings(model, inputs)
        positions = torch.arange(states.shape[1])[None]
        rotary = language.rotary_emb(states, positions)
        for number, decoder in enumerate(language.layers):
            gone = torch.zeros_like(final) if number < 1 else first if number < 3 else final
            allowed = (torch.ones(states.shape[1], states.shape[1]).tril().bool() & ~gone) | torch.eye(states.shape[1]).bool()
            mask = torch.zeros(allowed.shape).masked_fill(~allowed, -1e30)[None, None]
            states = decoder(states, attention_mask=mask, position_embeddings=rotary, position_ids=positions)
        expected = model.lm_head(language.norm(states))
    torch.testing.assert_close(output.logits, expected[~final][None], atol=1e-4, rtol=0)
    assert len(seen[0][0]) == 80 and len(seen[1][0]) == 48
    assert (seen[1][1][:32] == 0).all() and seen[1][1][32:].gt(0).any(), "relevance of dropped tokens is zero"
    assert all(layer.keys.shape[2] == output.logits.shape[1] for layer in output.past_key_values.layers)


# 2. keep_ratio = 1


@pytest.mark.parametrize("method", [ptp.PyramidPruner, ptp.RandomPruner])
def test_keeping_everything_changes_no_bit(model, method):
    inputs = encode(prompt(picture(1, (3, 1))), prompt(question="Read the red circle."))
    with torch.no_grad():
        expected = model(**inputs)
        tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    output, trace = prune(model, inputs, method(keep_ratio=1.0))
    assert torch.equal(output.logits, expected.logits)
    with method(keep_ratio=1.0)(model, tokenizer()):
        assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), tokens)
    assert trace.visual_tokens == (64, 64)


# 3. Scores equal a loop over eager attention maps


PAPER = {"relevance": "attention", "scope": "tile", "diversity": 0.0, "alpha": 0.25}


def scores_by_loop(model, inputs, method, grid) -> dict[str, torch.Tensor]:
    """Section 2 of the design, token by token, over attention maps of the eager model; then `PyramidPruner`'s extensions."""
    columns, rows = grid
    tiles = columns * rows + 1
    vision = model.model.vision_tower(inputs["pixel_values"], output_attentions=True).attentions[method.vision_layer]
    maps = model(**inputs, output_attentions=True, output_hidden_states=True)
    text = maps.attentions[max(method.prune_layer - 1, 0)][0]  # (H, S, S)
    patch = [[float(vision[t, :, 0, 1 + p].mean()) for p in range(64)] for t in range(tiles)]
    token = []
    for t in range(tiles):
        for y in range(4):
            for x in range(4):
                block = [patch[t][(2 * y + dy) * 8 + 2 * x + dx] for dy in (0, 1) for dx in (0, 1)]
                token.append(sum(block) / 4)
    ids = inputs["input_ids"][0].tolist()
    image = model.config.image_token_id
    first, last = ids.index(image), len(ids) - 1 - ids[::-1].index(image)
    end = ids.index(tokenizer().convert_tokens_to_ids("<|im_end|>"), last)
    instruction_tokens = range(last + 3, end)  # after </img> and its newline, up to <|im_end|>
    assert tokenizer().decode([ids[i] for i in instruction_tokens]) == "What is on the red circle?"

    def scale(values):
        return [(v - min(values)) / (max(values) - min(values)) for v in values]

    states = maps.hidden_states[method.prune_layer][0].double()
    units = [state / state.norm() for state in states]
    attention = [max(float(text[:, i, first + j].mean()) for i in instruction_tokens) for j in range(16 * tiles)]
    cosine = scale([max(float(units[i] @ units[first + j]) for i in instruction_tokens) for j in range(16 * tiles)])
    both = [(a + c) / 2 for a, c in zip(scale(attention), cosine, strict=True)]
    source = method.relevance or ("attention" if method.prune_layer else "similarity")
    relevance = {"attention": attention, "similarity": cosine, "both": both}[source]
    mass = [0.0] * (tiles - 1)
    fine = 8 * columns * rows  # every patch and every tile is a whole number of these cells
    for y in range(fine):
        for x in range(fine):
            inside = patch[-1][(y * 8 // fine) * 8 + x * 8 // fine]
            mass[(y * rows // fine) * columns + x * columns // fine] += inside
    tiles_relevance = [sum(relevance[16 * t : 16 * t + 16]) for t in range(tiles - 1)]
    weight = method.alpha  # region_alpha is None
    region = [
        (1 - weight) * m / sum(mass) + weight * c / sum(tiles_relevance) for m, c in zip(mass, tiles_relevance, strict=True)
    ]
    fused = [(1 - method.alpha) * a + method.alpha * c for a, c in zip(scale(token), scale(relevance), strict=True)]
    novelty = [0.0] * (16 * tiles)
    for t in range(tiles):
        ranked = sorted(range(16 * t, 16 * t + 16), key=lambda j: -fused[j])
        for rank, j in enumerate(ranked):
            better = torch.stack([units[first + i] for i in ranked[:rank]]) if rank else units[0].new_zeros(0, len(units[0]))
            alike = better @ units[first + j]
            explained = alike @ torch.linalg.solve(better @ better.T + 0.1 * torch.eye(rank, dtype=torch.float64), alike)
            novelty[j] = (1.1 - float(explained)) / 1.1
    parts = {"region": [*region, 1.0], "token": token, "instruction": relevance, "fused": fused}
    if method.diversity:
        parts["novelty"] = novelty
    return {name: torch.tensor(values) for name, values in parts.items()}


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("text", TEXT_MODELS)
def test_scores_equal_the_loop(text, layer):
    grid = (3, 2)
    method = pruner(prune_layer=layer, **PAPER)
    inputs = encode(prompt(picture(5, grid)))
    with torch.no_grad():
        expected = scores_by_loop(small_model(text, "eager"), inputs, method, grid)
    total = round(0.3 * 112)
    own = round(total / 112 * 16)
    quota = [(total - own) * float(w) for w in expected["region"][:-1]]
    budgets = [math.floor(q) for q in quota]
    assert all(q < 16 for q in quota), "this picture has no full tile, so largest remainder alone decides"
    for r in sorted(range(6), key=lambda r: budgets[r] - quota[r])[: total - own - sum(budgets)]:
        budgets[r] += 1
    budgets.append(own)
    kept = []
    for tile, budget in enumerate(budgets):
        best = sorted(range(16), key=lambda j: -float(expected["fused"][16 * tile + j]))[:budget]
        kept += sorted(16 * tile + j for j in best)
    check_trace(text, inputs, method, grid, expected, kept)
    assert [sum(j // 16 == tile for j in kept) for tile in range(7)] == budgets


@pytest.mark.parametrize("relevance", [None, "attention", "similarity", "both"])
@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("text", TEXT_MODELS)
def test_scores_of_competing_tokens_equal_the_loop(text, layer, relevance):
    grid = (3, 2)
    method = pruner(prune_layer=layer, relevance=relevance)
    inputs = encode(prompt(picture(5, grid)))
    with torch.no_grad():
        expected = scores_by_loop(small_model(text, "eager"), inputs, method, grid)
    weights = [6 * float(share) for share in expected["region"][:-1]] + [1.0]
    fused, novelty = expected["fused"].tolist(), expected["novelty"].tolist()
    score = [weights[j // 16] * fused[j] * novelty[j] ** 0.5 for j in range(112)]
    kept = sorted(sorted(range(112), key=lambda j: -score[j])[: round(0.3 * 112)])
    check_trace(text, inputs, method, grid, expected, kept)


def check_trace(text, inputs, method, grid, expected, kept) -> None:
    for attention in ("eager", "sdpa"):
        _, trace = prune(small_model(text, attention), inputs, method)
        (image,) = trace.images
        assert image.grid == grid and set(image.scores) == set(expected)
        for name, score in expected.items():
            torch.testing.assert_close(image.scores[name], score, atol=1e-4, rtol=0, msg=name)
        assert image.kept.tolist() == kept
        assert image.budgets == [sum(j // 16 == tile for j in kept) for tile in range(len(image.sizes))]


# 5. Batch = singles


@pytest.mark.parametrize("layer", [0, 2])
def test_a_padded_batch_equals_its_rows_alone(model, layer):
    conversations = [
        prompt(picture(1, (3, 2))),
        prompt(question="What color is sign 7?"),
        prompt(picture(2, (1, 3)), picture(3, (2, 2)), question="Read the blue square."),
        prompt(picture(4, (2, 1)), question="Name the color of sign K."),
    ]
    method = pruner(prune_layer=layer)
    batch = encode(*conversations)  # positions as generate counts them: those of Ministral 3 are not only relative
    places = (batch["attention_mask"].cumsum(dim=1) - 1).clamp_min(0)
    together, trace = prune(model, batch, method, position_ids=places)
    images = list(trace.images)
    assert [image.row for image in images] == [0, 2, 2, 3]
    for row, conversation in enumerate(conversations):
        alone, single = prune(model, encode(conversation), method)
        length = alone.logits.shape[1]
        torch.testing.assert_close(together.logits[row, -length:], alone.logits[0], atol=1e-4, rtol=0)
        for one in single.images:
            other = images.pop(0)
            assert other.kept.tolist() == one.kept.tolist() and other.budgets == one.budgets
    assert not images


def test_batched_generation_equals_singles(model):
    conversations = [prompt(picture(1, (3, 2))), prompt(picture(2, (2, 1)), question="Read it."), prompt(question="Hello")]
    batch = encode(*conversations)
    with pruner()(model, tokenizer()):
        together = model.generate(**batch, max_new_tokens=6, do_sample=False)
        for row, conversation in enumerate(conversations):
            alone = model.generate(**encode(conversation), max_new_tokens=6, do_sample=False)
            assert together[row, -6:].tolist() == alone[0, -6:].tolist()


# 6. Nothing is left behind


@pytest.mark.parametrize("fail", [False, True])
def test_nothing_is_left_behind(model, fail):
    inputs = encode(prompt(picture(1, (2, 2))))
    with torch.no_grad():
        expected = model(**inputs).logits
    before = footprint(model)
    try:
        with pruner()(model, tokenizer()) as trace:
            assert footprint(model) != before
            model(**inputs)
            if fail:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert footprint(model) == before
    assert len(trace.images) == 1, "the trace outlives the context"
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, expected)


def test_an_error_inside_the_model_leaves_no_state(model):
    inputs = encode(prompt(picture(1, (2, 2))))
    expected, _ = prune(model, inputs)
    with torch.no_grad(), pruner()(model, tokenizer()):
        with pytest.raises(ValueError, match="do not match"):
            model(**{**inputs, "pixel_values": inputs["pixel_values"][:-1]})
        assert torch.equal(model(**inputs).logits, expected.logits)


# 7. Decode


@pytest.mark.parametrize("layer", LAYERS)
def test_generate_equals_a_greedy_loop_over_the_masked_sequence(model, layer):
    inputs = encode(prompt(picture(1, (3, 1))), prompt(picture(2, (2, 2)), question="Read the blue square."))
    with torch.no_grad(), pruner(prune_layer=layer)(model, tokenizer()) as trace:
        output = model.generate(**inputs, max_new_tokens=6, do_sample=False, output_logits=True, return_dict_in_generate=True)
    dropped = dropped_tokens(trace, inputs)
    assert dropped.any(dim=1).all()
    with torch.no_grad():
        for row in range(2):  # row by row, so that positions need no care for padding
            real = inputs["attention_mask"][row].bool()
            states = embeddings(model, inputs)[row : row + 1, real]
            gone = dropped[row : row + 1, real]
            length = states.shape[1]
            for step in range(6):
                logits = masked_logits(model, states, gone, layer, length)[0, -1]
                torch.testing.assert_close(output.logits[step][row], logits, atol=1e-4, rtol=0)
                token = logits.argmax()
                assert token == output.sequences[row, inputs["input_ids"].shape[1] + step]
                states = torch.cat([states, model.get_input_embeddings()(token)[None, None]], dim=1)
                gone = torch.cat([gone, torch.zeros(1, 1, dtype=torch.bool)], dim=1)
