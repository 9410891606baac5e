"""Scores: how much a tile or a visual token matters. Pure functions, tensors in, scores out; higher is kept.

Shape letters: B batch, S sequence, T tiles, P patches per tile, n visual tokens per tile, N visual tokens, H heads,
D head width, R instruction tokens.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

ROWS_PER_CHUNK = 128
"""Instruction rows scored at a time, so that a long prompt costs no more memory than a short one."""
RECEIVED_FROM = 64
"""Patches that speak for all of a large tile in `received_attention`."""
TINY = 1e-12
"""Smallest norm divided by."""
NEIGHBOURS = 64
"""Tokens that `novelty` compares with each other, at most."""
NOISE = 0.1
"""Variance added to each token's own in `novelty`: how unlike tokens must be to count as different."""


def cls_attention(queries: Tensor, keys: Tensor, scale: float | None = None) -> Tensor:
    """Score each patch by the attention [CLS] pays it, averaged over heads.

    Args:
        queries, keys: (T, H, 1 + P, D) of one vision layer, [CLS] at index 0.
        scale: Factor on the dot products; None is D ** -0.5.

    Returns:
        (T, P) float32 in [0, 1]. A row sums to at most 1.

    Source: token-level saliency of PTP, arXiv 2509.15704, section III.
    """
    q, k = queries[:, :, :1].float(), keys.float()
    # Tile by tile: heads lie side by side in memory, and a product over both dimensions would first copy all keys.
    logits = torch.stack([query @ key.mT for query, key in zip(q, k, strict=True)])  # (T, H, 1, 1 + P)
    weights = (logits * (scale or q.shape[-1] ** -0.5)).softmax(dim=-1)
    return weights[:, :, 0, 1:].mean(dim=1)


def received_attention(queries: Tensor, keys: Tensor, scale: float | None = None) -> Tensor:
    """Score each patch by the mean attention it receives from the patches of its tile (encoders without [CLS]).

    Args:
        queries, keys: (T, H, P, D) of one vision layer.
        scale: Factor on the dot products; None is D ** -0.5.

    Returns:
        (T, P) float32 in [0, 1]; a row sums to 1.

    Our choice; the paper (arXiv 2509.15704) only treats encoders with [CLS]. Of more than twice `RECEIVED_FROM` patches so many
    speak for all, one from each stretch of the same length, and the cost grows linearly with P. All of them cost as much as
    half of the layer's attention: a fifth of a whole prefill where a picture is encoded in one piece.
    """
    if (places := speakers(queries.shape[2])) is not None:
        queries = queries[:, :, places.to(queries.device)]
    scale = scale or queries.shape[-1] ** -0.5
    # Tile by tile: no copy of the keys (see `cls_attention`), and one tile's weights fit into the processor's cache.
    tiles = zip(queries.float(), keys.float(), strict=True)
    return torch.stack([(q @ k.mT * scale).softmax(dim=-1).mean(dim=(0, 1)) for q, k in tiles])


def speakers(patches: int) -> Tensor | None:
    """(`RECEIVED_FROM`,) the patches that speak for so many in `received_attention`, always the same; None is all of them."""
    if patches <= 2 * RECEIVED_FROM:
        return None
    chance = torch.rand(RECEIVED_FROM, generator=torch.Generator().manual_seed(0))
    return ((torch.arange(RECEIVED_FROM) + chance) * patches / RECEIVED_FROM).long()


def attention_logits(queries: Tensor, keys: Tensor, scale: float | None = None) -> Tensor:
    """Score each patch by the attention it gets before softmax, averaged over heads and queries.

    Args:
        queries: (T, H, Q, D) of one vision layer: of [CLS], or of all patches.
        keys: (T, H, P, D) of the patches.
        scale: Factor on the dot products; None is D ** -0.5.

    Returns:
        (T, P) float32 of either sign. What all keys have in common is in it, unlike after softmax.

    Source: GlobalCom2, arXiv 2501.05179: `attn_scores` of `CustomCLIPAttention` in github xuyang-liu16/GlobalCom2.
    """
    q, scale = queries.float().mean(dim=2, keepdim=True), scale or queries.shape[-1] ** -0.5
    # Tile by tile: no copy of the keys (see `cls_attention`).
    return torch.stack([(one @ key.float().mT).mean(dim=(0, 1)) * scale for one, key in zip(q, keys, strict=True)])


