"""The recipe of the jury: ``python jury/train.py NAME --out DIR`` (one core: some hours; the same command resumes).

The encoder first learns to say what its patches show, and its [CLS] what the tile shows, by heads that are thrown away: it
comes to the language model able to see, as CLIP and SigLIP do. Then everything is trained together, by the answers only:
nothing ever says to the language model what a visual token shows, and nothing touches the projector but what comes back from
the answers. Pictures, questions and their packing
are those of `ptp-tiny`; pixels are what the family's own processor makes of a picture, positions what its model gives.

What made reading emerge early: one sign on one tile first (its label can be answered before the model can look anything
up), then two of different colours (of two of one colour, which only their shapes tell apart, the model read neither for
400 steps), then more of everything. A leg ends when its tasks are learned, or after its most steps.
"""

import json
import shutil
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from models import JURORS, SMALL_GRIDS, Juror
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from ptp.tiny.difficulty import Difficulty, write_difficulty
from ptp.tiny.drawing import GRIDS, LABELS
from ptp.tiny.lessons import BLOCK, NAMES, THINGS, Lesson, Phase, draw_lesson, label
from ptp.tiny.tasks import TASKS
from ptp.tiny.train import packed_answers, packed_mask, right_by_task

CHECKPOINT_SECONDS = 180
LEARNED, LEARNED_OF_TWO = 0.7, 0.85
"""A task that is right less often at the end is not asked of the model: it has not learned it. The second is for those where
one answer in two is right by chance."""
OF_TWO = ("exists", "relation")
LEAST, LEAST_SIGHT = 100, 500
"""Steps before a leg, or one of the warm-up, can be over: until then its averages say little."""


@dataclass(frozen=True)
class Leg:
    """A phase, when it is over, and how fast the encoder learns in it.

    Attributes:
        phase: Its `steps` are the most that it takes.
        enough: It is over earlier where all its tasks are right so often (of the warm-up: labels named).
        encoder: Factor of the encoder's learning rate. What a fresh language model sends back would wipe out what the
            encoder has learned: after 350 steps at the full rate no label could be read off it any more.
        batch: Factor of the pictures per step: small batches go further where a new skill has to be found.
    """

    phase: Phase
    enough: float = 1.0
    encoder: float = 1.0
    batch: float = 1.0


SMALL = (*SMALL_GRIDS, *GRIDS)
LOOK = ("read", "color", "shape")
READ = ("read", "read", "read", *LOOK)
SIGHT = (
    Leg(Phase(500, False, 4, (8, 16), step=14, scales=(1,))),
    Leg(Phase(3000, False, 4, (8, 16), scales=(1,)), 0.95),
)
"""The encoder alone."""
FIRST = Phase(
    1500,
    True,
    1,
    (1, 1),
    step=14,
    labels=10,
    grids=((1, 1),),
    scales=(1,),
    tasks=READ,
    questions=3,
    tags=0,
    table=False,
    repeated=0.0,
)
MORE = replace(FIRST, labels=len(LABELS), questions=6, repeated=0.8)
ALL = replace(MORE, step=7, grids=SMALL, questions=12, tags=2, table=True)
ANSWERS = (
    Leg(FIRST, 0.8, encoder=0.1),
    Leg(replace(FIRST, signs=(2, 2), questions=6), 0.85, encoder=0.3, batch=0.5),
    Leg(replace(MORE, signs=(2, 3), repeated=0.4), 0.8, encoder=0.3, batch=0.5),
    Leg(replace(MORE, signs=(2, 4), tiles=2, grids=SMALL_GRIDS, step=7, steps=2000), 0.85),
    Leg(replace(ALL, signs=(2, 5), tiles=3, tasks=(*LOOK, "exists", "table", "tiny_text"), steps=1500), 0.85),
    Leg(Phase(1500, True, 6, (2, 7), extra=("where", "where", "relation", "exists", "count"), grids=SMALL, scales=(1,)), 0.93),
    Leg(Phase(2000, True, 12, (4, 7), extra=("relation", "relation", "exists", "count", "count"), scales=(1,))),
)
"""Everything, by its answers. The learning rate falls in the last leg only."""


