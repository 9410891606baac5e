"""Does `ptp tune` choose as well without labels as one could with them? `python tests/tune_labels.py [MODEL ...]` says so.

For each model (none: the embedded one): pictures are drawn that it has not seen, with one question each and no answers, and
`ptp tune` chooses settings by agreement alone. Then, with labels, the most accurate settings for as many tokens are looked for
on other pictures; and both are compared on pictures that neither was chosen on. What is in --work is not done again.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console

from ptp.adapters import adapter_for
from ptp.cli.options import provenance, write_whole
from ptp.evaluation import Cell, Examiner, batches, draw_sample
from ptp.evaluation.summary import relative
from ptp.loader import load
from ptp.methods.parsing import parse_variant
from ptp.tiny import WEIGHTS
from ptp.tiny.difficulty import Difficulty, read_difficulty

UNLABELLED, CHOOSING, HELD_OUT = 71, 72, 73
"""Seeds of the three sets of pictures."""
FIRST, SECOND, BEST = 32, 160, 6
"""Labelled pictures that all settings are tried on; that the best of them are tried on after that, and how many."""


def draw_questions(folder: Path, count: int, difficulty: Difficulty) -> Path:
    """Pictures with one question each, the tasks in turn, and no answers. What is there already is not drawn again."""
    path, tasks = folder / "questions.jsonl", list(difficulty.tasks)
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        file.seek(0)
        for number in range(len(file.readlines()), count):
            sample = draw_sample(UNLABELLED, "tune", number, difficulty)
            sample.scene.image.save(folder / f"{number}.png", compress_level=1)
            question = sample.examples[tasks[number % len(tasks)]].question
            file.write(json.dumps({"image": f"{number}.png", "question": question}) + "\n")
            file.flush()
    return path


class Marks:
    """Right answers on labelled pictures of one set, over all tasks.

    Args:
        names: Methods that will be asked.
    """

    def __init__(self, model: Any, processor: Any, names: list[str], seed: int, split: str, count: int, difficulty: Difficulty):
        drawn = batches(draw_sample(seed, split, number, difficulty) for number in range(count))
        self.variants = {name: parse_variant(name) for name in names}
        self.examiner = Examiner(model, processor, drawn, list(self.variants.values()))
        self.tasks = difficulty.tasks

    def of(self, name: str | None, keep_ratio: float = 1.0) -> np.ndarray:
        """(pictures,) the share of right answers about each; None is the unpruned model."""
        right = []
        for task in self.tasks:
            cell = Cell(task, name or "full", keep_ratio)
            self.examiner.fill(cell, self.variants[name] if name else None)
            right.append(cell.right)
        return np.array(right, dtype=float).mean(axis=0)


def _folder(work: Path, model: str | None) -> Path:
    return work / ("ptp-tiny" if model is None else "-".join(Path(model).resolve().parts[-2:]))


def compare(model: str | None, work: Path, pictures: int, held_out: int, max_change: float, threads: int) -> dict[str, Any]:
    """Everything for one model."""
    difficulty = read_difficulty(WEIGHTS if model is None else Path(model))
    folder = _folder(work, model)
    data, out = draw_questions(folder / "data", pictures, difficulty), folder / "tuned.json"
    command = [sys.executable, "-m", "ptp", "tune", "--data", str(data), "--out", str(out), "--max-change", str(max_change)]
    command += ["--threads", str(threads), *(["--model", model] if model else [])]
    started = time.perf_counter()
    clock = folder / "seconds.txt"
    before = float(clock.read_text()) if clock.exists() else 0.0
    try:
        if not out.exists():
            subprocess.run(command, check=True)
    finally:
        if not out.exists() or time.perf_counter() - started > 1:
            clock.write_text(str(before + time.perf_counter() - started))
    tuned = json.loads(out.read_text())
    chosen = tuned["pruner"]
    loaded, processor = load(model)
    layers = len(adapter_for(loaded).layers)
    names = [key.rsplit(" @ ", 1)[0] for key in tuned["settings"]["arms"] if key.endswith(f" @ {chosen['share']:g}")]
    told = {name: parse_variant(name).matched_ratio(chosen["share"], layers) for name in names}
    marks = Marks(loaded, processor, names, CHOOSING, "tune", FIRST, difficulty)
    first = {name: marks.of(name, told[name]).mean() for name in names}
    ahead = sorted(names, key=lambda name: -first[name])[:BEST]
    marks = Marks(loaded, processor, ahead, CHOOSING, "tune", SECOND, difficulty)
    second = {name: marks.of(name, told[name]).mean() for name in ahead}
    by_labels = max(ahead, key=lambda name: second[name])
    marks = Marks(loaded, processor, list({chosen["name"], by_labels}), HELD_OUT, "report", held_out, difficulty)
    full, ours, theirs = marks.of(None), marks.of(chosen["name"], told[chosen["name"]]), marks.of(by_labels, told[by_labels])
    ratio, low, high = relative(ours, theirs)
    return {
        "model": tuned["model"],
        "chosen by agreement": chosen["name"],
        "share": chosen["share"],
        "keep_ratio": chosen["keep_ratio"],
        "proven": tuned["proven"],
        "best by labels": by_labels,
        "accuracy, all tokens": full.mean(),
        "accuracy, by agreement": ours.mean(),
        "accuracy, by labels": theirs.mean(),
        "difference in points": 100 * (ours.mean() - theirs.mean()),
        "relative": [ratio, low, high],
        "held-out answers": held_out * len(difficulty.tasks),
        "settings tried with labels": len(names),
        "seconds of ptp tune": round(float(clock.read_text())),
        "signals": {one["name"]: one["verdict"] for one in tuned["signals"]},
        "command": " ".join(["ptp", *command[3:]]).replace(str(folder), "."),
    }


def main(
    models: Annotated[list[str] | None, typer.Argument(help="Checkpoint directories; none: the embedded one.")] = None,
    work: Annotated[Path, typer.Option(help="Directory of everything in between.")] = Path("tuning"),
    pictures: Annotated[int, typer.Option(help="Pictures without labels.")] = 800,
    draw_only: Annotated[bool, typer.Option("--draw-only", help="Draw the pictures, and no more.")] = False,
    held_out: Annotated[int, typer.Option(help="Labelled pictures that both are compared on.")] = 400,
    max_change: Annotated[float, typer.Option(help="As ptp tune's.")] = 0.01,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    out: Annotated[Path | None, typer.Option(help="Write the comparison here, as JSON.")] = None,
) -> None:
    """Print, for each model, what was chosen without labels and with them, and how both do on other pictures."""
    torch.set_num_threads(threads)
    found = []
    for model in models or [None]:
        if draw_only:
            draw_questions(_folder(work, model) / "data", pictures, read_difficulty(WEIGHTS if model is None else Path(model)))
            continue
        found.append(compare(model, work, pictures, held_out, max_change, threads))
        for name, value in found[-1].items():
            Console().print(f"{name}: {value}", highlight=False, markup=False, soft_wrap=True)
    if out is not None:
        text = json.dumps({"about": provenance(), "models": found}, indent=1) + "\n"
        write_whole(out, lambda path: path.write_text(text))


if __name__ == "__main__":
    typer.run(main)
