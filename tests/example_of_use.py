"""Use of `ptp` as a type checker sees it: `make lint` checks this file, test_release.py runs it. A name that is `Any` fails."""

from collections.abc import Sequence
from typing import assert_type

import torch

import ptp


def main() -> None:
    """Prune a prompt without a picture, and say what every public name is."""
    model, processor = ptp.load()
    pruner = ptp.PyramidPruner(keep_ratio=0.25, alpha=0.0)
    assert_type(pruner.keep_ratio, float)
    assert_type(ptp.PyramidPruner.published(keep_ratio=0.5), ptp.PyramidPruner)
    assert_type(ptp.METHODS["random"], type[ptp.Pruner])
    inputs = processor.tokenizer("What is on the red circle?", return_tensors="pt")
    with pruner(model, processor) as trace:
        model.generate(**inputs, max_new_tokens=2)
    assert_type(trace, ptp.Trace)
    assert_type(trace.visual_tokens, tuple[int, int])
    assert_type(trace.images, Sequence[ptp.ImageTrace])
    for image in trace.images:
        assert_type(image.kept, torch.Tensor)
        assert_type(image.budgets, list[int])
        assert_type(image.scores, dict[str, torch.Tensor])
        assert_type(image.instruction, str)
    handle = ptp.attach(model, pruner, processor, reuse=ptp.EncoderCache(2**20))
    assert_type(handle, ptp.Handle)
    assert_type(handle.trace, ptp.Trace)
    handle.remove()
    print(trace.visual_tokens)


if __name__ == "__main__":
    main()
