"""A conversation about one picture, as one model input after the other: on the held KV cache where that can be."""

from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import DynamicCache

from .streaming import Loaded, Reply, fresh_cache


@dataclass
class Side:
    """One of the two conversations that run side by side, with all visual tokens or pruned.

    Attributes:
        turns: (question, answer) of those that are over.
        ids: (1, S) of the whole conversation so far, dropped tokens included; None where no cache is held.
        cache: Holds all of them but the last answer's last token.
        kinds: Inputs beside the ids that say of each token whether it is a picture's.
        deltas: What Qwen-VL and its like count positions from; they leave it in the model, where others' runs replace it.
    """

    turns: list[tuple[str, str]] = field(default_factory=list)
    ids: Tensor | None = None
    cache: DynamicCache | None = None
    deltas: Any = None
    kinds: tuple[str, ...] = ()

    def drop_cache(self) -> None:
        """Forget what was computed; the words stay."""
        self.ids = self.cache = self.deltas = None


def messages(picture: Image.Image, turns: list[tuple[str, str]], question: str | None) -> list[dict[str, Any]]:
    """The conversation as chat templates take it: the picture is in the first turn; without `question` it ends in an answer."""
    said: list[dict[str, Any]] = []
    for asked, answered in turns:
        said += [_says("user", asked), _says("assistant", answered)]
    said += [] if question is None else [_says("user", question)]
    said[0]["content"].insert(0, {"type": "image", "image": picture})
    return said


def _says(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def prepare(loaded: Loaded, side: Side, picture: Image.Image, question: str) -> tuple[dict[str, Tensor], DynamicCache, bool]:
    """Model inputs of the next question.

    Returns:
        (inputs, cache, whether the cache is the held one: then the inputs hold no picture). The held one cannot be where the
        chat template writes a later turn's history in another way than the prompt it followed; all is read anew then.
    """
    more = following(loaded, side, picture, question)
    if more is None or side.ids is None or side.cache is None:
        side.drop_cache()
        return encode(loaded, messages(picture, side.turns, question)), fresh_cache(loaded.model), False
    ids = torch.cat([side.ids, more.to(side.ids)], dim=1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs |= {name: torch.zeros_like(ids) for name in side.kinds}  # new words are no pictures
    return inputs, side.cache, True


def following(loaded: Loaded, side: Side, picture: Image.Image, question: str) -> Tensor | None:
    """(1, n) ids that the chat template writes between the last answer's words and the next one's; None if it rewrites them."""
    if side.ids is None or not side.turns:
        return None
    (*before, (asked, answered)) = side.turns
    prompt = rendered(loaded, messages(picture, before, asked)) + answered
    whole = rendered(loaded, messages(picture, side.turns, question))
    if not whole.startswith(prompt):
        return None
    tokenizer = getattr(loaded.processor, "tokenizer", loaded.processor)
    return tokenizer(whole[len(prompt) :], add_special_tokens=False, return_tensors="pt")["input_ids"]


def rendered(loaded: Loaded, said: list[dict[str, Any]]) -> str:
    """The prompt of a conversation as text, with one marker for each picture."""
    return loaded.processor.apply_chat_template(said, add_generation_prompt=True, tokenize=False)


def encode(loaded: Loaded, said: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Model inputs of a whole conversation, pictures included."""
    inputs = loaded.processor.apply_chat_template(
        said, add_generation_prompt=True, tokenize=True, return_dict=True, processor_kwargs={"return_tensors": "pt"}
    )
    return {name: value.to(loaded.model.device) for name, value in inputs.items() if isinstance(value, Tensor)}


def check_length(loaded: Loaded, inputs: dict[str, Tensor], max_new_tokens: int) -> None:
    """Raise ValueError where a prompt and its answer are longer than the model was made for."""
    text = loaded.model.config.get_text_config()
    most, needed = getattr(text, "max_position_embeddings", None), inputs["input_ids"].shape[1] + max_new_tokens
    if most is not None and needed > most:
        raise ValueError(
            f"The conversation must fit into the model's {most:,} positions, got {needed:,} with the answer. Start over."
        )


def remember(loaded: Loaded, side: Side, question: str, reply: Reply, cache: DynamicCache, inputs: dict[str, Tensor]) -> None:
    """Add a whole answer to the conversation and hold its cache."""
    assert reply.ids is not None
    ends = loaded.model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    ended = int(reply.ids[0, -1]) in ends  # the template writes the end of the turn itself
    side.turns.append((question, reply.text))
    side.ids, side.cache = reply.ids[:, :-1] if ended else reply.ids, cache
    side.deltas = reply.deltas
    side.kinds = tuple(name for name in inputs if name in ("mm_token_type_ids", "token_type_ids"))
