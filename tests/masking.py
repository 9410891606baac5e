"""What pruning must equal: the whole sequence, in which the dropped tokens are hidden and nothing is removed."""

import contextlib
import functools

import torch
from families import prune

from ptp.adapters import adapter_for


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


def extended(inputs, tokens):
    """The inputs with `tokens` (B, n) behind the prompt."""
    more = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    more |= dict.fromkeys(("mm_token_type_ids", "token_type_ids"), torch.zeros_like(tokens))
    return {name: torch.cat([value, more[name]], dim=1) if name in more else value for name, value in inputs.items()}


def assert_dropping_equals_masking(monkeypatch, model, inputs, method):
    """Logits of the kept tokens are those of the whole sequence that cannot see the dropped ones. Returns the trace."""
    with monkeypatch.context() as patch:
        selections = watch(patch, method)
        output, trace = prune(model, inputs, method)
    gone = drops(inputs, trace, selections)
    last = gone[max(gone)]
    assert 0 < last.sum() == trace.visual_tokens[0] - trace.visual_tokens[1]
    with torch.no_grad(), blinded(model, inputs["attention_mask"].bool(), (gone, None)):
        expected = model(**inputs).logits
    torch.testing.assert_close(output.logits, expected[~last][None], atol=1e-4, rtol=0)
    return trace