def attention_in_single(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *mask: Tensor | None, **more: Any) -> Any:
    """Attention in float32 where everything else is multiplied in bfloat16: torch's backward pass of it on a CPU takes four
    times as long in bfloat16, while that of a matrix product takes a third."""
    with torch.autocast("cpu", enabled=False):
        return sdpa_attention_forward(module, query.float(), key.float(), value.float(), *mask, **more)


AttentionInterface.register("sdpa_in_single", attention_in_single)
AttentionMaskInterface.register("sdpa_in_single", sdpa_mask)


class Names(nn.Module):
    """Says what is in view, in the warm-up only: of a patch of `CELL` px which colour, shape, label and value, of a tile from
    its [CLS] which things and labels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cell = nn.Linear(width, sum(len(words) + 1 for words in NAMES.values()))
        self.view = nn.Linear(width, len(THINGS) + len(LABELS))


class Pupil:
    """A juror in training.

    Attributes:
        names: Names what is in view; thrown away after the warm-up.
    """

    def __init__(self, juror: Juror, seed: int) -> None:
        self.juror, self.tokenizer = juror, juror.tokenizer()
        self.processor = juror.processor(self.tokenizer)
        self.model = juror.build(self.tokenizer, seed)
        self.model.set_attn_implementation("sdpa_in_single")
        vision = self.model.config.vision_config
        self.names = Names(vision.hidden_size)
        self._prefixes: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    @property
    def parameters(self) -> dict[str, list[nn.Parameter]]:
        """All that learns, what has a learning rate of its own apart."""
        encoder = ("vision_tower.", "vision_model.", "visual.")
        named = [
            (any(part in name for part in encoder) and "merger" not in name, p) for name, p in self.model.named_parameters()
        ]
        return {
            "encoder": [p for is_encoder, p in named if is_encoder] + list(self.names.parameters()),
            "rest": [p for is_encoder, p in named if not is_encoder],
        }

    def encode(self, lesson: Lesson) -> Any:
        """What the encoder and the projector make of the pictures."""
        pictures = [scene.image for scene in lesson.scenes]
        pixels = self.processor.image_processor(pictures, return_tensors="pt")
        pixels.pop("num_patches", None)  # InternVL's model does not take it
        return self.model.get_image_features(**pixels, return_dict=True)

    def prefix(self, lesson: Lesson) -> tuple[Tensor, Tensor]:
        """Ids (P,) and positions (1 or 3, P) of what stands before a question about a picture of the lesson's grid."""
        grid = lesson.scenes[0].grid
        if grid not in self._prefixes:
            picture = lesson.scenes[0].image
            nested = [[picture]] if self.juror.nested else [picture]
            inputs = self.processor(text=[f"<|im_start|>user\n{self.juror.image}\n"], images=nested, return_tensors="pt")
            ids = inputs["input_ids"]
            positions = torch.arange(ids.shape[1])[None]
            if hasattr(self.model.model, "get_rope_index"):
                about = {name: inputs[name] for name in ("mm_token_type_ids", "image_grid_thw")}
                positions = self.model.model.get_rope_index(ids, **about)[0][:, 0]
            self._prefixes[grid] = ids[0], positions
        return self._prefixes[grid]

    def see(self, lesson: Lesson) -> tuple[Tensor, dict[str, float]]:
        """The loss of the warm-up: what the last states of the encoder show, patch by patch, and of the tile, from [CLS].

        Before the projector: the mean over the encoder's own patches of 28 px. What is named by the mean over larger parts
        gets smeared over all of them: another sign's label could be read off a sign's patches as well as its own.
        """
        cells, cls = self.juror.cells(self.encode(lesson).last_hidden_state, len(lesson.scenes), lesson.scenes[0].grid)
        tokens, _, views, _ = (torch.from_numpy(np.stack(part)) for part in zip(*map(label, lesson.scenes), strict=True))
        parts = self.names.cell(cells[:, : tokens.shape[1]]).split([len(words) + 1 for words in NAMES.values()], dim=-1)
        loss, right = cells.new_zeros(()), 0.0
        for name, part, wanted in zip(NAMES, parts, tokens.unbind(dim=-1), strict=True):
            weight = part.new_ones(part.shape[-1])
            weight[0] = 0.3  # most patches show nothing
            loss = loss + F.cross_entropy(part.flatten(0, -2), wanted.flatten(), weight, ignore_index=-100)
            if name == "label":
                right = (part.argmax(dim=-1) == wanted)[wanted > 0].float().mean().item()
        if cls is not None:
            seen = self.names.view(cls[:, : tokens.shape[1]])
            loss = loss + 4 * F.binary_cross_entropy_with_logits(seen, views[:, : tokens.shape[1]])
        return loss, {"see": loss.item(), "labels": right}

    def states(self, lesson: Lesson) -> Tensor:
        """(B, questions * BLOCK, D): last states of the packed questions, each at the positions it has alone."""
        ids, positions = self.prefix(lesson)
        count, questions = lesson.answers.shape
        core = self.model.model
        embed = self.model.get_input_embeddings()
        sequence = embed(torch.cat([ids.expand(count, -1), lesson.blocks.flatten(1)], dim=1))
        features = self.encode(lesson).pooler_output
        visual = torch.cat([part.flatten(0, -2) for part in features]).to(sequence.dtype)
        places = F.pad(ids == self.model.config.image_token_id, (0, questions * BLOCK))
        sequence = sequence.masked_scatter(places[None, :, None].expand_as(sequence), visual)
        following = positions.max() + 1 + torch.arange(BLOCK).repeat(questions)
        positions = torch.cat([positions, following.expand(len(positions), -1)], dim=1)
        if len(positions) > 1:
            positions = positions[:, None].expand(-1, count, -1)
        language = core.text_model if hasattr(core, "text_model") else core.language_model
        mask = packed_mask(len(ids), sequence.device, questions)
        whole = language(inputs_embeds=sequence, attention_mask=mask, position_ids=positions, use_cache=False)
        return whole.last_hidden_state[:, len(ids) :]

    def answer(self, lesson: Lesson) -> tuple[Tensor, dict[str, float]]:
        """The loss of the answers, and how often each task's were right."""
        loss, right = packed_answers(self.model.lm_head, self.states(lesson), lesson)
        return loss, {"answer": loss.item(), **right_by_task(right, lesson.tasks)}


