"""The recipe of ``ptp-tiny``: ``python -m ptp.tiny.train --out DIR`` (two CPU cores, about two hours; ``--device cuda``).

Stage "see" teaches the vision encoder what covers each visual token (from the patches) and what is in view (from
[CLS]), and the projector to say it in the words of the language model. Stage "answer" adds the language model, with
eight questions about one picture packed into one sequence: each question sees the picture and itself, at the positions
it would have if it were the only one, so packing changes the cost of training and nothing else. The losses of "see" stay
on at a low weight, because [CLS] feeds no answer and would otherwise drift.

Every checkpoint holds the optimizer and the random state; the same command resumes an interrupted run.
"""

import json
import math
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from transformers import InternVLForConditionalGeneration, PreTrainedTokenizerFast

from .drawing import COLORS, GRIDS, LABELS, SHAPES, TILE, Scene, draw_scene
from .model import IMAGE_MEAN, IMAGE_STD, PATCH, TOKENS_PER_TILE, build_config, build_model, build_tokenizer, save
from .tasks import TASKS, ask

QUESTIONS = 8
BLOCK = 18
CELL = 2 * PATCH
CELLS = TILE // CELL
LOOKS = len(COLORS) * len(SHAPES)
CHECKPOINT_EVERY = 250


@dataclass(frozen=True)
class Phase:
    """One leg of the curriculum.

    Attributes:
        share: Its part of all steps.
        answers: Whether the language model learns, too.
        tiles: Tiles of the largest picture.
        signs: Least and most signs on a picture; many teach the encoder more per picture.
        step: Signs sit on multiples of this many pixels.
    """

    share: float
    answers: bool
    tiles: int
    signs: tuple[int, int]
    step: int


CURRICULUM = (
    Phase(0.10, False, 4, (8, 16), 14),
    Phase(0.20, False, 4, (8, 16), 7),
    Phase(0.15, True, 4, (1, 4), 7),
    Phase(0.20, True, 6, (2, 7), 7),
    Phase(0.35, True, 12, (4, 7), 7),
)


class SeeHeads(nn.Module):
    """Linear read-outs used while training only: per visual token, per [CLS] and per thumbnail token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Linear(4 * width, len(COLORS) + len(SHAPES) + len(LABELS) + 3)
        self.cls = nn.Linear(width, LOOKS + len(LABELS))
        self.thumbnail = nn.Linear(4 * width, LOOKS)


@dataclass
class Batch:
    """Pictures of one grid: tiles (B, T, 3, 112, 112) with the thumbnail last, their labels, packed questions."""

    pixels: Tensor
    tokens: Tensor  # (B, T - 1, 16, 3) colour, shape, label; 0 = none, -100 = ignored
    views: Tensor  # (B, T, LOOKS + LABELS) what is in view
    thumbnail: Tensor  # (B, 16, LOOKS)
    blocks: Tensor  # (B, QUESTIONS, BLOCK) token ids
    answers: Tensor  # (B, QUESTIONS) index of the first answer token in its block
    tasks: list[list[str]]


def cut(scene: Scene) -> np.ndarray:
    """(T, 112, 112, 3) uint8 tiles in raster order, the thumbnail last: what the processor makes of the picture."""
    columns, rows = scene.grid
    canvas = np.asarray(scene.image).reshape(rows, TILE, columns, TILE, 3).swapaxes(1, 2)
    thumbnail = np.asarray(scene.image.resize((TILE, TILE), resample=3))
    return np.concatenate([canvas.reshape(-1, TILE, TILE, 3), thumbnail[None]])


def label(scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the encoder should see: per token of each tile, per view, per token of the thumbnail."""
    columns, rows = scene.grid
    tiles = columns * rows
    tokens = np.zeros((tiles, CELLS * CELLS, 3), np.int64)
    best = np.zeros((tiles, CELLS * CELLS))
    views = np.zeros((tiles + 1, LOOKS + len(LABELS)), np.float32)
    thumbnail = np.zeros((CELLS, CELLS, LOOKS), np.float32)
    edges = CELL * np.arange(CELLS)
    for sign in scene.signs:
        left, top, right, bottom = sign.box
        column, row = left // TILE, top // TILE
        tile = row * columns + column
        color, shape, glyph = list(COLORS).index(sign.color), SHAPES.index(sign.shape), LABELS.index(sign.label)
        x = np.clip(np.minimum(edges + CELL, right - TILE * column) - np.maximum(edges, left - TILE * column), 0, None)
        y = np.clip(np.minimum(edges + CELL, bottom - TILE * row) - np.maximum(edges, top - TILE * row), 0, None)
        cover = (y[:, None] * x[None]).reshape(-1) / CELL**2
        better = cover > best[tile]
        tokens[tile, better] = (color + 1, shape + 1, glyph + 1)
        best[tile] = np.maximum(best[tile], cover)
        look = shape * len(COLORS) + color
        views[[tile, tiles], look] = 1
        views[tile, LOOKS + glyph] = 1
        center = (top + bottom) / 2 / (rows * TILE), (left + right) / 2 / (columns * TILE)
        thumbnail[int(center[0] * CELLS), int(center[1] * CELLS), look] = 1
    tokens[(best > 0.03) & (best < 0.35)] = -100
    return tokens, views, thumbnail.reshape(-1, LOOKS)


