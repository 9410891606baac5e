"""The page's functions, without a browser: answers, follow-ups, comparisons, what visitors send, what is shown."""

import asyncio
import base64
import io
import subprocess
import sys
import threading
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from families import SIZES, WINDOW, model_of, photo, processor_of, pruner
from masking import extended
from PIL import Image

import ptp
from ptp.bench.measure import encode_prompt
from ptp.cli import ui
from ptp.tiny.demo import load_demo
from ptp.ui.ask import Talk, ask, compare
from ptp.ui.conversation import encode, messages
from ptp.ui.figures import compared_html, error_html, figures_html, kept_uri, settings_html, talk_html, views_html
from ptp.ui.guard import MAX_BODY, Guard
from ptp.ui.settings import build, checked_question, chosen_variant, chosen_variants
from ptp.ui.streaming import Loaded, Reply
from ptp.ui.uploads import MAX_BYTES, read_upload

SHOUTED = "(part['text'] | upper if message['role'] == 'assistant' else part['text'])"
HOSTILE = "<img src=x onerror=alert(1)> ${alert(2)} {{alert(3)}} @children \"'&"


@pytest.fixture(scope="module")
def loaded():
    return Loaded(*ptp.load(), "ptp-tiny")


@pytest.fixture
def talk():
    pictures, questions = load_demo()
    return Talk(pictures[questions[0].picture], questions[0].picture)


def whole(turns):
    """The last of what a generator yields."""
    *_, last = turns
    return last


def generated(loaded, inputs, method=None, length=8):
    """What transformers itself answers."""
    context = method(loaded.model, loaded.processor) if method else torch.no_grad()
    with context:
        ids = loaded.model.generate(**inputs, max_new_tokens=length, do_sample=False)
    return loaded.processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def saved(picture: Image.Image, kind: str = "PNG", **how) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **how)
    return file.getvalue()


