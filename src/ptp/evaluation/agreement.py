"""How far a pruned model says what the unpruned one says: no right answers needed.

The pruned model is led along the unpruned model's greedy answer, token by token as `generate` decodes, and at each of them its
next-token distribution is compared. Where its own choice was the same every time, its greedy answer is the same.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList


@dataclass(frozen=True)
class Steps:
    """An answer of L tokens to one prompt, and what the model thought at each.

    Attributes:
        ids: (L,) int64, the answer, its end token included where it ended by itself.
        chosen: (L,) int64, what the model itself would have said next, greedily, after those before.
        logits: (L, vocabulary) float32 of the next token, as the model puts them out.
        first_token: Seconds until the first token was known.
    """

    ids: Tensor
    chosen: Tensor
    logits: Tensor
    first_token: float = 0.0


class _Along(LogitsProcessor):
    """Notes what greedy decoding would choose, and lets it choose what `ids` says instead (None: what it likes)."""

    def __init__(self, start: int, ids: Tensor | None) -> None:
        self.start, self.ids, self.chosen = start, ids, list[Tensor]()
        self.began, self.first_token = time.perf_counter(), 0.0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.chosen.append(scores.argmax(dim=-1)[0])
        if len(self.chosen) == 1:
            int(self.chosen[0])  # a device may still be at work on it
            self.first_token = time.perf_counter() - self.began
        if self.ids is None:
            return scores
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.ids[input_ids.shape[1] - self.start]] = 0.0
        return forced


@torch.inference_mode()
def answer(model: Any, inputs: dict[str, Any], max_new_tokens: int, along: Tensor | None = None) -> Steps:
    """The model's greedy answer to one prompt, step by step.

    Args:
        inputs: What `generate` takes, one row.
        max_new_tokens: Its longest answer.
        along: (L,) int64, an answer to lead it along instead (teacher forcing): every step sees these tokens before it.

    Raises:
        ValueError: `inputs` have more than one row.
    """
    if len(inputs["input_ids"]) != 1:
        raise ValueError(f"An answer is led along for one prompt at a time, got {len(inputs['input_ids'])}. Ask one by one.")
    start = inputs["input_ids"].shape[1]
    steps = _Along(start, along)
    out = model.generate(
        **inputs,
        max_new_tokens=max_new_tokens if along is None else len(along),
        do_sample=False,
        num_beams=1,
        output_logits=True,
        return_dict_in_generate=True,
        logits_processor=LogitsProcessorList([steps]),
    )
    return Steps(out.sequences[0, start:], torch.stack(steps.chosen), torch.cat(out.logits).float(), steps.first_token)


def same_answer(full: Steps, pruned: Steps) -> bool:
    """Whether two models answer the same, greedily.

    Args:
        pruned: Led along `full`'s answer.
    """
    return torch.equal(pruned.chosen, full.chosen)


def divergence(full: Tensor, pruned: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the pruned model's next-token distribution from the unpruned one's, KL(full || pruned).

    Args:
        full, pruned: (L, vocabulary) logits after the same tokens.

    Returns:
        (L,) float32 in nats, at least 0; 0 where both are the same.
    """
    p, q = full.float().log_softmax(dim=-1), pruned.float().log_softmax(dim=-1)
    terms = torch.where(p > -torch.inf, p.exp() * (p - q), 0.0)  # what is impossible costs nothing
    return terms.sum(dim=-1).clamp_min(0)


@dataclass(frozen=True)
class Agreement:
    """How a pruned answer goes with the unpruned one.

    Attributes:
        same: Whether the greedy answers are the same, token by token.
        kl: Mean divergence along the unpruned answer, in nats per token.
    """

    same: bool
    kl: float


def agreement(full: Steps, pruned: Steps) -> Agreement:
    """Both measures at once. Arguments as `same_answer`."""
    return Agreement(same_answer(full, pruned), divergence(full.logits, pruned.logits).mean().item())
