"""Accuracy of a model per task, method and keep ratio, on the same fresh pictures for all of them."""

import contextlib
import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..adapters import adapter_for
from ..adapters.internvl import InternVLAdapter
from ..conversation import reader
from ..errors import UnsupportedModelError
from ..methods.parsing import Variant
from ..pruner import Pruner
from ..runtime import ImageTrace
from ..runtime.vision import SIGNALS, resolve
from ..tiny.drawing import TILE
from ..tiny.tasks import Example
from .baselines import BLANK, DOWNSAMPLE, FULL, downsampled_size, downsampled_tiles
from .encoding import EncoderReader, encoded_already
from .samples import Sample, evidence_tokens

MAX_NEW_TOKENS = 4
BICUBIC = Image.Resampling.BICUBIC
GRAY = (128, 128, 128)


@dataclass
class Cell:
    """Results of one task, method and keep ratio.

    Attributes:
        right: Whether the answer was right, per picture, in the order of the samples' numbers.
        answers: The right answers, likewise.
        evidence: Mean share of the evidence's visual tokens kept (tiles only); None where no picture has evidence.
        kept, total: Visual tokens after and before, summed.
        average: Visual tokens averaged over the language model's layers, summed.
        structure: Line ends and tile markers after the last stage, summed.
        seconds: Time it took, encoding of the pictures not counted.
    """

    task: str
    method: str
    keep_ratio: float
    right: list[bool] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    evidence: float | None = None
    kept: int = 0
    average: float = 0.0
    total: int = 0
    structure: int = 0
    seconds: float = 0.0

    @property
    def key(self) -> tuple[str, str, float]:
        """What identifies a cell."""
        return self.task, self.method, self.keep_ratio


def plan(contenders: Sequence[Variant], keep_ratios: Sequence[float], tasks: Sequence[str]) -> list[Cell]:
    """The empty cells of an evaluation: the baselines without pruning first, then each contender at each ratio below 1."""
    columns = [(FULL, 1.0), (BLANK, 1.0), *((c.name, keep) for c in contenders for keep in keep_ratios if keep < 1)]
    return [Cell(task, name, keep) for name, keep in columns for task in tasks]


def pruner_of(contender: Variant, keep_ratio: float) -> Pruner:
    """The method at a keep ratio. Its regions of pictures that a model does not cut are the tiles that these are drawn on."""
    pruner = contender.pruner(keep_ratio)
    return pruner if "window" in contender.settings else replace(pruner, window=TILE)


@dataclass(frozen=True)
class Look:
    """How the pictures of a batch are shown: as they are, blank, or (`keep_ratio` below 1) smaller, with fewer tokens."""

    batch: int
    blank: bool = False
    keep_ratio: float = 1.0


