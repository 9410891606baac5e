"""Token saliency by the rule: the encoder's own attention maps, brought onto visual tokens as the model brings patches.

Which patches make a token is found from the model itself: what the token's embedding changes with. So the reference needs no
word from the adapter, nor a branch per family.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import Adapter
from .encoder import Attended, embedded, first, layers_of, listening, recording, with_states

SPOKEN_FOR, SPEAKERS = 128, 64
"""Of more patches than the first, the second so many speak for all (see `scoring.received_attention`)."""


def recorded(model: Any, adapter: Adapter, inputs: Mapping[str, Tensor]) -> list[Attended]:
    """The encoder's attention calls while the pictures of `inputs` are encoded."""
    with torch.no_grad(), recording(adapter.vision) as calls:
        embedded(model, adapter, inputs)
    return list(calls)


def patch_weights(
    model: Any, adapter: Adapter, inputs: Mapping[str, Tensor], places: Sequence[int], behind: Sequence[nn.Module] = ()
) -> tuple[Tensor, Tensor]:
    """How visual tokens are made of what feeds the projector.

    Every patch is given the same state, and each token's embedding is differentiated. Where a token's patches come in by one
    and the same map (means, interpolation), their shares are the ratio of the gradients; where each has a map of its own (pixel
    shuffle, concatenation), the token is the mean of them.

    Args:
        inputs: Of one row. places: In the row, of the tokens.
        behind: Where patches become one amid the encoder: an attention before, whose rows are meant in place of those that feed
            the projector, and those after it, which are silenced, so that no patch learns of another.

    Returns:
        (len(places), L) weights of the encoder's rows, all its sequences one after another, that sum to 1 (to 0 where a token
        is made of none); and (L,) bool, whether a row is of any use.
    """
    leaves: list[Tensor] = []

    def level(module: Any, args: Any, output: Any) -> Any:
        states = first(output).detach()
        state = torch.randn(states.shape[-1], generator=torch.Generator().manual_seed(0)) * states.float().std().cpu()
        leaves.append(state.to(states).expand_as(states).clone().requires_grad_())
        return with_states(output, leaves[-1])

    with torch.enable_grad(), contextlib.ExitStack() as stack:
        stack.enter_context(listening(behind[0] if behind else adapter.vision_embeddings(), level))
        for module in behind[1:]:
            stack.enter_context(listening(module, lambda m, args, output: with_states(output, 0 * first(output))))
        embeds = embedded(model, adapter, inputs)[0].float()
    (leaf,) = leaves
    probe = torch.randn(embeds.shape[-1], generator=torch.Generator().manual_seed(1)).to(embeds)

    def gradient(value: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(value, leaf, retain_graph=True, allow_unused=True)
        return (torch.zeros_like(leaf) if found is None else found).detach().flatten(0, -2)

    weights = [_shares(gradient(embeds[place] @ probe)) for place in places]
    used = gradient((embeds @ probe * torch.linspace(1, 2, len(embeds)).to(embeds)).sum()).norm(dim=-1) > 0
    return torch.stack(weights), used


def _shares(gradients: Tensor) -> Tensor:
    """(L,) share of each row in a token, from the token's gradients (L, D)."""
    sizes = gradients.norm(dim=-1)
    made_of = sizes > 1e-5 * sizes.max()
    if not bool(made_of.any()):
        return torch.zeros_like(sizes)
    main = gradients[sizes.argmax()]
    alike = (gradients[made_of] @ main) / (sizes[made_of] * main.norm())
    shares = sizes if bool((alike > 0.9999).all()) else torch.ones_like(sizes)
    return shares * made_of / (shares * made_of).sum()


def row_scores(calls: Sequence[Attended], cls: bool) -> Tensor:
    """(L,) score of each row of one layer's sequences: what [CLS], the first row of each, pays it; or what it receives.

    Rows that no other sees are padding: they neither speak nor receive.
    """
    parts = []
    for sequence in (one for call in calls for one in call.sequences()):
        real = sequence.seen()
        speakers, length = real, len(real)
        if cls:
            speakers = real[:1]
        elif length > SPOKEN_FOR:
            chance = torch.rand(SPEAKERS, generator=torch.Generator().manual_seed(0)).tolist()
            speakers = real[[int((i + chance[i]) * length / SPEAKERS) for i in range(SPEAKERS)]]
        parts.append(sequence.maps(speakers).mean(dim=1).flatten())
    return torch.cat(parts)


def token_saliency(
    model: Any, adapter: Adapter, inputs: Mapping[str, Tensor], places: Sequence[int], layers: Sequence[int]
) -> list[Tensor]:
    """(len(places),) saliency of the tokens at `places` of a row, by each of the vision layers; NaN where no patch makes one.

    Raises:
        RuntimeError: the encoder's attention does not go through transformers' interface, or what `vision_embeddings` puts out
            is not one row for each of its.
    """
    calls = recorded(model, adapter, inputs)
    modules = layers_of(calls)
    if not modules:
        raise RuntimeError("the encoder's attention does not go through transformers' AttentionInterface")
    weights, used = patch_weights(model, adapter, inputs, places)
    found = []
    for layer in layers:
        own = [call for call in calls if call.module is modules[layer]]
        lengths = [call.query.shape[2] for call in own for _ in range(call.query.shape[0])]
        mine, useful = weights, used
        if sum(lengths) > len(used):
            mine, useful = patch_weights(model, adapter, inputs, places, modules[layer:])
        if sum(lengths) != len(useful):
            raise RuntimeError(f"vision_embeddings puts out {len(used)} rows, and the encoder attends over {sum(lengths)}")
        starts = torch.tensor([0, *lengths[:-1]]).cumsum(0)
        scores = row_scores(own, cls=not bool(useful[starts].any()))
        made = mine.sum(dim=1) > 0
        found.append((mine @ scores).masked_fill(~made, torch.nan).cpu())
    return found
