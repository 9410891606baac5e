"""Qwen3.5's language model token by token, from what is published of it: the gated delta rule is arXiv 2412.06464, equation 10.

In float64, on plain tensors; only weights are taken from the model.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def rms(states: Tensor, weight: Tensor, eps: float) -> Tensor:
    return states * (states.square().mean(dim=-1, keepdim=True) + eps).rsqrt() * weight


def turns(config, places: Tensor) -> tuple[Tensor, Tensor]:
    """(cos, sin), each (S, pairs), at places (3, S): pairs take time, height, width in turn; those left over take time."""
    rope = config.rope_parameters
    pairs = int(config.head_dim * rope["partial_rotary_factor"]) // 2
    angles = []
    for pair in range(pairs):
        axis = pair % 3 if pair < 3 * rope["mrope_section"][pair % 3] else 0
        angles.append(places[axis].double() / rope["rope_theta"] ** (pair / pairs))
    stacked = torch.stack(angles, dim=-1)
    return stacked.cos(), stacked.sin()


def rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(S, H, D) whose first 2 * pairs numbers turn: number i with number i + pairs."""
    pairs = cos.shape[-1]
    a, b, rest = heads[..., :pairs], heads[..., pairs : 2 * pairs], heads[..., 2 * pairs :]
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


def attended(w, config, x: Tensor, cos: Tensor, sin: Tensor, seen: Tensor) -> Tensor:
    """Full attention of (S, D) with a gate for each number that comes out; `seen` (S, S) bool."""
    length, groups = len(x), config.num_attention_heads // config.num_key_value_heads
    both = (x @ w["q_proj.weight"].T).view(length, config.num_attention_heads, 2, config.head_dim)
    q, gate = rms(both[:, :, 0], 1 + w["q_norm.weight"], config.rms_norm_eps), both[:, :, 1]
    k = (x @ w["k_proj.weight"].T).view(length, -1, config.head_dim)
    k = rotated(rms(k, 1 + w["k_norm.weight"], config.rms_norm_eps), cos, sin)
    v, q = (x @ w["v_proj.weight"].T).view(length, -1, config.head_dim), rotated(q, cos, sin)
    heads = []
    for head in range(config.num_attention_heads):
        scores = q[:, head] @ k[:, head // groups].T / config.head_dim**0.5
        heads.append(scores.masked_fill(~seen, -torch.inf).softmax(dim=-1) @ v[:, head // groups])
    return (torch.stack(heads, dim=1) * gate.sigmoid()).flatten(1) @ w["o_proj.weight"].T


def recurred(w, config, x: Tensor) -> Tensor:
    """The gated delta rule over (S, D), behind a causal convolution over `linear_conv_kernel_dim` tokens."""
    keys, values = config.linear_num_key_heads, config.linear_num_value_heads
    width, deep = config.linear_key_head_dim, config.linear_value_head_dim
    before, taps = x @ w["in_proj_qkv.weight"].T, w["conv1d.weight"][:, 0]
    mixed = torch.zeros_like(before)
    for token in range(len(x)):
        for back in range(min(taps.shape[1], token + 1)):
            mixed[token] += taps[:, -1 - back] * before[token - back]
    q, k, v = F.silu(mixed).split([keys * width, keys * width, values * deep], dim=-1)
    unit = lambda heads: heads / (heads.square().sum(dim=-1, keepdim=True) + 1e-6).sqrt()  # noqa: E731
    q, k = (unit(part.view(len(x), keys, width)).repeat_interleave(values // keys, dim=1) for part in (q, k))
    v = v.view(len(x), values, deep)
    strength = (x @ w["in_proj_b.weight"].T).sigmoid()
    fade = (-w["A_log"].exp() * F.softplus(x @ w["in_proj_a.weight"].T + w["dt_bias"])).exp()
    state, read = x.new_zeros(values, width, deep), []
    for token in range(len(x)):
        state = state * fade[token, :, None, None]
        known = torch.einsum("hwd,hw->hd", state, k[token])
        state = state + torch.einsum("hw,hd->hwd", k[token], (v[token] - known) * strength[token, :, None])
        read.append(torch.einsum("hwd,hw->hd", state, q[token]) / width**0.5)
    z = (x @ w["in_proj_z.weight"].T).view(len(x), values, deep)
    out = rms(torch.stack(read), w["norm.weight"], config.rms_norm_eps) * F.silu(z)
    return out.flatten(1) @ w["out_proj.weight"].T


def logits(model, states: Tensor, places: Tensor, dropped: Tensor, layer: int, prompt: int | None = None) -> Tensor:
    """(S', vocabulary) of one row whose layers from `layer` on are given what is not dropped, and nothing else.

    Args:
        states: (S, D) inputs of layer 0. places: (3, S). dropped: (S,) bool.
        prompt: Tokens from here on do not see the dropped ones in lower layers that attend, either: their caches are compacted.
    """
    text, config = model.model.language_model, model.config.text_config
    weights = {name: value.double() for name, value in text.state_dict().items()}
    states, places, length = states.double(), places, len(states)
    seen = torch.ones(length, length).tril().bool()
    seen[prompt or length :] &= ~dropped | torch.eye(length)[prompt or length :].bool()
    for number, kind in enumerate(config.layer_types):
        if number == layer:
            states, places, seen = states[~dropped], places[:, ~dropped], seen[~dropped][:, ~dropped]
        own = {name.removeprefix(f"layers.{number}."): value for name, value in weights.items() if f"layers.{number}." in name}
        part = "linear_attn." if kind == "linear_attention" else "self_attn."
        mixer = {name.removeprefix(part): value for name, value in own.items() if name.startswith(part)}
        x = rms(states, 1 + own["input_layernorm.weight"], config.rms_norm_eps)
        mixed = recurred(mixer, config, x) if mixer.get("A_log") is not None else None
        states = states + (attended(mixer, config, x, *turns(config, places), seen) if mixed is None else mixed)
        x = rms(states, 1 + own["post_attention_layernorm.weight"], config.rms_norm_eps)
        gated = F.silu(x @ own["mlp.gate_proj.weight"].T) * (x @ own["mlp.up_proj.weight"].T)
        states = states + gated @ own["mlp.down_proj.weight"].T
    return rms(states, 1 + weights["norm.weight"], config.rms_norm_eps) @ model.lm_head.weight.double().T
