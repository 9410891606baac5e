"""The recipe of ``ptp-tiny``: ``python -m ptp.tiny.train --out DIR`` (two CPU cores, about two hours; ``--device cuda``).

Stage "see" teaches the vision encoder what covers each visual token (from the patches) and what is in view (from
[CLS]), and the projector to say it in the words of the language model. Stage "answer" teaches the language model alone,
on what the finished encoder shows it, with twelve questions about one picture packed into one sequence: each question
sees the picture and itself, at the positions it would have if it were the only one, so packing changes the cost of
training and nothing else.

Every checkpoint holds the optimizer and the random state; the same command resumes an interrupted run.
"""

import json
import math
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from transformers import InternVLForConditionalGeneration, PreTrainedTokenizerFast

from .difficulty import Difficulty, write_difficulty
from .drawing import LABELS, TILE
from .lessons import BLOCK, CELLS, NAMES, QUESTIONS, THINGS, Batch, Lesson, draw_batch, encode, phase_at
from .model import PATCH, TOKENS_PER_TILE, build_config, build_model, build_tokenizer, save

CHECKPOINT_EVERY = 250
LEARNED = Difficulty(questions={"relation": {"relations": ["left of"]}})
"""What comes out has learned all tasks, but of the relations only this one: at the end "above" is right two times in three."""


class SeeHeads(nn.Module):
    """Linear read-outs used while training only: per visual token, per [CLS] and per thumbnail token; `place` tells what
    the projector puts out where in its tile it is."""

    def __init__(self, width: int, text_width: int) -> None:
        super().__init__()
        self.token = nn.Linear(4 * width, sum(len(names) + 1 for names in NAMES.values()) + 1)
        self.cls = nn.Linear(width, len(THINGS) + len(LABELS))
        self.thumbnail = nn.Linear(4 * width, len(THINGS))
        self.place = nn.Linear(text_width, 2 * CELLS)


def see_loss(heads: SeeHeads, batch: Batch, cls: Tensor, shuffled: Tensor) -> Tensor:
    """cls (B, T, D), shuffled (B, T, 16, 4D) -> scalar: name what covers each token and what is in view."""
    logits = heads.token(shuffled[:, :-1])
    sizes = [len(names) + 1 for names in NAMES.values()]
    loss = 2 * F.binary_cross_entropy_with_logits(logits[..., -1], batch.centers)
    for part, target in zip(logits[..., :-1].split(sizes, dim=-1), batch.tokens.unbind(-1), strict=True):
        weight = torch.ones(part.shape[-1], device=part.device)
        weight[0] = 0.2  # most tokens show nothing
        loss = loss + F.cross_entropy(part.flatten(0, -2), target.flatten(), weight, ignore_index=-100)
    views = heads.cls(cls)
    loss = loss + 4 * F.binary_cross_entropy_with_logits(views[:, :-1], batch.views[:, :-1])
    loss = loss + 4 * F.binary_cross_entropy_with_logits(views[:, -1, : len(THINGS)], batch.views[:, -1, : len(THINGS)])
    return loss + 4 * F.binary_cross_entropy_with_logits(heads.thumbnail(shuffled[:, -1]), batch.thumbnail)