def learning_rate(legs: tuple[Leg, ...], leg: int, step: int, peak: float) -> float:
    """Warm-up where the encoder starts and where the answers start, then constant; down in the last leg.

    Args:
        step: Of the leg.
    """
    if leg == 0 or (legs[leg].phase.answers and not legs[leg - 1].phase.answers):
        return peak * min(1.0, (step + 1) / 100)
    if leg == len(legs) - 1:
        return peak * max(0.02, 1 - step / legs[leg].phase.steps)
    return peak


def over(leg: Leg, step: int, averages: dict[str, float]) -> bool:
    """Whether a leg is over after `step` of its steps, its tasks right as often as `averages` says."""
    if step >= leg.phase.steps:
        return True
    tasks = [averages.get(task, 0.0) for task in (leg.phase.tasks if leg.phase.answers else ("labels",))]
    return step >= (LEAST if leg.phase.answers else LEAST_SIGHT) and min(tasks) >= leg.enough


def train(
    name: Annotated[str, typer.Argument(help="Which juror.")],
    out: Annotated[Path, typer.Option(help="Checkpoint, log.jsonl and the model go here.")],
    tiles_per_batch: Annotated[int, typer.Option(help="Tiles (and one for each picture) per step.")] = 52,
    peak: Annotated[float, typer.Option(help="Peak learning rate of AdamW.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Seeds weights and pictures.")] = 1,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    seconds: Annotated[float, typer.Option(help="Stop after so many seconds of training; the same command goes on.")] = 1e9,
) -> None:
    """Train one juror; run the same command again to resume."""
    if name not in JURORS:
        raise typer.BadParameter(f"NAME must be one of {', '.join(JURORS)}, got {name!r}. Choose one of these.")
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    legs = (*SIGHT, *ANSWERS)
    pupil = Pupil(JURORS[name], seed)
    groups = [{"params": weights, "name": part} for part, weights in pupil.parameters.items()]
    weights = [weight for group in groups for weight in group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=peak, weight_decay=0.02, betas=(0.9, 0.98), fused=True)
    rng, averages = np.random.default_rng(seed), dict[str, float]()
    state: dict[str, Any] = {"step": 0, "leg": 0, "of_leg": 0, "seconds": 0.0}
    checkpoint, log_file = out / "checkpoint.pt", out / "log.jsonl"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        pupil.model.load_state_dict(saved["model"])
        pupil.names.load_state_dict(saved["names"])
        optimizer.load_state_dict(saved["optimizer"])
        rng.bit_generator.state = json.loads(saved["rng"])
        state, averages = saved["state"], saved["averages"]

    def keep() -> None:
        whole = {"model": pupil.model.state_dict(), "names": pupil.names.state_dict(), "optimizer": optimizer.state_dict()}
        whole |= {"rng": json.dumps(rng.bit_generator.state), "state": state, "averages": averages}
        torch.save(whole, checkpoint.with_suffix(".tmp"))
        checkpoint.with_suffix(".tmp").replace(checkpoint)

    stop: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))  # ends after a checkpoint
    kept, began = time.perf_counter(), state["seconds"]
    while state["leg"] < len(legs) and state["seconds"] - began < seconds and not stop:
        started = time.perf_counter()
        leg = legs[state["leg"]]
        for group in optimizer.param_groups:
            rate = learning_rate(legs, state["leg"], state["of_leg"], peak)
            group["lr"] = rate * (leg.encoder if group["name"] == "encoder" else 1.0)
        lesson = draw_lesson(rng, pupil.tokenizer, leg.phase, round(leg.batch * tiles_per_batch))
        with torch.autocast("cpu", torch.bfloat16):
            loss, log = pupil.answer(lesson) if leg.phase.answers else pupil.see(lesson)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        for key, value in log.items():
            averages[key] = 0.97 * averages.get(key, value) + 0.03 * value
        state = state | {"step": state["step"] + 1, "of_leg": state["of_leg"] + 1}
        state["seconds"] += time.perf_counter() - started
        if state["step"] % 50 == 0:
            entry = state | {"seconds": round(state["seconds"])} | {k: round(v, 4) for k, v in averages.items()}
            with log_file.open("a") as file:
                file.write(json.dumps(entry) + "\n")
        if over(leg, state["of_leg"], averages):
            state = state | {"leg": state["leg"] + 1, "of_leg": 0}
            averages = averages if state["leg"] == len(legs) else {}
            keep()
            shutil.copy(checkpoint, out / f"leg{state['leg']}.pt")  # to go back to where a later leg fails
        elif time.perf_counter() - kept > CHECKPOINT_SECONDS:
            keep()
            kept = time.perf_counter()
    keep()
    signal.signal(signal.SIGTERM, before)
    if stop:
        raise SystemExit(128 + stop[0])
    JURORS[name].save(pupil.model, pupil.tokenizer, out / "model")
    learned = tuple(task for task in TASKS if averages.get(task, 0.0) >= (LEARNED_OF_TWO if task in OF_TWO else LEARNED))
    if log_file.exists():
        shutil.copy(log_file, out / "model" / "training.jsonl")
    write_difficulty(Difficulty(tasks=learned or ("color",), scales=(1,)), out / "model")


if __name__ == "__main__":
    typer.run(train)
