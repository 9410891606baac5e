"""What a request asks for: `{"method": "pyramid", "keep_ratio": 0.25, "alpha": 0, ...}`, as a `Pruner`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, get_args

import torch
from torch import Tensor

from ...adapters import Layout, Tile
from ...errors import UnsupportedModelError
from ...methods.parsing import parse_variant, settings_of
from ...pruner import Pruner, Stage
from ...runtime import Picture
from ...runtime.check import check_selection
from ...runtime.picture import VisionSignal

KEY = "ptp"
"""The key of `mm_processor_kwargs` that holds them."""
ENGINE_ONLY = ("reuse_mib",)
"""Settings of the engine: a request cannot change them."""
REUSE_MIB = 256
"""Default of `reuse_mib`: how much unpruned features and scores may take on the device, in MiB; 0 remembers nothing."""
LAYERS = 24
"""A depth to ask methods at which layers they prune: those that prune before the first say so at any depth."""


@dataclass(frozen=True)
class Settings:
    """A method and how much it keeps.

    Attributes:
        text: The same for the same choice, however it was written: what goes into hashes, and to the workers.
        pruner: The method. needs_words: Whether it cannot choose where the user has written nothing.
    """

    text: str
    pruner: Pruner
    needs_words: bool

    @property
    def stage(self) -> Stage:
        """Where tokens leave: before the language model."""
        return Stage(0, self.pruner.keep_ratio)

    @property
    def reads_words(self) -> bool:
        """Whether what stays depends on the user's words."""
        return self.pruner.reads(LAYERS).probe is not None


