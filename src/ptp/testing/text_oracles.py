"""The oracles of the language model: what is kept, and what becomes of the rest."""

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F

from ..pruner import Pruner
from .encoder import attention
from .masking import blinded, drops, extended, merged, watched
from .report import Check, near, require
from .subject import QUESTION, Subject, footprint, named

NEW_TOKENS = 4


@torch.no_grad()
def relevance(subject: Subject) -> Iterator[Check]:
    """What the instruction attends to is what the eager model's own maps say, from the layer below the one that prunes."""
    model, inputs = subject.model, subject.one
    (asked,) = (row.nonzero()[:, 0] for row in subject.asked(inputs))
    with attention(model, "eager"):
        maps = [each[0].mean(dim=0) for each in model(**inputs, output_attentions=True).attentions]
    for layer in depths(len(subject.adapter.layers)):
        for name in ("eager", "sdpa"):
            listener = replace(subject.listener, prune_layer=layer, heard=[])
            with attention(model, name):
                _, trace = subject.prune(listener, inputs)
            places = trace.images[0].positions.to(asked.device)
            expected = maps[max(layer - 1, 0)][asked][:, places].amax(dim=0).cpu()
            found = listener.heard[0].relevance
            yield near("relevance", f"prune_layer={layer}, {name}", found, expected, subject.tolerance, "relevance")


def depths(layers: int) -> list[int]:
    """0, 2 and the middle, as far as there are so many layers."""
    return sorted({layer for layer in (0, 2, layers // 2) if layer < layers})


def attentions(subject: Subject) -> Iterator[Check]:
    """Under eager and sdpa the same tokens stay."""
    for method in subject.pruners:
        kept = []
        for name in ("eager", "sdpa"):
            with attention(subject.model, name):
                kept.append(subject.prune(method, subject.one)[1].images[0].kept.tolist())
        other = len(set(kept[0]) ^ set(kept[1]))
        require("attentions", named(method), other == 0, f"{other} of {len(kept[0])} kept tokens differ")
        yield Check("attentions", named(method))


@torch.no_grad()
def keep_all(subject: Subject) -> Iterator[Check]:
    """keep_ratio 1 changes no bit."""
    inputs = subject.inputs(([subject.picture(0)], QUESTION), ([], "Hello, what is new in the table?"))
    expected = subject.model(**inputs).logits
    for method in subject.pruners:
        whole = replace(method, keep_ratio=1.0)
        output, trace = subject.prune(whole, inputs)
        require("keep all", named(whole), trace.visual_tokens[0] == trace.visual_tokens[1] > 0, "tokens were dropped")
        same = torch.equal(output.logits, expected)
        error = 0.0 if same else float((output.logits - expected).abs().max())
        require("keep all", named(whole), same, f"logits differ by {error:.2g} where no bit may change")
        yield Check("keep all", named(whole))


@torch.no_grad()
def masking(subject: Subject) -> Iterator[Check]:
    """Logits of the tokens that stay are those of the whole sequence that cannot see the dropped ones."""
    model, inputs = subject.model, subject.one
    for method in subject.pruners:
        yield dropping_equals_masking(subject, method, inputs, model)


def dropping_equals_masking(subject: Subject, method: Pruner, inputs: dict[str, torch.Tensor], model: torch.nn.Module) -> Check:
    """The check of one method."""
    twin, selections = watched(method)
    output, trace = subject.prune(twin, inputs)
    gone = drops(inputs, trace, selections)
    last = gone[max(gone)]
    lost = sum(before - after for before, after in (trace.visual_tokens, trace.structure_tokens))
    require("masking", named(method), 0 < int(last.sum()) == lost, f"{lost} tokens left, and {int(last.sum())} were to")
    with blinded(model, inputs["attention_mask"].bool(), (gone, None)), merged(model, trace, selections):
        expected = model(**inputs).logits
    return near("masking", named(method), output.logits, expected[~last][None], subject.tolerance, "the logits")


@torch.no_grad()
def batch(subject: Subject) -> Iterator[Check]:
    """A padded batch, a row without pictures in it, gives each row what it gets alone."""
    first, second, third = (subject.picture(number) for number in range(3))
    prompts = [([first], QUESTION), ([], "What color is sign 7?"), ([second, third], "Read it."), ([third], "Which sign is K?")]
    inputs = subject.inputs(*prompts)
    for method in subject.few:
        together, trace = subject.prune(method, inputs, **subject.positions(inputs))
        images, settings = list(trace.images), named(method)
        rows = [image.row for image in images]
        require("batch", settings, rows == [0, 2, 2, 3], f"the pictures of rows [0, 2, 2, 3] were found in {rows}")
        for row, prompt in enumerate(prompts):
            alone, single = subject.prune(method, subject.inputs(prompt))
            length = alone.logits.shape[1]
            for image in single.images:
                same = images.pop(0).kept.tolist() == image.kept.tolist()
                require("batch", settings, same, f"row {row} keeps other tokens than alone")
            own = together.logits[row, -length:]
            yield near("batch", f"{settings}, row {row}", own, alone.logits[0], subject.tolerance, "the logits")


@torch.no_grad()
def decode(subject: Subject) -> Iterator[Check]:
    """`generate` equals a loop that runs the whole masked sequence at every step."""
    model, inputs = subject.model, subject.one
    images = [modality.token_id for modality in subject.adapter.modalities]
    calm = dict(do_sample=False, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, suppress_tokens=images)
    for method in subject.few:
        twin, selections = watched(method)
        with twin(model, subject.processor, subject.asked(inputs)) as trace:
            output = model.generate(**inputs, **calm, output_logits=True, return_dict_in_generate=True)
        gone, length = drops(inputs, trace, selections), inputs["input_ids"].shape[1]
        for step in range(NEW_TOKENS):
            whole = extended(inputs, output.sequences[:, length : length + step])
            longer = {layer: F.pad(tokens, (0, step)) for layer, tokens in gone.items()}
            with blinded(model, whole["attention_mask"].bool(), (longer, length)), merged(model, trace, selections):
                expected = model(**whole).logits[:, -1]
            settings = f"{named(method)}, token {step}"
            yield near("decode", settings, output.logits[step], expected, subject.tolerance, "the logits")


@torch.no_grad()
def nothing_left(subject: Subject) -> Iterator[Check]:
    """After the context, also after an exception, the model is what it was."""
    model, inputs = subject.model, subject.one
    expected, before = model(**inputs).logits, footprint(model)
    for method in subject.few:
        for fails in (False, True):
            settings = f"{named(method)}{', after an exception' if fails else ''}"
            try:
                with method(model, subject.processor, subject.asked(inputs)):
                    model(**inputs)
                    if fails:
                        raise InterruptedError
            except InterruptedError:
                pass
            after = footprint(model)
            changed = [name or "the model" for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
            require("nothing left", settings, not changed, f"attributes or hooks remain on {', '.join(sorted(changed)[:3])}")
            require("nothing left", settings, torch.equal(model(**inputs).logits, expected), "the logits have changed")
            yield Check("nothing left", settings)
