"""Who answers: the model in transformers, or vLLM with the plugin."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig

from ... import __version__
from ...errors import UnsupportedModelError
from ...loader import load, load_processor
from ...pruner import Pruner
from ...tiny import WEIGHTS
from ..vllm.settings import KEY, resolve
from .job import Job

BATCH_SIZE = 8
"""Rows that go through a model in transformers together, where nobody says otherwise."""
NEEDED = {"transformers": ("torch", "transformers"), "vllm": ("torch", "transformers", "vllm")}
"""Packages whose releases may change an answer, by engine."""
Asked = tuple[Sequence[Image.Image], str]
"""Pictures and a question about them."""


@dataclass(frozen=True)
class Answered:
    """An answer, and the visual tokens of its pictures, (before, after)."""

    text: str
    visual_tokens: tuple[int, int]


Outcome = tuple[list[int], list[Answered], Exception | None]
"""Numbers of rows, and their answers; or why the only one has none."""


class Transformers:
    """A model in transformers, pruned while it answers."""

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(job.threads)
        self.job, self.together = job, job.batch_size or BATCH_SIZE
        self.model: Any
        self.model, self.processor = load(job.model, device=job.device, dtype=job.dtype)
        if getattr(self.processor, "tokenizer", None) is not None:
            self.processor.tokenizer.padding_side = "left"
        with job.pruner(self.model, self.processor):
            pass  # a method that does not fit the model is no row's fault

    @torch.inference_mode()
    def answer(self, asked: Sequence[Asked]) -> list[Answered]:
        """Answer some questions together, greedily.

        Raises:
            ValueError: one cannot be processed, or not be pruned.
        """
        inputs = self.processor.apply_chat_template(
            [[{"role": "user", "content": content(*one)}] for one in asked],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"return_tensors": "pt", "padding": True},
        )
        given = {name: self._placed(value) for name, value in inputs.items() if isinstance(value, Tensor)}
        with self.job.pruner(self.model, self.processor) as trace:
            ids = self.model.generate(**given, max_new_tokens=self.job.max_new_tokens, do_sample=False)
        texts = self.processor.batch_decode(ids[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
        before, after = [0] * len(asked), [0] * len(asked)
        for image in trace.images:
            before[image.row] += image.num_tokens
            after[image.row] += len(image.kept)
        return [Answered(text.strip(), (all_, kept)) for text, all_, kept in zip(texts, before, after, strict=True)]

    def _placed(self, value: Tensor) -> Tensor:
        return value.to(self.model.device, self.model.dtype if value.is_floating_point() else None)


class Vllm:
    """vLLM's own engine; its plugin prunes.

    Args:
        llm: One that is running; None starts one as the job has it.
    """

    def __init__(self, job: Job, llm: Any = None) -> None:
        # In the worker's own process: an engine in another one would outlive a worker that is killed.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        try:
            import vllm
        except ModuleNotFoundError as error:
            if error.name != "vllm":
                raise
            raise ValueError(
                "--engine vllm needs vLLM where the workers are. Install it with: pip install 'pyramid-token-pruning[vllm]'"
            ) from error
        path = str(WEIGHTS if job.model is None else job.model)
        self.together = job.shard_rows
        self.processor = load_processor(path)
        self.image_id = AutoConfig.from_pretrained(path).image_token_id
        self.markers = self._markers()
        self.sampling = vllm.SamplingParams(max_tokens=job.max_new_tokens, temperature=0)
        self.llm = vllm.LLM(path, **vllm_arguments(job)) if llm is None else llm

    def answer(self, asked: Sequence[Asked]) -> list[Answered]:
        """Answer some questions; the engine batches them itself. Errors as `Transformers.answer`."""
        requests = []
        for pictures, question in asked:
            turns = [{"role": "user", "content": content(pictures, question)}]
            text = self.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            requests.append({"prompt": text, "multi_modal_data": {"image": list(pictures)}})
        outputs = self.llm.generate(requests, self.sampling, use_tqdm=False)
        return [
            Answered(output.outputs[0].text.strip(), self._visual_tokens(pictures, output.prompt_token_ids))
            for (pictures, _), output in zip(asked, outputs, strict=True)
        ]

    def _visual_tokens(self, pictures: Sequence[Image.Image], ids: Sequence[int]) -> tuple[int, int]:
        sizes = [(picture.height, picture.width) for picture in pictures]
        return self._told(sizes) - self.markers * len(sizes), list(ids).count(self.image_id)

    def _told(self, sizes: Sequence[tuple[int, int]]) -> int:
        return sum(self.processor._get_num_multimodal_tokens(image_sizes=sizes)["num_image_tokens"])

    def _markers(self) -> int:
        """How many of the tokens that the processor tells of a picture open and close it: of InternVL two, of others none."""
        blank = Image.new("RGB", (64, 64))
        turns = [{"role": "user", "content": content([blank], "What?")}]
        text = self.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ids = self.processor(text=[text], images=[blank])["input_ids"][0]
        return self._told([(64, 64)]) - list(ids).count(self.image_id)


def apart_where_needed(engine: Any, asked: Sequence[tuple[int, Asked]]) -> list[Outcome]:
    """(numbers, answers, error) of rows asked together; where that goes wrong, of each alone, which tells who is to blame.

    Raises:
        UnsupportedModelError: the model cannot be pruned, whatever it is asked.
    """
    numbers = [number for number, _ in asked]
    try:
        return [(numbers, engine.answer([one for _, one in asked]), None)]
    except UnsupportedModelError:
        raise
    except Exception as error:
        if len(asked) == 1:
            return [(numbers, [], error)]
    return [part for one in asked for part in apart_where_needed(engine, [one])]


def content(pictures: Sequence[Image.Image], question: str) -> list[dict[str, Any]]:
    """A user's turn: the pictures, then the question."""
    return [*({"type": "image", "image": picture} for picture in pictures), {"type": "text", "text": question}]


