"""The instruction is the user's own words, whatever template made the prompt."""

import json
import threading
import time
import warnings
from types import SimpleNamespace

import pytest
import torch
from chat_templates import ONEVISION
from chat_tokenizers import byte_level
from checkpoints import CHECKPOINTS, IMAGE, MODEL, Checkpoint, Processor, read, say

from ptp.conversation import InstructionFinder, reader

QUESTION = "What does the sign say: 禁止 or Straße?"
SECOND = "And which one is older?"
ANSWER = "Let me look: it says stop."
GUIDE = "Be brief and polite."
TOOL = {"type": "function", "function": {"name": "zoom", "description": "Look closer.", "parameters": {}}}


def tools(kind):
    """A picture, a question, a call and its result; for templates that know no tools, an answer in the place of both."""
    asked = say("user", IMAGE, QUESTION)
    if kind == "own":
        call = say("assistant", "", tool_calls=[{"type": "function", "function": {"name": "zoom", "arguments": {}}}])
        return [asked, call, {"role": "tool", "content": "A sign, closer."}], {"tools": [TOOL]}
    if kind == "role":
        return [asked, say("assistant", ANSWER), say("tool", "A sign, closer.")], {}
    return [asked, say("assistant", ANSWER)], {}


CONVERSATIONS = {
    "a picture, then a question": lambda _: ([say("user", IMAGE, QUESTION)], {}, QUESTION),
    "text, then a picture": lambda _: ([say("user", QUESTION, IMAGE)], {}, QUESTION),
    "a system prompt": lambda _: ([say("system", GUIDE), say("user", IMAGE, QUESTION)], {}, QUESTION),
    "several turns": lambda _: (
        [say("user", IMAGE, QUESTION), say("assistant", ANSWER), say("user", SECOND)], {}, SECOND,
    ),
    "a picture in a later turn": lambda _: (
        [say("system", GUIDE), say("user", "Hello there."), say("assistant", ANSWER), say("user", IMAGE, QUESTION)],
        {}, QUESTION,
    ),
    "tools": lambda kind: (*tools(kind), QUESTION),
    "no generation prompt": lambda _: ([say("user", IMAGE, QUESTION)], {"prompt": False}, QUESTION),
    "two pictures": lambda _: (
        [say("user", "Compare", IMAGE, " with this sign", IMAGE, ": which is older?")], {},
        "Compare with this sign: which is older?",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_the_instruction_is_the_users_words(name, conversation):
    checkpoint = CHECKPOINTS[name]
    messages, settings, words = CONVERSATIONS[conversation](checkpoint.tools)
    finder = InstructionFinder.of(MODEL, checkpoint.processor())
    found = read(finder, checkpoint, checkpoint.render(messages, **settings))
    if conversation == "two pictures":  # templates that put pictures first join the texts; others part them by lines
        found, words = "".join(found.split()), "".join(words.split())
    assert found == words


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_second_turn_on_a_cache(name):
    """Only the new tokens are there: from the end of the answer on, or from the user's turn on."""
    checkpoint = CHECKPOINTS[name]
    finder = InstructionFinder.of(MODEL, checkpoint.processor())
    new = checkpoint.render(CONVERSATIONS["several turns"](None)[0]).split(ANSWER)[1]
    inputs = checkpoint.encode(new, starts=False)
    assert finder.words(inputs[0][finder.mask(*inputs)]) == SECOND


def test_which_template():
    """The processor's, then the tokenizer's; of named ones the default; the one whose turn is in the prompt."""
    one = CHECKPOINTS["llava-onevision"]
    text = one.render([say("system", GUIDE), say("user", IMAGE, QUESTION)])
    tokenizer = one.processor().tokenizer  # with Qwen2's template
    vicuna = CHECKPOINTS["llava-next vicuna"].template
    for processor in (
        tokenizer,
        Processor(tokenizer),
        Processor(tokenizer, vicuna),
        Processor(tokenizer, {"tool_use": vicuna, "default": ONEVISION}),
    ):
        assert read(InstructionFinder.of(MODEL, processor), one, text) == QUESTION


INST = """{%- for message in messages -%}
{%- if message.role == 'user' -%}
{%- set system = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' -%}
{{ '<s>[INST] ' + (system if loop.index0 == 1 else '') + message.content + ' [/INST]' }}
{%- elif message.role == 'assistant' -%}{{ ' ' + message.content + ' </s>' }}{%- endif -%}
{%- endfor -%}"""
ROLES = """{%- for message in messages -%}{{ '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' }}{%- endfor -%}"""
PRINTED = """{%- for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor -%}"""
WORDS = """{%- for message in messages -%}
{{ '### ' + message.role.title() + ':\\n' + message.content + '\\n\\n' }}{%- endfor -%}{{ '### Assistant:\\n' }}"""


@pytest.mark.parametrize("template", [INST, ROLES, PRINTED, WORDS])
@pytest.mark.parametrize("special", [("<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"), ("<s>",)])
def test_other_ways_to_write_turns(template, special):
    """Roles that are special tokens themselves, or words; markers that are not special; parts printed as they are."""
    checkpoint = Checkpoint(lambda: byte_level(*special), "<pad>", None, template)
    talk = [{"role": "system", "content": GUIDE}, {"role": "user", "content": QUESTION}]
    more = [*talk, {"role": "assistant", "content": ANSWER}, {"role": "user", "content": SECOND}]
    finder = InstructionFinder.of(MODEL, checkpoint.processor())
    assert read(finder, checkpoint, checkpoint.render(talk)) == QUESTION
    assert read(finder, checkpoint, checkpoint.render(more)) == SECOND


def test_a_padded_batch_and_words_with_a_gap():
    checkpoint = CHECKPOINTS["qwen2.5-vl"]
    finder = InstructionFinder.of(MODEL, checkpoint.processor())
    talks = [
        [say("user", IMAGE, QUESTION)],
        [say("user", SECOND)],
        [say("user", "What", IMAGE, "is it?")],
        [say("user", IMAGE)],
    ]
    rows = [checkpoint.encode(checkpoint.render(talk)) for talk in talks]
    length = max(ids.shape[1] for ids, *_ in rows)
    ids, is_token, visual = (
        torch.cat([torch.nn.functional.pad(row[part], (length - row[part].shape[1], 0)) for row in rows]) for part in range(3)
    )
    mask = finder.mask(ids, is_token, visual)
    assert mask.shape == ids.shape and mask.dtype == torch.bool
    assert [finder.words(*row) for row in zip(ids, mask, strict=True)] == [QUESTION, SECOND, "What is it?", ""]


def test_no_template_means_all_words():
    checkpoint = Checkpoint(lambda: byte_level("<image>"), "<image>", None)
    finder = InstructionFinder.of(MODEL, checkpoint.processor())
    assert read(finder, checkpoint, "<image><image> A caption of") == "A caption of"


@pytest.mark.parametrize("template", [ONEVISION, "{{ raise_exception('never') }}", "{{ messages }}"])
def test_a_turn_that_is_not_found_is_said_once(template):
    checkpoint = Checkpoint(lambda: byte_level("<image>", "<|im_start|>", "<|im_end|>"), "<image>", template)
    finder = InstructionFinder.of(MODEL, checkpoint.processor())
    inputs = checkpoint.encode("<image>Question: what is it? Answer:")
    with pytest.warns(UserWarning, match=r"all of its words.*Question: what is it\? Answer:.*pass instruction="):
        mask = finder.mask(*inputs)
    assert finder.words(inputs[0][mask]) == "Question: what is it? Answer:"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(finder.mask(*inputs), mask)


def test_what_is_saved_beside_the_weights(tmp_path):
    """The processor's template is read without building a processor, and before the tokenizer's."""
    checkpoint = CHECKPOINTS["llava-onevision"]
    tokenizer = checkpoint.processor().tokenizer
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": ONEVISION}))
    model = SimpleNamespace(name_or_path=str(tmp_path))
    assert len(InstructionFinder.of(model, None).turns) == 2
    text = checkpoint.render([say("system", GUIDE), say("user", IMAGE, QUESTION)])
    assert read(InstructionFinder.of(model, None), checkpoint, text) == QUESTION
    assert reader(model, None)(tokenizer.encode("Which sign")) == "Which sign"


def test_threads_get_what_one_gets():
    checkpoint = CHECKPOINTS["smolvlm"]
    finder = InstructionFinder.of(MODEL, checkpoint.processor())
    inputs = checkpoint.encode(checkpoint.render([say("user", IMAGE, QUESTION)]))
    found = []
    threads = [threading.Thread(target=lambda: found.append(finder.mask(*inputs))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and all(torch.equal(mask, finder.mask(*inputs)) for mask in found)


def test_visual_tokens_cost_nothing():
    """The time of a prompt with 3,328 visual tokens is that of its words."""
    checkpoint = CHECKPOINTS["internvl"]
    finder = InstructionFinder.of(MODEL, checkpoint.processor())
    talk = [say("system", "Be brief. " * 8), say("user", IMAGE, f"{QUESTION} {SECOND}")]
    ids, is_token, visual = checkpoint.encode(checkpoint.render(talk).replace("<IMG_CONTEXT>" * 8, "<IMG_CONTEXT>" * 3328))
    times = []
    for _ in range(20):
        start = time.perf_counter()
        finder.mask(ids, is_token, visual)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.005
