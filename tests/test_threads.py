"""Calls side by side on one pruned model give what the same calls give alone."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from families import FAMILIES, Family, encode, model_of, photo, pruner, tokenizer

import ptp
from ptp.selection import Selection, keep_best, total_budget

FAMILY_NAMES = ("internvl", "qwen3-vl", "gemma3", "qwen3.5")
SIZES = ((300, 200), (120, 260), (100, 100), (220, 220))
QUESTIONS = ("What is on the red circle?", "Read it.", "Which colour has the sign K?")


def calls(family: Family, count: int) -> list[dict[str, torch.Tensor]]:
    """Prompts with pictures of different sizes, one without a picture among them."""
    prompts = [([photo(n, SIZES[n % 4])], QUESTIONS[n % 3]) for n in range(count - 1)]
    return [encode(family, prompt) for prompt in (*prompts, ([], "Hello"))]


def answer(model, inputs, trace) -> tuple[list[int], list[list[int]]]:
    """The tokens of a greedy answer, and what was kept for it."""
    ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    return ids[0].tolist(), [image.kept.tolist() for image in trace.of_this_thread.images]


@pytest.mark.parametrize("name", ["pyramid at 2", "pyramiddrop"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_threads_do_not_see_each_other(family, name):
    model, inputs = model_of(FAMILIES[family]), calls(FAMILIES[family], 25)
    start = threading.Barrier(4)

    def work(first: int) -> list:
        start.wait(timeout=60)
        return [answer(model, inputs[(first + n) % 25], trace) for n in range(25)]

    with pruner(name)(model, tokenizer()) as trace:
        alone = [answer(model, one, trace) for one in inputs]
        with ThreadPoolExecutor(4) as pool:
            firsts = (0, 6, 12, 18)
            for first, found in zip(firsts, pool.map(work, firsts), strict=True):
                assert found == alone[first:] + alone[:first]


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_tasks_in_threads_of_asyncio_do_not_see_each_other(family):
    model, inputs = model_of(FAMILIES[family]), calls(FAMILIES[family], 8)

    async def all_at_once(trace) -> list:
        return await asyncio.gather(*(asyncio.to_thread(answer, model, one, trace) for one in inputs))

    with pruner()(model, tokenizer()) as trace:
        alone = [answer(model, one, trace) for one in inputs]
        assert asyncio.run(all_at_once(trace)) == alone


@pytest.mark.since_5_18
def test_encoding_in_one_thread_and_answering_in_another():
    """The signals of a picture travel with its encoder output."""
    family = FAMILIES["internvl"]
    model, inputs = model_of(family), encode(family, ([photo(1, (300, 200))], QUESTIONS[0]))
    pixels = inputs.pop("pixel_values")
    with torch.no_grad(), pruner()(model, tokenizer()) as trace, ThreadPoolExecutor(1) as pool:
        expected = model(**inputs, pixel_values=pixels).logits
        encoded = pool.submit(model.get_image_features, pixels, return_dict=True).result()
        assert torch.equal(model(**inputs, mm_encoder_outputs={"image": encoded}).logits, expected)
    assert len(trace.images) == 1


def test_a_method_may_run_the_model_itself():
    family = FAMILIES["internvl"]
    model, inputs = model_of(family), encode(family, ([photo(1, (300, 200))], QUESTIONS[0]))
    words = encode(family, ([], "Hello"))

    class Asks(ptp.PyramidPruner):
        def select(self, picture, stage):
            heard.append(model(**words).logits)
            kept = keep_best(picture.saliency, [picture.tokens], [total_budget(stage.keep_ratio, picture.tokens)])
            return Selection(kept, picture.count_per_tile(kept))

    heard: list[torch.Tensor] = []
    with torch.no_grad():
        expected = model(**words).logits
        with Asks(alpha=0, prune_layer=1)(model) as trace:
            model(**inputs)
    assert torch.equal(heard[0], expected)
    assert trace.visual_tokens[1] == round(0.5 * trace.visual_tokens[0])


def test_an_interrupted_prefill_leaves_nothing_to_the_next():
    """Ctrl-C inside a layer: torch calls no hooks behind it."""
    family = FAMILIES["qwen3-vl"]
    model, inputs = model_of(family), encode(family, ([photo(1, (300, 200))], QUESTIONS[0]))

    def interrupt(module, args):
        raise KeyboardInterrupt

    with torch.no_grad(), pruner()(model, tokenizer()):
        expected = model(**inputs).logits
        handle = model.model.language_model.layers[2].register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(**inputs)
        handle.remove()
        words = encode(family, ([], "Hello"))
        model(**words)
        assert torch.equal(model(**inputs).logits, expected)