def pool_pixel_shuffle(scores: Tensor, factor: int) -> Tensor:
    """Pool patch scores onto visual tokens: the mean over each `factor` x `factor` block of the pixel shuffle.

    Args:
        scores: (T, P), patches of a square tile in raster order.
        factor: Patches per visual token along one side (InternVL: 2).

    Returns:
        (T, P / factor ** 2), visual tokens in raster order.
    """
    tiles, patches = scores.shape
    side = round(patches**0.5)
    if side * side != patches or side % factor:
        raise ValueError(
            f"scores must cover a square of patches whose side is a multiple of {factor}, got {patches} patches. "
            f"Pass the patches of whole tiles, without [CLS]."
        )
    blocks = scores.view(tiles, side // factor, factor, side // factor, factor)
    return blocks.mean(dim=(2, 4)).flatten(1)


def thumbnail_attention(thumbnail: Tensor, boxes: Tensor, sides: tuple[int, int] = (1, 1)) -> Tensor:
    """Region saliency: the share of the thumbnail's [CLS] attention that falls on the area of each tile.

    Args:
        thumbnail: (P,) attention of the thumbnail's [CLS] to its patches, in raster order.
        boxes: (T, 4) left, top, right, bottom of the tiles, as fractions of the picture. A patch that several tiles share
            is split by area.
        sides: Columns and rows of the thumbnail's patches, or both over a common factor.

    Returns:
        (T,) float32 shares; they sum to 1.

    Our reconstruction of the region level of PTP (arXiv 2509.15704): the default source, see docs/results.
    """
    mass = tile_sums(thumbnail, boxes, sides)
    return mass / mass.sum().clamp_min(torch.finfo(mass.dtype).tiny)


def tile_sums(scores: Tensor, boxes: Tensor, sides: tuple[int, int] = (1, 1)) -> Tensor:
    """(T,) float32 sums of a thumbnail's patch scores over the area of each tile, of either sign. Arguments as
    `thumbnail_attention`'s."""
    factor = round((len(scores) / (sides[0] * sides[1])) ** 0.5)
    columns, rows = factor * sides[0], factor * sides[1]
    raster, boxes = scores.float().view(rows, columns), boxes.to(scores.device)
    down, across = _overlap(boxes[:, [1, 3]], rows), _overlap(boxes[:, [0, 2]], columns)  # (T, rows), (T, columns)
    return ((down @ raster) * across).sum(dim=1)


def _overlap(intervals: Tensor, patches: int) -> Tensor:
    """(T, patches): the share of each patch's side that lies in each of the (T, 2) intervals; patches cover [0, 1]."""
    patch, ends = torch.arange(patches, device=intervals.device, dtype=intervals.dtype)[None], intervals * patches
    common = torch.minimum(ends[:, 1:], patch + 1) - torch.maximum(ends[:, :1], patch)  # in patches: whole ones are exact
    return common.clamp_min(0)


def attention_mass(attention: Tensor, sizes: Sequence[int]) -> Tensor:
    """Region saliency: the strongest [CLS] attention inside each tile.

    Args:
        attention: (N,) token saliency, tile after tile.
        sizes: Tokens of each tile; they sum to N.

    Returns:
        (T,) float32 in [0, 1]; 0 for a tile without tokens.
    """
    if not any(sizes):
        return attention.new_zeros(len(sizes), dtype=torch.float32)
    return split(attention.float(), sizes).amax(dim=-1)


def cls_similarity(tiles: Tensor, thumbnail: Tensor) -> Tensor:
    """Region saliency: cosine between each tile's [CLS] embedding and the thumbnail's.

    Args:
        tiles: (T, D). thumbnail: (D,).

    Returns:
        (T,) float32 in [-1, 1].

    Probably the published form (arXiv 2509.15704); on the embedded model it correlates negatively with where the
    evidence is, so it is not the default.
    """
    return torch.cosine_similarity(tiles.float(), thumbnail.float()[None], dim=-1)


def region_weights(saliency: Tensor, temperature: float | None) -> Tensor:
    """Turn region saliency into weights that sum to 1.

    Args:
        saliency: (T,) of the tiles without the thumbnail.
        temperature: None takes non-negative saliencies as shares; a number takes softmax(saliency / temperature),
            for similarities.

    Returns:
        (T,) float32, all equal where the saliency says nothing.
    """
    if temperature is not None:
        return (saliency.float() / temperature).softmax(dim=0)
    total = saliency.float().sum()
    uniform = torch.full_like(saliency, 1 / len(saliency), dtype=torch.float32)
    return torch.where(total > 0, saliency.float() / total.clamp_min(torch.finfo(torch.float32).tiny), uniform)


def instruction_relevance(
    queries: Tensor,
    keys: Tensor,
    rows: Tensor,
    row_valid: Tensor,
    key_valid: Tensor,
    scale: float,
    reduce: Literal["max", "mean"] = "max",
    reach: Tensor | None = None,
    key_weights: Tensor | None = None,
) -> Tensor:
    """Score each key by the strongest (or mean) attention that the instruction tokens pay it, averaged over heads.

    Args:
        queries: (B, H, R, D) of the instruction tokens, rotary positions applied.
        keys: (B, H / g, S, D) of the whole sequence, rotary positions applied; each serves g query heads.
        rows: (B, R) index of each instruction token in the sequence: it sees keys up to itself.
        row_valid: (B, R) bool; False marks padding of `rows`.
        key_valid: (B, S) bool; False marks padding of the sequence.
        scale: Factor on the dot products.
        reduce: Over the instruction tokens.
        reach: (B, R, S) bool, keys within the layer's window; None where it sees everything before.
        key_weights: (B, H / g, S) factors on the attention that each key gets, head by head; None is 1.

    Returns:
        (B, S) float32, in [0, 1] unless weighted; zero for a batch row without instruction tokens.

    Source: instruction-level relevance of PTP, arXiv 2509.15704: the maximum over instruction tokens.
    """
    batch, groups, length, _ = keys.shape
    best = torch.zeros(batch, length, dtype=torch.float32, device=keys.device)
    k = keys.float()[:, :, None]  # (B, H / g, 1, S, D)
    order = torch.arange(length, device=keys.device)
    for start in range(0, queries.shape[2], ROWS_PER_CHUNK):
        chunk = slice(start, start + ROWS_PER_CHUNK)
        q = queries[:, :, chunk].float().unflatten(1, (groups, -1))  # (B, H / g, g, r, D)
        visible = (order <= rows[:, chunk, None]) & key_valid[:, None]  # (B, r, S)
        visible = visible if reach is None else visible & reach[:, chunk]
        logits = (q @ k.mT * scale).masked_fill(~visible[:, None, None], torch.finfo(torch.float32).min)
        weights = logits.softmax(dim=-1)
        weights = weights if key_weights is None else weights * key_weights.float()[:, :, None, None]
        weights = weights.mean(dim=(1, 2)) * (visible & row_valid[:, chunk, None])
        best = torch.maximum(best, weights.amax(dim=1)) if reduce == "max" else best + weights.sum(dim=1)
    return best if reduce == "max" else best / row_valid.sum(dim=1, keepdim=True).clamp_min(1)


def similarity_relevance(states: Tensor, text: Tensor) -> Tensor:
    """Score each visual token by its cosine similarity to the most similar instruction token.

    Args:
        states: (N, D) of the visual tokens. text: (R, D) of the instruction tokens, at the same layer.

    Returns:
        (N,) float32 in [-1, 1]; zero without instruction tokens.

    Our extension of PTP, after CDPruner (arXiv 2506.10967), which compares with the mean of the instruction instead.
    """
    if not len(text):
        return states.new_zeros(len(states), dtype=torch.float32)
    best = (states.float() @ F.normalize(text.float(), dim=-1).mT).amax(dim=-1)
    return best / states.float().norm(dim=-1).clamp_min(TINY)


def novelty(states: Tensor, scores: Tensor, sizes: Sequence[int]) -> Tensor:
    """How little of a token is known from better tokens near it.

    The share of its direction that no linear combination of theirs explains, with ridge `NOISE`: the diagonal of one
    Cholesky factor of their cosine similarities, best token first, so nothing is chosen token by token.

    Args:
        states: (N, D), tile after tile.
        scores: (N,); of equal scores the earlier token is the better one.
        sizes: Tokens of each tile; they sum to N. "Near" is the same tile, in larger ones the same run of about
            `NEIGHBOURS` tokens (rows of the tile): so the cost is a small share of one layer's, and grows linearly with N.

    Returns:
        (N,) float32 in (0, 1]; the best token of a run has 1.

    Our extension of PTP: the conditional variance by which a determinantal point process (CDPruner, arXiv 2506.10967)
    ranks tokens, given all better tokens rather than those chosen so far.
    """
    runs = [length for size in sizes for length in _runs(size)]
    rows, ranks = split(states.float(), runs), split(scores.to(states.device, torch.float32), runs, fill=-torch.inf)
    order = ranks.argsort(dim=1, descending=True, stable=True)
    alike = rows @ rows.mT
    scale = alike.diagonal(dim1=1, dim2=2).clamp_min(TINY).rsqrt()
    alike = alike * scale[:, :, None] * scale[:, None]  # cosines
    alike = alike.gather(1, order[:, :, None].expand_as(alike)).gather(2, order[:, None].expand_as(alike))
    factor = torch.linalg.cholesky(alike + NOISE * torch.eye(order.shape[1], device=alike.device))
    unexplained = factor.diagonal(dim1=1, dim2=2).square() / (1 + NOISE)
    found = torch.zeros_like(unexplained).scatter_(1, order, unexplained)
    if len(set(runs)) == 1:
        return found.flatten()
    return torch.cat([row[:length] for row, length in zip(found, runs, strict=True)])


def _runs(size: int) -> list[int]:
    """Cut a tile into equal runs of at most `NEIGHBOURS` tokens."""
    count = -(-size // NEIGHBOURS)
    return [size // count + (number < size % count) for number in range(count)]


def split(values: Tensor, sizes: Sequence[int], fill: float = 0.0) -> Tensor:
    """Split (N, ...) into (T, n, ...), parts smaller than the largest filled up; a view where all are alike."""
    if len(set(sizes)) == 1:
        return values.view(len(sizes), sizes[0], *values.shape[1:])
    return pad_sequence(list(values.split(list(sizes))), batch_first=True, padding_value=fill)


def minmax(scores: Tensor) -> Tensor:
    """Rescale scores to [0, 1] over their last dimension; constant scores become 0."""
    low, high = scores.amin(dim=-1, keepdim=True), scores.amax(dim=-1, keepdim=True)
    return (scores - low) / (high - low).clamp_min(torch.finfo(scores.dtype).tiny)


def fuse(token: Tensor, instruction: Tensor, alpha: float) -> Tensor:
    """Fuse bottom-up saliency and top-down relevance: (1 - alpha) * minmax(token) + alpha * minmax(instruction).

    Args:
        token, instruction: (..., n); each is rescaled over its last dimension, so pass (N,) to normalise over the
            picture and (T, n) to normalise over each tile.
        alpha: In [0, 1]; 0 is purely visual, 1 purely instruction-guided.

    Returns:
        (..., n) float32 in [0, 1].

    Source: arXiv 2509.15704, section III, alpha = 0.5.
    """
    return (1 - alpha) * minmax(token.float()) + alpha * minmax(instruction.float())
