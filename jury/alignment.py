"""How aligned models are: ``python jury/alignment.py [DIRECTORY...]``, for the model cards. Without one: ptp-tiny.

Of the visual tokens that show a sign or a tag, the share whose nearest input embedding (by cosine, of all there are) is a
right word for it: its colour, its shape or its label, as questions or as answers spell it. Where that is high, similarity
between visual tokens and the words of a question says where to look; on real checkpoints it rarely is.
"""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from ptp import RandomPruner, load
from ptp.adapters import adapter_for
from ptp.cli.options import provenance, write_whole
from ptp.evaluation import Sample, draw_sample
from ptp.evaluation.samples import evidence_tokens
from ptp.tiny import WEIGHTS
from ptp.tiny.difficulty import read_difficulty
from ptp.tiny.lessons import encode


@torch.no_grad()
def visual_states(model: Any, processor: Any, sample: Sample) -> tuple[Tensor, Any]:
    """(N, D) of what stands for a picture at the input of the language model, and the picture's layout."""
    turn = [{"role": "user", "content": [{"type": "image", "image": sample.scene.image}, {"type": "text", "text": ""}]}]
    inputs = processor.apply_chat_template(
        [turn], tokenize=True, return_dict=True, processor_kwargs={"return_tensors": "pt", "padding": True}
    )
    seen: list[Tensor] = []
    language = adapter_for(model).text.model
    handle = language.register_forward_pre_hook(lambda *given: seen.append(given[2]["inputs_embeds"]), with_kwargs=True)
    try:
        with RandomPruner(keep_ratio=1.0)(model, processor) as trace:
            model(**inputs)
    finally:
        handle.remove()
    return seen[0][0, trace.images[0].positions], trace.images[0].layout


def alignment(model: Any, processor: Any, samples: list[Sample]) -> dict[str, float]:
    """Sign tokens looked at, and the share of them whose nearest embedding is right: by what the word says, and in all."""
    table = F.normalize(model.get_input_embeddings().weight.float(), dim=-1)
    right: dict[str, list[float]] = {"color": [], "shape": [], "label": [], "any": []}
    for sample in samples:
        states, layout = visual_states(model, processor, sample)
        nearest = (F.normalize(states.float(), dim=-1) @ table.T).argmax(dim=-1)
        for sign in (*sample.scene.signs, *sample.scene.tags):
            words = {"color": sign.color, "shape": sign.shape, "label": sign.label}
            ids = {name: {encode(processor.tokenizer, space + word)[0] for space in ("", " ")} for name, word in words.items()}
            for token in evidence_tokens([sign.box], sample.scene.grid, layout):
                named = {name: int(nearest[token]) in own for name, own in ids.items()}
                for name, found in (named | {"any": any(named.values())}).items():
                    right[name].append(float(found))
    return {"tokens": len(right["any"])} | {name: sum(found) / len(found) for name, found in right.items()}


def main(
    models: Annotated[list[Path] | None, typer.Argument(help="Checkpoint directories.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Pictures of the tuning split.")] = 200,
    out: Annotated[Path | None, typer.Option(help="Write it here, too, as JSON.")] = None,
) -> None:
    """Print a table."""
    found_of: dict[str, dict[str, float]] = {}
    print("| model | sign tokens | nearest is its colour | its shape | its label | any of these |\n|---|---|---|---|---|---|")
    for path in models or [WEIGHTS]:
        model, processor = load(path)
        drawn = [draw_sample(0, "tune", number, read_difficulty(path)) for number in range(samples)]
        name = "ptp-tiny" if path.resolve() == WEIGHTS.resolve() else path.name
        found = found_of[name] = alignment(model, processor, drawn)
        shares = " | ".join(f"{found[word]:.3f}" for word in ("color", "shape", "label", "any"))
        print(f"| {name} | {found['tokens']:,} | {shares} |")
    if out is not None:
        about = provenance() | {"command": shlex.join(["python", "jury/alignment.py", *sys.argv[1:]]), "pictures": samples}
        text = json.dumps({"about": about, "models": found_of}, indent=1) + "\n"
        write_whole(out, lambda path: path.write_text(text))


if __name__ == "__main__":
    typer.run(main)
