"""Token saliency of every family, read off the eager model's own attention maps, patch by patch."""

import math

import torch
import torch.nn.functional as F
from families import Family, model_of

from ptp.adapters import adapter_for


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
