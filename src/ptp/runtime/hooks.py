"""What is put on a model while it is pruned, and comes off again."""

import functools
from collections.abc import Callable
from typing import Any, NoReturn

from torch import nn


class Hook:
    """A function that listens to a module, or stands in for one of its methods.

    A module that carries one can be neither copied nor pickled: the copy would call back into the original.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def __deepcopy__(self, memo: Any) -> NoReturn:
        self._refuse()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        self._refuse()

    @staticmethod
    def _refuse() -> NoReturn:
        raise ValueError(
            "A model that is being pruned cannot be copied or pickled: the copy would run the original's encoder. Leave the "
            "pruner's context (or call remove() on its handle) first, and attach a pruner to the copy. state_dict() and "
            "save_pretrained() work as they are."
        )


class Shadow:
    """A method of one module object, replaced until `remove`."""

    def __init__(self, module: nn.Module, name: str, function: Callable[..., Any]) -> None:
        self._module, self._name, self._before = module, name, vars(module).get(name)
        setattr(module, name, Hook(function))

    def remove(self) -> None:
        """Put back what was there."""
        if self._before is None:
            delattr(self._module, self._name)
        else:
            setattr(self._module, self._name, self._before)
