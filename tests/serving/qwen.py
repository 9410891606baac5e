"""A small Qwen-VL of random weights inside vLLM, against transformers; prints what test_families.py looks at, as JSON.

An engine of its own in a process of its own: vLLM builds one model per process.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
from vllm import LLM, SamplingParams

from ptp.testing import FAMILIES
from ptp.testing.family import Scale
from ptp.testing.small import photo, sharpen

TEXT = dict(
    hidden_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=32, intermediate_size=256
)
SCALE = Scale(hidden=64, layers=4, heads=2, mlp=128, real=False, text=TEXT)
SETTINGS = [
    None,
    {"keep_ratio": 0.5, "alpha": 0, "window": 84},
    {"keep_ratio": 0.3, "window": 84},
    {"keep_ratio": 0.15},
    {"keep_ratio": 0.3, "method": "visionzip"},
    {"keep_ratio": 0.3, "method": "prumerge", "window": 84},
]
NAME = sys.argv[1]
VIDEO, SIDE = {"qwen2.5-vl": ("Qwen2VLVideoProcessor", 28), "qwen3-vl": ("Qwen3VLVideoProcessor", 32)}[NAME]
SIZES = [(columns * SIDE, rows * SIDE) for columns, rows in ((7, 5), (4, 8), (6, 6))]
"""Whole numbers of visual tokens: vLLM resizes by torchvision, and transformers here by PIL, which round differently."""
QUESTIONS = ("What is on the red circle?", "How many yellow signs are there?")


def save(folder: Path):
    family = FAMILIES[NAME]
    model = sharpen(family.build(SCALE))
    if NAME == "qwen3-vl":  # transformers knows, and vLLM is told by the published configurations
        model.config.text_config.rope_parameters["mrope_interleaved"] = True
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    processor = family.processor(SCALE)
    processor.chat_template = family.chat_template
    model.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(family.chat_template)
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": type(processor).__name__}))
    video = {"video_processor_type": VIDEO, "size": {"shortest_edge": 3136, "longest_edge": 40000}}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video))
    return family, model, processor


def main() -> None:
    from ptp import METHODS

    def pruner_of(settings):
        own = dict(settings)
        return METHODS[own.pop("method", "pyramid")](**own)

    with tempfile.TemporaryDirectory() as name:
        family, model, processor = save(Path(name))
        engine = LLM(
            name, dtype="float32", max_model_len=1024, block_size=32, max_num_batched_tokens=48, max_num_seqs=32,
            enforce_eager=True, limit_mm_per_prompt={"image": 2, "video": 0}, seed=0,
        )  # fmt: skip
    cases = [((photo(n, size),), asked, own) for n, size in enumerate(SIZES) for asked in QUESTIONS for own in SETTINGS]
    cases += [((photo(0, SIZES[0]), photo(1, SIZES[1])), QUESTIONS[0], own) for own in SETTINGS]
    requests, wanted = [], []
    for pictures, asked, own in cases:
        text = f"<|im_start|>user\n{family.image * len(pictures)}\n{asked}<|im_end|>\n<|im_start|>assistant\n"
        request = {"prompt": text, "multi_modal_data": {"image": list(pictures)}}
        requests.append(request if own is None else request | {"mm_processor_kwargs": {"ptp": own}})
        inputs = family.encode(processor, [(pictures, asked)])
        with torch.no_grad():
            if own is None:
                logits = model(**inputs).logits[0, -1]
            else:
                with pruner_of(own)(model, processor):
                    logits = model(**inputs).logits[0, -1]
        wanted.append(logits.log_softmax(-1))
    sampling = SamplingParams(max_tokens=3, temperature=0, logprobs=5, ignore_eos=True)

    def differences() -> list[float]:
        outputs = engine.generate(requests, sampling, use_tqdm=False)
        first = [output.outputs[0].logprobs[0] for output in outputs]
        return [max(abs(e.logprob - float(rows[t])) for t, e in step.items()) for step, rows in zip(first, wanted, strict=True)]

    told = {"cases": len(cases), "pruned": [own is not None for *_, own in cases], "first": differences()}
    told["again"] = differences()
    from ptp.serving.vllm import model as plugin

    engine.reset_prefix_cache()
    right = plugin.split_shifts
    plugin.split_shifts = lambda *given: (right(*given)[0], None)
    told["wrong"] = differences()
    print(json.dumps(told))


if __name__ == "__main__":
    sys.exit(main())
