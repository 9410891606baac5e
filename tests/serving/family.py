"""A small model of a family, of random weights, inside vLLM and against transformers; prints what test_families.py looks at, as
JSON.

An engine of its own in a process of its own: vLLM builds one model per process.
"""

import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor
from vllm import LLM, SamplingParams

from ptp import METHODS
from ptp.testing import FAMILIES
from ptp.testing.family import Scale
from ptp.testing.small import photo, sharpen

TEXT = dict(
    hidden_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=32, intermediate_size=256
)
SCALE = Scale(hidden=64, layers=4, heads=2, mlp=128, real=False, text=TEXT)
QUESTIONS = ("What is on the red circle?", "How many yellow signs are there?")


@dataclass(frozen=True)
class Served:
    """How a family is tried.

    Attributes:
        sizes: (width, height) of the pictures; one prompt shows the second and the first, which has more tiles.
        settings: Every question is asked under each. once: One question is asked under each.
        processor: Files of the processor, beside those that transformers writes.
        own: Whether the pixels are made by the published processor, as in vLLM, and not by that of `ptp.testing`.
        refused: Settings, and what the message says.
    """

    sizes: tuple[tuple[int, int], ...]
    settings: tuple[dict | None, ...]
    processor: dict[str, dict]
    own: bool = False
    once: tuple[dict, ...] = ()
    refused: tuple[tuple[dict, str], ...] = ()


def qwen(video: str, side: int) -> Served:
    """Whole numbers of visual tokens: vLLM resizes by torchvision, and transformers here by PIL, which round differently."""
    return Served(
        tuple((columns * side, rows * side) for columns, rows in ((7, 5), (4, 8), (6, 6))),
        (
            None,
            {"keep_ratio": 0.5, "alpha": 0, "window": 84},
            {"keep_ratio": 0.3, "window": 84},
            {"keep_ratio": 0.15},
            {"keep_ratio": 0.3, "method": "visionzip"},
            {"keep_ratio": 0.3, "method": "prumerge", "window": 84},
        ),
        {
            "video_preprocessor_config.json": {
                "video_processor_type": video,
                "size": {"shortest_edge": 3136, "longest_edge": 40000},
            }
        },
    )


TOO_DEEP = ("dart", "fastv", "pyramiddrop", "sparsevlm", "deft")
LLAVA = Served(
    ((240, 190), (100, 170), (200, 60)),  # 16 tiles, whose raster is shrunk; 6 and 4, of which padding is cut off
    (
        None,
        {"keep_ratio": 0.05, "alpha": 0.8},  # first: two pictures of unlike numbers of tiles are encoded together
        {"keep_ratio": 0.5, "alpha": 0},
        {"keep_ratio": 0.3},
        {"keep_ratio": 0.3, "scope": "tile", "region": "attention_mass", "thumbnail_keep": 0.5},
        {"keep_ratio": 0.3, "method": "visionzip"},
        {"keep_ratio": 0.3, "method": "prumerge"},
    ),
    {"video_preprocessor_config.json": {"video_processor_type": "LlavaOnevisionVideoProcessor"}},
    own=True,
    once=tuple({"keep_ratio": 0.2, "method": name} for name in METHODS if name not in TOO_DEEP),
    refused=(
        ({"keep_ratio": 0.5, "keep_structure": False}, "keep_structure must be true"),
        ({"keep_ratio": 0.5, "vision_layer": 4}, "vision_layer must be in"),
    ),
)
SERVED = {
    "qwen2.5-vl": qwen("Qwen2VLVideoProcessor", 28),
    "qwen3-vl": qwen("Qwen3VLVideoProcessor", 32),
    "llava-onevision": LLAVA,
}
NAME = sys.argv[1]
SHOWN = SERVED[NAME]
FAMILY = FAMILIES[NAME]


def save(folder: Path) -> Any:
    """The model, which is written down as it is published; and how prompts are made for it."""
    model = FAMILY.build(SCALE)
    if NAME == "llava-onevision":  # as published: more tiles than are laid out unshrunk
        pinpoints = [[60 * height, 60 * width] for height in range(1, 5) for width in range(1, 5)]
        model.config.update({"image_grid_pinpoints": pinpoints, "vision_aspect_ratio": "anyres_max_9"})
    sharpen(model)
    if NAME == "qwen3-vl":  # transformers knows, and vLLM is told by the published configurations
        model.config.text_config.rope_parameters["mrope_interleaved"] = True
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    processor = FAMILY.processor(SCALE)
    processor.chat_template = FAMILY.chat_template
    model.save_pretrained(folder)
    if NAME == "llava-onevision":  # the published files, and so vLLM, have a name more in the encoder's
        weights = load_file(folder / "model.safetensors")
        tower = "vision_tower."
        renamed = {name.replace(tower, f"{tower}vision_model."): weight for name, weight in weights.items()}
        save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    processor.tokenizer.save_pretrained(folder)
    about = {"processor_class": type(processor).__name__}
    if NAME == "llava-onevision":
        about = {"processor_class": "LlavaOnevisionProcessor", "num_image_tokens": 16}
        about |= {"vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_9"}
        processor.image_processor.image_grid_pinpoints = pinpoints
    processor.image_processor.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(FAMILY.chat_template)
    for name, values in {"processor_config.json": about, **SHOWN.processor}.items():
        (folder / name).write_text(json.dumps(values))
    return model, AutoProcessor.from_pretrained(folder) if SHOWN.own else processor


