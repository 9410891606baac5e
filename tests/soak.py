"""Ten thousand pruned generations: does memory stay where it was? `python tests/soak.py` writes docs/results/soak.json.

Every family in turn, pictures of many sizes, several methods, pruners attached and taken off again, and every tenth time four
threads on one pruned model. The first tenth is warm-up: allocators and caches reach their size.
"""

import gc
import itertools
import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import psutil
import torch
import typer
from families import FAMILIES, encode, model_of, photo, pruner, tokenizer
from rich.progress import track

from ptp.cli.options import provenance, write_whole

METHODS = ("pyramid", "pyramid at 2", "fastv", "pyramiddrop", "visionzip", "random")
PICTURES = 12
"""Different prompts of each family."""
BLOCK = 10
"""Generations for which one pruner stays attached."""


def resident() -> float:
    """MiB of this process in memory."""
    gc.collect()
    return psutil.Process().memory_info().rss / 2**20


def prompts() -> dict[str, list]:
    """Encoded prompts of every family, with pictures of many sizes."""
    draw = random.Random(0)
    sizes = [(draw.randint(20, 320), draw.randint(20, 320)) for _ in range(PICTURES)]
    return {
        name: [encode(family, ([photo(n, size)], f"What is on sign {n}?")) for n, size in enumerate(sizes)]
        for name, family in FAMILIES.items()
    }


def block(model, inputs, name: str, together: bool) -> None:
    """One pruner attached, `BLOCK` generations, and off again."""

    def generate(number: int) -> None:
        ids = model.generate(**inputs[number % PICTURES], max_new_tokens=3, do_sample=False)
        assert ids.shape[1] == inputs[number % PICTURES]["input_ids"].shape[1] + 3
        assert trace.of_this_thread.visual_tokens[1] > 0

    with pruner(name)(model, tokenizer()) as trace:
        if together:
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(generate, range(BLOCK)))
        else:
            for number in range(BLOCK):
                generate(number)


def main(
    generations: Annotated[int, typer.Option(help="How many.")] = 10_000,
    out: Annotated[Path, typer.Option(help="Where the readings go.")] = Path("docs/results/soak.json"),
) -> None:
    """Run, read the resident memory twenty times, and fail if it moved by more than a hundredth after the warm-up."""
    torch.set_num_threads(1)
    inputs, blocks = prompts(), generations // BLOCK
    turns = itertools.product(METHODS, FAMILIES)
    readings = []
    for number, (name, family) in zip(track(range(blocks), "Generating"), itertools.cycle(turns), strict=False):
        block(model_of(FAMILIES[family]), inputs[family], name, together=number % 10 == 9)
        if (number + 1) % max(1, blocks // 20) == 0:
            readings.append({"generations": (number + 1) * BLOCK, "resident_mib": round(resident(), 1)})
    settled = [reading["resident_mib"] for reading in readings if reading["generations"] > generations // 10]
    change = settled[-1] / settled[0] - 1
    about = {**provenance(), "command": f"python tests/soak.py --generations {generations}"}
    result = {"about": about, "change_after_warm_up": round(change, 5), "readings": readings}
    write_whole(out, lambda path: path.write_text(json.dumps(result, indent=1) + "\n"))
    print(f"{generations} generations: {settled[0]:.1f} -> {settled[-1]:.1f} MiB, {100 * change:+.2f} %. Wrote {out}.")
    if abs(change) > 0.01:
        raise SystemExit("Memory moved by more than 1 %.")


if __name__ == "__main__":
    typer.run(main)
