"""From pixels to the tokens that stay: the engine's own encoder, listened to, and a method's choice."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...adapters import Adapter
from ...runtime.check import check_selection
from ...runtime.encoding import Savings
from ...runtime.running import Running
from ...runtime.vision import VisionReader, picture_of
from .positions import shifts, with_shifts
from .reuse import Encoded, Reuse
from .settings import Before, Settings, from_canonical

AS_IT_RUNS = Savings(merge_tiles=False, skip_layers=False)
"""The engine's encoder is listened to, and runs on what the engine gives it."""
Inputs = Mapping[str, Any]
"""What the engine gives a model's encoder for some pictures."""


def encode(
    adapter: Adapter, settings: Settings, inputs: Inputs, tokens: Sequence[int], run: Callable[..., Sequence[Tensor]]
) -> list[Encoded]:
    """Run the engine's encoder on some pictures, and keep what the method reads of it.

    Args:
        inputs: Of these pictures, without ours. tokens: Of each, those among them that are no visual tokens (line ends).
        run: The engine's own encoding.
    """
    running, pruner = Running(), settings.pruner
    reader = VisionReader(adapter, pruner.reads(adapter.vision_depth).vision, pruner.window, running, AS_IT_RUNS)
    handles = []
    running.encoding = seen = reader.begin(inputs, "image")
    try:
        for handle in reader.attach():
            handles.append(handle)
        features = run(**inputs)
    finally:
        running.encoding = None
        for handle in handles:
            handle.remove()
    vision = reader.read(seen, features, sum(tokens))
    shown = torch.zeros(1, sum(tokens) + len(tokens), dtype=torch.bool)
    first = 0
    for count in tokens:
        shown[0, first : first + count] = True
        first += count + 1  # something stands between pictures
    spans = adapter.locate(shown.long(), shown, vision.about, vision.pixels)
    pictures = [picture_of(adapter, span, vision, reader.reads) for span in spans]
    columns = [getattr(span.about, "columns", 0) // getattr(adapter, "merge", 1) or None for span in spans]
    places = [(span.positions - span.positions.min()).to(own.device) for span, own in zip(spans, features, strict=True)]
    parts = zip(features, pictures, places, columns, strict=True)
    return [Encoded(own.clone(), _own(picture), where, row) for own, picture, where, row in parts]


def _own(picture: Any) -> Any:
    """The picture with tensors of its own: it must not keep a whole batch alive."""
    return replace(picture, embeddings=picture.embeddings.clone(), pixels=tuple(part.clone() for part in picture.pixels))


def choose(encoded: Encoded, settings: Settings, words: Tensor) -> Tensor:
    """(K, D + 2 A) of the tokens that stay, in prompt order, each with how far it is from where the engine takes it to be.

    What stands among the visual tokens and is none of them (line ends) stays.

    Args:
        words: (R, D) embeddings of the user's words.
    """
    features, pruner = encoded.features[encoded.places], settings.pruner
    width = words.shape[1]  # deeper features may stand behind those that go into the first layer
    picture = replace(encoded.picture, readings=Before(features[:, :width], words))
    budget = settings.stage.budget(picture.tokens)
    selection = pruner.select(picture, settings.stage)
    kept = check_selection(selection, picture, budget, pruner).to(features.device)
    stay = features[kept]
    if selection.mix is not None and len(kept) < picture.tokens:
        mixed = (selection.mix.to(features.device, torch.float32) @ features[:, :width].float()).to(features.dtype)
        stay = torch.cat([mixed, stay[:, width:]], dim=1)
    line_ends = torch.ones(len(encoded.features), dtype=torch.bool, device=features.device)
    line_ends[encoded.places] = False
    places, order = torch.cat([encoded.places[kept], line_ends.nonzero()[:, 0]]).sort()
    return with_shifts(torch.cat([stay, encoded.features[line_ends]])[order], shifts(places, encoded.columns))


def in_runs(numbers: Sequence[int], tokens: Sequence[int], most: int) -> list[list[int]]:
    """Which pictures are encoded together, in order.

    The engine counts the tokens that stay, and hands over more pictures at a time than it has measured that there is room for.

    Args:
        numbers: Of the pictures. tokens: Of each picture there is, before anything is dropped.
        most: So many tokens are encoded at a time, or one picture.
    """
    runs: list[list[int]] = []
    room = 0
    for number in numbers:
        if not runs or tokens[number] > room:
            runs.append([])
            room = most
        runs[-1].append(number)
        room -= tokens[number]
    return runs


def encode_and_choose(
    adapter: Adapter,
    reuse: Reuse,
    inputs: dict[str, Any],
    part: Callable[[Inputs, Sequence[int]], Inputs],
    run: Callable[..., Sequence[Tensor]],
    embed: Callable[[Tensor], Tensor],
    most: int,
) -> list[Tensor]:
    """The tokens that stay of each picture, as `choose` puts them.

    Args:
        inputs: What the engine gives the encoder, and what `processor.Order.fields` put beside it.
        part: Gives the inputs of some of the pictures by their numbers. run: The engine's own encoding.
        embed: Embeds ids. most: As `in_runs`.
    """
    own = {name: inputs.pop(name) for name in list(inputs) if name.startswith("ptp_")}
    settings = from_canonical(bytes(own["ptp_settings"].tolist()).decode())
    reads = settings.pruner.reads(adapter.vision_depth).vision
    keys = [(bytes(key.tolist()), reads, settings.pruner.window) for key in own["ptp_key"]]
    found = [reuse.get(key) for key in keys]
    new = [number for number, encoded in enumerate(found) if encoded is None]
    tokens = own["ptp_tokens"].tolist()
    for together in in_runs(new, tokens, most):
        fresh = encode(adapter, settings, part(inputs, together), [tokens[number] for number in together], run)
        for number, encoded in zip(together, fresh, strict=True):
            found[number] = encoded
            reuse.put(keys[number], encoded)
    words = own["ptp_words"].split(own["ptp_word_count"].tolist())
    device = found[0].features.device  # type: ignore[union-attr]
    return [choose(each, settings, embed(ids.to(device))) for each, ids in zip(found, words, strict=True) if each]