def bomb(side: int) -> bytes:
    """A PNG of one colour, made without Pillow: its rows compress to almost nothing."""
    rows = zlib.compress((b"\0" * (1 + (side + 7) // 8)) * side, 9)
    size = side.to_bytes(4, "big") * 2

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    parts = (b"IHDR", size + b"\x01\0\0\0\0"), (b"IDAT", rows), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def test_the_demo_questions_are_answered_right_both_ways(loaded):
    """The answers are the demo's own, which its drawing knows."""
    pictures, questions = load_demo()
    for q in questions:
        turn = whole(ask(loaded, Talk(pictures[q.picture], q.picture), q.question, ptp.PyramidPruner(), 8))
        assert (turn.full.text, turn.pruned.text) == (q.answer, q.answer)
        assert turn.trace.visual_tokens[1] == round(0.5 * turn.trace.visual_tokens[0])
        assert turn.trace.images[0].instruction == q.question
        assert 0 < turn.pruned.cache_bytes < turn.full.cache_bytes and turn.full.first > 0 < turn.pruned.first


def test_answers_stream_and_end_as_generate_does(loaded, talk):
    method, question = pruner("visionzip", keep_ratio=0.25), "What color is it and what is next to it?"
    turns = list(ask(loaded, talk, question, method, 8))
    inputs = encode_prompt(loaded.processor, [talk.picture], question, loaded.model)
    assert turns[-1].full.text == generated(loaded, inputs)
    assert turns[-1].pruned.text == generated(loaded, inputs, method)
    assert turns[0].full == Reply() and not turns[1].full.done and turns[-1].full.done and turns[-1].pruned.done
    assert talk.turns == [turns[-1]] and turns[-1].full.runs == turns[-1].pruned.runs >= 1


def test_a_follow_up_goes_on_from_both_caches_and_answers_as_the_whole_conversation(loaded, talk):
    question, more = "Name the color of sign A.", "What shape is the sign with D?"
    first = whole(ask(loaded, talk, question, ptp.PyramidPruner(keep_ratio=1.0), 8))
    second = whole(ask(loaded, talk, more, ptp.PyramidPruner(keep_ratio=1.0), 8))
    assert (first.held, second.held) == (False, True)
    expected = generated(loaded, encode(loaded, messages(talk.picture, [(question, first.full.text)], more)))
    assert second.full.text == second.pruned.text == expected
    assert second.trace is first.trace and second.full.cache_bytes > first.full.cache_bytes
    assert second.full.first < first.full.first  # no picture is encoded


@pytest.mark.parametrize("length", [3, 1])
def test_a_follow_up_on_the_held_cache_for_every_family(family, length):
    """All tokens, and pruned with all kept, answer as transformers does without a cache, another talk in between or not."""
    loaded = Loaded(model_of(family), processor_of(family), family.name)
    talk, other = Talk(photo(0, SIZES[0]), "a"), Talk(photo(1, SIZES[1]), "b")
    method = pruner(keep_ratio=1.0, window=WINDOW)
    first = whole(ask(loaded, talk, "What is it?", method, length))
    whole(ask(loaded, other, "And this?", method, length))
    second = whole(ask(loaded, talk, "And where?", method, length))
    assert second.held
    prompt = encode(loaded, messages(talk.picture, [], "What is it?"))
    whole_talk = extended(prompt, second.full.ids[:, prompt["input_ids"].shape[1] : -length])
    expected = loaded.model.generate(**whole_talk, max_new_tokens=length, do_sample=False)
    assert torch.equal(second.full.ids, expected) and torch.equal(second.pruned.ids, expected)
    assert first.full.ids.shape[1] < second.full.ids.shape[1]


def test_another_setting_reads_the_conversation_anew(loaded, talk):
    whole(ask(loaded, talk, "Name the color of sign A.", ptp.PyramidPruner(), 8))
    turn = whole(ask(loaded, talk, "What shape is the sign with D?", ptp.PyramidPruner(keep_ratio=0.25), 8))
    assert not turn.held and turn.trace.visual_tokens == (208, 52)
    assert turn.trace.images[0].instruction == "What shape is the sign with D?"


def test_a_template_that_rewrites_what_was_said_is_read_anew(loaded, talk):
    """Some chat templates leave earlier answers' thoughts out."""
    processor = ptp.load()[1]
    processor.chat_template = processor.tokenizer.chat_template.replace("part['text']", SHOUTED)
    shouting = Loaded(loaded.model, processor, "shouting")
    whole(ask(shouting, talk, "Name the color of sign A.", ptp.PyramidPruner(), 8))
    assert talk.full.turns[0][1] == "blue"  # which the template writes as BLUE
    assert not whole(ask(shouting, talk, "And sign D?", ptp.PyramidPruner(), 8)).held


def test_an_answer_that_is_left_early_ends_and_the_conversation_goes_on(loaded, talk):
    turns = ask(loaded, talk, "Name the color of sign A.", ptp.PyramidPruner(), 2000)
    next(turns), next(turns)
    turns.close()
    deadline = time.monotonic() + 30
    while loaded.lock.locked() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not loaded.lock.locked() and talk.turns == [] and talk.full.ids is None
    assert whole(ask(loaded, talk, "Name the color of sign A.", ptp.PyramidPruner(), 8)).pruned.text == "blue"


def test_visitors_side_by_side_get_what_they_get_alone(loaded):
    pictures, questions = load_demo()
    found: dict[int, str] = {}

    def visit(number: int) -> None:
        q = questions[number]
        found[number] = whole(
            ask(loaded, Talk(pictures[q.picture], ""), q.question, ptp.PyramidPruner(keep_ratio=0.3), 8)
        ).pruned.text

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert found == {number: questions[number].answer for number in range(3)}


def test_a_setting_that_does_not_fit_the_model_is_an_error_and_leaves_the_conversation(loaded, talk):
    with pytest.raises(ValueError, match=r"prune_layer must be in \[0, 5\]"):
        whole(ask(loaded, talk, "Name the color of sign A.", ptp.PyramidPruner(prune_layer=77), 8))
    assert (
        talk.turns == [] and whole(ask(loaded, talk, "Name the color of sign A.", ptp.PyramidPruner(), 8)).full.text == "blue"
    )


def test_a_conversation_that_is_too_long_is_refused(loaded, talk):
    with pytest.raises(ValueError, match=r"must fit into the model's .* Start over"):
        whole(ask(loaded, talk, "Name the color of sign A.", ptp.PyramidPruner(), 10**6))


def test_methods_are_compared_and_one_that_does_not_fit_is_a_row(loaded, talk):
    variants = chosen_variants(["pyramid", "fastv"], "pyramid:alpha=0, fastv:prune_layer=77")
    *_, rows = compare(loaded, talk.picture, "What is on the yellow circle?", variants, 25, 8)
    assert [row.method for row in rows] == ["all tokens", "pyramid", "fastv", "pyramid:alpha=0", "fastv:prune_layer=77"]
    assert rows[0].reply.text == rows[1].reply.text == "F" and rows[0].reply.trace is None
    assert [row.reply.trace.visual_tokens for row in rows[1:4]] == [(208, 52)] * 3
    assert "prune_layer must be in" in rows[4].error
    page = compared_html(rows, [kept_uri(row, talk.picture) for row in rows])
    assert page.count("What pyramid kept") == 1 and page.count("data:image/jpeg") == 3 and "prune_layer must be in" in page


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ("", {}),
        ("alpha=0", {"alpha": 0.0}),
        ("pyramid:alpha=0:region=uniform", {"alpha": 0.0, "region": "uniform"}),
        ("pyramid", {}),
    ],
)
def test_settings_are_read_by_the_words_of_the_command_line(words, settings):
    assert build(chosen_variant("pyramid", words), 25) == ptp.PyramidPruner(keep_ratio=0.25, **settings)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: chosen_variant("pyramid", "alfa=0"), "Settings of pyramid are .*'alfa=0'"),
        (lambda: chosen_variant("pyramid", "alpha=2"), "alpha must be in"),
        (lambda: chosen_variant("nobody", ""), "Method must be one of"),
        (lambda: chosen_variant("pyramid", "a" * 501), "at most 500 characters"),
        (lambda: build(chosen_variant("pyramid", ""), 0), r"keep_ratio must be in \(0, 1\]"),
        (lambda: build(chosen_variant("pyramid", ""), "half"), "number of percent"),
        (lambda: checked_question("  "), "A question is needed"),
        (lambda: checked_question("why " * 501), "at most 2,000 characters"),
        (lambda: chosen_variants([]), "A method is needed"),
        (lambda: chosen_variants([], ",".join(f"pyramid:alpha=0.{n}" for n in range(10, 31))), "At most 20 methods"),
    ],
)
def test_a_wrong_setting_is_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_pictures_arrive_in_memory(kind):
    picture = photo(0, SIZES[0])
    name, read = read_upload("sign.png", url(saved(picture, kind)))
    assert (name, read.size, read.mode) == ("sign.png", picture.size, "RGB")
    assert np.abs(np.asarray(read, int) - np.asarray(picture, int)).mean() < 20


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (url(b""), r"is empty \(0 bytes\)"),
        (url(b"no picture at all"), "is not a picture that this page can read"),
        (url(saved(Image.new("RGB", (64, 64)))[:60]), "is damaged|is not a picture"),
        (
            url(saved(Image.new("RGB", (64, 64)), "EPS")),
            "is not a picture that this page can read",
        ),  # Pillow starts Ghostscript
        (url(saved(Image.new("RGB", (4, 4)))), "at least 8 pixels"),
        (url(bomb(20_000)), "more than 40 million pixels. Shrink it first"),
        (url(bomb(6_400)), "more than 40 million pixels. Shrink it first"),
        ("data:image/png;base64," + "A" * (MAX_BYTES // 3 * 4 + 8), "at most 20 MB"),
        ("data:image/png;base64,AAA!", "did not arrive whole"),
        ("/etc/passwd", "did not arrive whole"),
        (None, "did not arrive whole"),
    ],
)
def test_what_is_no_picture_is_a_sentence(data, message):
    with pytest.raises(ValueError, match=message):
        read_upload("sign.png", data)


