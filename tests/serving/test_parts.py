"""The parts of the plugin that need no engine."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ptp import METHODS
from ptp.conversation import InstructionFinder, words_of_pictures
from ptp.runtime import Picture
from ptp.serving.vllm.config import refusal
from ptp.serving.vllm.encoding import in_runs
from ptp.serving.vllm.plugin import check_version
from ptp.serving.vllm.positions import Shown, shifts, split_shifts, text_positions, with_shifts
from ptp.serving.vllm.reuse import Encoded, Reuse
from ptp.serving.vllm.settings import from_canonical, resolve, small_picture
from ptp.tiny.model import IMAGE_TOKEN, build_tokenizer

INSIDE = ("dart", "fastv", "pyramiddrop", "sparsevlm", "deft")


@given(st.data())
def test_kept_tokens_and_the_text_behind_keep_their_places(data):
    """A prompt is words and pictures; what stays of it must be told the places that it had."""
    positions, ends, end, place, shift = [], [], 0, 0, []
    for _ in range(data.draw(st.integers(1, 4))):
        words, tokens = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 300))
        kept = sorted(data.draw(st.sets(st.integers(0, tokens - 1), min_size=1, max_size=40)))
        positions += [*range(place, place + words), *(place + words + each for each in kept)]
        shift += [0] * words + shifts(torch.tensor(kept), None)[:, 0].tolist()
        place, end = place + words + tokens, end + words + len(kept)
        ends.append(Shown(end - len(kept), end, tokens))
    found, more = text_positions(end + 3, ends)
    assert (found + torch.tensor(shift + [0] * 3)).tolist() == [*positions, place, place + 1, place + 2]
    assert int(found[-1]) + 1 == end + 3 + more


def test_rows_and_columns_keep_their_places():
    """Qwen's rule: a picture's tokens stand at (start, start + row, start + column), the text behind it at start + the longer
    side. Two words, a picture of 3 rows and 5 columns of which two stay, a word, one of 2 x 2, a word."""
    first, second = torch.tensor([4, 11]), torch.tensor([0])
    told, more = text_positions(7, [Shown(2, 4, 5, flat=False), Shown(5, 6, 2, flat=False)])
    shift = torch.cat([torch.zeros(2, 3), shifts(first, 5), torch.zeros(1, 3), shifts(second, 2), torch.zeros(1, 3)])
    wanted = [(0,) * 3, (1,) * 3, (2, 2, 6), (2, 4, 3), (7,) * 3, (8, 8, 8), (10,) * 3]
    assert list(map(tuple, (told[:, None] + shift).long().tolist())) == wanted and more == 11 - 7


@given(st.lists(st.integers(1, 50), max_size=12), st.integers(1, 100), st.data())
def test_no_more_is_encoded_at_a_time_than_there_is_room_for(tokens, most, data):
    new = [number for number in range(len(tokens)) if data.draw(st.booleans())]
    runs = in_runs(new, tokens, most)
    sums = [sum(tokens[number] for number in run) for run in runs]
    assert [number for run in runs for number in run] == new and all(runs)
    assert all(total <= most or len(run) == 1 for total, run in zip(sums, runs, strict=True))
    assert all(total + tokens[run[0]] > most for total, run in zip(sums, runs[1:], strict=False)), "none could be one run"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("axes", [1, 3])
def test_shifts_survive_half_precision(dtype, axes):
    shift = torch.tensor([0, 1, 255, 256, 3327, 65535])[:, None] // torch.tensor([1, 2, 3])[:axes]
    features, found = split_shifts(with_shifts(torch.ones(6, 4, dtype=dtype), shift), axes, 4)
    assert found.tolist() == shift.tolist() and features.shape == (6, 4)
    assert split_shifts(torch.ones(6, 4), axes, 4)[1] is None


@pytest.mark.parametrize("method", [name for name in METHODS if name not in INSIDE])
def test_settings_come_back_from_what_is_sent(method):
    settings = resolve({"method": method, "keep_ratio": 0.3})
    again = from_canonical(settings.text)
    assert again.pruner == settings.pruner and again.text == settings.text and type(again.pruner) is METHODS[method]


@pytest.mark.parametrize("method", INSIDE)
def test_methods_inside_the_language_model_are_refused(method):
    with pytest.raises(ValueError, match=f"{method} cannot be served: it drops tokens at layer"):
        resolve({"method": method, "keep_ratio": 0.5})


def test_methods_that_read_attention_before_the_first_layer_are_refused():
    for method, more in (("fastv", {}), ("dart", {}), ("pyramid", {"relevance": "both"})):
        with pytest.raises(ValueError, match="inside the language model"):
            resolve({"method": method, "keep_ratio": 0.5, "prune_layer": 0, **more})


@pytest.mark.parametrize("given", [None, {}, {"keep_ratio": 1}, {"keep_ratio": 1.0, "method": "visionzip"}])
def test_nothing_to_prune(given):
    assert resolve(given) is None


def test_order_and_defaults_do_not_matter():
    texts = {
        resolve(g).text
        for g in ({"keep_ratio": 0.5}, {"alpha": 0.5, "keep_ratio": 0.5}, {"method": "pyramid", "keep_ratio": 0.5})
    }
    assert len(texts) == 1 and resolve({"keep_ratio": 0.5, "alpha": 0}).text not in texts


def test_whether_words_are_read():
    assert resolve({"keep_ratio": 0.5}).reads_words and not resolve({"keep_ratio": 0.5, "alpha": 0}).reads_words
    assert not resolve({"keep_ratio": 0.5, "method": "visionzip"}).reads_words


def encoded(tokens: int) -> Encoded:
    picture = small_picture(resolve({"keep_ratio": 0.5}).pruner, 0)
    bare = Picture(picture.layout, torch.empty(0), (), torch.empty(0), ())
    return Encoded(torch.zeros(tokens), bare, torch.empty(0))


def test_the_pictures_used_last_are_remembered():
    reuse = Reuse(10 * 4)
    reuse.put("a", encoded(4))
    reuse.put("b", encoded(4))
    assert reuse.get("a") is not None
    reuse.put("c", encoded(4))
    assert reuse.get("b") is None and reuse.get("a") is not None and reuse.get("c") is not None
    assert (len(reuse), reuse.size, reuse.hits, reuse.misses) == (2, 32, 3, 1)
    reuse.put("large", encoded(11))
    assert reuse.get("large") is None and len(reuse) == 2
    reuse.put("a", encoded(1))
    assert reuse.size == 20
    nothing = Reuse(0)
    nothing.put("a", encoded(1))
    assert len(nothing) == 0


def words(turns):
    tokenizer = build_tokenizer()
    content = [
        {"role": role, "content": [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]}
        for role, parts in turns
    ]
    ids = tokenizer.apply_chat_template(content, add_generation_prompt=True, tokenize=True, return_dict=False)
    finder = InstructionFinder.of(None, tokenizer)
    found = words_of_pictures(finder, ids, tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
    return [tokenizer.decode(each) for each in found]


def test_each_picture_is_shown_with_the_words_of_its_turn():
    first, second = "What is on the red circle?", "Is A left of B?"
    assert words([("user", [None, first])]) == [first]
    assert words([("user", [None, first]), ("assistant", ["A"]), ("user", [second])]) == [first]
    both = words([("user", [None, None, first]), ("assistant", ["A"]), ("user", [None, second])])
    assert both == [first, first, second]
    assert words([("user", [first]), ("assistant", ["A"]), ("user", [second, None])]) == [second]
    assert words([("user", [first])]) == []


class Settings:
    def __init__(self, **values):
        self.__dict__.update(values)


@pytest.mark.parametrize(
    "stages, devices, method, more, told",
    [
        (1, 2, None, {}, None),
        (2, 1, None, {}, "pipeline_parallel_size=2"),
        (1, 1, "ngram", {}, None),
        (1, 1, "eagle3", {}, "eagle3"),
        (1, 1, "mtp", {}, "mtp"),
        (1, 1, None, {"cudagraph_mm_encoder": True}, "cudagraph_mm_encoder"),
        (1, 1, None, {"compile_mm_encoder": True}, "compile_mm_encoder"),
    ],
)
def test_engines_that_cannot_prune(stages, devices, method, more, told):
    config = Settings(
        parallel_config=Settings(pipeline_parallel_size=stages, tensor_parallel_size=devices),
        speculative_config=None if method is None else Settings(method=method),
        compilation_config=Settings(**more),
        model_config=Settings(multimodal_config=Settings(video_pruning_rate=None)),
    )
    found = refusal(config)
    assert found is None if told is None else told in found
    if devices > 1:
        assert "tensor_parallel_size=2" in refusal(config, sharded=True)


def test_other_versions_are_warned_about(recwarn):
    check_version("0.32.1")
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"tested with vLLM 0\.32, and this is 0\.33\.0"):
        check_version("0.33.0")
