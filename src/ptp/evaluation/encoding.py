"""Encoding pictures once for many methods."""

import contextlib
import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ..pruner import Pruner
from ..runtime import Reads, Shadow


@contextlib.contextmanager
def encoded_already(model: Any, encoded: Any) -> Iterator[None]:
    """The model, with an encoder that has been asked already: whatever pictures come in, `encoded` is what it makes of them.

    Enter it before a pruner attaches. It works with every release of transformers; `mm_encoder_outputs` came in 5.18.

    Args:
        encoded: What `get_image_features` returned, under a pruner or an `EncoderReader` where the model will be pruned.
    """

    @functools.wraps(model.model.get_image_features)
    def given(*args: Any, **kwargs: Any) -> Any:
        return encoded

    shadow = Shadow(model.model, "get_image_features", given)
    try:
        yield
    finally:
        shadow.remove()


@dataclass(frozen=True, kw_only=True)
class EncoderReader(Pruner):
    """Reads the encoder for several methods while pictures are encoded under it; it prunes nothing.

    Attributes:
        pruners: Those it reads for.
    """

    pruners: tuple[Pruner, ...] = ()

    @classmethod
    def of(cls, pruners: Iterable[Pruner]) -> "EncoderReader":
        """A reader of all that `pruners` read.

        Raises:
            ValueError: their windows differ, so that no encoding does for all of them.
        """
        pruners = tuple(pruners)
        windows = {pruner.window for pruner in pruners} or {cls.window}
        if len(windows) > 1:
            raise ValueError(f"Pruners that share an encoding must have one window, got {sorted(windows)}. Give all the same.")
        return cls(pruners=pruners, window=windows.pop())

    def reads(self, vision_depth: int) -> Reads:
        wanted = dict.fromkeys(read for pruner in self.pruners for read in pruner.reads(vision_depth).vision)
        return Reads(vision=tuple(wanted))
