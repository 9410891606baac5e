"""Instructions that a person states: the words, those of each row, or a mask."""

import pytest
import torch
from checkpoints import CHECKPOINTS, IMAGE, MODEL, say

from ptp.conversation import InstructionFinder, find_tokenizer, reader

QUESTION = "What does the sign say: 禁止 or Straße?"
ANSWER = "Let me look: it says stop."


@pytest.mark.parametrize("name", ["qwen2.5-vl", "llava-next vicuna"])
@pytest.mark.parametrize("words", ["the sign   say:\n禁止 or", "Straße?", QUESTION, f"this {QUESTION}"])
def test_stated_words(name, words):
    """The last place of them, across pictures, whatever the white space and the tokens."""
    checkpoint = CHECKPOINTS[name]
    talk = [
        say("user", "the sign say: 禁止 or Straße?"),
        say("assistant", ANSWER),
        say("user", "What of this ", IMAGE, QUESTION),
    ]
    inputs = checkpoint.encode(checkpoint.render(talk))
    finder = InstructionFinder.of(MODEL, checkpoint.processor(), words)
    mask = finder.mask(*inputs)
    assert finder.words(inputs[0][0], mask[0]).split() == words.split()
    assert not (mask & inputs[2]).any()
    assert mask.nonzero()[-1, 1] > inputs[2].nonzero()[-1, 1]


def test_stated_words_of_each_row():
    checkpoint = CHECKPOINTS["qwen2.5-vl"]
    ids, is_token, visual = (
        part.expand(4, -1) for part in checkpoint.encode(checkpoint.render([say("user", IMAGE, QUESTION)]))
    )
    finder = InstructionFinder.of(MODEL, checkpoint.processor(), ["sign", "Straße?"])  # two beams of each
    mask = finder.mask(ids, is_token, visual)
    assert [finder.words(*row) for row in zip(ids, mask, strict=True)] == ["sign", "sign", "Straße?", "Straße?"]
    with pytest.raises(ValueError, match="2 texts for a batch of 3 rows"):
        finder.mask(ids[:3], is_token[:3], visual[:3])
    absent = InstructionFinder.of(MODEL, checkpoint.processor(), "bicycle")
    with pytest.raises(ValueError, match=r"row 0 lacks it: 'bicycle'\. Pass"):
        absent.mask(ids, is_token, visual)
    assert not absent.mask(ids, is_token, torch.zeros_like(visual)).any()  # nothing to prune there


def test_a_stated_mask():
    checkpoint = CHECKPOINTS["qwen2.5-vl"]
    ids, is_token, visual = (
        part.expand(4, -1) for part in checkpoint.encode(checkpoint.render([say("user", IMAGE, QUESTION)]))
    )
    wanted = torch.zeros(2, ids.shape[1], dtype=torch.long)
    wanted[0, -3], wanted[1, -4] = 1, 1
    for processor in (None, checkpoint.processor()):
        finder = InstructionFinder.of(MODEL, processor, wanted)
        assert torch.equal(finder.mask(ids, is_token, visual), wanted.bool().repeat_interleave(2, 0))
    assert torch.equal(InstructionFinder.of(MODEL, None, torch.ones_like(ids)).mask(ids, is_token, visual), ~visual)
    assert not InstructionFinder.of(MODEL, None, torch.ones_like(ids)).mask(ids, ~is_token, visual).any()
    assert InstructionFinder.of(MODEL, None, wanted).words([1, 2]) == ""
    with pytest.raises(ValueError, match=rf"input_ids, \(4, {ids.shape[1] - 1}\), got \(2, {ids.shape[1]}\)\. Pass"):
        finder.mask(ids[:, 1:], is_token[:, 1:], visual[:, 1:])


@pytest.mark.parametrize("wrong", ["", "  ", [], ["a", ""], 7, torch.ones(3, dtype=torch.bool), torch.ones(1, 3)])
def test_instructions_that_are_none(wrong):
    with pytest.raises(ValueError, match=r"instruction .*, got .*\. Pass the words"):
        InstructionFinder.of(MODEL, CHECKPOINTS["internvl"].processor(), wrong)


def test_nothing_to_read_with():
    with pytest.raises(ValueError, match=r"takes the model's tokenizer, .* Pass"):
        InstructionFinder.of(MODEL, None)
    with pytest.raises(ValueError, match=r"processor must be .*, got int\. Pass"):
        InstructionFinder.of(MODEL, 7)
    assert find_tokenizer(MODEL, None) is None and reader(MODEL, None)([1]) == ""
