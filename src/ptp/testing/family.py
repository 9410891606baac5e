"""What describes a model family: its small and its real-size model, and its own processor. Nothing is downloaded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from ..tiny.model import CHAT_TEMPLATE, IMAGE_TOKEN, build_tokenizer

VOCABULARY = 1024
"""Rows of every model's embeddings. More than there are tokens: the markers of a new family change no other one's weights."""
FAMILIES: "dict[str, Family]" = {}
"""Families by name; `register_family` adds to them."""


@cache
def tokenizer() -> Any:
    """The embedded model's, with the markers of every registered family."""
    return build_tokenizer()


@cache
def words() -> int:
    """Tokens that are parts of words; the ids behind them are those of markers, or of none."""
    return build_tokenizer().vocab_size


def token_id(token: str) -> int:
    """The id of one token.

    Raises:
        ValueError: no registered family has it among its markers.
    """
    vocabulary = tokenizer().get_vocab()
    if token not in vocabulary:
        raise ValueError(f"{token!r} is no token. Put it among the family's markers and call register_family first.")
    return vocabulary[token]


@dataclass(frozen=True)
class Scale:
    """How large a model is.

    Attributes:
        hidden, layers, heads, mlp: Of the vision encoder.
        text: Settings of the language model.
        real: Whether tiles, patches and windows have the sizes of published checkpoints, or small ones.
    """

    hidden: int
    layers: int
    heads: int
    mlp: int
    text: dict[str, Any]
    real: bool

    def vision(self) -> dict[str, Any]:
        """In the words of most vision configurations."""
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        return dict(zip(names, (self.hidden, self.layers, self.heads, self.mlp), strict=True))

    def language(self, kind: str, **more: Any) -> dict[str, Any]:
        """The language model as one of `kind`."""
        special = {"eos_token_id": token_id("<|im_end|>"), "pad_token_id": token_id("<|endoftext|>"), "bos_token_id": None}
        sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": 32768}
        return {"model_type": kind, **sizes, **special, **self.text, **more}

    def mrope(self) -> dict[str, Any]:
        """Rotary positions along time, height and width."""
        half = self.text["head_dim"] // 2
        return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [half - 2 * (half // 3), half // 3, half // 3]}


@dataclass(frozen=True)
class Family:
    """A family's model and processor, of any scale.

    Attributes:
        name: Of the family.
        image: Its placeholder for a picture in a prompt.
        model_class: Of transformers.
        config: Makes the model's configuration of a scale.
        processor: Makes the family's own processor of a scale.
        markers: Tokens of its own that `tokenizer` must know.
        nested: Whether the processor wants a list of pictures for every prompt.
        square: Whether the processor cuts pictures to a square, which the model is not told: boxes are fractions of it.
    """

    name: str
    image: str
    model_class: type[PreTrainedModel]
    config: Callable[[Scale], Any]
    processor: Callable[[Scale], Any]
    markers: tuple[str, ...] = ()
    nested: bool = False
    square: bool = False

    def shape(self, size: tuple[int, int]) -> tuple[int, int]:
        """The (width, height) nearest to `size` at which boxes are fractions of the picture."""
        return (min(size),) * 2 if self.square else size

    @property
    def chat_template(self) -> str:
        """The embedded model's, with this family's placeholder."""
        return CHAT_TEMPLATE.replace(IMAGE_TOKEN, self.image)

    def encode(self, processor: Any, prompts: Sequence[tuple[Sequence[Image.Image], str]]) -> dict[str, Tensor]:
        """Model inputs of a left-padded batch of (pictures, question)."""
        texts = [
            f"<|im_start|>user\n{self.image * len(pictures)}\n{question}<|im_end|>\n<|im_start|>assistant\n"
            for pictures, question in prompts
        ]
        pictures = [list(own) for own, _ in prompts]
        if not any(pictures):
            return dict(processor(text=texts, padding=True, return_tensors="pt"))
        images = pictures if self.nested else [picture for own in pictures for picture in own]
        return dict(processor(text=texts, images=images, padding=True, return_tensors="pt"))

    def build(self, scale: Scale, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> Any:
        """A model with the weights that its own initialisation draws, always the same."""
        torch.manual_seed(0)
        return self.model_class._from_config(self.config(scale), dtype=dtype, attn_implementation=attention).eval()


def register_family(family: Family) -> Family:
    """Take a description of your own: its markers become tokens, and `FAMILIES` has it.

    Raises:
        ValueError: there is no room for its markers.
    """
    known = tokenizer().get_vocab()
    new = [marker for marker in family.markers if marker not in known]
    if len(known) + len(new) > VOCABULARY:
        raise ValueError(f"Markers must fit into a vocabulary of {VOCABULARY}, got {len(new)} more on {len(known)}. Use fewer.")
    tokenizer().add_tokens(new, special_tokens=True)
    FAMILIES[family.name] = family
    return family
