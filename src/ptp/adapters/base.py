"""What the runtime must know of a model family: where its tiles, [CLS], patches, text and layers are."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from .text import TextModel

PIXELS_SIDE = 24
"""Tiles are shrunk to this side where the pixels themselves are looked at."""


@dataclass(frozen=True)
class Tile:
    """A rectangle of a picture and the visual tokens that show it: `columns` x `rows`, in raster order.

    Attributes:
        columns, rows: Visual tokens across and down.
        box: (left, top, right, bottom) of what they show, as fractions of the picture's width and height. Where a model
            pads the picture, a token may show some of the padding, and the box leave [0, 1] by a little.
    """

    columns: int
    rows: int
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)

    @property
    def tokens(self) -> int:
        """Visual tokens of the tile."""
        return self.columns * self.rows

    @property
    def sides(self) -> tuple[int, int]:
        """(columns, rows)."""
        return self.columns, self.rows


@dataclass(frozen=True)
class Layout:
    """Where the visual tokens of a picture are on it.

    Attributes:
        tiles: In token order; of a video, its frames.
        grid: (columns, rows) of the tiles without the thumbnail; None for a single tile, and for a video.
        thumbnail: Whether the last tile shows the whole picture once more.
        video: Whether the tiles are frames.
    """

    tiles: tuple[Tile, ...]
    grid: tuple[int, int] | None = None
    thumbnail: bool = False
    video: bool = False

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Visual tokens of each tile."""
        return tuple(tile.tokens for tile in self.tiles)

    @property
    def tokens(self) -> int:
        """Visual tokens of the picture, N."""
        return sum(self.sizes)

    @cached_property
    def boxes(self) -> Tensor:
        """(N, 4) float32: left, top, right, bottom of what each token shows, as fractions of the picture."""
        parts = []
        for tile in self.tiles:
            left, top, right, bottom = tile.box
            x = torch.linspace(left, right, tile.columns + 1).expand(tile.rows, -1)
            y = torch.linspace(top, bottom, tile.rows + 1)[:, None].expand(-1, tile.columns)
            parts.append(torch.stack([x[:, :-1], y[:-1], x[:, 1:], y[1:]], dim=-1).flatten(0, 1))
        return torch.cat(parts)


def tiled(grid: tuple[int, int], columns: int, rows: int, thumbnail: bool) -> Layout:
    """The layout of a picture cut into equal tiles of `columns` x `rows` visual tokens, in raster order."""
    across, down = grid
    tiles = [
        Tile(columns, rows, (x / across, y / down, (x + 1) / across, (y + 1) / down))
        for y in range(down)
        for x in range(across)
    ]
    return Layout(
        (*tiles, *([Tile(columns, rows)] if thumbnail else [])), grid if len(tiles) > 1 or thumbnail else None, thumbnail
    )


@dataclass(frozen=True)
class Span:
    """One picture in a prompt.

    Attributes:
        row: Its batch row.
        positions: (N,) int64 place of each visual token in the row's ids, tile by tile, the thumbnail's last, and in
            raster order within each tile; the prompt itself may have them in another order.
        units: Numbers of the encoder's units that show it, in the same order.
        layout: Where its tokens are on the picture.
        about: What else the adapter has to remember of it.
    """

    row: int
    positions: Tensor
    units: tuple[int, ...]
    layout: Layout
    about: Any = None


@dataclass(frozen=True)
class Modality:
    """A way for pictures to get into a model.

    Attributes:
        name: Key of its encoded pictures in `mm_encoder_outputs`.
        method: The method of the core that encodes them; `generate` calls it before the forward.
        pixels: The model's argument that holds them.
        token_id: What stands for one of their visual tokens in a prompt.
    """

    name: str
    method: str
    pixels: str
    token_id: int


@dataclass(frozen=True)
class QueryKey:
    """Where a vision layer's queries and keys can be read.

    `query` and `key` are the modules whose outputs are the queries and keys; reshaping an output to (..., heads, width)
    gives one vector per head.
    """

    query: nn.Module
    key: nn.Module
    heads: int
    scale: float