def test_a_bomb_is_refused_before_it_is_decoded():
    content = bomb(20_000)
    assert len(content) < 100_000
    started = time.perf_counter()
    with pytest.raises(ValueError, match="million pixels"):
        read_upload("bomb.png", url(content))
    assert time.perf_counter() - started < 0.5


def test_all_text_is_escaped_and_holds_nothing_that_gradio_fills_in(loaded, talk):
    turn = whole(ask(loaded, talk, HOSTILE, ptp.PyramidPruner(), 4))
    turn = replace(turn, full=replace(turn.full, text=HOSTILE))
    row = whole(compare(loaded, talk.picture, "Read it.", chosen_variants(["pyramid"]), 50, 4))[1]
    rows = [replace(row, method=HOSTILE, reply=replace(row.reply, text=HOSTILE)), replace(row, error=HOSTILE)]
    for page in (talk_html([turn]), views_html(turn.trace, talk.picture), error_html(HOSTILE), compared_html(rows, [])):
        assert "&lt;img src=x" in page
        assert not any(bad in page for bad in ("<img src=x", "${", "{{", "@children"))


def test_figures_say_what_was_saved(loaded, talk):
    turn = whole(ask(loaded, talk, "What is on the yellow circle?", ptp.PyramidPruner(keep_ratio=0.25), 8))
    turn = replace(
        turn, full=replace(turn.full, first=0.4, cache_bytes=4096), pruned=replace(turn.pruned, first=0.1, cache_bytes=1024)
    )
    page = figures_html(turn)
    for words in (
        "25 % kept",
        "208 → <strong>52",
        "4 x faster",
        "400 ms → <strong>100 ms",
        "4 x smaller",
        "4 KiB → <strong>1 KiB",
    ):
        assert words in page
    assert "4 x slower" in figures_html(replace(turn, full=turn.pruned, pruned=turn.full))
    views = views_html(turn.trace, talk.picture)
    assert views.count('type="radio"') == 2 + len(turn.trace.images[0].scores) and "What is on the yellow circle?" in views
    assert "alpha=0.5" in settings_html("pyramid") and "keep_structure=true" in settings_html("pyramid")


