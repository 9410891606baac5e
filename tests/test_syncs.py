"""What a GPU would have to be waited for: a handful of times in a prefill, however large the picture."""

import pytest
import torch
from families import encode, model_of, photo, pruner, tokenizer
from syncs import Waits


def waits(family, size, **settings) -> dict[str, int]:
    model, inputs = model_of(family), encode(family, ([photo(1, size)], "What is on the red circle?"))
    with torch.no_grad(), pruner(record_scores=False, **settings)(model, tokenizer()):
        model(**inputs)
        with Waits(model, inputs) as found:
            model(**inputs)
    return dict(found.found)


def test_behind_the_encoder_only_what_was_kept_is_waited_for(family):
    """By the method, which counts it by tile, and right behind it by the check. All else is read before the encoder runs, or is
    the grid that nobody is told."""
    found = waits(family, (300, 200))
    behind = {line.split(":")[0]: count for line, count in found.items() if line.split(":")[0] not in BEFORE}
    assert behind == {"runtime/picture.py": 1, "runtime/check.py": 1}


BEFORE = (
    "conversation/instruction.py",  # the prompt's ids
    "runtime/prefill.py",
    "runtime/encoding.py",  # a few pixels of each tile
    "adapters/mosaic.py",  # the grid that nobody is told: behind the encoder, too
    "adapters/llava.py",  # sizes and masks of pictures
    "adapters/packed.py",
    "adapters/pixtral.py",
    "adapters/gemma4.py",
    "adapters/lfm2_vl.py",
    "adapters/minicpmv4_6.py",
    "adapters/smolvlm.py",
)


@pytest.mark.parametrize("layer", [0, 2])
def test_larger_pictures_are_not_waited_for_more_often(family, layer):
    small, large = (waits(family, size, prune_layer=layer) for size in ((300, 200), (560, 420)))
    assert sum(large.values()) <= sum(small.values()) + 1  # InternVL: a grid that small copies leave in doubt


def test_waits_are_seen():
    """The counter itself: of values that come from the model, and of no others."""
    module, given = torch.nn.Linear(3, 3), torch.ones(3)
    with Waits(module, {"x": given}) as found:
        made = module(given) + torch.arange(3)
        for wait in (lambda: bool((made > 0).any()), lambda: made.tolist(), lambda: made[made > 0], lambda: made.nonzero()):
            before = found.total
            wait()
            assert found.total == before + 1
        host = made.cpu()
        before = found.total
        host.tolist(), bool(torch.arange(3).sum()), made[torch.tensor([0])], host[host > 0]
        assert found.total == before
