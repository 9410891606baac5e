"""The instruction is the user's own words, whatever template made the prompt."""

import threading
import time
import warnings
from types import SimpleNamespace

import pytest
import torch
from chat_templates import CHECKPOINTS, GEMMA3, IMAGE, MISTRAL, ONEVISION, QWEN2, Checkpoint
from transformers import PreTrainedTokenizerFast

from ptp.conversation import InstructionFinder, find_tokenizer, reader

MODEL = SimpleNamespace(name_or_path="")
QUESTION = "What does the sign say: 禁止 or Straße?"
SECOND = "And which one is older?"
ANSWER = "Let me look: it says stop."
GUIDE = "Be brief and polite."
TOOL = {"type": "function", "function": {"name": "zoom", "description": "Look closer.", "parameters": {}}}


def say(role, *parts, **more):
    return {
        "role": role,
        "content": [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts],
        **more,
    }


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
        [say("system", GUIDE), say("user", "Hello there."), say("assistant", ANSWER), say("user", IMAGE, QUESTION)], {}, QUESTION,
    ),
    "tools": lambda kind: (*tools(kind), QUESTION),
    "no generation prompt": lambda _: ([say("user", IMAGE, QUESTION)], {"prompt": False}, QUESTION),
    "two pictures": lambda _: (
        [say("user", "Compare", IMAGE, " with this sign", IMAGE, ": which is older?")], {},
        "Compare with this sign: which is older?",
    ),
}  # fmt: skip


def read(finder, checkpoint, text):
    """What the mask marks, decoded as it is; warnings are errors."""
    inputs = checkpoint.encode(text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mask = finder.mask(*inputs)
    assert not (mask & inputs[2]).any()
    return finder.words(inputs[0][mask])


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
