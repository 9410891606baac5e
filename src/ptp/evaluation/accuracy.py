"""Accuracy of a model per task, method and keep ratio, on the same fresh pictures for all of them."""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..methods.parsing import Variant
from ..runtime import ImageTrace
from ..tiny.tasks import Example
from .baselines import BLANK, DOWNSAMPLE, FULL, downsampled_tiles
from .encoding import EncoderReader
from .samples import Sample, evidence_tokens

MAX_NEW_TOKENS = 4


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


class Examiner:
    """Asks one model about batches of samples. Each picture is encoded once, however much is asked about it.

    Args:
        contenders: All that will be asked of `fill`: the encoder is read for all of them.
    """

    def __init__(self, model: Any, processor: Any, batches: Sequence[Sequence[Sample]], contenders: Sequence[Variant]) -> None:
        self.model, self.processor, self.batches = model, processor, batches
        pruners = [contender.pruner(0.5) for contender in contenders if contender.method != DOWNSAMPLE]
        self._reader = EncoderReader.of(pruners)
        self._encoded: dict[Any, Any] = {}
        self._prompts: dict[Any, dict[str, Tensor]] = {}

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
        pruner = contender.pruner(told) if contender and contender.method != DOWNSAMPLE else None
        results: dict[int, tuple[bool, str, float | None]] = {}
        for index, batch in enumerate(self.batches):
            tiles = None
            if cell.method == DOWNSAMPLE:
                columns, rows = batch[0].scene.grid
                tiles = downsampled_tiles(cell.keep_ratio, columns * rows, self.model.config.image_seq_length)
            prompt = self._prompt(index, cell.task, tiles)
            encoded = self._encode(index, tiles, cell.method == BLANK)
            started = time.perf_counter()
            with pruner(self.model, self.processor) if pruner else contextlib.nullcontext() as trace:
                ids = self.model.generate(
                    **prompt, mm_encoder_outputs={"image": encoded}, max_new_tokens=MAX_NEW_TOKENS, do_sample=False
                )
            cell.seconds += time.perf_counter() - started
            texts = self.processor.batch_decode(ids[:, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
            kept: list[ImageTrace | None] = list(trace.images) if trace else [None] * len(batch)
            cell.kept += trace.visual_tokens[1] if trace else self._visual_tokens(prompt)
            cell.structure += trace.structure_tokens[1] if trace else 0
            cell.average += trace.average_tokens if trace else self._visual_tokens(prompt)
            cell.total += self._visual_tokens(self._prompt(index, cell.task))
            for sample, text, image in zip(batch, texts, kept, strict=True):
                example = sample.examples[cell.task]
                share = self._evidence_kept(sample, example, image)
                results[sample.number] = (text.strip() == example.answer, example.answer, share)
            advance(len(batch))
        in_order = [result for _, result in sorted(results.items())]
        cell.right, cell.answers = [right for right, _, _ in in_order], [answer for _, answer, _ in in_order]
        shares = [share for _, _, share in in_order if share is not None]
        cell.evidence = sum(shares) / len(shares) if shares else None

    def _visual_tokens(self, prompt: dict[str, Tensor]) -> int:
        return int((prompt["input_ids"] == self.model.config.image_token_id).sum())

    def _evidence_kept(self, sample: Sample, example: Example, image: ImageTrace | None) -> float | None:
        columns, rows = sample.scene.grid
        if not example.evidence or image is None or len(image.sizes) != columns * rows + 1:
            return None  # a model of other tiles than the picture was drawn for: where the evidence is, is not known
        tokens = evidence_tokens(example.evidence, sample.scene.grid, self.model.config.image_seq_length)
        return len(tokens & set(image.kept.tolist())) / len(tokens)

    def _prompt(self, index: int, task: str, tiles: int | None = None) -> dict[str, Tensor]:
        """Token ids and mask of one question about each picture of a batch, cut into at most `tiles` tiles."""
        if (index, task, tiles) not in self._prompts:
            turns = [
                [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image", "image": sample.scene.image},
                            {"type": "text", "text": sample.examples[task].question},
                        ],
                    }
                ]
                for sample in self.batches[index]
            ]
            options: dict[str, Any] = {"return_tensors": "pt", "padding": True}
            if tiles is not None:
                options["max_patches"] = tiles
            inputs = self.processor.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=True, return_dict=True, processor_kwargs=options
            )
            names = ("input_ids", "attention_mask")
            self._prompts[index, task, tiles] = {name: inputs[name].to(self.model.device) for name in names}
        return self._prompts[index, task, tiles]

    def _encode(self, index: int, tiles: int | None, blank: bool) -> Any:
        """What the vision encoder makes of a batch, with the signals of all methods; of fewer tiles, or of nothing."""
        key = (index, tiles, blank)
        if key not in self._encoded:
            pictures = [sample.scene.image for sample in self.batches[index]]
            if blank:
                pictures = [Image.new("RGB", picture.size, (128, 128, 128)) for picture in pictures]
            options = {} if tiles is None else {"max_patches": tiles}
            pixels = self.processor.image_processor(pictures, return_tensors="pt", **options)["pixel_values"]
            with self._reader(self.model, self.processor):
                encoded = self.model.get_image_features(pixels.to(self.model.device, self.model.dtype), return_dict=True)
            encoded.last_hidden_state = None  # only the projected tokens and the signals are used again
            self._encoded[key] = encoded
        return self._encoded[key]
