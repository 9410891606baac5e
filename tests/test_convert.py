"""A converted InternVL2 gives the logits that its authors' architecture gives, written here from its description."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import picture, prompt
from safetensors.torch import save_file
from sentencepiece import SentencePieceTrainer
from torch import Tensor
from transformers.models.internvl.processing_internvl import InternVLProcessor

import ptp
from ptp.cli import main
from ptp.convert import convert
from ptp.tiny import WEIGHTS

HIDDEN, HEADS, GROUPS, WIDTH, MLP, LAYERS = 48, 4, 2, 12, 96, 2
VISION, VISION_HEADS, SIDE, PATCH = 32, 2, 112, 14
KINDS = {
    "InternLM2ForCausalLM": "internlm2-chat",
    "Qwen2ForCausalLM": "Hermes-2",
    "LlamaForCausalLM": "Hermes-2",
    "Phi3ForCausalLM": "phi3-chat",
}
ADDED = ("<|im_start|>", "<|im_end|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<img>", "</img>", "<IMG_CONTEXT>")


@pytest.fixture(scope="session")
def sentencepiece(tmp_path_factory):
    """A small sentencepiece model with byte fallback, as InternLM2 has."""
    path = tmp_path_factory.mktemp("sentencepiece") / "tokenizer"
    text = ["What is on the red circle? Read the blue square.", "What colour is sign seven? two spaces and a new line"] * 50
    SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_prefix=str(path), vocab_size=360, model_type="bpe", byte_fallback=True,
        add_dummy_prefix=False, remove_extra_whitespaces=False, normalization_rule_name="identity", minloglevel=2,
    )  # fmt: skip
    return path.with_suffix(".model")


def write_tokenizer(directory, kind: str, sentencepiece) -> int:
    """The tokenizer's files as the authors publish them; returns the size of the vocabulary."""
    if kind == "Qwen2ForCausalLM":
        made = json.loads((WEIGHTS / "tokenizer.json").read_text())["model"]
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in made["merges"]]
        (directory / "vocab.json").write_text(json.dumps(made["vocab"]))
        (directory / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
        first, names = len(made["vocab"]), ("<|endoftext|>", *ADDED)
        special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    else:
        (directory / "tokenizer.model").write_bytes(sentencepiece.read_bytes())
        first, names = 360, ADDED
        special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    added = {str(first + i): {"content": name, "special": True, "normalized": False} for i, name in enumerate(names)}
    settings = {
        "tokenizer_class": "Remote",
        "auto_map": {"AutoTokenizer": "never.run"},
        "added_tokens_decoder": added,
        **special,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return first + len(names)


def text_weights(kind: str, draw) -> dict[str, Tensor]:
    weights = {}
    for n in range(LAYERS):
        old, new = f"model.layers.{n}.attention", f"model.layers.{n}.self_attn"
        if kind == "InternLM2ForCausalLM":
            weights |= {
                f"{old}.wqkv.weight": draw((HEADS + 2 * GROUPS) * WIDTH, HIDDEN),
                f"{old}.wo.weight": draw(HIDDEN, HIDDEN),
            }
            for name, shape in {"w1": (MLP, HIDDEN), "w2": (HIDDEN, MLP), "w3": (MLP, HIDDEN)}.items():
                weights[f"model.layers.{n}.feed_forward.{name}.weight"] = draw(*shape)
            norms = ("attention_norm", "ffn_norm")
        else:
            norms = ("input_layernorm", "post_attention_layernorm")
            weights[f"{new}.o_proj.weight"] = draw(HIDDEN, HIDDEN)
            weights[f"model.layers.{n}.mlp.down_proj.weight"] = draw(HIDDEN, MLP)
            if kind == "Phi3ForCausalLM":
                weights[f"{new}.qkv_proj.weight"] = draw((HEADS + 2 * GROUPS) * WIDTH, HIDDEN)
                weights[f"model.layers.{n}.mlp.gate_up_proj.weight"] = draw(2 * MLP, HIDDEN)
            else:
                for part, heads in {"q": HEADS, "k": GROUPS, "v": GROUPS}.items():
                    weights[f"{new}.{part}_proj.weight"] = draw(heads * WIDTH, HIDDEN)
                    if kind == "Qwen2ForCausalLM":
                        weights[f"{new}.{part}_proj.bias"] = draw(heads * WIDTH)
                weights |= {f"model.layers.{n}.mlp.{part}_proj.weight": draw(MLP, HIDDEN) for part in ("gate", "up")}
        weights |= {f"model.layers.{n}.{norm}.weight": 1 + draw(HIDDEN) for norm in norms}
    return {f"language_model.{name}": tensor for name, tensor in weights.items()}


def write_checkpoint(
    directory, kind: str, sentencepiece, files: str = "safetensors", qk_norm: bool = False
) -> dict[str, Tensor]:
    """A random checkpoint in the authors' layout; returns its weights."""
    vocab = write_tokenizer(directory, kind, sentencepiece)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.1)

    patches, head = (SIDE // PATCH) ** 2, "output" if kind == "InternLM2ForCausalLM" else "lm_head"
    embed = "tok_embeddings" if kind == "InternLM2ForCausalLM" else "embed_tokens"
    weights = {
        "vision_model.embeddings.class_embedding": draw(1, 1, VISION),
        "vision_model.embeddings.position_embedding": draw(1, 1 + patches, VISION),
        "vision_model.embeddings.patch_embedding.weight": draw(VISION, 3, PATCH, PATCH) / PATCH,
        "vision_model.embeddings.patch_embedding.bias": draw(VISION),
        "mlp1.0.weight": 1 + draw(4 * VISION), "mlp1.0.bias": draw(4 * VISION),
        "mlp1.1.weight": draw(HIDDEN, 4 * VISION), "mlp1.1.bias": draw(HIDDEN),
        "mlp1.3.weight": draw(HIDDEN, HIDDEN), "mlp1.3.bias": draw(HIDDEN),
        f"language_model.model.{embed}.weight": draw(vocab, HIDDEN) * HIDDEN**0.5,
        "language_model.model.norm.weight": 1 + draw(HIDDEN),
        f"language_model.{head}.weight": draw(vocab, HIDDEN),
        **text_weights(kind, draw),
    }  # fmt: skip
    for n in range(2):
        shapes = {
            "attn.qkv.weight": (3 * VISION, VISION), "attn.qkv.bias": (3 * VISION,), "attn.proj.weight": (VISION, VISION),
            "attn.proj.bias": (VISION,), "mlp.fc1.weight": (64, VISION), "mlp.fc1.bias": (64,), "mlp.fc2.weight": (VISION, 64),
            "mlp.fc2.bias": (VISION,), "norm1.bias": (VISION,), "norm2.bias": (VISION,),
        }  # fmt: skip
        scales = ["norm1.weight", "norm2.weight", "ls1", "ls2"] + ["attn.q_norm.weight", "attn.k_norm.weight"] * qk_norm
        weights |= {f"vision_model.encoder.layers.{n}.{name}": draw(*shape) for name, shape in shapes.items()}
        weights |= {f"vision_model.encoder.layers.{n}.{name}": 1 + draw(VISION) for name in scales}
    config = {
        "model_type": "internvl_chat", "architectures": ["InternVLChatModel"], "auto_map": {"AutoModel": "never.run"},
        "template": KINDS[kind], "downsample_ratio": 0.5, "ps_version": "v2", "select_layer": -1, "force_image_size": SIDE,
        "dynamic_image_size": True, "min_dynamic_patch": 1, "max_dynamic_patch": 6, "use_thumbnail": True,
        "vision_config": {
            "hidden_size": VISION, "num_hidden_layers": 2, "num_attention_heads": VISION_HEADS, "intermediate_size": 64,
            "image_size": SIDE, "patch_size": PATCH, "qkv_bias": True, "qk_normalization": qk_norm, "layer_norm_eps": 1e-6,
            "hidden_act": "gelu", "norm_type": "layer_norm",
        },
        "llm_config": {
            "architectures": [kind], "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
            "num_key_value_heads": GROUPS, "intermediate_size": MLP, "vocab_size": vocab, "max_position_embeddings": 1024,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "bias": False, "tie_word_embeddings": False,
            "eos_token_id": 2, "pad_token_id": 2, "sliding_window": 2048,
        } | ({"rope_scaling": {"type": "dynamic", "factor": 2.0}} if kind == "InternLM2ForCausalLM" else {}),
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "modeling_internvl_chat.py").write_text("raise SystemExit('code of the checkpoint was run')")
    names = sorted(weights)
    halves = [{name: weights[name].clone() for name in names[i::2]} for i in range(2)]
    for number, half in enumerate(halves):
        if files == "safetensors":
            save_file(half, directory / f"model-0000{number}-of-00002.safetensors")
        else:
            torch.save(half, directory / f"pytorch_model-0000{number}-of-00002.bin")
    return weights


# The architecture, from its description


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * (x.square().mean(dim=-1, keepdim=True) + eps).rsqrt() * weight


def see(w: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """InternViT, pixel shuffle and the projector: (T, 16, hidden)."""
    p = "vision_model.embeddings."
    x = F.conv2d(pixels, w[p + "patch_embedding.weight"], w[p + "patch_embedding.bias"], stride=PATCH).flatten(2).mT
    x = torch.cat([w[p + "class_embedding"].expand(len(x), -1, -1), x], dim=1) + w[p + "position_embedding"]
    for n in range(2):
        p = f"vision_model.encoder.layers.{n}."
        y = F.layer_norm(x, (VISION,), w[p + "norm1.weight"], w[p + "norm1.bias"], 1e-6)
        q, k, v = F.linear(y, w[p + "attn.qkv.weight"], w[p + "attn.qkv.bias"]).chunk(3, dim=-1)
        if p + "attn.q_norm.weight" in w:
            q, k = rms(q, w[p + "attn.q_norm.weight"], 1e-6), rms(k, w[p + "attn.k_norm.weight"], 1e-6)
        q, k, v = (part.unflatten(-1, (VISION_HEADS, -1)).transpose(1, 2) for part in (q, k, v))
        y = ((q @ k.mT / math.sqrt(q.shape[-1])).softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
        x = x + w[p + "ls1"] * F.linear(y, w[p + "attn.proj.weight"], w[p + "attn.proj.bias"])
        y = F.layer_norm(x, (VISION,), w[p + "norm2.weight"], w[p + "norm2.bias"], 1e-6)
        y = F.linear(
            F.gelu(F.linear(y, w[p + "mlp.fc1.weight"], w[p + "mlp.fc1.bias"])), w[p + "mlp.fc2.weight"], w[p + "mlp.fc2.bias"]
        )
        x = x + w[p + "ls2"] * y
    side = SIDE // PATCH
    blocks = x[:, 1:].reshape(len(x), side // 2, 2, side // 2, 2, VISION)  # tile, row, dy, column, dx
    x = blocks.permute(0, 1, 3, 2, 4, 5).reshape(len(x), -1, 4 * VISION)
    x = F.layer_norm(x, (4 * VISION,), w["mlp1.0.weight"], w["mlp1.0.bias"])
    return F.linear(F.gelu(F.linear(x, w["mlp1.1.weight"], w["mlp1.1.bias"])), w["mlp1.3.weight"], w["mlp1.3.bias"])


def attend(w: dict[str, Tensor], kind: str, n: int, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (S, heads, width), keys and values (S, key heads, width) of a layer."""
    p = f"language_model.model.layers.{n}."
    if kind == "InternLM2ForCausalLM":  # for each key head: its queries, the key, the value
        fused = F.linear(y, w[p + "attention.wqkv.weight"]).view(len(y), GROUPS, HEADS // GROUPS + 2, WIDTH)
        return fused[:, :, :-2].flatten(1, 2), fused[:, :, -2], fused[:, :, -1]
    if kind == "Phi3ForCausalLM":
        parts = F.linear(y, w[p + "self_attn.qkv_proj.weight"]).split([HEADS * WIDTH, GROUPS * WIDTH, GROUPS * WIDTH], dim=-1)
    else:
        parts = [F.linear(y, w[f"{p}self_attn.{x}_proj.weight"], w.get(f"{p}self_attn.{x}_proj.bias")) for x in "qkv"]
    q, k, v = (part.unflatten(-1, (-1, WIDTH)) for part in parts)
    return q, k, v


def read(w: dict[str, Tensor], kind: str, ids: Tensor, pixels: Tensor, image: int) -> Tensor:
    """(S, vocab) logits."""
    fused, phi = kind == "InternLM2ForCausalLM", kind == "Phi3ForCausalLM"
    x = w[f"language_model.model.{'tok_embeddings' if fused else 'embed_tokens'}.weight"][ids].clone()
    x[ids == image] = see(w, pixels).flatten(0, 1)
    angle = torch.outer(torch.arange(len(ids)).float(), 10000.0 ** -(torch.arange(0, WIDTH, 2).float() / WIDTH))
    cos, sin = (torch.cat([f, f], dim=-1)[:, None] for f in (angle.cos(), angle.sin()))
    causal = torch.full((len(ids), len(ids)), -torch.inf).triu(1)
    for n in range(LAYERS):
        p = f"language_model.model.layers.{n}."
        y = rms(x, w[p + ("attention_norm" if fused else "input_layernorm") + ".weight"], 1e-5)
        q, k, v = attend(w, kind, n, y)
        q, k = (t * cos + torch.cat([-t[..., WIDTH // 2 :], t[..., : WIDTH // 2]], dim=-1) * sin for t in (q, k))
        k, v = (t.repeat_interleave(HEADS // GROUPS, dim=1) for t in (k, v))
        weights = (torch.einsum("ihd,jhd->hij", q, k) / math.sqrt(WIDTH) + causal).softmax(dim=-1)
        y = torch.einsum("hij,jhd->ihd", weights, v).flatten(1)
        x = x + F.linear(y, w[p + ("attention.wo" if fused else "self_attn.o_proj") + ".weight"])
        y = rms(x, w[p + ("ffn_norm" if fused else "post_attention_layernorm") + ".weight"], 1e-5)
        if phi:
            gate, up = F.linear(y, w[p + "mlp.gate_up_proj.weight"]).chunk(2, dim=-1)
        else:
            names = ("feed_forward.w1", "feed_forward.w3") if fused else ("mlp.gate_proj", "mlp.up_proj")
            gate, up = (F.linear(y, w[f"{p}{name}.weight"]) for name in names)
        x = x + F.linear(F.silu(gate) * up, w[p + ("feed_forward.w2" if fused else "mlp.down_proj") + ".weight"])
    x = rms(x, w["language_model.model.norm.weight"], 1e-5)
    return F.linear(x, w[f"language_model.{'output' if fused else 'lm_head'}.weight"])


@pytest.mark.parametrize("files", ["safetensors", "bin"])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_converted_checkpoint_gives_the_logits_of_the_architecture(tmp_path, sentencepiece, kind, files, qk_norm):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    weights = write_checkpoint(source, kind, sentencepiece, files, qk_norm)
    convert(source, target)
    model, processor = ptp.load(target)
    image = picture(1, (2, 1))
    message = [
        {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "What is on the red circle?"}]}
    ]
    inputs = processor.apply_chat_template(
        message, add_generation_prompt=True, tokenize=True, return_dict=True, processor_kwargs={"return_tensors": "pt"}
    )
    ids = inputs["input_ids"][0]
    assert (ids == processor.image_token_id).sum() == 48, "two tiles and the thumbnail"
    with torch.no_grad():
        expected = read(weights, kind, ids, inputs["pixel_values"], processor.image_token_id)
        torch.testing.assert_close(model(**inputs).logits[0], expected, atol=1e-4, rtol=0)
        with ptp.PyramidPruner(keep_ratio=0.25)(model) as trace:
            model.generate(**inputs, max_new_tokens=2)
        assert trace.visual_tokens == (48, 12) and trace.images[0].grid == (2, 1)


def test_the_prompt_is_the_one_the_model_was_trained_with(tmp_path, sentencepiece):
    write_checkpoint(tmp_path, "InternLM2ForCausalLM", sentencepiece)
    convert(tmp_path, tmp_path / "target")
    _, processor = ptp.load(tmp_path / "target")
    text = processor.apply_chat_template(prompt(picture(1, (1, 1)), question="Hi?"), add_generation_prompt=True)
    assert text.startswith("<s><|im_start|>system\n你是") and "<|im_end|><|im_start|>user\n<IMG_CONTEXT>\nHi?<|im_end|>" in text
    assert text.endswith("<|im_end|><|im_start|>assistant\n") and isinstance(processor, InternVLProcessor)
    settings = json.loads((tmp_path / "target" / "generation_config.json").read_text())
    assert processor.tokenizer.convert_tokens_to_ids("<|im_end|>") in settings["eos_token_id"]


def edit(change):
    def apply(directory):
        config = json.loads((directory / "config.json").read_text())
        change(config)
        (directory / "config.json").write_text(json.dumps(config))

    return apply


def drop_a_weight(directory):
    file = next(directory.glob("*.safetensors"))
    file.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (edit(lambda c: c.update(model_type="llava")), "got model_type 'llava'"),
        (edit(lambda c: c.pop("llm_config")), "must have llm_config, and has not"),
        (edit(lambda c: c.update(template="vicuna")), "template must be one of internlm2-chat"),
        (edit(lambda c: c.update(ps_version="v1")), "ps_version must be 'v2', got 'v1'"),
        (edit(lambda c: c["llm_config"].update(architectures=["GemmaForCausalLM"])), "got 'GemmaForCausalLM'"),
        (edit(lambda c: c["llm_config"].update(num_hidden_layers=1)), "Weights are not known: .*layers.1"),
        (edit(lambda c: c["llm_config"].update(num_hidden_layers=3)), "Weights are missing: .*layers.2"),
        (
            edit(lambda c: c["llm_config"].update(intermediate_size=80)),
            "of another shape: .* is \\(96, 48\\), not \\(80, 48\\)",
        ),
        (drop_a_weight, "Weights are missing"),
        (lambda d: (d / "tokenizer.model").unlink(), "must hold tokenizer.model"),
        (lambda d: (d / "config.json").write_text("{"), "is not JSON"),
    ],
)
def test_what_is_not_known_is_refused_and_nothing_written(tmp_path, sentencepiece, spoil, message):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    write_checkpoint(source, "InternLM2ForCausalLM", sentencepiece)
    spoil(source)
    with pytest.raises(ValueError, match=message):
        convert(source, target)
    assert not target.exists()


def test_pickles_are_not_run(tmp_path, sentencepiece):
    source = tmp_path / "source"
    source.mkdir()
    write_checkpoint(source, "LlamaForCausalLM", sentencepiece)
    for file in source.glob("*.safetensors"):
        file.unlink()
    torch.save({"weight": drop_a_weight}, source / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be read as plain weights"):
        convert(source, tmp_path / "target")


def test_the_command_says_where_and_refuses_to_overwrite(tmp_path, sentencepiece, monkeypatch, capsys):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    write_checkpoint(source, "Qwen2ForCausalLM", sentencepiece)
    monkeypatch.setattr("sys.argv", ["ptp", "convert", str(source), str(target)])
    for code, words in ((0, "Load it with ptp.load("), (2, "must be new or empty")):
        with pytest.raises(SystemExit) as stopped:
            main()
        assert (stopped.value.code or 0) == code
        captured = capsys.readouterr()
        assert words in " ".join((captured.out + captured.err).split())
