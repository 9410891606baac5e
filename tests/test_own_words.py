"""Of a user's turn the user's own words: no labels of pictures, no system prompt, all the rest."""

import pytest
from checkpoints import AROUND, CHECKPOINTS, IMAGE, MODEL, Processor, read, say
from transformers.models.gemma3.processing_gemma3 import Gemma3Processor
from transformers.models.smolvlm.processing_smolvlm import SmolVLMProcessor

from ptp.conversation import InstructionFinder

QUESTION = "What does the sign say: 禁止 or Straße?"
GUIDE = "Be brief and polite."
PAD = "<|vision_start|><|image_pad|><|vision_end|>"
FRAMES = "".join(f"\nFrame from 00:0{n}:{AROUND}<global-img><image><image>{AROUND}" for n in range(2))
GLM_FRAME = "<|begin_of_image|><|image|><|end_of_image|>"
INTRO = "You are provided the following series of two frames from a 0:00:02 [H:MM:SS] video.\n"
LABELLED = {
    "internvl": "Frame1: <img><IMG_CONTEXT></img>\nFrame2: <img><IMG_CONTEXT></img>\n",
    "smolvlm": f"{INTRO}{FRAMES}\n\n",
    "idefics3": "Image-1: <image>\nImage-2: <image>\n",
    "qwen2.5-vl": f"Picture 1: {PAD}Picture 2: {PAD}",
    "gemma3": "Here is the original image <start_of_image> and here are some crops to help you see better <start_of_image>",
    "gemma4": "\n\n" + " ".join(f"00:0{n} <|image><|video|><|video|><image|>" for n in range(2)) + "\n\n",
    "qwen3-vl": f"<0.5 seconds>{PAD}<1.5 seconds>{PAD.replace('image', 'video')}",
    "glm-4.1v": f"<|begin_of_video|>{GLM_FRAME}0{GLM_FRAME}12<|end_of_video|>",
    "glm-4.5v": f"<|begin_of_video|>{GLM_FRAME}0.0 seconds{GLM_FRAME}12.5 seconds<|end_of_video|>",
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", LABELLED)
def test_labels_of_pictures_and_frames_are_not_the_users(name, first):
    checkpoint = CHECKPOINTS[name]
    kind = {"smolvlm": SmolVLMProcessor, "gemma3": Gemma3Processor}.get(name, Processor)  # some state sentences in their code
    processor = kind.__new__(kind)
    processor.tokenizer, processor.chat_template = checkpoint.processor().tokenizer, checkpoint.template
    words = "Describe the clip: what happens at 00:01?"
    text = checkpoint.render([say("user", f"{LABELLED[name]}{words}" if first else f"{words}{LABELLED[name]}")])
    assert read(InstructionFinder.of(MODEL, processor), checkpoint, text) == words


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("words", ["What is it?", "Is it 7", "7", "/nothink or not?"])
def test_a_switch_that_the_template_joins_to_the_words_is_not_the_users(words, prompt):
    """GLM-4.5V writes "/nothink" behind them where thinking is off; a number behind a picture is the user's."""
    checkpoint = CHECKPOINTS["glm-4.5v"]
    finder = InstructionFinder.of(MODEL, checkpoint.processor())
    for thinking in (True, False):
        text = checkpoint.render([say("user", IMAGE, words)], prompt=prompt, enable_thinking=thinking)
        assert ("/nothink" in text.replace(words, "")) != thinking
        assert read(finder, checkpoint, text) == words


def test_words_before_a_picture_that_are_no_label():
    checkpoint = CHECKPOINTS["qwen2.5-vl"]
    words = "Is 5 < 7 as the user: says in picture 1: \n"
    text = checkpoint.render([say("user", words, IMAGE)])
    assert read(InstructionFinder.of(MODEL, checkpoint.processor()), checkpoint, text) == words.strip()


@pytest.mark.parametrize("name", ["gemma3", "llava-next mistral, its text model's template"])
def test_several_paragraphs(name):
    """Where system prompts are written into the user's turn, a picture behind tells them from the user's words."""
    checkpoint = CHECKPOINTS[name]
    finder = InstructionFinder.of(MODEL, checkpoint.processor())
    paragraphs = "Some context.\n\nA question?"
    assert read(finder, checkpoint, checkpoint.render([say("user", IMAGE, paragraphs)])) == paragraphs
    guided = checkpoint.render([say("system", GUIDE), say("user", IMAGE, paragraphs)])
    assert read(finder, checkpoint, guided) == paragraphs
    inputs = checkpoint.encode(checkpoint.render([say("user", paragraphs, IMAGE)]))
    with pytest.warns(UserWarning, match=r"first paragraph was taken too.*pass instruction="):
        assert finder.words(inputs[0][finder.mask(*inputs)]) == paragraphs


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_words_before_a_picture_are_not_taken_for_a_system_prompt(end):
    """One line end does not part a system prompt, and one with no words behind the picture would leave the user none."""
    checkpoint = CHECKPOINTS["llava-next mistral, its text model's template"]
    finder = InstructionFinder.of(MODEL, checkpoint.processor())
    parts = [f"Compare this{end}", IMAGE, *(["and that."] if len(end) < 2 else [])]
    inputs = checkpoint.encode(checkpoint.render([say("user", *parts)]))
    found = finder.words(inputs[0][0], finder.mask(*inputs)[0])
    assert found == ("Compare this and that." if len(end) < 2 else "Compare this")
    text = "Compare this\n<image>and that."
    assert read(finder, checkpoint, checkpoint.render([say("user", text)])).split() == text.replace("<image>", "").split()


def test_a_turn_on_a_cache_is_not_the_first():
    """So no system prompt is in it."""
    checkpoint = CHECKPOINTS["gemma3"]
    finder = InstructionFinder.of(MODEL, checkpoint.processor())
    turn = "<start_of_turn>user\nBe kind.\n\n\n\n<start_of_image><image_soft_token><end_of_image>\n\nWhy?<end_of_turn>\n"
    for before, words in (("<bos>", "Why?"), ("<end_of_turn>\n", "Be kind. Why?")):
        inputs = checkpoint.encode(before + turn, starts=False)
        assert finder.words(inputs[0][0], finder.mask(*inputs)[0]) == words


def test_words_that_look_like_a_turn():
    """The user's own within a turn, and an answer's where special tokens open the real ones."""
    quoted = "What does USER: or User: mean?"
    vicuna, smolvlm = CHECKPOINTS["llava-next vicuna"], CHECKPOINTS["smolvlm"]
    text = vicuna.render([say("user", IMAGE, quoted)])
    assert read(InstructionFinder.of(MODEL, vicuna.processor()), vicuna, text) == quoted
    text = smolvlm.render([say("user", IMAGE, QUESTION), say("assistant", "It says User: hello.")])
    assert read(InstructionFinder.of(MODEL, smolvlm.processor()), smolvlm, text) == QUESTION


def test_spaces_before_a_picture_are_the_users():
    checkpoint = CHECKPOINTS["qwen2.5-vl"]
    text = checkpoint.render([say("user", "Compare ", IMAGE, "with this ", IMAGE, "sign.")])
    assert read(InstructionFinder.of(MODEL, checkpoint.processor()), checkpoint, text) == "Compare with this sign."
