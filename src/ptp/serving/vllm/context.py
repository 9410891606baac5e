"""The engine's view of the Hugging Face processor, which must not see our settings."""

from collections.abc import Mapping
from typing import Any

from vllm.multimodal.processing import InputProcessingContext

from .settings import KEY


class HidesSettings(InputProcessingContext):
    """An `InputProcessingContext` that keeps the settings of pruning to itself."""

    def get_merged_mm_kwargs(self, kwargs: Mapping[str, object], **options: Any) -> dict[str, Any]:
        merged = super().get_merged_mm_kwargs(without_settings(kwargs), **options)
        merged.pop(KEY, None)
        return merged

    def settings(self, kwargs: Mapping[str, object]) -> Any:
        """What the engine and a request ask for: the request's over the engine's."""
        return super().get_merged_mm_kwargs(kwargs).get(KEY)


def without_settings(kwargs: Mapping[str, object]) -> dict[str, object]:
    """The keyword arguments of a request that are the processor's."""
    return {name: value for name, value in kwargs.items() if name != KEY}
