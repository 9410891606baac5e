"""The model of `lmms-eval --model ptp`: any supported family, pruned or not. Only lmms-eval imports this."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.utils import Collator
from torch import Tensor
from tqdm import tqdm

from ... import loader
from ...adapters import adapter_for
from ...conversation import reader
from ...methods.parsing import parse_variant
from ...pruner import Pruner
from ..baselines import FULL
from .requests import Asked, generation, prompt_of, until


@dataclass
class Spent:
    """What the questions of one task took, summed.

    Attributes:
        questions: How many. tokens: Of the answers.
        before, after: Visual tokens in all and after the last stage; average: averaged over the language model's layers.
            Unpruned they are the prompt's image tokens, line ends among them where a family writes these as such.
        seconds: Of `generate`, encoding of the pictures included.
    """

    questions: int = 0
    tokens: int = 0
    before: int = 0
    after: int = 0
    average: float = 0.0
    seconds: float = 0.0


class PtpModel(lmms):  # type: ignore[misc]
    """A checkpoint of any supported family behind lmms-eval's chat interface.

    Where lmms-eval's own classes log an error of `generate` and score an empty answer, this one lets it out: a benchmark that
    was half answered has no score.

    Args:
        pretrained: Checkpoint directory or hub id; None is the embedded ptp-tiny.
        method: A method as `ptp eval --methods` has them (`pyramid:alpha=0`); "full" prunes nothing.
        keep_ratio: Share of visual tokens kept.
        device, dtype, attn_implementation: As `ptp.load` takes them. Several processes of accelerate take a GPU each.
        batch_size: Questions answered at a time; padded batches give each what it gets alone.
        system_prompt: Put before every conversation.

    Raises:
        ValueError: an unknown method, setting or argument, or a value out of its range.
        UnsupportedModelError: the model cannot be pruned exactly.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str | None = None,
        method: str = "pyramid",
        keep_ratio: float = 0.5,
        device: str | None = None,
        dtype: str | None = None,
        attn_implementation: str | None = None,
        batch_size: int | str = 1,
        system_prompt: str | None = None,
        max_batch_size: int | None = None,
        **unknown: Any,
    ) -> None:
        if unknown:
            known = "pretrained, method, keep_ratio, device, dtype, attn_implementation, batch_size, system_prompt"
            raise ValueError(f"model_args of ptp are {known}, got {', '.join(unknown)}. Leave it out.")
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ValueError(f"batch_size must be a whole number from 1 up, got {batch_size!r}. Try 1.")
        pruner = None if method == FULL else parse_variant(method, (FULL,)).pruner(float(keep_ratio))
        accelerator = Accelerator()
        if accelerator.num_processes > 1 and torch.cuda.is_available():
            device = f"cuda:{accelerator.local_process_index}"
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model, processor = loader.load(pretrained, device=device, dtype=dtype, attn_implementation=attn_implementation)
        self._set_up(model, processor, pruner, int(batch_size), system_prompt)
        self.accelerator = accelerator
        self._rank, self._world_size = accelerator.process_index, accelerator.num_processes

    @classmethod
    def of(cls, model: Any, processor: Any, batch_size: int = 1) -> "PtpModel":
        """A model that is loaded already; set `pruner` to prune it."""
        made = cls.__new__(cls)
        made._set_up(model, processor, None, batch_size, None)
        return made

    def _set_up(self, model: Any, processor: Any, pruner: Pruner | None, batch_size: int, system_prompt: str | None) -> None:
        super().__init__()
        self.model, self.processor, self.pruner, self.batch_size = model, processor, pruner, batch_size
        self.system_prompt, self.device = system_prompt, model.device
        self.adapter = adapter_for(model, reader(model, processor))
        if getattr(processor, "tokenizer", None) is not None:
            processor.tokenizer.padding_side = "left"
        self.spent: dict[str, Spent] = defaultdict(Spent)
        self.advance: Callable[[int], object] | None = None  # whoever has a bar of its own is told of every batch
        if pruner is not None:
            with pruner(model, processor):
                pass  # a method that does not fit is refused before any dataset is fetched

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answer them, in their order.

        Raises:
            ValueError: a task shows videos or sound.
        """
        # Batches share their settings of generation, and come back in the order of the requests.
        order = Collator([request.args for request in requests], lambda args: str(args[2]), lambda args: args[2], grouping=True)
        results: list[GenerationResult] = []
        with tqdm(total=len(requests), disable=self.rank != 0 or self.advance is not None, desc="Answering") as bar:
            for batch in order.get_batched(n=self.batch_size):
                asked = [self._asked(args) for args in batch]
                results += self._answer(asked, dict(batch[0][2]))
                (self.advance or bar.update)(len(batch))
        self._log()
        return order.get_original(results)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Refused: none of the suites' tasks needs it."""
        raise NotImplementedError(
            "ptp answers questions (generate_until); it does not rank given answers. Choose another task."
        )

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Refused: none of the suites' tasks needs it."""
        raise NotImplementedError("ptp answers single questions; conversations of several rounds are not built. Choose others.")

    def _asked(self, args: tuple[Any, ...]) -> Asked:
        _, to_messages, _, number, task, split = args
        return prompt_of(task, to_messages(self.task_dict[task][split][number]), self.system_prompt)

    def _answer(self, asked: Sequence[Asked], settings: dict[str, Any]) -> list[GenerationResult]:
        inputs = self._inputs(asked)
        stops = until(settings)
        pruning = self.pruner(self.model, self.processor) if self.pruner else contextlib.nullcontext()
        started = time.perf_counter()
        with torch.inference_mode(), pruning as trace:
            ids = self.model.generate(**inputs, **generation(settings))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - started
        start = inputs["input_ids"].shape[1]
        texts = self.processor.batch_decode(ids[:, start:], skip_special_tokens=True)
        pad = self.model.generation_config.pad_token_id
        counts = [int((row != pad).sum()) for row in ids[:, start:]]
        self._note(asked, counts, seconds, trace, inputs)
        prompts = inputs["attention_mask"].sum(dim=1).tolist()
        return [
            GenerationResult(_cut(text, stops).strip(), TokenCounts(input_tokens=own, output_tokens=count))
            for text, own, count in zip(texts, prompts, counts, strict=True)
        ]

    def _inputs(self, asked: Sequence[Asked]) -> dict[str, Any]:
        made = self.processor.apply_chat_template(
            [one.messages for one in asked],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"return_tensors": "pt", "padding": True},
        )
        found = {name: value for name, value in made.items() if isinstance(value, Tensor) or name != "token_type_ids"}
        for name, value in found.items():
            if isinstance(value, Tensor):
                found[name] = value.to(self.device, self.model.dtype if value.is_floating_point() else None)
        return found

    def _note(self, asked: Sequence[Asked], counts: Sequence[int], seconds: float, trace: Any, inputs: dict[str, Any]) -> None:
        """Add up what a batch took; its visual tokens by row, its time in equal parts."""
        before, after, average = [0] * len(asked), [0] * len(asked), [0.0] * len(asked)
        if trace is not None and trace.images:
            share = trace.average_tokens / max(trace.visual_tokens[1], 1)
            for image in trace.images:
                before[image.row] += image.num_tokens
                after[image.row] += len(image.kept)
                average[image.row] += share * len(image.kept)
        elif trace is None:
            before = after = (inputs["input_ids"] == self.adapter.image_token_id).sum(dim=1).tolist()
            average = [float(count) for count in after]
        for row, one in enumerate(asked):
            spent = self.spent[one.task]
            spent.questions += 1
            spent.tokens += counts[row]
            spent.before += before[row]
            spent.after += after[row]
            spent.average += average[row]
            spent.seconds += seconds / len(asked)

    def _log(self) -> None:
        """Into lmms-eval's own results: its "throughput" has visual tokens per question, before and after."""
        total = {name: sum(getattr(one, name) for one in self.spent.values()) for name in vars(Spent())}
        questions, seconds = max(total["questions"], 1), total["seconds"]
        log_metrics(
            total_gen_tokens=total["tokens"],
            total_elapsed_time=seconds,
            avg_speed=total["tokens"] / seconds if seconds else 0,
            additional_metrics={
                "visual_tokens": total["before"] / questions,
                "visual_tokens_kept": total["after"] / questions,
            },
        )


def _cut(text: str, stops: Sequence[str]) -> str:
    """A text up to the first of the strings that end it."""
    ends = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text