def asked_with(pictures: int, question: str) -> str:
    return f"<|im_start|>user\n{FAMILY.image * pictures}\n{question}<|im_end|>\n<|im_start|>assistant\n"


@torch.no_grad()
def expected(model, processor, pictures, question, settings) -> torch.Tensor:
    """Log-probabilities of the answer's first token in transformers."""
    inputs = processor(text=[asked_with(len(pictures), question)], images=list(pictures), return_tensors="pt")
    if settings is None:
        return model(**inputs).logits[0, -1].log_softmax(-1)
    own = dict(settings)
    with METHODS[own.pop("method", "pyramid")](**own)(model, processor):
        return model(**inputs).logits[0, -1].log_softmax(-1)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        model, processor = save(Path(name))
        engine = LLM(
            name, dtype="float32", max_model_len=1024, block_size=32, max_num_batched_tokens=48, max_num_seqs=32,
            enforce_eager=True, limit_mm_per_prompt={"image": 2, "video": 0}, seed=0,
        )  # fmt: skip
    photos = [photo(number, size) for number, size in enumerate(SHOWN.sizes)]
    cases = [((photos[1], photos[0]), QUESTIONS[0], own) for own in SHOWN.settings]
    cases += [((picture,), asked, own) for picture in photos for asked in QUESTIONS for own in SHOWN.settings]
    cases += [((photos[0],), QUESTIONS[0], own) for own in SHOWN.once]
    cases.sort(key=lambda case: case[2] is None)  # those that are pruned come first
    pruned = sum(own is not None for *_, own in cases)
    told: dict[str, Any] = {"cases": len(cases), "pruned": pruned}

    def request(pictures, question, settings) -> dict:
        made = {"prompt": asked_with(len(pictures), question), "multi_modal_data": {"image": list(pictures)}}
        return made if settings is None else made | {"mm_processor_kwargs": {"ptp": settings}}

    requests, wanted = [request(*case) for case in cases], [expected(model, processor, *case) for case in cases]
    sampling = SamplingParams(max_tokens=3, temperature=0, logprobs=5, ignore_eos=True)
    runs: list[int] = []

    def listen(served: Any) -> None:
        served.ptp_most = 1000  # room for two pictures at a time
        served.ptp_adapter.vision.register_forward_pre_hook(lambda *_, **__: runs.append(1), with_kwargs=True)

    def ask(name: str, count: int = len(cases)) -> None:
        """Tell how far the first `count` cases are from transformers, and how often the encoder ran; each prompt's length, and
        how much of it was in the prefix cache."""
        runs.clear()
        outputs = engine.generate(requests[:count], sampling, use_tqdm=False)
        first = [output.outputs[0].logprobs[0] for output in outputs]
        pairs = zip(first, wanted, strict=False)
        told[name] = [max(abs(each.logprob - float(rows[token])) for token, each in step.items()) for step, rows in pairs]
        told[f"{name}: runs"] = len(runs)
        told[f"{name}: prompts"] = [(len(output.prompt_token_ids), output.num_cached_tokens) for output in outputs]

    def forget() -> None:
        """All but what the plugin remembers itself."""
        engine.reset_prefix_cache()
        engine.reset_mm_cache()
        engine.llm_engine.reset_encoder_cache()

    from ptp.serving.vllm import model as plugin

    engine.apply_model(listen)
    ask("first")
    ask("again")
    forget()
    ask("remembered", pruned)
    split, places = plugin.split_shifts, plugin.text_positions
    forget()
    plugin.split_shifts = lambda *given: (split(*given)[0], None)
    ask("wrong in pictures")
    plugin.split_shifts, plugin.text_positions = split, lambda length, pictures: (torch.arange(length), 0)
    forget()
    ask("wrong in text")
    plugin.text_positions = places
    told["refused"] = []
    for settings, message in SHOWN.refused:
        try:
            engine.generate([request(photos[:1], QUESTIONS[0], settings)], sampling, use_tqdm=False)
            told["refused"].append(f"not refused: {settings}")
        except ValueError as error:
            told["refused"] += [] if message in str(error) else [str(error)]
    print(json.dumps(told))


if __name__ == "__main__":
    sys.exit(main())
