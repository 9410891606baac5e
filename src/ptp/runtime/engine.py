"""The hooks that prune a prefill inside a running model. Knows no method and no model family.

A forward pass goes through them in this order: `core` (what is in the prompt: `incoming`, `prefill`), the vision encoder (its
signals: `vision`), the language model (which tokens are pictures), then each decoder layer: at a stage's layer the sequence is
shortened, and every later layer gets the short mask and positions. `detach` takes everything off the model again.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import transformers
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache, PreTrainedModel

from ..errors import UnsupportedModelError
from .cache import going_on
from .compiled import refuse_compiled, uncompiled
from .deepstack import add_late_features
from .gather import take
from .hooks import Hook, Shadow
from .incoming import Incoming
from .prefill import Prefill, Setup
from .reuse import EncoderCache
from .running import Running
from .text import TextReader
from .trace import PrefillTrace, Trace
from .vision import VisionReader


class Engine:
    """Prunes every prefill of `model` while attached. It holds nothing of a call: that is in `running`, thread by thread."""

    def __init__(self, model: PreTrainedModel, setup: Setup, cache: EncoderCache | None = None) -> None:
        """
        Args:
            cache: Encoder outputs that are let go when it is detached.
        """
        self._cache = cache
        self.model, self.setup, self.adapter = model, setup, setup.adapter
        self.trace, self.running = Trace(), Running()
        self.vision = VisionReader(setup.adapter, setup.reads.vision, setup.method.window, self.running, setup.savings)
        self.text = TextReader(setup.adapter, setup.reads.probe)
        self.handles: list[RemovableHandle | Shadow] = []

    def attach(self) -> None:
        """Put the hooks on the model."""
        refuse_compiled(self.model, self.adapter.core)
        core, language, handles = self.adapter.core, self.adapter.text.model, self.handles
        _check_release(core)
        handles.append(Shadow(self.model, "init_continuous_batching", _refuse_continuous_batching))
        handles.append(Shadow(self.model, "generate", self._generating()))
        handles.extend(Shadow(module, "__getstate__", Hook.refuse) for module in (self.model, core))
        handles.append(self.model.register_forward_pre_hook(Hook(self._enter_model), with_kwargs=True))
        handles.append(core.register_forward_pre_hook(Hook(self._enter_core), with_kwargs=True))
        handles.append(core.register_forward_hook(Hook(self._leave_core), always_call=True))
        handles.append(language.register_forward_pre_hook(Hook(self._enter_language), with_kwargs=True))
        handles.append(language.register_forward_hook(Hook(self._leave_language)))
        handles.extend(self.vision.attach())
        first = 0 if self.setup.reads.inputs else self.setup.stages[0].layer
        for number, layer in enumerate(self.adapter.layers):
            if number >= first:
                handles.append(layer.register_forward_pre_hook(Hook(self._enter_layer(number)), with_kwargs=True))
            if self.adapter.late_features is not None:
                handles.append(layer.register_forward_hook(Hook(self._leave_layer(number))))
        handles.extend(self.text.attach([stage.layer for stage in self.setup.stages], lambda: self.running.prefill))

    def detach(self) -> None:
        """Remove every hook; the model is as it was."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        if self._cache is not None:
            self._cache.clear()
        self._forget()

    def _forget(self) -> None:
        prefill, self.running.prefill, going_on.now = self.running.prefill, None, False
        if prefill is not None:
            prefill.contexts.close()

    # -- the prompt ----------------------------------------------------------------------------------------------

    def _enter_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        refuse_compiled(self.model)
        if kwargs.get("labels") is not None:
            raise ValueError(
                "labels cannot be used while visual tokens are pruned: logits exist for kept tokens only. Detach first."
            )
        if isinstance(kwargs.get("logits_to_keep"), Tensor):
            raise ValueError(
                "logits_to_keep must be a number while visual tokens are pruned, got a tensor of positions. "
                "Pass how many of the last logits you want."
            )

    def _generating(self) -> Callable[..., Any]:
        """`generate`, listened to: only its arguments tell that the model works as its own assistant."""
        generate: Any = self.model.generate

        @functools.wraps(generate)
        def generating(*args: Any, **kwargs: Any) -> Any:
            before = self.running.guessing
            self.running.guessing = bool(getattr(kwargs.get("generation_config"), "is_assistant", False))
            try:
                return generate(*args, **kwargs)
            finally:
                self.running.guessing = before
                self._forget()  # what Ctrl-C has left; inside `aside` there is nothing

        return generating

    def _enter_core(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._forget()  # a call that was interrupted by Ctrl-C has left its prefill
        refuse_compiled(self.adapter.core)
        incoming = Incoming.of(args, kwargs)
        if incoming.shows_pictures(self.adapter, self.running.guessing):
            self.running.prefill = Prefill.begin(self.setup, incoming)
            self.running.prefill.contexts.enter_context(uncompiled())
        elif not incoming.seen:
            self.trace.update(PrefillTrace())
        if incoming.record is not None:
            going_on.now = True
            kwargs = kwargs | {"attention_mask": incoming.attention_mask(self.adapter, kwargs)}
        return args, kwargs

    def _leave_core(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._forget()

    # -- the language model --------------------------------------------------------------------------------------

    def _enter_language(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        prefill = self.running.prefill
        if prefill is None:
            return None
        prefill.see(self.vision.pictures(prefill))
        if self.adapter.text.window is not None and prefill.cache is None and kwargs.get("use_cache") is not False:
            kwargs = kwargs | {"past_key_values": DynamicCache()}  # the model's own would forget
        if prefill.wants_last(kwargs.get("logits_to_keep") or 0):
            kwargs = kwargs | {"logits_to_keep": 0}
        if self.adapter.late_features is None:
            return args, kwargs
        mask, features = (kwargs.get(name) for name in self.adapter.late_features)
        if mask is not None and features is not None:
            prefill.late = mask, features
        return args, kwargs | dict.fromkeys(self.adapter.late_features)

    def _enter_layer(self, number: int) -> Callable[..., Any]:
        stage = next((stage for stage in self.setup.stages if stage.layer == number), None)

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            prefill = self.running.prefill
            if prefill is None:
                return None
            hidden, remaining = args[0] if args else kwargs["hidden_states"], prefill.remaining
            prefill.cache = kwargs.get("past_key_values")  # where the caller passed none, the model has made one
            prefill.shared = kwargs.get("shared_kv_states")
            if number == 0 and self.setup.reads.inputs:
                prefill.inputs = hidden
            if stage is not None:
                embeddings, positions = kwargs["position_embeddings"], kwargs.get("position_ids")
                pictures = self.text.readable(prefill, number, hidden, embeddings, positions)
                with self.running.aside():  # a method may run the model itself
                    hidden = prefill.prune(stage, pictures, hidden)
            if not remaining.shorter:
                return None
            changed = {"attention_mask": prefill.mask(number, hidden, kwargs.get("attention_mask"))}
            others = args[1:]
            if hidden.shape[1] == remaining.places.shape[1]:  # not where the model itself goes on with the last token only
                changed |= {name: remaining.shorten(kwargs.get(name)) for name in ("position_ids", "position_embeddings")}
                others = tuple(take(each, remaining.places, dim=1) if isinstance(each, Tensor) else each for each in others)
            if args:
                return (hidden, *others), kwargs | changed
            return args, kwargs | changed | {"hidden_states": hidden}

        return hook

    def _leave_layer(self, number: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if self.running.prefill is None:
                return None
            hidden, *others = output if isinstance(output, tuple) else (output,)
            hidden = add_late_features(self.running.prefill, number, hidden)
            return (hidden, *others) if isinstance(output, tuple) else hidden

        return hook

    def _leave_language(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        prefill = self.running.prefill
        if prefill is not None:
            if prefill.last and prefill.remaining.shorter:  # the model takes what is short for its own doing
                output.last_hidden_state = output.last_hidden_state[:, -prefill.last :]
            cache = getattr(output, "past_key_values", None)
            self.trace.update(prefill.trace(cache))
            prefill.finish(cache)


def _check_release(core: nn.Module) -> None:
    """Raise UnsupportedModelError where the KV cache goes by another name: it would not be found, and nothing pruned."""
    if "past_key_values" not in inspect.signature(core.forward).parameters:
        raise UnsupportedModelError(
            f"{type(core).__name__} of transformers {transformers.__version__} takes no past_key_values, under which pruning "
            "looks for the KV cache. Install transformers 5.16 to 5.23."
        )


def _refuse_continuous_batching(*args: Any, **kwargs: Any) -> None:
    raise ValueError(
        "generate_batch (continuous batching) cannot be used while visual tokens are pruned: it takes token ids only, and "
        "pages its KV cache. Call generate with a padded batch, or detach the pruner first."
    )