@lru_cache(maxsize=4096)
def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text).input_ids


def draw_batch(rng: np.random.Generator, tokenizer: PreTrainedTokenizerFast, phase: Phase, tiles_per_batch: int) -> Batch:
    grids = [grid for grid in GRIDS if grid[0] * grid[1] <= phase.tiles]
    grid = grids[rng.integers(len(grids))]
    count = max(1, tiles_per_batch // (grid[0] * grid[1] + 1))
    pad = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    blocks = np.full((count, QUESTIONS, BLOCK), pad)
    answers = np.zeros((count, QUESTIONS), np.int64)
    scenes, names = [], []
    for b in range(count):
        scene = draw_scene(rng, grid, signs=phase.signs, step=phase.step)
        examples = [ask(rng, scene, list(TASKS)[rng.integers(len(TASKS))]) for _ in range(QUESTIONS)]
        for q, example in enumerate(examples):
            prompt = encode(tokenizer, f"{example.question}<|im_end|>\n<|im_start|>assistant\n")
            ids = prompt + encode(tokenizer, f"{example.answer}<|im_end|>")
            blocks[b, q, : len(ids)] = ids
            answers[b, q] = len(prompt)
        scenes.append(scene)
        names.append([example.task for example in examples])
    pixels = torch.from_numpy(np.stack([cut(scene) for scene in scenes])).permute(0, 1, 4, 2, 3).float() / 255
    pixels = (pixels - torch.tensor(IMAGE_MEAN).view(3, 1, 1)) / torch.tensor(IMAGE_STD).view(3, 1, 1)
    tokens, views, thumbnail = (torch.from_numpy(np.stack(part)) for part in zip(*map(label, scenes), strict=True))
    return Batch(pixels, tokens, views, thumbnail, torch.from_numpy(blocks), torch.from_numpy(answers), names)


def see_loss(heads: SeeHeads, batch: Batch, cls: Tensor, shuffled: Tensor) -> Tensor:
    """cls (B, T, D), shuffled (B, T, 16, 4D) -> scalar: name what covers each token and what is in view."""
    logits = heads.token(shuffled[:, :-1])
    sizes = [len(COLORS) + 1, len(SHAPES) + 1, len(LABELS) + 1]
    loss = cls.new_zeros(())
    for part, target in zip(logits.split(sizes, dim=-1), batch.tokens.unbind(-1), strict=True):
        weight = torch.ones(part.shape[-1], device=part.device)
        weight[0] = 0.2  # most tokens show no sign
        loss = loss + F.cross_entropy(part.flatten(0, -2), target.flatten(), weight, ignore_index=-100)
    views = heads.cls(cls)
    loss = loss + 4 * F.binary_cross_entropy_with_logits(views[:, :-1], batch.views[:, :-1])
    loss = loss + 4 * F.binary_cross_entropy_with_logits(views[:, -1, :LOOKS], batch.views[:, -1, :LOOKS])
    return loss + 4 * F.binary_cross_entropy_with_logits(heads.thumbnail(shuffled[:, -1]), batch.thumbnail)


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
    for words, target in zip((tuple(COLORS), SHAPES, LABELS), batch.tokens.unbind(-1), strict=True):
        target = (target.flatten() - 1).clamp_min(-1)  # 0 was "no sign", -100 "ignored": neither has a word
        for space in ("", " "):
            ids = torch.tensor([encode(tokenizer, space + word)[0] for word in words], device=visual.device)
            loss = loss + F.cross_entropy(states @ table[ids].T, target, ignore_index=-1)
    return loss / 2


def packed_mask(prefix: int, device: torch.device) -> Tensor:
    """(1, 1, S, S) bool: causal, and no question sees another."""
    block = torch.cat([torch.zeros(prefix), 1 + torch.arange(QUESTIONS).repeat_interleave(BLOCK)]).to(device)
    seen = (block[None] == 0) | (block[None] == block[:, None])
    return (seen & torch.ones_like(seen).tril())[None, None]


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
    at = (batch.answers + BLOCK * torch.arange(QUESTIONS, device=device))[..., None] + torch.arange(2, device=device)
    rows = torch.arange(count, device=device)[:, None, None]
    logits, target = model.lm_head(hidden[rows, at - 1]), blocks[rows, at]
    loss = F.cross_entropy(logits.flatten(0, 2), target.flatten())
    return loss, logits[:, :, 0].argmax(-1) == target[:, :, 0]


def forward(
    model: InternVLForConditionalGeneration, heads: SeeHeads, tokenizer: PreTrainedTokenizerFast, batch: Batch, answers: bool
) -> tuple[Tensor, dict[str, float]]:
    """One training loss and the numbers worth logging."""
    count, tiles = batch.pixels.shape[:2]
    states = model.model.vision_tower(pixel_values=batch.pixels.flatten(0, 1)).last_hidden_state
    side = TILE // PATCH
    shuffled = model.model.pixel_shuffle(states[:, 1:].reshape(-1, side, side, states.shape[-1]), 0.5)
    shuffled = shuffled.reshape(count, tiles, TOKENS_PER_TILE, -1)
    visual = model.model.multi_modal_projector(shuffled)
    see, align = (
        see_loss(heads, batch, states[:, 0].view(count, tiles, -1), shuffled),
        align_loss(model, tokenizer, batch, visual),
    )
    log = {"see": see.item(), "align": align.item()}
    if not answers:
        return see + align, log
    loss, right = answer_loss(model, tokenizer, batch, visual)
    log["answer"] = loss.item()
    for task in TASKS:
        mine = torch.tensor([[name == task for name in names] for names in batch.tasks], device=right.device)
        if mine.any():
            log[task] = right[mine].float().mean().item()
    return loss + 0.4 * see + 0.2 * align, log


def phase_at(step: int, steps: int) -> Phase:
    """The leg of the curriculum that `step` of `steps` falls into."""
    done = 0.0
    for phase in CURRICULUM:
        done += phase.share
        if step < done * steps:
            return phase
    return CURRICULUM[-1]


def learning_rate(step: int, steps: int, answering_from: int, peak: float) -> float:
    """Warm-up and cosine decay over the whole run, with a second warm-up when the language model joins."""
    since = step - answering_from if step >= answering_from else step
    return peak * min(1.0, (since + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def train(
    out: Annotated[Path, typer.Option(help="Checkpoints, log.jsonl and the finished model go here.")],
    steps: Annotated[int, typer.Option(help="Optimizer steps in all.")] = 5_200,
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
    heads = SeeHeads(model.model.vision_tower.config.hidden_size).to(device)
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


if __name__ == "__main__":
    typer.run(train)
