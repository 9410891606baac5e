"""The oracles of the vision half: where the visual tokens are, what they show, and how salient they are."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from ..adapters import Layout
from .encoder import attention, embedded, first, layers_of, listening, with_states
from .report import Check, near, require
from .saliency import recorded, token_saliency
from .subject import QUESTION, Subject

DISCS, SHARE = 12, 0.3
"""Tokens into whose boxes a disc is drawn, and its radius as a share of the box's shorter side."""
COMPARED = 256
"""Tokens whose saliency is compared; more are sampled."""


def layout(subject: Subject) -> Iterator[Check]:
    """Positions are the places whose embeddings come from pixels, each once; layouts fit them."""
    for numbers in ((0,), (1, 2)):
        pictures, settings = [subject.picture(number) for number in numbers], f"{len(numbers)} picture(s)"
        inputs = subject.inputs((pictures, QUESTION))
        shown = subject.shown(inputs)[0].nonzero()[:, 0].tolist()
        ids = set(inputs["input_ids"][0, shown].tolist())
        known = {modality.token_id for modality in subject.adapter.modalities}
        require("layout", settings, ids <= known, f"pixels reach tokens of ids {sorted(ids)}, `modalities` has {sorted(known)}")
        listener = replace(subject.listener, heard=[])
        with listener(subject.model, subject.processor, torch.ones_like(inputs["input_ids"])) as trace, torch.no_grad():
            subject.model(**inputs)
        found = [each.positions.tolist() for each in trace.images]
        require("layout", settings, len(found) == len(numbers), f"found {len(found)} pictures in a prompt of {len(numbers)}")
        places = [place for each in found for place in each]
        extra, missing = sorted(set(places) - set(shown)), sorted(set(shown) - set(places))
        require(
            "layout", settings, not extra and not missing and len(places) == len(set(places)),
            f"{len(places)} positions must be the {len(shown)} places that pixels reach, each once; not among these: "
            f"{extra[:5]}; missing: {missing[:5]}; twice: {len(places) - len(set(places))}",
        )  # fmt: skip
        for each, heard in zip(trace.images, listener.heard, strict=True):
            _fits(each.layout, len(each.positions), heard.embeddings, settings)
        yield Check("layout", settings)


def _fits(layout: Layout, tokens: int, embeddings: Tensor, settings: str) -> None:
    """Sizes sum up, boxes lie on the picture, and every tile has an embedding."""
    require("layout", settings, layout.tokens == tokens, f"the tiles have {layout.tokens} tokens, and positions {tokens}")
    for tile in layout.tiles:
        left, top, right, bottom = tile.box
        slack = [(right - left) / max(tile.columns, 1), (bottom - top) / max(tile.rows, 1)]  # a token may show padding
        inside = left >= -slack[0] and top >= -slack[1] and right <= 1 + slack[0] and bottom <= 1 + slack[1]
        require("layout", settings, inside and left <= right and top <= bottom, f"a tile's box is {tile.box}, not in [0, 1]")
    tiles = len(layout.tiles) - layout.thumbnail
    if layout.grid is not None:
        columns, rows = layout.grid
        require("layout", settings, columns * rows == tiles, f"a grid of {columns} x {rows} has {tiles} tiles")
    require(
        "layout", settings, len(embeddings) == len(layout.tiles),
        f"`embed` gives {len(embeddings)} embeddings for {len(layout.tiles)} tiles",
    )  # fmt: skip


@torch.no_grad()
def encoder(subject: Subject) -> Iterator[Check]:
    """The last attention that the visual tokens depend on is that of layer `vision_depth` - 1, just before what feeds them."""
    model, adapter, inputs = subject.model, subject.adapter, subject.one
    modules = layers_of(recorded(model, adapter, inputs))
    require("encoder", "", bool(modules), "no attention inside `vision` goes through transformers' AttentionInterface")
    order: list[Any] = []
    with contextlib.ExitStack() as stack:
        for number, module in enumerate(modules):
            stack.enter_context(listening(module, lambda m, args, output, number=number: order.append(number)))
        stack.enter_context(listening(adapter.vision_embeddings(), lambda m, args, output: order.append("embeddings")))
        before = embedded(model, adapter, inputs)
    depth = next((n + 1 for n in reversed(range(len(modules))) if _matters(subject, modules[n], before)), 0)
    require(
        "encoder", "", adapter.vision_depth == depth,
        f"visual tokens depend on {depth} of the {len(modules)} vision layers, and vision_depth is {adapter.vision_depth}",
    )  # fmt: skip
    behind = [event for event in order[: order.index("embeddings")] if event != "embeddings"] if "embeddings" in order else []
    last = max(behind, default=-1)
    require(
        "encoder", "", last == depth - 1,
        f"the module of `vision_embeddings` runs behind layer {last}, and layer {depth - 1} is the last that matters",
    )  # fmt: skip
    yield Check("encoder", f"{depth} of {len(modules)} layers")


