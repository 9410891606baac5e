"""Settings that many methods share: the language-model layer where tokens leave, the vision layer that is read."""

from dataclasses import dataclass
from typing import Any

from ..pruner import Pruner, Stage
from ..runtime import Reads, VisionRead


@dataclass(frozen=True, kw_only=True)
class PrunesAtLayer(Pruner):
    """A method with one stage.

    Attributes:
        prune_layer: Tokens leave at the input of this language-model layer; 0 is before the language model.
    """

    prune_layer: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layer("prune_layer", self.prune_layer, lowest=0)

    def stages(self, layers: int) -> tuple[Stage, ...]:
        return (Stage(self.prune_layer, self.keep_ratio),)


@dataclass(frozen=True, kw_only=True)
class ReadsVisionLayer(Pruner):
    """A method that reads the attention of one vision layer.

    Attributes:
        vision_layer: Vision layer whose attention is read; negative counts from the last.
    """

    vision_layer: int = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layer("vision_layer", self.vision_layer)

    def reads(self, vision_depth: int) -> Reads:
        return Reads(vision=(VisionRead(self.vision_layer),))


def check_layer(name: str, value: Any, lowest: float = float("-inf")) -> None:
    """Raise ValueError unless the setting `name` is a layer number, `lowest` at least."""
    if not isinstance(value, int) or value < lowest:
        raise ValueError(f"{name} must be a layer number, got {value!r}. Layers count from 0.")
