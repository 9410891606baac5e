"""The language-model half of every family: its layers, their queries and keys, their rotary positions."""

from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from ..errors import UnsupportedModelError
from .text_check import check_parts, modeling_of

Part = Literal["q", "k", "v"]
"""Queries, keys or values."""
WINDOWED = ("gemma3_text", "gemma4_text")
"""Those whose sliding windows are understood: they count places in the unpruned sequence, whatever has left."""


class TextModel:
    """A decoder whose layers are normed by input_layernorm and attend by q_proj / k_proj (/ q_norm / k_norm per head), or one
    qkv_proj, with rotary positions. Its name does not matter: that it attends so is measured (`text_check.check_rows`). A
    subclass may say that its norms go by other names.

    Args:
        model: The module that receives `inputs_embeds`, `attention_mask`, `position_ids`.
        family: Named in errors.

    Attributes:
        model: That module.
        layers: Its decoder layers.
        attending: Numbers of the layers that attend. The others, in hybrid models, hand a state on from token to token: a token
            that left is not in it, and padding between tokens would be.
        window: Tokens that its sliding-window layers see; None where there are none.
        layer_norm, head_norm, final_norm: Names of the norm before a layer's projections, of those of its heads ("{}" is the
            part; there need be none), and of the one behind the last layer.
        shares_from: The first of the layers that look at keys and values of an earlier one; None where there are none.

    Raises:
        UnsupportedModelError: a part is missing, or it attends in windows and is not one of `WINDOWED`.
    """

    layer_norm: ClassVar[str] = "input_layernorm"
    head_norm: ClassVar[str] = "{}_norm"
    final_norm: ClassVar[str] = "norm"
    shares_from: int | None = None

    def __init__(self, model: Any, family: str) -> None:
        check_parts(model, family, self.layer_norm)
        config = model.config
        layers = getattr(config, "layer_types", None) or ()
        narrow = [kind for kind in ("sliding_attention", "chunked_attention") if kind in layers]
        everywhere = not layers and getattr(config, "sliding_window", None) is not None  # so in Mistral and Phi-3
        self.window = config.sliding_window if "sliding_attention" in narrow or everywhere else None
        if (narrow or everywhere) and config.model_type not in WINDOWED:
            raise UnsupportedModelError(
                "Sliding-window attention cannot be pruned exactly: a window counts tokens, and pruning removes some. "
                "Use a checkpoint without it (use_sliding_window=false; for Mistral and Phi-3 sliding_window=null)."
            )
        self.model, self.layers, self.config = model, model.layers, config
        self.attending = tuple(number for number, layer in enumerate(model.layers) if hasattr(layer, "self_attn"))

    @property
    def hybrid(self) -> bool:
        """Whether some layers do not attend."""
        return len(self.attending) < len(self.layers)

    def projection(self, layer: int, part: Part) -> nn.Module:
        """The module that puts out the queries, keys or values of a layer, before norms and positions; it may put out all."""
        attention = self.layers[layer].self_attn
        return attention.qkv_proj if hasattr(attention, "qkv_proj") else getattr(attention, f"{part}_proj")

    def normed(self, layer: int, hidden: Tensor) -> Tensor:
        """What the projections of a layer are given of its input."""
        return getattr(self.layers[layer], self.layer_norm)(hidden)

    def shared(self, layer: int) -> str | None:
        """The name under which a layer finds the keys and values of an earlier one; None where it has its own."""
        return self.config.layer_types[layer] if self.shares_from is not None and layer >= self.shares_from else None

    def beside(self, embeds: Tensor) -> dict[str, Any]:
        """What the model must be given beside embeddings (B, S, D) of no words."""
        return {}

    def last_norm(self, hidden: Tensor) -> Tensor:
        """What the norm behind the last layer makes of hidden states (..., D)."""
        return getattr(self.model, self.final_norm)(hidden)

    def reach(self, layer: int) -> int | None:
        """Tokens that a layer sees, itself among them; None is all."""
        return self.window if self.window is not None and self.config.layer_types[layer] == "sliding_attention" else None

    def positions(self, layer: int, given: tuple[Tensor, Tensor], hidden: Tensor, places: Any) -> tuple[Tensor, Tensor]:
        """(cos, sin) of a layer; `given` is that of another one, and the same unless windows turn at a speed of their own."""
        return given if self.window is None else self.model.rotary_emb(hidden, places, self.config.layer_types[layer])

    def scale(self, layer: int) -> float:
        """The factor on the dot products."""
        return self.layers[layer].self_attn.scaling

    def heads(self, layer: int, projected: Tensor, part: Part) -> Tensor:
        """(B, H, S, D) of what a projection put out, (B, S, ...); keys and values (B, H / g, S, D). Without positions."""
        attention = self.layers[layer].self_attn
        states = projected.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        if hasattr(attention, "qkv_proj"):
            own, shared = self.config.num_attention_heads, self.config.num_key_value_heads
            start = {"q": 0, "k": own, "v": own + shared}[part]
            states = states[:, start : start + (own if part == "q" else shared)]
        elif part == "q" and states.shape[1] == 2 * self.config.num_attention_heads:
            states = states[:, ::2]  # a gate follows the query of each head
        norm = getattr(attention, self.head_norm.format(part), None)
        return states if norm is None else norm(states)

    def rotate(self, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Queries or keys (B, H, S, D) at their rotary positions, (cos, sin) (B or 1, S, ...); or (axes, B or 1, S, D) where
        layers mix the axes themselves (Qwen2-VL and Qwen2.5-VL in transformers 5.16)."""
        modeling = modeling_of(self.layers[self.attending[0]])
        if cos.dim() == 4:
            sections = self.config.rope_parameters["mrope_section"]
            return modeling.apply_multimodal_rotary_pos_emb(states[:, :1], states, cos, sin, sections)[1]
        return modeling.apply_rotary_pos_emb(states[:, :1], states, cos, sin)[1]

    def at_places(self, queries: Tensor, places: Any) -> Tensor:
        """Queries (B, H, S, D) times what grows with their positions (B or 1, S), where a model has such a factor (Ministral 3:
        1 + beta * log(1 + floor(position / trained length)))."""
        factor = getattr(modeling_of(self.layers[self.attending[0]]), "get_llama_4_attn_scale", None)
        if factor is None:
            return queries
        rope = self.config.rope_parameters
        return queries * factor(places, rope["llama_4_scaling_beta"], rope["original_max_position_embeddings"]).to(queries)
