"""`ptp batch --engine vllm`: what a worker makes of a shard in the real engine, against its engine in transformers."""

from pathlib import Path

import pytest

import ptp
from ptp.serving.ray import engines
from ptp.serving.ray.job import Job

from .asking import picture, questions


def job(pruner: ptp.pruner.Pruner, engine: str) -> Job:
    return Job(Path("a"), Path("b"), 4, 4, None, "pyramid", pruner, engine, max_new_tokens=4)


def test_answers_and_counts_are_those_of_transformers(fresh):
    """The engine of these tests has no settings of its own: all tokens stay. Two pictures in one question, too."""
    asked = [([picture(name)], question) for name, question in questions()]
    asked.append(([asked[0][0][0], asked[1][0][0]], asked[0][1]))
    whole = job(ptp.PyramidPruner(keep_ratio=1.0), "vllm")
    theirs, ours = engines.Vllm(whole, fresh).answer(asked), engines.Transformers(whole).answer(asked)
    assert [one.visual_tokens for one in theirs] == [one.visual_tokens for one in ours]
    assert theirs[-1].visual_tokens[0] > theirs[0].visual_tokens[0] == theirs[0].visual_tokens[1] == 208
    same = [one.text == other.text for one, other in zip(theirs, ours, strict=True)]
    assert sum(same) >= len(asked) - 1, "where the model hesitates the last bits may decide"


def test_the_jobs_settings_prune_in_the_engine(fresh):
    """As each request's settings here: they are the same words that `vllm.LLM` is given for all."""
    pruner = ptp.PyramidPruner(keep_ratio=0.25, record_scores=False)
    pruned = job(pruner, "vllm")
    settings = engines.vllm_arguments(pruned)["mm_processor_kwargs"]

    class PerRequest:
        def generate(self, requests, *more, **named):
            return fresh.generate([{**one, "mm_processor_kwargs": settings} for one in requests], *more, **named)

    asked = [([picture(name)], question) for name, question in questions()]
    theirs, ours = engines.Vllm(pruned, PerRequest()).answer(asked), engines.Transformers(pruned).answer(asked)
    assert {one.visual_tokens for one in theirs} == {(208, 52)} == {one.visual_tokens for one in ours}
    same = [one.text == other.text for one, other in zip(theirs, ours, strict=True)]
    assert sum(same) >= len(asked) - 1, "where the model hesitates the last bits may decide"


def test_a_prompt_that_is_too_long_is_refused_and_the_engine_goes_on(fresh):
    name, question = questions()[0]
    engine = engines.Vllm(job(ptp.PyramidPruner(keep_ratio=1.0), "vllm"), fresh)
    rows = [(0, ([picture(name)], question)), (1, ([picture(name)], question * 300)), (2, ([picture(name)], question))]
    first, second, third = engines.apart_where_needed(engine, rows)
    assert first[0] == [0] and first[2] is None and third[2] is None and first[1] == third[1]
    with pytest.raises(Exception, match="maximum context length"):
        raise second[2]