class Adapter(ABC):
    """One model family. Adapters say where things are; they never score.

    A vision encoder works on units: tiles, or, where it takes pictures whole, pictures or frames. The defaults are for
    tiles: one encoder sequence each, patches in raster order, [CLS] (where there is one) first.

    Attributes:
        family: Name shown to users.
        model_types: `config.model_type` values this adapter takes.
        regions: What its pictures are cut into, for `ptp models`.
        saliency: What token saliency is read from there.
        limits: What of it cannot be pruned, or what pruning does not undo; empty where there is nothing to say.
        core: Module that receives `input_ids`, `pixel_values` and `mm_encoder_outputs`, and has `get_image_features`.
        vision: Its vision encoder.
        vision_depth: Vision layers up to the one that feeds the language model.
        text: The language model.
        image_token_id: The id that stands for a visual token of a picture in a prompt.
        has_cls: Whether index 0 of a vision sequence is [CLS].
        independent_tiles: Whether the encoder's arguments and outputs are batches of tiles, (T, ...) tensors, none of which
            sees another: tiles with the same pixels are then encoded once. `heads`, `by_unit` and `embed` must be the defaults,
            or do without their `about`.
        read: Gives the text of a list of ids; empty where the tokenizer is not known. `adapter_for` sets it.
        line_ends: Whether what stands among a picture's visual tokens ends the run before it; if not, it opens the one behind
            it, as tile markers do.
        late_features: Names of the language model's arguments that hold the mask of visual tokens and the features added
            to them after its first layers (DeepStack); None where there are none.
        both_ways: Where some layers have sliding windows: the argument that tells pictures (1) and videos (2) from text (0),
            and the types of layers in which the tokens of a picture see each other both ways.

    The modules are typed Any because families reach into submodules that nn.Module does not declare.
    """

    family: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    regions: ClassVar[str]
    saliency: ClassVar[str]
    limits: ClassVar[str] = ""
    line_ends: ClassVar[bool] = False
    independent_tiles: bool = False
    late_features: tuple[str, str] | None = None
    both_ways: tuple[str, tuple[str, ...]] = ("token_type_ids", ("full_attention", "sliding_attention"))
    core: Any
    vision: Any
    vision_depth: int
    text: TextModel
    image_token_id: int
    has_cls: bool
    read: Callable[[list[int]], str]

    @abstractmethod
    def __init__(self, model: PreTrainedModel) -> None:
        """Raises UnsupportedModelError where the model cannot be pruned exactly."""

    @abstractmethod
    def locate(self, input_ids: Tensor, tokens: Tensor, about: Any, pixels: Sequence[Tensor]) -> list[Span]:
        """Pictures of a (B, S) prompt, batch row by batch row, in prompt order.

        Args:
            tokens: (B, S) bool, where the prompt has visual tokens (of one modality).
            about: What `about` said when the pictures were encoded.
            pixels: What `shrink` made of each unit.

        Raises:
            ValueError: the image tokens do not fit the pictures.
        """

    def vision_attention(self, layer: int) -> QueryKey:
        """Where the queries and keys of a vision layer are; layers count from 0. The default is CLIP's and SigLIP's."""
        attention = self.vision.encoder.layers[layer].self_attn
        return QueryKey(attention.q_proj, attention.k_proj, attention.num_heads, attention.scale)

    @abstractmethod
    def vision_embeddings(self) -> nn.Module:
        """Module whose output feeds the projector."""

    @abstractmethod
    def pool(self, scores: Sequence[Tensor], span: Span) -> Tensor:
        """Pool patch scores onto visual tokens the way the model pools patches.

        Args:
            scores: (P,) of each of the span's units.

        Returns:
            (N,) in the span's order.
        """

    def about(self, inputs: Mapping[str, Any], window: int) -> Any:
        """What has to be remembered of the arguments of the encoding method to lay out the pictures.

        Args:
            window: Side, in pixels, of the regions of pictures that are not cut into tiles.
        """
        return None

    def heads(self, layer: int, queries: Tensor, keys: Tensor, about: Any) -> list[tuple[Tensor, Tensor]]:
        """Queries and keys that see each other, as (U, H, L, D), from what the modules of `vision_attention` put out."""
        heads = self.vision_attention(layer).heads
        split = [states.unflatten(-1, (heads, -1)).transpose(1, 2) for states in (queries, keys)]
        return [(split[0], split[1])]

    def received_heads(self, layer: int, queries: Tensor, keys: Tensor, about: Any) -> list[tuple[Tensor, Tensor]]:
        """The same where only what patches receive is asked for: queries that do not speak (`scoring.speakers`) may be left
        out, where it takes time to make them."""
        return self.heads(layer, queries, keys, about)

    def by_unit(self, layer: int, rows: Sequence[Tensor], about: Any) -> list[Tensor]:
        """(P,) patch scores of each unit, in the order that `pool` takes them, from a score row per pair of `heads`."""
        return list(rows)

    def embed(self, states: Tensor, about: Any) -> list[Tensor]:
        """(regions, D) of each unit, from what feeds the projector: its [CLS], or the mean over its patches."""
        return list((states[:, :1] if self.has_cls else states.mean(dim=1, keepdim=True)).unbind())

    def shrink(self, pixels: Tensor, about: Any) -> list[Tensor]:
        """A few pixels of each unit, from what the encoder takes: pictures are told apart by them."""
        return list(F.interpolate(pixels.float(), size=(PIXELS_SIDE, PIXELS_SIDE), mode="area").unbind())

    def unread_layers(self, inputs: Mapping[str, Any]) -> Sequence[nn.Module]:
        """Layers behind the last that feeds the language model, and nobody reads: each takes states and gives such back.

        Args:
            inputs: Arguments of the encoding method; they may ask for another layer than usual.
        """
        return ()

    def unread_outputs(self, inputs: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of what the encoder puts out and the model does not read: it is not kept for the next time.

        Args:
            inputs: As of `unread_layers`.
        """
        return ()

    @property
    def layers(self) -> Any:
        """The language model's decoder layers."""
        return self.text.layers

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """How pictures get into the model."""
        return (Modality("image", "get_image_features", "pixel_values", self.image_token_id),)

    def visual_tokens(self, input_ids: Tensor) -> Tensor:
        """(B, S) bool: where a prompt has visual tokens, of any modality."""
        return torch.isin(input_ids, torch.tensor([kind.token_id for kind in self.modalities], device=input_ids.device))


def share_out(mask: Tensor, counts: Sequence[int]) -> list[tuple[int, Tensor]]:
    """Give each picture its tokens: (row, places) of each, `counts[i]` of the True entries of a (B, S) mask, in order.

    Raises:
        ValueError: a picture would begin in one row and end in another, or tokens are left over.
    """
    shares, left = [], list(counts)
    for row, line in enumerate(mask):
        places = line.nonzero()[:, 0]
        while len(places):
            count = left.pop(0) if left else 0
            if not 0 < count <= len(places):
                raise ValueError(
                    f"Image tokens must be those of whole pictures (here of {', '.join(map(str, counts))} tokens), and row "
                    f"{row} has {int(line.sum())}. Build the prompt with the model's own processor."
                )
            shares.append((row, places[:count]))
            places = places[count:]
    return shares


def runs(mask: Tensor) -> list[tuple[int, int, int]]:
    """(row, start, end) of every unbroken run of True in a (B, S) mask, row by row."""
    change = F.pad(mask.int(), (1, 1)).diff(dim=1)
    starts, ends = (change == 1).nonzero().tolist(), (change == -1).nonzero().tolist()
    return [(row, start, end) for (row, start), (_, end) in zip(starts, ends, strict=True)]
