"""What pruning gives a server: requests per second, and time to first token. `python -m serving.bench --out FILE` in tests/.

A random model of 100 M parameters, pictures of 3,328 visual tokens, each asked about once, so that no cache helps. All
contenders run in one engine, in turn, round after round:

- unpruned;
- keep 0.25, by PyramidPruner's defaults, which read the words;
- drawn 0.25: the same encoder and as many tokens drawn at random, which costs nothing to choose;
- words, whole, and words, 0.25: prompts of words as long as the first and the second from the start; nothing is encoded.

The limit is what a request takes whose prompt is as short from the start and whose picture is encoded: the time of the short
words, and what the unpruned takes above the long ones. All times are medians over the rounds.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", HF_HUB_OFFLINE="1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")

CONTENDERS = {
    "unpruned": {},
    "keep 0.25": {"keep_ratio": 0.25},
    "drawn 0.25": {"keep_ratio": 0.25, "method": "random"},
    "words, whole": 1.0,
    "words, 0.25": 0.25,
}
QUESTION = "How many yellow signs are there? Name the color of each of the others, one by one."
TOKENS, PER_TILE = 13 * 256, 256


def write_model(folder: Path) -> None:
    """A complete checkpoint of the shape of `ptp bench --preset 100m`, with the tokenizer of the embedded model."""
    import torch
    from transformers import GenerationConfig, InternVLForConditionalGeneration

    from ptp.bench.presets import PRESETS
    from ptp.loader import save_internvl_processor
    from ptp.tiny.model import IMAGE_TOKEN, build_image_processor, build_tokenizer

    config, tokenizer, processor = PRESETS["100m"](), build_tokenizer(), build_image_processor()
    config.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    config.architectures = ["InternVLForConditionalGeneration"]
    torch.manual_seed(0)
    model = InternVLForConditionalGeneration._from_config(config, dtype=torch.float32)
    model.generation_config = GenerationConfig(eos_token_id=0, pad_token_id=0)
    model.save_pretrained(folder)
    processor.size = {"height": 448, "width": 448}
    save_internvl_processor(processor, tokenizer, PER_TILE, folder)


def prompts(engine, settings, count: int, seed: int) -> list[dict]:
    """Requests about pictures that nobody has seen before; of words only, of a share of a picture's length, where that is all
    that is given."""
    from ptp.tiny.drawing import draw_scene

    rng, tokenizer = np.random.default_rng(seed), engine.get_tokenizer()
    if isinstance(settings, float):
        words = [n for n in range(20, len(tokenizer)) if n not in tokenizer.added_tokens_decoder]
        length = len(tokenizer.encode(QUESTION)) + round(settings * TOKENS) + 10
        return [{"prompt_token_ids": rng.choice(words, length).tolist()} for _ in range(count)]
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    pictures = [draw_scene(rng, (4, 3)).image.resize((1792, 1344)) for _ in range(count)]
    return [{"prompt": text, "multi_modal_data": {"image": p}, "mm_processor_kwargs": {"ptp": settings}} for p in pictures]


def limit(times: dict[str, list[float]]) -> float:
    """Seconds of a request as short as the pruned one from the start, whose picture is encoded."""
    middle = {name: median(values) for name, values in times.items()}
    return middle["words, 0.25"] + middle["unpruned"] - middle["words, whole"]


def table(told: dict) -> list[str]:
    """What was measured, against the limit, as lines of Markdown."""
    each, firsts = told["seconds_a_request"], told["seconds_to_first_token"]
    lines = [
        "| | tokens | requests / s | over unpruned | over the limit | time to first token | over the limit |",
        "| --- " * 7 + "|",
    ]
    rows = [(name, f"{told['prompt_tokens'][name]:,}", median(each[name]), median(firsts[name])) for name in CONTENDERS]
    for name, tokens, one, first in [*rows, ("limit", "", limit(each), limit(firsts))]:
        own = name.startswith("words")  # below the limit: nothing is encoded
        ratios = ["", ""] if own else [f"{one / limit(each):.3f}", f"{first / limit(firsts):.3f}"]
        gain = f"{median(each['unpruned']) / one:.2f}x"
        lines.append(f"| {name} | {tokens} | {1 / one:.3f} | {gain} | {ratios[0]} | {first:.2f} s | {ratios[1]} |")
    return lines


def page(told: dict) -> str:
    """What was measured as a page, with what it is and where it comes from."""
    from ptp.cli.options import titled

    what = __doc__.split("\n\n", 1)[1]  # type: ignore[union-attr]
    facts = {name: told[name] for name in ("command", "date", "machine", "versions", "rounds", "requests", "new_tokens")}
    return titled("What pruning gives a server", what + "\n" + "\n".join(table(told)) + "\n", facts)


def about() -> dict:
    """Command, machine, date and versions."""
    import vllm

    from ptp.cli.options import provenance

    found = provenance()
    command = f"python -m serving.bench {' '.join(sys.argv[1:])}"
    return found | {"command": command, "versions": {"vllm": vllm.__version__} | found["versions"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=4, help="requests at a time for each contender in a round")
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--out", type=Path, help="write the figures there as JSON, and a page with the table beside")
    options = parser.parse_args()
    from vllm import LLM, SamplingParams

    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        engine = LLM(
            folder, dtype="float32", max_model_len=4096, block_size=32, max_num_batched_tokens=4096, enforce_eager=True,
            max_num_seqs=max(options.requests, 2), limit_mm_per_prompt={"image": 1, "video": 0}, seed=0,
        )  # fmt: skip
    sampling = {n: SamplingParams(max_tokens=n, temperature=0, ignore_eos=True) for n in (1, options.new_tokens)}
    each: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    firsts: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    lengths, seed = dict[str, int](), 0
    for number in range(options.rounds + 1):  # the first warms up
        for name, settings in CONTENDERS.items():
            count = options.requests if number else 1
            batch, alone = prompts(engine, settings, count, seed), prompts(engine, settings, 1, seed + 1)
            seed += 2
            start = time.perf_counter()
            outputs = engine.generate(batch, sampling[options.new_tokens], use_tqdm=False)
            middle = time.perf_counter()
            engine.generate(alone, sampling[1], use_tqdm=False)
            end = time.perf_counter()
            lengths[name] = len(outputs[0].prompt_token_ids)
            if number:
                each[name].append((middle - start) / count)
                firsts[name].append(end - middle)
                print(f"round {number}  {name:12} {each[name][-1]:6.2f} s a request  {firsts[name][-1]:6.2f} s", flush=True)
    told = {"seconds_a_request": each, "seconds_to_first_token": firsts, "prompt_tokens": lengths}
    told |= {"rounds": options.rounds, "requests": options.requests, "new_tokens": options.new_tokens} | about()
    print("\n".join(table(told)))
    if options.out:
        options.out.write_text(json.dumps(told, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(page(told))


if __name__ == "__main__":
    main()
