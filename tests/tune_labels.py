"""Does `ptp tune` choose as well without labels as one could with them? `python tests/tune_labels.py [MODEL ...]` says so.

For each model (none: the embedded one): pictures are drawn that it has not seen, with one question each and no answers, and
`ptp tune` chooses settings by agreement alone. Then, with labels, the most accurate settings for as many tokens are looked for
on other pictures; and both are compared on pictures that neither was chosen on. What is in --work is not done again.
"""

import json
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console

from ptp.adapters import adapter_for
from ptp.cli.options import provenance, write_whole
from ptp.evaluation import Cell, Examiner, batches, draw_sample
from ptp.evaluation.samples import Sample
from ptp.evaluation.summary import relative
from ptp.loader import load
from ptp.methods.parsing import parse_variant
from ptp.tiny import WEIGHTS
from ptp.tiny.difficulty import Difficulty, read_difficulty

UNLABELLED, CHOOSING, HELD_OUT = 71, 72, 73
"""Seeds of the three sets of pictures."""
BEST = 6
"""Settings that are tried on more labelled pictures, after all were tried on a few."""


@dataclass(frozen=True)
class Scale:
    """How much is asked with labels: pictures for all settings, for the best of them, and for the comparison; at what shares,
    beside the chosen one."""

    first: int
    second: int
    held_out: int
    shares: tuple[float, ...]


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


_drawn: dict[Any, list[Sample]] = {}


def draw(seed: int, split: str, count: int, difficulty: Difficulty) -> list[Sample]:
    """Labelled pictures, drawn once."""
    key = seed, split, count, repr(difficulty)
    if key not in _drawn:
        _drawn[key] = [draw_sample(seed, split, number, difficulty) for number in range(count)]
    return _drawn[key]


class Marks:
    """Right answers on labelled pictures of one set, over all tasks.

    Args:
        names: Methods that will be asked.
    """

    def __init__(self, model: Any, processor: Any, names: list[str], seed: int, split: str, count: int, difficulty: Difficulty):
        drawn = batches(iter(draw(seed, split, count, difficulty)))
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


def compare(model: str | None, work: Path, pictures: int, max_change: float, threads: int, scale: Scale) -> dict[str, Any]:
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
    loaded, processor = load(model)
    proposed = {line["share"]: line["name"] for line in tuned["trade_offs"]}
    shares = [tuned["pruner"]["share"], *(share for share in scale.shares if share in proposed)]
    return {
        "model": tuned["model"],
        "seconds of ptp tune": round(float(clock.read_text())),
        "signals": {one["name"]: one["verdict"] for one in tuned["signals"]},
        "proven": tuned["proven"],
        "shares": [
            at_share(loaded, processor, difficulty, tuned, share, proposed[share], scale) for share in dict.fromkeys(shares)
        ],
        "command": " ".join(["ptp", *command[3:]]).replace(str(folder), "."),
    }


def at_share(
    model: Any, processor: Any, difficulty: Difficulty, tuned: dict[str, Any], share: float, ours: str, scale: Scale
) -> dict[str, Any]:
    """What was chosen by agreement at one share of the tokens, against the best that labels find."""
    layers = len(adapter_for(model).layers)
    names = [key.rsplit(" @ ", 1)[0] for key in tuned["settings"]["arms"] if key.endswith(f" @ {share:g}")]
    told = {name: parse_variant(name).matched_ratio(share, layers) for name in names}
    marks = Marks(model, processor, names, CHOOSING, "tune", scale.first, difficulty)
    first = {name: marks.of(name, told[name]).mean() for name in names}
    ahead = sorted(names, key=lambda name: -first[name])[:BEST]
    marks = Marks(model, processor, ahead, CHOOSING, "tune", scale.second, difficulty)
    second = {name: marks.of(name, told[name]).mean() for name in ahead}
    by_labels = max(ahead, key=lambda name: second[name])
    marks = Marks(model, processor, list(dict.fromkeys([ours, by_labels])), HELD_OUT, "report", scale.held_out, difficulty)
    full, without, with_labels = marks.of(None), marks.of(ours, told[ours]), marks.of(by_labels, told[by_labels])
    return {
        "share": share,
        "chosen by agreement": ours,
        "best by labels": by_labels,
        "settings tried with labels": len(names),
        "held-out answers": scale.held_out * len(difficulty.tasks),
        "accuracy, all tokens": full.mean(),
        "accuracy, by agreement": without.mean(),
        "accuracy, by labels": with_labels.mean(),
        "difference in points": 100 * (without.mean() - with_labels.mean()),
        "by agreement over by labels": list(relative(without, with_labels)),
    }


def main(
    models: Annotated[list[str] | None, typer.Argument(help="Checkpoint directories; none: the embedded one.")] = None,
    work: Annotated[Path, typer.Option(help="Directory of everything in between.")] = Path("tuning"),
    pictures: Annotated[int, typer.Option(help="Pictures without labels.")] = 800,
    draw_only: Annotated[bool, typer.Option("--draw-only", help="Draw the pictures, and no more.")] = False,
    shares: Annotated[str, typer.Option(help="Shares of the tokens to compare at, beside the chosen one.")] = "0.5,0.25",
    first: Annotated[int, typer.Option(help="Labelled pictures that all settings are tried on.")] = 32,
    second: Annotated[int, typer.Option(help="Labelled pictures that the best of them are tried on.")] = 160,
    held_out: Annotated[int, typer.Option(help="Labelled pictures that both are compared on.")] = 400,
    max_change: Annotated[float, typer.Option(help="As ptp tune's.")] = 0.01,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    out: Annotated[Path | None, typer.Option(help="Write the comparison here, as JSON.")] = None,
) -> None:
    """Print, for each model, what was chosen without labels and with them, and how both do on other pictures."""
    torch.set_num_threads(threads)
    found: list[dict[str, Any]] = []
    scale = Scale(first, second, held_out, tuple(map(float, filter(None, shares.split(",")))))
    for model in models or [None]:
        if draw_only:
            draw_questions(_folder(work, model) / "data", pictures, read_difficulty(WEIGHTS if model is None else Path(model)))
            continue
        found.append(compare(model, work, pictures, max_change, threads, scale))
        for name, value in found[-1].items():
            for line in value if name == "shares" else [value]:
                Console().print(f"{name}: {line}", highlight=False, markup=False, soft_wrap=True)
    if out is not None:
        about = provenance() | {"command": shlex.join(["python", "tests/tune_labels.py", *sys.argv[1:]])}
        text = json.dumps({"about": about, "models": found}, indent=1) + "\n"
        write_whole(out, lambda path: path.write_text(text))


if __name__ == "__main__":
    typer.run(main)
