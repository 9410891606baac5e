"""What a thread is doing with a pruned model: calls side by side know nothing of each other."""

import contextlib
import threading
from collections.abc import Iterator

from .cache import going_on
from .encoding import EncoderRun
from .prefill import Prefill


class Running(threading.local):
    """One thread's view.

    Attributes:
        prefill: On its way through the layers; None while there is none.
        encoding: The call that encodes pictures, and what the hooks have seen of it; None while it does not run.
        guessing: Whether the model works as its own assistant (`assistant_model=model`): `generate` then keeps the pictures
            from it, and what it guesses is checked afterwards.
    """

    prefill: Prefill | None = None
    encoding: EncoderRun | None = None
    guessing: bool = False

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """A context in which other calls of the model may begin and end; after it the prefill goes on."""
        prefill, continues, self.prefill = self.prefill, going_on.now, None
        try:
            yield
        finally:
            self.prefill, going_on.now = prefill, continues
