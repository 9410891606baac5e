"""The plugin inside the real engine, against transformers: log-probabilities, not answers (these are right even at 10 %)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .asking import SETTINGS, ask, difference, expected, log_probabilities, questions, request

CLOSE = 1e-3


@pytest.fixture(scope="session")
def grid(engine, reference):
    """Every question under every settings: the request, and what transformers makes of it."""
    cases = [([[name, asked]], settings) for name, asked in questions() for settings in SETTINGS]
    return [request(engine, *case) for case in cases], [expected(reference, *case) for case in cases]


def test_log_probabilities_are_those_of_transformers(fresh, grid):
    requests, wanted = grid
    assert len(requests) == 72
    first, again = ask(fresh, requests), ask(fresh, requests)
    assert max(map(difference, first, wanted)) < CLOSE
    assert max(map(difference, again, wanted)) < CLOSE
    assert all(output.num_cached_tokens > 0 for output in again if len(output.prompt_token_ids) > 33), "no prefix was reused"
    unsure = [float(rows[0].max().exp()) < 0.99 for rows in wanted]
    assert sum(unsure) > 16, "the questions are too easy to tell anything"
    kept = {len(output.prompt_token_ids) for output in first}
    assert len(kept) > 5 and max(kept) > 200 and min(kept) < 60


@pytest.mark.parametrize("wrong", ["the picture's", "the text's"])
def test_wrong_positions_are_noticed(fresh, grid, monkeypatch, wrong):
    from ptp.serving.vllm import model

    if wrong == "the picture's":
        right = model.split_shifts
        monkeypatch.setattr(model, "split_shifts", lambda *given: (right(*given)[0], None))
        # `forward` adds nothing where no row says how far it is
    else:
        monkeypatch.setattr(model, "text_positions", lambda length, pictures: (torch.arange(length), 0))
    found = list(map(difference, ask(fresh, grid[0]), grid[1]))
    assert max(found) > 10 * CLOSE
    assert max(found[:: len(SETTINGS)]) < CLOSE  # nothing was pruned in these


def test_all_methods(fresh, reference):
    from ptp import METHODS

    served = [name for name in METHODS if name not in ("dart", "fastv", "pyramiddrop", "sparsevlm", "deft")]
    (name, asked), *_ = questions()[4:]
    cases = [([[name, asked]], {"method": method, "keep_ratio": 0.3}) for method in served]
    outputs = ask(fresh, [request(fresh, *case) for case in cases])
    found = [difference(output, expected(reference, *case)) for output, case in zip(outputs, cases, strict=True)]
    assert dict(zip(served, found, strict=True)) == pytest.approx(dict.fromkeys(served, 0.0), abs=CLOSE)


def test_several_pictures_beside_text(fresh, reference):
    one, two, three = dict.fromkeys(name for name, _ in questions())
    asked = "How many yellow signs are there?"
    cases = [
        ([[one, two, asked]], {"keep_ratio": 0.3}),
        (["What is red?"], None),
        ([[three, "beside", one, "and", two, asked]], {"keep_ratio": 0.5, "alpha": 0}),
        ([[two, asked]], {"keep_ratio": 0.02}),
        (["What is red?"], {"keep_ratio": 0.3}),
    ]
    outputs = ask(fresh, [request(fresh, *case) for case in cases])
    assert max(difference(o, expected(reference, *case)) for o, case in zip(outputs, cases, strict=True)) < CLOSE


def test_a_prefix_that_ends_behind_a_picture(fresh, reference):
    name = questions()[0][0]
    start = [[name, "How many yellow signs are there? Count them all, one by one, and say what you see, please."], "4"]
    cases = [([*start, last], {"keep_ratio": 0.3, "alpha": 0}) for last in ("How many blue signs?", "Is A left of B?")]
    for case in cases:
        (output,) = ask(fresh, [request(fresh, *case)])
        assert difference(output, expected(reference, *case)) < CLOSE
    assert output.num_cached_tokens > 32 + round(0.3 * 208)  # behind the picture


def test_later_turns_do_not_change_a_picture(fresh, model_of):
    name, asked = questions()[4]
    settings = {"keep_ratio": 0.5, "alpha": 0.5}
    (first,) = ask(fresh, [request(fresh, [[name, asked]], settings)])
    (later,) = ask(fresh, [request(fresh, [[name, asked], "4", "Is there a red circle?"], settings)])
    assert later.num_cached_tokens >= 96
    (other,) = ask(fresh, [request(fresh, [[name, "Is there a red circle?"]], settings)])
    assert other.num_cached_tokens == 0
    assert len(first.prompt_token_ids) < len(later.prompt_token_ids)


def test_a_second_question_encodes_nothing(fresh, reference, model_of):
    name, other = list(dict.fromkeys(name for name, _ in questions()))[:2]
    runs = []
    handle = model_of.vision_tower.register_forward_pre_hook(lambda *_, **__: runs.append(1), with_kwargs=True)
    try:
        model_of.ptp_reuse.__init__(model_of.ptp_reuse.limit)
        for asked in ("How many yellow signs are there?", "How many blue signs are there?"):
            for settings in ({"keep_ratio": 0.3}, {"keep_ratio": 0.15}):
                case = [[name, asked]], settings
                (output,) = ask(fresh, [request(fresh, *case)])
                assert difference(output, expected(reference, *case)) < CLOSE
        assert len(runs) == 1 and model_of.ptp_reuse.hits == 3
        both = [[name, other, "How many yellow signs are there?"]], {"keep_ratio": 0.3}
        (output,) = ask(fresh, [request(fresh, *both)])  # the second of two is new
        assert len(runs) == 2 and difference(output, expected(reference, *both)) < CLOSE
    finally:
        handle.remove()


def test_defaults_and_what_is_written_out_are_the_same_picture(fresh, model_of):
    case = [[questions()[0]]]
    plain = request(fresh, case[0], {"keep_ratio": 0.4})
    written = request(fresh, case[0], {"keep_ratio": 0.4, "method": "pyramid", "alpha": 0.5, "relevance": None})
    ask(fresh, [plain])
    (again,) = ask(fresh, [written])
    assert again.num_cached_tokens > 0
    (other,) = ask(fresh, [request(fresh, case[0], {"keep_ratio": 0.41})])
    assert other.num_cached_tokens == 0


def test_without_settings_it_is_the_engine_of_vllm(fresh):
    """Log-probabilities of an engine that does not know the plugin, bit for bit."""
    command = [sys.executable, "-m", "serving.unpruned"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]).stdout
    wanted = ast.literal_eval(told.strip().splitlines()[-1])
    outputs = ask(fresh, [request(fresh, [[name, asked]], None) for name, asked in questions()])
    assert [log_probabilities(output) for output in outputs] == wanted


BAD = [
    ({"keep_ratio": 0}, "keep_ratio must be in"),
    ({"keep": 0.5}, "got keep"),
    ({"keep_ratio": 0.5, "method": "fastv"}, "fastv cannot be served: it drops tokens at layer 2"),
    ({"keep_ratio": 0.5, "method": "deft"}, "deft cannot be served"),
    ({"keep_ratio": 0.5, "relevance": "attention"}, "what text attends to"),
    ({"keep_ratio": 0.5, "method": "nothing"}, "Method must be one of"),
    ({"keep_ratio": 0.5, "vision_layer": 99}, "vision_layer must be in"),
    ({"keep_ratio": 0.5, "reuse_mib": 9}, "reuse_mib is the engine's"),
    ([0.5], "must be an object of settings"),
]


@pytest.mark.parametrize("settings, message", BAD)
def test_refused_by_name(fresh, settings, message):
    name, asked = questions()[0]
    with pytest.raises(ValueError, match=message):
        ask(fresh, [request(fresh, [[name, asked]], settings)])
    assert ask(fresh, [request(fresh, [[name, asked]], {"keep_ratio": 0.5})])


def test_embeddings_made_elsewhere_are_refused(fresh):
    asked = request(fresh, [["coffee_1.jpg", "What is red?"]], {"keep_ratio": 0.5})
    asked["multi_modal_data"] = {"image": torch.zeros(1, 208, 192)}
    with pytest.raises(ValueError, match="Precomputed embeddings cannot be pruned"):
        ask(fresh, [asked])


def test_an_engine_that_cannot_prune_says_why(fresh, monkeypatch):
    name, asked = questions()[0]
    config = fresh.llm_engine.model_config.hf_config
    monkeypatch.setattr(config, "ptp_refused", "pipeline_parallel_size=2: no.")
    with pytest.raises(ValueError, match="cannot be pruned with pipeline_parallel_size=2"):
        ask(fresh, [request(fresh, [[name, asked]], {"keep_ratio": 0.5})])
    assert ask(fresh, [request(fresh, [[name, asked]], None)])


def test_other_models_do_not_start_where_they_are_to_be_pruned(engine):
    from types import SimpleNamespace

    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    def start(architecture, kwargs):
        pictures = SimpleNamespace(mm_processor_kwargs=kwargs)
        MODELS_CONFIG_MAP[architecture].verify_and_update_config(
            SimpleNamespace(model_config=SimpleNamespace(multimodal_config=pictures))
        )

    start("LlavaForConditionalGeneration", None)
    start("LlavaForConditionalGeneration", {"do_resize": False})
    with pytest.raises(
        ValueError, match=r"LlavaForConditionalGeneration cannot be pruned in vLLM, only Int.*LlavaOnevisionFor"
    ):
        start("LlavaForConditionalGeneration", {"ptp": {"keep_ratio": 0.5}})


def test_words_are_needed_where_a_method_is_made_of_them(fresh):
    name, _ = questions()[0]
    from ptp.serving.vllm.settings import resolve

    settings = {"keep_ratio": 0.5, "method": "cdpruner"}
    asked = request(fresh, [[name]], settings)
    if resolve(settings).needs_words:
        with pytest.raises(ValueError, match="reads the user's words"):
            ask(fresh, [asked])
    else:
        assert ask(fresh, [asked])


def test_counted_beside_the_engines_own(fresh):
    from prometheus_client import REGISTRY

    def read():
        values = {}
        for metric in REGISTRY.collect():
            for sample in metric.samples:
                if sample.name in ("ptp:visual_tokens_total", "ptp:visual_tokens_kept_total"):
                    values[sample.name] = values.get(sample.name, 0) + sample.value
        return values

    before, (name, asked) = read(), questions()[0]
    ask(fresh, [request(fresh, [[name, asked]], {"keep_ratio": 0.25}), request(fresh, [[name, asked]], None)])
    after = read()
    assert after["ptp:visual_tokens_total"] - before["ptp:visual_tokens_total"] == 2 * 208
    assert after["ptp:visual_tokens_kept_total"] - before["ptp:visual_tokens_kept_total"] == 52 + 208


def test_answers_may_go_on_behind_the_unpruned_length(model_of):
    rotary = next(module for module in model_of.modules() if hasattr(module, "cos_sin_cache"))
    longest = model_of.config.text_config.max_position_embeddings
    assert len(rotary.cos_sin_cache) == longest + 1024
    angle = rotary.cos_sin_cache[longest + 5, 0].acos()
    assert torch.allclose(angle.cos(), torch.tensor(float(longest + 5)).cos(), atol=1e-3)
