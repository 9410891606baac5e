"""A model asked about pictures of one's own: unpruned once, then by every method, and how far they agree."""

import inspect
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..adapters import adapter_for
from ..conversation import reader
from ..errors import UnsupportedModelError
from ..methods.parsing import Variant
from ..pruner import Pruner
from ..runtime import PrefillTrace
from ..runtime.vision import SIGNALS, resolve
from .agreement import Agreement, Steps, agreement, answer
from .baselines import FULL
from .data import Question
from .encoding import EncoderReader, encoded_already

ENCODED = 4
"""Pictures whose encoding is kept: questions about one picture usually follow each other."""
Metric = Callable[[str, Sequence[str]], float]


@dataclass(frozen=True)
class Outcome:
    """One question, one method and keep ratio.

    Attributes:
        method, keep_ratio: "full" and 1.0 is the unpruned model.
        text: The answer.
        score: How right it is, in [0, 1]; None where the right answer is not known.
        same: Whether it is the unpruned answer. kl: Mean divergence along that, nats per token.
        kept, total: Visual tokens after and before.
        average: Visual tokens averaged over the language model's layers.
        structure: Line ends and tile markers after the last stage.
        tokens: Of the unpruned answer. seconds: Prefill and that many tokens took, encoding of the pictures not counted.
    """

    method: str
    keep_ratio: float
    text: str
    score: float | None
    same: bool
    kl: float
    kept: int
    total: int
    average: float
    structure: int
    tokens: int
    seconds: float

    @property
    def key(self) -> tuple[str, float]:
        """What identifies it among those of a question."""
        return self.method, self.keep_ratio


