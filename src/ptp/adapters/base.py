"""What the runtime must know of a model family: where its tiles, [CLS], patches, text and layers are."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Span:
    """One picture in a prompt: its batch row, its first visual token and its tokens per tile in token order."""

    row: int
    start: int
    sizes: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Visual tokens of the picture, N."""
        return sum(self.sizes)


@dataclass(frozen=True)
class QueryKey:
    """Where one attention layer's queries and keys can be read.

    `query` and `key` are the modules whose outputs are the queries and keys before rotary positions; reshaping the
    output to (..., heads, width) gives one vector per head.
    """

    query: nn.Module
    key: nn.Module
    heads: int
    key_heads: int
    scale: float


class Adapter(ABC):
    """One model family. Adapters say where things are; they never score.

    Attributes:
        family: Name shown to users.
        model_types: `config.model_type` values this adapter takes.
        core: Module that receives `input_ids`, `pixel_values` and `mm_encoder_outputs`.
        vision: Module whose output becomes `mm_encoder_outputs["image"]`.
        language: Module that receives `inputs_embeds`, `attention_mask`, `position_ids`.
        layers: The language model's decoder layers.
        vision_depth: Layers of the vision encoder.
        has_cls: Whether index 0 of a vision sequence is [CLS].

    The modules are typed Any because families reach into submodules that nn.Module does not declare.
    """

    family: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    core: Any
    vision: Any
    language: Any
    layers: Any
    vision_depth: int
    has_cls: bool

    @abstractmethod
    def __init__(self, model: PreTrainedModel) -> None:
        """Raises UnsupportedModelError where the model cannot be pruned exactly."""

    @abstractmethod
    def locate(self, input_ids: Tensor) -> list[Span]:
        """Pictures of a (B, S) prompt, batch row by batch row, in prompt order."""

    @abstractmethod
    def vision_attention(self, layer: int) -> QueryKey:
        """Queries and keys of one vision layer (negative counts from the last)."""

    @abstractmethod
    def vision_embeddings(self) -> nn.Module:
        """Module whose output (T, 1 + P, D) feeds the projector."""

    @abstractmethod
    def pool(self, scores: Tensor) -> Tensor:
        """Pool (T, P) patch scores onto (T, n) visual tokens the way the model pools patches."""

    @abstractmethod
    def grid(self, pixels: Tensor) -> tuple[int, int] | None:
        """Tile grid (columns, rows) of one picture from its (T, C, h, w) shrunk tiles; None where T = 1."""

    @abstractmethod
    def text_attention(self, layer: int) -> QueryKey:
        """Queries and keys of one decoder layer."""

    @abstractmethod
    def probe(self, layer: int, rows: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Run only the query and key projections of a decoder layer.

        Args:
            rows: (B, R, width) inputs of the layer that need queries. hidden: (B, S, width) all of its inputs.

        Returns:
            What the modules of `text_attention(layer)` would put out for them.
        """

    @abstractmethod
    def rotate(self, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Apply the text model's rotary positions to (B, H, S, D) queries or keys."""
