"""What a thread is doing with a pruned model: calls side by side know nothing of each other."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from .cache import going_on
from .prefill import Prefill


class Running(threading.local):
    """One thread's view.

    Attributes:
        prefill: On its way through the layers; None while there is none.
        encoding: What the hooks have seen of the encoder's run; None while it does not run.
        guessing: Whether the model works as its own assistant (`assistant_model=model`): `generate` then keeps the pictures
            from it, and what it guesses is checked afterwards.
    """

    prefill: Prefill | None = None
    encoding: dict[Any, Tensor] | None = None
    guessing: bool = False

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """A context in which other calls of the model may begin and end; after it the prefill goes on."""
        prefill, continues, self.prefill = self.prefill, going_on.now, None
        try:
            yield
        finally:
            self.prefill, going_on.now = prefill, continues
