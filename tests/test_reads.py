"""A method is given exactly what it says it reads: each probe and vision read equals a loop over what the model has."""

import dataclasses
import itertools

import pytest
import torch
from conftest import embeddings, encode, picture, prompt, small_model, tokenizer
from families import FAMILIES, model_of
from families import encode as encode_family
from families import picture as photo
from families import tokenizer as family_tokenizer

from ptp import Reads, Selection, Stage, TextProbe, VisionRead
from ptp.pruner import Pruner
from ptp.selection import total_budget

GRID, LAYER = (3, 2), 2


class Reader(Pruner):
    """Keeps the first tokens, and remembers what it was given."""

    def stages(self, layers):
        return (Stage(LAYER, self.keep_ratio),)

    def select(self, picture, stage):
        kept = torch.arange(total_budget(stage.keep_ratio, picture.tokens))
        self.seen.append(self.look(picture))
        return Selection(kept, picture.count_per_tile(kept))


def given(model, inputs, reads, look, words=tokenizer):
    """What `look` finds on the pictures of a prompt, where a method reads `reads`; `words` makes the model's tokenizer."""
    seen = []
    method = type("Looks", (Reader,), {"reads": lambda self, depth: reads, "look": lambda self, p: look(p), "seen": seen})()
    with torch.no_grad(), method(model, words()):
        model(**inputs)
    return seen


