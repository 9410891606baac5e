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
        self.refuse()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        self.refuse()

    @staticmethod
    def refuse() -> NoReturn:
        """Say that what carries a hook cannot be copied."""
        raise ValueError(
            "A model that is being pruned cannot be copied or pickled: the copy would run the original's encoder. Leave the "
            "pruner's context (or call remove() on its handle) first, and attach a pruner to the copy. state_dict() and "
            "save_pretrained() work as they are."
        )


class Shadow:
    """A method of one module object, replaced until `remove`."""

    def __init__(self, module: nn.Module, name: str, function: Callable[..., Any]) -> None:
        self._module, self._name, self._before, self._hook = module, name, vars(module).get(name), Hook(function)
        setattr(module, name, self._hook)

    def remove(self) -> None:
        """Put back what was there; what somebody else has put over it stays."""
        if vars(self._module).get(self._name) is not self._hook:
            return
        if self._before is None:
            delattr(self._module, self._name)
        else:
            setattr(self._module, self._name, self._before)
