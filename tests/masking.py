"""What pruning must equal, for tests: `ptp.testing.masking` has the reference."""

import torch
from families import prune

from ptp.selection import Selection
from ptp.testing.masking import blinded, drops, extended, merged

__all__ = ["assert_dropping_equals_masking", "blinded", "drops", "extended", "merged", "watch"]


def watch(monkeypatch, method) -> dict[int, list[Selection]]:
    """What the method selects of each picture, by layer."""
    seen: dict[int, list[Selection]] = {}
    select = type(method).select

    def watched(self, picture, stage):
        selection = select(self, picture, stage)
        seen.setdefault(stage.layer, []).append(selection)
        return selection

    monkeypatch.setattr(type(method), "select", watched)
    return seen


def assert_dropping_equals_masking(monkeypatch, model, inputs, method, atol=1e-4):
    """Logits of the kept tokens are those of the whole sequence that cannot see the dropped ones. Returns the trace."""
    with monkeypatch.context() as patch:
        selections = watch(patch, method)
        output, trace = prune(model, inputs, method)
    gone = drops(inputs, trace, selections)
    last = gone[max(gone)]
    lost = [before - after for before, after in (trace.visual_tokens, trace.structure_tokens)]
    assert 0 < last.sum() == sum(lost)
    with torch.no_grad(), blinded(model, inputs["attention_mask"].bool(), (gone, None)), merged(model, trace, selections):
        expected = model(**inputs).logits
    torch.testing.assert_close(output.logits, expected[~last][None], atol=atol, rtol=0)
    return trace