def by_hand(model, inputs, layer: int, rotary: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(H, S, S) causal attention of a layer, and (H / g, S, D) its values, from its weights."""
    language = model.model.language_model
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states[layer]
        block = language.layers[layer]
        normed = block.input_layernorm(states)
        q, k, v = (
            getattr(block.self_attn, f"{part}_proj")(normed)[0].unflatten(-1, (-1, 12)).transpose(0, 1) for part in "qkv"
        )
        if rotary:
            cos, sin = language.rotary_emb(states, torch.arange(states.shape[1])[None])
            half = lambda x: torch.cat([-x[..., 6:], x[..., :6]], dim=-1)  # noqa: E731
            q, k = q * cos + half(q) * sin, k * cos + half(k) * sin
        logits = q @ k.repeat_interleave(2, dim=0).mT * 12**-0.5
        length = states.shape[1]
        logits = logits.masked_fill(~torch.ones(length, length).tril().bool(), -torch.inf)
        return logits.softmax(dim=-1), v


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "probe",
    [
        TextProbe(*options)
        for options in itertools.product(
            ("instruction", "last", "behind", "all"), ("below", "here"), (True, False), ("max", "mean"), (True, False)
        )
    ],
    ids=lambda probe: f"{probe.rows}-{probe.layer}-{'rotary' if probe.rotary else 'plain'}-{probe.reduce}-{probe.values}",
)
def test_a_text_probe_equals_a_loop(probe, attention):
    talk = [{"role": "system", "content": "Be brief."}, *prompt(picture(5, GRID))]
    model, inputs = small_model(attention=attention), encode(talk)
    ids = inputs["input_ids"][0].tolist()
    image = [n for n, number in enumerate(ids) if number == model.config.image_token_id]
    question = tokenizer().encode("What is on the red circle?", add_special_tokens=False)
    start = next(n for n in range(len(ids)) if ids[n : n + len(question)] == question)
    rows = {
        "instruction": range(start, start + len(question)),
        "last": [len(ids) - 1],
        "behind": range(image[-1] + 1, len(ids)),
        "all": [n for n in range(len(ids)) if n not in image],
    }[probe.rows]
    layer = LAYER if probe.layer == "here" else LAYER - 1
    maps, values = by_hand(small_model(), inputs, layer, probe.rotary)
    if probe.rotary:
        eager = small_model(attention="eager")
        with torch.no_grad():
            torch.testing.assert_close(maps, eager(**inputs, output_attentions=True).attentions[layer][0], atol=1e-5, rtol=0)
    expected = []
    for j in image:
        paid = []
        for i in rows:
            heads = [
                float(maps[h, i, j]) * (float(values[h // 2, j].norm()) if probe.values else 1.0) for h in range(len(maps))
            ]
            paid.append(sum(heads) / len(heads))
        expected.append(max(paid) if probe.reduce == "max" else sum(paid) / len(paid))
    (found,) = given(model, inputs, Reads(probe=probe), lambda p: p.text_attention)
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=1e-4)


def test_a_method_may_choose_among_the_rows():
    inputs = encode(prompt(picture(5, GRID)))
    whole = torch.tensor([True] * 40)

    def look(p):
        rows = len(p.text_states)
        first = whole[:rows].clone()
        first[1:] = False
        return (
            p.attention_from(first),
            torch.stack([p.attention_from(torch.arange(rows) == n) for n in range(rows)]),
            p.text_attention,
        )

    ((first, each, strongest),) = given(small_model(), inputs, Reads(probe=TextProbe()), look)
    assert torch.equal(first, each[0]) and not torch.equal(first, strongest)
    torch.testing.assert_close(each.amax(dim=0), strongest)


@pytest.mark.parametrize("layer", [0, -1, -2])
def test_received_attention_of_an_encoder_with_cls(layer):
    model, inputs = small_model(attention="eager"), encode(prompt(picture(5, GRID)))
    with torch.no_grad():
        maps = model.model.vision_tower(inputs["pixel_values"], output_attentions=True).attentions[layer]
    patches = maps[:, :, 1:, 1:]  # a patch's attention to the patches, [CLS] left out
    patches = (patches / patches.sum(dim=-1, keepdim=True)).mean(dim=(1, 2))
    blocks = patches.view(7, 4, 2, 4, 2).mean(dim=(2, 4)).flatten()
    reads = Reads(vision=(VisionRead(layer, "received"), VisionRead(layer, "cls"), VisionRead(layer)))
    ((received, cls, either),) = given(small_model(), inputs, reads, lambda p: [signal.saliency for signal in p.vision])
    torch.testing.assert_close(received, blocks, atol=1e-6, rtol=1e-4)
    cls_blocks = maps[:, :, 0, 1:].mean(dim=1).view(7, 4, 2, 4, 2).mean(dim=(2, 4)).flatten()
    torch.testing.assert_close(cls, cls_blocks, atol=1e-6, rtol=1e-4)
    assert torch.equal(cls, either)


def test_keys_of_the_encoder():
    model, inputs = small_model(), encode(prompt(picture(5, GRID)))
    block, caught = model.model.vision_tower.encoder.layer[1], []
    handle = block.register_forward_pre_hook(lambda module, args: caught.append(args[0]))
    with torch.no_grad():
        model.model.vision_tower(inputs["pixel_values"])
        keys = block.attention.k_norm(block.attention.k_proj(block.layernorm_before(caught[0])))[:, 1:]
    handle.remove()
    heads = keys.unflatten(-1, (2, 16)).mean(dim=2)  # (7, 64, 16)
    blocks = heads.view(7, 4, 2, 4, 2, 16).mean(dim=(2, 4)).flatten(0, 2)
    reads = Reads(vision=(VisionRead(1, attention=None, keys=True),))
    ((found,),) = given(model, inputs, reads, lambda p: [signal.keys for signal in p.vision])
    torch.testing.assert_close(found, blocks, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_hands_out_keys_for_its_tokens(name):
    family = FAMILIES[name]
    model, inputs = model_of(family), encode_family(family, ([photo()], "What is it?"))
    reads = Reads(vision=(VisionRead(-1, keys=True),))
    ((keys, saliency),) = given(model, inputs, reads, lambda p: (p.vision[0].keys, p.saliency), family_tokenizer)
    assert keys.shape == (len(saliency), keys.shape[1]) and keys.isfinite().all()
    assert len(keys.unique(dim=0)) > 0.8 * len(keys), "tokens differ"


def test_what_the_language_model_was_given_is_read_at_a_later_layer():
    model, inputs = small_model(), encode(prompt(picture(5, GRID)))
    with torch.no_grad():
        states = embeddings(model, inputs)[0]
    image = inputs["input_ids"][0] == model.config.image_token_id
    reads = Reads(probe=TextProbe("all"), inputs=True)
    ((visual, text),) = given(model, inputs, reads, lambda p: (p.inputs, p.text_inputs))
    torch.testing.assert_close(visual, states[image])
    torch.testing.assert_close(text, states[~image])


@pytest.mark.parametrize(("name", "layer"), [("internvl", -1), ("qwen2.5-vl", -2)])
def test_another_layer_is_read_where_there_is_no_cls(name, layer):
    family = FAMILIES[name]
    model, inputs = model_of(family), encode_family(family, ([photo()], "What is it?"))
    reads = Reads(vision=(VisionRead(-1, layer_without_cls=-2), VisionRead(layer)))
    ((found, expected),) = given(model, inputs, reads, lambda p: [signal.saliency for signal in p.vision])
    assert torch.equal(found, expected)


def test_what_was_not_asked_for_is_refused():
    model, inputs = small_model(), encode(prompt(picture(5, GRID)))
    with pytest.raises(ValueError, match=r"No saliency was asked for. Return Reads\(vision"):
        given(model, inputs, Reads(), lambda p: p.saliency)
    for look in (lambda p: p.text_attention, lambda p: p.text_states):
        with pytest.raises(ValueError, match=r"No text was asked for. Return Reads\(probe"):
            given(model, inputs, Reads(), look)
    with pytest.raises(ValueError, match=r"No inputs were asked for. Return Reads\(inputs=True\)"):
        given(model, inputs, Reads(), lambda p: p.inputs)
    seen = []
    given(model, inputs, Reads(), seen.append)
    with torch.no_grad():
        states = embeddings(model, inputs)
    assert seen[0].states.shape == (112, states.shape[-1]) and seen[0].keys.shape == (112, 24)
    with pytest.raises(ValueError, match="inside `select` only"):
        dataclasses.replace(seen[0], readings=None).states  # noqa: B018


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize("layer", ["below", "here"])
def test_keys_are_those_that_the_probe_compares(layer, rotary, attention):
    model, inputs = small_model(attention=attention), encode(prompt(picture(5, GRID)))
    number = LAYER if layer == "here" else LAYER - 1
    ids = inputs["input_ids"][0].tolist()
    image = [n for n, token in enumerate(ids) if token == model.config.image_token_id]
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True, use_cache=True)
        block = model.model.language_model.layers[number]
        keys = block.self_attn.k_proj(block.input_layernorm(output.hidden_states[number]))[0]
        normed = model.model.language_model.norm(output.hidden_states[LAYER])[0]
    if rotary:
        keys = output.past_key_values.layers[number].keys[0].transpose(0, 1).flatten(1)
    reads = Reads(probe=TextProbe("behind", layer, rotary))
    ((found, text, last),) = given(model, inputs, reads, lambda p: (p.keys, p.text_keys, p.normed(p.states)))
    torch.testing.assert_close(found, keys[image], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(text, keys[image[-1] + 1 :], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(last, normed[image], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_padding_moves_no_key(name):
    """Whether positions count padding or not: a row has the keys that it has alone."""
    family = FAMILIES[name]
    model, rows = model_of(family), [([photo()], "What is it?"), ([photo()], "What is it, and where on the picture is it?")]
    reads = Reads(probe=TextProbe("behind"))
    batch = encode_family(family, *rows)
    if name == "mistral3":  # its queries grow with their positions, and so would its states with the padding
        batch["position_ids"] = (batch["attention_mask"].cumsum(dim=1) - 1).clamp_min(0)
    together = given(model, batch, reads, lambda p: (p.keys, p.text_keys), family_tokenizer)
    for row, both in zip(rows, together, strict=True):
        (alone,) = given(model, encode_family(family, row), reads, lambda p: (p.keys, p.text_keys), family_tokenizer)
        for a, b in zip(alone, both, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("layer", [0, -1])
def test_attention_before_softmax(layer):
    model, inputs = small_model(), encode(prompt(picture(5, GRID)))
    block, caught = model.model.vision_tower.encoder.layer[layer], []
    handle = block.register_forward_pre_hook(lambda module, args: caught.append(args[0]))
    with torch.no_grad():
        model.model.vision_tower(inputs["pixel_values"])
        normed, attention = block.layernorm_before(caught[0]), block.attention
        query, key = attention.q_norm(attention.q_proj(normed)), attention.k_norm(attention.k_proj(normed))
    handle.remove()
    logits = torch.zeros(7, 64)
    for t, p, h in itertools.product(range(7), range(64), range(2)):
        part = slice(16 * h, 16 * h + 16)
        logits[t, p] += float(query[t, 0, part] @ key[t, 1 + p, part]) / 4 / 2
    blocks = logits.view(7, 4, 2, 4, 2).mean(dim=(2, 4)).flatten()
    (found,) = given(model, inputs, Reads(vision=(VisionRead(layer, "logits"),)), lambda p: p.vision[0])
    torch.testing.assert_close(found.saliency, blocks, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.thumbnail, logits[-1], atol=1e-5, rtol=1e-4)


def test_without_cls_patches_ask_before_softmax():
    family = FAMILIES["gemma3"]
    model, inputs, seen = model_of(family), encode_family(family, ([photo()], "What is it?")), {}
    attention = model.model.vision_tower.encoder.layers[-1].self_attn
    hooks = [
        getattr(attention, f"{part}_proj").register_forward_hook(lambda m, a, output, part=part: seen.update({part: output}))
        for part in "qk"
    ]
    (found,) = given(model, inputs, Reads(vision=(VisionRead(-1, "logits"),)), lambda p: p.saliency)
    for hook in hooks:
        hook.remove()
    heads = attention.num_heads
    q, k = (seen[part][0].unflatten(-1, (heads, -1)) for part in "qk")
    paid = torch.einsum("ihd,jhd->j", q, k) * q.shape[-1] ** -0.5 / heads / len(q)
    assert found.mean() == pytest.approx(float(paid.mean()), rel=1e-3), "pooling averages"