class Examiner:
    """Asks one model about batches of samples. Each picture is encoded once, however much is asked about it.

    Args:
        contenders: All that will be asked of `fill`: the encoder is read for all of them.
    """

    def __init__(self, model: Any, processor: Any, batches: Sequence[Sequence[Sample]], contenders: Sequence[Variant]) -> None:
        self.model, self.processor, self.batches = model, processor, batches
        self.adapter = adapter_for(model, reader(model, processor))
        pruners = []
        for contender in contenders:
            if contender.method != DOWNSAMPLE:
                pruners.append(pruner_of(contender, 0.5))
                try:
                    resolve(self.adapter, pruners[-1].reads(self.adapter.vision_depth).vision)
                except UnsupportedModelError as error:
                    raise UnsupportedModelError(f"{contender.name}: {error}") from error
        self._reader = EncoderReader.of(pruners)
        self._encoded: dict[Look, Any] = {}
        self._prompts: dict[tuple[Look, str], dict[str, Any]] = {}
        self._tokens: dict[tuple[int, int], int] = {}

    @torch.inference_mode()
    def fill(
        self,
        cell: Cell,
        contender: Variant | None,
        advance: Callable[[int], None] = lambda count: None,
        ratio: float | None = None,
    ) -> None:
        """Ask every question of a cell.

        Args:
            contender: None for the baselines "full" and "blank".
            advance: Called with the number of pictures after each batch.
            ratio: What the pruner is told to keep; None is the cell's own ratio.
        """
        told = cell.keep_ratio if ratio is None else ratio
        pruner = pruner_of(contender, told) if contender and contender.method != DOWNSAMPLE else None
        results: dict[int, tuple[bool, str, float | None]] = {}
        for index, batch in enumerate(self.batches):
            look = Look(index, cell.method == BLANK, cell.keep_ratio if cell.method == DOWNSAMPLE else 1.0)
            prompt = self._prompt(look, cell.task)
            encoded = self._encode(look, cell.task)
            started = time.perf_counter()
            pruning = pruner(self.model, self.processor) if pruner else contextlib.nullcontext()
            with encoded_already(self.model, encoded), pruning as trace:
                ids = self.model.generate(**prompt, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
            cell.seconds += time.perf_counter() - started
            texts = self.processor.batch_decode(ids[:, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
            kept: list[ImageTrace | None] = list(trace.images) if trace else [None] * len(batch)
            cell.kept += trace.visual_tokens[1] if trace else self._visual_tokens(look, cell.task)
            cell.structure += trace.structure_tokens[1] if trace else 0
            cell.average += trace.average_tokens if trace else self._visual_tokens(look, cell.task)
            cell.total += self._visual_tokens(Look(index), cell.task)
            for sample, text, image in zip(batch, texts, kept, strict=True):
                example = sample.examples[cell.task]
                share = self._evidence_kept(sample, example, image)
                results[sample.number] = (text.strip() == example.answer, example.answer, share)
            advance(len(batch))
        in_order = [result for _, result in sorted(results.items())]
        cell.right, cell.answers = [right for right, _, _ in in_order], [answer for _, answer, _ in in_order]
        shares = [share for _, _, share in in_order if share is not None]
        cell.evidence = sum(shares) / len(shares) if shares else None

    def _visual_tokens(self, look: Look, task: str) -> int:
        """Visual tokens of a batch, by the model's own layout: newlines between them are none."""
        ids, vision = self._prompt(look, task)["input_ids"].cpu(), getattr(self._encode(look, task), SIGNALS)
        spans = self.adapter.locate(ids, ids == self.adapter.image_token_id, vision.about, vision.pixels)
        return sum(span.layout.tokens for span in spans)

    def _evidence_kept(self, sample: Sample, example: Example, image: ImageTrace | None) -> float | None:
        if not example.evidence or image is None:
            return None
        tokens = evidence_tokens(example.evidence, sample.scene.grid, image.layout)
        return len(tokens & set(image.kept.tolist())) / len(tokens)

    def _prompt(self, look: Look, task: str) -> dict[str, Any]:
        """What `generate` takes of one question about each picture of a batch, without their pixels."""
        if (look, task) not in self._prompts:
            inputs = self._process(look, task)
            inputs["pixel_values"] = torch.zeros(1, dtype=self.model.dtype)  # there are pictures; they have been encoded
            self._prompts[look, task] = {
                name: value.to(self.model.device) if isinstance(value, Tensor) else value for name, value in inputs.items()
            }
        return self._prompts[look, task]

    def _encode(self, look: Look, task: str) -> Any:
        """What the vision encoder makes of a batch, with the signals of all methods; `task` only gives the words around it."""
        if look not in self._encoded:
            shown = self._shown(self._process(look, task))
            with self._reader(self.model, self.processor):
                encoded = self.model.get_image_features(**shown, return_dict=True)
            for states in ("last_hidden_state", "hidden_states", "attentions"):
                if getattr(encoded, states, None) is not None:  # only the projected tokens and the signals are used again
                    setattr(encoded, states, None)
            self._encoded[look] = encoded
        return self._encoded[look]

    def _shown(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """What `get_image_features` takes of a processor's inputs, as `generate` finds it."""
        names = inspect.signature(self.adapter.core.get_image_features).parameters
        found = {name: value for name, value in inputs.items() if name in names}
        for name, value in found.items():
            if isinstance(value, Tensor):
                found[name] = value.to(self.model.device, self.model.dtype if value.is_floating_point() else None)
        return found

    def _process(self, look: Look, task: str) -> dict[str, Any]:
        """What the processor makes of one question about each picture of a batch."""
        samples = self.batches[look.batch]
        pictures, options = [sample.scene.image for sample in samples], dict[str, Any]()
        if look.keep_ratio < 1:
            if isinstance(self.adapter, InternVLAdapter):  # it cuts small pictures into as many tiles as large ones
                columns, rows = samples[0].scene.grid
                per_tile = self.adapter.columns * self.adapter.rows
                options["max_patches"] = downsampled_tiles(look.keep_ratio, columns * rows, per_tile)
            else:
                sizes = [downsampled_size(look.keep_ratio, picture.size, self._count) for picture in pictures]
                pictures = [picture.resize(size, BICUBIC) for picture, size in zip(pictures, sizes, strict=True)]
        if look.blank:
            pictures = [Image.new("RGB", picture.size, GRAY) for picture in pictures]
        questions = [sample.examples[task].question for sample in samples]
        return self._ask(pictures, questions, **options)

    def _ask(self, pictures: Sequence[Image.Image], questions: Sequence[str], **options: Any) -> dict[str, Any]:
        turns = [
            [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": question}]}]
            for picture, question in zip(pictures, questions, strict=True)
        ]
        options |= {"return_tensors": "pt", "padding": True}
        return dict(
            self.processor.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=True, return_dict=True, processor_kwargs=options
            )
        )

    def _count(self, size: tuple[int, int]) -> int:
        """Image tokens of a picture of (width, height)."""
        if size not in self._tokens:
            ids = self._ask([Image.new("RGB", size, GRAY)], [""])["input_ids"]
            self._tokens[size] = int((ids == self.adapter.image_token_id).sum())
        return self._tokens[size]
