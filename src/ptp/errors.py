"""Errors a user can meet and mend."""

from importlib.util import find_spec


class UnsupportedModelError(ValueError):
    """The model, its cache or its attention cannot be pruned exactly; the message names what can."""


def require_extra(use: str, extra: str, *modules: str) -> None:
    """Raise ValueError, naming the extra, unless the modules that `use` needs are installed."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise ValueError(f"{use} needs {' and '.join(missing)}. Install with: pip install 'pyramid-token-pruning[{extra}]'")