def _matters(subject: Subject, module: nn.Module, before: Tensor) -> bool:
    """Whether what a module puts out reaches the embeddings."""

    def disturb(module: nn.Module, args: Any, output: Any) -> Any:
        return with_states(output, -first(output))

    with listening(module, disturb):
        return not torch.equal(embedded(subject.model, subject.adapter, subject.one), before)


def _with_disc(picture: Image.Image, box: list[float]) -> Image.Image:
    """The picture with a disc inside a box given as fractions."""
    drawn = picture.copy()
    left, top, right, bottom = (edge * length for edge, length in zip(box, (*picture.size, *picture.size), strict=True))
    x, y, r = (left + right) / 2, (top + bottom) / 2, SHARE * min(right - left, bottom - top)
    ImageDraw.Draw(drawn).ellipse((x - r, y - r, x + r, y + r), fill=(255, 60, 0))
    return drawn


@torch.no_grad()
def boxes(subject: Subject) -> Iterator[Check]:
    """A disc drawn into the box of a token changes that token more than any other of the tiles, and the thumbnail there.

    Attention is silenced in the encoder, so that no patch learns of another.
    """
    model, adapter = subject.model, subject.adapter
    modules = layers_of(recorded(model, adapter, subject.one))
    for number in range(min(2, len(subject.pictures))):
        width, height = subject.picture(number).size
        size = (4 * width, 4 * height)
        plain = Image.blend(subject.picture(number).convert("RGB").resize(size), Image.new("RGB", size, (128, 128, 128)), 0.8)
        _, trace = subject.prune(subject.listener, subject.inputs(([plain], QUESTION)))
        (image,) = trace.images

        def features(picture: Image.Image, positions: Tensor = image.positions) -> Tensor:
            return embedded(model, adapter, subject.inputs(([picture], QUESTION)))[0, positions]

        with contextlib.ExitStack() as stack:
            for module in modules:
                stack.enter_context(listening(module, lambda m, args, output: with_states(output, 0 * first(output))))
            before = features(plain)
            tiles = image.num_tokens - (image.sizes[-1] if image.layout.thumbnail else 0)
            for token in torch.randperm(tiles, generator=torch.Generator().manual_seed(0))[:DISCS].tolist():
                change = (features(_with_disc(plain, image.boxes[token].tolist())) - before).norm(dim=-1)
                _seen_there(image.boxes, change.cpu(), token, tiles, f"picture {number}")
        yield Check("boxes", f"picture {number}, {min(DISCS, tiles)} discs")


def _seen_there(boxes: Tensor, change: Tensor, token: int, tiles: int, settings: str) -> None:
    best, shown = int(change[:tiles].argmax()), [round(edge, 2) for edge in boxes[token].tolist()]
    require("boxes", settings, bool(change[token] > 0), f"a disc in the box of token {token}, {shown}, does not change it")
    require("boxes", settings, best == token, f"a disc in the box of token {token}, {shown}, changes token {best} most")
    if tiles < len(boxes):
        seen = boxes[tiles + int(change[tiles:].argmax())]
        middle, slack = (boxes[token][:2] + boxes[token][2:]) / 2, (seen[2:] - seen[:2]) / 2
        there = bool(((seen[:2] - slack <= middle) & (middle <= seen[2:] + slack)).all())
        require("boxes", settings, there, f"a disc in the box of token {token}, {shown}, changes the thumbnail elsewhere")


def saliency(subject: Subject) -> Iterator[Check]:
    """What a method reads of vision layers is what the encoder's own attention maps say."""
    model, adapter, depth = subject.model, subject.adapter, subject.adapter.vision_depth
    layers = sorted({0, depth // 2, depth - 1})
    for number in range(min(2, len(subject.pictures))):
        inputs = subject.inputs(([subject.picture(number)], QUESTION))
        for name in ("sdpa", "eager"):
            listener = replace(subject.listener, layers=tuple(layers), heard=[])
            with attention(model, name):
                _, trace = subject.prune(listener, inputs)
            (heard,), (image,) = listener.heard, trace.images
            chosen = torch.randperm(image.num_tokens, generator=torch.Generator().manual_seed(0))[:COMPARED]
            expected = token_saliency(model, adapter, inputs, image.positions[chosen].tolist(), layers)
            for layer, found, wanted in zip(layers, heard.saliency, expected, strict=True):
                settings = f"vision layer {layer}, picture {number}, {name}"
                yield near("saliency", settings, found[chosen], wanted, 0.1 * subject.tolerance, "token saliency")
