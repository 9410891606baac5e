"""Encoding pictures once for many methods."""

from collections.abc import Iterable
from dataclasses import dataclass

from ..pruner import Pruner
from ..runtime import Reads


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