def resolve(given: Any) -> Settings | None:
    """Read the settings of a request, merged over those of the engine; None where all tokens stay.

    Raises:
        ValueError: they are no settings, or of a method that decides inside the language model; the message says what to write.
    """
    if given is None:
        return None
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise ValueError(
            f'{KEY} must be an object of settings, got {given!r}. Write {{"method": "pyramid", "keep_ratio": 0.25}}.'
        )
    own = {name: value for name, value in given.items() if name not in ENGINE_ONLY}
    reuse_bytes(given)
    try:
        text = json.dumps(own, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{KEY} must hold plain values, got {own!r}. Write numbers, names, true, false or null.") from error
    settings = _resolve(text)
    return None if settings.pruner.keep_ratio == 1 else settings


def reuse_bytes(given: Any) -> int:
    """How many bytes of features and scores may be remembered, by the engine's settings; ValueError where it is no size."""
    mib = given.get("reuse_mib", REUSE_MIB) if isinstance(given, Mapping) else REUSE_MIB
    if isinstance(mib, bool) or not isinstance(mib, int | float) or not 0 <= mib < float("inf"):
        raise ValueError(f"reuse_mib must be a number of MiB from 0 up, got {mib!r}. 0 remembers no pictures; try {REUSE_MIB}.")
    return int(mib * 2**20)


@lru_cache(maxsize=256)
def _resolve(text: str) -> Settings:
    given = json.loads(text)
    method, keep_ratio = given.pop("method", "pyramid"), given.pop("keep_ratio", 1.0)
    if not isinstance(method, str) or ":" in method:
        raise ValueError(f"{KEY}: method must be a name, got {method!r}. `ptp methods` lists them.")
    parse_variant(method)
    known = settings_of(method)
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(
            f"{KEY}: settings of {method} are keep_ratio, {', '.join(known)}, got {', '.join(unknown)}. Leave out what it "
            "does not have."
        )
    words = [method, *(f"{name}={_word(name, value, known[name])}" for name, value in given.items())]
    if isinstance(keep_ratio, bool):
        raise ValueError(f"keep_ratio must be in (0, 1], got {keep_ratio!r}. It is the share of visual tokens kept.")
    pruner = parse_variant(":".join(words)).pruner(keep_ratio)
    return Settings(canonical(method, pruner), pruner, _check(method, pruner))


def canonical(method: str, pruner: Pruner) -> str:
    """All settings of a method as JSON, defaults too."""
    values = {field.name: getattr(pruner, field.name) for field in fields(pruner)}
    return json.dumps({"method": method} | values, sort_keys=True)


@lru_cache(maxsize=256)
def from_canonical(text: str) -> Settings:
    """The settings that `canonical` wrote."""
    return _resolve(json.dumps({name: value for name, value in json.loads(text).items() if name != "record_scores"}))


def _word(name: str, value: Any, kind: Any) -> str:
    """A JSON value of a declared type as `parse_variant` reads it."""
    if value is None or isinstance(value, bool):
        return "none" if value is None else str(value).lower()
    several = tuple[int, ...] in (kind, *get_args(kind))
    if isinstance(value, list) and several and all(type(part) is int for part in value):
        return "+".join(map(str, value))
    if (isinstance(value, str) and not set(value) & {":", "="}) or type(value) in (int, float):
        return str(value)
    raise ValueError(f"{KEY}: {name} must be a plain value, got {value!r}. Write a number, a name, true, false or null.")


# -- whether the method decides before the language model ------------------------------------------------------------


class Before:
    """`Readings` of a method that decides before the language model, whose layers nobody has run yet."""

    def __init__(self, states: Tensor, words: Tensor) -> None:
        self._states, self._words = states, words

    def states(self) -> Tensor:
        """(N, D) the features, as they go into the language model."""
        return self._states

    def text_states(self) -> Tensor:
        """(R, D) the embeddings of the user's words."""
        return self._words

    inputs, text_inputs = states, text_states

    def normed(self, states: Tensor) -> Tensor:
        raise UnsupportedModelError(_inside("reads the norm behind its last layer"))

    def keys(self) -> Tensor:
        raise UnsupportedModelError(_inside("reads keys of its layers"))

    def text_keys(self) -> Tensor:
        raise UnsupportedModelError(_inside("reads keys of its layers"))

    def text_attention(self, rows: Tensor | None) -> Tensor:
        raise UnsupportedModelError(_inside("reads what text attends to"))


def _inside(what: str) -> str:
    return (
        f"it {what}, inside the language model, which vLLM runs after its prompts are made. Choose one that decides before: "
        'pyramid with prune_layer 0 (and relevance "similarity"), visionzip, fastervlm, divprune, cdpruner and others.'
    )


def _check(method: str, pruner: Pruner) -> bool:
    """Try a method on a small picture: whether it decides before the language model. Returns whether it needs words there.

    Raises:
        ValueError: it does not.
    """
    stages, probe = pruner.stages(LAYERS), pruner.reads(LAYERS).probe
    if [stage.layer for stage in stages] != [0]:
        layers = ", ".join(str(stage.layer) for stage in stages)
        raise ValueError(f"{method} cannot be served: {_inside(f'drops tokens at layer {layers}')}")
    if probe is not None and probe.rows != "instruction":
        raise ValueError(f"{method} cannot be served: {_inside(f'reads {probe.rows} text of the prompt')}")
    for words in (3, 0):
        try:
            picture = small_picture(pruner, words)
            check_selection(pruner.select(picture, stages[0]), picture, stages[0].budget(picture.tokens), pruner)
        except Exception as error:
            if words:
                raise ValueError(f"{method} cannot be served: {error}") from error
            return True
        if probe is None:
            break
    return False


def small_picture(pruner: Pruner, words: int) -> Picture:
    """A picture of noise: 2 tiles and a thumbnail, 3 x 3 visual tokens each, of 6 x 6 patches; and so many words."""
    noise = torch.Generator().manual_seed(0)
    tiles = tuple(Tile(3, 3, box) for box in ((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0)))
    layout = Layout(tiles, (2, 1), thumbnail=True)
    tokens, patches = layout.tokens, 36
    signal = VisionSignal(
        torch.rand(tokens, generator=noise), torch.rand(patches, generator=noise), torch.randn(tokens, 6, generator=noise)
    )
    signals = tuple(signal for _ in pruner.reads(LAYERS).vision)
    pixels = tuple(torch.rand(3, 4, 4, generator=noise) for _ in tiles)
    readings = Before(torch.randn(tokens, 8, generator=noise), torch.randn(words, 8, generator=noise))
    return Picture(layout, torch.arange(tokens), signals, torch.randn(3, 6, generator=noise), pixels, readings)
