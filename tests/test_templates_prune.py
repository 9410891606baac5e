"""Under every published chat template the question decides what is kept, and nothing else that is said."""

import copy

import pytest
import torch
from chat_templates import MISTRAL_LAST
from checkpoints import CHECKPOINTS, IMAGE, Checkpoint, say, typed
from families import FAMILIES, model_of, picture, processor_of, tokenizer

import ptp

QUESTION, OTHER = "What is on the red circle?", "Read the table: 7 or K"
GUIDE, OTHER_GUIDE = "Be brief.", "Answer with the yellow triangle on the left."


def processor_for(checkpoint: Checkpoint, family):
    """The family's own processor, with the template that the checkpoint publishes."""
    processor = copy.copy(processor_of(family))
    processor.tokenizer = copy.copy(processor.tokenizer)
    processor.chat_template, processor.tokenizer.chat_template = checkpoint.template, checkpoint.tokenizer_template
    return processor


def kept_under(name: str, messages: list[dict], **given) -> tuple[list[int], str]:
    """What a pruner that listens to the instruction alone keeps of the (first) picture, and the instruction."""
    checkpoint, family = CHECKPOINTS[name], FAMILIES[name.partition(" ")[0]]
    processor = processor_for(checkpoint, family)
    if checkpoint.strings:
        messages = [{**message, "content": typed(message["content"])} for message in messages]
    template = checkpoint.template or checkpoint.tokenizer_template
    text = tokenizer().apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=True)
    pictures = [picture()] * text.count(family.image)
    inputs = processor(text=[text], images=[pictures] if family.nested else pictures, return_tensors="pt")
    with torch.no_grad(), ptp.PyramidPruner(alpha=1, keep_ratio=0.3)(model_of(family), processor, **given) as trace:
        model_of(family)(**inputs)
    assert len(trace.images) == len(pictures)
    return trace.images[0].kept.tolist(), trace.images[0].instruction


def turns(guide: str, first: str, last: str) -> dict[str, list[dict]]:
    """Conversations whose last question is `last`."""
    asked = [say("system", guide), say("user", IMAGE, first), say("assistant", "Let me look."), say("user", last)]
    later = [say("system", guide), say("user", first), say("assistant", "Yes."), say("user", IMAGE, last)]
    return {
        "a picture, then a question": [say("user", IMAGE, last)],
        "text, then a picture": [say("user", last, IMAGE)],
        "a system prompt": [say("system", guide), say("user", IMAGE, last)],
        "several turns": asked,
        "a picture in a later turn": later,
        "pictures in both": [*asked[:3], say("user", IMAGE, last)],
    }


@pytest.mark.parametrize("conversation", turns("", "", ""))
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_question_counts_and_nothing_else(name, conversation):
    if (
        conversation == "several turns"
        and CHECKPOINTS[name].template is None
        and CHECKPOINTS[name].tokenizer_template == MISTRAL_LAST
    ):
        pytest.skip("the system prompt is in the last turn, a blank line before the question: guessed, with a warning")
    talk = turns(GUIDE, "Hello, what is this?", QUESTION)[conversation]
    kept, read = kept_under(name, talk)
    assert read == QUESTION
    other, read = kept_under(name, turns(GUIDE, "Hello, what is this?", OTHER)[conversation])
    assert read == OTHER and other != kept, "another question keeps other tokens"
    for guide, first in ((OTHER_GUIDE, "Hello, what is this?"), (GUIDE, "Name the colour of sign 3.")):
        again, read = kept_under(name, turns(guide, first, QUESTION)[conversation])
        assert read == QUESTION and again == kept, "another system prompt or earlier turn does not"


def test_a_stated_instruction_decides_in_place_of_the_turn():
    talk = turns(GUIDE, OTHER, QUESTION)["several turns"]
    kept, read = kept_under("qwen2.5-vl", talk, instruction=OTHER)
    assert read == OTHER
    assert kept == kept_under("qwen2.5-vl", turns(GUIDE, "Hello.", OTHER)["several turns"])[0]
    with pytest.raises(ValueError, match="instruction must stand in the prompt, and row 0 lacks it: 'elsewhere'"):
        kept_under("qwen2.5-vl", talk, instruction="elsewhere")
