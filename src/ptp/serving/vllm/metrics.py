"""Counters beside the engine's own, on `/metrics`. They count in the process that makes the prompts, which answers there."""

from functools import cache

from prometheus_client import Counter


@cache
def _counters() -> tuple[Counter, Counter, Counter]:
    return (
        Counter("ptp:visual_tokens", "Visual tokens of the pictures in prompts, before pruning.", ["model_name"]),
        Counter("ptp:visual_tokens_kept", "Visual tokens of the pictures in prompts that stayed.", ["model_name"]),
        Counter("ptp:pictures", "Pictures in prompts, by the method that pruned them.", ["model_name", "method"]),
    )


def count(model: str, method: str, pictures: int, seen: int, kept: int) -> None:
    """Take in one prompt with `pictures` pictures of `seen` visual tokens, of which `kept` stay.

    Args:
        method: "none" where nothing was to be pruned.
    """
    tokens, stayed, prompts = _counters()
    tokens.labels(model).inc(seen)
    stayed.labels(model).inc(kept)
    prompts.labels(model, method).inc(pictures)