@dataclass(frozen=True)
class Answered:
    """All that was found out about one question."""

    number: int
    text: str
    answers: tuple[str, ...]
    outcomes: tuple[Outcome, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Answered":
        """From what `to_dict` made, read back."""
        outcomes = tuple(Outcome(**outcome) for outcome in data["outcomes"])
        return cls(data["number"], data["text"], tuple(data["answers"]), outcomes)


@dataclass(frozen=True)
class Full:
    """A question, answered by the unpruned model.

    Attributes:
        prompt: What `generate` takes. encoded: What the vision encoder made of the pictures. steps: The answer.
        total: Visual tokens. seconds: Prefill and answer took, encoding of the pictures not counted.
    """

    prompt: dict[str, Any]
    encoded: Any
    steps: Steps
    total: int
    seconds: float


@dataclass(frozen=True)
class Led:
    """A pruned model, led along the unpruned answer.

    Attributes:
        agreement: How far it agrees. steps: What it thought. trace: What its prefill kept.
        seconds: As `Full.seconds`.
    """

    agreement: Agreement
    steps: Steps
    trace: PrefillTrace
    seconds: float


class Asker:
    """Asks one model about pictures, each encoded once for all methods.

    Args:
        contenders: All that will be asked: the encoder is read for all of them.
        others: Pruners that will be asked, too.

    Raises:
        UnsupportedModelError: a method reads what this model's encoder does not have.
        ValueError: the methods' windows differ.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        contenders: Sequence[Variant],
        max_new_tokens: int = 32,
        others: Sequence[Pruner] = (),
    ) -> None:
        self.model, self.processor, self.max_new_tokens = model, processor, max_new_tokens
        self.adapter = adapter_for(model, reader(model, processor))
        pruners = []
        for contender in contenders:
            pruners.append(contender.pruner(0.5))
            try:
                resolve(self.adapter, pruners[-1].reads(self.adapter.vision_depth).vision)
            except UnsupportedModelError as error:
                raise UnsupportedModelError(f"{contender.name}: {error}") from error
        self._reader = EncoderReader.of([*pruners, *others])
        self._encoded: OrderedDict[Any, Any] = OrderedDict()

    def prepare(self, question: Question) -> dict[str, Any]:
        """What the processor makes of a question.

        Raises:
            ValueError: a picture cannot be read, or not be processed.
        """
        return self._ask(question.open(), question.text)

    @torch.inference_mode()
    def ask(
        self, question: Question, inputs: dict[str, Any], pruners: dict[tuple[str, float], Pruner], metric: Metric
    ) -> Answered:
        """One question, unpruned and by every pruner.

        Args:
            inputs: What `prepare` made of it.
            pruners: By method and keep ratio.
            metric: Judges an answer where the question has right ones.
        """
        full = self.unpruned(question, inputs)
        total, text, count = full.total, self._text(full.steps), len(full.steps.ids)
        score = (lambda text: metric(text, question.answers)) if question.answers else (lambda text: None)
        found = [Outcome(FULL, 1.0, text, score(text), True, 0.0, total, total, total, 0, count, full.seconds)]
        for (method, keep_ratio), pruner in pruners.items():
            led, own = self.led(full, pruner), text
            if not led.agreement.same:
                with encoded_already(self.model, full.encoded), pruner(self.model, self.processor):
                    own = self._text(answer(self.model, full.prompt, self.max_new_tokens))
            newest, agreed = led.trace, led.agreement
            kept = newest.visual_tokens[1], total, newest.average_tokens, newest.structure_tokens[1], count, led.seconds
            found.append(Outcome(method, keep_ratio, own, score(own), agreed.same, agreed.kl, *kept))
        return Answered(question.number, question.text, question.answers, tuple(found))

    @torch.inference_mode()
    def unpruned(self, question: Question, inputs: dict[str, Any]) -> Full:
        """The unpruned model's greedy answer. Arguments as `ask`."""
        encoded, prompt = self._encode(question, inputs), self._prompt(inputs)
        total = self._visual_tokens(prompt["input_ids"], encoded)
        with encoded_already(self.model, encoded):
            started = time.perf_counter()
            steps = answer(self.model, prompt, self.max_new_tokens)
            return Full(prompt, encoded, steps, total, time.perf_counter() - started)

    @torch.inference_mode()
    def led(self, full: Full, pruner: Pruner) -> Led:
        """A pruned model, led along what the unpruned one answered."""
        with encoded_already(self.model, full.encoded), pruner(self.model, self.processor) as trace:
            started = time.perf_counter()
            steps = answer(self.model, full.prompt, self.max_new_tokens, along=full.steps.ids)
            return Led(agreement(full.steps, steps), steps, trace.newest, time.perf_counter() - started)

    @torch.inference_mode()
    def prefill(self, full: Full, inputs: dict[str, Any], pruner: Pruner) -> PrefillTrace:
        """Read a prompt about the pictures of a question that has been asked, under a pruner, and say nothing.

        Args:
            inputs: What `prepare` made of the pictures and other words.
        """
        with encoded_already(self.model, full.encoded), pruner(self.model, self.processor) as trace:
            answer(self.model, self._prompt(inputs), 1)
            return trace.newest

    def _text(self, steps: Steps) -> str:
        return self.processor.batch_decode(steps.ids[None], skip_special_tokens=True)[0].strip()

    def _visual_tokens(self, ids: Tensor, encoded: Any) -> int:
        vision, ids = getattr(encoded, SIGNALS), ids.cpu()
        spans = self.adapter.locate(ids, ids == self.adapter.image_token_id, vision.about, vision.pixels)
        return sum(span.layout.tokens for span in spans)

    def _ask(self, pictures: Sequence[Image.Image], question: str) -> dict[str, Any]:
        parts = [*({"type": "image", "image": picture} for picture in pictures), {"type": "text", "text": question}]
        return dict(
            self.processor.apply_chat_template(
                [[{"role": "user", "content": parts}]],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                processor_kwargs={"return_tensors": "pt", "padding": True},
            )
        )

    def _prompt(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """What `generate` takes, without the pixels: there are pictures, and they have been encoded."""
        shown = {**inputs, "pixel_values": torch.zeros(1, dtype=self.model.dtype)}
        return {name: value.to(self.model.device) if isinstance(value, Tensor) else value for name, value in shown.items()}

    def _encode(self, question: Question, inputs: dict[str, Any]) -> Any:
        """What the vision encoder makes of a question's pictures, with the signals of all methods."""
        key = question.pictures
        if key in self._encoded:
            self._encoded.move_to_end(key)
            return self._encoded[key]
        names = inspect.signature(self.adapter.core.get_image_features).parameters
        shown = {name: value for name, value in inputs.items() if name in names}
        for name, value in shown.items():
            if isinstance(value, Tensor):
                shown[name] = value.to(self.model.device, self.model.dtype if value.is_floating_point() else None)
        with self._reader(self.model, self.processor):
            encoded = self.model.get_image_features(**shown, return_dict=True)
        for states in ("last_hidden_state", "hidden_states", "attentions"):
            if getattr(encoded, states, None) is not None:  # only the projected tokens and the signals are used again
                setattr(encoded, states, None)
        self._encoded[key] = encoded
        if len(self._encoded) > ENCODED:
            self._encoded.popitem(last=False)
        return encoded


def pruners_of(contenders: Sequence[Variant], told: dict[tuple[str, float], float | None]) -> dict[tuple[str, float], Pruner]:
    """The pruner of every method and keep ratio that it can reach.

    Args:
        told: The ratio that each is told for each that is asked for, as `told_ratios` found.
    """
    by_name = {contender.name: contender for contender in contenders}
    return {key: by_name[key[0]].pruner(ratio) for key, ratio in told.items() if ratio is not None}