def through(guard, method, path, body=b"", declared=None):
    """The status that the guard answers with; 200 where it asks the page."""
    sent = []

    async def app(scope, receive, send):
        assert reading or (await receive())["body"] == body
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    reading = method == "GET"
    headers = [(b"content-length", str(len(body) if declared is None else declared).encode())]
    asyncio.run(guard(app)({"type": "http", "method": method, "path": path, "headers": headers}, receive, send))
    return sent[0]


def test_the_server_takes_events_of_a_bounded_size_and_nothing_else():
    assert through(Guard, "POST", "/gradio_api/queue/join", b"{}")["status"] == 200
    assert through(Guard, "POST", "/gradio_api/upload", b"{}")["status"] == 403
    assert through(Guard, "PUT", "/gradio_api/upload")["status"] == 403
    assert through(Guard, "GET", "/gradio_api/deep_link")["status"] == 403
    assert through(Guard, "POST", "/gradio_api/queue/join", b"", declared=MAX_BODY + 1)["status"] == 413
    assert through(Guard, "POST", "/gradio_api/queue/join", b"x" * (MAX_BODY + 1), declared=2)["status"] == 413
    assert b"default-src 'self'" in dict(through(Guard, "GET", "/")["headers"])[b"content-security-policy"]


def test_without_gradio_one_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ValueError, match=r"pip install 'pyramid-token-pruning\[ui\]'"):
        ui.ui()


def test_nothing_outside_the_page_imports_gradio():
    source = Path(ptp.__file__).parent
    for path in source.rglob("*.py"):
        if path.parent.name != "ui" and path != source / "cli/ui.py":
            assert "gradio" not in path.read_text(), path
    code = "import sys, ptp.cli.app, ptp.ui.ask, ptp.ui.figures, ptp.ui.guard; assert 'gradio' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