def plugin_settings(method: str, pruner: Pruner) -> dict[str, Any]:
    """A method as the plugin for vLLM takes it; empty where all tokens stay.

    Raises:
        ValueError: it decides inside the language model.
    """
    values = {one.name: getattr(pruner, one.name) for one in fields(pruner) if one.name != "record_scores"}
    settings = {"method": method} | {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return settings if resolve(settings) is not None else {}


def vllm_arguments(job: Job) -> dict[str, Any]:
    """What `vllm.LLM` is given beside the model. Errors as `plugin_settings`."""
    settings = plugin_settings(job.method, job.pruner)
    made: dict[str, Any] = {"seed": 0}
    if job.dtype is not None or job.device == "cpu":
        made["dtype"] = job.dtype or "float32"  # as `ptp.load` has it
    if job.batch_size is not None:
        made["max_num_seqs"] = job.batch_size
    made |= job.engine_args
    if settings:
        made["mm_processor_kwargs"] = {**made.get("mm_processor_kwargs", {}), KEY: settings}
    return made


def versions(engine: str) -> dict[str, str]:
    """Of what decides an answer, as installed here; a package that is missing is left out."""
    found = {"ptp": __version__}
    for name in NEEDED[engine]:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def build(job: Job) -> Transformers | Vllm:
    """The engine of a job, with its model loaded.

    Raises:
        ValueError: it cannot be had here, the model cannot be loaded, the method does not fit it, or the packages here are of
            other versions than where the job was begun.
    """
    here = versions(job.engine)
    for name, wanted in job.versions.items():
        if here.get(name) != wanted:
            raise ValueError(
                f"Workers must have the versions of where the command was given, and one on {os.uname().nodename} has {name} "
                f"{here.get(name)}, not {wanted}. Install the same."
            )
    return Vllm(job) if job.engine == "vllm" else Transformers(job)
