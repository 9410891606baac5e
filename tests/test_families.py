"""The seven oracles of the design for every model family, and that a token's box is where its pixels come from."""

import contextlib
import copy
import functools
import math

import accelerate
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchao
from families import FAMILIES, SIZES, Family, encode, model_of, photo, picture, processor_of, tokenizer
from PIL import Image, ImageDraw
from transformers import DynamicCache

import ptp
from ptp.adapters import adapter_for
from ptp.adapters.instruction import turn_markers
from ptp.bench.measure import compare
from ptp.methods import METHODS
from ptp.report.overlay import overlay_uris
from ptp.tiny.model import CHAT_TEMPLATE

QUESTION = "What is on the red circle?"
WINDOW = 56


@pytest.fixture(params=list(FAMILIES))
def family(request) -> Family:
    return FAMILIES[request.param]


def pruner(name: str = "pyramid", **settings):
    return METHODS[name](**{"keep_ratio": 0.3, "window": WINDOW, **settings})


def prune(model, inputs, method, **call):
    with torch.no_grad(), method(model, tokenizer()) as trace:
        return model(**inputs, **call), trace


@contextlib.contextmanager
def blinded(model, padding: torch.Tensor, *gone: tuple[dict[int, torch.Tensor], int | None]):
    """The model whose tokens do not see those in `gone`; nothing is removed.

    Args:
        gone: Pairs of dropped tokens (B, S), by the first layer they are missing in, and the length of their prompt. What
            comes after it goes on from compacted caches, and sees the dropped tokens in no layer.
    """
    layers, length = adapter_for(model).layers, padding.shape[1]
    causal, order = torch.ones(length, length).tril().bool(), torch.arange(length)

    def hook(number, module, args, kwargs):
        own = kwargs["attention_mask"]  # windows, and pictures that see both ways, are the model's own
        seen = causal & padding[:, None] if own is None else (own if own.dtype == torch.bool else own > -1)[:, 0]
        for dropped, prompt_length in gone:
            for layer, tokens in dropped.items():
                late = order >= (length if prompt_length is None else prompt_length)
                blind = late | torch.tensor(layer <= number)
                seen = seen & ~(tokens[:, None] & blind[None, :, None])
        seen = seen | torch.eye(length, dtype=torch.bool)
        return args, kwargs | {"attention_mask": torch.zeros(seen.shape).masked_fill(~seen, -1e30)[:, None]}

    handles = [layer.register_forward_pre_hook(functools.partial(hook, n), with_kwargs=True) for n, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def drops(inputs, trace, selections) -> dict[int, torch.Tensor]:
    """Layer -> (B, S) tokens that are missing from there on."""
    gone = {}
    for layer, chosen in selections.items():
        missing = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
        for image, kept in zip(trace.images, chosen, strict=True):
            left = torch.ones(image.num_tokens, dtype=torch.bool)
            left[kept] = False
            missing[image.row, image.positions[left]] = True
        gone[layer] = missing
    return gone


def watch(monkeypatch, method) -> dict[int, list[torch.Tensor]]:
    """What the method selects: kept tokens of each picture, by layer."""
    seen: dict[int, list[torch.Tensor]] = {}
    select = type(method).select

    def watched(self, picture, stage):
        selection = select(self, picture, stage)
        seen.setdefault(stage.layer, []).append(selection.kept)
        return selection

    monkeypatch.setattr(type(method), "select", watched)
    return seen


# 1. Mask equivalence


@pytest.mark.parametrize("name", [*METHODS, "pyramid at 2", "pyramid at 3"])
def test_dropping_equals_masking(monkeypatch, family, name):
    name, _, layer = name.partition(" at ")
    if name == "visionzip":
        pytest.skip("visionzip averages tokens: masking is not what it does (test_methods checks the averages)")
    method = pruner(name, **({"prune_layer": int(layer)} if layer else {}))
    model, inputs = model_of(family), encode(family, ([picture()], QUESTION))
    selections = watch(monkeypatch, method)
    output, trace = prune(model, inputs, method)
    gone = drops(inputs, trace, selections)
    last = gone[max(gone)]
    assert 0 < last.sum() == trace.visual_tokens[0] - trace.visual_tokens[1]
    with torch.no_grad(), blinded(model, inputs["attention_mask"].bool(), (gone, None)):
        expected = model(**inputs).logits
    torch.testing.assert_close(output.logits, expected[~last][None], atol=1e-4, rtol=0)


@pytest.mark.parametrize("layer", [0, 2])
def test_dropping_equals_masking_under_eager(monkeypatch, family, layer):
    method = pruner(prune_layer=layer)
    model, inputs = model_of(family, "eager"), encode(family, ([picture()], QUESTION))
    selections = watch(monkeypatch, method)
    output, trace = prune(model, inputs, method)
    gone = drops(inputs, trace, selections)
    with torch.no_grad(), blinded(model, inputs["attention_mask"].bool(), (gone, None)):
        expected = model(**inputs).logits
    torch.testing.assert_close(output.logits, expected[~gone[layer]][None], atol=1e-4, rtol=0)
    _, other = prune(model_of(family), inputs, method)
    assert other.images[0].kept.tolist() == trace.images[0].kept.tolist()


# 2. keep_ratio = 1


@pytest.mark.parametrize("name", ["pyramid", "fastv", "deft"])
def test_keeping_everything_changes_no_bit(family, name):
    model = model_of(family)
    inputs = encode(family, ([picture()], QUESTION), ([], "Hello"))
    with torch.no_grad():
        expected = model(**inputs).logits
        tokens = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    output, trace = prune(model, inputs, pruner(name, keep_ratio=1.0))
    assert torch.equal(output.logits, expected) and trace.visual_tokens[0] == trace.visual_tokens[1] > 0
    with pruner(name, keep_ratio=1.0)(model, tokenizer()):
        assert torch.equal(model.generate(**inputs, max_new_tokens=3, do_sample=False), tokens)


# 3. Scores equal a loop over eager attention maps


def best_canvas(height: int, width: int, pinpoints) -> tuple[int, int]:
    """LLaVA's choice: the most pixels of the picture, then the least waste."""
    found, best, least = (0, 0), 0, math.inf
    for h, w in pinpoints:
        scale = min(w / width, h / height)
        shown = min(int(width * scale) * int(height * scale), width * height)
        waste = h * w - shown
        if shown > best or (shown == best and waste < least):
            found, best, least = (h, w), shown, waste
    return found


def anyres_scores(config, inputs, scores: torch.Tensor, shrink: int | None) -> list[float | None]:
    """Prompt order: the thumbnail, then the raster over all tiles, None for newlines."""
    (height, width), side = inputs["image_sizes"][0].tolist(), round(scores.shape[1] ** 0.5)
    canvas = best_canvas(height, width, config.image_grid_pinpoints)
    down, across = (edge // config.vision_config.image_size for edge in canvas)
    raster = torch.zeros(down * side, across * side)
    for tile, patches in enumerate(scores[1:]):
        y, x = tile // across * side, tile % across * side
        raster[y : y + side, x : x + side] = patches.view(side, side)
    rows, columns = raster.shape
    if width / height > columns / rows:
        cut = (rows - int(round(height * columns / width, 7))) // 2
        raster = raster[cut : rows - cut]
    else:
        cut = (columns - int(round(width * rows / height, 7))) // 2
        raster = raster[:, cut : columns - cut]
    rows, columns = raster.shape
    if shrink is not None and (ratio := math.sqrt(rows * columns / (shrink * side**2))) > 1.1:
        raster = F.interpolate(raster[None, None], [int(rows // ratio), int(columns // ratio)], mode="bilinear")[0, 0]
    return [*scores[0].tolist(), *(value for row in raster.tolist() for value in (*row, None))]


def block_scores(scores: torch.Tensor, factor: int) -> list[float | None]:
    """Prompt order of tiles whose visual tokens are the means of blocks of patches."""
    tokens = []
    side = round(scores.shape[1] ** 0.5)
    for patches in scores:
        for y in range(0, side, factor):
            for x in range(0, side, factor):
                block = [float(patches[(y + dy) * side + x + dx]) for dy in range(factor) for dx in range(factor)]
                tokens.append(sum(block) / len(block))
    return tokens


def token_saliency(family: Family, inputs) -> list[float | None]:
    """Mean attention that a token's patches receive in the last vision layer that matters, by the eager model's own maps."""
    model = model_of(family, "eager")
    core, seen = model.model, []
    adapter = adapter_for(model)
    blocks = adapter.vision.blocks if family.name.startswith("qwen") else None
    if blocks is not None:
        return qwen_saliency(model, inputs, blocks[-1].attn)
    layers = adapter.vision.encoder.layer if family.name == "internvl" else adapter.vision.encoder.layers
    last = layers[-2] if family.name == "llava-next" else layers[-1]
    attention = last.attention if family.name == "internvl" else last.self_attn
    handle = attention.register_forward_hook(lambda module, args, output: seen.append(output[1]))
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    maps = seen[0].mean(dim=1)  # (U, L, L)
    scores = maps[:, 0, 1:] if adapter.has_cls else maps.mean(dim=1)
    if family.name == "llava-next":
        return anyres_scores(core.config, inputs, scores, None)
    if family.name == "llava-onevision":
        return anyres_scores(core.config, inputs, scores, 3)
    return block_scores(scores, 2)


def qwen_saliency(model, inputs, attention) -> list[float | None]:
    """The picture's patches attend to each other in the last block; four of them, one after another, are a token."""
    seen = {}
    handle = attention.register_forward_hook(lambda m, args, kwargs, output: seen.update(args=args, **kwargs), with_kwargs=True)
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    hidden = seen["args"][0] if seen["args"] else seen["hidden_states"]
    q, k, _ = attention.qkv(hidden).view(len(hidden), 3, attention.num_heads, -1).unbind(1)
    cos, sin = (part[:, None] for part in seen["position_embeddings"])

    def turned(x):
        half = x.shape[-1] // 2
        return x * cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin

    maps = torch.einsum("ihd,jhd->hij", turned(q), turned(k)).mul(attention.head_dim**-0.5).softmax(dim=-1)
    chance = torch.rand(64, generator=torch.Generator().manual_seed(0)).tolist()
    asked = [int((i + chance[i]) * len(hidden) / 64) for i in range(64)]  # of more than 128 patches these speak for all
    received = maps[:, asked if len(hidden) > 128 else slice(None)].mean(dim=(0, 1)).view(-1, 4).mean(dim=1)
    if hasattr(model.model.visual, "window_size"):  # the encoder's order is window by window
        _, rows, columns = inputs["image_grid_thw"][0].tolist()
        rows, columns, side, order = rows // 2, columns // 2, 2, []  # windows of 56 px: 2 x 2 tokens
        for y, x in ((y, x) for y in range(0, rows, side) for x in range(0, columns, side)):
            order += [
                (y + dy) * columns + x + dx for dy in range(side) for dx in range(side) if y + dy < rows and x + dx < columns
            ]
        received = received[torch.tensor(order).argsort()]
    return received.tolist()


@pytest.mark.parametrize("layer", [0, 2])
def test_scores_equal_the_loop(family, layer):
    inputs = encode(family, ([picture()], QUESTION))
    method = pruner(prune_layer=layer, relevance="attention", budgets="tile", diversity=0.0)
    expected = token_saliency(family, inputs)
    model = model_of(family, "eager")
    with torch.no_grad():
        maps = model(**inputs, output_attentions=True).attentions[max(layer - 1, 0)][0].mean(dim=0)
    asked = turn_markers(tokenizer()).mask(inputs["input_ids"], inputs["attention_mask"])[0].nonzero()[:, 0]
    assert tokenizer().decode(inputs["input_ids"][0, asked]) == QUESTION
    image = adapter_for(model).visual_tokens(inputs["input_ids"])[0].nonzero()[:, 0].tolist()
    assert len(image) == len(expected)
    for attention in ("eager", "sdpa"):
        _, trace = prune(model_of(family, attention), inputs, method)
        (mine,) = trace.images
        places = mine.positions.tolist()
        assert sorted(places) == [place for place, score in zip(image, expected, strict=True) if score is not None]
        wanted = dict(zip(image, expected, strict=True))
        torch.testing.assert_close(mine.scores["token"], torch.tensor([wanted[p] for p in places]), atol=1e-5, rtol=0)
        relevance = torch.tensor([max(float(maps[i, p]) for i in asked) for p in places])
        torch.testing.assert_close(mine.scores["instruction"], relevance, atol=1e-4, rtol=0)


# 5. Batch = singles


@pytest.mark.parametrize("layer", [0, 2])
def test_a_padded_batch_equals_its_rows_alone(family, layer):
    prompts = [
        ([picture()], QUESTION),
        ([], "What color is sign 7?"),
        ([picture(1), picture(2)], "Read the blue square."),
        ([picture(2)], "Name the color of sign K."),
    ]
    model, method = model_of(family), pruner(prune_layer=layer)
    together, trace = prune(model, encode(family, *prompts), method)
    images = list(trace.images)
    assert [image.row for image in images] == [0, 2, 2, 3]
    for row, one in enumerate(prompts):
        alone, single = prune(model, encode(family, one), method)
        length = alone.logits.shape[1]
        torch.testing.assert_close(together.logits[row, -length:], alone.logits[0], atol=1e-4, rtol=0)
        for mine in single.images:
            assert images.pop(0).kept.tolist() == mine.kept.tolist()
    assert not images
    batch = encode(family, *prompts)
    with method(model, tokenizer()):
        tokens = model.generate(**batch, max_new_tokens=3, do_sample=False)[:, -3:]
        for row, one in enumerate(prompts):
            assert (
                tokens[row].tolist()
                == model.generate(**encode(family, one), max_new_tokens=3, do_sample=False)[0, -3:].tolist()
            )


# 6. Nothing is left behind


def footprint(model) -> dict:
    return {
        name: (sorted(vars(module)), {k: len(v) for k, v in vars(module).items() if "hooks" in k and hasattr(v, "__len__")})
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("fail", [False, True])
def test_nothing_is_left_behind(family, fail):
    model, inputs = model_of(family), encode(family, ([picture()], QUESTION))
    with torch.no_grad():
        expected = model(**inputs).logits
    before = footprint(model)
    with contextlib.suppress(KeyboardInterrupt), torch.no_grad(), pruner()(model, tokenizer()) as trace:
        model(**inputs)
        if fail:
            raise KeyboardInterrupt
    assert footprint(model) == before and len(trace.images) == 1
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, expected)


# 7. Decode


def extended(inputs, tokens):
    """The inputs with `tokens` (B, n) behind the prompt."""
    more = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    more |= dict.fromkeys(("mm_token_type_ids", "token_type_ids"), torch.zeros_like(tokens))
    return {name: torch.cat([value, more[name]], dim=1) if name in more else value for name, value in inputs.items()}


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_generate_equals_a_greedy_loop_over_the_masked_sequence(monkeypatch, family, layer):
    model, method = model_of(family), pruner(prune_layer=layer)
    inputs = encode(family, ([picture()], QUESTION))
    selections = watch(monkeypatch, method)
    with torch.no_grad(), method(model, tokenizer()) as trace:
        output = model.generate(**inputs, max_new_tokens=5, do_sample=False, output_logits=True, return_dict_in_generate=True)
    (dropped,) = drops(inputs, trace, selections).values()
    length = inputs["input_ids"].shape[1]
    tokens = output.sequences[:, length:]
    for step in range(5):
        whole = extended(inputs, tokens[:, :step])
        gone = F.pad(dropped, (0, step))
        with torch.no_grad(), blinded(model, whole["attention_mask"].bool(), ({layer: gone}, length)):
            logits = model(**whole).logits[0, -1]
        torch.testing.assert_close(output.logits[step][0], logits, atol=1e-4, rtol=0)
        assert logits.argmax() == tokens[0, step]


@pytest.mark.parametrize("layer", [0, 2])
def test_a_second_question_goes_on_from_what_was_kept(monkeypatch, family, layer):
    """Through generate, with the whole conversation's ids and the first turn's cache."""
    model, method = model_of(family), pruner(prune_layer=layer)
    first, cache = encode(family, ([picture()], QUESTION)), DynamicCache()
    selections = watch(monkeypatch, method)
    with method(model, tokenizer()) as trace:
        ids = model.generate(**first, past_key_values=cache, max_new_tokens=3, do_sample=False)
        (dropped,) = drops(first, trace, selections).values()
        more = tokenizer()("<|im_end|>\n<|im_start|>user\nAnd what?<|im_end|>\n", return_tensors="pt").input_ids
        length = first["input_ids"].shape[1]
        whole = extended(first, torch.cat([ids[:, length:], more], dim=1))
        told = {name: value for name, value in whole.items() if "pixel" not in name and "image" not in name}
        output = model.generate(
            **told, past_key_values=cache, max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    for step in range(3):
        longer = extended(whole, output.sequences[:, -3:][:, :step])
        gone = F.pad(dropped, (0, longer["input_ids"].shape[1] - length))
        with torch.no_grad(), blinded(model, longer["attention_mask"].bool(), ({layer: gone}, length)):
            logits = model(**longer).logits[0, -1]
        torch.testing.assert_close(output.logits[step][0], logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", [pruner(), pruner(prune_layer=2), pruner("fastv"), pruner("deft")])
def test_a_new_picture_in_a_later_turn_is_pruned_by_itself(monkeypatch, family, method):
    model = model_of(family)
    first, second = encode(family, ([picture()], QUESTION)), encode(family, ([picture(1)], "And what here?"))
    length, cache = first["input_ids"].shape[1], DynamicCache()
    whole = {name: torch.cat([first[name], second[name]], dim=1) for name in MORE if name in first}
    pictures = {name: value for name, value in second.items() if name not in MORE}
    if "image_grid_thw" in first:
        grids = torch.cat([first["image_grid_thw"], second["image_grid_thw"]])
        pictures["position_ids"] = model.model.get_rope_index(**whole, image_grid_thw=grids)[0][..., length:]
    selections = watch(monkeypatch, method)
    with torch.no_grad(), method(model, tokenizer()) as trace:
        model(**first, past_key_values=cache)
        gone = drops(first, trace, selections)
        selections.clear()
        new = {"input_ids": second["input_ids"], "attention_mask": whole["attention_mask"]}
        new |= {name: second[name] for name in ("token_type_ids",) if name in second}
        output = model(**new, **pictures, past_key_values=cache)
        assert len(trace.images) == 1 and trace.sequence_length[0] == whole["input_ids"].shape[1]
        gone = {layer: F.pad(tokens, (0, second["input_ids"].shape[1])) for layer, tokens in gone.items()}
        later = drops(whole, trace, selections)
        word = torch.full((1, 1), 40)
        place = pictures["position_ids"].amax(dim=(0, 2))[:, None] + 1 if "position_ids" in pictures else None
        decoded = model(input_ids=word, past_key_values=cache, position_ids=place).logits
    assert all(
        (tokens & (whole["input_ids"] == adapter_for(model).image_token_id) == tokens).all() for tokens in later.values()
    )
    both = both_pictures(first, second, whole) | {"input_ids": torch.cat([whole["input_ids"], word], dim=1)}
    both |= {name: F.pad(whole[name], (0, 1), value=name == "attention_mask") for name in whole if name != "input_ids"}
    gone, later = ({layer: F.pad(tokens, (0, 1)) for layer, tokens in one.items()} for one in (gone, later))
    with (
        torch.no_grad(),
        blinded(model, both["attention_mask"].bool(), (gone, length), (later, both["input_ids"].shape[1] - 1)),
    ):
        expected = model(**both).logits
    stays = ~later[max(later)][0, length:-1]
    torch.testing.assert_close(output.logits, expected[:, length:-1][:, stays], atol=1e-4, rtol=0)
    torch.testing.assert_close(decoded, expected[:, -1:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("layer", [0, 2])
def test_scores_in_a_later_turn_equal_the_loop(monkeypatch, family, layer):
    """What the second question attends to, over all that it still sees of the first turn."""
    method = pruner(prune_layer=layer, relevance="attention", budgets="tile", diversity=0.0)
    first, second = encode(family, ([picture(2)], "Read it.")), encode(family, ([picture(1)], QUESTION))
    length, cache, model = first["input_ids"].shape[1], DynamicCache(), model_of(family, "eager")
    whole = {name: torch.cat([first[name], second[name]], dim=1) for name in MORE if name in first}
    new = {"input_ids": second["input_ids"], "attention_mask": whole["attention_mask"]}
    new |= {name: value for name, value in second.items() if name not in MORE or name == "token_type_ids"}
    if "image_grid_thw" in first:
        grids = torch.cat([first["image_grid_thw"], second["image_grid_thw"]])
        new["position_ids"] = model.model.get_rope_index(**whole, image_grid_thw=grids)[0][..., length:]
    selections = watch(monkeypatch, method)
    with torch.no_grad(), method(model, tokenizer()) as trace:
        model(**first, past_key_values=cache)
        gone = drops(first, trace, selections)
        model(**new, past_key_values=cache)
    (image,) = trace.images
    gone = {at: F.pad(tokens, (0, second["input_ids"].shape[1])) for at, tokens in gone.items()}
    with torch.no_grad(), blinded(model, whole["attention_mask"].bool(), (gone, length)):
        both = both_pictures(first, second, whole)
        maps = model(**both, output_attentions=True).attentions[max(layer - 1, 0)][0].mean(dim=0)
    asked = turn_markers(tokenizer()).mask(second["input_ids"], second["attention_mask"])[0].nonzero()[:, 0] + length
    relevance = torch.tensor([max(float(maps[i, place]) for i in asked) for place in image.positions])
    torch.testing.assert_close(image.scores["instruction"], relevance, atol=1e-4, rtol=0)


MORE = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")


def both_pictures(first, second, whole):
    """The inputs of two turns with a picture each as one prompt."""
    made = dict(whole)
    for name in first.keys() - set(MORE):
        one, other = first[name], second[name]
        if name in ("pixel_values", "pixel_attention_mask") and "image_sizes" not in first and one.dim() > 4 - ("mask" in name):
            made[name] = torch.cat([one, other], dim=1)  # tiles of a row follow each other
            continue
        if name == "pixel_values" and one.dim() == 5:  # padded to as many tiles
            most = max(one.shape[1], other.shape[1])
            one, other = (F.pad(x, (0, 0) * 3 + (0, most - x.shape[1])) for x in (one, other))
        made[name] = torch.cat([one, other])
    return made


def test_beams_share_the_pruned_pictures(family):
    model, method = model_of(family), pruner()
    prompts = [([picture(1), picture()], "Read it."), ([picture(2)], QUESTION)]
    with method(model, tokenizer()) as trace:
        together = model.generate(**encode(family, *prompts), max_new_tokens=3, num_beams=2, do_sample=False)
        assert [image.row for image in trace.images] == [0, 0, 1, 1, 2, 3]
        for row, one in enumerate(prompts):
            alone = model.generate(**encode(family, one), max_new_tokens=3, num_beams=2, do_sample=False)
            assert together[row, -3:].tolist() == alone[0, -3:].tolist()


# Every method


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_keeps_its_budget_of_every_picture(family, name):
    inputs = encode(family, ([picture(), picture(2)], QUESTION), ([picture(1)], "Read it."), ([], "Hello"))
    _, trace = prune(model_of(family), inputs, pruner(name))
    for image in trace.images:
        assert len(image.kept) == sum(image.budgets) == max(1, round(0.3 * image.num_tokens))
        counts = torch.bincount(torch.repeat_interleave(torch.tensor(image.sizes))[image.kept], minlength=len(image.sizes))
        assert counts.tolist() == image.budgets and image.kept.tolist() == sorted(set(image.kept.tolist()))


@pytest.mark.parametrize("settings", [{"normalize": "tile"}, {"budgets": "tile"}, {"thumbnail_keep": 0.0}, {"alpha": 0}])
@pytest.mark.parametrize("region", ["thumbnail_attention", "attention_mass", "cls_similarity", "uniform"])
def test_every_setting_keeps_the_budget(family, region, settings):
    inputs = encode(family, ([picture(), picture(2)], QUESTION))
    _, trace = prune(model_of(family), inputs, pruner(region=region, **settings))
    assert [len(image.kept) for image in trace.images] == [max(1, round(0.3 * image.num_tokens)) for image in trace.images]


# From a token to its pixels


@functools.cache
def patchwise(family: Family):
    """The family's model, in whose encoder no patch learns of another: a feature changes where its own pixels do."""
    model = copy.deepcopy(model_of(family))
    for name, parameter in adapter_for(model).vision.named_parameters():
        if any(part in name for part in ("out_proj", "attn.proj", "attention.projection_layer", "o_proj")):
            torch.nn.init.zeros_(parameter)
    return model


def with_disc(shown: Image.Image, box) -> Image.Image:
    """The picture with a disc inside a box given as fractions."""
    drawn = shown.copy()
    left, top, right, bottom = (edge * length for edge, length in zip(box, (*shown.size, *shown.size), strict=True))
    x, y, r = (left + right) / 2, (top + bottom) / 2, 0.3 * min(right - left, bottom - top)
    ImageDraw.Draw(drawn).ellipse((x - r, y - r, x + r, y + r), fill=(255, 60, 0))
    return drawn


@pytest.mark.parametrize("number", [0, 1])
def test_a_box_is_where_the_pixels_of_its_token_are(family, number):
    """A disc drawn into the box of a token changes that token's feature more than any other's of the tiles."""
    model, size = patchwise(family), tuple(4 * edge for edge in SIZES[number])
    plain = Image.blend(photo(number, size), Image.new("RGB", size, (128, 128, 128)), 0.8)
    inputs = encode(family, ([plain], QUESTION))
    _, trace = prune(model, inputs, pruner())
    (image,) = trace.images

    def features(shown):
        made = encode(family, ([shown], QUESTION))
        with torch.no_grad():
            seen = []
            handle = adapter_for(model).text.model.register_forward_pre_hook(
                lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
            )
            model(**made)
            handle.remove()
        return seen[0][0, image.positions]

    before = features(plain)
    thumbnail = image.sizes[-1] if image.layout.thumbnail else 0
    tiles = image.num_tokens - thumbnail
    chosen = np.random.default_rng(0).choice(tiles, min(tiles, 12), replace=False)
    for token in chosen.tolist():
        change = (features(with_disc(plain, image.boxes[token].tolist())) - before).norm(dim=-1)
        assert int(change[:tiles].argmax()) == token, (token, image.boxes[token], change.topk(4))
        if thumbnail:
            x, y = ((image.boxes[token][i] + image.boxes[token][i + 2]) / 2 for i in (0, 1))
            seen = image.boxes[tiles + int(change[tiles:].argmax())]
            slack = (seen[2:] - seen[:2]) / 2
            assert seen[0] - slack[0] <= x <= seen[2] + slack[0] and seen[1] - slack[1] <= y <= seen[3] + slack[1]


# Videos


def video_inputs(family: Family, frames: int = 3, rows: int = 4, columns: int = 6) -> dict:
    """A prompt with a picture, a video (sizes in patches) and a question, as the family's processor lays it out."""
    first = encode(family, ([picture(2)], QUESTION))
    patch = 14 if family.name == "qwen2.5-vl" else 16
    per_frame = "<|video_pad|>" * (rows * columns // 4)
    shown = (
        f"<|vision_start|>{per_frame * frames}<|vision_end|>"
        if family.name == "qwen2.5-vl"
        else "".join(f"<{n}.0 seconds><|vision_start|>{per_frame}<|vision_end|>" for n in range(frames))
    )
    ids = tokenizer()(f"<|im_start|>user\n{shown}\nAnd here?<|im_end|>\n", return_tensors="pt").input_ids
    pixels = torch.randn(frames * rows * columns, 3 * 2 * patch * patch, generator=torch.Generator().manual_seed(0))
    kinds = 2 * (ids == tokenizer().convert_tokens_to_ids("<|video_pad|>")).long()
    return {
        "input_ids": torch.cat([first["input_ids"], ids], dim=1),
        "attention_mask": torch.ones(1, first["input_ids"].shape[1] + ids.shape[1], dtype=torch.long),
        "mm_token_type_ids": torch.cat([first["mm_token_type_ids"], kinds.to(first["mm_token_type_ids"].dtype)], dim=1),
        "pixel_values": first["pixel_values"],
        "image_grid_thw": first["image_grid_thw"],
        "pixel_values_videos": pixels,
        "video_grid_thw": torch.tensor([[frames, rows, columns]]),
    }


@pytest.mark.parametrize("name", ["pyramid", "fastv", "hired", "random"])
@pytest.mark.parametrize("video_family", ["qwen2.5-vl", "qwen3-vl"])
def test_a_video_is_a_picture_whose_regions_are_frames(monkeypatch, video_family, name):
    family = FAMILIES[video_family]
    model, inputs, method = model_of(family), video_inputs(family), pruner(name)
    selections = watch(monkeypatch, method)
    output, trace = prune(model, inputs, method)
    still, video = trace.images
    assert video.sizes == (6, 6, 6) and video.layout.video and len(video.kept) == round(0.3 * 18) and not still.layout.video
    assert "18 -> 5 visual tokens, 3 frames" in str(trace)
    gone = drops(inputs, trace, selections)
    with torch.no_grad(), blinded(model, inputs["attention_mask"].bool(), (gone, None)):
        expected = model(**inputs).logits
    torch.testing.assert_close(output.logits, expected[~gone[max(gone)]][None], atol=1e-4, rtol=0)
    with method(model, tokenizer()) as trace:
        tokens = model.generate(**inputs, max_new_tokens=2, num_beams=2, do_sample=False)
        assert tokens.shape[1] == inputs["input_ids"].shape[1] + 2 and len(trace.images) == 4


def test_videos_are_refused_where_they_cannot_be_pruned():
    family = FAMILIES["llava-onevision"]
    model, inputs = model_of(family), encode(family, ([picture()], QUESTION))
    with pruner()(model, tokenizer()), pytest.raises(ptp.UnsupportedModelError, match="Videos cannot be pruned"):
        model(**inputs, pixel_values_videos=torch.randn(1, 2, 3, 60, 60))


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_crops_of_pan_and_scan_are_pruned_one_by_one(monkeypatch, layer):
    """Gemma 3: longer than its windows, so that what they count matters."""
    family, method = FAMILIES["gemma3"], pruner(prune_layer=layer)
    model, processor = model_of(family), processor_of(family)
    text = f"<|im_start|>user\n{family.image}\n{QUESTION}<|im_end|>\n"
    crops = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 56}
    inputs = dict(processor(text=[text], images=[[picture()]], **crops, return_tensors="pt"))
    selections = watch(monkeypatch, method)
    output, trace = prune(model, inputs, method)
    assert len(trace.images) == len(inputs["pixel_values"]) > 2 and all(len(image.kept) == 5 for image in trace.images)
    assert inputs["input_ids"].shape[1] > 3 * model.config.text_config.sliding_window
    gone = drops(inputs, trace, selections)
    with torch.no_grad(), blinded(model, inputs["attention_mask"].bool(), (gone, None)):
        expected = model(**inputs).logits
    torch.testing.assert_close(output.logits, expected[~gone[layer]][None], atol=1e-4, rtol=0)


def test_ptp_run_takes_any_family(family):
    """Two answers and two times, from a picture and a question through the processor's chat template."""
    processor = copy.copy(processor_of(family))
    processor.chat_template = CHAT_TEMPLATE.replace("<IMG_CONTEXT>", family.image)
    found = compare(model_of(family), processor, [picture()], QUESTION, pruner(), max_new_tokens=2, rounds=1)
    assert len(found.trace.images) == 1 and found.trace.visual_tokens[1] == round(0.3 * found.trace.visual_tokens[0])
    drawn = overlay_uris(picture(), found.trace.images[0])
    assert {"Kept tokens", "Tile budgets", "Fused"} <= {panel["title"] for panel in drawn}
    assert all((panel["thumbnail"] is None) or found.trace.images[0].layout.thumbnail for panel in drawn)


# What people do to their models


def test_a_model_in_pieces_prunes_the_same(family):
    """Weights held elsewhere and brought in module by module, as device_map does when a model does not fit."""
    if family.name == "idefics3":
        pytest.skip("transformers' Idefics3 itself compares with a weight that is not there, pruned or not")
    whole, inputs = model_of(family), encode(family, ([picture()], QUESTION))
    expected, trace = prune(whole, inputs, pruner(prune_layer=2))
    pieces = accelerate.cpu_offload(copy.deepcopy(whole), execution_device=torch.device("cpu"))
    output, other = prune(pieces, inputs, pruner(prune_layer=2))
    assert other.images[0].kept.tolist() == trace.images[0].kept.tolist()
    torch.testing.assert_close(output.logits, expected.logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layer", [0, 2])
def test_quantised_weights_are_pruned_exactly(monkeypatch, family, layer):
    """Eight-bit linear layers in the language model: dropping is still masking."""
    model, inputs = copy.deepcopy(model_of(family)), encode(family, ([picture()], QUESTION))
    torchao.quantization.quantize_(adapter_for(model).text.model, torchao.quantization.Int8WeightOnlyConfig())
    method = pruner(prune_layer=layer)
    selections = watch(monkeypatch, method)
    output, trace = prune(model, inputs, method)
    gone = drops(inputs, trace, selections)
    with torch.no_grad(), blinded(model, inputs["attention_mask"].bool(), (gone, None)):
        expected = model(**inputs).logits
    torch.testing.assert_close(output.logits, expected[~gone[layer]][None], atol=1e-4, rtol=0)


@pytest.fixture
def compiler():
    """A fresh compiler; it says nothing and starts afresh for whoever comes next."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_compiled_model_is_pruned_and_decodes_the_same(family, when, compiler):
    """Language model and encoder compiled before the pruner is attached, and used; or after."""
    model, inputs = copy.deepcopy(model_of(family)), encode(family, ([picture()], QUESTION))
    method, adapter = pruner(prune_layer=2), adapter_for(model)
    with method(model, tokenizer()) as trace:
        expected = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    kept = trace.images[0].kept.tolist()
    if when == "before":
        adapter.text.model.compile(backend="eager")
        adapter.vision.compile(backend="eager")
        model.generate(**inputs, max_new_tokens=3, do_sample=False)
    with method(model, tokenizer()) as trace:
        if when == "after":
            adapter.text.model.compile(backend="eager")
            adapter.vision.compile(backend="eager")
        assert model.generate(**inputs, max_new_tokens=4, do_sample=False).tolist() == expected.tolist()
        assert trace.images[0].kept.tolist() == kept


def test_a_model_compiled_as_a_whole_is_refused(compiler):
    family = FAMILIES["internvl"]
    model, inputs = copy.deepcopy(model_of(family)), encode(family, ([picture()], QUESTION))
    with pytest.raises(ptp.UnsupportedModelError, match="compiled as a whole"):
        ptp.attach(torch.compile(model, backend="eager"), pruner(), tokenizer())
    with torch.no_grad(), pruner()(model, tokenizer()):
        model.compile(backend="eager")
        with pytest.raises(ptp.UnsupportedModelError, match="compiled as a whole"):
            model(**inputs)
    with pytest.raises(ptp.UnsupportedModelError, match="compiled as a whole"):
        ptp.attach(model, pruner(), tokenizer())
