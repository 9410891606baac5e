"""Errors a user can meet and mend."""


class UnsupportedModelError(ValueError):
    """The model, its cache or its attention cannot be pruned exactly; the message names what can."""
