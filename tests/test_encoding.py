"""The encoder runs on nothing twice and on nothing that is not read, and what comes out is the same."""

import copy
import dataclasses
import inspect
import threading
from concurrent.futures import ThreadPoolExecutor

import accelerate
import numpy as np
import pytest
import torch
from conftest import footprint
from families import FAMILIES, encode, model_of, photo, pruner, tokenizer
from PIL import Image

import ptp
from ptp.adapters import adapter_for
from ptp.runtime.encoding import same_rows
from ptp.runtime.reuse import EncoderCache, state_of
from ptp.testing.encoder import recording

TILED = ("internvl", "llava-next", "llava-onevision", "smolvlm", "idefics3", "gemma3", "ovis2", "llava-1.5")
OFF = {"merge_tiles": False, "skip_layers": False}
QUESTIONS = ("What is on the red circle?", "Which colour has the sign K?")
SIZE = (336, 224)


def page() -> Image.Image:
    """A picture of which the upper half shows something, and the lower nothing."""
    drawn = Image.new("RGB", SIZE, (255, 255, 255))
    drawn.paste(photo(7, (SIZE[0], SIZE[1] // 2)), (0, 0))
    return drawn


PAGE = page()


def prefill(model, inputs, method, **savings):
    """Logits, the trace, and what attention inside the encoder worked on, call by call."""
    with torch.no_grad(), recording(adapter_for(model).vision) as seen, method(model, tokenizer(), **savings) as trace:
        logits = model(**inputs).logits
    return logits, trace.newest, seen


def tiles_of(inputs) -> torch.Tensor:
    """(T, ...) pixels of all tiles, without what fills up a batch."""
    pixels = inputs["pixel_values"]
    pixels = pixels.flatten(0, 1) if pixels.dim() == 5 else pixels
    return pixels[pixels.flatten(1).abs().amax(dim=1) > 0]


def same(found, expected) -> None:
    """Logits to 1e-5 (relative to the largest), and the same tokens."""
    torch.testing.assert_close(found[0], expected[0], atol=1e-5 * float(expected[0].abs().max()), rtol=1e-5)
    for mine, theirs in zip(found[1].images, expected[1].images, strict=True):
        assert torch.equal(mine.kept, theirs.kept)


def test_every_family_says_whether_its_tiles_are_independent(family):
    assert adapter_for(model_of(family)).independent_tiles == (family.name in TILED)


@pytest.mark.parametrize("name", ["pyramid", "pyramid at 2", "visionzip"])
def test_equal_tiles_are_encoded_once(family, name):
    prompts = [([PAGE], QUESTIONS[0]), ([photo(3, SIZE), PAGE], QUESTIONS[1]), ([PAGE], QUESTIONS[1])]
    model, inputs = model_of(family), encode(family, *prompts)
    expected = prefill(model, inputs, pruner(name), **OFF)
    found = prefill(model, inputs, pruner(name))
    same(found, expected)
    if family.name in TILED:
        tiles = tiles_of(inputs)
        different = len(tiles.flatten(1).unique(dim=0))
        assert different < len(tiles), "the page comes again"
        assert {len(call.query) for call in expected[2]} == {len(tiles)}
        assert {len(call.query) for call in found[2]} == {different}
        assert found[1].encoder == dataclasses.replace(expected[1].encoder, encoded=different)
        assert f"{different} of {len(tiles)} tiles or pictures encoded, {len(tiles) - different} with" in str(found[1])
    else:
        assert [call.query.shape for call in found[2]] == [call.query.shape for call in expected[2]], "left alone"
        assert torch.equal(found[0], expected[0])


def test_blank_stretches_of_a_page_are_encoded_once():
    family = FAMILIES["internvl"]
    inputs = encode(family, ([PAGE], QUESTIONS[0]))
    _, trace, seen = prefill(model_of(family), inputs, pruner())
    columns, rows = trace.images[0].grid
    blank = columns * rows // 2
    assert blank > 1 and {len(call.query) for call in seen} == {columns * rows + 1 - (blank - 1)}


@pytest.mark.parametrize("name", [name for name in ("internvl", "qwen3-vl", "gemma4") if name in FAMILIES])
def test_pictures_without_equal_tiles_are_encoded_as_ever_bit_for_bit(name):
    family = FAMILIES[name]
    model, inputs = model_of(family), encode(family, ([photo(3, SIZE)], QUESTIONS[0]))
    found, expected = (prefill(model, inputs, pruner(), **savings) for savings in ({}, OFF))
    assert torch.equal(found[0], expected[0])


def test_a_batch_of_pictures_is_one_call_of_the_encoder(family):
    inputs = encode(family, *(([photo(n, SIZE)], QUESTIONS[0]) for n in range(3)))
    _, _, seen = prefill(model_of(family), inputs, pruner())
    with torch.no_grad():
        usual = model_of(family).model.get_image_features
        with recording(adapter_for(model_of(family)).vision) as expected:
            usual(**{name: inputs[name] for name in inspect.signature(usual).parameters if name in inputs}, return_dict=True)
    assert [call.module for call in seen] == [call.module for call in expected][: len(seen)], "one pass, as the model's own"
    assert [call.query.shape for call in seen] == [call.query.shape for call in expected][: len(seen)]
    if family.name in TILED:
        assert len({id(call.module) for call in seen}) == len(seen), "each layer once"


def test_layers_that_nobody_reads_do_not_run(family):
    model, inputs = model_of(family), encode(family, ([photo(3, SIZE)], QUESTIONS[0]))
    expected, found = (prefill(model, inputs, pruner(), **savings) for savings in (OFF, {}))
    assert torch.equal(found[0], expected[0])
    every, ran = (len({id(call.module) for call in each[2]}) for each in (expected, found))
    config = model.config
    chosen = (
        getattr(config, "vision_feature_layer", -1) if family.name in ("llava-next", "llava-1.5", "llava-onevision") else -1
    )
    assert ran == every + 1 + chosen  # -1 is the last
    assert (ran < every) == (family.name in ("llava-next", "llava-1.5"))


@pytest.mark.parametrize("name", ["llava-next", "llava-1.5"])
def test_layers_run_for_those_who_ask(name):
    family = FAMILIES[name]
    model, inputs = model_of(family), encode(family, ([photo(3, SIZE)], QUESTIONS[0]))
    given = {key: value for key, value in inputs.items() if key in ("pixel_values", "image_sizes")}
    given = given if name == "llava-next" else {"pixel_values": inputs["pixel_values"]}
    with torch.no_grad():
        states = model.model.get_image_features(**given, output_hidden_states=True, return_dict=True).hidden_states
        usual = model.model.get_image_features(**given, return_dict=True)
        with pruner()(model, tokenizer(), reuse=2**30) as trace:
            for _ in range(2):
                more = model.model.get_image_features(**given, output_hidden_states=True, return_dict=True)
                for mine, theirs in zip(more.hidden_states, states, strict=True):
                    torch.testing.assert_close(mine, theirs)
            fewer = model.model.get_image_features(**given, return_dict=True)
    assert fewer.last_hidden_state is None, "not made, and not made up"
    for mine, theirs in zip(fewer.pooler_output, usual.pooler_output, strict=True):
        assert torch.equal(mine, theirs)
    assert not trace.images


def test_another_feature_layer_is_run_up_to():
    """LLaVA-NeXT is asked for its last layer, which the pruner would not need."""
    family = FAMILIES["llava-next"]
    model, inputs = model_of(family), encode(family, ([photo(3, SIZE)], QUESTIONS[0]))
    given = {"pixel_values": inputs["pixel_values"], "image_sizes": inputs["image_sizes"], "vision_feature_layer": -1}
    with torch.no_grad():
        expected = model.model.get_image_features(**given, return_dict=True).pooler_output
        with pruner()(model, tokenizer()):
            found = model.model.get_image_features(**given, return_dict=True).pooler_output
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


# -- what was encoded before -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pyramid", "pyramid at 2", "visionzip", "fastv"])
def test_the_next_question_about_a_picture_encodes_nothing(family, name):
    model, inputs = model_of(family), [encode(family, ([PAGE], question)) for question in QUESTIONS]
    expected = [prefill(model, one, pruner(name)) for one in inputs]
    with torch.no_grad(), pruner(name)(model, tokenizer(), reuse=2**30) as trace:
        for n, (question, others) in enumerate(zip(inputs, expected, strict=True)):
            with recording(adapter_for(model).vision) as seen:
                first = model(**question).logits  # recording is another attention: encoded once more
            with recording(adapter_for(model).vision) as again:
                second = model(**question).logits
            assert bool(seen) == (n == 0) and not again
            for logits in (first, second):
                same((logits, trace.newest), others)
            encoder = trace.encoder
            assert (encoder.encoded, encoder.misses, encoder.hits) == (0, 0, encoder.units)
            assert encoder.cache_bytes > 0
    assert "from the cache of" in str(trace)


@pytest.mark.parametrize("name", [n for n in ("internvl", "llava-next", "qwen3-vl", "gemma4", "mistral3") if n in FAMILIES])
def test_generate_takes_pictures_from_the_cache(name):
    family = FAMILIES[name]
    model, inputs = model_of(family), encode(family, ([PAGE], QUESTIONS[0]))
    call = {"max_new_tokens": 4, "do_sample": False}
    with pruner()(model, tokenizer()):
        expected = model.generate(**inputs, **call), model.generate(**inputs, **call, num_beams=2)
    with pruner()(model, tokenizer(), reuse=2**30) as trace:
        for _ in range(2):
            found = model.generate(**inputs, **call), model.generate(**inputs, **call, num_beams=2)
            assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert trace.encoder.hits == trace.encoder.units


@pytest.mark.parametrize("name", TILED)
def test_a_tile_is_the_same_alone_in_a_batch_and_from_the_cache(name):
    family = FAMILIES[name]
    model = model_of(family)
    one, other = encode(family, ([PAGE], QUESTIONS[0])), encode(family, ([photo(3, SIZE), PAGE], QUESTIONS[1]))
    alone, both = (prefill(model, inputs, pruner()) for inputs in (one, other))
    cache = EncoderCache(2**30)
    same(prefill(model, one, pruner(), reuse=cache), alone)
    found = prefill(model, other, pruner(), reuse=cache)  # a later turn with one more picture
    same(found, both)
    page_tiles, tiles = (tiles_of(inputs).flatten(1) for inputs in (one, other))
    new = [tile for tile in tiles.unique(dim=0) if not bool((page_tiles == tile).all(dim=1).any())]
    assert {len(call.query) for call in found[2]} == {len(new)} and found[1].encoder.misses == len(new)


def test_methods_share_a_cache_and_read_more_where_they_have_to():
    family = FAMILIES["internvl"]
    model, inputs = model_of(family), encode(family, ([PAGE], QUESTIONS[0]))
    cache = EncoderCache(2**30)
    names = ["fastv", "pyramid", "visionzip", "pyramid", "visionzip", "fastv"]
    encoded = []
    for name in names:
        found = prefill(model, inputs, pruner(name), reuse=cache)
        same(found, prefill(model, inputs, pruner(name)))
        encoded.append(found[1].encoder.encoded > 0)
    assert encoded == [True, True, True, False, False, False]


def changed(model, how: str) -> None:
    weight = adapter_for(model).vision.encoder.layer[0].attention.q_proj.weight
    if how == "in place":
        with torch.no_grad():
            weight.mul_(1.5)
    elif how == "one value past autograd":
        weight.data[0, 0] += 3.0
    elif how == "replaced":
        layer = adapter_for(model).vision.encoder.layer[0].attention.q_proj
        layer.weight = torch.nn.Parameter(2 * weight.detach())
    elif how == "loaded":
        state = model.state_dict()
        model.load_state_dict({name: 1.1 * value if "q_proj" in name else value for name, value in state.items()})
    elif how == "cast there and back":
        model.to(torch.bfloat16).to(torch.float32)
    elif how == "attention":
        model.set_attn_implementation("eager")
    elif how == "a setting":
        adapter_for(model).vision.encoder.layer[0].attention.scale = 1.0


@pytest.mark.parametrize(
    "how", ["in place", "one value past autograd", "replaced", "loaded", "cast there and back", "attention", "a setting"]
)
def test_changed_weights_get_nothing_of_the_old_ones(how):
    family = FAMILIES["internvl"]
    model, inputs = copy.deepcopy(model_of(family)), encode(family, ([PAGE], QUESTIONS[0]))
    cache = EncoderCache(2**30)
    with torch.no_grad(), pruner()(model, tokenizer(), reuse=cache) as trace:
        before = model(**inputs).logits
        changed(model, how)
        after = model(**inputs).logits
        assert trace.encoder.hits == 0 and trace.encoder.misses > 0
    with torch.no_grad(), pruner()(model, tokenizer()):
        expected = model(**inputs).logits
    assert torch.equal(after, expected) and (how == "attention" or not torch.equal(after, before))


def test_lora_adapters_are_told_apart():
    peft = pytest.importorskip("peft")
    family = FAMILIES["internvl"]
    model, inputs = copy.deepcopy(model_of(family)), encode(family, ([PAGE], QUESTIONS[0]))
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=r".*vision_tower.*q_proj", init_lora_weights=False))
    wrapped.eval()
    with torch.no_grad(), pruner()(wrapped, tokenizer(), reuse=2**30) as trace:
        on = wrapped(**inputs).logits
        with wrapped.disable_adapter():
            off = wrapped(**inputs).logits
        assert not torch.equal(on, off)
        assert torch.equal(wrapped(**inputs).logits, on) and trace.encoder.hits == trace.encoder.units


def test_other_pixels_dtypes_shapes_and_grids_are_told_apart():
    """The same bytes in another shape, or of another dtype, are another picture."""
    from ptp.runtime.reuse import digest_of

    pixels = torch.arange(64, dtype=torch.float32)
    kinds = [pixels, pixels.view(8, 8), pixels.view(torch.int32), pixels + (torch.arange(64) == 9), -pixels]
    assert len({digest_of(kind) for kind in kinds}) == len(kinds) and digest_of(pixels) == digest_of(pixels.clone())
    family = FAMILIES["qwen3-vl"]
    model, inputs = model_of(family), encode(family, ([photo(3, (224, 448))], QUESTIONS[0]))
    turned = {**inputs, "image_grid_thw": inputs["image_grid_thw"][:, [0, 2, 1]]}
    expected = [prefill(model, each, pruner()) for each in (inputs, turned)]
    with torch.no_grad(), pruner()(model, tokenizer(), reuse=2**30) as trace:
        for each, others in zip((inputs, turned), expected, strict=True):
            assert torch.equal(model(**each).logits, others[0]) or trace.encoder.hits == 0
            same((model(**each).logits, trace.newest), others)


def test_the_cache_is_bounded_and_lets_go_of_the_oldest():
    family = FAMILIES["internvl"]
    model = model_of(family)
    pictures = [encode(family, ([photo(n, (112, 112))], QUESTIONS[0])) for n in range(4)]
    probe = EncoderCache(2**30)
    prefill(model, pictures[0], pruner(), reuse=probe)
    size = probe.held
    states = 65 * 32 * 4  # [CLS] and 64 patches, 32 wide
    shown = 16 * 48 * 4 + 3 * 24 * 24 * 4  # visual tokens, and a few pixels
    assert len(probe) == 2 and states + shown < size < 1.2 * (states + shown), "the tile, the call, and what scoring read"
    cache = EncoderCache(2 * size)
    with torch.no_grad(), pruner()(model, tokenizer(), reuse=cache) as trace:
        hits = []
        for number in (0, 1, 0, 2, 3, 2, 1):
            model(**pictures[number])
            hits.append(trace.encoder.hits)
            assert trace.encoder.cache_bytes == cache.held <= 2 * size
    assert hits == [0, 0, 1, 0, 0, 1, 0]
    small = EncoderCache(states // 2)  # neither fits
    prefill(model, pictures[0], pruner(), reuse=small)
    assert len(small) == small.held == 0
    cache.clear()
    assert len(cache) == cache.held == 0


def test_a_cache_of_the_context_ends_with_it():
    family = FAMILIES["internvl"]
    model, inputs = model_of(family), encode(family, ([PAGE], QUESTIONS[0]))
    handle = ptp.attach(model, pruner(), tokenizer(), reuse=2**30)
    with torch.no_grad():
        model(**inputs)
    cache = handle._engine.setup.savings.cache
    assert len(cache) > 0
    handle.remove()
    assert len(cache) == cache.held == 0


@pytest.mark.parametrize("value", [-1, 1.5, True, "256"])
def test_a_wrong_bound_is_refused(value):
    model = model_of(FAMILIES["internvl"])
    with pytest.raises(ValueError, match=r"reuse must be a number of bytes .* got .*\. Pass 256 \* 2\*\*20"):
        ptp.attach(model, pruner(), tokenizer(), reuse=value)
    ptp.attach(model, pruner(), tokenizer(), reuse=0).remove()
    with pytest.raises(ValueError, match="reuse must be"):
        EncoderCache(0)


def test_nothing_is_left_behind(family):
    model, inputs = model_of(family), encode(family, ([PAGE], QUESTIONS[0]))
    with torch.no_grad():
        expected = model(**inputs).logits
        before = footprint(model)
        for method in (pruner(), dataclasses.replace(pruner(), keep_ratio=1.0)):
            with method(model, tokenizer(), reuse=2**30):
                model(**inputs)
                model(**inputs)
        with pytest.raises(RuntimeError), pruner()(model, tokenizer(), reuse=2**30):
            model(**inputs)
            raise RuntimeError
        assert footprint(model) == before and torch.equal(model(**inputs).logits, expected)


def test_an_encoder_that_fails_leaves_nothing_to_the_next_call():
    family = FAMILIES["internvl"]
    model, inputs = model_of(family), encode(family, ([PAGE], QUESTIONS[0]))
    method = pruner()
    expected = prefill(model, inputs, method)
    broken = {**inputs, "pixel_values": inputs["pixel_values"][:, :2]}
    with torch.no_grad(), method(model, tokenizer(), reuse=2**30) as trace:
        with pytest.raises(ValueError, match="channel"):
            model(**broken)
        same((model(**inputs).logits, trace.newest), expected)


@pytest.mark.parametrize("name", ["internvl", "llava-next", "qwen3-vl"])
def test_threads_share_a_cache(name):
    family = FAMILIES[name]
    model = model_of(family)
    inputs = [encode(family, ([photo(n % 3, SIZE)], QUESTIONS[n % 2])) for n in range(12)]
    start = threading.Barrier(4)
    size = 2**30

    def answer(one, trace) -> tuple:
        ids = model.generate(**one, max_new_tokens=3, do_sample=False)
        return ids[0].tolist(), [image.kept.tolist() for image in trace.of_this_thread.images]

    with pruner()(model, tokenizer()) as trace:
        alone = [answer(one, trace) for one in inputs]

    def work(first: int) -> list:
        start.wait(timeout=60)
        return [answer(inputs[(first + n) % 12], trace) for n in range(12)]

    for bound in (size, 200_000):  # the second holds few of them
        with pruner()(model, tokenizer(), reuse=bound) as trace, ThreadPoolExecutor(4) as pool:
            for first, found in zip((0, 3, 6, 9), pool.map(work, (0, 3, 6, 9)), strict=True):
                assert found == alone[first:] + alone[:first]


# -- when nothing may be saved ---------------------------------------------------------------------------------------------


def test_who_listens_to_the_encoder_sees_all_of_it():
    family = FAMILIES["llava-next"]
    model, inputs = model_of(family), encode(family, ([PAGE], QUESTIONS[0]))
    vision, shapes = adapter_for(model).vision, []
    handle = vision.encoder.layers[-1].register_forward_hook(lambda module, args, output: shapes.append(len(output)))
    try:
        with torch.no_grad(), pruner()(model, tokenizer(), reuse=2**30):
            model(**inputs)
            model(**inputs)
    finally:
        handle.remove()
    assert shapes == [len(tiles_of(inputs))] * 2


def test_an_encoder_that_trains_is_left_alone():
    family = FAMILIES["internvl"]
    model, inputs = model_of(family), encode(family, ([PAGE], QUESTIONS[0]))
    vision = adapter_for(model).vision
    vision.train()
    try:
        _, trace, seen = prefill(model, inputs, pruner(), reuse=2**30)
    finally:
        vision.eval()
    assert trace.encoder.encoded == trace.encoder.units == len(seen[0].query)


def test_gradients_go_through_tiles_that_were_encoded_once():
    family = FAMILIES["internvl"]
    model, inputs = model_of(family), encode(family, ([PAGE], QUESTIONS[0]))
    grads = []
    for savings in (OFF, {"reuse": 2**30}):
        pixels = inputs["pixel_values"].clone().requires_grad_()
        with pruner()(model, tokenizer(), **savings):
            for _ in range(1 if savings is OFF else 2):
                pixels.grad = None
                model(**{**inputs, "pixel_values": pixels}).logits[:, -1].sum().backward()
        grads.append(pixels.grad)
        model.zero_grad(set_to_none=True)
    tiles = inputs["pixel_values"].flatten(1)
    for tile in tiles.unique(dim=0):  # equal tiles hold one gradient together: the first of them has all of it
        alike = (tiles == tile).all(dim=1)
        totals = [grad[alike].sum(dim=0) for grad in grads]
        torch.testing.assert_close(totals[1], totals[0], atol=1e-5, rtol=1e-3)


# -- the parts -------------------------------------------------------------------------------------------------------------


def test_rows_are_the_same_only_bit_for_bit():
    rows = np.random.default_rng(0).standard_normal((6, 3, 64, 64)).astype(np.float32)
    rows[2], rows[5] = rows[0], rows[4]
    rows[3] = rows[0]
    rows[3, 2, 63, 62] += 1e-6  # between the values that are compared first
    assert same_rows([torch.from_numpy(rows)]) == [0, 1, 0, 3, 4, 4]
    masks = torch.zeros(6, 2, 2, dtype=torch.bool)
    masks[5, 0, 0] = True
    assert same_rows([torch.from_numpy(rows), masks]) == [0, 1, 0, 3, 4, 5]
    assert same_rows([torch.tensor([[0.0, 1.0], [-0.0, 1.0], [0.0, 1.0]])]) == [0, 1, 0]


def test_the_state_of_a_module_changes_with_all_that_it_computes_with():
    module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Dropout(0.1), torch.nn.BatchNorm1d(5))
    found = {state_of(module)}
    assert {state_of(module)} == found

    def differs(change) -> None:
        change()
        found.add(state_of(module))

    changes = [
        lambda: module[0].weight.data.__setitem__((4, 2), 0.5),
        lambda: module[2].running_mean.add_(1),
        lambda: setattr(module[1], "p", 0.2),
        lambda: module.train(False),
        lambda: module.to(torch.bfloat16),
        lambda: setattr(module[0], "bias", None),
    ]
    for change in changes:
        differs(change)
    assert len(found) == 1 + len(changes)
    assert state_of(torch.nn.Linear(2, 2, device="meta")) is None, "offloaded weights are not here"


def test_of_weights_that_are_elsewhere_nothing_is_kept():
    """Nobody can tell whether they have changed."""
    family = FAMILIES["internvl"]
    pieces, inputs = copy.deepcopy(model_of(family)), encode(family, ([PAGE], QUESTIONS[0]))
    with torch.no_grad(), pruner()(pieces, tokenizer()):
        expected = pieces(**inputs).logits
    accelerate.cpu_offload(pieces, execution_device=torch.device("cpu"))
    cache = EncoderCache(2**30)
    with torch.no_grad(), pruner()(pieces, tokenizer(), reuse=cache) as trace:
        for _ in range(2):
            torch.testing.assert_close(pieces(**inputs).logits, expected, atol=1e-5, rtol=0)
            assert trace.encoder.hits == trace.encoder.misses == len(cache) == 0
            assert trace.encoder.encoded < trace.encoder.units, "equal tiles are still encoded once"


def test_pictures_of_a_quantised_encoder_are_kept_until_its_weights_change():
    torchao = pytest.importorskip("torchao")
    family = FAMILIES["internvl"]
    model, inputs = copy.deepcopy(model_of(family)), encode(family, ([PAGE], QUESTIONS[0]))
    vision = adapter_for(model).vision
    torchao.quantization.quantize_(vision, torchao.quantization.Int8WeightOnlyConfig())
    with torch.no_grad(), pruner()(model, tokenizer(), reuse=2**30) as trace:
        first = model(**inputs).logits
        assert torch.equal(model(**inputs).logits, first) and trace.encoder.hits == trace.encoder.units
        weight = vision.encoder.layer[0].attention.q_proj.weight
        inner = getattr(weight, weight.__tensor_flatten__()[0][0])
        inner[0, 0] += 40
        assert not torch.equal(model(**inputs).logits, first) and trace.encoder.hits == 0