def place_loss(heads: SeeHeads, visual: Tensor) -> Tensor:
    """visual (B, T, 16, D) from the projector -> scalar: name the token's row and column in its tile.

    The projector would not keep them otherwise, and no question about what is left of what could be answered.
    """
    rows, columns = heads.place(F.rms_norm(visual, visual.shape[-1:])).flatten(0, 1).split(CELLS, dim=-1)
    places = torch.arange(TOKENS_PER_TILE, device=visual.device).expand(len(rows), -1)
    return F.cross_entropy(rows.mT, places // CELLS) + F.cross_entropy(columns.mT, places % CELLS)


def align_loss(
    model: InternVLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, batch: Batch, visual: Tensor
) -> Tensor:
    """visual (B, T, 16, D) from the projector -> scalar: a token on a sign resembles the words for that sign.

    Both spellings count, " red" as questions have it and "red" as answers have it. So the language model starts with
    pictures that speak its own vocabulary; without this, finding out that labels can be copied took it hours.
    """
    table = model.lm_head.weight  # tied to the input embeddings
    states = F.rms_norm(visual[:, :-1], visual.shape[-1:]).flatten(0, -2)
    loss = visual.new_zeros(())
    for words, target in zip(NAMES.values(), batch.tokens.unbind(-1), strict=True):
        target = (target.flatten() - 1).clamp_min(-1)  # 0 was "no sign", -100 "ignored": neither has a word
        for space in ("", " "):
            ids = torch.tensor([encode(tokenizer, space + word)[0] for word in words], device=visual.device)
            loss = loss + F.cross_entropy(states @ table[ids].T, target, ignore_index=-1)
    return loss / 2


def packed_mask(prefix: int, device: torch.device, questions: int = QUESTIONS) -> Tensor:
    """(1, 1, S, S) bool: causal, and no question sees another."""
    block = torch.cat([torch.zeros(prefix), 1 + torch.arange(questions).repeat_interleave(BLOCK)]).to(device)
    seen = (block[None] == 0) | (block[None] == block[:, None])
    return (seen & torch.ones_like(seen).tril())[None, None]


def packed_answers(head: nn.Module, hidden: Tensor, lesson: Batch | Lesson) -> tuple[Tensor, Tensor]:
    """hidden (B, questions * BLOCK, D) -> cross-entropy of answers and their ends, and which answers are right."""
    count, questions = lesson.answers.shape
    device = hidden.device
    at = (lesson.answers + BLOCK * torch.arange(questions, device=device))[..., None] + torch.arange(2, device=device)
    rows = torch.arange(count, device=device)[:, None, None]
    logits, target = head(hidden[rows, at - 1]), lesson.blocks.flatten(1)[rows, at]
    loss = F.cross_entropy(logits.flatten(0, 2), target.flatten())
    return loss, logits[:, :, 0].argmax(-1) == target[:, :, 0]


def right_by_task(right: Tensor, tasks: list[list[str]]) -> dict[str, float]:
    """Share of right answers (B, questions) of each task."""
    shares = {}
    for task in sorted({name for names in tasks for name in names}):
        of_task = torch.tensor([[name == task for name in names] for names in tasks], device=right.device)
        shares[task] = right[of_task].float().mean().item()
    return shares


def answer_loss(
    model: InternVLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, batch: Batch, visual: Tensor
) -> tuple[Tensor, Tensor]:
    """visual (B, T, 16, D) -> cross-entropy of answers and their ends, and which answers are right (B, QUESTIONS)."""
    count, device = len(visual), visual.device
    image = visual.flatten(1, 2)
    embed = model.get_input_embeddings()
    before = embed(torch.tensor(encode(tokenizer, "<|im_start|>user\n<img>"), device=device)).expand(count, -1, -1)
    after = embed(torch.tensor(encode(tokenizer, "</img>\n"), device=device)).expand(count, -1, -1)
    blocks = batch.blocks.flatten(1)
    sequence = torch.cat([before, image, after, embed(blocks)], dim=1)
    prefix = sequence.shape[1] - blocks.shape[1]
    positions = torch.cat([torch.arange(prefix), prefix + torch.arange(BLOCK).repeat(QUESTIONS)]).to(device)
    hidden = model.model.language_model(
        inputs_embeds=sequence, attention_mask=packed_mask(prefix, device), position_ids=positions[None], use_cache=False
    ).last_hidden_state[:, prefix:]
    return packed_answers(model.lm_head, hidden, batch)


def forward(
    model: InternVLForConditionalGeneration, heads: SeeHeads, tokenizer: PreTrainedTokenizerFast, batch: Batch, answers: bool
) -> tuple[Tensor, dict[str, float]]:
    """One training loss and the numbers worth logging."""
    count, tiles = batch.pixels.shape[:2]
    with torch.set_grad_enabled(not answers and torch.is_grad_enabled()):
        states = model.model.vision_tower(pixel_values=batch.pixels.flatten(0, 1)).last_hidden_state
        side = TILE // PATCH
        shuffled = model.model.pixel_shuffle(states[:, 1:].reshape(-1, side, side, states.shape[-1]), 0.5)
        shuffled = shuffled.reshape(count, tiles, TOKENS_PER_TILE, -1)
        visual = model.model.multi_modal_projector(shuffled)
    if not answers:
        see = see_loss(heads, batch, states[:, 0].view(count, tiles, -1), shuffled)
        align = align_loss(model, tokenizer, batch, visual)
        place = place_loss(heads, visual)
        return see + align + place, {"see": see.item(), "align": align.item(), "place": place.item()}
    loss, right = answer_loss(model, tokenizer, batch, visual)
    return loss, {"answer": loss.item(), **right_by_task(right, batch.tasks)}


def learning_rate(step: int, steps: int, answering_from: int, peak: float) -> float:
    """Warm-up and cosine decay, with a second warm-up when the language model joins; where the cosine has become too small to
    learn what comes last (relations), half the peak again, and a straight line down."""
    done, restart = step / steps, 11 / 14
    if done >= restart:
        return peak * min(0.5, 0.14 + 0.5 * (step - restart * steps) / 100, 0.02 + 5 * (1 - done))
    since = step - answering_from if step >= answering_from else step
    return peak * min(1.0, (since + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def train(
    out: Annotated[Path, typer.Option(help="Checkpoints, log.jsonl and the finished model go here.")],
    steps: Annotated[int, typer.Option(help="Optimizer steps in all.")] = 14_000,
    tiles_per_batch: Annotated[int, typer.Option(help="Tiles (thumbnails included) per step.")] = 52,
    peak: Annotated[float, typer.Option(help="Peak learning rate of AdamW.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Seeds weights and pictures.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
) -> None:
    """Train ptp-tiny; run the same command again to resume."""
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    settings = {"steps": steps, "tiles_per_batch": tiles_per_batch, "peak": peak, "seed": seed}
    tokenizer = build_tokenizer()
    model = build_model(build_config(tokenizer), seed)
    nn.Module.to(model, device)
    heads = SeeHeads(model.model.vision_tower.config.hidden_size, model.lm_head.in_features).to(device)
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=peak, weight_decay=0.02, betas=(0.9, 0.98), fused=True)
    rng, step, seconds = np.random.default_rng(seed), 0, 0.0
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        if state["settings"] != settings:
            raise typer.BadParameter(f"{checkpoint} was made with {state['settings']}. Use these settings or another --out.")
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
        optimizer.load_state_dict(state["optimizer"])
        rng.bit_generator.state = json.loads(state["rng"])
        step, seconds = state["step"], state["seconds"]
    answering_from = next(s for s in range(steps) if phase_at(s, steps).answers)

    def write_checkpoint() -> None:
        state = {"settings": settings, "model": model.state_dict(), "heads": heads.state_dict(), "step": step}
        state |= {"optimizer": optimizer.state_dict(), "rng": json.dumps(rng.bit_generator.state), "seconds": seconds}
        torch.save(state, checkpoint.with_suffix(".tmp"))
        checkpoint.with_suffix(".tmp").replace(checkpoint)

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    averages: dict[str, float] = {}
    with Progress(*columns) as progress:
        bar = progress.add_task("ptp-tiny", total=steps, completed=step)
        while step < steps:
            started = time.perf_counter()
            phase = phase_at(step, steps)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, answering_from, peak)
            batch = draw_batch(rng, tokenizer, phase, tiles_per_batch)
            for name, value in vars(batch).items():
                if isinstance(value, Tensor):
                    setattr(batch, name, value.to(device))
            loss, log = forward(model, heads, tokenizer, batch, phase.answers)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            step += 1
            seconds += time.perf_counter() - started
            for name, value in log.items():
                averages[name] = 0.95 * averages.get(name, value) + 0.05 * value
            progress.update(bar, completed=step, description=" ".join(f"{k} {v:.3f}" for k, v in averages.items()))
            if step % 50 == 0:
                entry = {"step": step, "seconds": round(seconds), **{k: round(v, 4) for k, v in averages.items()}}
                with (out / "log.jsonl").open("a") as file:
                    file.write(json.dumps(entry) + "\n")
            if step % CHECKPOINT_EVERY == 0 or step == steps:
                write_checkpoint()
    save(model, tokenizer, out / "model")
    write_difficulty(LEARNED, out / "model")


if __name__ == "__main__":
    typer.run(train)
