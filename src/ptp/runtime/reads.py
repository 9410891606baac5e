"""What a method reads: it says so in one place, and is given exactly that."""

from dataclasses import dataclass
from typing import Literal

AttentionKind = Literal["either", "cls", "received", "logits"]


@dataclass(frozen=True)
class VisionRead:
    """One layer of the vision encoder.

    Attributes:
        layer: Counted from 0; negative counts from the last that feeds the language model.
        attention: "cls": what [CLS] pays each patch; "received": what a patch receives from the patches of its tile, on
            average; "either": the first where the encoder has [CLS], the second where it has none; "logits": the same before
            softmax, of either sign; None: not read. All are means over heads.
        keys: Whether the layer's keys are read, too.
        layer_without_cls: The layer where the encoder has no [CLS], if another than `layer`; None is `layer`.
    """

    layer: int = -1
    attention: AttentionKind | None = "either"
    keys: bool = False
    layer_without_cls: int | None = None


@dataclass(frozen=True)
class TextProbe:
    """Which text tokens are asked what they attend to, and how.

    Attributes:
        rows: Who is asked: the "instruction"; the "last" token of the prompt; all text "behind" the row's pictures, template
            included; "all" text of the row.
        layer: Whose queries and keys: of the layer "below" the one where tokens leave (before the language model, where there
            is none: of its first layer); or "here", of the one where they leave.
        rotary: Whether queries and keys carry their rotary positions. Without, what a KV cache holds cannot be compared, and
            attention is shared out among the new tokens only.
        reduce: How the rows are combined.
        values: Whether attention is multiplied by the norm of the value it moves, head by head.
    """

    rows: Literal["instruction", "last", "behind", "all"] = "instruction"
    layer: Literal["below", "here"] = "below"
    rotary: bool = True
    reduce: Literal["max", "mean"] = "max"
    values: bool = False

    @property
    def parts(self) -> tuple[Literal["q", "k", "v"], ...]:
        """Of queries, keys and values those that are needed."""
        return ("q", "k", "v") if self.values else ("q", "k")

    def source(self, layer: int) -> int:
        """The layer whose queries and keys are compared where tokens leave at `layer`."""
        return layer if layer == 0 or self.layer == "here" else layer - 1


@dataclass(frozen=True)
class Reads:
    """All that a method reads beside the tokens' own states.

    Attributes:
        vision: Layers of the encoder; `picture.vision` has them in this order.
        probe: What `picture.text_attention` and `picture.text_states` are of; None reads no text.
        inputs: Whether what the language model was given is read at later stages, too: `picture.inputs`, `picture.text_inputs`.
    """

    vision: tuple[VisionRead, ...] = ()
    probe: TextProbe | None = None
    inputs: bool = False
